"""Oracles: matrix products by hand, and autograd in float64."""

import pytest
import torch
from torch import Tensor, nn

from classifiers.cam.gradient_family import grad_cam
from classifiers.cam.target import Target
from classifiers.heads import build_head, output_layer
from classifiers.network import Classifier
from classifiers.training.standardise_features import fold, input_layer, standardise_features
from infra.errors import ConfigError, UnknownNameError


@pytest.fixture
def mlp() -> nn.Module:
    torch.manual_seed(3)
    return build_head("mlp", 7, 4).double()


def random(*shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(4), dtype=torch.float64)


def test_mlp_is_two_layers_with_a_rectifier_between(mlp: nn.Module) -> None:
    w1, b1, w2, b2 = mlp.state_dict().values()
    assert (w1.shape, w2.shape) == ((256, 7), (4, 256))
    x = random(5, 7)
    hidden = x @ w1.T + b1
    torch.testing.assert_close(mlp(x), torch.where(hidden > 0, hidden, 0.0) @ w2.T + b2)


def test_grad_cam_of_mlp_equals_autograd_of_each_patch(mlp: nn.Module) -> None:
    """dy/dA patch by patch, through a graph of its own; patches switch other hidden units on, so gradients differ."""
    activations = random(6, 7, 2, 3) * 3
    model = Classifier(nn.Identity(), mlp, "", 4).eval()
    target = Target(model, activations, (0, 1, 2, 3), activations=activations)
    maps = grad_cam(target)
    assert maps.shape == (6, 4, 2, 3)
    weights = torch.zeros(6, 4, 7, dtype=torch.float64)
    for n in range(6):
        for label in range(4):
            a = activations[n].clone().requires_grad_()
            (gradient,) = torch.autograd.grad(mlp(a.mean(dim=(1, 2)))[label], a)
            weights[n, label] = gradient.mean(dim=(1, 2))
            by_hand = (weights[n, label][:, None, None] * activations[n]).sum(dim=0).clamp(min=0)
            torch.testing.assert_close(maps[n, label], by_hand, rtol=1e-12, atol=1e-14)
    assert (weights - weights[0]).abs().amax(dim=(1, 2))[1:].min() > 1e-3
    chosen = grad_cam(target.of_labels((3, 0)))
    torch.testing.assert_close(chosen, maps[:, [3, 0]], rtol=0, atol=0)


def test_standardised_features_fold_into_mlp(mlp: nn.Module) -> None:
    """Fitting on scaled features and folding the scaling in afterwards needs a linear layer in front."""
    features = random(40, 7) * torch.arange(1, 8) + 5
    scaling = standardise_features(features)
    expected = mlp(scaling(features))
    fold(input_layer(mlp), scaling)
    torch.testing.assert_close(mlp(features), expected)


def test_output_layer_is_the_one_with_a_row_a_label(mlp: nn.Module) -> None:
    linear = build_head("linear", 7, 4)
    assert output_layer(linear) is linear
    assert isinstance(mlp, nn.Sequential)
    assert output_layer(mlp) is mlp[2]
    with pytest.raises(ConfigError, match="ends with a linear layer"):
        output_layer(nn.Sequential(nn.Linear(2, 2), nn.Sigmoid()))
    with pytest.raises(UnknownNameError, match="linear, mlp"):
        build_head("deep", 7, 4)
