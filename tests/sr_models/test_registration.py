"""Known translations: by scipy's splines, by the Fourier shift theorem, by whole pixels of a finer grid."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage
from torch import Tensor

from infra.errors import ShapeError
from sr_models.quality import reduce_mean
from sr_models.registration import MAX_SHIFT_PX, translation_px


def texture(n: int = 2, size: int = 96, sigma: float = 2.0, seed: int = 0) -> NDArray[np.float64]:
    """Periodic noise of one correlation length, (n, 1, size, size), of unit variance about 5."""
    noise = np.random.default_rng(seed).normal(size=(n, 1, size, size))
    smooth = ndimage.gaussian_filter(noise, (0, 0, sigma, sigma), mode="wrap")
    return np.asarray(5 + smooth / smooth.std())


def tensor(image: NDArray[np.float64]) -> Tensor:
    return torch.from_numpy(image.astype(np.float32))


def by_fourier(image: NDArray[np.float64], row: float, col: float) -> NDArray[np.float64]:
    """Translate a periodic image by the shift theorem."""
    fy, fx = np.fft.fftfreq(image.shape[-2])[:, None], np.fft.fftfreq(image.shape[-1])[None, :]
    spectrum = np.fft.fft2(image) * np.exp(-2j * np.pi * (fy * row + fx * col))
    return np.asarray(np.fft.ifft2(spectrum).real)


@pytest.mark.parametrize(("row", "col"), [(0.0, 0.0), (0.1, -0.05), (-0.5, 0.25), (1.3, -0.7), (0.0, 2.5), (-2.9, 2.9)])
def test_shift_theorem(row: float, col: float) -> None:
    image = texture()
    found = translation_px(tensor(by_fourier(image, row, col)), tensor(image))
    np.testing.assert_allclose(found.numpy(), [[row, col]] * 2, atol=0.004)


def test_spline_shift_of_several_channels() -> None:
    image = np.concatenate([texture(seed=seed) for seed in range(3)], axis=1)
    moved = ndimage.shift(image, (0, 0, 0.4, -0.6), order=5, mode="grid-wrap")
    found = translation_px(tensor(moved * 300), tensor(image * 300))
    np.testing.assert_allclose(found.numpy(), [[0.4, -0.6]] * 2, atol=0.004)


@pytest.mark.parametrize(("row", "col"), [(1, 0), (-2, 3), (4, -6)])
def test_whole_pixels_of_a_grid_four_times_finer(row: int, col: int) -> None:
    """What a super-resolved patch that is off by a pixel of its own looks like: a quarter of a pixel of the input."""
    fine = texture(size=384, sigma=8.0)
    moved = np.roll(fine, (row, col), axis=(2, 3))
    found = translation_px(reduce_mean(tensor(moved)), reduce_mean(tensor(fine)))
    np.testing.assert_allclose(found.numpy(), [[row / 4, col / 4]] * 2, atol=0.004)


def test_blur_noise_and_brightness_move_nothing() -> None:
    image = texture(n=4, size=120)
    blurred = ndimage.gaussian_filter(image, (0, 0, 0.8, 0.8), mode="wrap")
    noise = np.random.default_rng(9).normal(scale=0.1, size=image.shape)
    found = translation_px(tensor(0.9 * blurred + noise + 0.3), tensor(image))
    assert found.abs().max() < 0.02


def test_each_image_has_its_own_shift_whatever_the_batch() -> None:
    image = texture(n=3)
    shifts = [(0.2, 0.1), (-0.4, 1.0), (0.0, -0.3)]
    moved = np.concatenate([by_fourier(image[i : i + 1], *shifts[i]) for i in range(3)])
    found = translation_px(tensor(moved), tensor(image))
    np.testing.assert_allclose(found.numpy(), shifts, atol=0.004)
    alone = [translation_px(tensor(moved[i : i + 1]), tensor(image[i : i + 1])) for i in range(3)]
    torch.testing.assert_close(torch.cat(alone), found, atol=1e-6, rtol=0)


def test_null_where_nothing_can_be_registered() -> None:
    flat = np.full((1, 1, 96, 96), 7.0)
    stripes = np.broadcast_to(np.sin(np.arange(96) / 4), (1, 1, 96, 96)).copy()  # one direction has no gradient
    good = texture(n=1)
    other = texture(n=1, seed=5)  # another scene
    far = np.roll(good, 20, axis=2)
    fixed = np.concatenate([flat, stripes, good, good, good])
    moved = np.concatenate([flat, stripes, other, far, by_fourier(good, 0.5, 0.0)])
    found = translation_px(tensor(moved), tensor(fixed))
    assert found[:4].isnan().all()
    np.testing.assert_allclose(found[4].numpy(), [0.5, 0.0], atol=0.004)
    assert translation_px(torch.rand(2, 3, 16, 40), torch.rand(2, 3, 16, 40)).isnan().all()


def test_longest_shift() -> None:
    image = texture(sigma=3.0)
    within, beyond = (translation_px(tensor(by_fourier(image, s, 0.0)), tensor(image)) for s in (2.95, 3.1))
    np.testing.assert_allclose(within[:, 0].numpy(), 2.95, atol=0.004)
    assert beyond.isnan().all()
    assert MAX_SHIFT_PX == 3


def test_shapes_that_do_not_go_together() -> None:
    with pytest.raises(ShapeError, match="of one shape"):
        translation_px(torch.rand(1, 1, 32, 32), torch.rand(1, 1, 32, 33))
    with pytest.raises(ShapeError, match="of one shape"):
        translation_px(torch.rand(1, 32, 32), torch.rand(1, 32, 32))
