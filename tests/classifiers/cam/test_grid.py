"""Oracles: torch's own resampling, a loop over fractional overlaps, and hand numbers."""

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn import functional

from classifiers.cam.grid import are_finite, min_max, on_grid
from infra.errors import ShapeError


def noise(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize(("h", "w", "size"), [(4, 4, 120), (15, 15, 120), (1, 3, 7), (8, 10, 15), (7, 7, 7)])
def test_coarser_maps_are_enlarged_bilinearly_between_pixel_centres(h: int, w: int, size: int) -> None:
    maps = noise(2, 3, h, w)
    torch.testing.assert_close(
        on_grid(maps, size), functional.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)
    )


def test_enlarging_by_hand() -> None:
    """Twice the size of [0, 4]: centres at 1/4 and 3/4 between the old ones, edges held."""
    assert on_grid(torch.tensor([[0.0, 4.0], [0.0, 4.0]]), 4).tolist() == [[0.0, 1.0, 3.0, 4.0]] * 4


def test_maps_finer_by_a_whole_factor_become_means_of_blocks() -> None:
    maps = noise(2, 1, 480, 480)
    torch.testing.assert_close(on_grid(maps, 120), functional.avg_pool2d(maps, 4))


def area_means(row: NDArray[np.float64], size: int) -> list[float]:
    """Return means of a row over each of `size` equal stretches, pixel by pixel."""
    step = len(row) / size
    means = []
    for j in range(size):
        parts = [max(0.0, min((j + 1) * step, i + 1) - max(j * step, i)) for i in range(len(row))]
        means.append(sum(p * v for p, v in zip(parts, row, strict=True)) / step)
    return means


def test_maps_finer_by_any_other_factor_become_means_over_parts_of_pixels() -> None:
    maps = noise(9, 13).double()
    by_rows = np.array([area_means(row, 5) for row in maps.numpy()])
    both = np.array([area_means(column, 5) for column in by_rows.T]).T
    np.testing.assert_allclose(on_grid(maps, 5).numpy(), both, atol=1e-14)
    with torch.autocast("cpu", torch.bfloat16):
        np.testing.assert_allclose(on_grid(maps.float(), 5).numpy(), both, atol=1e-6)


def test_each_axis_goes_its_own_way() -> None:
    """Rows finer by 2, columns coarser by 2, onto a grid that is not square."""
    maps = torch.tensor([[0.0, 4.0], [2.0, 6.0], [0.0, 0.0], [8.0, 8.0]])
    assert on_grid(maps, (2, 4)).tolist() == [[1.0, 2.0, 4.0, 5.0], [4.0, 4.0, 4.0, 4.0]]


def test_plateaus_stay_plateaus() -> None:
    """A weighted sum would round them, and ties would be ties no longer."""
    values = torch.rand(200, generator=torch.Generator().manual_seed(0))
    maps = values[:, None, None].expand(-1, 3, 3)
    large = on_grid(maps, 31).flatten(1)
    assert torch.equal(large, values[:, None].expand_as(large))


def test_commutes_with_flips() -> None:
    maps = noise(3, 5, 5)
    for axes in ((-1,), (-2,), (-2, -1)):
        torch.testing.assert_close(on_grid(maps.flip(axes), 17), on_grid(maps, 17).flip(axes), rtol=0, atol=1e-6)


def test_min_max_by_hand_and_null_where_constant() -> None:
    maps = torch.tensor([[[[-1.0, 1.0], [3.0, 0.0]]], [[[2.0, 2.0], [2.0, 2.0]]]])
    found = min_max(maps)
    assert found[0, 0].tolist() == [[0.0, 0.5], [1.0, 0.25]]
    assert found[1].isnan().all()


def test_finite_maps_are_told_from_others() -> None:
    maps = torch.zeros(4, 1, 2, 2)
    maps[1, 0, 0, 1], maps[2, 0, 1, 1], maps[3, 0, 0, 0] = torch.nan, torch.inf, -torch.inf
    assert are_finite(maps).tolist() == [[True], [False], [False], [False]]


def test_refuses_what_has_no_pixel() -> None:
    for maps, size in ((torch.zeros(3), 2), (torch.zeros(1, 0, 2), 2), (torch.zeros(2, 2), 0)):
        with pytest.raises(ShapeError, match="onto a grid of at least 1 x 1"):
            on_grid(maps, size)
