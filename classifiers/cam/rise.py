"""RISE: the mean of random masks, weighted by the probability that the masked input has."""

import math

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from classifiers.cam.masked import chunks, shared_mask_probabilities
from classifiers.cam.options import RiseOptions
from classifiers.cam.target import Target


def rise(target: Target, options: RiseOptions) -> Tensor:
    """Return the RISE maps sum_i f_c(X * M_i) M_i / (keep * masks), (N, L, H, W).

    A map is, at a pixel, an estimate of the probability of the label given that the pixel is kept.

    Args:
        target: The batch; its layer is not looked at.
        options: Number and kind of masks; the same seed gives the same masks on any device, in chunks of any size.

    Returns:
        At the input's own resolution, >= 0.

    Raises:
        ConfigError: The grid has more cells along an edge than the input has pixels.

    Source: Petsiuk et al. 2018, arXiv:1806.07421, eq. 6 and section 3.2.
    """
    x = target.x
    height, width = x.shape[2:]
    options.check_input(height, width)
    dtype = torch.promote_types(x.dtype, torch.float32)
    grids, rows, cols = (random.to(x.device) for random in _random(options, height, width))
    maps = torch.zeros(len(x), len(target.labels), height, width, dtype=dtype, device=x.device)
    for chunk in chunks(options.masks, x):
        masks = _masks(grids[chunk].to(dtype), rows[chunk], cols[chunk], height, width)
        maps += torch.einsum("nml,mhw->nlhw", shared_mask_probabilities(target, masks).to(dtype), masks)
    return maps / (options.keep * options.masks)


def _random(options: RiseOptions, height: int, width: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return all that is random about the masks: grids (M, cells, cells), 0 or 1, and shifts of rows and cols (M,)."""
    generator = torch.Generator().manual_seed(options.seed)  # a generator of a GPU has numbers of its own
    grids = torch.rand(options.masks, options.cells, options.cells, generator=generator) < options.keep
    rows, cols = (
        torch.randint(math.ceil(size / options.cells), (options.masks,), generator=generator)
        for size in (height, width)
    )
    return grids, rows, cols


def _masks(grids: Tensor, rows: Tensor, cols: Tensor, height: int, width: int) -> Tensor:
    """Return masks in [0, 1], (M, H, W): grids enlarged bilinearly to one cell more than the input, and cut from it.

    Args:
        grids: (M, cells, cells).
        rows: First row of each cut, (M,), in [0, rows of a cell).
        cols: First column of each cut, likewise.
        height: H, pixels.
        width: W, pixels.
    """
    cells, device = grids.shape[1], grids.device
    size = ((cells + 1) * math.ceil(height / cells), (cells + 1) * math.ceil(width / cells))
    enlarged = F.interpolate(grids[:, None], size=size, mode="bilinear", align_corners=False)[:, 0]
    at_row = rows[:, None] + torch.arange(height, device=device)
    at_col = cols[:, None] + torch.arange(width, device=device)
    return enlarged[torch.arange(len(grids), device=device)[:, None, None], at_row[:, :, None], at_col[:, None, :]]
