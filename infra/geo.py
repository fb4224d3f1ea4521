"""From a patch's corner in its own CRS to a footprint on the globe."""

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
