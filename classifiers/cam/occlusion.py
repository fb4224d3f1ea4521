"""Occlusion sensitivity: what the probability loses when a window of the input is blank."""

import math

import torch
from torch import Tensor

from classifiers.cam.masked import chunks, shared_mask_probabilities
from classifiers.cam.options import OcclusionOptions
from classifiers.cam.target import Target


def occlusion(target: Target, options: OcclusionOptions) -> Tensor:
    """Return the mean of f_c(X) - f_c(X with the window blank) over the windows that cover a pixel, (N, L, H, W).

    Blank is 0, the training mean. Windows start at 0, stride, 2 stride, ... until one reaches the far edge, beyond
    which it is cut off.

    Args:
        target: The batch; its layer is not looked at.
        options: Size and step of the window.

    Returns:
        At the input's own resolution, in [-1, 1]; negative where the label is likelier without the pixel.

    Raises:
        ConfigError: The window is larger than the input.

    Source: Zeiler and Fergus 2014, arXiv:1311.2901, section 4.2; the mean over windows is captum's.
    """
    x = target.x
    height, width = x.shape[2:]
    options.check_input(height, width)
    in_rows, in_cols = (_covered(size, options, x.device) for size in (height, width))
    tops = torch.arange(len(in_rows), device=x.device).repeat_interleave(len(in_cols))
    lefts = torch.arange(len(in_cols), device=x.device).repeat(len(in_rows))
    probs = torch.cat(
        [
            shared_mask_probabilities(target, ~(in_rows[tops[chunk]][:, :, None] & in_cols[lefts[chunk]][:, None]))
            for chunk in chunks(len(tops), x)
        ],
        dim=1,
    )
    # Not `target.probabilities`, whose activations may come of a pass in another precision than the others.
    drops = (target.probabilities_of(x)[:, None] - probs).reshape(len(x), len(in_rows), len(in_cols), -1)
    dtype = torch.promote_types(drops.dtype, torch.float32)
    sums = torch.einsum("nijl,ih,jw->nlhw", drops.to(dtype), in_rows.to(dtype), in_cols.to(dtype))
    return sums / (in_rows.sum(dim=0)[:, None] * in_cols.sum(dim=0))


def _covered(size: int, options: OcclusionOptions, device: torch.device) -> Tensor:
    """Return which pixels along an edge of the input each window covers, (windows, size), bool."""
    starts = torch.arange(math.ceil((size - options.window) / options.stride) + 1, device=device) * options.stride
    offset = torch.arange(size, device=device) - starts[:, None]
    return (offset >= 0) & (offset < options.window)
