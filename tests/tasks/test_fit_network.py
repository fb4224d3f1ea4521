"""Whole networks on Ray Train: stopped and gone on with, a worker killed, two workers against one, a loss of NaN."""

import os
import shutil
import signal
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch

from classifiers import checkpoint
from classifiers.training import TrainSettings, run_to_end
from infra import ray_pool
from infra.bigearthnet.classes import NAMES
from infra.errors import TrainingError
from infra.ray_pool import Resources, cluster
from tasks import train
from tasks.backbone import Backbone
from tasks.plan import Plan
from tasks.train import TrainJob, fit_network, train_job, training_set
from tests.tasks.small_store import branch_of, copied

SETTINGS = TrainSettings(epochs=4, batch_size=4, lr=1e-3, mixup=0.2, ema=0.9, patience=None)
UNTIMED = ["seconds", "wait_share"]


class _Stop(Exception):  # noqa: N818  # stands for an interrupt
    pass


@pytest.fixture
def _ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 lets workers starve beside other tests
    monkeypatch.setattr(ray_pool, "available_cores", lambda: 1)  # one thread in the worker, as here


def job_of(store: Plan, folder: Path, settings: TrainSettings = SETTINGS) -> TrainJob:
    plan = copied(store, folder)
    branch = branch_of(plan)
    data = training_set(branch.inputs, plan.ingested("train"), plan.ingested("validation"), NAMES, exactly_one=False)
    backbone = Backbone("resnet18", "random")
    return train_job(branch, "resnet18", backbone, "network", "linear", NAMES, settings, data)


def plain_fit(job: TrainJob, seed: int = 0) -> None:
    """The same loop in this process, without Ray."""
    network = train._network(job, seed)
    result = run_to_end(train._trainer(job, seed, network, torch.device("cpu")))
    train._publish(job, seed, network, result)


def assert_same(job: TrainJob, other: TrainJob) -> None:
    assert job.checkpoint(0).read_bytes() == other.checkpoint(0).read_bytes()
    assert job.parts.read(0).drop(UNTIMED).equals(other.parts.read(0).drop(UNTIMED))


def ignore(_epochs: int) -> None:
    pass


@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")  # Ray's own options, when it makes its DataContext
@pytest.mark.usefixtures("_ray")
def test_a_stopped_fit_goes_on_and_ends_with_the_weights_of_a_plain_loop(store: Plan, tmp_path: Path) -> None:
    job, plain = job_of(store, tmp_path / "ray"), job_of(store, tmp_path / "plain")
    plain_fit(plain)
    told: list[int] = []

    def stop(epochs: int) -> None:
        told.append(epochs)
        if any(job.state(0).rglob("checkpoint_manager_snapshot.json")):  # Ray has noted a state
            raise _Stop

    with cluster():
        with pytest.raises(_Stop):
            fit_network(job, 0, Resources(), stop)
        assert not job.parts.is_done(0)
        kept = job.state(0)
        assert any(kept.rglob("state.pt"))
    with cluster():
        count = fit_network(job, 0, Resources(), told.append)
    assert count.patches == 8 * 4
    assert_same(job, plain)
    assert not kept.exists()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
@pytest.mark.usefixtures("_ray")
def test_a_worker_killed_on_the_way_changes_nothing(store: Plan, tmp_path: Path) -> None:
    settings = replace(SETTINGS, epochs=12)
    job, plain = job_of(store, tmp_path / "ray", settings), job_of(store, tmp_path / "plain", settings)
    plain_fit(plain)
    killed: list[int] = []

    def kill(epochs: int) -> None:
        if epochs and not killed:
            for process in psutil.Process().children(recursive=True):
                if "RayTrainWorker" in " ".join(process.cmdline()):
                    killed.append(process.pid)
                    os.kill(process.pid, signal.SIGKILL)

    with cluster():
        fit_network(job, 0, Resources(), kill)
    assert killed
    assert_same(job, plain)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
def test_two_workers_have_the_curve_of_one(store: Plan, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Normalisations keep their statistics, so that a batch's parts are as the whole."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setattr(ray_pool, "available_cores", lambda: 2)
    settings = replace(SETTINGS, freeze_norm=True, mixup=0.0, optimizer="sgd", batch_size=4)
    job, plain = job_of(store, tmp_path / "ray", settings), job_of(store, tmp_path / "plain", settings)
    plain_fit(plain)
    with cluster():
        fit_network(job, 0, Resources(actors=2), ignore)
    one, two = (j.parts.read(0).to_pandas() for j in (plain, job))
    for column in ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy", "validation_ap_macro"):
        assert two[column].to_numpy() == pytest.approx(one[column].to_numpy(), abs=1e-4), column
    alone, shared = (checkpoint.load(j.checkpoint(0)).network.state_dict() for j in (plain, job))
    for name, values in alone.items():
        torch.testing.assert_close(shared[name], values, rtol=1e-3, atol=1e-4, msg=name)


@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
@pytest.mark.usefixtures("_ray")
def test_a_loss_of_nan_names_the_step_the_patches_and_the_last_good_state(store: Plan, tmp_path: Path) -> None:
    job = job_of(store, tmp_path / "ray", replace(SETTINGS, lr=1e30, optimizer="sgd", warmup=0.0, epochs=2))
    with cluster(), pytest.raises(TrainingError) as raised:
        fit_network(job, 0, Resources(), ignore)
    text = str(raised.value)
    patches = [name for s in (0, 1) for name in job.branch.ingest.read(s)["patch_id"].to_pylist()]
    assert "step" in text
    assert sum(name in text for name in patches) >= 1
    assert f"states of ended epochs are kept in {job.state(0)}" in text
    assert not job.parts.is_done(0)
    shutil.rmtree(job.state(0), ignore_errors=True)
