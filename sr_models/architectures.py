"""Networks as the registry has them: what is needed to name one costs no import of torch."""

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import nn


def identity() -> "nn.Module":
    """Return the module that changes nothing."""
    from sr_models.interpolation import Identity

    return Identity()


def bicubic(*, scale: int) -> "nn.Module":
    """Return the bicubic enlargement by an integer factor."""
    from sr_models.interpolation import Bicubic

    return Bicubic(scale)


def hat(
    *,
    embed_dim: int,
    num_groups: int,
    num_blocks: int,
    compress_ratio: int,
    squeeze_factor: int,
    num_heads: int = 6,
    window_size: int = 16,
) -> "nn.Module":
    """Return an RGB x4 HAT with random parameters: see `sr_models.hat.hat`."""
    from sr_models.hat import hat

    return hat(
        embed_dim=embed_dim,
        num_groups=num_groups,
        num_blocks=num_blocks,
        compress_ratio=compress_ratio,
        squeeze_factor=squeeze_factor,
        num_heads=num_heads,
        window_size=window_size,
    )
