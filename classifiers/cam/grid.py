"""How maps come onto a grid: of the patch, so that maps of several resolutions compare, or of a network's input."""

import torch
from torch import Tensor

from infra.errors import ShapeError


def on_grid(maps: Tensor, size: int | tuple[int, int]) -> Tensor:
    """Return maps on another grid over the same ground, each axis by itself, with pixel centres kept in place.

    An axis that is coarser is enlarged bilinearly (no aligned corners, edges held); one that is finer is reduced to
    means over the area of each pixel, parts of pixels included. What is constant stays so, exactly where enlarged.

    Args:
        maps: (..., h, w), floating point, any range; a value that is not finite may spread over its map.
        size: Edge of a square grid, or its height and width, pixels.

    Returns:
        (..., size, size), same range and dtype.

    Raises:
        ShapeError: The maps or the grid have no pixel.
    """
    height, width = (size, size) if isinstance(size, int) else size
    if maps.ndim < 2 or min(*maps.shape[-2:], height, width) < 1:
        raise ShapeError(
            f"on_grid brings maps (..., h, w) onto a grid of at least 1 x 1, got {tuple(maps.shape)} for "
            f"{height} x {width}"
        )
    return _resampled(_resampled(maps, -1, width), -2, height)


def min_max(maps: Tensor) -> Tensor:
    """Return each map shifted and scaled to [0, 1]; a constant map, which says nothing, becomes NaN.

    Args:
        maps: (..., h, w), finite.

    Returns:
        Same shape and dtype.

    Source: Soomro et al., Grad++ScoreCAM, eq. 16.
    """
    low, high = maps.amin(dim=(-2, -1), keepdim=True), maps.amax(dim=(-2, -1), keepdim=True)
    return (maps - low) / (high - low)


def are_finite(maps: Tensor) -> Tensor:
    """Return whether all values of each map are finite, (..., h, w) to (...), bool."""
    return maps.isfinite().flatten(-2).all(dim=-1)


def _resampled(maps: Tensor, dim: int, size: int) -> Tensor:
    """Return maps with one of the last two axes brought to a size."""
    n = maps.shape[dim]
    if n == size:
        return maps
    if n < size:
        return _enlarged(maps, dim, size)
    if n % size == 0:
        return torch.unflatten(maps, dim, (size, n // size)).mean(dim=dim)
    weights = _area_weights(n, size, maps)
    with torch.autocast(maps.device.type, enabled=False):  # which would multiply matrices in half precision
        return maps @ weights.T if dim == -1 else weights @ maps


def _enlarged(maps: Tensor, dim: int, size: int) -> Tensor:
    n = maps.shape[dim]
    centres = torch.arange(size, dtype=torch.float64, device=maps.device) + 0.5
    at = (centres * (n / size) - 0.5).clamp(0, n - 1)
    low = at.long()
    weight = (at - low).to(maps.dtype)
    # Unlike a sum of two products, lerp between equal values gives that value: plateaus stay plateaus.
    return torch.lerp(
        maps.index_select(dim, low),
        maps.index_select(dim, (low + 1).clamp(max=n - 1)),
        weight if dim == -1 else weight[:, None],
    )


def _area_weights(n: int, size: int, like: Tensor) -> Tensor:
    """Return the share of each of n pixels in each of fewer, larger ones, (size, n), in the dtype of `like`."""
    edges = torch.arange(size + 1, dtype=torch.float64, device=like.device)[:, None] * (n / size)
    pixel = torch.arange(n, dtype=torch.float64, device=like.device)
    overlap = torch.minimum(edges[1:], pixel + 1) - torch.maximum(edges[:-1], pixel)
    return (overlap.clamp(min=0) * (size / n)).to(like.dtype)
