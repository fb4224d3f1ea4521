"""Whole networks on Ray Train: killed on the way, shared by two workers, stopped by a loss that is not finite."""

import re
import signal
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import psutil
import pyarrow as pa
import pytest
import torch
from torch import nn

from classifiers import CLASSIFIERS, ClassifierSpec, checkpoint
from classifiers.training import TrainSettings, run_to_end
from infra import ray_cluster
from infra.bigearthnet.classes import NAMES
from infra.errors import ConfigError, TrainingError
from infra.parts import StageParts
from infra.ray_cluster import cluster
from infra.ray_pool import Resources
from tasks import train
from tasks.backbone import Backbone
from tasks.branch import make_branch
from tasks.plan import Plan
from tasks.stage import run_stage
from tasks.train import TrainJob, fit_network, train_job, training_set
from tests.tasks.small_store import branch_of, copied
from tests.tasks.stage_workers import PartWriter
from tests.tasks.training_samples import usable

SETTINGS = TrainSettings(epochs=3, batch_size=4, lr=1e-3)
ONE = Resources(actors=1)


@pytest.fixture
def plan(store: Plan, tmp_path: Path) -> Plan:
    return copied(store, tmp_path / "store")


@pytest.fixture
def cores() -> int:
    """One, so that a worker has one thread, as the tests have: sums are added up in one order."""
    return 1


@pytest.fixture(autouse=True)
def _local_ray(monkeypatch: pytest.MonkeyPatch, cores: int) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 lets workers starve beside other tests
    monkeypatch.setattr(ray_cluster, "available_cores", lambda: cores)


def job_of(plan: Plan, settings: TrainSettings = SETTINGS, sr: str = "none") -> TrainJob:
    inputs = replace(branch_of(plan).inputs, degrade=2 if sr == "none" else 4)  # 60 or 120 pixels, which is fast
    branch = make_branch(inputs, sr, None, batch_size=4)
    data = training_set(inputs, plan.ingested("train"), plan.ingested("validation"), NAMES, exactly_one=False)
    return train_job(branch, "resnet18", Backbone("resnet18", "random"), "network", "linear", NAMES, settings, data)


def fitted_here(job: TrainJob, seed: int) -> tuple[bytes, pa.Table]:
    """Checkpoint and curve of a loop without Ray; nothing of it stays."""
    network = train._network(job, seed)
    result = run_to_end(train._trainer(job, seed, network, torch.device("cpu")))
    train._publish(job, seed, network, result)
    found = job.checkpoint(seed).read_bytes(), job.parts.read(seed)
    job.checkpoint(seed).unlink()
    job.parts.path(seed).unlink()
    return found


def fitted(job: TrainJob, seed: int) -> tuple[bytes, pa.Table]:
    """Checkpoint and curve of a fit that ended, after which no state is left."""
    assert not job.state(seed).exists()
    assert not list(job.parts.folder.glob("epochs-*"))
    return job.checkpoint(seed).read_bytes(), job.parts.read(seed)


def without_times(curve: pa.Table) -> pa.Table:
    return curve.drop(["seconds", "wait_share"])


class _Stop(Exception):  # noqa: N818  # stands for an interrupt
    pass


def stop(*_: object) -> Any:
    raise _Stop


def never(_: int) -> None:
    pytest.fail("no epoch was to be done")


def train_workers() -> Iterator[psutil.Process]:
    """Processes of Ray Train's workers below this one."""
    for process in psutil.Process().children(recursive=True):
        try:
            if "TrainWorker" in " ".join(process.cmdline()):
                yield process
        except psutil.NoSuchProcess:
            continue


