"""Heads: what turns pooled features (N, K) into logits (N, L)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from infra.errors import ConfigError, UnknownNameError

HIDDEN = 256
"""Width of the hidden layer of `mlp`."""


def linear(feature_channels: int, num_labels: int) -> nn.Module:
    """Return one linear layer, (N, K) to (N, L)."""
    return nn.Linear(feature_channels, num_labels)


def mlp(feature_channels: int, num_labels: int) -> nn.Module:
    """Return a perceptron with one hidden layer of `HIDDEN` rectified units, (N, K) to (N, L)."""
    return nn.Sequential(nn.Linear(feature_channels, HIDDEN), nn.ReLU(), nn.Linear(HIDDEN, num_labels))


HEADS: Mapping[str, Callable[[int, int], nn.Module]] = MappingProxyType({"linear": linear, "mlp": mlp})
"""Head name to its builder, (feature channels K, labels L) to a module that starts and ends with a linear layer."""


def build_head(head: str, feature_channels: int, num_labels: int) -> nn.Module:
    """Return a new head, initialised from torch's seed.

    Args:
        head: A name in `HEADS`.
        feature_channels: K, channels of the pooled features.
        num_labels: L.

    Returns:
        A module from (N, K) to (N, L).

    Raises:
        UnknownNameError: There is no head of that name.
    """
    if head not in HEADS:
        raise UnknownNameError(f"no head {head!r}: choose one of {', '.join(HEADS)}")
    return HEADS[head](feature_channels, num_labels)


def output_layer(head: nn.Module) -> nn.Linear:
    """Return the linear layer with which a head ends, one row a label.

    Raises:
        ConfigError: It ends with something else.
    """
    last: nn.Module = head
    while isinstance(last, nn.Sequential) and len(last):
        last = last[-1]
    if not isinstance(last, nn.Linear):
        raise ConfigError(f"only a head that ends with a linear layer has a row a label, got {type(head).__name__}")
    return last
