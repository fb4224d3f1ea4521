import time
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from infra.errors import StoreError
from infra.parts import StageParts
from infra.storage import StorePaths, locked_store
from tasks.ingest import IngestCounts
from tasks.run_record import RunRecord
from tasks.stage import silent
from tasks.status import StageStatus, StoreStatus, store_status

ROWS = pa.table({"patch_id": ["a"]})


def test_done_missing_and_failed_are_told_apart(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    ingest, predictions = StageParts(paths, "ingest", "a1b2c3d4"), StageParts(paths, "predictions", "b1b2c3d4")
    record = RunRecord(paths, "{}", datetime(2026, 11, 5, tzinfo=UTC), counts=IngestCounts(20, 3, 2, 1))
    record.outputs += [
        {"title": "ingest", "stage": "ingest", "config": "a1b2c3d4", "shards": [0, 1, 2, 3]},
        {"title": "predict none", "stage": "predictions", "config": "b1b2c3d4", "shards": [0, 1]},
    ]
    record.save("running")
    for shard in (0, 2, 9):  # 9 is of an earlier run
        ingest.write(shard, ROWS)
    ingest.write_failure(1, 3, "OSError: it broke")
    ingest.write_failure(2, 1, "done by another run since")
    ingest.write_failure(0, 1, "a failure")
    ingest.write(0, ROWS)
    with locked_store(paths):
        assert store_status(paths).state == "running"
    assert store_status(paths) == StoreStatus(
        "20261105T000000000000Z",
        "stopped",  # nobody holds the store any more
        patches=20,
        quarantined=3,
        stages=(
            StageStatus("ingest", "a1b2c3d4", done=2, missing=2, failures={1: "OSError: it broke"}),
            StageStatus("predict none (predictions)", "b1b2c3d4", done=0, missing=2, failures={}),
        ),
    )
    for shard in (0, 1):
        predictions.write(shard, ROWS)
    record.save("complete")
    status = store_status(paths)
    assert status.state == "complete"
    assert (status.stages[1].done, status.stages[1].missing) == (2, 0)


def test_a_folder_without_a_run_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no run"):
        store_status(StorePaths(tmp_path))


def test_of_a_run_that_lives_it_tells_how_far_its_stage_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """30 of 120 shards in a minute: 256 patches a second, three minutes left."""
    paths = StorePaths(tmp_path)
    clock = 1000.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    record = RunRecord(paths, "{}", datetime(2026, 11, 5, tzinfo=UTC))
    record.save("running")
    with locked_store(paths):
        assert store_status(paths).live is None, "no stage has begun"
        tell = record.watching(silent)
        tell("ingest", 0, 120, 0)
        begun = store_status(paths).live
        assert begun is not None
        assert (begun.stage, begun.done, begun.total, begun.patches_per_second, begun.seconds_left) == (
            *("ingest", 0, 120, 0.0),
            None,
        )
        clock += 60.0
        tell("ingest", 30, 120, 30 * 512)
        clock += 1.0
        tell("ingest", 31, 120, 31 * 512)  # too soon to be written down
        live = store_status(paths).live
        assert live is not None
        assert (live.done, live.patches_per_second, live.seconds_left) == (30, 256.0, 180.0)
        assert abs(live.written - time.time()) < 60
        tell("ingest", 120, 120, 120 * 512)
        assert store_status(paths).live is None, "tables are being published"
        tell("predict none", 0, 0, 0)
        assert store_status(paths).live is None, "all was done before"
        record.watching(silent)("predict none", 1, 4, 512)
        clock += 10.0
        RunRecord(paths, "{}", datetime(2026, 11, 6, tzinfo=UTC)).save("running")
        assert store_status(paths).live is None, "that was another run"
    record.save("running")
    assert store_status(paths).live is None, "nobody holds the store"


def test_what_lives_is_never_ahead_of_the_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run does its second shard while the status is being read."""
    paths = StorePaths(tmp_path)
    parts = StageParts(paths, "ingest", "a1b2c3d4")
    record = RunRecord(paths, "{}", datetime(2026, 11, 5, tzinfo=UTC))
    record.outputs.append({"title": "ingest", "stage": "ingest", "config": "a1b2c3d4", "shards": [0, 1, 2]})
    record.save("running")

    def run_on(shard: int) -> None:
        parts.write(shard, ROWS)
        monkeypatch.setattr("tasks.run_record._LIVE_SECONDS", -1.0)
        record.watching(silent)("ingest", shard + 1, 3, 0)

    read = StageParts.done

    def read_and_run_on(its_parts: StageParts) -> set[int]:
        found = read(its_parts)
        run_on(1)
        return found

    run_on(0)
    monkeypatch.setattr(StageParts, "done", read_and_run_on)
    with locked_store(paths):
        status = store_status(paths)
    assert status.live is not None
    assert (status.live.done, status.stages[0].done) == (1, 1)


def test_progress_is_told_on_to_whoever_was_told_before(tmp_path: Path) -> None:
    told: list[tuple[str, int, int, int]] = []
    record = RunRecord(StorePaths(tmp_path), "{}", datetime(2026, 11, 5, tzinfo=UTC))
    tell = record.watching(lambda *now: told.append(now))
    calls = [("ingest", done, 3, 512 * done) for done in range(4)]
    for call in calls:
        tell(*call)
    assert told == calls


def test_of_the_whole_archive_it_takes_a_moment_and_writes_nothing(tmp_path: Path) -> None:
    """549,488 patches are 1,074 shards; twelve stages have parts of each, and side tables."""
    paths = StorePaths(tmp_path)
    record = RunRecord(paths, "{}", datetime(2026, 11, 5, tzinfo=UTC))
    shards = list(range(1074))
    for i in range(12):
        parts = StageParts(paths, f"stage-{i}", "a1b2c3d4")
        parts.side_path("quality", 0).parent.mkdir(parents=True)
        for shard in shards[i:]:
            parts.path(shard).touch()
            parts.side_path("quality", shard).touch()
        record.outputs.append({"title": f"s{i}", "stage": parts.stage, "config": parts.config, "shards": shards})
    record.save("running")

    def everything() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}

    with locked_store(paths):
        before = everything()
        begun = time.monotonic()
        status = store_status(paths)
        seconds = time.monotonic() - begun
        assert everything() == before
    assert [(stage.done, stage.missing) for stage in status.stages] == [(1074 - i, i) for i in range(12)]
    assert seconds < 2
