"""Oracles: the sum over masks that the network was shown, masks by hand, and the expectation in closed form."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from classifiers.cam import rise as rise_module
from classifiers.cam.explain import explain
from classifiers.cam.options import RiseOptions
from infra.errors import ConfigError
from tests.classifiers.cam.small_networks import convolutional, linear_in_pixels, masks_shown, random_images


def test_is_the_mean_of_the_masks_weighted_by_the_probability() -> None:
    model = convolutional()
    x = random_images(2, 2, 7, 10)
    masks = masks_shown("rise", (7, 10), masks=30, cells=3, keep=0.3, seed=5)
    assert masks.shape == (30, 7, 10)
    expected = torch.zeros(2, 3, 7, 10, dtype=torch.float64)
    for mask in masks:
        expected += (model(x * mask).sigmoid()[:, :, None, None] * mask).detach() / (0.3 * 30)
    found = explain(model, x, "rise", masks=30, cells=3, keep=0.3, seed=5)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        explain(model, x, "rise", [2, 0], masks=30, cells=3, keep=0.3, seed=5), expected[:, [2, 0]]
    )


def along_an_edge(size: int, cells: int, shift: int) -> Tensor:
    """How much of each cell a pixel has, (size, cells): linear between the centres of cells, level beyond them."""
    cell = math.ceil(size / cells)
    enlarged = (cells + 1) * cell
    share = torch.zeros(size, cells, dtype=torch.float64)
    for pixel in range(size):
        place = min(max((pixel + shift + 0.5) * cells / enlarged - 0.5, 0.0), cells - 1.0)
        lower = min(int(place), cells - 2)
        share[pixel, lower] = lower + 1 - place
        share[pixel, lower + 1] = place - lower
    return share


def test_masks_are_enlarged_grids_at_every_shift() -> None:
    """Cells are 3 x 4 pixels, so there are 3 x 4 shifts, and each occurs."""
    grids = (torch.rand(12, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5).double()
    rows, cols = torch.arange(12) // 4, torch.arange(12) % 4
    found = rise_module._masks(grids, rows, cols, 7, 10)
    for grid, row, col, mask in zip(grids, rows.tolist(), cols.tolist(), found, strict=True):
        torch.testing.assert_close(mask, along_an_edge(7, 3, row) @ grid @ along_an_edge(10, 3, col).T)
    _, rows, cols = rise_module._random(RiseOptions(masks=500, cells=3), 7, 10)
    assert set(rows.tolist()) == {0, 1, 2}
    assert set(cols.tolist()) == {0, 1, 2, 3}


def test_shifts_are_of_less_than_a_cell_along_each_edge() -> None:
    """4 x 20 pixels in 4 x 4 cells of 1 x 5: each mask is a grid at the one row shift and one of five column shifts."""
    rows = along_an_edge(4, 4, 0)
    edges = {shift: along_an_edge(20, 4, shift) for shift in range(5)}
    found = set()
    for mask in masks_shown("rise", (4, 20), masks=60, cells=4):
        grids = {shift: torch.linalg.pinv(rows) @ mask @ torch.linalg.pinv(cols).T for shift, cols in edges.items()}
        fits = [shift for shift, grid in grids.items() if torch.allclose(rows @ grid @ edges[shift].T, mask)]
        assert fits
        assert any(torch.allclose(grids[shift], grids[shift].round(), atol=1e-6) for shift in fits)
        found |= set(fits) if len(fits) == 1 else set()
    assert found == {0, 1, 2, 3, 4}


@pytest.mark.parametrize("keep", [0.5, 0.25])
def test_has_the_expectation_of_a_network_that_is_linear_in_pixels(keep: float) -> None:
    """E[f(X M) M_q] / keep = sum_p v_p E[M_p M_q] / keep, for f = sum_p v_p x_p.

    Cells are independent, so Cov(M_p, M_q) = keep (1 - keep) sum_cells u_pc u_qc, averaged over the shifts, where u is
    the share of a cell in a pixel. The standard error is that of the masks themselves.
    """
    height, width, cells, count = 8, 6, 4, 4000
    weights = torch.zeros(1, height, width, dtype=torch.float64)
    weights[0, 1:4, 2:5] = 1.0
    x = torch.ones(1, 1, height, width, dtype=torch.float64)
    same = torch.zeros(height * width, height * width, dtype=torch.float64)
    shifts = [(row, col) for row in range(2) for col in range(2)]
    for row, col in shifts:
        share = torch.kron(along_an_edge(height, cells, row), along_an_edge(width, cells, col))
        same += share @ share.T / len(shifts)
    moment = keep**2 + keep * (1 - keep) * same
    expected = (weights.flatten() / (height * width)) @ moment / keep
    model = linear_in_pixels(weights)
    found = explain(model, x, "rise", masks=count, cells=cells, keep=keep, seed=1)[0, 0].flatten()
    masks = masks_shown("rise", (height, width), masks=count, cells=cells, keep=keep, seed=1).flatten(1)
    terms = (masks @ weights.flatten() / (height * width))[:, None] * masks / keep
    error = terms.std(dim=0) / math.sqrt(count)
    assert ((found - expected).abs() / error).max() < 4
    assert (expected.max() - expected.min()) / error.max() > 15
    in_region = weights.flatten() > 0
    assert found[in_region].min() > found[~in_region].mean()


def test_masks_keep_the_share_that_is_asked_for() -> None:
    """The mean over 2,000 masks of 25 independent cells each: 0.3 with a standard error below 0.01."""
    masks = masks_shown("rise", (20, 20), masks=2000, cells=5, keep=0.3)
    assert masks.min() >= 0
    assert masks.max() <= 1 + 1e-12
    assert (masks.mean(dim=0) - 0.3).abs().max() < 0.05
    assert abs(float(masks.mean()) - 0.3) < 0.01
    none, every = (torch.full((4, 2, 2), value, dtype=torch.float64) for value in (0.0, 1.0))
    shifts = torch.arange(4) % 3
    assert not rise_module._masks(none, shifts, shifts, 6, 6).any()
    assert (rise_module._masks(every, shifts, shifts, 6, 6) - 1).abs().max() < 1e-12


def test_refuses_what_it_cannot_do() -> None:
    model, x = convolutional(), random_images(1, 2, 6, 6)
    with pytest.raises(ConfigError, match="rise: 8 cells do not fit an edge of an input of 6 x 6"):
        explain(model, x, "rise")
    refused: list[dict[str, Any]] = [
        *({"masks": masks} for masks in (0, -4)),
        *({"cells": cells} for cells in (1, 0, -4)),
        *({"keep": keep} for keep in (0.0, 1.0, -0.5, 1.5, math.nan, math.inf)),
    ]
    for options in refused:
        with pytest.raises(ConfigError, match="rise needs at least 1 mask and 2 cells along an edge, and keep in"):
            explain(model, x, "rise", **options)
