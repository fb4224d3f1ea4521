"""A GeoPackage as GDAL reads it, and as SQLite checks it."""

import sqlite3
from pathlib import Path

import geopandas as gpd
import pyogrio  # type: ignore[import-untyped]
import pytest
import shapely

from infra.errors import ShapeError
from infra.geopackage import GeoPackageWriter

COLUMNS = {"name": "TEXT", "day": "DATE", "flag": "BOOLEAN", "number": "MEDIUMINT", "share": "DOUBLE", "order": "TEXT"}
BOXES = [shapely.box(10, 50, 10.1, 50.2), None, shapely.box(-8.5, 40, -8.4, 40.1)]
ROWS = [
    ("a'b", "2017-06-13", True, 1, 0.1 + 0.2, "x"),
    ("ö", None, None, None, None, None),
    ("", "2018-01-01", False, -7, 1e-9, ""),
]


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gpkg") / "x.gpkg"
    with GeoPackageWriter(path, "patches", COLUMNS, "Boxes") as layer:
        for box, row in zip(BOXES, ROWS, strict=True):
            layer.add([None if box is None else shapely.to_wkb(box)], [row])
    return path


def test_gdal_finds_one_layer_of_polygons_with_its_extent(file: Path) -> None:
    assert pyogrio.list_layers(file).tolist() == [["patches", "Polygon"]]
    info = pyogrio.read_info(file, layer="patches", force_total_bounds=True)
    assert (info["crs"], info["features"], info["total_bounds"]) == ("EPSG:4326", 3, (-8.5, 40.0, 10.1, 50.2))
    types = dict(zip(info["fields"].tolist(), info["ogr_types"], strict=True))
    assert (types["day"], types["number"], types["share"], types["name"]) == (
        "OFTDate",
        "OFTInteger",
        "OFTReal",
        "OFTString",
    )
    assert dict(zip(info["fields"].tolist(), info["ogr_subtypes"], strict=True))["flag"] == "OFSTBoolean"
    assert info["capabilities"]["fast_spatial_filter"], "the index is there, and GDAL takes it"


def test_gdal_reads_the_rows_as_they_were(file: Path) -> None:
    frame = gpd.read_file(file)
    assert [None if shape is None else shape.wkt for shape in frame.geometry] == [
        None if box is None else box.wkt for box in BOXES
    ]
    assert frame["name"].tolist() == [row[0] for row in ROWS]
    assert frame["share"][[0, 2]].tolist() == [0.1 + 0.2, 1e-9]
    assert frame["number"][[0, 2]].tolist() == [1, -7]
    assert [bool(flag) for flag in frame["flag"][[0, 2]]] == [True, False]
    assert frame["flag"].isna().tolist() == [False, True, False]
    assert str(frame["day"][0])[:10] == "2017-06-13"


def test_the_index_finds_what_overlaps(file: Path) -> None:
    assert gpd.read_file(file, bbox=(9, 49, 11, 51))["name"].tolist() == ["a'b"]
    assert gpd.read_file(file, bbox=(0, 0, 1, 1)).empty
    with sqlite3.connect(file) as base:
        assert base.execute("SELECT rtreecheck('rtree_patches_geom')").fetchone() == ("ok",)
        assert base.execute("SELECT count(*) FROM rtree_patches_geom").fetchone() == (2,)
        assert base.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert base.execute("PRAGMA foreign_key_check").fetchall() == []


def test_gdal_edits_the_layer_and_the_index_follows(file: Path, tmp_path: Path) -> None:
    """GDAL brings the functions that the triggers call."""
    copy = tmp_path / "copy.gpkg"
    copy.write_bytes(file.read_bytes())
    more = gpd.GeoDataFrame({"name": ["new"]}, geometry=[shapely.box(30, 60, 31, 61)], crs=4326)
    pyogrio.write_dataframe(more, copy, layer="patches", append=True)
    assert gpd.read_file(copy, bbox=(30, 60, 32, 62))["name"].tolist() == ["new"]
    with sqlite3.connect(copy) as base:
        assert base.execute("SELECT count(*) FROM rtree_patches_geom").fetchone() == (3,)
        assert base.execute("SELECT rtreecheck('rtree_patches_geom')").fetchone() == ("ok",)


def test_the_triggers_keep_the_index_true(file: Path, tmp_path: Path) -> None:
    """With the functions of a GIS by hand: what is updated, emptied, renumbered and deleted."""
    copy = tmp_path / "copy.gpkg"
    copy.write_bytes(file.read_bytes())
    with sqlite3.connect(copy) as base:

        def shape(blob: bytes) -> shapely.Geometry:
            return shapely.from_wkb(blob[40:])  # behind a header of 40 bytes

        base.create_function(
            "ST_IsEmpty", 1, lambda blob: None if blob is None else shapely.is_empty(shape(blob)).item()
        )
        for i, name in enumerate(("ST_MinX", "ST_MinY", "ST_MaxX", "ST_MaxY")):
            base.create_function(name, 1, lambda blob, i=i: shapely.bounds(shape(blob))[i].item())

        def index() -> dict[int, tuple[float, ...]]:
            rows = base.execute("SELECT id, minx, miny, maxx, maxy FROM rtree_patches_geom ORDER BY id")
            return {row[0]: tuple(round(value, 3) for value in row[1:]) for row in rows}

        there = {1: (10.0, 50.0, 10.1, 50.2), 3: (-8.5, 40.0, -8.4, 40.1)}  # the index holds float32
        assert index() == there
        base.execute("UPDATE patches SET geom = (SELECT geom FROM patches WHERE fid = 3) WHERE fid = 2")
        assert index() == {**there, 2: there[3]}
        base.execute("UPDATE patches SET geom = (SELECT geom FROM patches WHERE fid = 1) WHERE fid = 2")
        assert index() == {**there, 2: there[1]}
        base.execute("UPDATE patches SET geom = NULL WHERE fid = 2")
        base.execute("UPDATE patches SET fid = 9 WHERE fid = 1")
        assert index() == {9: there[1], 3: there[3]}
        base.execute("UPDATE patches SET fid = 8, geom = NULL WHERE fid = 9")
        base.execute("DELETE FROM patches WHERE fid = 3")
        assert index() == {}


def test_as_many_rows_as_polygons(tmp_path: Path) -> None:
    with (
        pytest.raises(ShapeError, match="got 1 for 2"),
        GeoPackageWriter(tmp_path / "x", "a", {"b": "TEXT"}, "") as layer,
    ):
        layer.add([None, None], [("b",)])


def test_a_layer_of_nothing_is_read_too(tmp_path: Path) -> None:
    with GeoPackageWriter(tmp_path / "x.gpkg", "a", {"b": "TEXT"}, "Nothing"):
        pass
    assert pyogrio.read_info(tmp_path / "x.gpkg")["features"] == 0
