import json
import os
import threading
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
import ray

from infra import ray_cluster, ray_train
from infra.errors import ArchiveError, ConfigError, StoreError, TrainingError, TransientError
from infra.ray_cluster import cluster
from infra.ray_pool import Devices, Resources
from infra.ray_train import TrainWorker, devices, plain_error, share, train_on_workers
from tests.infra.log_lines import objects, written


@pytest.mark.parametrize(
    ("nodes", "actors", "batch", "expected"),
    [
        ([{"CPU": 8.0}], None, 16, (1, {"CPU": 8.0})),
        ([{"CPU": 8.0}], 2, 16, (2, {"CPU": 4.0})),
        ([{"CPU": 8.0}, {"CPU": 6.0}], None, 16, (2, {"CPU": 6.0})),
        ([{"CPU": 8.0}], 3, 16, (2, {"CPU": 4.0})),
        ([{"CPU": 2.0}], 99, 16, (2, {"CPU": 1.0})),
        ([{"CPU": 16.0, "GPU": 4.0}, {"CPU": 16.0, "GPU": 4.0}], None, 32, (8, {"CPU": 1.0, "GPU": 1.0})),
        ([{"CPU": 16.0, "GPU": 8.0}], None, 12, (6, {"CPU": 1.0, "GPU": 1.0})),
    ],
)
def test_the_batch_is_shared_evenly_by_as_many_workers_as_there_is_room_for(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, float]],
    actors: int | None,
    batch: int,
    expected: tuple[int, dict[str, float]],
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node} for node in nodes])
    assert share(Resources(actors), batch) == expected


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"CPU": 8.0}, Devices("cpu", count=8.0, workers=2)),
        ({"CPU": 16.0, "GPU": 4.0, "accelerator_type:H200": 1.0}, Devices("H200", count=2.0, workers=2)),
    ],
)
def test_what_the_workers_hold(monkeypatch: pytest.MonkeyPatch, node: dict[str, float], expected: Devices) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": node}])
    assert devices(Resources(2), 16) == expected