def test_a_network_without_timm_s_layer_groups_is_fitted_too(plan: Plan, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another distribution may offer one; only layer_decay asks how deep a layer lies."""
    small = ClassifierSpec(
        timm_name=None,
        backbone=lambda channels: nn.Sequential(nn.Conv2d(channels, 8, 3, 4, 1), nn.ReLU()),
        feature_channels=8,
        target_layer="1",
        first_conv="0.weight",
        classifier="fc.",
        min_size=4,
        licence="none",
        paper="none",
    )
    monkeypatch.setattr("classifiers.registry.CLASSIFIERS", {**CLASSIFIERS, "small": small})
    of_resnet = job_of(plan)
    job = replace(of_resnet, classifier="small", backbone=Backbone("small", "random"))
    weights, curve = fitted_here(job, 0)
    assert weights
    assert curve["train_loss"].to_pylist()[-1] < curve["train_loss"].to_pylist()[0]
    with pytest.raises(ConfigError, match="small has no layer groups: only timm's networks do"):
        fitted_here(replace(job, settings=replace(SETTINGS, layer_decay=0.5)), 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")  # Ray's own options, when it makes its DataContext
def test_one_worker_gives_what_a_plain_loop_gives_and_is_published_once(
    plan: Plan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a stage of the pool, whose actor would keep the only core; a driver that dies before the end of the fit."""
    job = job_of(plan, sr="bicubic")
    weights, curve = fitted_here(job, 3)
    before = torch.get_rng_state()
    told: list[int] = []
    with cluster():
        parts = StageParts(plan.paths, "toy", "0")
        assert run_stage("toy", partial(PartWriter, parts, {}), [parts], [0], Resources()).complete
        with monkeypatch.context() as patch:
            patch.setattr(train, "_publish", stop)
            with pytest.raises(_Stop):
                fit_network(job, 3, ONE, told.append)
        assert told[-1] == 3
        assert job.state(3).exists()
        assert not job.parts.is_done(3)
        assert fit_network(job, 3, ONE, never).patches == 3 * 8
    found, rows = fitted(job, 3)
    assert found == weights
    assert without_times(rows).equals(without_times(curve))
    assert torch.equal(torch.get_rng_state(), before)
    trained = checkpoint.load(job.checkpoint(3))
    assert (trained.seed, trained.labels, dict(trained.sr)) == (3, NAMES, dict(job.branch.identity))
    start = train._network(job, 3).state_dict()
    assert not torch.equal(trained.network.state_dict()["backbone.conv1.weight"], start["backbone.conv1.weight"])


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
def test_a_fit_whose_driver_and_worker_are_killed_ends_as_if_nothing_had_happened(plan: Plan) -> None:
    job = job_of(plan, replace(SETTINGS, epochs=16))
    weights, curve = fitted_here(job, 0)
    first, second = list[int](), list[int]()

    def stop_after_some(epoch: int) -> None:
        first.append(epoch)
        if epoch >= 2 and any(job.state(0).rglob("checkpoint_manager_snapshot.json")):  # Ray noted a state
            raise _Stop

    killed: list[int] = []

    def kill_once(epoch: int) -> None:
        second.append(epoch)
        if not killed:
            for process in train_workers():
                process.send_signal(signal.SIGKILL)
                killed.append(process.pid)

    with cluster(), pytest.raises(_Stop):
        fit_network(job, 0, ONE, stop_after_some)
    assert not job.parts.is_done(0)
    with cluster():
        fit_network(job, 0, ONE, kill_once)
    found, rows = fitted(job, 0)
    assert killed, "no worker was found"
    assert first[-1] < 16
    assert second[0] < 16, "the worker ended before it was killed"
    assert second[0] >= first[-1], "the epochs of the first run were not done again"
    assert found == weights
    assert without_times(rows).equals(without_times(curve))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
def test_a_loss_that_is_not_finite_ends_the_fit(store: Plan, plan: Plan) -> None:
    job = job_of(plan, replace(SETTINGS, lr=1e30, warmup=0.0, optimizer="sgd", epochs=2))
    with cluster(), pytest.raises(TrainingError, match=r"training loss is (nan|inf) at step \d") as caught:
        fit_network(job, 0, ONE, lambda _: None)
    named = re.findall(r"S2\w+", str(caught.value))
    assert named
    assert set(named) <= usable(store, "train").keys()
    assert str(job.state(0)) in str(caught.value)
    assert not job.checkpoint(0).exists()
    assert not job.parts.is_done(0)


@pytest.mark.slow
@pytest.mark.parametrize("cores", [2])
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")
def test_two_workers_learn_what_one_learns(plan: Plan) -> None:
    """With batch normalisations that are frozen, as the sums of gradients are then the same but for rounding."""
    job = job_of(plan, replace(SETTINGS, freeze_norm=True, augment=True, optimizer="sgd", lr=0.01, epochs=4))
    _, curve = fitted_here(job, 1)
    with cluster():
        assert fit_network(job, 1, Resources(actors=2), lambda _: None).patches == 4 * 8
    _, rows = fitted(job, 1)
    for name in ("train_loss", "validation_loss"):
        expected = curve[name].to_pylist()
        assert abs(expected[-1] - expected[0]) > 1e-3, "nothing was learnt"
        assert rows[name].to_pylist() == pytest.approx(expected, abs=1e-5)
    assert rows["epoch"].equals(curve["epoch"])
