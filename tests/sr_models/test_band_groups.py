"""Bands in groups against the network on each group by hand, and radiometry against plain means."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import sr_models
from infra.bigearthnet.bands import BAND_SETS, RGB, stretch_max_dn
from infra.errors import ConfigError, ShapeError
from sr_models import SrEngine, SuperResolver
from sr_models.band_groups import back_project, join, split

TEN_M = BAND_SETS["10m"]


class Shifted(nn.Module):
    """Nearest enlargement that mixes the bands and shifts them, as a network trained on something else would."""

    def forward(self, x: Tensor) -> Tensor:
        y = 0.8 * x + 0.1 * x.flip(1) + 0.05
        return y.repeat_interleave(4, 2).repeat_interleave(4, 3)


def shifted(bands: tuple[str, ...]) -> SuperResolver:
    return SuperResolver("shifted", 4, Shifted(), torch.device("cpu"), bands=bands)


def picture(n: int, bands: int, size: int = 12) -> Tensor:
    return torch.rand((n, bands, size, size), generator=torch.Generator().manual_seed(0))


def test_groups_are_rgb_and_one_grey_picture_a_band() -> None:
    x = picture(2, 5)
    groups = split(x)
    assert groups.shape == (6, 3, 12, 12)
    assert torch.equal(groups[:2], x[:, :3])
    for group, band in ((groups[2:4], 3), (groups[4:], 4)):
        assert torch.equal(group, x[:, band : band + 1].repeat(1, 3, 1, 1))
    assert torch.equal(join(groups, 5)[:, :3], x[:, :3])
    torch.testing.assert_close(join(groups, 5), x)
    with pytest.raises(ShapeError, match="red, green, blue"):
        split(picture(2, 2))


def test_join_averages_the_three_outputs_of_a_grey_group() -> None:
    y = torch.zeros(2, 3, 1, 1)
    y[1, :, 0, 0] = torch.tensor([0.1, 0.2, 0.6])
    torch.testing.assert_close(join(y, 4)[0, :, 0, 0], torch.tensor([0.0, 0.0, 0.0, 0.3]))


def test_back_projection_keeps_the_means() -> None:
    lr = picture(2, 4)
    sr = Shifted()(lr)
    before, after = (
        (y.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(-2, -1)) - lr).abs() for y in (sr, back_project(sr, lr))
    )
    assert before.max() > 0.1
    assert after.mean() < 0.02 * before.mean()


def test_ten_metre_bands_keep_their_radiometry() -> None:
    x = 0.2 + 0.6 * picture(2, 4)
    y = shifted(TEN_M)(x)
    assert y.shape == (2, 4, 48, 48)
    error = (y.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(-2, -1)) - x).abs()
    assert error.mean() < 2e-3
    # before the projection, B08 of the network on (B08, B08, B08) is 0.9 B08 + 0.05
    grey = Shifted()(x[:, 3:].repeat(1, 3, 1, 1)).mean(dim=1)
    torch.testing.assert_close(y[:, 3], back_project(grey[:, None], x[:, 3:])[:, 0], atol=1e-6, rtol=0)


def test_rgb_alone_is_the_network_alone() -> None:
    x = picture(1, 3)
    assert torch.equal(shifted(RGB)(x), Shifted()(x).clamp(0, 1))


@pytest.mark.parametrize("name", ["none", "bicubic"])
def test_models_without_a_network_treat_each_band_alone(name: str) -> None:
    x = picture(2, 4)
    y = sr_models.load(name, bands=TEN_M)(x)
    for band in range(4):
        alone = x[:, band : band + 1].repeat(1, 3, 1, 1)
        assert torch.equal(y[:, band], sr_models.load(name)(alone)[:, 0])


def test_bands_need_red_green_and_blue_first() -> None:
    with pytest.raises(ConfigError, match="B04, B03, B02 first, got B02, B03, B04, B08"):
        sr_models.load("bicubic", bands=("B02", "B03", "B04", "B08"))
    with pytest.raises(ShapeError, match=r"\(N, 4, H, W\)"):
        sr_models.load("bicubic", bands=TEN_M)(picture(1, 3))


def test_each_band_has_its_own_stretch() -> None:
    assert stretch_max_dn(TEN_M, 3000) == (3000, 3000, 3000, 6000)
    assert stretch_max_dn(TEN_M, 60_000)[3] == 65_535
    dn = np.random.default_rng(0).integers(0, 8000, (3, 4, 6, 6), dtype=np.uint16)
    kept = SrEngine(sr_models.load("none", bands=TEN_M)).super_resolve(dn, (3000, 3000, 3000, 6000)).numpy()
    assert np.array_equal(kept, np.minimum(dn, np.array([3000, 3000, 3000, 6000], np.uint16)[:, None, None]))


def test_real_weights_keep_the_radiometry_of_real_bands(shared_data: Path) -> None:
    """The figures of docs/super-resolution.md: mean error over 4 x 4 pixels of each band of the Sentinel-2 cell."""
    import rasterio

    folder = shared_data / "sentinel2_l2a_cell"
    bands = []
    for band in TEN_M:
        with rasterio.open(next(folder.rglob(f"*{band}*.tif*"))) as file:
            bands.append(file.read(1)[:120, :120])
    dn = np.array(bands)[None]
    weights = shared_data / "weights" / "realesr-general-x4v3-fp16.pth"
    limits = stretch_max_dn(TEN_M, 3000)
    sr = SrEngine(sr_models.load("realesrgan_general", weights, bands=TEN_M)).super_resolve(dn, limits).numpy()
    reduced = sr.reshape(1, 4, 120, 4, 120, 4).mean(axis=(3, 5))
    error = np.abs(reduced - np.minimum(dn, np.array(limits)[:, None, None])).mean(axis=(0, 2, 3))
    rgb = SrEngine(sr_models.load("realesrgan_general", weights)).super_resolve(dn[:, :3], 3000).numpy()
    plain = np.abs(rgb.reshape(1, 3, 120, 4, 120, 4).mean(axis=(3, 5)) - np.minimum(dn[:, :3], 3000)).mean(
        axis=(0, 2, 3)
    )
    print(error, plain)
    assert error.max() < 5  # DN: 0.0005 reflectance
    assert error[:3].max() < plain.min()
