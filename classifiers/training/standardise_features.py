"""Standardisation of pooled features for the fit of a head, and its folding into the head afterwards."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from infra.errors import ConfigError, ShapeError

_NOISE_SHARE = 0.03
"""Deviations below this share of a channel's root mean square are shrunk, not blown up: they may be rounding."""

_DEAD_SHARE = 1e-3
"""Likewise below this share of the root mean square of all channels."""

_ROWS_AT_ONCE = 16_384


@dataclass(frozen=True, slots=True)
class FeatureScaling:
    """A scaling of K channels, (features - mean) * gain."""

    mean: Tensor
    """(K,), float64, CPU."""
    gain: Tensor
    """(K,), float64, CPU, >= 0; 0 for a channel that is constant."""

    def __call__(self, features: Tensor) -> Tensor:
        """Return the scaled features, (N, K) to (N, K), float64, on the features' device."""
        return (features.double() - self.mean.to(features.device)) * self.gain.to(features.device)


def standardise_features(features: Tensor) -> FeatureScaling:
    """Return the scaling of training features to zero mean and about unit deviation.

    The gain is s / (s^2 + f^2), which is 1 / s for a deviation s well above the floor f, and falls to 0 with s. A
    channel that hardly varies carries rounding rather than signal; 1 / s would raise it to the size of the others.

    Args:
        features: Pooled features of the training samples, (N, K), N >= 1.

    Returns:
        The scaling.

    Raises:
        ShapeError: The features are not (N, K) with N >= 1.
    """
    if features.ndim != 2 or not len(features):
        raise ShapeError(f"standardise_features needs (N, K) with N >= 1, got {tuple(features.shape)}")
    n, chunks = len(features), torch.split(features.detach(), _ROWS_AT_ONCE)
    mean = torch.stack([chunk.double().sum(dim=0) for chunk in chunks]).sum(dim=0) / n
    variance = torch.stack([(chunk.double() - mean).square().sum(dim=0) for chunk in chunks]).sum(dim=0) / n
    power = mean.square() + variance
    floor = _NOISE_SHARE**2 * power + _DEAD_SHARE**2 * power.mean()
    gain = torch.where(floor > 0, variance.sqrt() / (variance + floor), 0.0)
    return FeatureScaling(mean.cpu(), gain.cpu())


def fold(layer: nn.Linear, scaling: FeatureScaling) -> None:
    """Change a layer that was fitted on scaled features, in place, to give the same on plain ones.

    W (g (x - m)) + b = (W g) x + (b - (W g) m), computed in float64.

    Args:
        layer: The first layer that sees the features, with a bias; keeps its dtype and device.
        scaling: The scaling it was fitted under.

    Raises:
        ConfigError: The layer has no bias.
    """
    if layer.bias is None:
        raise ConfigError("a linear layer without bias cannot take up the mean of its features")
    with torch.no_grad():
        weight = layer.weight.double() * scaling.gain.to(layer.weight.device)
        layer.bias.copy_(layer.bias.double() - weight @ scaling.mean.to(layer.weight.device))
        layer.weight.copy_(weight)


def input_layer(head: nn.Module) -> nn.Linear:
    """Return the linear layer with which a head starts.

    Raises:
        ConfigError: It starts with something else.
    """
    first: nn.Module = head
    while isinstance(first, nn.Sequential) and len(first):
        first = first[0]
    if not isinstance(first, nn.Linear):
        raise ConfigError(f"only heads that start with a linear layer can be fitted alone, got {type(head).__name__}")
    return first
