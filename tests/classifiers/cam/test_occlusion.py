"""Oracles: a double loop over windows, and hand numbers; `test_peers.py` has captum."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from classifiers.cam.explain import explain
from classifiers.cam.occlusion import occlusion
from classifiers.cam.options import OcclusionOptions
from classifiers.cam.target import Target
from classifiers.network import Classifier
from infra.errors import ConfigError
from tests.classifiers.cam.small_networks import convolutional, linear_in_pixels, random_images


def double_loop(model: Classifier, image: Tensor, window: int, stride: int) -> Tensor:
    """One pass for each window, added up pixel by pixel."""
    height, width = image.shape[1:]
    clean = model(image[None]).sigmoid()[0].detach()
    total = torch.zeros(len(clean), height, width, dtype=torch.float64)
    count = torch.zeros(height, width, dtype=torch.float64)
    for i in range(math.ceil((height - window) / stride) + 1):
        for j in range(math.ceil((width - window) / stride) + 1):
            occluded = image.clone()
            where = (slice(i * stride, i * stride + window), slice(j * stride, j * stride + window))
            occluded[:, *where] = 0
            drop = clean - model(occluded[None]).sigmoid()[0].detach()
            total[:, *where] += drop[:, None, None]
            count[where] += 1
    return total / count


@pytest.mark.parametrize(("window", "stride"), [(3, 2), (4, 3), (1, 1), (7, 7), (2, 2)])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_equals_a_double_loop(head: str, window: int, stride: int) -> None:
    model = convolutional(head)
    x = random_images(2, 2, 7, 10)
    expected = torch.stack([double_loop(model, image, window, stride) for image in x])
    found = explain(model, x, "occlusion", window=window, stride=stride)
    torch.testing.assert_close(found, expected)
    torch.testing.assert_close(
        explain(model, x, "occlusion", labels=[1], window=window, stride=stride), expected[:, [1]]
    )


def test_a_window_of_one_pixel_gives_what_each_pixel_adds() -> None:
    """f = mean_p v_p x_p loses v_p x_p / HW without pixel p."""
    weights = torch.rand(2, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    x = torch.rand(3, 1, 5, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    found = explain(linear_in_pixels(weights), x, "occlusion", window=1, stride=1)
    torch.testing.assert_close(found, weights * x / 20)


def test_by_hand() -> None:
    """Windows of 2 at columns 0, 1, 2 of a row 8, 16, 24, 32 / 100 drop 24, 40, 56; 4 pixels: 24, 32, 48, 56."""
    x = torch.tensor([8.0, 16.0, 24.0, 32.0], dtype=torch.float64).repeat(4, 1)[None, None] / 100
    x[:, :, 2:] = 0
    found = explain(linear_in_pixels(torch.ones(1, 4, 4, dtype=torch.float64)), x, "occlusion", window=2, stride=1)
    rows = torch.tensor([2.0, 1.5, 0.5, 0.0], dtype=torch.float64)  # 2, 1 and 0 rows of the three windows count
    columns = torch.tensor([24.0, 32.0, 48.0, 56.0], dtype=torch.float64) / 100 / 16
    torch.testing.assert_close(found[0, 0], rows[:, None] * columns)


def test_refuses_what_it_cannot_do() -> None:
    model, x = convolutional(), random_images(1, 2, 6, 12)
    with pytest.raises(ConfigError, match="a window of 11 x 11 pixels does not fit an input of 6 x 12"):
        explain(model, x, "occlusion")
    refused: list[dict[str, Any]] = [{"window": 3, "stride": 4}, {"window": 0, "stride": 0}, {"stride": 0}]
    for options in refused:
        with pytest.raises(ConfigError, match="1 <= stride <= window"):
            explain(model, x, "occlusion", **options)


def test_activations_of_a_pass_in_lower_precision_change_nothing() -> None:
    """Both probabilities of a difference are of the same kind of pass."""
    model, x = convolutional("mlp"), random_images(2, 2, 8, 7)
    coarse = Target(model, x, (0, 1, 2), activations=model.features(x).detach().bfloat16())
    with torch.no_grad():
        found = occlusion(coarse, OcclusionOptions(window=3))
    torch.testing.assert_close(found, explain(model, x, "occlusion", window=3))
