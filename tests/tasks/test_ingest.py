import bz2
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import rasterio.warp
import shapely

from infra.archives.inventory import Subset
from infra.archives.layouts import open_archive
from infra.bigearthnet.bands import S1, S2_GROUPS
from infra.bigearthnet.classes import CLASSES, NAMES
from infra.errors import ConfigError, PipelineError
from infra.storage import StorePaths
from infra.zarr_store import ShardedStore
from tasks.ingest import IngestCounts, ShardIngester, publish_archive
from tasks.plan import Plan, make_plan
from tests.infra.archives.small_archive import SmallArchive, write_tiff
from tests.tasks.small_store import SHARD_SIZE, band_file, ingest, metadata, patch_ids, snapshot, v2

ARRAYS = ("s2_10m", "s2_20m", "s2_60m", "s1", "reference_map", "labels")


def read(path: Path) -> np.ndarray[Any, Any]:
    with rasterio.open(path) as source:
        values: np.ndarray[Any, Any] = source.read(1)
    return values


def pixels_of(root: Path, row: dict[str, Any]) -> dict[str, np.ndarray[Any, Any]]:
    """A v2 patch's arrays as rasterio reads its files, wherever they lie."""
    name = row["patch_id"]
    s2 = {g.array: np.stack([read(band_file(root, name, band)) for band in g.bands]) for g in S2_GROUPS}
    pair = [next((root / "BigEarthNet-S1").rglob(f"{row['s1_name']}_{band}.tif")) for band in S1.bands]
    (reference_map,) = (root / "Reference_Maps").rglob(f"{name}_reference_map.tif")
    return s2 | {"s1": np.stack([read(path) for path in pair]), "reference_map": read(reference_map)}


def check_store(plan: Plan, root: Path) -> list[str]:
    """Compare every row of the store with the archive's files; return the names of the stored patches."""
    truth = {row["patch_id"]: row for row in reversed(metadata(root))}  # of a name given twice the first row counts
    store = ShardedStore(plan.paths.archive)
    stored = []
    for shard in plan.ingested():
        rows = {row["row"]: row for row in plan.parts.read(shard).to_pylist()}
        valid = store.read(shard, "valid")
        np.testing.assert_array_equal(np.flatnonzero(valid), sorted(rows))
        arrays = {name: store.read(shard, name) for name in ARRAYS}
        for index in range(plan.shard_size):
            if index not in rows:
                assert not any(values[index].any() for values in arrays.values())
                continue
            row = rows[index]
            named = truth[row["patch_id"]]
            for name, expected in pixels_of(root, named).items():
                np.testing.assert_array_equal(arrays[name][index], expected, err_msg=row["patch_id"])
                assert arrays[name].dtype == expected.dtype
            assert [name for name, hot in zip(NAMES, arrays["labels"][index], strict=True) if hot] == row["labels"]
            assert set(row["labels"]) == set(named["labels"])
            assert (row["shard"], row["split"], row["country"]) == (shard, named["split"], named["country"])
            stored.append(row["patch_id"])
    return stored


def test_the_store_holds_what_rasterio_reads(archive_root: Path, tmp_path: Path) -> None:
    plan = ingest(v2(archive_root), tmp_path)
    assert sorted(check_store(plan, archive_root)) == patch_ids(archive_root)
    assert publish_archive(plan) == IngestCounts(patches=24, quarantined=0, absent=0, pending=0)


