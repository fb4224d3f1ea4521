"""The one stretch between DN and what networks see: x = min(DN, max_dn) / max_dn, for every patch and every branch."""

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.errors import ConfigError, ShapeError

MAX_MAX_DN = 65_535
"""Largest `max_dn`: the largest DN."""


def as_tensor(dn: NDArray[np.uint16] | Tensor, device: str | torch.device | None = None) -> Tensor:
    """Return DN as a tensor of the same dtype on a device; without a copy where none is needed.

    Args:
        dn: DN of any shape; a NumPy array or a tensor, any integer dtype, torch.uint16 included.
        device: Where the result lies; None leaves a tensor where it is, and an array on the CPU.

    Raises:
        ShapeError: dn is not of an integer dtype.
    """
    if isinstance(dn, np.ndarray):
        if dn.dtype.kind not in "ui":
            raise ShapeError(f"DN need an integer dtype, got {dn.dtype} {dn.shape}")
        native = np.ascontiguousarray(dn, dtype=dn.dtype.newbyteorder("="))
        dn = torch.from_numpy(native if native.flags.writeable else native.copy())  # torch warns of read-only memory
    if dn.is_floating_point() or dn.is_complex() or dn.dtype == torch.bool:
        raise ShapeError(f"DN need an integer dtype, got {dn.dtype} {tuple(dn.shape)}")
    return dn.to(device)


def to_float(dn: NDArray[np.uint16] | Tensor, device: str | torch.device | None = None) -> Tensor:
    """Return DN as a new float32 tensor, exact up to 2**24; moved first and converted there.

    Args:
        dn: See `as_tensor`.
        device: See `as_tensor`.

    Raises:
        ShapeError: dn is not of an integer dtype.
    """
    return as_tensor(dn, device).to(torch.float32)


def to_unit(dn: NDArray[np.uint16] | Tensor, max_dn: int, device: str | torch.device | None = None) -> Tensor:
    """Return min(DN, max_dn) / max_dn.

    Args:
        dn: DN of any shape, uint16 or another integer dtype.
        max_dn: DN that becomes 1, in 1..65,535 (`sr_input_max_dn`).
        device: See `as_tensor`.

    Returns:
        The same shape, float32, in [0, 1].

    Raises:
        ShapeError: dn is not of an integer dtype.
        ConfigError: max_dn is out of range.
    """
    _check(max_dn)
    return to_float(dn, device).clamp_(0, max_dn).div_(max_dn)


def to_dn(x: Tensor, max_dn: int) -> Tensor:
    """Return x * max_dn, clamped to 0..max_dn and rounded, halves to even; undoes `to_unit` below max_dn exactly.

    Args:
        x: Any shape, floating point, meant to be in [0, 1].
        max_dn: DN of x = 1, in 1..65,535.

    Returns:
        The same shape, torch.uint16, on the device of x; `.cpu().numpy()` gives NumPy's uint16.

    Raises:
        ShapeError: x is not floating point.
        ConfigError: max_dn is out of range.
    """
    _check(max_dn)
    if not x.is_floating_point():
        raise ShapeError(f"to_dn needs floating point in [0, 1], got {x.dtype} {tuple(x.shape)}")
    return x.float().mul(max_dn).round_().clamp_(0, max_dn).to(torch.int32).to(torch.uint16)


def clipped_share(dn: NDArray[np.uint16] | Tensor, max_dn: int) -> Tensor:
    """Return the share of pixels that the stretch clips: those with a DN above max_dn in any band.

    Args:
        dn: (N, C, H, W), DN, integer.
        max_dn: DN that becomes 1, in 1..65,535.

    Returns:
        (N,), float32, in [0, 1], per image.

    Raises:
        ShapeError: dn is not an integer (N, C, H, W).
        ConfigError: max_dn is out of range.
    """
    _check(max_dn)
    if dn.ndim != 4:
        raise ShapeError(f"clipped_share needs (N, C, H, W), got {tuple(dn.shape)}")
    return (to_float(dn) > max_dn).any(dim=1).float().mean(dim=(1, 2))


def _check(max_dn: int) -> None:
    if not 0 < max_dn <= MAX_MAX_DN:
        raise ConfigError(f"max_dn is {max_dn}: it needs to be in 1..{MAX_MAX_DN}")
