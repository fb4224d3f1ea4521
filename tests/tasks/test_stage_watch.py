import re
import time
from collections import Counter
from typing import Any

import pytest

from infra import metrics
from infra.errors import StoreError
from infra.metrics import Metric
from infra.ray_pool import Devices
from tasks.stage_watch import StageWatch
from tests.infra.log_lines import objects, written

TWO_CORES = Devices("cpu", count=4.0, workers=2)


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch) -> Counter[tuple[str, ...]]:
    """What counters were told, by metric and labels; the cluster that would be told is not there."""
    found: Counter[tuple[str, ...]] = Counter()

    def count(metric: Metric, amount: float = 1, **labels: str) -> None:
        found[metric.name, *labels.values()] += amount  # type: ignore[assignment]  # seconds are no whole numbers

    monkeypatch.setattr(metrics, "count", count)
    return found


def test_a_stage_tells_its_begin_its_shards_and_its_end(counted: Counter[tuple[str, ...]]) -> None:
    with written(level="debug") as stream, StageWatch("predict none", 3, 2) as watch:
        watch.done(4, 512, 20.0, TWO_CORES)
        watch.failed(5, 3, "the process died: x")
        watch.done(6, 100, 4.0, TWO_CORES)
        time.sleep(0.05)
    lines = objects(stream)
    assert {line["stage"] for line in lines} == {"predict none"}
    told = [(line["level"], line.get("shard"), re.sub(r"\d\.\d s", "? s", line["message"])) for line in lines]
    assert told == [
        ("info", None, "the stage begins: 3 shards to do, 2 done before"),
        ("debug", 4, "the shard is done"),
        ("error", 5, "the shard failed: the process died: x"),
        ("debug", 6, "the shard is done"),
        ("error", None, "the stage ends: 2 shards done, 2 skipped, 1 failed; 612 patches in ? s"),
    ]
    assert (lines[1]["patches"], lines[1]["seconds"]) == (512, 20.0)
    assert lines[2]["attempts"] == 3
    end = {name: lines[-1][name] for name in ("done", "skipped", "failed", "patches")}
    assert end == {"done": 2, "skipped": 2, "failed": 1, "patches": 612}
    held = counted.pop(("superscene_device_seconds_total", "cpu"))
    assert 4 * 0.05 <= held <= 4 * lines[-1]["seconds"] + 0.1, "what the end leaves is counted too"
    assert counted == {
        ("superscene_shards_total", "skipped"): 2,
        ("superscene_shards_total", "done"): 2,
        ("superscene_shards_total", "failed"): 1,
        ("superscene_patches_total",): 612,
        ("superscene_busy_device_seconds_total", "cpu"): 2 * (20 + 4),
    }


def test_a_fit_keeps_all_workers_busy(counted: Counter[tuple[str, ...]]) -> None:
    with StageWatch("train", 1, 0, TWO_CORES) as watch:
        watch.done(0, 1000, 10.0, TWO_CORES, workers=2)
    assert counted["superscene_busy_device_seconds_total", "cpu"] == 10 * 4


def test_a_stage_that_was_done_before_is_skipped(counted: Counter[tuple[str, ...]]) -> None:
    with written() as stream, StageWatch("ingest", 0, 7):
        pass
    assert [line["message"] for line in objects(stream)] == ["the stage is skipped: all 7 shards were done before"]
    assert +counted == {("superscene_shards_total", "skipped"): 7}


def test_a_stage_that_is_stopped_says_by_what() -> None:
    with written() as stream, pytest.raises(StoreError), StageWatch("ingest", 2, 0):
        raise StoreError("cannot write /store: the disk is full")
    assert (
        objects(stream)[-1]["message"] == "the stage was stopped by StoreError: cannot write /store: the disk is full"
    )


def test_how_far_it_is_is_told_once_a_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    clock: Any = iter(range(0, 10_000, 10))  # every look at the clock takes ten seconds
    monkeypatch.setattr(time, "monotonic", lambda: float(next(clock)))
    with written() as stream, StageWatch("ingest", 30, 0) as watch:
        for shard in range(30):
            watch.done(shard, 512, 1.0)
    lines = [line for line in objects(stream) if "of 30 shards" in line["message"]]
    assert 5 <= len(lines) <= 30 * 30 / 60 + 1
    done = [line["done"] for line in lines]
    assert done == sorted(set(done))
    assert all(line["patches"] == 512 * line["done"] for line in lines)


def test_a_fit_of_hours_is_told_and_counted_before_its_end(
    monkeypatch: pytest.MonkeyPatch, counted: Counter[tuple[str, ...]]
) -> None:
    """Three looks of 25 s at the clock make an epoch, more than a minute: four cores are held for 75 s."""
    clock = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: clock)
    with written() as stream, StageWatch("train", 1, 0, TWO_CORES) as watch:
        for look in range(1, 10):
            clock += 25.0
            watch.tick(look // 3, 10, "epochs")
            assert counted["superscene_device_seconds_total", "cpu"] == 4 * 25 * look
        lines = objects(stream)[1:]
    assert [(line["message"], line["epochs"]) for line in lines] == [(f"{n} of 10 epochs", n) for n in (1, 2, 3)]
    assert {line["stage"] for line in lines} == {"train"}