def test_the_table_of_patches(archive_root: Path, tmp_path: Path) -> None:
    """Flags and names from the metadata; footprints as rasterio transforms the corners of a band's file."""
    plan = ingest(v2(archive_root), tmp_path)
    publish_archive(plan)
    table = pq.ParquetFile(tmp_path / "tables" / "patches" / "data-00000.parquet").read()
    assert table.schema.metadata[b"superscene.complete"] == b"true"
    rows = table.to_pylist()
    assert [row["patch_id"] for row in rows] == patch_ids(archive_root)
    truth = {row["patch_id"]: row for row in metadata(archive_root)}
    seasons = ["winter"] * 2 + ["spring"] * 3 + ["summer"] * 3 + ["autumn"] * 3 + ["winter"]
    for row in rows:
        named, name = truth[row["patch_id"]], row["patch_id"].split("_")
        assert row["has_snow"] == named["contains_seasonal_snow"]
        assert row["has_cloud"] == named["contains_cloud_or_shadow"]
        assert row["acquired"] == f"{name[2][:4]}-{name[2][4:6]}-{name[2][6:8]}"
        assert row["season"] == seasons[int(name[2][4:6]) - 1]
        assert row["tile"] == name[5].removeprefix("T")
        assert (row["has_s1"], row["has_map"], row["source_version"]) == (True, True, "bigearthnet-v2-synthetic")
        lowest = np.stack([read(band_file(archive_root, row["patch_id"], band)) for band in S2_GROUPS[0].bands]).min(0)
        assert row["nodata_share"] == pytest.approx(np.mean(lowest == 0), abs=1e-7)
        with rasterio.open(band_file(archive_root, row["patch_id"])) as source:
            crs, (left, bottom, right, top) = source.crs, source.bounds
        assert row["crs"] == f"EPSG:{crs.to_epsg()}"
        corners = [left, right, right, left, left], [bottom, bottom, top, top, bottom]
        ring = np.stack(rasterio.warp.transform(crs, "EPSG:4326", *corners), axis=1)
        np.testing.assert_allclose(shapely.get_coordinates(shapely.from_wkb(row["geometry"])), ring, atol=1e-9)
    assert sum(row["has_snow"] or row["has_cloud"] for row in rows) == 1


def test_the_table_of_classes(store: Plan) -> None:
    rows = pq.ParquetFile(store.paths.table("classes") / "data-00000.parquet").read().to_pylist()
    assert rows == [
        {"label_index": i, "label": c.name, "clc_codes": sorted(c.clc)} for i, c in enumerate(CLASSES)
    ]  # CLASSES itself is compared with the real archive elsewhere


def test_rows_without_pair_map_or_labels(archive_copy: Path, tmp_path: Path) -> None:
    rows = metadata(archive_copy)
    no_pair, no_map, no_labels = (row["patch_id"] for row in rows[:3])
    s1_name = rows[0]["s1_name"]
    (pair,) = (path for path in (archive_copy / "BigEarthNet-S1").rglob(s1_name) if path.is_dir())
    shutil.rmtree(pair)
    for path in (archive_copy / "Reference_Maps").rglob(f"{no_map}_reference_map.tif"):
        path.unlink()
    change_metadata(archive_copy, lambda row: row | {"labels": None} if row["patch_id"] == no_labels else row)
    plan = ingest(v2(archive_copy), tmp_path / "store", 24)
    assert publish_archive(plan).patches == 24
    stored = {row["patch_id"]: row for row in pq.read_table(plan.paths.table("patches")).to_pylist()}
    odd = {name: (row["has_s1"], row["has_map"], row["labels"] is None) for name, row in stored.items()}
    assert {name: kind for name, kind in odd.items() if kind != (True, True, False)} == {
        no_pair: (False, True, False),
        no_map: (True, False, False),
        no_labels: (True, True, True),
    }
    archive = ShardedStore(plan.paths.archive)
    for name, array in ((no_pair, "s1"), (no_map, "reference_map"), (no_labels, "labels")):
        row = stored[name]
        assert not archive.read(row["shard"], array)[row["row"]].any()
        assert archive.read(row["shard"], "s2_10m")[row["row"]].any()
        assert archive.read(row["shard"], "valid")[row["row"]]


