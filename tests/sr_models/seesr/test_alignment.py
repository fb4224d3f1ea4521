"""Colour alignment against loops over pixels in float64, and what follows from its definitions."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.errors import ShapeError
from sr_models.seesr.alignment import Alignment, adain, align, wavelet

Image = NDArray[np.float64]


def image(seed: int, height: int = 9, width: int = 7, n: int = 2) -> Tensor:
    return torch.rand((n, 3, height, width), generator=torch.Generator().manual_seed(seed))


def blurred(x: Image, apart: int) -> Image:
    """One pass over one channel: taps 1 2 1 along both axes, `apart` pixels apart, over 16; the edge goes on."""
    height, width = x.shape
    result = np.zeros_like(x)
    for i in range(height):
        for j in range(width):
            for down, vertical in zip((-apart, 0, apart), (1, 2, 1), strict=True):
                for right, horizontal in zip((-apart, 0, apart), (1, 2, 1), strict=True):
                    row, column = min(max(i + down, 0), height - 1), min(max(j + right, 0), width - 1)
                    result[i, j] += vertical * horizontal / 16 * x[row, column]
    return result


def wavelet_by_hand(x: Image, y: Image) -> Image:
    high = np.zeros_like(x)
    for level in range(5):
        low = blurred(x, 2**level)
        high += x - low
        x = low
        y = blurred(y, 2**level)
    return high + y


def adain_by_hand(x: Image, y: Image) -> Image:
    def moments(values: Image) -> tuple[float, float]:
        mean = values.sum() / values.size
        return mean, (((values - mean) ** 2).sum() / (values.size - 1) + 1e-5) ** 0.5

    (mean, spread), (wanted_mean, wanted_spread) = moments(x), moments(y)
    return (x - mean) / spread * wanted_spread + wanted_mean


@pytest.mark.parametrize(("ours", "by_hand"), [(adain, adain_by_hand), (wavelet, wavelet_by_hand)])
@pytest.mark.parametrize("size", [(9, 7), (1, 2), (35, 20)])
def test_against_loops(
    ours: Callable[[Tensor, Tensor], Tensor], by_hand: Callable[[Image, Image], Image], size: tuple[int, int]
) -> None:
    x, y = image(0, *size), image(1, *size)
    expected = [
        [by_hand(a.double().numpy(), b.double().numpy()) for a, b in zip(*pair, strict=True)]
        for pair in zip(x, y, strict=True)
    ]
    np.testing.assert_allclose(ours(x, y).numpy(), expected, atol=1e-5)


@pytest.mark.parametrize("alignment", ["adain", "wavelet", "none"])
def test_an_image_has_its_own_colours(alignment: Alignment) -> None:
    x = image(0)
    torch.testing.assert_close(align(x, x, alignment), x, atol=1e-6, rtol=0)


def test_mean_and_spread_of_the_input() -> None:
    x, y = image(0), 0.4 + 0.2 * image(1)
    found, wanted = adain(x, y), torch.var_mean(y, dim=(2, 3))
    torch.testing.assert_close(torch.var_mean(found, dim=(2, 3)), wanted, atol=1e-5, rtol=0)


def test_wavelet_has_none_of_the_colours_of_the_output() -> None:
    """A constant is a low frequency; so the output's own colour has no say."""
    x, y = image(0), image(1)
    torch.testing.assert_close(wavelet(x + torch.tensor([0.3, -0.1, 0.2]).view(3, 1, 1), y), wavelet(x, y))


@pytest.mark.parametrize("alignment", ["adain", "wavelet"])
def test_a_flat_output_becomes_the_mean_or_the_low_frequencies(alignment: Alignment) -> None:
    y = image(1)
    found = align(torch.full_like(y, 0.5), y, alignment)
    if alignment == "adain":
        torch.testing.assert_close(found, y.mean(dim=(2, 3), keepdim=True).expand_as(y))
    else:
        low = wavelet_by_hand(np.zeros((9, 7)), y[0, 0].double().numpy())
        np.testing.assert_allclose(found[0, 0].numpy(), low, atol=1e-6)


@pytest.mark.parametrize("alignment", ["adain", "wavelet", "none"])
def test_each_image_by_itself_and_clamped(alignment: Alignment) -> None:
    x, y = image(0, n=4) * 3 - 1, image(1, n=4)
    whole = align(x, y, alignment)
    assert whole.min() == 0.0
    assert whole.max() == 1.0
    torch.testing.assert_close(torch.cat([align(x[i : i + 1], y[i : i + 1], alignment) for i in (2, 0)]), whole[[2, 0]])


def test_two_shapes_are_refused() -> None:
    with pytest.raises(ShapeError, match=r"got \(2, 3, 9, 7\) and \(2, 3, 7, 9\)"):
        align(image(0), image(1, 7, 9), "adain")
