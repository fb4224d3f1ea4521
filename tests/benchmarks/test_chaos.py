"""Chaos: its schedule, its comparison and its sums by hand; and, slow, a small round of the whole."""

import errno
import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import zarr

from benchmarks.chaos.comparison import differences, table_differences
from benchmarks.chaos.report import End, Round, retries, total
from benchmarks.chaos.schedule import KINDS, MEAN_SECONDS, S3_FAULTS, s3_fault, schedule, victim
from benchmarks.chaos.world import small_disk
from infra.object_store import ObjectPath
from infra.storage import write_bytes

PROJECT = Path(__file__).parents[2]


def test_a_seed_gives_one_schedule_in_the_order_of_time() -> None:
    found = schedule(3, 180.0)
    assert found == schedule(3, 180.0) != schedule(4, 180.0)
    assert [fault.at for fault in found] == sorted(fault.at for fault in found)
    assert all(0 <= fault.at < 180 and 0 <= fault.choice < 1 for fault in found)
    assert Counter(fault.kind for fault in found) == {"actor": 12, "raylet": 4, "driver": 4, "disk": 2, "s3": 15}


def test_a_kind_keeps_its_moments_whatever_the_others_are() -> None:
    found = schedule(3, 180.0)
    assert schedule(3, 180.0, ("driver",)) == [fault for fault in found if fault.kind == "driver"]
    assert {fault.kind for fault in schedule(3, 1.0)} == set(KINDS) == set(MEAN_SECONDS), "one of each at least"


def test_moments_are_uniform_over_the_time() -> None:
    moments = [fault.at for seed in range(300) for fault in schedule(seed, 180.0, ("actor",))]
    counts, _ = np.histogram(moments, bins=10, range=(0, 180))
    assert counts.sum() == 300 * 12
    assert (np.abs(counts - 360) < 5 * np.sqrt(360)).all()


def test_chances_cover_all_choices_evenly() -> None:
    drawn = [s3_fault((i + 0.5) / 2400) for i in range(2400)]
    assert Counter(kind for kind, _, _ in drawn) == dict.fromkeys(S3_FAULTS, 480)
    assert Counter(every for _, _, every in drawn) == dict.fromkeys((1, 2, 3, 5), 600)
    assert (min(times for _, times, _ in drawn), max(times for _, times, _ in drawn)) == (3, 14)
    assert [victim(["a", "b", "c"], choice) for choice in (0.0, 0.34, 0.999)] == ["a", "b", "c"]


@pytest.fixture
def reference(tmp_path: Path) -> Path:
    """A store of two tables, a run and an array, made by hand."""
    store = tmp_path / "reference"
    table = pa.table({"patch_id": ["a", "b"], "prob": [0.25, float("nan")], "seconds": [1.0, 2.0]})
    run = pa.table(
        {
            "run_id": ["1"],
            "configs": [["c2", "c1"]],
            "inputs": [2],
            "patches": [2],
            "quarantined": [0],
            "absent": [0],
            "status": ["complete"],
        }
    )
    for name, rows in (("predictions/sr=none/data-00000", table), ("runs/run-1", run)):
        path = store / "tables" / f"{name}.parquet"
        path.parent.mkdir(parents=True)
        pq.write_table(rows, path)
    group = zarr.create_group(store / "archive.zarr")
    array = group.create_array("B02", shape=(8, 4, 4), chunks=(2, 4, 4), shards=(4, 4, 4), dtype="uint16")
    array[:] = np.arange(128).reshape(8, 4, 4)
    return store


@pytest.fixture
def store(reference: Path) -> Path:
    return Path(shutil.copytree(reference, reference.with_name("store")))


def rewrite(store: Path, name: str, column: str, value: object) -> None:
    """Change the first row of a table."""
    path = store / "tables" / name
    rows = pq.ParquetFile(path).read()
    first, *others = rows[column].to_pylist()
    assert first != value
    changed = pa.array([value, *others], rows.schema.field(column).type)
    pq.write_table(rows.set_column(rows.column_names.index(column), column, changed), path)


PREDICTIONS = "predictions/sr=none/data-00000.parquet"


def test_equal_stores_differ_in_nothing_and_times_do_not_count(store: Path, reference: Path) -> None:
    assert differences(store, reference) == []
    rewrite(store, PREDICTIONS, "seconds", 7.0)
    rewrite(store, "runs/run-1.parquet", "run_id", "2")
    assert (store / "tables" / PREDICTIONS).read_bytes() != (reference / "tables" / PREDICTIONS).read_bytes()
    assert differences(store, reference) == []


def test_one_other_value_of_a_table_is_found(store: Path, reference: Path) -> None:
    rewrite(store, PREDICTIONS, "prob", 0.25000000000000006)
    (found,) = differences(store, reference)
    assert found.startswith(f"tables/{PREDICTIONS}: row 0 and perhaps others: prob is 0.25000000000000006, not 0.25")


def test_one_other_pixel_is_found_and_where(store: Path, reference: Path) -> None:
    zarr.open_array(store / "archive.zarr" / "B02", mode="r+")[5, 2, 3] = 0
    assert differences(store, reference) == ["archive.zarr/B02: 1 values differ, the first at (5, 2, 3)"]


