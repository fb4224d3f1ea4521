import hashlib
import os
import random
import time
from collections import Counter
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra import name_lookup
from infra.archives.layouts import open_archive
from infra.archives.model import BIGEARTHNET, INPUT_SCHEMA, PROBLEM_SCHEMA, Archive, Patch, PatchInput, Scan
from infra.archives.synthetic import write_synthetic_archive
from infra.bigearthnet.classes import NAMES
from infra.errors import ArchiveError, ConfigError, StoreError
from infra.storage import StorePaths
from infra.zarr_store import ShardedStore
from tasks import plan as plan_module
from tasks.ingest import IngestCounts, publish_archive
from tasks.plan import PLAN_SCHEMA, Plan, assign, make_plan, shard_inputs
from tests.infra.archives.picture_files import noise, write_picture
from tests.infra.archives.small_archive import write_tiff
from tests.tasks.small_store import band_file, ingest, metadata, patch_ids, snapshot, v2


def inputs_of(splits: dict[str, str]) -> pa.Table:
    rows = [
        {"patch_id": name, "split": split, "labels": ["Pastures"], "country": f"of {name}", "source": f"at/{name}"}
        for name, split in splits.items()
    ]
    return pa.Table.from_pylist(rows, INPUT_SCHEMA)


def by_hand(splits: dict[str, str], shard_size: int, shard: int) -> list[tuple[str, str, int, int]]:
    """(patch, split, shard, row): splits one after the other, patches by the SHA-256 of "0:<patch>"."""
    rows = []
    for split in ("train", "validation", "test", "all"):
        names = sorted(
            (name for name in splits if splits[name] == split),
            key=lambda name: hashlib.sha256(f"0:{name}".encode()).hexdigest(),
        )
        for start in range(0, len(names), shard_size):
            rows += [(name, split, shard, row) for row, name in enumerate(names[start : start + shard_size])]
            shard += 1
    return rows


