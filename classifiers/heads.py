"""Heads: what turns pooled features (N, K) into logits (N, L)."""

from collections.abc import Callable, Mapping
from types import MappingProxyType

from torch import nn

from infra.errors import UnknownNameError


def linear(feature_channels: int, num_labels: int) -> nn.Module:
    """Return one linear layer, (N, K) to (N, L)."""
    return nn.Linear(feature_channels, num_labels)


HEADS: Mapping[str, Callable[[int, int], nn.Module]] = MappingProxyType({"linear": linear})
"""Head name to its builder, (feature channels K, labels L) to a module."""


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
