from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from infra.errors import StoreError
from infra.parts import StageParts
from infra.storage import StorePaths, locked_store
from tasks.ingest import IngestCounts
from tasks.run_record import RunRecord
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
