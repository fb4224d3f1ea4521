import json
import subprocess
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
import torch

from infra.ray_pool import Devices
from infra.storage import StorePaths
from infra.tables import RUNS, read_table
from tasks.ingest import IngestCounts
from tasks.live_run import live_record, live_stage
from tasks.run_record import RunRecord, git_commit, published_configs
from tasks.stage import ShardFailure, StageReport, silent

START = datetime(2026, 11, 5, 6, 7, 8, 90_000, tzinfo=UTC)


def record_of(paths: StorePaths) -> RunRecord:
    return RunRecord(
        paths,
        '{"store": "here"}',
        START,
        startup_seconds=4.5,
        counts=IngestCounts(patches=20, quarantined=3, absent=2, pending=1),
        configs=["a1b2c3d4", "b1b2c3d4"],
    )


def test_a_run_s_row(tmp_path: Path) -> None:
    record = record_of(StorePaths(tmp_path))
    held = Devices("H200", count=3.0, workers=2)
    record.add(StageReport("ingest", done=2, skipped=1, patches=20, seconds=4.0, devices=held, busy_seconds=6.0))
    record.add(StageReport("predict none", failures=(ShardFailure("predict none", 1, "it broke"),)))
    record.publish()
    table = read_table(tmp_path / "tables" / "runs")
    assert table.schema.remove_metadata().equals(RUNS)
    (row,) = table.to_pylist()
    assert row.pop("ended") > START
    versions = json.loads(row.pop("versions"))
    assert versions["torch"] == torch.__version__.split("+")[0]
    assert {"superscene", "python", "ray", "prefect", "zarr", "pyarrow", "timm", "rasterio", "numpy"} < versions.keys()
    zero = {"done": 0, "skipped": 0, "failed": 0, "patches": 0, "seconds": 0.0, "patches_per_second": 0.0}
    none = {"device": None, "devices": 0.0, "workers": 0, "device_hours": 0.0, "busy_device_hours": 0.0}
    assert row == {
        "run_id": "20261105T060708090000Z",
        "started": START,
        "status": "incomplete",
        "configs": ["a1b2c3d4", "b1b2c3d4"],
        "run_yaml": '{"store": "here"}',
        "git_commit": git_commit(),
        "startup_seconds": 4.5,
        "inputs": 26,
        "patches": 20,
        "quarantined": 3,
        "absent": 2,
        "stages": [
            {
                **zero,
                "stage": "ingest",
                "done": 2,
                "skipped": 1,
                "patches": 20,
                "seconds": 4.0,
                "patches_per_second": 5,
                "device": "H200",
                "devices": 3.0,
                "workers": 2,
                "device_hours": pytest.approx(3 * 4 / 3600),  # held
                "busy_device_hours": pytest.approx(6 * 1.5 / 3600),  # a worker has 1.5 of them
            },
            {**zero, **none, "stage": "predict none", "failed": 1},
        ],
    }


def test_a_run_is_complete_when_no_shard_failed(tmp_path: Path) -> None:
    record = record_of(StorePaths(tmp_path))
    assert (record.complete, record.failures) == (True, [])
    record.add(StageReport("ingest", done=2))
    assert record.complete
    failure = ShardFailure("train", 0, "loss")
    record.add(StageReport("train", failures=(failure,)))
    record.add(StageReport("predict", done=1))
    assert (record.complete, record.failures) == (False, [failure])


def test_the_live_record_follows_the_run(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    assert live_record(paths) is None
    record = record_of(paths)
    record.outputs.append({"title": "ingest", "stage": "ingest", "config": "a1b2c3d4", "shards": [0, 1]})
    states = []
    steps: tuple[Callable[[], None], ...] = (
        lambda: record.save("running"),
        lambda: record.add(StageReport("ingest", done=2)),
        record.publish,
        lambda: record.save("stopped"),
    )
    for step in steps:
        step()
        live = live_record(paths)
        assert live is not None
        assert live["outputs"] == record.outputs
        states.append((live["status"], len(live["stages"])))
    assert states == [("running", 0), ("running", 1), ("complete", 1), ("stopped", 1)]


@pytest.mark.parametrize("other", [{"run_id": "another"}, {"epochs": 3}, {"patches": None}])
def test_progress_of_another_run_or_version_is_no_live_stage(tmp_path: Path, other: dict[str, object]) -> None:
    """A field too many, or one too few (None)."""
    paths = StorePaths(tmp_path)
    record = record_of(paths)
    assert live_stage(paths, record.run_id) is None
    record.watching(silent)("ingest", 0, 4, 0)
    live = live_stage(paths, record.run_id)
    assert live is not None
    assert (live.stage, live.done, live.total) == ("ingest", 0, 4)
    (path,) = paths.work.glob("progress.json")
    content = {**json.loads(path.read_text()), **other}
    path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))
    assert live_stage(paths, record.run_id) is None


def test_a_stage_that_a_retried_task_went_through_twice_is_counted_once(tmp_path: Path) -> None:
    """4 shards: 1 was done before; an error ends the first attempt after 1 was done and 1 failed; then 2 are done."""
    record = record_of(StorePaths(tmp_path))
    record.add(StageReport("train backbone resnet18", done=1))
    record.begin_task()
    record.add(StageReport("train backbone resnet18", skipped=1))  # another task's: the same backbone, asked for again
    failure = ShardFailure("predict none", 2, "no")
    record.count(StageReport("predict none", 1, 1, 4, 10.0, (failure,), None, 3.0))
    record.add(StageReport("predict none", 2, 2, 8, 5.0, (), Devices("cpu", 2, 2), 8.0))
    assert record.stages == [
        StageReport("train backbone resnet18", done=1),
        StageReport("train backbone resnet18", skipped=1),
        StageReport("predict none", 3, 1, 12, 15.0, (), Devices("cpu", 2, 2), 11.0),
    ]
    assert record.complete


def test_published_configs_come_last_run_first(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    assert published_configs(paths) == []
    for hours, configs in ((1, ["a"]), (3, ["c", "c", "d"]), (2, [])):
        RunRecord(paths, "{}", START + timedelta(hours=hours), configs=configs).publish()
    RunRecord(paths, "{}", START + timedelta(hours=9), configs=["never"]).save("stopped")
    assert published_configs(paths) == [{"c", "d"}, set(), {"a"}]


def test_the_commit_is_git_s() -> None:
    root = Path(__file__).resolve().parents[2]
    if not (root / ".git").exists():
        pytest.skip("not a checkout")
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=root, capture_output=True, text=True, check=True)
    assert git_commit() == head.stdout.strip()
