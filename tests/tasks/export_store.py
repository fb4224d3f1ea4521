"""A small store of five patches with places and arrays of pixels, for exports and for docs/tables-howto.md."""

from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.archives.model import BIGEARTHNET
from infra.geo import footprints
from infra.storage import StorePaths
from infra.tables import PATCHES, SCHEMAS, publish, read_table
from infra.zarr_store import archive_arrays, create_store

V1 = Path(__file__).parents[1] / "infra" / "tables" / "v1"
"""Tables of an earlier version, see test_old_tables.py."""

SHARD_SIZE = 4

PLACES: tuple[tuple[str, int, tuple[float, float, float, float]], ...] = (
    ("S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57", 32633, (331200.0, 5328000.0, 332400.0, 5329200.0)),
    ("S2B_MSIL2A_20180221T093029_N9999_R136_T35VMH_10_02", 32635, (412020.0, 6787980.0, 413220.0, 6789180.0)),
    ("S2A_MSIL2A_20170701T093031_N9999_R136_T35VMH_11_02", 32635, (413220.0, 6787980.0, 414420.0, 6789180.0)),
    ("a patch without a time stamp", 32635, (409620.0, 6787980.0, 410820.0, 6789180.0)),
)
"""Patch id, EPSG code, and left, bottom, right, top in that CRS, m."""

NOWHERE = "picture"
"""A patch without a place or a day."""

DAYS = ("2017-06-13", "2018-02-21", "2017-07-01", "2017-06-30")
COUNTRIES = ("Austria", "Finland", "Finland", "Finland")
LABELS: tuple[list[str] | None, ...] = (
    ["Pastures", "Moors, heathland and sclerophyllous vegetation"],
    ["Inland wetlands", "Inland waters"],
    [],
    None,
)


def patch_rows() -> list[dict[str, Any]]:
    """Rows of tables/patches; the third and fourth lie in the second shard, the last one nowhere."""
    wkb = footprints([epsg for _, epsg, _ in PLACES], [bounds for _, _, bounds in PLACES])
    common = {"split": "test", "has_s1": False, "has_map": True, "nodata_share": 0.25, "source_version": "test"}
    rows = [
        {
            **common,
            "patch_id": patch_id,
            "shard": i // 2,
            "row": i % 2,
            "labels": LABELS[i],
            "country": COUNTRIES[i],
            "season": "winter" if i == 1 else "summer",
            "acquired": DAYS[i],
            "tile": "33UUP" if epsg == 32633 else "35VMH",
            "has_snow": i == 1,
            "has_cloud": None,
            "has_s1": i == 1,
            "crs": f"EPSG:{epsg}",
            "geometry": wkb[i],
        }
        for i, (patch_id, epsg, _) in enumerate(PLACES)
    ]
    return [*rows, {**common, "patch_id": NOWHERE, "shard": 1, "row": 2, "has_map": False}]


def publish_patches(paths: StorePaths, rows: list[dict[str, Any]]) -> None:
    publish(paths.table("patches"), pa.Table.from_pylist(rows, PATCHES), PATCHES, ["patch_id"])


def make_export_store(root: Path) -> StorePaths:
    """Write the patches, and archive.zarr with arrays that hold nothing yet."""
    paths = StorePaths(root)
    create_store(paths.archive, archive_arrays(BIGEARTHNET), SHARD_SIZE, 2, {})
    publish_patches(paths, patch_rows())
    return paths


def publish_results(paths: StorePaths) -> None:
    """Write the tables of a small run, but for the patches: those of tests/infra/tables/v1, of this version."""
    for folder in {file.parent for file in V1.rglob("*.parquet")}:
        name = folder.relative_to(V1).parts[0]
        if name != "patches":
            publish(paths.tables / folder.relative_to(V1), read_table(folder), SCHEMAS[name], [])
