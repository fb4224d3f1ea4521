import os
import time
from collections.abc import Callable, Generator, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.errors import ArchiveError, ConfigError, StoreError, TrainingError, TransientError, WeightsError
from infra.parts import StageParts
from infra.ray_cluster import cluster
from infra.ray_pool import Devices, Done, Failed, Resources
from infra.storage import StorePaths
from tasks import stage as stage_module
from tasks.stage import ShardCount, ShardFailure, StageReport, both_attempts, run_fits, run_stage
from tests.infra.log_lines import objects, written
from tests.tasks.stage_workers import PartWriter

RESOURCES = Resources(actors=2)
DEVICES = Devices("cpu", count=8.0, workers=2)


@pytest.fixture
def outputs(tmp_path: Path) -> list[StageParts]:
    """What one call of the stage writes; the first is written last."""
    return [StageParts(StorePaths(tmp_path), stage, "abcdef01") for stage in ("predict", "explain")]


class FakePool:
    """Stands for run_pool: writes the parts that a worker would, and ends the items as told."""

    def __init__(self, outputs: Sequence[StageParts], failing: dict[int, str], patches: int = 5) -> None:
        self.outputs, self.failing, self.patches = outputs, failing, patches
        self.asked: list[int] = []

    def __call__(
        self, build: Callable[[], Any], items: Sequence[int], resources: Resources
    ) -> Iterator[Done[ShardCount] | Failed]:
        assert resources is RESOURCES
        self.asked = list(items)
        for item in reversed(items):
            if item in self.failing:
                yield Failed(item, 3, self.failing[item])
            else:
                for parts in self.outputs:
                    parts.write(item, pa.table({"a": [item]}))
                yield Done(item, ShardCount(self.patches), 30.0, DEVICES)


def run(
    monkeypatch: pytest.MonkeyPatch,
    outputs: Sequence[StageParts],
    shards: Sequence[int],
    failing: dict[int, str] | None = None,
) -> tuple[StageReport, list[int], list[tuple[str, int, int, int]]]:
    """Run the stage on a fake pool; return the report, the shards asked for, and what the progress was told."""
    pool = FakePool(outputs, failing or {})
    told: list[tuple[str, int, int, int]] = []

    def tell(stage: str, done: int, total: int, patches: int) -> None:
        told.append((stage, done, total, patches))

    monkeypatch.setattr(stage_module, "run_pool", pool)
    report = run_stage("predict hat", PartWriter, outputs, shards, RESOURCES, tell)  # type: ignore[arg-type]
    return report, pool.asked, told


def test_a_shard_that_another_attempt_ended_after_all_is_done(
    monkeypatch: pytest.MonkeyPatch, outputs: list[StageParts]
) -> None:
    """A worker on a node that was called lost writes both parts of shard 1 and removes its input; one of shard 2."""

    def pool(build: object, items: Sequence[int], resources: Resources) -> Iterator[Failed]:
        for parts in outputs:
            parts.write(1, pa.table({"a": [1]}))
        outputs[0].write(2, pa.table({"a": [2]}))
        for item in items:
            yield Failed(item, 1, "FileNotFoundError: the input is gone")

    monkeypatch.setattr(stage_module, "run_pool", pool)
    report = run_stage("ingest", PartWriter, outputs, [1, 2], RESOURCES)  # type: ignore[arg-type]
    assert (report.done, [failure.shard for failure in report.failures]) == (1, [2])
    assert outputs[-1].failures() == {2: "FileNotFoundError: the input is gone"}


def test_done_skipped_and_failed_are_counted_apart(monkeypatch: pytest.MonkeyPatch, outputs: list[StageParts]) -> None:
    for parts in outputs:
        parts.write(0, pa.table({"a": [0]}))
        parts.write(4, pa.table({"a": [4]}))
    report, asked, told = run(monkeypatch, outputs, [0, 1, 2, 3, 4, 5], {3: "ValueError: x"})
    assert asked == [1, 2, 3, 5]
    assert (report.stage, report.done, report.skipped, report.patches) == ("predict hat", 3, 2, 15)
    assert report.failures == (ShardFailure("predict hat", 3, "ValueError: x"),)
    assert not report.complete
    assert report.patches_per_second == pytest.approx(15 / report.seconds)
    assert report.devices == DEVICES
    assert report.device_hours == pytest.approx(8 * report.seconds / 3600)
    assert report.busy_device_hours == pytest.approx(3 * 30 * 4 / 3600)  # three shards, a worker has four cores
    assert told == [
        ("predict hat", 0, 4, 0),
        ("predict hat", 1, 4, 5),  # 5
        ("predict hat", 2, 4, 5),  # 3 failed
        ("predict hat", 3, 4, 10),  # 2
        ("predict hat", 4, 4, 15),  # 1
    ]


