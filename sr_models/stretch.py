"""The one stretch between DN and what networks see: x = min(DN, max_dn) / max_dn, for every patch and every branch."""

from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from infra.errors import ConfigError, ShapeError

MAX_MAX_DN = 65_535
"""Largest `max_dn`: the largest DN."""

type MaxDn = int | Sequence[int]
"""DN that becomes 1: one for all bands, or one a band, in 1..65,535."""


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


def to_unit(dn: NDArray[np.uint16] | Tensor, max_dn: MaxDn, device: str | torch.device | None = None) -> Tensor:
    """Return min(DN, max_dn) / max_dn.

    Args:
        dn: DN, (…, C, H, W), uint16 or another integer dtype; any shape where max_dn is one number.
        max_dn: DN that becomes 1 (`sr_input_max_dn`).
        device: See `as_tensor`.

    Returns:
        The same shape, float32, in [0, 1].

    Raises:
        ShapeError: dn is not of an integer dtype, or has another number of bands.
        ConfigError: max_dn is out of range.
    """
    x = to_float(dn, device)
    limit = limits(max_dn, x)
    return x.clamp_(min=0).minimum(limit).div_(limit)


def to_dn(x: Tensor, max_dn: MaxDn) -> Tensor:
    """Return x * max_dn, clamped to 0..max_dn and rounded, halves to even; undoes `to_unit` below max_dn exactly.

    Args:
        x: (…, C, H, W), floating point, meant to be in [0, 1]; any shape where max_dn is one number.
        max_dn: DN of x = 1.

    Returns:
        The same shape, torch.uint16, on the device of x; `.cpu().numpy()` gives NumPy's uint16.

    Raises:
        ShapeError: x is not floating point, or has another number of bands.
        ConfigError: max_dn is out of range.
    """
    if not x.is_floating_point():
        raise ShapeError(f"to_dn needs floating point in [0, 1], got {x.dtype} {tuple(x.shape)}")
    limit = limits(max_dn, x)
    return x.float().mul(limit).round_().clamp_(min=0).minimum(limit).to(torch.int32).to(torch.uint16)


def clipped_share(dn: NDArray[np.uint16] | Tensor, max_dn: MaxDn) -> Tensor:
    """Return the share of pixels that the stretch clips: those with a DN above max_dn in any band.

    Args:
        dn: (N, C, H, W), DN, integer.
        max_dn: DN that becomes 1.

    Returns:
        (N,), float32, in [0, 1], per image.

    Raises:
        ShapeError: dn is not an integer (N, C, H, W).
        ConfigError: max_dn is out of range.
    """
    if dn.ndim != 4:
        raise ShapeError(f"clipped_share needs (N, C, H, W), got {tuple(dn.shape)}")
    x = to_float(dn)
    return (x > limits(max_dn, x)).any(dim=1).float().mean(dim=(1, 2))


def limits(max_dn: MaxDn, x: Tensor) -> Tensor:
    """Return max_dn as float32 on the device of x, to be broadcast against it: () or (C, 1, 1).

    Args:
        max_dn: DN that becomes 1.
        x: (…, C, H, W) where max_dn is one a band.

    Raises:
        ShapeError: x has another number of bands.
        ConfigError: max_dn is out of range.
    """
    values = [max_dn] if isinstance(max_dn, int) else list(max_dn)
    for value in values:
        if not 0 < value <= MAX_MAX_DN:
            raise ConfigError(f"max_dn is {value}: it needs to be in 1..{MAX_MAX_DN}")
    if isinstance(max_dn, int):
        return torch.tensor(float(max_dn), device=x.device)
    if x.ndim < 3 or x.shape[-3] != len(values):
        raise ShapeError(f"max_dn names {len(values)} bands, which needs (…, C, H, W), got {tuple(x.shape)}")
    return torch.tensor(values, dtype=torch.float32, device=x.device).view(-1, 1, 1)
