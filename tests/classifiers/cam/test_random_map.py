"""Oracles: the moments of the uniform distribution, and the same patch in other batches."""

import torch

from classifiers.cam.explain import explain
from tests.classifiers.cam.small_networks import images, network


def test_is_uniform_and_a_patchs_own() -> None:
    model, x = network(), images(60)
    maps = explain(model, x, "random")
    assert maps.shape == (60, 1, 7, 6)
    assert maps.dtype == torch.float64
    values = maps.flatten()
    assert 0 <= values.min() < 0.01
    assert 0.99 < values.max() < 1
    sigma = (1 / 12 / len(values)) ** 0.5
    assert abs(float(values.mean()) - 0.5) < 4 * sigma
    assert len({tuple(m.flatten().tolist()) for m in maps}) == 60


def test_does_not_depend_on_the_batch() -> None:
    model, x = network(), images(3)
    whole = explain(model, x, "random", seeds=[5, 6, 7])
    assert torch.equal(explain(model, x[2:], "random", seeds=[7]), whole[2:])
    assert not torch.equal(explain(model, x, "random", seeds=[5, 6, 7], seed=1), whole)