def test_the_next_run_does_what_failed_and_removes_its_note(
    monkeypatch: pytest.MonkeyPatch, outputs: list[StageParts]
) -> None:
    run(monkeypatch, outputs, range(4), {1: "ValueError: x", 2: "the process died: y"})
    assert outputs[-1].failures() == {1: "ValueError: x", 2: "the process died: y"}
    report, asked, _ = run(monkeypatch, outputs, range(4), {2: "ValueError: z"})
    assert asked == [1, 2]
    assert (report.done, report.skipped, len(report.failures)) == (1, 2, 1)
    assert outputs[-1].failures() == {2: "ValueError: z"}
    report, asked, _ = run(monkeypatch, outputs, range(4))
    assert asked == [2]
    assert report.complete
    assert [parts.failures() for parts in outputs] == [{}, {}]


def test_a_shard_is_done_when_all_its_parts_are_there(
    monkeypatch: pytest.MonkeyPatch, outputs: list[StageParts]
) -> None:
    outputs[0].write(0, pa.table({"a": [0]}))
    outputs[1].write(1, pa.table({"a": [1]}))
    for parts in outputs:
        parts.write(2, pa.table({"a": [2]}))
        parts.write(9, pa.table({"a": [9]}))  # of another plan
    report, asked, _ = run(monkeypatch, outputs, [0, 1, 2])
    assert asked == [0, 1]
    assert (report.done, report.skipped) == (2, 1)


def test_a_stage_with_nothing_to_do_took_no_time(monkeypatch: pytest.MonkeyPatch, outputs: list[StageParts]) -> None:
    run(monkeypatch, outputs, [0, 1])
    report, asked, told = run(monkeypatch, outputs, [0, 1])
    assert asked == []
    assert report == StageReport("predict hat", done=0, skipped=2)
    assert (report.complete, report.patches_per_second) == (True, 0.0)
    assert told == [("predict hat", 0, 0, 0)]


def test_shards_are_worked_on_in_the_groups_that_become_ready(
    monkeypatch: pytest.MonkeyPatch, outputs: list[StageParts]
) -> None:
    """All that are missing are asked for at once; what fails to become ready leaves the others done."""
    outputs[0].write(3, pa.table({"a": [3]}))
    pool = FakePool(outputs[:1], {})
    monkeypatch.setattr(stage_module, "run_pool", pool)
    asked: list[list[int]] = []
    closed: list[bool] = []

    def ready(missing: list[int]) -> Generator[Sequence[int]]:
        asked.append(missing)
        try:
            yield missing[2:]
            assert outputs[0].done() == {3, *missing[2:]}
            yield missing[:1]
            raise ArchiveError("truncated")
        finally:
            closed.append(True)

    with pytest.raises(ArchiveError, match="truncated"):
        run_stage("ingest", PartWriter, outputs[:1], range(6), RESOURCES, ready=ready)  # type: ignore[arg-type]
    assert (asked, closed) == ([[0, 1, 2, 4, 5]], [True])
    assert outputs[0].done() == {0, 2, 3, 4, 5}


