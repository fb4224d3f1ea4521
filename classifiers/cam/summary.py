"""Numbers about one map: how much of the patch it covers, how evenly, and where its centre lies."""

import math
from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from classifiers.cam.grid import on_grid
from infra.bigearthnet.bands import PATCH_SIZE
from infra.errors import ShapeError

_MAPS_AT_ONCE = 64  # fits a CPU's cache
_MAPS_AT_ONCE_GPU = 4096


@dataclass(frozen=True, slots=True)
class MapSummary:
    """Numbers of every map, each (N, L), float32, on the maps' device; NaN for a map without a positive pixel."""

    coverage: Tensor
    """Share of positive pixels, in (0, 1]."""
    entropy: Tensor
    """Shannon entropy of the map scaled to sum 1, over that of a uniform map, in [0, 1]."""
    centroid_row: Tensor
    """Row of the centre of mass, pixels of the patch grid, 0 = centre of the first row."""
    centroid_col: Tensor
    """Column of the centre of mass, pixels of the patch grid."""


def summarise(maps: Tensor, size: int = PATCH_SIZE) -> MapSummary:
    """Return coverage, entropy and centroid of each map after ReLU, on the patch's grid.

    Args:
        maps: Raw maps, (N, L, h, w), any scale: the results do not depend on it.
        size: Edge of the patch's grid, pixels; maps of several resolutions compare on it.

    Returns:
        The numbers of each map.

    Raises:
        ShapeError: The maps are not 4-D.
    """
    if maps.ndim != 4:
        raise ShapeError(f"summarise needs maps (N, L, h, w), got {tuple(maps.shape)}")
    flat = F.relu(maps.detach().float()).reshape(-1, 1, *maps.shape[2:])
    at_once = _MAPS_AT_ONCE_GPU if maps.is_cuda else _MAPS_AT_ONCE
    chunks = [_summarise(chunk, size) for chunk in torch.split(flat, at_once)]
    columns = torch.cat(chunks).reshape(*maps.shape[:2], 4).unbind(dim=-1)
    return MapSummary(*columns)


def _summarise(maps: Tensor, size: int) -> Tensor:
    """Return coverage, entropy, row and column of non-negative maps (M, 1, h, w) as (M, 4)."""
    peak = maps.amax(dim=(2, 3), keepdim=True)
    large = on_grid(maps / peak, size)[:, 0]  # a zero map becomes NaN here, and so do its numbers
    rows, cols = large.sum(dim=2).double(), large.sum(dim=1).double()
    total = rows.sum(dim=1)
    coverage = torch.where(total.isnan(), torch.nan, large.count_nonzero(dim=(1, 2)).double() / size**2)
    # With p = m / s: -sum p ln p = ln s - sum(m ln m) / s.
    logs = large.clamp(min=torch.finfo(large.dtype).tiny).log()  # 0 ln 0 = 0; xlogy would take twice as long
    spread = (large * logs).sum(dim=2).double().sum(dim=1)
    entropy = (total.log() - spread / total) / math.log(size * size)
    at = torch.arange(size, dtype=torch.float64, device=maps.device)
    row, col = rows @ at / total, cols @ at / total
    return torch.stack([coverage, entropy.clamp(0.0, 1.0), row, col], dim=1).float()
