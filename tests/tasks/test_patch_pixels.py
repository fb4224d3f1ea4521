import numpy as np
import pytest
import torch
from PIL import Image

from infra.archives.model import BIGEARTHNET, PatchFormat
from infra.bigearthnet.bands import BAND_SETS, IMAGE_RGB, S1, S2_10M, S2_20M, S2_60M, BandGroup, stretch_max_dn
from infra.errors import ConfigError
from tasks.bands import Resampling, band_set, groups_of
from tasks.patch_pixels import joined, picked, reduced

PICTURES = PatchFormat(("a", "b"), (BandGroup("rgb", IMAGE_RGB, gsd=None, size=64),), has_maps=False)


def test_reduced_is_the_mean_of_blocks() -> None:
    dn = torch.tensor([[[[1, 2, 65535, 65535], [2, 1, 65535, 65534]]]], dtype=torch.int32).to(torch.uint16)
    assert reduced(dn, 2).to(torch.int32).tolist() == [[[[2, 65535]]]]  # 1.5 to even, 65534.75; no sum overflows
    assert reduced(dn, 1) is dn


def test_reduced_equals_numpy() -> None:
    dn = np.random.default_rng(0).integers(0, 65536, (3, 2, 16, 16)).astype(np.uint16)
    by_hand = np.rint(dn.reshape(3, 2, 4, 4, 4, 4).astype(np.float64).mean(axis=(3, 5)))
    np.testing.assert_array_equal(reduced(torch.from_numpy(dn), 4).numpy(), by_hand)


def test_band_sets_are_those_of_the_archive() -> None:
    assert band_set("rgb", BIGEARTHNET) == ("B04", "B03", "B02")
    assert band_set("rgb", PICTURES) == ("R", "G", "B")
    assert len(band_set("s2", BIGEARTHNET)) == 12
    assert band_set("s1s2", BIGEARTHNET)[-2:] == ("VV", "VH")
    with pytest.raises(ConfigError, match="bands: 10m needs B04, B03, B02, B08, and this archive has B, G, R"):
        band_set("10m", PICTURES)


def test_only_grids_that_hold_a_band_are_read() -> None:
    assert groups_of(BIGEARTHNET, BAND_SETS["rgb"]) == (S2_10M,)
    assert groups_of(BIGEARTHNET, BAND_SETS["s2"]) == (S2_10M, S2_20M, S2_60M)
    assert groups_of(BIGEARTHNET, ("VH", "B01")) == (S2_60M, S1)


def stored(bands: tuple[str, ...], n: int = 2) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    whole = {}
    for group in groups_of(BIGEARTHNET, bands):
        shape = (n, len(group.bands), group.size, group.size)
        values = rng.integers(0, 9000, shape).astype(group.dtype) if group is not S1 else rng.normal(-15, 5, shape)
        whole[group.array] = picked(values.astype(group.dtype), group, bands)
    return whole


def test_joined_by_nearest_neighbour_repeats_pixels_and_stretches_each_band() -> None:
    bands = BAND_SETS["s1s2"]
    arrays, limits = stored(bands), stretch_max_dn(bands, 3000)
    image = joined(
        {k: torch.from_numpy(v) for k, v in arrays.items()}, groups_of(BIGEARTHNET, bands), bands, limits, "nearest"
    )
    assert image.shape == (2, 14, 120, 120)
    assert image.dtype == torch.float32
    for i, band in enumerate(bands):
        (group,) = (g for g in groups_of(BIGEARTHNET, bands) if band in g.bands)
        own = [b for b in bands if b in group.bands]
        values = arrays[group.array][:, own.index(band)].astype(np.float64)
        factor = 120 // group.size
        grown = values.repeat(factor, axis=1).repeat(factor, axis=2)
        expected = grown if group is S1 else np.minimum(grown, limits[i]) / limits[i]
        np.testing.assert_allclose(image[:, i].numpy(), expected, rtol=1e-6, atol=1e-7, err_msg=band)
    bright = {band: limit for band, limit in zip(bands, limits, strict=True) if limit == 6000}
    assert set(bright) == {"B06", "B07", "B08", "B8A", "B09", "B11"}


@pytest.mark.parametrize(("resampling", "filter_"), [("bilinear", Image.Resampling.BILINEAR)])
def test_joined_by_another_method_keeps_pixel_centres(resampling: Resampling, filter_: Image.Resampling) -> None:
    bands = ("B04", "B05")
    arrays, limits = stored(bands, 1), stretch_max_dn(bands, 9000)
    image = joined(
        {k: torch.from_numpy(v) for k, v in arrays.items()}, groups_of(BIGEARTHNET, bands), bands, limits, resampling
    )
    coarse = Image.fromarray(arrays["s2_20m"][0, 0].astype(np.float32))
    expected = np.asarray(coarse.resize((120, 120), filter_)) / 9000
    np.testing.assert_allclose(image[0, 1].numpy(), expected, atol=1e-5)


def test_bicubic_overshoot_is_clipped_as_the_stretch_does() -> None:
    edge = np.zeros((1, 1, 60, 60), np.uint16)
    edge[..., 30:] = 9000
    arrays = {"s2_10m": torch.zeros(1, 1, 120, 120), "s2_20m": torch.from_numpy(edge)}
    image = joined(arrays, (S2_10M, S2_20M), ("B04", "B05"), (9000, 9000), "bicubic")
    assert (float(image.min()), float(image.max())) == (0.0, 1.0)
