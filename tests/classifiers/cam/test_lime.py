"""Oracles: scikit-learn's Ridge, and the coefficients of a linear function; `test_peers.py` has captum."""

import math
from typing import Any

import numpy as np
import pytest
import torch

from classifiers.cam.explain import explain
from classifiers.cam.lime import ridge_coefficients
from infra.errors import ConfigError
from tests.classifiers.cam.small_networks import convolutional, linear_in_pixels, masks_shown, random_images


def test_samples_keep_rectangles_of_a_grid() -> None:
    """7 rows in 3 cells: 3, 2, 2; 10 columns: 4, 3, 3. The first sample keeps all, the others half."""
    masks = masks_shown("lime", (7, 10), cells=3, samples=2000)
    assert masks.shape == (2000, 7, 10)
    kept = masks[:, [0, 3, 5]][:, :, [0, 4, 7]]
    by_hand = kept.repeat_interleave(torch.tensor([3, 2, 2]), dim=1).repeat_interleave(torch.tensor([4, 3, 3]), dim=2)
    assert torch.equal(masks, by_hand)
    assert ((masks == 0) | (masks == 1)).all()
    assert kept[0].all()
    assert (kept.mean(dim=0) - 0.5).abs().max() < 0.05  # 4.5 standard errors
    assert torch.corrcoef(kept.flatten(1).T).fill_diagonal_(0).abs().max() < 0.1


@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_equals_scikit_learn(head: str) -> None:
    """Samples as shown to the network, weighted by the kernel of LIME's image code, one Ridge per patch and label."""
    from sklearn.linear_model import Ridge
    from sklearn.metrics import pairwise_distances

    model = convolutional(head)
    x = random_images(2, 2, 6, 9)
    options: dict[str, Any] = {"cells": 3, "samples": 60, "kernel_width": 0.4, "ridge": 0.7, "seed": 4}
    masks = masks_shown("lime", (6, 9), **options)
    z = masks[:, ::2, ::3].flatten(1).numpy()
    distances = pairwise_distances(z, z[:1], metric="cosine").ravel()
    weights = np.sqrt(np.exp(-(distances**2) / 0.4**2))
    expected = torch.empty(2, 3, 3, 3, dtype=torch.float64)
    for n, image in enumerate(x):
        probs = model(image * masks[:, None]).sigmoid().detach().numpy()
        for label in range(3):
            fitted = Ridge(alpha=0.7).fit(z, probs[:, label], sample_weight=weights)
            expected[n, label] = torch.from_numpy(fitted.coef_).reshape(3, 3)
    found = explain(model, x, "lime", **options)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(explain(model, x, "lime", [2, 0], **options), expected[:, [2, 0]])


def test_recovers_a_linear_function_as_the_penalty_vanishes() -> None:
    """f = mean_p v_p x_p gains the sum of v x over a rectangle, by HW, when the rectangle is kept."""
    weights = torch.rand(2, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.rand(3, 1, 8, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = explain(linear_in_pixels(weights), x, "lime", cells=2, samples=60, ridge=1e-12)
    expected = (weights * x).reshape(3, 2, 2, 4, 2, 3).sum(dim=(3, 5)) / 48
    torch.testing.assert_close(found, expected)
    shrunk = explain(linear_in_pixels(weights), x, "lime", cells=2, samples=60, ridge=10.0)
    assert (shrunk.abs() < expected).all()


def test_ridge_coefficients_do_not_penalise_the_intercept() -> None:
    """A constant added to the values, however large, changes no coefficient."""
    features = random_images(30, 4)
    values, weights = random_images(30, 2, seed=5), random_images(30, seed=6).abs()
    found = ridge_coefficients(features, values, weights, 3.0)
    torch.testing.assert_close(ridge_coefficients(features, values + 1000.0, weights, 3.0), found)
    torch.testing.assert_close(
        ridge_coefficients(features.float(), values.float(), weights, 3.0), found, rtol=1e-5, atol=0
    )


def test_samples_too_far_to_count_give_zero_and_not_nan() -> None:
    """With a kernel this narrow only the whole input has a weight, which says nothing about its parts."""
    maps = explain(convolutional(), random_images(1, 2, 6, 6), "lime", cells=3, samples=20, kernel_width=1e-6)
    assert not maps.any()


def test_refuses_what_it_cannot_do() -> None:
    model, x = convolutional(), random_images(1, 2, 6, 12)
    with pytest.raises(ConfigError, match="8 cells do not fit an edge of an input of 6 x 12"):
        explain(model, x, "lime")
    refused: list[dict[str, Any]] = [
        *({name: number} for name in ("cells", "samples") for number in (1, 0, -4)),
        *({name: number} for name in ("kernel_width", "ridge") for number in (0.0, -1.0, math.nan, math.inf)),
    ]
    for options in refused:
        with pytest.raises(ConfigError, match="kernel_width and ridge above 0"):
            explain(model, x, "lime", **options)
