"""How far an image lies from where it should: the sub-pixel translation between two images of one scene."""

import torch
from torch import Tensor

from infra.errors import ShapeError

MARGIN_PX = 6
"""Border that registration leaves out, pixels: `MAX_SHIFT_PX` and the reach of the derivative."""

MAX_SHIFT_PX = 3.0
"""Longest translation that is reported, pixels along one axis."""

_BLUR = (1 / 16, 4 / 16, 6 / 16, 4 / 16, 1 / 16)
_DIFFERENCE = (45 / 60, -9 / 60, 1 / 60)  # derivative of sixth order, weights of +1, +2, +3 px
_TAPS = (-2, -1, 0, 1, 2, 3)  # pixels around the one that a sample follows
_LEAST_EDGE = 2 * MARGIN_PX + len(_BLUR)
_ITERATIONS = 5
_CONVERGED_PX = 0.02  # largest last step of a translation that is reported
_TEXTURE = 1e-3  # least ratio of the eigenvalues of the structure tensor: below, one direction has no gradient


def translation_px(moved: Tensor, fixed: Tensor) -> Tensor:
    """Return the translation between two images, by least squares on the gradient (Lucas-Kanade), iterated.

    The mean over channels is registered, blurred lightly. With s the translation so far, d = moved(p + s) - fixed(p)
    and g the mean of both images' gradients, a step solves (sum g g^T) ds = -sum g d, after a gain and an offset
    between the images have been fitted and taken out. Symmetric blur and noise do not move the result.

    Args:
        moved: (N, C, H, W), any unit.
        fixed: The same shape and unit.

    Returns:
        (N, 2), pixels: how far moved lies below (row) and to the right (column) of fixed. NaN where there is nothing
        to register on (an edge below 17 pixels, or no gradient in some direction), or no translation of at most 3
        pixels is found.

    Raises:
        ShapeError: The inputs are not 4-D, or their shapes differ.

    Source: Lucas and Kanade 1981, "An iterative image registration technique with an application to stereo vision".
    """
    if moved.ndim != 4 or moved.shape != fixed.shape:
        raise ShapeError(
            "translation_px needs two (N, C, H, W) tensors of one shape, "
            f"got {tuple(moved.shape)} and {tuple(fixed.shape)}"
        )
    if min(moved.shape[2:]) < _LEAST_EDGE:
        return moved.new_full((len(moved), 2), torch.nan)
    target, source = _blurred(fixed.mean(dim=1, keepdim=True)), _blurred(moved.mean(dim=1, keepdim=True))
    shift, step = source.new_zeros(len(source), 2), source.new_zeros(len(source), 2)
    for iteration in range(_ITERATIONS):
        step = _step(_sampled(source, shift) if iteration else source, target)
        shift = shift + step
    found = (step.abs() <= _CONVERGED_PX).all(dim=1) & (shift.abs() <= MAX_SHIFT_PX).all(dim=1)  # False for NaN
    return torch.where(found[:, None], shift, torch.nan)


def _blurred(image: Tensor) -> Tensor:
    """Return (N, 1, H, W) under a binomial window, (N, 1, H-4, W-4); by shifted sums, exact on every device."""
    for dim in (2, 3):
        size = image.shape[dim] - len(_BLUR) + 1
        rows = torch.zeros_like(image.narrow(dim, 0, size))
        for start, weight in enumerate(_BLUR):
            rows.add_(image.narrow(dim, start, size), alpha=weight)
        image = rows
    return image


def _step(moved: Tensor, fixed: Tensor) -> Tensor:
    """Return one least-squares translation of (N, 1, H, W) images, (N, 2), NaN where it is not determined."""
    average = (moved + fixed)[:, 0] / 2
    inner = slice(MARGIN_PX, -MARGIN_PX)
    columns = [
        _gradient(average[:, :, inner], dim=1),
        _gradient(average[:, inner, :], dim=2),
        (moved - fixed)[:, 0, inner, inner],
        average[:, inner, inner],
    ]
    table = torch.stack(columns, dim=1).flatten(2).double()  # (N, 4, pixels)
    table = table - table.mean(dim=2, keepdim=True)
    products = table @ table.transpose(1, 2)  # (N, 4, 4)
    gain = products[:, :3, 3:]
    products = products[:, :3, :3] - gain @ gain.transpose(1, 2) / products[:, 3:, 3:]
    yy, yx, yd, _, xx, xd, *_ = products.flatten(1).unbind(dim=1)
    determinant, trace = yy * xx - yx * yx, yy + xx
    determinant = determinant.masked_fill(determinant <= _TEXTURE * trace.square(), torch.nan)
    return torch.stack([yx * xd - xx * yd, yx * yd - yy * xd], dim=1).div(determinant[:, None]).to(moved.dtype)


def _gradient(image: Tensor, dim: int) -> Tensor:
    """Return the derivative along dim inside the margin, by the difference of sixth order, (N, H, W)."""
    size = image.shape[dim] - 2 * MARGIN_PX
    result = torch.zeros_like(image.narrow(dim, MARGIN_PX, size))
    for offset, weight in enumerate(_DIFFERENCE, start=1):
        result.add_(image.narrow(dim, MARGIN_PX + offset, size), alpha=weight)
        result.sub_(image.narrow(dim, MARGIN_PX - offset, size), alpha=weight)
    return result


def _sampled(image: Tensor, shift: Tensor) -> Tensor:
    """Return image(p + shift), (N, 1, H, W), by Lagrange's polynomial through six pixels; outside, the edge repeats.

    Torch's cubic convolution (a = -0.75) does not even reproduce a ramp: it would move the result by 0.04 pixels.
    """
    shift = shift.nan_to_num()  # an undetermined translation stays undetermined: its next step is NaN again
    rows, columns = (_interpolation(shift[:, axis], image.shape[2 + axis]) for axis in (0, 1))
    return (rows @ image[:, 0] @ columns.transpose(1, 2))[:, None]


def _interpolation(shift: Tensor, size: int) -> Tensor:
    """Return the matrices that sample a line of pixels at 0 + shift, 1 + shift, ..., (N, size, size)."""
    whole = shift.floor()
    fraction = shift - whole
    matrix = shift.new_zeros(len(shift), size, size)
    place = torch.arange(size, device=shift.device) + whole[:, None].long()  # (N, size)
    for tap in _TAPS:
        weight = torch.ones_like(fraction)
        for other in _TAPS:
            if other != tap:
                weight = weight * (fraction - other) / (tap - other)
        index = (place + tap).clamp(0, size - 1)[:, :, None]
        matrix.scatter_add_(2, index, weight[:, None, None].expand_as(index))
    return matrix
