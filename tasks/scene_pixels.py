"""Between a raster's pixels and what a network sees: the stretch, and what stands for pixels without data."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from infra.errors import ConfigError

HIGHEST: Mapping[str, float] = MappingProxyType({"uint8": 255.0, "uint16": 3000.0, "int16": 3000.0, "float32": 0.3})
"""Value that becomes 1 unless told otherwise, by dtype: a reflectance of 0.3 as DN of 1/10,000 or as such."""


@dataclass(frozen=True, slots=True)
class Stretch:
    """x = (min(max(value, low), high) - low) / (high - low), one for all bands of a scene."""

    low: float
    """Value that becomes 0."""
    high: float
    """Value that becomes 1."""

    def to_unit(self, values: NDArray[Any]) -> NDArray[np.float32]:
        """Return values in [0, 1]; the shape stays. NaN stays NaN."""
        x = values.astype(np.float32)
        np.clip(x, self.low, self.high, out=x)
        return (x - np.float32(self.low)) / np.float32(self.high - self.low)

    def outside(self, values: NDArray[Any]) -> NDArray[np.bool_]:
        """Return which values are clipped; the shape stays."""
        return (values < self.low) | (values > self.high)

    def from_unit(self, x: NDArray[np.float32], dtype: str) -> NDArray[Any]:
        """Return x, in [0, 1], in the raster's dtype; integers are rounded, halves to even.

        Integers in the range of the stretch survive `to_unit` and back exactly.
        """
        values = x * np.float32(self.high - self.low)  # in place from here on: scenes are large
        values += np.float32(self.low)
        if np.dtype(dtype).kind in "ui":
            limits = np.iinfo(dtype)
            np.rint(values, out=values)
            np.clip(values, max(limits.min, math.ceil(self.low)), min(limits.max, math.floor(self.high)), out=values)
        return values.astype(dtype)


def stretch_for(dtype: str, path: str, low: float, high: float | None) -> Stretch:
    """Return the stretch of a scene.

    Args:
        dtype: The raster's dtype.
        path: The raster, for messages.
        low: Value that becomes 0.
        high: Value that becomes 1; None for the dtype's own.

    Raises:
        ConfigError: The dtype is none of those that are known here, or high is not above low.
    """
    if dtype not in HIGHEST:
        raise ConfigError(
            f"the input {path} is of the dtype {dtype}, where one of {', '.join(HIGHEST)} is needed: convert it first"
        )
    high = HIGHEST[dtype] if high is None else high
    if not (math.isfinite(low) and math.isfinite(high) and low < high):
        raise ConfigError(f"max_dn is {high:g} and min_dn {low:g}: the former needs to be the greater, both finite")
    if np.dtype(dtype).kind in "ui" and not (np.iinfo(dtype).min <= low and high <= np.iinfo(dtype).max):
        raise ConfigError(f"min_dn {low:g} to max_dn {high:g} is more than the {dtype} of {path} can hold")
    return Stretch(low, high)


def filled(x: NDArray[np.float32], valid: NDArray[np.bool_], reach: int) -> NDArray[np.float32]:
    """Return x with the value of the nearest pixel with data where there is none, band by band, 0 beyond the reach.

    What a pixel gets depends on pixels within its reach alone, and so not on where the image was cut, as long as it
    was cut at least as far away.

    Args:
        x: (C, h, w).
        valid: Where x is data, the same shape.
        reach: Farthest pixel taken, pixels.
    """
    result = np.where(valid, x, np.float32(0))
    known: dict[bytes, tuple[Any, Any, NDArray[np.bool_]]] = {}  # bands mostly share their mask
    for band in range(len(x)):
        mask = valid[band]
        if mask.all() or not mask.any():
            continue
        key = np.packbits(mask).tobytes()
        if key not in known:
            known[key] = _nearest(mask, reach)
        rows, columns, gaps = known[key]
        result[band][gaps] = x[band][rows, columns]
    return result


def _nearest(mask: NDArray[np.bool_], reach: int) -> tuple[NDArray[np.int32], NDArray[np.int32], NDArray[np.bool_]]:
    """Return row and column of the nearest pixel with data for each gap within reach, and which pixels those are."""
    gaps = np.zeros_like(mask)
    near = ndimage.maximum_filter1d(mask.any(axis=0).view(np.uint8), 2 * reach + 1, mode="constant")
    wanted = np.nonzero(~mask.all(axis=0) & (near > 0))[0]  # the edge of a swath is a few columns of a wide scene
    if not len(wanted):
        return np.zeros(0, np.int32), np.zeros(0, np.int32), gaps
    first, last = max(int(wanted[0]) - reach, 0), int(wanted[-1]) + reach + 1
    part = ~mask[:, first:last]
    distance, (rows, columns) = ndimage.distance_transform_edt(part, return_indices=True)
    gaps[:, first:last] = within = part & (distance <= reach)
    return rows[within], columns[within] + np.int32(first), gaps


def with_nodata(
    values: NDArray[Any], valid: NDArray[np.bool_], scale: int, nodata: float | None, stretch: Stretch
) -> NDArray[Any]:
    """Return the output with nodata in the blocks of pixels without data, and nowhere else.

    A pixel with data that has come out as the nodata value is moved by one (by a millionth of the stretch for floats).

    Args:
        values: (C, scale*h, scale*w), in the raster's dtype; changed.
        valid: (C, h, w), where the input is data.
        scale: Edge of a block, pixels.
        nodata: The value; None writes 0, for a mask to tell.
        stretch: The scene's.
    """
    empty = 0 if nodata is None else nodata
    if nodata is not None and not np.isnan(nodata):
        value = np.asarray(nodata).astype(values.dtype)
        step = 1 if values.dtype.kind in "ui" else values.dtype.type((stretch.high - stretch.low) * 1e-6)
        up = value + step if value < stretch.high else value - step
        values[values == value] = up
    if not valid.all():
        values[~valid.repeat(scale, axis=1).repeat(scale, axis=2)] = empty
    return values
