"""Oracles: hand numbers on maps at full size, scipy's entropy, NumPy loops."""

import math

import numpy as np
import pytest
import torch
from scipy.ndimage import center_of_mass
from scipy.stats import entropy
from torch.nn import functional

from classifiers.cam import summary
from classifiers.cam.summary import summarise
from infra.errors import ShapeError


def test_by_hand_on_maps_that_need_no_enlargement() -> None:
    """A uniform map, one pixel, and half of the pixels; 4 x 4."""
    maps = torch.zeros(1, 3, 4, 4)
    maps[0, 0] = 0.25
    maps[0, 1, 3, 1] = 7.0
    maps[0, 2, :2] = 2.0
    found = summarise(maps, size=4)
    torch.testing.assert_close(found.coverage, torch.tensor([[1, 1 / 16, 0.5]]))
    torch.testing.assert_close(found.entropy, torch.tensor([[1, 0, math.log(8) / math.log(16)]]))
    torch.testing.assert_close(found.centroid_row, torch.tensor([[1.5, 3, 0.5]]))
    torch.testing.assert_close(found.centroid_col, torch.tensor([[1.5, 1, 1.5]]))


def test_equal_scipy_after_enlargement_of_the_relu() -> None:
    rng = np.random.default_rng(0)
    maps = rng.normal(size=(2, 3, 4, 5)).astype(np.float32)
    found = summarise(torch.from_numpy(maps))
    relu = torch.from_numpy(np.maximum(maps, 0))
    large = functional.interpolate(relu, size=(120, 120), mode="bilinear").double().numpy()
    for i, j in np.ndindex(2, 3):
        assert float(found.coverage[i, j]) == pytest.approx((large[i, j] > 0).mean(), abs=1e-6)
        assert float(found.entropy[i, j]) == pytest.approx(entropy(large[i, j].ravel()) / math.log(14400), abs=1e-6)
        row, col = center_of_mass(large[i, j])
        assert (float(found.centroid_row[i, j]), float(found.centroid_col[i, j])) == pytest.approx((row, col), abs=1e-4)


def test_maps_without_a_positive_pixel_are_null() -> None:
    maps = torch.stack([torch.zeros(2, 2), -torch.ones(2, 2), torch.eye(2)])[None]
    found = summarise(maps)
    for numbers in (found.coverage, found.entropy, found.centroid_row, found.centroid_col):
        assert numbers.isnan().tolist() == [[True, True, False]]


@pytest.mark.parametrize("factor", [1e-30, 1e30])
def test_does_not_depend_on_the_scale(factor: float) -> None:
    maps = torch.rand(2, 2, 4, 4, generator=torch.Generator().manual_seed(0)) - 0.3
    one, other = summarise(maps), summarise(maps * factor)
    torch.testing.assert_close(other.entropy, one.entropy)
    torch.testing.assert_close(other.coverage, one.coverage)
    torch.testing.assert_close(other.centroid_row, one.centroid_row)


def test_does_not_depend_on_chunks_and_takes_no_map_at_all(monkeypatch: pytest.MonkeyPatch) -> None:
    maps = torch.rand(3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = summarise(maps)
    monkeypatch.setattr(summary, "_MAPS_AT_ONCE", 2)
    torch.testing.assert_close(summarise(maps).entropy, whole.entropy)
    assert summarise(maps[:0]).coverage.shape == (0, 3)
    with pytest.raises(ShapeError):
        summarise(maps[0])