def test_dead_nodes_do_not_count(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": False, "Resources": {"CPU": 4.0}}])
    with pytest.raises(ConfigError, match="no CPU"):
        share(Resources(), 4)


class _GroupError(RuntimeError):
    """As Ray Train's: it holds what each worker died of."""

    def __init__(self, worker_failures: dict[int, BaseException]) -> None:
        super().__init__("Training failed due to worker errors")
        self.worker_failures = worker_failures


def caused(error: Exception, cause: BaseException) -> Any:
    error.__cause__ = cause
    return error


def test_a_worker_s_own_error_is_found_below_ray_s() -> None:
    gone = ArchiveError("the folder is gone")
    assert plain_error(_GroupError({0: ValueError("x"), 1: caused(RuntimeError("wrapped"), gone)})) is gone
    died = plain_error(_GroupError({0: RuntimeError("first line\nout of memory")}))
    assert isinstance(died, TrainingError)
    assert "out of memory" in str(died)
    interrupt = KeyboardInterrupt()
    assert plain_error(interrupt) is interrupt


@pytest.fixture
def own_node(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """The driver's own Ray node, as a cluster of it alone tells of it; tests make it die."""
    node: dict[str, Any] = {"NodeID": "own", "Alive": True, "Resources": {"CPU": 1.0}}
    monkeypatch.setattr(ray, "nodes", lambda: [node])
    monkeypatch.setattr(ray, "get_runtime_context", lambda: SimpleNamespace(get_node_id=lambda: "own"))
    return node


def a_trainer(fit: Callable[[], object]) -> Callable[..., object]:
    """Return what stands for the class of Ray Train's trainers, of which all fit alike."""
    return lambda *_arguments, **_options: SimpleNamespace(fit=fit)


def test_nothing_is_trained_where_the_driver_s_node_is_lost(own_node: dict[str, Any], tmp_path: Path) -> None:
    own_node["Alive"] = False
    with pytest.raises(TransientError, match="has died"):
        train_on_workers(save_environment, tmp_path, Resources(), 1, lambda: None)


def test_the_driver_s_node_is_lost_while_ray_train_waits_for_ever(
    own_node: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ended = threading.Event()
    monkeypatch.setattr(ray_train, "TorchTrainer", a_trainer(ended.wait))
    told = 0

    def tell() -> None:
        nonlocal told
        told += 1
        assert own_node["Alive"], "told after the loss"
        own_node["Alive"] = False

    try:
        with pytest.raises(TransientError, match="has died"):
            train_on_workers(save_environment, tmp_path, Resources(), 1, tell)
    finally:
        ended.set()
    assert told == 1


def test_what_ray_train_says_of_a_lost_node_is_no_error_of_training(
    own_node: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fit() -> None:
        own_node["Alive"] = False
        raise RuntimeError("the actor died")

    monkeypatch.setattr(ray_train, "TorchTrainer", a_trainer(fit))
    with pytest.raises(TransientError, match="has died"):
        train_on_workers(save_environment, tmp_path, Resources(), 1, lambda: None)


@pytest.fixture(scope="module")
def _cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setenv("RAY_worker_niceness", "0")  # Ray's 15 lets workers starve beside other tests
        patch.setenv("AWS_REGION", "of the node")
        patch.setattr(ray_cluster, "available_cores", lambda: 1)
        with cluster():
            yield


def save_environment(worker: TrainWorker) -> None:
    worker.save(lambda: json.dumps(dict(os.environ)).encode())


def raise_an_error(worker: TrainWorker) -> None:
    raise ValueError(f"no luck for rank {worker.rank}")


@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")  # Ray's own options, when it makes its DataContext
@pytest.mark.usefixtures("_cluster")
def test_training_workers_take_over_settings_and_no_secrets(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    given = {"SUPERSCENE_SCRATCH": "/scratch", "AWS_ENDPOINT_URL": "http://127.0.0.1:1"}
    for name, value in {**given, "AWS_REGION": "of the driver", "AWS_SECRET_ACCESS_KEY": "secret"}.items():
        monkeypatch.setenv(name, value)  # after Ray's own processes were started
    found = json.loads(train_on_workers(save_environment, tmp_path, Resources(actors=1), 1, lambda: None))
    assert {name: found.get(name) for name in given} == given
    assert found["AWS_REGION"] == "of the node", "what a node has set counts for more"
    assert "AWS_SECRET_ACCESS_KEY" not in found


def never_end(folder: Path, worker: TrainWorker) -> None:
    (folder / f"rank-{worker.rank}-{os.getpid()}").touch()
    while True:
        time.sleep(0.1)


def full() -> None:
    raise StoreError("the disk is full")


def within(seconds: float, condition: Callable[[], object]) -> bool:
    deadline = time.monotonic() + seconds
    while not condition() and time.monotonic() < deadline:
        time.sleep(0.1)
    return bool(condition())


@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
@pytest.mark.usefixtures("_cluster")
def test_no_worker_outlives_what_tell_raises(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="the disk is full"):
        train_on_workers(
            partial(never_end, tmp_path),
            tmp_path / "states",
            Resources(actors=1),
            1,
            lambda: full() if list(tmp_path.glob("rank-*")) else None,
        )
    assert "ray-train" not in {thread.name for thread in threading.enumerate()}
    (begun,) = tmp_path.glob("rank-0-*")
    assert within(10, lambda: not psutil.pid_exists(int(begun.name.rpartition("-")[2]))), "the worker lives on"
    free: Callable[[], dict[str, float]] = ray.available_resources
    assert within(10, lambda: free().get("CPU") == 1), "its core is kept"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
@pytest.mark.usefixtures("_cluster")
def test_a_run_that_ended_before_it_began_is_run_again(tmp_path: Path) -> None:
    """The cluster has one core: the second call would wait for the first one's."""
    with pytest.raises(StoreError, match="the disk is full"):
        train_on_workers(save_environment, tmp_path, Resources(actors=1), 1, full)
    assert "ray-train" not in {thread.name for thread in threading.enumerate()}
    assert json.loads(train_on_workers(save_environment, tmp_path, Resources(actors=1), 1, lambda: None))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
@pytest.mark.usefixtures("_cluster")
def test_the_log_has_the_traceback_of_training_workers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(ray_train, "MAX_FAILURES", 0)
    with written() as stream, pytest.raises(TrainingError, match="no luck for rank 0"):
        train_on_workers(raise_an_error, tmp_path, Resources(actors=1), 1, lambda: None)
    (line,) = [line for line in objects(stream) if line["logger"] == "superscene"]
    assert line["message"] == "the training workers raised an error"
    assert "in raise_an_error" in line["exception"]
    assert "ValueError: no luck for rank 0" in line["exception"]
