"""From a patch's corner in its own CRS to a footprint on the globe."""

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import pyproj
import shapely
from numpy.typing import ArrayLike, NDArray

from infra.errors import ShapeError


def footprints(epsg: ArrayLike, bounds: ArrayLike) -> NDArray[np.object_]:
    """Return patches as polygons in EPSG:4326, longitude first, exterior rings counter-clockwise.

    Edges stay straight between corners: over 1,200 m of UTM that is less than a metre off.

    Args:
        epsg: (N,) EPSG code of each patch's CRS.
        bounds: (N, 4) left, bottom, right, top in that CRS, m.

    Returns:
        (N,) WKB as bytes; None where the CRS is unknown, or a corner has no longitude and latitude.

    Raises:
        ShapeError: The lengths differ.
    """
    codes = np.asarray(epsg, np.int64).reshape(-1)
    boxes = np.asarray(bounds, np.float64).reshape(-1, 4)
    if len(codes) != len(boxes):
        raise ShapeError(f"footprints needs one EPSG code per patch, got {len(codes)} codes and {len(boxes)} bounds")
    longitude = np.full((len(codes), 5), np.inf)
    latitude = np.full((len(codes), 5), np.inf)
    for code in np.unique(codes):
        rows = codes == code
        left, bottom, right, top = boxes[rows].T
        try:
            transformer = _to_globe(int(code))
        except pyproj.exceptions.CRSError:
            continue
        longitude[rows], latitude[rows] = transformer.transform(
            np.stack([left, right, right, left, left], axis=1), np.stack([bottom, bottom, top, top, bottom], axis=1)
        )
    rings = np.stack([longitude, latitude], axis=-1)
    usable = np.isfinite(rings).all(axis=(1, 2))
    result = np.full(len(codes), None, object)
    if usable.any():
        result[usable] = shapely.to_wkb(shapely.polygons(rings[usable]))
    return result


@lru_cache(maxsize=128)
def _to_globe(epsg: int) -> pyproj.Transformer:
    """Return what turns a CRS into longitude and latitude; making it takes a hundred times as long as using it."""
    return pyproj.Transformer.from_crs(epsg, 4326, always_xy=True)


def bounds_in(crs: Sequence[str], shapes: NDArray[np.object_]) -> NDArray[np.float64]:
    """Return the bounds of footprints in their own CRS: what `footprints` was given, to the millimetre.

    Args:
        crs: The CRS of each, such as EPSG:32633.
        shapes: (N,) polygons in EPSG:4326 of four corners, longitude first.

    Returns:
        (N, 4): left, bottom, right, top, in units of the CRS.

    Raises:
        ShapeError: The lengths differ.
        pyproj.exceptions.CRSError: There is no such CRS.
    """
    if len(crs) != len(shapes):
        raise ShapeError(f"bounds_in needs one CRS per footprint, got {len(crs)} and {len(shapes)}")
    bounds = np.empty((len(shapes), 4))
    codes = np.array(crs, object)
    for code in dict.fromkeys(crs):
        rows = np.flatnonzero(codes == code)
        corners, of_row = shapely.get_coordinates(shapes[rows], return_index=True)
        x, y = _from_globe(code).transform(*corners.T)
        first = np.searchsorted(of_row, np.arange(len(rows)))
        for column, values, end in ((0, x, np.minimum), (1, y, np.minimum), (2, x, np.maximum), (3, y, np.maximum)):
            bounds[rows, column] = end.reduceat(values, first)
    return np.round(bounds, 3)


@lru_cache(maxsize=128)
def _from_globe(crs: str) -> pyproj.Transformer:
    return pyproj.Transformer.from_crs(4326, crs, always_xy=True)
