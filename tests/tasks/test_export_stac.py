"""STAC items: read back by stac-geoparquet, validated by pystac, placed by GDAL."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import duckdb
import geopandas as gpd
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pystac
import pytest
import shapely
import stac_geoparquet.arrow
import zarr
from pystac.extensions.grid import GridExtension
from pystac.extensions.projection import ProjectionExtension
from pystac.validation import validate_dict
from rasterio.transform import Affine
from rasterio.warp import transform_geom

from infra.bigearthnet.bands import RGB, S2_BANDS
from infra.errors import StoreError
from infra.storage import StorePaths
from infra.tables import PATCHES, publish
from tasks.export import Exported
from tasks.export_stac import export_stac
from tests.tasks.export_store import (
    COUNTRIES,
    DAYS,
    LABELS,
    NOWHERE,
    PLACES,
    make_export_store,
    patch_rows,
    publish_patches,
)

PROJECT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> StorePaths:
    return make_export_store(tmp_path_factory.mktemp("stac") / "store")


@pytest.fixture(scope="module")
def file(paths: StorePaths) -> Path:
    out = paths.root.parent / "items.parquet"
    assert export_stac(paths.root, out) == Exported(4, 1), "the picture has no place"
    return out


def read_items(file: Path) -> Iterator[dict[str, Any]]:
    """As stac-geoparquet reads them."""
    return iter(stac_geoparquet.arrow.stac_table_to_items(pq.read_table(file)))


@pytest.fixture(scope="module")
def items(file: Path) -> dict[str, dict[str, Any]]:
    """By their ids."""
    return {item["id"]: item for item in read_items(file)}


def test_every_item_and_the_collection_are_valid_stac(file: Path, items: dict[str, dict[str, Any]]) -> None:
    assert sorted(items) == sorted(patch_id for patch_id, _, _ in PLACES)
    for item in items.values():
        validate_dict(item, extensions=[])  # extensions' schemas are on the net; their fields are looked at below
    found = json.loads((pq.read_metadata(file).metadata or {})[b"stac-geoparquet"])
    assert found["version"] == "1.1.0"
    (collection,) = found["collections"].values()
    validate_dict(collection, extensions=[])
    assert {item["collection"] for item in items.values()} == {collection["id"]}
    extent = pystac.Collection.from_dict(collection).extent
    assert extent.temporal.to_dict()["interval"] == [["2017-06-13T00:00:00Z", "2018-02-21T23:59:59Z"]]
    boxes = np.array([item["bbox"] for item in items.values()])
    expected = [*boxes[:, :2].min(axis=0), *boxes[:, 2:].max(axis=0)]
    assert extent.spatial.bboxes == [expected]


def test_items_lie_where_gdal_puts_them(items: dict[str, dict[str, Any]]) -> None:
    for patch_id, epsg, (left, bottom, right, top) in PLACES:
        ring = [(left, bottom), (right, bottom), (right, top), (left, top), (left, bottom)]
        there = transform_geom(f"EPSG:{epsg}", "EPSG:4326", {"type": "Polygon", "coordinates": [ring]})
        polygon = shapely.geometry.shape(items[patch_id]["geometry"])
        np.testing.assert_allclose(shapely.get_coordinates(polygon), there["coordinates"][0], atol=1e-9)
        assert items[patch_id]["bbox"] == pytest.approx(polygon.bounds, abs=1e-12)


def test_times_are_those_in_the_name_or_the_whole_day(items: dict[str, dict[str, Any]]) -> None:
    found = [pystac.Item.from_dict(items[patch_id]) for patch_id, _, _ in PLACES]
    instants = [item.datetime and item.datetime.isoformat() for item in found]
    assert instants == ["2017-06-13T10:10:31+00:00", "2018-02-21T09:30:29+00:00", "2017-07-01T09:30:31+00:00", None]
    of_day = found[3].common_metadata
    assert of_day.start_datetime is not None
    assert of_day.end_datetime is not None
    assert of_day.start_datetime.isoformat() == f"{DAYS[3]}T00:00:00+00:00"
    assert (of_day.end_datetime - of_day.start_datetime).total_seconds() == 86399.999


def test_the_projection_is_that_of_each_array(items: dict[str, dict[str, Any]]) -> None:
    for patch_id, epsg, bounds in PLACES:
        item = pystac.Item.from_dict(items[patch_id])
        projection = ProjectionExtension.ext(item)
        assert (projection.code, projection.bbox) == (f"EPSG:{epsg}", [*bounds])
        for name, size, gsd in (("s2_10m", 120, 10), ("s2_20m", 60, 20), ("s2_60m", 20, 60)):
            asset = item.assets[name]
            of_asset = ProjectionExtension.ext(asset)
            assert of_asset.shape == [size, size]
            assert of_asset.transform is not None
            assert Affine(*of_asset.transform) == Affine(gsd, 0, bounds[0], 0, -gsd, bounds[3])
            assert asset.to_dict()["gsd"] == gsd
        assert GridExtension.ext(item).code == f"MGRS-{'33UUP' if epsg == 32633 else '35VMH'}"


def test_assets_are_the_arrays_with_their_bands_and_where_the_patch_is_in_them(
    paths: StorePaths, items: dict[str, dict[str, Any]]
) -> None:
    for i, (patch_id, _, _) in enumerate(PLACES):
        item = items[patch_id]
        assert set(item["assets"]) == {"s2_10m", "s2_20m", "s2_60m", "reference_map"} | ({"s1"} if i == 1 else set())
        assert item["properties"]["superscene:patch_index"] == (0, 1, 4, 5)[i], "two patches in each shard of four"
        for name, asset in item["assets"].items():
            assert asset["href"].startswith("file:///")
            array = zarr.open_array(asset["href"].removeprefix("file://"), mode="r")
            assert array.shape[-2:] == tuple(asset["proj:shape"])
            assert str(array.dtype) == asset["data_type"]
            assert asset["href"] == f"{paths.archive.as_uri()}/{name}"
    whole = items[PLACES[1][0]]
    bands = {band["name"]: band for asset in whole["assets"].values() for band in asset.get("bands", [])}
    assert set(bands) == {*S2_BANDS, "VV", "VH"}
    assert [band["name"] for band in whole["assets"]["s2_10m"]["bands"]] == ["B02", "B03", "B04", "B08"]
    assert [bands[name]["eo:common_name"] for name in RGB] == ["red", "green", "blue"]
    centres = [bands[name]["eo:center_wavelength"] for name in S2_BANDS]
    assert centres == sorted(centres), "S2_BANDS is in spectral order"
    assert (centres[0], centres[-1]) == (0.443, 2.19)
    assert bands["VV"] == {"name": "VV"}
    (link,) = (link for link in whole["links"] if link["rel"] == "store")
    assert link["href"] == paths.archive.as_uri()


def test_properties_are_the_columns_of_the_table(items: dict[str, dict[str, Any]]) -> None:
    for i, (patch_id, _, _) in enumerate(PLACES):
        properties = items[patch_id]["properties"]
        assert properties["superscene:labels"] == LABELS[i]
        assert properties["superscene:country"] == COUNTRIES[i]
        assert properties["superscene:has_snow"] == (i == 1)
        assert properties["superscene:has_cloud"] is None
        assert properties["superscene:nodata_share"] == 0.25
        assert properties["superscene:split"] == "test"


def test_geopandas_and_duckdb_read_the_file_by_its_boxes(file: Path) -> None:
    frame = gpd.read_parquet(file, bbox=(20, 55, 30, 65))
    assert set(frame["id"]) == {patch_id for patch_id, epsg, _ in PLACES if epsg == 32635}
    assert frame.crs.equals("OGC:CRS84")
    query = f"""SELECT id FROM '{file}' WHERE bbox.ymin > 55 AND list_contains("superscene:labels", 'Inland waters')"""
    assert duckdb.execute(query).fetchall() == [(PLACES[1][0],)]


def test_where_a_tile_is_unknown_no_item_names_a_grid(paths: StorePaths, tmp_path: Path) -> None:
    rows = [{**row, "tile": None if i == 2 else row.get("tile")} for i, row in enumerate(patch_rows())]
    other = StorePaths(tmp_path / "store")
    (tmp_path / "store").mkdir()
    (tmp_path / "store" / "archive.zarr").symlink_to(paths.archive)
    publish_patches(other, rows)
    export_stac(other.root, tmp_path / "items.parquet")
    for item in read_items(tmp_path / "items.parquet"):
        validate_dict(item, extensions=[])
        assert "grid:code" not in item["properties"]
        assert not any("/grid/" in name for name in item["stac_extensions"])


def test_pictures_without_a_place_are_no_items(tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "store")
    publish_patches(store, [row for row in patch_rows() if row["patch_id"] == NOWHERE])
    with pytest.raises(StoreError, match=r"none of the 1 patches of .* has a place and a day"):
        export_stac(store.root, tmp_path / "items.parquet")
    assert not (tmp_path / "items.parquet").exists()


def test_a_store_without_its_pixels_is_told(tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "store")
    publish_patches(store, patch_rows())
    with pytest.raises(StoreError, match=r"archive\.zarr is not a store"):
        export_stac(store.root, tmp_path / "items.parquet")


def test_half_a_batch_is_as_good_as_a_whole_one(
    paths: StorePaths, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("tasks.export_stac._BATCH", 3)
    export_stac(paths.root, tmp_path / "items.parquet")
    assert pq.ParquetFile(tmp_path / "items.parquet").num_row_groups == 2
    ours, whole = (pq.read_table(path).drop_columns(["links"]) for path in (tmp_path / "items.parquet", file))
    assert ours.equals(whole)


@pytest.mark.slow
def test_the_whole_archive_streams(paths: StorePaths, tmp_path: Path) -> None:
    """549,488 patches, in a process of their own: less than 1 GB of memory, Python and its libraries included."""
    store = StorePaths(tmp_path / "store")
    store.root.mkdir()
    (store.root / "archive.zarr").symlink_to(paths.archive)
    n = 549_488
    four = pa.Table.from_pylist(patch_rows()[:4], PATCHES)
    publish(store.table("patches"), four.take(pa.array(np.arange(n) % 4)), PATCHES, [])
    script = f"""
from pathlib import Path
from tasks.export_stac import export_stac
print(export_stac(Path({str(store.root)!r}), Path({str(tmp_path / "items.parquet")!r})).rows)
status = Path("/proc/self/status").read_text()  # getrusage would tell of the process that started this one too
print(status.split("VmHWM:")[1].split()[0])
"""
    run = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True, cwd=PROJECT)
    rows, kilobytes = map(int, run.stdout.split())
    assert rows == pq.read_metadata(tmp_path / "items.parquet").num_rows == n
    assert kilobytes < 1_000_000
