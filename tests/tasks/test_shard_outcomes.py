"""The table of a stage's shards, counted by hand."""

from infra.ray_pool import Devices, Done, Failed
from tasks.shard_outcomes import FAILED_ROWS, SLOWEST_ROWS, ShardOutcomes, described
from tasks.stage import ShardCount, ShardFailure, StageReport, silent

CORES = Devices("cpu", 2.0, 2)


def test_failed_shards_come_first_then_the_slowest() -> None:
    found = ShardOutcomes("predict none", 5)
    found.heard(Done(0, ShardCount(4), 1.0, CORES, 1))
    found.heard(Failed(3, 3, "ValueError: no"))
    found.heard(Done(1, ShardCount(3), 2.0, CORES, 2))
    assert found.rows() == [
        {"shard": 3, "outcome": "failed", "patches": None, "seconds": None, "attempts": 3, "error": "ValueError: no"},
        {"shard": 1, "outcome": "done", "patches": 3, "seconds": 2.0, "attempts": 2, "error": ""},
        {"shard": 0, "outcome": "done", "patches": 4, "seconds": 1.0, "attempts": 1, "error": ""},
    ]


def test_a_table_of_thousands_of_shards_is_a_page() -> None:
    found = ShardOutcomes("ingest", 4000)
    for shard in range(2000):
        found.heard(Done(shard, ShardCount(1), float(shard), CORES))
        found.heard(Failed(2000 + shard, 1, "x" * 10_000))
    rows = found.rows()
    assert [row["outcome"] for row in rows] == ["failed"] * FAILED_ROWS + ["done"] * SLOWEST_ROWS
    assert [row["shard"] for row in rows[FAILED_ROWS:]] == [*range(1999, 1999 - SLOWEST_ROWS, -1)]
    assert max(len(str(row["error"])) for row in rows) == 300


def test_an_interrupted_attempt_keeps_what_it_did() -> None:
    found = ShardOutcomes("predict none", 10)
    found.watching(silent)("predict none", 0, 7, 0)  # three were done before
    found.heard(Done(4, ShardCount(4), 1.5, CORES))
    found.heard(Done(5, ShardCount(2), 0.5, CORES))
    found.heard(Failed(6, 3, "bad"))
    failures = (ShardFailure("predict none", 6, "bad"),)
    assert found.interrupted(9.0) == StageReport("predict none", 2, 3, 6, 9.0, failures, CORES, 2.0)


def test_an_attempt_that_ended_before_it_looked_has_skipped_nothing() -> None:
    assert ShardOutcomes("predict none", 10).interrupted(9.0) == StageReport("predict none", seconds=9.0)


def test_the_progress_of_fits_counts_epochs() -> None:
    """Of five seeds three are missing, of four epochs each."""
    found = ShardOutcomes("train", 5, steps=4)
    found.watching(silent)("train", 5, 12, 0)
    found.heard(Done(2, ShardCount(8), 3.0, CORES))
    assert found.interrupted(9.0) == StageReport("train", 1, 2, 8, 9.0, (), CORES, 3.0)


def test_the_heading_counts_all_shards() -> None:
    report = StageReport("train none resnet18", 1, 2, 44, 6.25, (ShardFailure("train", 7, "loss is not finite"),))
    assert described(report) == "train none resnet18: 1 done, 2 done before, 1 failed; 44 patches in 6.2 s"