@pytest.fixture
def _pool(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    with cluster():
        yield


@pytest.mark.usefixtures("_pool")
def test_on_the_real_pool_a_second_run_completes_the_first(outputs: list[StageParts]) -> None:
    parts = outputs[:1]
    first = run_stage("predict", partial(PartWriter, parts[0], {1: "kill", 2: "error"}), parts, range(5), RESOURCES)
    assert (first.done, first.skipped, first.patches) == (3, 0, 0 + 3 + 4)
    assert {failure.shard for failure in first.failures} == {1, 2} == parts[0].failures().keys()
    assert parts[0].failures()[2] == "ValueError: shard 2 is odd"
    assert parts[0].failures()[1].startswith("the process died: ")
    assert parts[0].done() == {0, 3, 4}

    with pytest.raises(StoreError, match="the disk is full"):
        run_stage("predict", partial(PartWriter, parts[0], {1: "full", 2: "full"}), parts, range(5), RESOURCES)
    assert parts[0].done() == {0, 3, 4}

    second = run_stage("predict", partial(PartWriter, parts[0], {}), parts, range(5), RESOURCES)
    assert (second.done, second.skipped, second.patches, second.complete) == (2, 3, 1 + 2, True)
    assert parts[0].failures() == {}
    rows = {shard: parts[0].read(shard).to_pylist() for shard in range(5)}
    pids = {row.pop("pid") for shard in rows for row in rows[shard]}
    assert rows == {shard: [{"shard": shard}] for shard in range(5)}
    assert os.getpid() not in pids


class _Fit:
    """Stands for a fit: two epochs a seed, ten samples; or fails as told."""

    def __init__(self, parts: StageParts, failing: dict[int, Exception]) -> None:
        self.parts, self.failing = parts, failing
        self.asked: list[int] = []

    def __call__(self, seed: int, *, tell: Callable[[int], None]) -> ShardCount:
        self.asked.append(seed)
        tell(1)
        time.sleep(0.1)
        if seed in self.failing:
            raise self.failing[seed]
        self.parts.write(seed, pa.table({"a": [seed]}))
        return ShardCount(10)


def test_missing_fits_are_done_one_after_the_other(outputs: list[StageParts]) -> None:
    parts = outputs[0]
    parts.write(1, pa.table({"a": [1]}))
    fit = _Fit(parts, {2: TrainingError("the loss is nan"), 3: WeightsError("the state is damaged")})
    told: list[tuple[str, int, int, int]] = []
    heard: list[Done[ShardCount] | Failed] = []
    report = run_fits("train", fit, parts, [0, 1, 2, 3, 4], 2, lambda *now: told.append(now), DEVICES, heard.append)
    assert fit.asked == [0, 2, 3, 4]
    assert (report.done, report.skipped, report.patches) == (2, 1, 20)
    assert report.devices == DEVICES
    assert 8 * 0.2 / 3600 <= report.busy_device_hours <= 8 * (report.seconds - 0.2) / 3600  # two of four were done
    assert report.failures == (
        ShardFailure("train", 2, "the loss is nan"),
        ShardFailure("train", 3, "the state is damaged"),
    )
    assert parts.failures() == {2: "the loss is nan", 3: "the state is damaged"}
    first, *bad, last = heard
    assert bad == [Failed(2, 1, "the loss is nan"), Failed(3, 1, "the state is damaged")]
    assert [first, last] == [Done(0, ShardCount(10)), Done(4, ShardCount(10))]
    assert isinstance(first, Done)
    assert isinstance(last, Done)
    assert first.devices == DEVICES
    assert first.seconds + last.seconds == pytest.approx(report.busy_seconds)
    epochs_and_samples = [(0, 0), (1, 0), (2, 10), (3, 10), (4, 10), (5, 10), (6, 10), (7, 10), (8, 20)]
    assert told == [("train", epochs, 8, samples) for epochs, samples in epochs_and_samples]
    again = _Fit(parts, {})
    assert run_fits("train", again, parts, [0, 1, 2, 3, 4], 2).complete
    assert again.asked == [2, 3]
    assert parts.failures() == {}
    assert run_fits("train", again, parts, [0, 1], 2, devices=DEVICES) == StageReport("train", skipped=2)


def test_the_log_tells_the_epochs_of_fits_that_take_long(
    outputs: list[StageParts], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)

    def fit(seed: int, *, tell: Callable[[int], None]) -> ShardCount:
        nonlocal clock
        for epoch in (1, 2, 3):
            clock += 40.0
            tell(epoch)
        outputs[0].write(seed, pa.table({"a": [seed]}))
        return ShardCount(10)

    with written() as stream:
        assert run_fits("train", fit, outputs[0], [7, 8], 3, devices=DEVICES).complete
    told = [line["message"] for line in objects(stream) if "epochs" in line["message"]]
    assert told == ["2 of 6 epochs", "4 of 6 epochs", "6 of 6 epochs"], "after 80, 160 and 240 s"


@pytest.mark.parametrize(
    "error",
    [
        StoreError("full"),
        ArchiveError("gone"),
        ConfigError("no CPU"),
        TransientError("the node has died"),
        KeyError("a bug"),
    ],
)
def test_what_no_other_fit_can_survive_ends_the_stage(outputs: list[StageParts], error: Exception) -> None:
    fit = _Fit(outputs[0], {0: error})
    with pytest.raises(type(error)) as caught:
        run_fits("train", fit, outputs[0], [0, 1], 2)
    assert caught.value is error
    assert fit.asked == [0]
    assert outputs[0].failures() == {}


FAILURE = ShardFailure("predict", 6, "no")


@pytest.mark.parametrize(
    ("first", "second", "expected"),
    [
        # ended before it looked; then 3 of 10 were there before
        ((0, 0, ()), (7, 3, ()), (7, 3, ())),
        # ended after 2 of 7; then these and the 3 before are skipped, one fails
        ((2, 3, ()), (4, 5, (FAILURE,)), (6, 3, (FAILURE,))),
        # one that was underway when the error came was written after all
        ((2, 3, ()), (4, 6, ()), (6, 4, ())),
        # the part of one that was there before is gone, and was made again
        ((2, 3, ()), (6, 4, ()), (8, 2, ())),
        # the second ended before it looked: all stands as it was
        ((2, 3, (FAILURE,)), (0, 0, ()), (2, 3, (FAILURE,))),
    ],
)
def test_shards_of_two_attempts_add_up(
    first: tuple[int, int, tuple[ShardFailure, ...]],
    second: tuple[int, int, tuple[ShardFailure, ...]],
    expected: tuple[int, int, tuple[ShardFailure, ...]],
) -> None:
    one, other = (
        StageReport("predict", done, skipped, 5 * done, 2.0, failures) for done, skipped, failures in (first, second)
    )
    both = both_attempts(one, other)
    assert (both.done, both.skipped, both.failures) == expected
    assert (both.patches, both.seconds) == (5 * (first[0] + second[0]), 4.0)
