"""A driver whose own Ray node dies, or that is interrupted: Ray itself waits for ever, or loses the interruption."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from types import FrameType

import psutil
import pytest

from infra import ray_cluster
from infra.errors import TransientError
from infra.ray_cluster import cluster, reconnect
from infra.ray_pool import Done, Resources, run_pool
from infra.ray_train import TrainWorker, train_on_workers
from tests.infra.pool_workers import Scripted, Sleeping


class StopError(BaseException):
    """What a handler of signals raises, as Prefect's does."""


def stop(_number: int, _frame: FrameType | None) -> None:
    raise StopError


@pytest.fixture
def _cluster(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster, "available_cores", lambda: 1)
    before = signal.signal(signal.SIGTERM, stop)
    try:
        with cluster():
            yield
    finally:
        signal.signal(signal.SIGTERM, before)


@pytest.mark.usefixtures("_cluster")
def test_a_signal_ends_the_pool_as_its_handler_says() -> None:
    assert signal.getsignal(signal.SIGTERM) is stop, "Ray has put its own in place"
    pool = run_pool(partial(Sleeping, 30.0), [0], Resources(actors=1))
    timer = threading.Timer(2.0, os.kill, (os.getpid(), signal.SIGTERM))  # while the driver waits inside Ray
    timer.start()
    with pytest.raises(StopError):
        next(pool)


def keep_working(folder: Path) -> None:
    """Ray takes a while to notice; until then the actor that waits for work does it."""
    for _ in range(200):
        list(run_pool(partial(Scripted, folder), [4], Resources(actors=1)))
        time.sleep(0.5)


@pytest.mark.slow
@pytest.mark.usefixtures("_cluster")
def test_the_loss_of_the_driver_s_own_node_is_told_and_can_be_mended(tmp_path: Path) -> None:
    assert list(run_pool(partial(Scripted, tmp_path), [3], Resources(actors=1))) == [Done(3, 9)]
    (raylet,) = (p for p in psutil.Process().children(recursive=True) if p.name() == "raylet" and p.is_running())
    raylet.kill()
    with pytest.raises(TransientError, match="has died"):
        keep_working(tmp_path)
    reconnect()
    assert list(run_pool(partial(Scripted, tmp_path), [5], Resources(actors=1))) == [Done(5, 25)]


def save_then_wait(folder: Path, worker: TrainWorker) -> None:
    """Wait as long as nothing is saved; a second call ends."""
    if worker.saved() is None:
        worker.save(lambda: b"the state")
        (folder / "saved").touch()
        time.sleep(600)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")  # Ray's own options, when it makes its DataContext
@pytest.mark.usefixtures("_cluster")
def test_training_goes_on_after_the_loss_of_the_driver_s_own_node(tmp_path: Path) -> None:
    raylets = [p for p in psutil.Process().children(recursive=True) if p.name() == "raylet" and p.is_running()]

    def lose_the_node() -> None:
        if raylets and (tmp_path / "saved").exists():
            raylets.pop().kill()

    loop = partial(save_then_wait, tmp_path)
    with pytest.raises(TransientError, match="has died"):
        train_on_workers(loop, tmp_path / "states", Resources(actors=1), 1, lose_the_node)
    assert raylets == []
    with pytest.raises(TransientError, match="has died"):  # the next seed's
        train_on_workers(loop, tmp_path / "states", Resources(actors=1), 1, lambda: None)
    reconnect()
    assert train_on_workers(loop, tmp_path / "states", Resources(actors=1), 1, lambda: None) == b"the state"
