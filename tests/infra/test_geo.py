from typing import Any

import numpy as np
import pyproj
import pytest
import shapely
from rasterio.warp import transform_geom

from infra.errors import ShapeError
from infra.geo import bounds_in, footprints

BOUNDS = [(390000.0, 5347200.0, 391200.0, 5348400.0), (499980.0, 7044840.0, 501180.0, 7046040.0)]


def box(left: float, bottom: float, right: float, top: float) -> dict[str, Any]:
    ring = [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
    return {"type": "Polygon", "coordinates": [ring]}


@pytest.mark.parametrize("epsg", [32629, 32633, 32636, 32733])
def test_footprints_equal_gdal_s(epsg: int) -> None:
    found = shapely.from_wkb(footprints([epsg] * 2, BOUNDS))
    for polygon, bounds in zip(found, BOUNDS, strict=True):
        expected = transform_geom(f"EPSG:{epsg}", "EPSG:4326", box(*bounds))
        np.testing.assert_allclose(shapely.get_coordinates(polygon), expected["coordinates"][0], atol=1e-9)


def test_each_patch_is_placed_by_its_own_crs() -> None:
    mixed = shapely.from_wkb(footprints([32633, 32634, 32633], [BOUNDS[0], BOUNDS[1], BOUNDS[1]]))
    alone = [
        shapely.from_wkb(footprints([epsg], [bounds]))[0]
        for epsg, bounds in ((32633, BOUNDS[0]), (32634, BOUNDS[1]), (32633, BOUNDS[1]))
    ]
    assert [shapely.to_wkt(x, 12) for x in mixed] == [shapely.to_wkt(x, 12) for x in alone]


def test_a_footprint_is_1200_m_wide_and_runs_counter_clockwise() -> None:
    (polygon,) = shapely.from_wkb(footprints([32633], BOUNDS[:1]))
    area, edge = pyproj.Geod(ellps="WGS84").geometry_area_perimeter(polygon)
    assert area == pytest.approx(1200**2, rel=2e-3)  # UTM scale is 0.9996 to 1.001; > 0: counter-clockwise
    assert edge == pytest.approx(4800, rel=1e-3)
    assert polygon.exterior.is_ccw


def test_what_cannot_be_placed_is_none() -> None:
    far = (1e300, 1e300, 1e300, 1e300)
    found = footprints([32633, 0, 999999, 32633], [BOUNDS[0], BOUNDS[0], BOUNDS[0], far])
    assert [x is None for x in found] == [False, True, True, True]


def test_no_patch_has_no_footprint() -> None:
    assert footprints([], np.empty((0, 4))).shape == (0,)


def test_lengths_must_agree() -> None:
    with pytest.raises(ShapeError, match="2 codes and 1 bounds"):
        footprints([32633, 32633], BOUNDS[:1])


def test_bounds_of_a_footprint_are_those_it_was_made_of() -> None:
    """To the millimetre, in the order given, each in its own CRS."""
    epsg = [32633, 32629, 32633, 32733]
    bounds = [BOUNDS[0], BOUNDS[1], BOUNDS[1], BOUNDS[0]]
    shapes = np.asarray(shapely.from_wkb(footprints(epsg, bounds)))
    assert bounds_in([f"EPSG:{code}" for code in epsg], shapes).tolist() == [[*box] for box in bounds]
    assert bounds_in([], shapes[:0]).shape == (0, 4)
    with pytest.raises(ShapeError, match="got 1 and 4"):
        bounds_in(["EPSG:32633"], shapes)
