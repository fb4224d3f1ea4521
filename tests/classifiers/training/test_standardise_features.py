import numpy as np
import pytest
import torch
from torch import nn

from classifiers.training.standardise_features import fold, input_layer, standardise_features
from infra.errors import ConfigError, ShapeError
from tests.classifiers.training.toy_features import toy


@pytest.mark.parametrize("kind", ["linear", "mlp"])
def test_folded_head_gives_on_plain_features_what_it_gave_on_scaled_ones(kind: str) -> None:
    features, _ = toy(50, 8, 3)
    scaling = standardise_features(features)
    head = nn.Linear(8, 3) if kind == "linear" else nn.Sequential(nn.Linear(8, 5), nn.ReLU(), nn.Linear(5, 3))
    head.double()
    with torch.no_grad():
        expected = head(scaling(features))
        fold(input_layer(head), scaling)
        torch.testing.assert_close(head(features.double()), expected, rtol=0, atol=1e-12)
    assert not input_layer(head).weight[:, :2].any()  # dead and constant channels carry nothing


def test_scaling_is_standardisation_but_for_channels_of_rounding() -> None:
    features, _ = toy(400, 12, 3)
    scaled = standardise_features(features)(features)
    torch.testing.assert_close(scaled.mean(dim=0), torch.zeros(12).double(), rtol=0, atol=1e-9)
    np.testing.assert_allclose(scaled[:, 3:].std(dim=0, correction=0), 1, atol=0.05)
    assert scaled[:, 2].abs().max() < 1e-6  # deviation 1e-6 about 2: rounding, not signal


def test_refuses() -> None:
    with pytest.raises(ShapeError, match="N >= 1"):
        standardise_features(torch.zeros(0, 3))
    with pytest.raises(ConfigError, match="without bias"):
        fold(nn.Linear(3, 2, bias=False), standardise_features(torch.rand(4, 3)))
    with pytest.raises(ConfigError, match="linear"):
        input_layer(nn.Sequential())
