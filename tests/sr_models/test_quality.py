"""Every metric against hand numbers, a closed form or brute force in float64."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor, nn

import sr_models
from infra.errors import ConfigError, ShapeError
from sr_models import SuperResolver
from sr_models.opensr import detail_shares
from sr_models.quality import (
    QUALITY_COLUMNS,
    WALD_COLUMNS,
    Enlarger,
    consistency,
    degrade,
    ergas,
    psnr_db,
    quality_columns,
    reduce_mean,
    spectral_angle_deg,
    ssim,
    wald,
)


@pytest.fixture(scope="module")
def tiny() -> SuperResolver:
    """A random x4 network: one convolution, its channels rearranged to pixels."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(nn.Conv2d(3, 48, 3, padding=1), nn.PixelShuffle(4), nn.Sigmoid())
    return SuperResolver("tiny", 4, network.eval(), torch.device("cpu"))


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed))


def dn(*shape: int, seed: int = 0, top: int = 4000) -> NDArray[np.uint16]:
    return np.random.default_rng(seed).integers(0, top, shape, dtype=np.uint16)


def ssim_by_hand(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    """SSIM of two (H, W) images, window by window, from the definition of weighted moments."""
    d = np.arange(11) - 5
    window = np.exp(-(d[:, None] ** 2 + d[None, :] ** 2) / (2 * 1.5**2))
    window /= window.sum()
    values = []
    for y in range(a.shape[0] - 10):
        for x in range(a.shape[1] - 10):
            p, q = a[y : y + 11, x : x + 11], b[y : y + 11, x : x + 11]
            mp, mq = (window * p).sum(), (window * q).sum()
            vp, vq = (window * (p - mp) ** 2).sum(), (window * (q - mq) ** 2).sum()
            cov = (window * (p - mp) * (q - mq)).sum()
            values.append((2 * mp * mq + 1e-4) * (2 * cov + 9e-4) / ((mp**2 + mq**2 + 1e-4) * (vp + vq + 9e-4)))
    return float(np.mean(values))


def rows_of(resolver: Enlarger, *arguments: Any) -> dict[str, NDArray[np.float32]]:
    return dict(zip(QUALITY_COLUMNS, quality_columns(resolver, *arguments).numpy(), strict=True))


class TestPsnr:
    def test_hand_numbers(self) -> None:
        a = torch.zeros(4, 3, 5, 5)
        b = torch.stack([torch.full((3, 5, 5), v) for v in (1.0, 0.1, 0.001, 0.0)])
        torch.testing.assert_close(psnr_db(a, b), torch.tensor([0.0, 20.0, 60.0, 100.0]), atol=1e-4, rtol=0)

    def test_mean_square_is_over_channels_and_pixels_of_one_image(self) -> None:
        a, b = random(3, 3, 6, 7), random(3, 3, 6, 7, seed=1)
        mse = ((a - b).double().numpy() ** 2).reshape(3, -1).mean(axis=1)
        np.testing.assert_allclose(psnr_db(a, b).numpy(), -10 * np.log10(mse), rtol=1e-5)

    def test_the_cap(self) -> None:
        a = torch.full((1, 3, 4, 4), 0.5)
        assert psnr_db(a, a + 1e-7).item() == 100.0


class TestSsim:
    def test_brute_force(self) -> None:
        a = random(2, 3, 14, 13)
        b = (a + 0.5 * random(2, 3, 14, 13, seed=1)).clamp(0, 1)
        x, y = a.double().numpy(), b.double().numpy()
        expected = [np.mean([ssim_by_hand(x[n, c], y[n, c]) for c in range(3)]) for n in range(2)]
        assert min(expected) > 0.1
        assert max(expected) < 0.95
        np.testing.assert_allclose(ssim(a, b).numpy(), expected, atol=2e-6)

    def test_constant_images_have_the_luminance_term_alone(self) -> None:
        a, b = torch.full((1, 3, 12, 12), 0.2), torch.full((1, 3, 12, 12), 0.6)
        expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
        assert ssim(a, b).item() == pytest.approx(expected, abs=1e-5)

    def test_identity_and_symmetry(self) -> None:
        a, b = random(2, 3, 20, 20), random(2, 3, 20, 20, seed=1)
        torch.testing.assert_close(ssim(a, a), torch.ones(2))
        torch.testing.assert_close(ssim(a, b), ssim(b, a))

    def test_smaller_than_the_window(self) -> None:
        with pytest.raises(ShapeError, match="at least 11x11"):
            ssim(random(1, 3, 10, 12), random(1, 3, 10, 12))


class TestSpectralAngle:
    def test_hand_numbers(self) -> None:
        a = torch.tensor([[1.0, 0, 0], [1, 0, 0], [1, 1, 0], [1, 2, 3]]).reshape(4, 3, 1, 1)
        b = torch.tensor([[0.0, 2, 0], [5, 0, 0], [1, 0, 0], [-1, -2, -3]]).reshape(4, 3, 1, 1)
        torch.testing.assert_close(spectral_angle_deg(a, b), torch.tensor([90.0, 0.0, 45.0, 180.0]))

    def test_arccos_in_float64(self) -> None:
        a, b = random(2, 3, 5, 4) + 0.05, random(2, 3, 5, 4, seed=1) + 0.05
        x, y = a.double().numpy(), b.double().numpy()
        cosine = (x * y).sum(1) / np.sqrt((x * x).sum(1) * (y * y).sum(1))
        np.testing.assert_allclose(
            spectral_angle_deg(a, b).numpy(), np.degrees(np.arccos(cosine)).mean((1, 2)), rtol=1e-5
        )

    def test_small_angles_keep_their_digits(self) -> None:
        """A turn by 1e-5 rad, which float32 arccos gives as 0 or 0.02 degrees."""
        a = torch.tensor([1.0, 0.0, 0.0]).reshape(1, 3, 1, 1)
        b = torch.tensor([1.0, 1e-5, 0.0]).reshape(1, 3, 1, 1)
        assert spectral_angle_deg(a, b).item() == pytest.approx(math.degrees(1e-5), rel=1e-4)

    def test_zero_vectors_are_left_out(self) -> None:
        a, b = torch.zeros(2, 3, 1, 3), torch.ones(2, 3, 1, 3)
        a[0, 0, 0, 0] = 1.0  # the one pixel with an angle
        b[0, 1:, 0, 0] = 0.0
        b[0, 0, 0, 0] = 2.0
        angle = spectral_angle_deg(a, b)
        assert angle[0].item() == 0.0
        assert math.isnan(angle[1].item())


class TestErgas:
    def test_hand_number(self) -> None:
        """Errors of 0.1 on means 0.5, 1 and 0.25: 100/4 sqrt((0.04 + 0.01 + 0.16) / 3)."""
        reference = torch.tensor([0.5, 1.0, 0.25]).reshape(1, 3, 1, 1).expand(1, 3, 4, 4)
        value = ergas(reference + 0.1, reference)
        assert value.item() == pytest.approx(25 * math.sqrt(0.07), rel=1e-5)
        assert ergas(reference + 0.1, reference, ratio=1 / 2).item() == pytest.approx(2 * value.item())

    def test_unit_does_not_matter_but_the_reference_does(self) -> None:
        a, b = random(2, 3, 8, 8) + 0.1, random(2, 3, 8, 8, seed=1) * 0.3 + 0.1
        torch.testing.assert_close(ergas(a * 10_000, b * 10_000), ergas(a, b))
        assert (ergas(a, b) - ergas(b, a)).abs().min() > 1

    def test_a_black_band_gives_nan(self) -> None:
        reference = torch.ones(2, 3, 4, 4)
        reference[1, 2] = 0
        value = ergas(torch.ones(2, 3, 4, 4), reference)
        assert value[0].item() == 0
        assert math.isnan(value[1].item())


def test_reduce_mean_is_the_mean_of_blocks() -> None:
    x = random(2, 3, 8, 12)
    by_hand = np.array(
        [[[[x[n, c, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4].double().mean().item() for j in range(3)] for i in range(2)]
          for c in range(3)] for n in range(2)]
    )  # fmt: skip
    np.testing.assert_allclose(reduce_mean(x).numpy(), by_hand, rtol=1e-6)
    assert torch.equal(reduce_mean(x, 1), x)
    with pytest.raises(ShapeError, match="multiples of 4"):
        reduce_mean(random(1, 3, 8, 10))


class TestDegrade:
    @pytest.mark.parametrize(("factor", "mtf"), [(4, 0.3), (4, 0.15), (2, 0.25), (3, 0.5)])
    def test_mtf_at_nyquist_by_fft(self, factor: int, mtf: float) -> None:
        """What one pixel sees of a line in every row is the line spread; its spectrum is the MTF: a Gaussian."""
        size = 48 * factor
        lines = torch.eye(size, dtype=torch.float64).reshape(size, 1, size, 1).expand(-1, 1, -1, 2 * factor)
        weights = degrade(lines, factor, mtf)[:, 0, 24, 0].numpy()  # of a pixel in the middle on every row
        assert weights.sum() == pytest.approx(1)
        transfer = np.abs(np.fft.rfft(weights))
        frequency = np.fft.rfftfreq(size)
        at_nyquist = transfer[np.argmin(np.abs(frequency - 1 / (2 * factor)))]
        assert at_nyquist == pytest.approx(mtf, abs=2e-3)
        np.testing.assert_allclose(transfer, mtf ** ((2 * factor * frequency) ** 2), atol=5e-3)  # aliased: 0.004
        centre = (weights * np.arange(size)).sum()
        assert centre == pytest.approx(24 * factor + (factor - 1) / 2)  # the middle of its block

    def test_a_wave_at_nyquist_keeps_its_share(self) -> None:
        """cos(pi (i - 1.5) / 4), its crests at the middles of every second block of 4: +-mtf, away from the border."""
        wave = torch.cos(math.pi * (torch.arange(160) - 1.5) / 4).expand(1, 1, 160, 160).clone()
        seen = degrade(wave, 4, 0.2)[0, 0, 20]
        torch.testing.assert_close(seen[5:-5].abs(), torch.full((30,), 0.2), atol=1e-3, rtol=0)
        assert (seen[5:-5].sign()[1:] == -seen[5:-5].sign()[:-1]).all()

    def test_none_is_the_mean_of_blocks_and_a_constant_stays(self) -> None:
        x = random(2, 3, 24, 16)
        assert torch.equal(degrade(x), reduce_mean(x))
        torch.testing.assert_close(degrade(torch.full((1, 3, 24, 16), 0.7), 4, 0.3), torch.full((1, 3, 6, 4), 0.7))

    def test_rows_and_columns_are_treated_alike(self) -> None:
        x = random(1, 2, 32, 24)
        torch.testing.assert_close(degrade(x, 4, 0.3).transpose(2, 3), degrade(x.transpose(2, 3), 4, 0.3))

    def test_errors(self) -> None:
        for mtf in (0.0, 1.0, 30.0):
            with pytest.raises(ConfigError, match="between 0 and 1"):
                degrade(random(1, 3, 8, 8), 4, mtf)
        with pytest.raises(ShapeError, match="multiples of 4"):
            degrade(random(1, 3, 8, 10), 4, 0.3)


class TestConsistency:
    def test_hand_numbers_under_the_common_clip(self) -> None:
        lr = np.full((1, 3, 1, 1), 1000, dtype=np.uint16)
        lr[0, 2] = 9000  # clipped to 3000 in both
        sr = np.full((1, 3, 4, 4), 1000, dtype=np.uint16)
        sr[0, 0, 0, 0] = 2600  # +100 in the mean of 16
        sr[0, 2] = 3000
        values = consistency(sr, lr, 3000)
        assert values["reflectance_mae"].item() == pytest.approx(100 / 3 / 10_000)
        u, v = np.array([1100.0, 1000, 3000]), np.array([1000.0, 1000, 3000])
        angle = math.degrees(math.acos(u @ v / np.linalg.norm(u) / np.linalg.norm(v)))
        assert values["consistency_sam_deg"].item() == pytest.approx(angle, rel=1e-4)

    def test_repeated_pixels_are_consistent(self) -> None:
        lr = dn(2, 3, 5, 6)
        values = consistency(lr.repeat(4, axis=2).repeat(4, axis=3), lr, 3000)
        assert values["reflectance_mae"].tolist() == [0, 0]
        assert max(values["consistency_sam_deg"].tolist()) < 1e-4

    @pytest.mark.parametrize(("row", "col"), [(0, 0), (1, 0), (-2, 1), (0, 4)])
    def test_shift_of_an_output_that_is_off_by_its_own_pixels(self, row: int, col: int) -> None:
        fine = np.clip(ndimage.gaussian_filter(1500 + 9000 * np.random.default_rng(0).normal(size=(2, 3, 480, 480)),
                                               (0, 0, 8, 8), mode="wrap"), 0, 3000)  # fmt: skip
        lr = fine.reshape(2, 3, 120, 4, 120, 4).mean(axis=(3, 5)).round().astype(np.uint16)
        sr = np.roll(fine, (row, col), axis=(2, 3)).round().astype(np.uint16)
        values = consistency(sr, lr, 3000)
        np.testing.assert_allclose(values["shift_row_px"].numpy(), row / 4, atol=0.01)
        np.testing.assert_allclose(values["shift_col_px"].numpy(), col / 4, atol=0.01)

    @pytest.mark.parametrize("shape", [(1, 3, 9, 8), (1, 3, 8, 12), (2, 3, 8, 8), (3, 8, 8), (1, 3, 1, 1)])
    def test_shapes_that_do_not_go_together(self, shape: tuple[int, ...]) -> None:
        with pytest.raises(ShapeError, match="consistency needs"):
            consistency(np.zeros(shape, np.uint16), np.zeros((1, 3, 2, 2), np.uint16), 3000)


class TestWald:
    def test_bicubic_restores_a_constant(self) -> None:
        values = wald(sr_models.load("bicubic"), torch.full((1, 3, 48, 48), 0.4))
        assert values["psnr_db"].item() == 100
        assert values["ssim"].item() == pytest.approx(1)
        assert values["sam_deg"].item() == pytest.approx(0, abs=1e-4)
        assert values["ergas"].item() == pytest.approx(0, abs=1e-4)

    def test_reduces_first_and_compares_with_the_original(self, tiny: SuperResolver) -> None:
        lr = random(2, 3, 48, 64)
        blocks = lr.unfold(2, 4, 4).unfold(3, 4, 4).mean(dim=(4, 5))
        restored = tiny(blocks)
        values = wald(tiny, lr)
        mse = (restored - lr).square().flatten(1).mean(1)
        torch.testing.assert_close(values["psnr_db"], -10 * mse.log10())
        torch.testing.assert_close(values["ergas"], ergas(restored, lr, ratio=1 / 4))
        shares = detail_shares(blocks, restored, lr)
        assert all(torch.equal(values[key], share) for key, share in shares.items())
        assert tuple(values) == WALD_COLUMNS

    def test_reduces_by_the_mtf_that_is_asked_for(self, tiny: SuperResolver) -> None:
        lr = random(2, 3, 48, 64)
        restored = tiny(degrade(lr, 4, 0.25))
        torch.testing.assert_close(wald(tiny, lr, mtf=0.25)["psnr_db"], psnr_db(restored, lr))
        assert (wald(tiny, lr)["ssim"] - wald(tiny, lr, mtf=0.25)["ssim"]).abs().max() > 1e-6

    def test_none_restores_nothing(self) -> None:
        assert all(math.isnan(v.item()) for v in wald(sr_models.load("none"), random(1, 3, 16, 16)).values())


class TestRows:
    def test_one_value_per_image_whatever_the_batch(self, tiny: SuperResolver) -> None:
        lr = dn(5, 3, 48, 48)
        lr[3] = 0  # a black patch has no angle and no ERGAS
        sr = lr.repeat(4, axis=2).repeat(4, axis=3)
        rows = rows_of(tiny, lr, sr, 3000)
        assert list(rows) == list(QUALITY_COLUMNS)
        alone = [rows_of(tiny, lr[i : i + 1], sr[i : i + 1], 3000) for i in range(5)]
        for key, column in rows.items():
            assert column.dtype == np.float32
            assert column.shape == (5,)
            np.testing.assert_allclose(column, np.concatenate([row[key] for row in alone]), atol=1e-5, rtol=1e-5)
        assert np.isnan([rows[key][3] for key in ("sam_deg", "ergas", "consistency_sam_deg", "shift_row_px")]).all()
        assert np.isfinite(np.stack([column[[0, 1, 2, 4]] for column in rows.values()])).all()

    def test_columns_are_those_of_the_functions(self, tiny: SuperResolver) -> None:
        lr = dn(2, 3, 48, 48)
        sr = dn(2, 3, 192, 192, seed=1, top=3000)
        rows = rows_of(tiny, lr, sr, 3000)
        parts = {**wald(tiny, sr_models.to_unit(lr, 3000)), **consistency(sr, lr, 3000)}
        for key, value in parts.items():
            np.testing.assert_allclose(rows[key], value.numpy(), rtol=1e-6)
        np.testing.assert_allclose(rows["clipped_share"], (lr > 3000).any(axis=1).mean(axis=(1, 2)), rtol=1e-6)

    def test_none_is_consistent_and_has_no_wald(self) -> None:
        lr = dn(2, 3, 12, 12)
        rows = rows_of(sr_models.load("none"), lr, np.minimum(lr, 3000), 3000)
        assert rows["reflectance_mae"].tolist() == [0, 0]
        assert np.isnan(rows["psnr_db"]).all()


@pytest.mark.parametrize("metric", [psnr_db, ssim, spectral_angle_deg, ergas])
def test_metrics_refuse_shapes_that_differ(metric: object) -> None:
    assert callable(metric)
    with pytest.raises(ShapeError, match="of one shape"):
        metric(random(1, 3, 12, 12), random(2, 3, 12, 12))
    with pytest.raises(ShapeError, match="of one shape"):
        metric(random(3, 12, 12), random(3, 12, 12))
