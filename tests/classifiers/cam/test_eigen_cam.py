"""Oracle: NumPy's full decomposition; `test_peers.py` has pytorch-grad-cam."""

import numpy as np
import pytest
import torch
from torch import Tensor

from classifiers.cam.eigen_cam import first_component, signed
from classifiers.cam.explain import explain
from classifiers.cam.target import Target
from tests.classifiers.cam.small_networks import images, network


def by_full_decomposition(matrix: Tensor) -> Tensor:
    _, _, vt = np.linalg.svd(matrix.numpy(), full_matrices=True)
    return torch.from_numpy(matrix.numpy() @ vt[0])


@pytest.mark.parametrize("shape", [(16, 40), (40, 16), (9, 9)])
@pytest.mark.parametrize("rectified", [True, False])
def test_equals_the_full_decomposition(shape: tuple[int, int], *, rectified: bool) -> None:
    """Without rectifying, the first two singular values are close, and the power iteration alone would not do."""
    values = torch.randn(3, *shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    matrices = values.clamp(min=0) if rectified else values
    found = first_component(matrices)
    for matrix, component in zip(matrices, found, strict=True):
        expected = by_full_decomposition(matrix)
        sign = torch.sign((expected * component).sum())
        torch.testing.assert_close(component, sign * expected, rtol=1e-4, atol=1e-5)


def test_equal_singular_values_give_a_vector_of_that_length() -> None:
    component = first_component(torch.eye(4)[None] * 3)
    torch.testing.assert_close(torch.linalg.vector_norm(component), torch.tensor(3.0))


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_scale_neither_vanishes_nor_overflows(factor: float) -> None:
    matrix = torch.rand(1, 6, 9, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(first_component(matrix * factor) / factor, first_component(matrix))


@pytest.mark.parametrize(
    ("matrix", "first"),
    [
        ([[1.0, 5.0], [1.0, -5.0]], 50.0),  # the column sums of M M' lie along the second eigenvector
        ([[1.0, 1.0], [5.0, -5.0], [0.0, 0.0]], 50.0),  # those of M' M, which is smaller
        ([[3.0, 0.0, 0.0], [0.0, 2.0, -2.0], [0.0, -2.0, 2.0]], 16.0),
    ],
)
def test_a_start_that_misses_the_first_direction_is_noticed(matrix: list[list[float]], first: float) -> None:
    """By hand: the largest eigenvalue of M M' is the square of the component's length."""
    component = first_component(torch.tensor([matrix]))
    torch.testing.assert_close(component.square().sum(), torch.tensor(first))


def test_zeros_stay_zeros() -> None:
    assert not first_component(torch.zeros(2, 4, 5)).any()


def test_sign_follows_the_reference() -> None:
    """By hand: (1, -1) agrees with (3, 1), not with (1, 3); a constant has no correlation."""
    component = torch.tensor([[1.0, -1.0]])
    assert torch.equal(signed(component, torch.tensor([[3.0, 1.0]])), component)
    assert torch.equal(signed(component, torch.tensor([[1.0, 3.0]])), -component)
    assert torch.equal(signed(-torch.ones(1, 2), torch.tensor([[1.0, 3.0]])), torch.ones(1, 2))


@pytest.mark.parametrize("factor", [1e-25, 1e25])
def test_sign_follows_the_reference_at_any_scale(factor: float) -> None:
    """In float32 the squares of these are 0, or infinite."""
    small = torch.tensor([[1.0, -1.0]]) * factor
    assert torch.equal(signed(-small, small), small)
    assert torch.equal(signed(small, -small), -small)


@pytest.mark.parametrize("layer", ["last", "deep"])
def test_map_is_the_projection_with_the_sign_of_the_mean(layer: str) -> None:
    model, x = network(), images()
    maps = explain(model, x, "eigen_cam", target_layer=layer)
    assert maps.shape == (2, 1, 7, 6)
    a = Target(model, x, (0,), layer).activations.detach()
    for n in range(2):
        matrix = a[n].flatten(1).T
        expected = by_full_decomposition(matrix)
        expected = expected * np.sign(np.corrcoef(expected, matrix.mean(dim=1))[0, 1])
        torch.testing.assert_close(maps[n, 0].flatten(), expected, rtol=1e-5, atol=1e-6)
    assert maps.min() >= -1e-9  # Perron: activations are not negative, so neither is their first component