def change_metadata(root: Path, change: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    """Rewrite the clean metadata row by row."""
    table = pq.ParquetFile(root / "metadata.parquet").read()
    rows = [change(row) for row in table.to_pylist()]
    pq.write_table(pa.Table.from_pylist(rows, table.schema), root / "metadata.parquet")


def s1_file(root: Path, patch: str, band: str) -> Path:
    name = {row["patch_id"]: row["s1_name"] for row in metadata(root)}[patch]
    (path,) = (root / "BigEarthNet-S1").rglob(f"{name}_{band}.tif")
    return path


def overwrite(path: Path, pixels: np.ndarray[Any, Any], corner: tuple[float, float] | None = None) -> None:
    """Write other pixels into a file, its georeferencing kept but for another corner."""
    with rasterio.open(path) as source:
        gsd, crs, there = source.res[0], source.crs, (source.bounds.left, source.bounds.top)
    write_tiff(path, pixels, gsd, corner or there, crs=crs)


def spoil_s1(path: Path, value: float) -> str:
    pixels = read(path)
    pixels[3, 4] = value
    overwrite(path, pixels)
    return str(path)


def spoil(root: Path) -> dict[str, tuple[str, str]]:
    """Give an archive one fault of every kind; return the path and reason each has to be found under, by patch."""
    clean = sorted(row["patch_id"] for row in pq.ParquetFile(root / "metadata.parquet").read().to_pylist())
    left = iter(clean)
    faults: dict[str, tuple[str, str]] = {}

    def fault(reason: str, path: Callable[[str], Path] | None = None) -> Path:
        patch = next(left)
        at = band_file(root, patch, "B03") if path is None else path(patch)
        faults[patch] = (str(at.relative_to(root)), reason)
        return at

    os.truncate(fault("truncated"), 5000)
    os.truncate(fault("truncated"), 0)
    overwrite(fault("wrong_size"), np.ones((100, 120), np.uint16))
    overwrite(fault("wrong_type"), np.ones((120, 120), np.float32))
    fault("missing_band").unlink()
    fault("not_a_tiff").write_bytes(b"\x89PNG\r\n\x1a\n" + bytes(30_000))
    spoil_s1(fault("not_finite", lambda patch: s1_file(root, patch, "VV")), np.nan)
    spoil_s1(fault("not_finite", lambda patch: s1_file(root, patch, "VH")), -np.inf)
    pipe = fault("unreadable")
    pipe.unlink()
    os.mkfifo(pipe)  # opening it would wait for ever; modes do not stop root
    link = fault("outside_archive")
    shutil.copy(link, root.parent / "elsewhere.tif")
    link.unlink()
    link.symlink_to(root.parent / "elsewhere.tif")
    folder = fault("outside_archive", lambda patch: band_file(root, patch).parent)
    folder.rename(root.parent / "elsewhere")
    folder.symlink_to(root.parent / "elsewhere")
    overwrite(fault("grid_mismatch"), np.ones((120, 120), np.uint16), corner=(0.0, 5.0e6))
    shutil.rmtree(fault("missing_folder", lambda patch: band_file(root, patch).parent))
    orphan = next(left)
    faults[orphan] = (str(band_file(root, orphan).parent.relative_to(root)), "no_metadata")
    unknown = next(left)
    faults[unknown] = (str(band_file(root, unknown).parent.relative_to(root)), "unknown_label")
    rows = [row for row in pq.ParquetFile(root / "metadata.parquet").read().to_pylist() if row["patch_id"] != orphan]
    for row in rows:
        if row["patch_id"] == unknown:
            row["labels"] = [*row["labels"], "Parking lots"]
    twice = next(left)
    faults[twice] = (str(band_file(root, twice).parent.relative_to(root)), "duplicate_id")
    rows += [row for row in rows if row["patch_id"] == twice]
    schema = pq.ParquetFile(root / "metadata.parquet").schema_arrow
    pq.write_table(pa.Table.from_pylist(rows, schema), root / "metadata.parquet")
    return faults


def test_patches_that_lie_nowhere_on_earth(archive_copy: Path, tmp_path: Path) -> None:
    """All their files agree on a place a million kilometres from their zone; the others of their shards are whole."""
    lost = patch_ids(archive_copy)[5:9]
    for name in lost:
        for path in band_file(archive_copy, name).parent.iterdir():
            overwrite(path, read(path), corner=(1e9, 5e6))
        shutil.rmtree(s1_file(archive_copy, name, "VV").parent)
        next((archive_copy / "Reference_Maps").rglob(f"{name}_reference_map.tif")).unlink()
    plan = ingest(v2(archive_copy), tmp_path / "store", 12)
    assert publish_archive(plan) == IngestCounts(patches=20, quarantined=4, absent=0, pending=0)
    assert sorted(check_store(plan, archive_copy)) == sorted(set(patch_ids(archive_copy)) - set(lost))
    found = pq.ParquetFile(plan.paths.table("quarantine") / "data-00000.parquet").read().to_pylist()
    assert [(row["patch_id"], row["reason"]) for row in found] == [(name, "grid_mismatch") for name in sorted(lost)]
    assert all(
        row["detail"].endswith("(1000000000.0, 4998800.0, 1000001200.0, 5000000.0) lies nowhere on Earth")
        for row in found
    )


@pytest.mark.parametrize("subset", ["all", "present"])
def test_every_fault_is_one_row_and_stops_nothing(archive_copy: Path, tmp_path: Path, subset: Subset) -> None:
    names = patch_ids(archive_copy)
    faults = spoil(archive_copy)
    duplicate = next(patch for patch, (_, reason) in faults.items() if reason == "duplicate_id")
    gone = next(patch for patch, (_, reason) in faults.items() if reason == "missing_folder")
    absent = int(subset == "present")
    if absent:
        del faults[gone]
    plan = ingest(v2(archive_copy, subset), tmp_path / "store", 4)
    counts = publish_archive(plan)
    quarantine = pq.ParquetFile(plan.paths.table("quarantine") / "data-00000.parquet").read()
    assert quarantine.num_rows == len(faults)
    assert {row["patch_id"]: (row["path"], row["reason"]) for row in quarantine.to_pylist()} == faults
    assert all(row["detail"] for row in quarantine.to_pylist())
    assert plan.parts.done() == plan.shards.keys()
    good = sorted(set(names) - (faults.keys() - {duplicate}) - {gone})
    assert sorted(check_store(plan, archive_copy)) == good
    assert pq.read_table(plan.paths.table("patches"))["patch_id"].to_pylist() == good
    assert counts == IngestCounts(len(good), len(faults), absent, 0)
    assert counts.inputs == 24 + 1  # every patch, and one of them named twice


def test_v1_faults(tmp_path: Path) -> None:
    """What only v1 has: labels in a JSON per patch, and some that belong to no class."""
    archive = SmallArchive(tmp_path / "archive")
    names = [f"S2A_MSIL2A_20170613T101031_{row}_0" for row in range(7)]
    whole = {"labels": ["Water bodies", "Airports"], "acquisition_date": "2017-06-13 10:10:31"}
    archive.v1(names[0], whole, s1="S1A_0_0")
    archive.v1(names[1], json.dumps(whole) + "and more")
    archive.v1(names[2], whole | {"labels": ["Parking lots"]})
    archive.v1(names[3], whole | {"labels": ["Airports"]})
    archive.v1(names[4], whole)
    (archive.root / f"BigEarthNet-v1.0/{names[4]}/{names[4]}_labels_metadata.json").unlink()
    archive.v1(names[5], whole)
    os.truncate(archive.root / f"BigEarthNet-v1.0/{names[5]}/{names[5]}_B8A.tif", 100)
    (archive.root / "train.csv.bz2").write_bytes(bz2.compress("\n".join(names).encode()))
    plan = ingest(open_archive("bigearthnet-v1", archive.root), tmp_path / "store", 4, "bigearthnet-v1")
    counts = publish_archive(plan)
    quarantine = pq.ParquetFile(plan.paths.table("quarantine") / "data-00000.parquet").read().to_pylist()
    assert {row["patch_id"]: (row["path"].removeprefix("BigEarthNet-v1.0/"), row["reason"]) for row in quarantine} == {
        names[1]: (f"{names[1]}/{names[1]}_labels_metadata.json", "malformed_metadata"),
        names[2]: (f"{names[2]}/{names[2]}_labels_metadata.json", "unknown_label"),
        names[3]: (f"{names[3]}/{names[3]}_labels_metadata.json", "no_label"),
        names[4]: (f"{names[4]}/{names[4]}_labels_metadata.json", "no_metadata"),
        names[5]: (f"{names[5]}/{names[5]}_B8A.tif", "truncated"),
        names[6]: (names[6], "missing_folder"),
    }
    assert counts == IngestCounts(patches=1, quarantined=6, absent=0, pending=0)
    (row,) = pq.read_table(plan.paths.table("patches")).to_pylist()
    assert (row["patch_id"], row["labels"], row["acquired"]) == (names[0], ["Inland waters"], "2017-06-13")
    assert (row["has_s1"], row["has_map"], row["source_version"]) == (True, False, "bigearthnet-v1")
    s1 = ShardedStore(plan.paths.archive).read(row["shard"], "s1")[row["row"]]
    np.testing.assert_array_equal(s1, np.stack([archive.pixels["S1A_0_0", band] for band in S1.bands]))


def test_a_shard_done_again_gives_the_same_bytes(archive_copy: Path, tmp_path: Path) -> None:
    os.truncate(band_file(archive_copy, patch_ids(archive_copy)[0]), 0)
    plan = ingest(v2(archive_copy), tmp_path / "store")
    before = {path: content for path, (_, content) in snapshot(plan.paths.root).items()}
    worker = ShardIngester(v2(archive_copy), plan.format, plan.parts)
    for shard in sorted(plan.shards, reverse=True):
        worker.run(shard)
    assert {path: content for path, (_, content) in snapshot(plan.paths.root).items()} == before


def test_a_second_ingest_reads_no_pixels_and_writes_none(archive_copy: Path, tmp_path: Path) -> None:
    os.truncate(band_file(archive_copy, patch_ids(archive_copy)[0]), 0)
    plan = ingest(v2(archive_copy), tmp_path / "store")
    counts = publish_archive(plan)
    before = snapshot(plan.paths.archive, plan.paths.work, without=["counts.json"])
    tables = {path: content for path, (_, content) in snapshot(plan.paths.tables).items()}
    again = ingest(v2(archive_copy), tmp_path / "store")
    assert publish_archive(again) == counts
    assert snapshot(plan.paths.archive, plan.paths.work, without=["counts.json"]) == before
    assert {path: content for path, (_, content) in snapshot(plan.paths.tables).items()} == tables


def test_tables_do_not_depend_on_who_did_the_shards_and_when(archive_root: Path, tmp_path: Path) -> None:
    plans = []
    for name, order in (("one", 1), ("other", -1)):
        plan = make_plan(v2(archive_root), StorePaths(tmp_path / name), "bigearthnet-v2", SHARD_SIZE)
        for shard in sorted(plan.shards)[::order]:
            ShardIngester(v2(archive_root), plan.format, plan.parts).run(shard)
        publish_archive(plan)
        plans.append(plan)
    one, other = ({p.relative_to(x.paths.root): c for p, (_, c) in snapshot(x.paths.root).items()} for x in plans)
    assert one == other


def test_missing_shards_are_pending_and_the_tables_say_so(archive_root: Path, tmp_path: Path) -> None:
    plan = make_plan(v2(archive_root), StorePaths(tmp_path), "bigearthnet-v2", SHARD_SIZE)
    worker = ShardIngester(v2(archive_root), plan.format, plan.parts)
    assert publish_archive(plan) == IngestCounts(patches=0, quarantined=0, absent=0, pending=24)
    assert worker.run(1).patches == 4  # of 12 train patches in shards of 8
    assert publish_archive(plan) == IngestCounts(patches=4, quarantined=0, absent=0, pending=20)
    for table in ("patches", "quarantine"):
        metadata_of = pq.ParquetFile(plan.paths.table(table) / "data-00000.parquet").schema_arrow.metadata
        assert metadata_of[b"superscene.complete"] == b"false"


def test_absent_patches_are_counted_alone(archive_copy: Path, tmp_path: Path) -> None:
    names = patch_ids(archive_copy)
    for name in names[:5]:
        shutil.rmtree(band_file(archive_copy, name).parent)
    plan = ingest(v2(archive_copy, "present"), tmp_path / "store")
    assert publish_archive(plan) == IngestCounts(patches=19, quarantined=0, absent=5, pending=0)
    assert pq.read_table(plan.paths.table("quarantine")).num_rows == 0


@pytest.mark.parametrize("subset", ["all", "present"])
def test_what_was_deleted_since_is_still_counted_once(archive_copy: Path, tmp_path: Path, subset: Subset) -> None:
    """A stored patch stays a patch; a quarantined one stays in quarantine; so does a second row of the metadata."""
    bad, stored, twice = patch_ids(archive_copy)[:3]
    table = pq.ParquetFile(archive_copy / "metadata.parquet").read()
    again = [row for row in table.to_pylist() if row["patch_id"] == twice]
    rows = pa.Table.from_pylist(table.to_pylist() + again, table.schema)
    pq.write_table(rows, archive_copy / "metadata.parquet")
    os.truncate(band_file(archive_copy, bad), 0)
    expected = IngestCounts(patches=23, quarantined=2, absent=0, pending=0)
    assert publish_archive(ingest(v2(archive_copy, subset), tmp_path / "store")) == expected
    for name in (bad, stored, twice):
        shutil.rmtree(band_file(archive_copy, name).parent)
    plan = ingest(v2(archive_copy, subset), tmp_path / "store")
    assert publish_archive(plan) == expected
    quarantine = pq.read_table(plan.paths.table("quarantine")).to_pylist()
    assert sorted((row["patch_id"], row["reason"]) for row in quarantine) == sorted(
        [(bad, "truncated"), (twice, "duplicate_id")]
    )


def test_a_stray_folder_named_like_a_patch_is_an_input_of_its_own(archive_copy: Path, tmp_path: Path) -> None:
    name = patch_ids(archive_copy)[0]
    shutil.copytree(band_file(archive_copy, name).parent, archive_copy / "BigEarthNet-S2" / "stray" / name)
    plan = ingest(v2(archive_copy), tmp_path / "store")
    assert publish_archive(plan) == IngestCounts(patches=24, quarantined=1, absent=0, pending=0)
    (row,) = pq.read_table(plan.paths.table("quarantine")).to_pylist()
    assert (row["path"], row["reason"]) == (f"BigEarthNet-S2/stray/{name}", "no_metadata")


def test_a_lost_row_is_noticed(archive_root: Path, tmp_path: Path) -> None:
    plan = ingest(v2(archive_root), tmp_path)
    plan.parts.write(1, plan.parts.read(1).slice(1))
    with pytest.raises(PipelineError, match="24 inputs have a place, but 23 stored, 0 in quarantine, 0 pending"):
        publish_archive(plan)


def test_inputs_of_a_failed_shard_that_are_deleted_stay_pending(archive_copy: Path, tmp_path: Path) -> None:
    plan = make_plan(v2(archive_copy), StorePaths(tmp_path / "store"), "bigearthnet-v2", SHARD_SIZE)
    shutil.rmtree(band_file(archive_copy, patch_ids(archive_copy)[0]).parent)
    again = make_plan(v2(archive_copy), plan.paths, "bigearthnet-v2", SHARD_SIZE)
    assert publish_archive(again) == IngestCounts(patches=0, quarantined=0, absent=0, pending=24)
    assert publish_archive(ingest(v2(archive_copy), tmp_path / "store")) == IngestCounts(23, 1, 0, 0)


def test_counts_without_an_archive_are_those_of_the_last_ingest(archive_root: Path, tmp_path: Path) -> None:
    plan = ingest(v2(archive_root), tmp_path)
    alone = make_plan(None, plan.paths, "bigearthnet-v2", SHARD_SIZE)
    with pytest.raises(ConfigError, match=r"archive\.root"):
        publish_archive(alone)
    assert publish_archive(plan) == publish_archive(alone) == IngestCounts(24, 0, 0, 0)
