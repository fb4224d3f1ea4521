"""Stage tasks: what is tried again, and what a retry leaves in the record."""

import os
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest
from prefect import flow
from prefect.settings import PREFECT_API_URL, PREFECT_LOGGING_LEVEL, temporary_settings

from flows import run as flows_run
from flows.config import RunConfig
from flows.run import Run, may_pass, stage_task
from infra import ray_cluster
from infra.errors import ArchiveError, ConfigError, IncompleteRunError, StoreError, TransientError, WeightsError
from infra.parts import StageParts
from infra.ray_pool import Devices, Done, Resources
from infra.storage import StorePaths
from tasks.live_run import live_record
from tasks.run_record import RunRecord
from tasks.stage import ShardCount, StageReport

CORE = Devices("cpu", 1.0, 1)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    settings = {"archive": {"layout": "bigearthnet-v2"}, "store": str(tmp_path), "train": {"backbone": "random"}}
    config, paths = RunConfig.model_validate(settings), StorePaths(tmp_path)
    return Run(config, paths, RunRecord(paths, "{}", datetime.now(UTC)), Resources(), {})


def stages_of(run: Run, ends: dict[int, BaseException], monkeypatch: pytest.MonkeyPatch) -> Callable[[], int]:
    """Return a flow of one task with two stages; the second one ends once at some shards, before these are done."""
    parts = [StageParts(run.paths, name, "12345678") for name in ("features", "train")]
    done: dict[str, list[int]] = {"features": [], "train": []}

    def run_stage(title: str, _build: object, _outputs: object, items: list[int], *more: object) -> StageReport:
        tell, heard = more[1], more[3]
        missing = [item for item in items if item not in done[title]]
        before = len(items) - len(missing)
        tell(title, 0, len(missing), 0)  # type: ignore[operator]
        for item in missing:
            if title == "train" and item in ends:
                raise ends.pop(item)
            done[title].append(item)
            heard(Done(item, ShardCount(10), 1.0, CORE))  # type: ignore[operator]
        return StageReport(title, len(missing), before, 10 * len(missing), 0.5, (), CORE, float(len(missing)))

    monkeypatch.setattr(flows_run, "run_stage", run_stage)
    monkeypatch.setattr(flows_run, "reconnect", lambda: None)

    @stage_task
    def train(run: Run) -> int:
        for part in parts:
            run.stage(part.stage, lambda: pytest.fail("no worker is built"), [part], [0, 1, 2])
        return len(done["train"])

    quick = train.with_options(retry_delay_seconds=0)

    @flow(name="test-stages")
    def stages() -> int:
        return quick(run)

    return stages


@pytest.fixture
def _server(prefect_server: None) -> object:
    with temporary_settings({PREFECT_API_URL: os.environ["PREFECT_API_URL"], PREFECT_LOGGING_LEVEL: "CRITICAL"}) as it:
        yield it


@pytest.mark.usefixtures("_server")
def test_a_stage_that_an_error_ended_goes_on_and_is_counted_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Three attempts do one shard each."""
    ends: dict[int, BaseException] = {1: TransientError("the service is away"), 2: TransientError("no answer in time")}
    assert stages_of(run, ends, monkeypatch)() == 3
    assert ends == {}
    assert [(s.stage, s.done, s.skipped, s.patches) for s in run.record.stages] == [
        ("features", 3, 0, 30),
        ("train", 3, 0, 30),
    ]
    assert [output["title"] for output in run.record.outputs] == ["features", "train"]
    assert run.record.configs == ["12345678"]


@pytest.mark.usefixtures("_server")
def test_fits_that_an_error_ended_go_on_and_are_counted_once(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of four seeds one was fitted before; the service goes away at the third, and is back."""
    parts = StageParts(run.paths, "train", "12345678")
    parts.write(0, pa.table({"a": [0]}))
    ends = {2: TransientError("the service is away")}
    asked: list[int] = []

    def fit(seed: int, *, tell: Callable[[int], None]) -> ShardCount:
        asked.append(seed)
        tell(1)
        if seed in ends:
            raise ends.pop(seed)
        parts.write(seed, pa.table({"a": [seed]}))
        return ShardCount(10)

    monkeypatch.setattr(flows_run, "reconnect", lambda: None)

    @stage_task
    def train(run: Run) -> None:
        run.stage_of_fits("train", fit, parts, [0, 1, 2, 3], 2, CORE)

    quick = train.with_options(retry_delay_seconds=0)

    @flow(name="test-fits")
    def fits() -> None:
        quick(run)

    fits()
    assert asked == [1, 2, 2, 3]
    (stage,) = run.record.stages
    assert (stage.done, stage.skipped, stage.patches, stage.failures) == (3, 1, 30, ())
    assert parts.failures() == {}


@pytest.mark.usefixtures("_server")
@pytest.mark.parametrize(
    "error",
    [
        ConfigError("no such layout"),
        ArchiveError("no such folder"),
        StoreError("the disk is full"),
        WeightsError("no such file"),
        IncompleteRunError("1 shard failed"),
        ValueError("a bug"),
    ],
)
def test_what_a_person_has_to_mend_is_not_tried_again(
    run: Run, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    with pytest.raises(type(error), match=str(error)):
        stages_of(run, {2: error}, monkeypatch)()
    assert [(s.stage, s.done) for s in run.record.stages] == [("features", 3), ("train", 2)]


@pytest.mark.usefixtures("_server")
def test_an_interrupted_run_is_written_down_as_stopped(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(KeyboardInterrupt):
        stages_of(run, {1: KeyboardInterrupt()}, monkeypatch)()
    live = live_record(run.paths)
    assert live is not None
    assert live["status"] == "stopped"
    assert [(stage["stage"], stage["done"]) for stage in live["stages"]] == [("features", 3), ("train", 1)]


def test_who_lost_the_store_writes_nothing_there(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flows_run, "is_lost", lambda paths: paths is run.paths)
    with pytest.raises(KeyboardInterrupt), run.stoppable():
        raise KeyboardInterrupt
    assert live_record(run.paths) is None


def test_a_stage_has_retries_for_errors_that_may_pass() -> None:
    from flows.archive import evaluate, finish, fit_backbone, ingest, judge_maps, predict, super_resolve, train
    from flows.reliability import score_reliability

    for task in (ingest, super_resolve, fit_backbone, train, predict, judge_maps, evaluate, finish, score_reliability):
        assert (task.retries, task.retry_condition_fn) == (2, may_pass)
        assert task.retry_delay_seconds == [30.0, 120.0]


@pytest.mark.parametrize("cluster", [False, True])
def test_weights_are_where_all_workers_have_them(
    run: Run, tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch, *, cluster: bool
) -> None:
    """In their own place on one machine, in the store where nodes may come from elsewhere."""
    monkeypatch.setattr(ray_cluster, "_elastic", cluster)
    file = tmp_path_factory.mktemp("elsewhere") / "model.safetensors"
    file.write_bytes(b"weights")
    found = run.on_all_nodes(file)
    assert found.read_bytes() == b"weights"
    assert found.is_relative_to(run.paths.work) == cluster