def test_other_bytes_of_the_same_values_are_no_difference(store: Path, reference: Path) -> None:
    path = store / "tables" / PREDICTIONS
    rows = pq.ParquetFile(path).read()
    pq.write_table(rows, path, compression="zstd")
    assert differences(store, reference) == []


def test_what_is_missing_and_what_is_too_much_is_named(store: Path, reference: Path) -> None:
    (store / "tables" / PREDICTIONS).rename(store / "tables" / "rest.parquet")
    (store / "archive.zarr" / ".x.partial").touch()
    (store / "work").mkdir()
    (store / "work" / "lease.json").touch()
    assert differences(store, reference) == [
        "archive.zarr/.x.partial is there, the reference has none",
        "tables/rest.parquet is there, the reference has none",
        f"tables/{PREDICTIONS} is missing",
    ]


def test_another_schema_or_number_of_rows_is_told() -> None:
    rows = pa.table({"a": [1, 2]})
    assert table_differences(rows.slice(1), rows) == ["1 rows instead of 2"]
    assert table_differences(rows.replace_schema_metadata({"superscene.complete": "false"}), rows)
    assert table_differences(rows.cast(pa.schema([("a", pa.int32())])), rows)


def test_what_the_last_runs_did_is_compared(store: Path, reference: Path) -> None:
    rewrite(store, "runs/run-1.parquet", "configs", ["c1", "c2"])
    assert differences(store, reference) == [], "their order follows from restarts"
    rewrite(store, "runs/run-1.parquet", "status", "incomplete")
    rewrite(store, "runs/run-1.parquet", "quarantined", 1)
    assert differences(store, reference) == [
        "tables/runs: quarantined is 1, not 0",
        "tables/runs: status is incomplete, not complete",
    ]


def test_a_store_on_object_storage_is_compared_with_a_folder(s3_folder: ObjectPath, store: Path) -> None:
    for path in store.rglob("*"):
        if path.is_file():
            write_bytes(s3_folder / path.relative_to(store).as_posix(), path.read_bytes())
    assert differences(s3_folder, store) == []
    zarr.open_array(store / "archive.zarr" / "B02", mode="r+")[7, 0, 0] = 9
    assert differences(s3_folder, store) == ["archive.zarr/B02: 1 values differ, the first at (7, 0, 0)"]


def test_a_log_tells_of_shards_that_were_begun_again() -> None:
    log = (
        "ingest: 3 to do\nshard 3, 1 of 3 attempts used: the process died: SIGKILL\n"
        "2026-01-01 WARNING shard 12, 0 of 3 attempts used: the node was lost: it is gone\n"
        "shard 3, 2 of 3 attempts used: the process died: SIGKILL\n"
        "shard 4, 1 of 3 attempts used: TransientError: s3://b/a: status 503\n"
    )
    again = {"the process died": 2, "the node was lost": 1, "object storage or another passing error": 1}
    assert retries(log) == again


def test_sums_over_rounds() -> None:
    one = Round(1, 100.0, 60.0, Counter(actor=3, driver=1), 1, 5.0, Counter({"status 503": 7, "cut": 2}))
    one.ends += [End(40.0, -9, killed=True, words=""), End(60.0, 0, killed=False, words="x")]
    two = Round(2, 50.0, 60.0, retries=Counter({"the process died": 4}), faults=["wrong"])
    two.ends.append(End(50.0, 2, killed=False, words="superscene: the disk is full"))
    assert (one.lost_seconds, two.lost_seconds) == (40.0, -10.0)
    assert [end.why for end in (*one.ends, *two.ends)] == ["killed", "done", "exit 2: superscene: the disk is full"]
    assert total([one, two]) == {
        "rounds": 2,
        "kills": 4,
        "disk_fills": 1,
        "s3_faults": 9,
        "driver_starts": 3,
        "shard_retries": 4,
        "seconds": 150.0,
        "lost_seconds": 30.0,
        "faults_of_the_result": 1,
    }
    assert json.loads(json.dumps(one.as_json()))["ends"][0]["code"] == -9


def test_a_small_disk_is_filled_and_freed(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", 2) as disk:
        if not disk.limited:
            pytest.skip("mounting a small file system is not permitted here")
        disk.fill()
        with pytest.raises(OSError, match="No space") as caught:
            (disk.folder / "file").write_bytes(bytes(8192))
        assert caught.value.errno == errno.ENOSPC
        assert disk.free() > 0
        (disk.folder / "file").write_bytes(bytes(8192))


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_small_run_under_chaos_ends_as_one_left_alone(tmp_path: Path) -> None:
    """Seed 1 loses a node in the first second; what else is hit depends on the machine's speed."""
    out = tmp_path / "chaos.json"
    options = ["--patches", "160", "--shard-size", "16", "--minutes", "0.5", "--seed", "1"]
    command = [sys.executable, "-m", "benchmarks.chaos", *options, "--folder", str(tmp_path / "chaos")]
    said = subprocess.run(
        [*command, "--out", str(out)], capture_output=True, text=True, cwd=PROJECT, timeout=1700, check=False
    )
    assert said.returncode == 0, said.stdout + said.stderr
    result = json.loads(out.read_text())
    first = result["rounds"][0]
    assert first["killed"]["raylet"]
    assert first["ends"][-1]["code"] == 0
    assert result["total"]["faults_of_the_result"] == 0
    assert not result["faults"]
    assert f"seed 1, start {len(first['ends'])}, " in said.stdout