@pytest.fixture(params=[False, True], ids=["at once", "in pieces"])
def pieces(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plans are made in pieces of thousands of rows: of two and three here."""
    if request.param:
        monkeypatch.setattr(plan_module, "_AT_ONCE", 2)
        monkeypatch.setattr(name_lookup, "_AT_ONCE", 3)


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize("shard_size", [1, 4, 7, 100])
@pytest.mark.parametrize("shuffle", range(3))
def test_places_are_those_of_the_hash_order_whatever_the_order_of_the_inputs(shard_size: int, shuffle: int) -> None:
    splits = {f"patch_{i}": "train" if i % 3 else "test" for i in range(23)} | {f"v{i}": "validation" for i in range(8)}
    items = list(splits.items())
    random.Random(shuffle).shuffle(items)
    table = assign(inputs_of(dict(items)), shard_size, first_shard=10)
    assert table.schema.equals(PLAN_SCHEMA)
    found = [(r["patch_id"], r["split"], r["shard"], r["row"]) for r in table.to_pylist()]
    assert found == by_hand(splits, shard_size, 10)
    assert all(
        r["source"] == f"at/{r['patch_id']}" and r["country"] == f"of {r['patch_id']}" for r in table.to_pylist()
    )


def test_an_archive_without_splits_has_the_one_split_all() -> None:
    splits = {f"p{i}": "all" for i in range(5)}
    found = [(r["patch_id"], r["split"], r["shard"], r["row"]) for r in assign(inputs_of(splits), 2, 0).to_pylist()]
    assert found == by_hand(splits, 2, 0)


def test_a_plan_s_shards_hold_every_input_once(archive_root: Path, tmp_path: Path) -> None:
    plan = make_plan(v2(archive_root), StorePaths(tmp_path), "bigearthnet-v2", 4)
    splits = {row["patch_id"]: row["split"] for row in metadata(archive_root)}
    found = [
        (source.patch_id, source.split, shard, row)
        for shard in plan.shards
        for row, source in shard_inputs(plan.parts, shard)
    ]
    assert found == by_hand(splits, 4, 0)
    assert plan.shards == {shard: split for _, split, shard, _ in found}
    assert Counter(plan.shards.values()) == {"train": 3, "validation": 2, "test": 2}  # 12, 6 and 6 patches
    assert plan.ingested() == []
    assert ShardedStore(plan.paths.archive).n_shards == 7
    with pytest.raises(ConfigError, match="shard 7"):
        shard_inputs(plan.parts, 7)


def test_inputs_come_back_as_the_scan_gave_them(archive_root: Path, tmp_path: Path) -> None:
    plan = make_plan(v2(archive_root), StorePaths(tmp_path), "bigearthnet-v2", 24)
    planned = [source for shard in plan.shards for _, source in shard_inputs(plan.parts, shard)]
    truth = {row["patch_id"]: row for row in metadata(archive_root)}
    assert len(planned) == len(truth)
    for source in planned:
        row = truth[source.patch_id]
        assert source == PatchInput(
            row["patch_id"],
            row["split"],
            tuple(name for name in NAMES if name in row["labels"]),
            row["country"],
            row["contains_seasonal_snow"],
            row["contains_cloud_or_shadow"],
            row["s1_name"],
            f"BigEarthNet-S2/{row['patch_id'].rsplit('_', 2)[0]}/{row['patch_id']}",
        )


@pytest.mark.usefixtures("pieces")
def test_a_grown_archive_starts_new_shards_and_leaves_the_old_alone(tmp_path: Path) -> None:
    root, store = tmp_path / "archive", tmp_path / "store"
    write_synthetic_archive(root, 10)
    first = ingest(v2(root), store, 4)
    old = {row["patch_id"]: row["split"] for row in metadata(root)}
    before = snapshot(store, without=["zarr.json"])  # which a resize rewrites
    write_synthetic_archive(root, 16)
    second = ingest(v2(root), store, 4)
    after = snapshot(store, without=["zarr.json"])
    assert {path: after[path] for path in before} == before
    assert first.shards.items() <= second.shards.items()
    new = {row["patch_id"]: row["split"] for row in metadata(root) if row["patch_id"] not in old}
    assert len(new) == 6
    table = second.parts
    found = [
        (row["patch_id"], row["split"], shard, row["row"])
        for shard in second.shards
        for row in table.read(shard).sort_by("row").to_pylist()
    ]
    assert found == by_hand(old, 4, 0) + by_hand(new, 4, len(first.shards))
    assert publish_archive(second) == IngestCounts(patches=16, quarantined=0, absent=0, pending=0)


def test_planning_again_writes_nothing(archive_root: Path, tmp_path: Path) -> None:
    first = make_plan(v2(archive_root), StorePaths(tmp_path), "bigearthnet-v2", 8)
    before = snapshot(tmp_path)
    second = make_plan(v2(archive_root), StorePaths(tmp_path), "bigearthnet-v2", 8)
    assert second.shards == first.shards
    assert snapshot(tmp_path) == before


def test_the_real_archive_is_planned_in_seconds(shared_data: Path) -> None:
    """Counts of the clean splits as Clasen et al. publish them; all of them counted by value_counts."""
    folder = shared_data / "bigearthnet_v2"
    columns = ["patch_id", "split", "labels", "country"]
    real = pa.concat_tables([pq.read_table(path, columns=columns) for path in sorted(folder.glob("metadata*.parquet"))])
    assert real.num_rows == 549_488
    empty = {f.name: real[f.name] if f.name in columns else pa.nulls(len(real), f.type) for f in INPUT_SCHEMA}
    inputs = pa.table(empty | {"source": real["patch_id"]}).cast(INPUT_SCHEMA)
    start = time.perf_counter()
    plan = assign(inputs, 512, 0)
    assert time.perf_counter() - start < 30
    clean = pq.read_table(folder / "metadata.parquet", columns=["split"])["split"].value_counts().to_pylist()
    assert {row["values"]: row["counts"] for row in clean} == {"train": 237_871, "validation": 122_342, "test": 119_825}
    expected = {row["values"]: row["counts"] for row in real["split"].value_counts().to_pylist()}
    shard, row = plan["shard"].to_numpy(), plan["row"].to_numpy()
    split = np.array(plan["split"].to_pylist())
    assert Counter(split.tolist()) == expected
    np.testing.assert_array_equal(np.unique(shard * 512 + row).size, 549_488)
    assert len(set(plan["patch_id"].to_pylist())) == 549_488
    next_shard = 0
    for name in ("train", "validation", "test"):
        whole, rest = divmod(expected[name], 512)
        sizes = np.bincount(shard[split == name])[next_shard:].tolist()
        assert sizes == [512] * whole + [rest] * (rest > 0)
        next_shard += len(sizes)


def test_another_layout_or_shard_size_is_refused(archive_root: Path, tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    make_plan(v2(archive_root), paths, "bigearthnet-v2", 8)
    before = snapshot(paths.archive, paths.work / "plan")
    with pytest.raises(ConfigError, match="another archive layout"):
        make_plan(v2(archive_root), paths, "bigearthnet-v1", 8)
    for archive in (v2(archive_root), None):
        with pytest.raises(ConfigError, match="shard_size 8, the configuration says 4"):
            make_plan(archive, paths, "bigearthnet-v2", 4)
    assert snapshot(paths.archive, paths.work / "plan") == before


def test_without_an_archive_the_store_s_own_plan_counts(store: Plan, tmp_path: Path) -> None:
    plan = make_plan(None, store.paths, "bigearthnet-v2", store.shard_size)
    assert (plan.shards, plan.scan) == (store.shards, None)
    assert plan.ingested("train") == [0, 1]
    assert plan.ingested("test", "validation") == [2, 3]
    assert plan.ingested() == [0, 1, 2, 3]
    with pytest.raises(ConfigError, match=r"archive\.root is not given"):
        make_plan(None, StorePaths(tmp_path), "bigearthnet-v2", 8)


@dataclass(frozen=True)
class Scanned:
    """An archive that was scanned already."""

    result: Scan
    version: ClassVar[str] = "scanned"

    def scan(self) -> Scan:
        return self.result

    def read(self, patch: PatchInput) -> Patch:
        raise NotImplementedError


@pytest.mark.parametrize("absent", [0, 7])
def test_an_archive_that_holds_nothing_is_refused(tmp_path: Path, absent: int) -> None:
    scan = Scan(BIGEARTHNET, INPUT_SCHEMA.empty_table(), PROBLEM_SCHEMA.empty_table(), absent, absent, excluded=0)
    archive: Archive = Scanned(scan)
    with pytest.raises(ArchiveError, match=f"holds no patch: {absent} are named"):
        make_plan(archive, StorePaths(tmp_path), "bigearthnet-v2", 8)


def test_a_store_that_cannot_be_written_says_so(archive_root: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(StoreError, match="a part of the path is a file"):
        make_plan(v2(archive_root), StorePaths(tmp_path / "file"), "bigearthnet-v2", 8)


def test_a_mended_input_gets_a_new_place(archive_copy: Path, tmp_path: Path) -> None:
    bad, still_bad = patch_ids(archive_copy)[:2]
    sound = band_file(archive_copy, bad).read_bytes()
    for patch in (bad, still_bad):
        os.truncate(band_file(archive_copy, patch), 0)
    first = ingest(v2(archive_copy), tmp_path / "store")
    assert publish_archive(first) == IngestCounts(patches=22, quarantined=2, absent=0, pending=0)
    before = snapshot(first.parts.folder, first.paths.work / "plan")
    band_file(archive_copy, bad).write_bytes(sound)

    planned = make_plan(v2(archive_copy), first.paths, "bigearthnet-v2", 8)
    new = max(planned.shards)
    assert planned.shards.keys() - first.shards.keys() == {new}
    assert [source.patch_id for _, source in shard_inputs(planned.parts, new)] == [bad]
    assert publish_archive(planned) == IngestCounts(patches=22, quarantined=1, absent=0, pending=1)

    second = ingest(v2(archive_copy), tmp_path / "store")
    assert second.shards == planned.shards  # planned once
    assert publish_archive(second) == IngestCounts(patches=23, quarantined=1, absent=0, pending=0)
    table = pq.read_table(first.paths.table("quarantine"))
    assert table.select(["patch_id", "reason"]).to_pylist() == [{"patch_id": still_bad, "reason": "truncated"}]
    after = snapshot(first.parts.folder, first.paths.work / "plan", without=["counts.json"])
    assert {path: after[path] for path in before if path.name != "counts.json"} == {
        path: value for path, value in before.items() if path.name != "counts.json"
    }
    archive = ShardedStore(first.paths.archive)
    valid = np.concatenate([archive.read(shard, "valid") for shard in second.shards])
    assert np.count_nonzero(valid) == 23
    assert valid[new * 8]


def test_a_shard_that_is_done_again_leaves_a_mended_input_in_its_new_place(archive_copy: Path, tmp_path: Path) -> None:
    bad = patch_ids(archive_copy)[0]
    sound = band_file(archive_copy, bad).read_bytes()
    os.truncate(band_file(archive_copy, bad), 0)
    first = ingest(v2(archive_copy), tmp_path / "store")
    band_file(archive_copy, bad).write_bytes(sound)
    ingest(v2(archive_copy), tmp_path / "store")
    for shard in first.shards:
        first.parts.path(shard).unlink()
    again = ingest(v2(archive_copy), tmp_path / "store")
    assert publish_archive(again) == IngestCounts(patches=24, quarantined=0, absent=0, pending=0)
    assert sorted(pq.read_table(first.paths.table("patches"))["patch_id"].to_pylist()) == patch_ids(archive_copy)


def test_an_input_that_lies_nowhere_is_not_taken_for_mended(archive_copy: Path, tmp_path: Path) -> None:
    """Its files can be read, its corner has no longitude: it stays in quarantine, in the place it has."""
    lost = patch_ids(archive_copy)[0]
    move(archive_copy, lost, (5.0e8, 5.0e8))
    first = ingest(v2(archive_copy), tmp_path / "store")
    expected = IngestCounts(patches=23, quarantined=1, absent=0, pending=0)
    assert publish_archive(first) == expected
    archive = ShardedStore(first.paths.archive)
    for shard in first.shards:
        rows = first.parts.read(shard)["row"].to_numpy()
        np.testing.assert_array_equal(np.flatnonzero(archive.read(shard, "valid")), rows)
        filled = archive.read(shard, "s2_10m").reshape(8, -1).any(axis=1)
        np.testing.assert_array_equal(np.flatnonzero(filled), rows)  # none of it is left
    second = ingest(v2(archive_copy), tmp_path / "store")
    assert second.shards == first.shards
    assert publish_archive(second) == expected


@pytest.mark.usefixtures("pieces")
@pytest.mark.parametrize(("line", "words"), [("a,validation,1,0", "another split"), ("a,train,1,1", "other labels")])
def test_a_table_that_has_changed_since_is_refused(tmp_path: Path, line: str, words: str) -> None:
    """A store keeps the labels that it was made with: new ones must not be taken for them."""
    root = tmp_path / "pictures"
    table = ["image,split,water,trees", "a,train,1,0", "b,validation,0,0"]
    for i, name in enumerate("abc"):
        write_picture(root / f"{name}.png", noise((8, 8, 3), seed=i))
    (root / "labels.csv").write_text("\n".join(table))
    first = ingest_table(root, tmp_path / "store")
    (root / "labels.csv").write_text("\n".join([*table, "c,train,0,1"]))  # the same, and one more
    grown = ingest_table(root, tmp_path / "store")
    assert sorted(grown.shards) == [*first.shards, 2]
    before = snapshot(tmp_path / "store")
    (root / "labels.csv").write_text("\n".join([table[0], line, table[2], "c,train,0,1", "d,train,1,1"]))
    with pytest.raises(ConfigError, match=f"{words} for 1 patches .* such as a: choose another store"):
        ingest_table(root, tmp_path / "store")
    assert snapshot(tmp_path / "store") == before


@pytest.mark.usefixtures("pieces")
def test_a_picture_in_quarantine_may_get_other_labels(tmp_path: Path) -> None:
    root = tmp_path / "pictures"
    for i, name in enumerate("ab"):
        write_picture(root / f"{name}.png", noise((8, 8, 3), seed=i))
    sound = (root / "a.png").read_bytes()
    (root / "a.png").write_bytes(sound[:-40])  # its header is whole, its pixels are not
    (root / "labels.csv").write_text("image,split,water\na,train,1\nb,train,0")
    ingest_table(root, tmp_path / "store")
    (root / "labels.csv").write_text("image,split,water\na,validation,0\nb,train,0")
    assert sorted(ingest_table(root, tmp_path / "store").shards.values()) == ["train"]  # still not readable
    (root / "a.png").write_bytes(sound)
    for _ in range(2):
        plan = ingest_table(root, tmp_path / "store")
        assert [row["patch_id"] for row in plan.parts.read(1).to_pylist()] == ["a"]
        assert (plan.shards[1], plan.parts.read(1)["labels"].to_pylist()) == ("validation", [[]])


def ingest_table(root: Path, store: Path) -> Plan:
    return ingest(open_archive("image-table", root), store, layout="image-table")


def move(root: Path, patch: str, corner: tuple[float, float]) -> None:
    """Give every file of a patch another corner."""
    import rasterio

    name = {row["patch_id"]: row["s1_name"] for row in metadata(root)}[patch]
    for file in [*root.rglob(f"{patch}_*.tif"), *root.rglob(f"{name}_*.tif")]:
        with rasterio.open(file) as source:
            pixels: np.ndarray[Any, Any] = source.read(1)
            gsd, crs = source.res[0], source.crs
        write_tiff(file, pixels, gsd, corner, crs=crs)
