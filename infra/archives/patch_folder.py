"""The TIFFs of one BigEarthNet patch, as both versions lay them out: `<folder>/<name>_<band>.tif`."""

from functools import lru_cache
from typing import Any

import numpy as np
import pyproj
from numpy.typing import NDArray

from infra.archives.modality import REFERENCE_MAP, FolderPixels, Ground, PatchFolder
from infra.archives.model import Pixels
from infra.archives.tiff import Band, Grid, decode, grid_of
from infra.bigearthnet.bands import PATCH_SIZE, S1, S2_10M, S2_GROUPS, BandGroup
from infra.errors import BadPatchError

_TOLERANCE = 1e-3  # m


def read_s2(folder: PatchFolder, name: str) -> FolderPixels:
    """Return the twelve Sentinel-2 bands of a patch, which must share one ground.

    Args:
        folder: The patch's open folder.
        name: What the file names start with.

    Raises:
        BadPatchError: A band is missing or unusable, or the bands do not lie on one ground.
    """
    packed = folder.packed
    if packed is not None:
        return packed
    arrays: dict[str, NDArray[np.uint16]] = {}
    ground: Ground | None = None
    for group in S2_GROUPS:
        array = np.empty((len(group.bands), group.size, group.size), np.uint16)
        ground = _read_group(folder, name, group, array, ground)
        arrays[group.array] = array
    assert ground is not None
    return FolderPixels(arrays, ground, nodata_share(arrays[S2_10M.array]))


def read_s1(folder: PatchFolder, name: str, ground: Ground) -> Pixels:
    """Return VV and VH of a patch, (2, 120, 120) float32 dB.

    Args:
        folder: The open folder of the Sentinel-1 patch.
        name: What the file names start with.
        ground: Where the Sentinel-2 patch lies.

    Raises:
        BadPatchError: A band is missing or unusable, has NaN or infinite values, or lies elsewhere.
    """
    packed = folder.packed
    if packed is not None:
        return _checked(folder, packed, name, S1, ground)
    array = np.empty((len(S1.bands), S1.size, S1.size), np.float32)
    _read_group(folder, name, S1, array, ground)
    finite = np.isfinite(array)
    if not finite.all():
        bad = int(array.size - np.count_nonzero(finite))
        band = S1.bands[int(np.argmin(finite.reshape(len(S1.bands), -1).all(axis=1)))]
        raise BadPatchError(
            f"{folder.relative}/{name}_{band}.tif", "not_finite", f"{bad} Sentinel-1 values are NaN or infinite"
        )
    return array


def read_reference_map(folder: PatchFolder, name: str, ground: Ground) -> Pixels:
    """Return the reference map of a patch, (120, 120) CORINE codes; arguments and errors as `read_s1`."""
    packed = folder.packed
    if packed is not None:
        return _checked(folder, packed, name, REFERENCE_MAP, ground)
    array = np.empty((1, PATCH_SIZE, PATCH_SIZE), np.uint16)
    _read_group(folder, name, REFERENCE_MAP, array, ground)
    return np.asarray(array[0])


def nodata_share(s2_10m: NDArray[np.uint16]) -> float:
    """Return the share of pixels where any 10 m band is nodata.

    Args:
        s2_10m: (4, H, W) DN.
    """
    if s2_10m.min():  # nearly always, and ten times as fast
        return 0.0
    lowest = s2_10m.min(axis=0)
    return 1.0 - np.count_nonzero(lowest) / lowest.size


def _read_group(folder: PatchFolder, name: str, group: BandGroup, out: NDArray[Any], ground: Ground | None) -> Ground:
    """Fill `out` with the bands of one grid and return their ground, which must be `ground` where that is given."""
    shape = (group.size, group.size)
    first: bytes | Grid | None = None
    for i, band_name in enumerate(group.bands):
        file = f"{name}_{band_name}.tif"
        band, data = _read_band(folder, file, shape)
        if band.pixels.dtype != out.dtype:
            raise BadPatchError(
                f"{folder.relative}/{file}", "wrong_type", f"it holds {band.pixels.dtype}, {group.array} is {out.dtype}"
            )
        out[i] = band.pixels
        if i == 0 or band.geo != first:
            here = ground_of(grid_of(band, data), group, f"{folder.relative}/{file}")
            if ground is not None:
                _check_same(here, ground, f"{folder.relative}/{file}")
            ground = ground or here
            first = band.geo
    assert ground is not None
    return ground


def _read_band(folder: PatchFolder, file: str, shape: tuple[int, int]) -> tuple[Band, bytes | memoryview]:
    data = folder.read(file)
    try:
        return decode(data, f"{folder.relative}/{file}", shape), data
    except BadPatchError as error:
        if error.reason != "truncated":
            raise
    data = folder.read(file, whole=True)  # network file systems may return fewer bytes than the file has
    return decode(data, f"{folder.relative}/{file}", shape), data


def _checked(folder: PatchFolder, packed: FolderPixels, name: str, group: BandGroup, ground: Ground) -> Pixels:
    """Return the one array of a packed folder, which lies where the patch does."""
    _check_same(packed.ground, ground, f"{folder.relative}/{name}_{group.bands[0]}.tif")
    return packed.arrays[group.array]


def is_same_ground(one: Ground, other: Ground) -> bool:
    """Return whether two bands lie on one ground, to the millimetre."""
    return one.epsg == other.epsg and abs(one.left - other.left) < _TOLERANCE and abs(one.top - other.top) < _TOLERANCE


def _check_same(here: Ground, ground: Ground, shown: str) -> None:
    if not is_same_ground(here, ground):
        raise BadPatchError(
            shown,
            "grid_mismatch",
            f"its corner is {here.left}, {here.top} in EPSG:{here.epsg}, "
            f"that of the bands before it {ground.left}, {ground.top} in EPSG:{ground.epsg}",
        )


def ground_of(grid: Grid | None, group: BandGroup, shown: str) -> Ground:
    """Return the ground of a band.

    Args:
        grid: Where the band lies; None: its file does not say.
        group: Of the band.
        shown: The path for messages.

    Raises:
        BadPatchError: grid_mismatch.
    """
    if grid is None or not is_projected(grid.epsg):
        raise BadPatchError(shown, "grid_mismatch", "it has no north-up georeferencing in a projected CRS (EPSG)")
    assert group.gsd is not None
    if abs(grid.x_size - group.gsd) > _TOLERANCE or abs(grid.y_size - group.gsd) > _TOLERANCE:
        raise BadPatchError(
            shown, "grid_mismatch", f"its pixels are {grid.x_size} x {grid.y_size} m, {group.array} has {group.gsd} m"
        )
    return Ground(grid.epsg, grid.left, grid.top)


@lru_cache(maxsize=1024)
def is_projected(epsg: int) -> bool:
    """Return whether PROJ knows the EPSG code as a projected CRS in metres."""
    if not epsg:
        return False
    try:
        crs = pyproj.CRS.from_epsg(epsg)
    except pyproj.exceptions.CRSError:
        return False
    return crs.is_projected and all(axis.unit_name == "metre" for axis in crs.axis_info)
