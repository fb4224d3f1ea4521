"""Probabilities of masked inputs, which are made on the fly, as many at once as memory allows."""

from collections.abc import Iterator

import torch
from torch import Tensor

from classifiers.cam.grid import min_max, on_grid
from classifiers.cam.target import Target, images_at_once


def chunks(count: int, x: Tensor) -> Iterator[slice]:
    """Return slices that split a number of masked copies of the size of x, (N, C, H, W), to fit the memory budget."""
    at_once = images_at_once(x)
    return (slice(start, min(start + at_once, count)) for start in range(0, count, at_once))


def shared_mask_probabilities(target: Target, masks: Tensor) -> Tensor:
    """Return f_c of every patch under every mask.

    Args:
        target: Whose x is masked.
        masks: Shared by the patches, (M, H, W), 1 where the input is kept, 0 where it becomes the training mean;
            no more than `chunks` gives at once.

    Returns:
        (N, M, L).
    """
    return torch.stack([target.probabilities_of(image * masks[:, None].to(image.dtype)) for image in target.x])


def channel_mask_probabilities(target: Target, activations: Tensor, patches: Tensor, channels: Tensor) -> Tensor:
    """Return f_c of patches that are multiplied by one channel each, enlarged to the input and scaled to [0, 1].

    Args:
        target: Whose x is masked.
        activations: A, (N, K, h, w).
        patches: Index of the patch of each pair, (M,).
        channels: Index of its channel, (M,); one that `has_mask`.

    Returns:
        (M, L), at least float32.
    """
    x = target.x
    dtype = torch.promote_types(x.dtype, torch.float32)
    parts = [x.new_zeros(0, len(target.labels), dtype=dtype)]
    for chunk in chunks(len(patches), x):
        patch = patches[chunk]
        enlarged = on_grid(activations[patch, channels[chunk]], (x.shape[2], x.shape[3]))
        masks = min_max(enlarged).to(x.dtype)
        parts.append(target.probabilities_of(x[patch] * masks[:, None]).to(dtype))
    return torch.cat(parts)


def has_mask(activations: Tensor, x: Tensor) -> Tensor:
    """Return which channels can be scaled to [0, 1], before and after they are enlarged: those that are not constant.

    Many channels of a patch are 0 everywhere. One that is constant would be 0/0, and after enlarging, whose weights
    add up to 1 but for rounding, it would be rounding errors blown up to a mask.

    Args:
        activations: A, (N, K, h, w).
        x: The input that is to be masked, (N, C, H, W).

    Returns:
        (N, K), bool; False where an activation is NaN, which a sum over channels then shows.
    """
    varies = activations.amax(dim=(2, 3)) > activations.amin(dim=(2, 3))
    patches, channels = varies.nonzero(as_tuple=True)
    parts = [varies.new_zeros(0)]
    for chunk in chunks(len(patches), x):
        enlarged = on_grid(activations[patches[chunk], channels[chunk]], (x.shape[2], x.shape[3]))
        parts.append(enlarged.amax(dim=(1, 2)) > enlarged.amin(dim=(1, 2)))
    return varies.index_put((patches, channels), torch.cat(parts))
