"""The fit on Ray Train: two workers, a stopped run, errors of workers as the project's own."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import ray
import torch
from PIL import Image

from infra import ray_cluster
from infra.errors import ConfigError, TrainingError, WeightsError
from infra.ray_cluster import cluster
from infra.ray_pool import Devices, Resources
from infra.storage import StorePaths
from sr_models.trained_weights import provenance
from sr_models.training import SrTrainSettings
from sr_models.weights import load_state
from tasks import stage_watch, train_sr
from tasks.sr_images import ImageFolder
from tasks.train_sr import (
    SrProgress,
    SrTrainJob,
    build_trainer,
    fit_on_workers,
    is_trained,
    publish_weights,
    sr_train_job,
)
from tests.infra.log_lines import objects, written

SETTINGS = SrTrainSettings("realesrgan_general", 6, batch_size=2, crop=16, lr=1e-3, warmup=1, validate_every=2)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> ImageFolder:
    folder = tmp_path_factory.mktemp("pictures")
    rng = np.random.default_rng(0)
    for i in range(40):
        smooth = np.kron(rng.integers(0, 255, (6, 6, 3)), np.ones((4, 4, 1))).astype(np.uint8)
        Image.fromarray(smooth).save(folder / f"{i}.png")
    return ImageFolder(folder)


def job_of(pictures: ImageFolder, store: Path, settings: SrTrainSettings = SETTINGS, **more: Path) -> SrTrainJob:
    return sr_train_job(StorePaths(store), settings, more.get("start"), [pictures], None, more.get("out"))


def plain_state(job: SrTrainJob) -> bytes:
    trainer = build_trainer(job, torch.device("cpu"))
    list(trainer.run())
    return trainer.state()


@pytest.fixture
def _ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 lets workers starve beside other tests
    monkeypatch.setattr(ray_cluster, "available_cores", lambda: 2)


def test_the_config_tells_what_determines_the_weights(pictures: ImageFolder, tmp_path: Path) -> None:
    job = job_of(pictures, tmp_path)
    same = job_of(pictures, tmp_path, out=tmp_path / "elsewhere.safetensors")
    assert job.config == same.config
    assert job.out == tmp_path / "checkpoints" / f"sr-realesrgan_general-{job.config}" / "weights.safetensors"
    start = tmp_path / "start.safetensors"
    publish_weights(replace(job, out=start), plain_state(job))
    others = [
        job_of(pictures, tmp_path, replace(SETTINGS, steps=7)),
        job_of(replace(pictures, weight=2.0), tmp_path),
        job_of(pictures, tmp_path, start=start),
    ]
    assert len({job.config, *(other.config for other in others)}) == 4
    assert str(tmp_path) not in start.read_bytes()[:4000].decode(errors="replace")


def test_a_finished_file_is_known_and_another_file_is_not_overwritten(pictures: ImageFolder, tmp_path: Path) -> None:
    job = job_of(pictures, tmp_path, out=tmp_path / "w.safetensors")
    assert not is_trained(job)
    state = plain_state(job)
    publish_weights(job, state)
    assert is_trained(job)
    curve = json.loads(job.curve.read_text())
    assert [row["step"] for row in curve] == [2, 4, 6]
    assert provenance(job.out)["settings"]["steps"] == 6
    other = job_of(pictures, tmp_path, replace(SETTINGS, steps=7), out=job.out)
    with pytest.raises(ConfigError, match="holds weights of another run"):
        is_trained(other)
    with pytest.raises(WeightsError, match="'steps': 6"):
        publish_weights(replace(job, settings=replace(SETTINGS, steps=7)), state)


def test_a_run_that_is_not_at_its_end_is_not_published(pictures: ImageFolder, tmp_path: Path) -> None:
    job = job_of(pictures, tmp_path)
    trainer = build_trainer(job, torch.device("cpu"))
    next(trainer.run())
    with pytest.raises(TrainingError, match="stopped at step 2 of 6"):
        publish_weights(job, trainer.state())
    assert not job.out.exists()


def test_nothing_to_train_on_and_wrong_starting_weights_are_refused(pictures: ImageFolder, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="nothing to train on"):
        sr_train_job(StorePaths(tmp_path), SETTINGS, None, [], None, None)
    with pytest.raises(ConfigError, match="two are called"):
        sr_train_job(StorePaths(tmp_path), SETTINGS, None, [pictures, pictures], None, None)
    job = job_of(pictures, tmp_path)
    publish_weights(job, plain_state(job))
    with pytest.raises(WeightsError, match="does not fit srresnet"):
        job_of(pictures, tmp_path, replace(SETTINGS, model="srresnet"), start=job.out)


def test_the_log_tells_how_far_it_is_and_what_was_found(
    pictures: ImageFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job = job_of(pictures, tmp_path)

    def on_workers(loop: object, folder: Path, resources: Resources, shares: int, tell: Callable[[], None]) -> bytes:
        trainer = build_trainer(job, torch.device("cpu"))
        tell()  # nothing is written yet
        for _ in trainer.run():
            train_sr._write_progress(job, trainer)
            tell()
        return trainer.state()

    monkeypatch.setattr(train_sr, "train_on_workers", on_workers)
    monkeypatch.setattr(train_sr, "devices", lambda resources, shares: Devices("cpu", 2.0, 2))
    monkeypatch.setattr(stage_watch, "_TELL_SECONDS", 0.0)  # every time, not once a minute
    told: list[SrProgress] = []
    with written() as stream:
        fit_on_workers(job, Resources(actors=2), told.append)
    lines = objects(stream)
    assert {line["stage"] for line in lines} == {"train realesrgan_general"}
    assert [line["steps"] for line in lines if "steps" in line] == [0, 2, 4, 6]
    curve = json.loads(job.curve.read_text())
    found = [line for line in lines if "gain_db" in line]
    assert [line["loss"] for line in found] == [row["loss"] for row in curve]
    sets = [row["validations"][0] for row in curve]
    assert [line["psnr_db"] for line in found] == [one["psnr_db"] for one in sets]
    assert [line["gain_db"] for line in found] == pytest.approx([s["psnr_db"] - s["bicubic_psnr_db"] for s in sets])
    assert [now.step for now in told] == [2, 4, 6]
    assert lines[-1]["message"].startswith("the stage ends: 1 shards done")
    assert lines[-1]["patches"] == 6 * 2


def states_of(job: SrTrainJob) -> set[str]:
    return {path.parent.name for path in job.folder.rglob("state.pt")}


class _Stop(Exception):  # noqa: N818  # stands for an interrupt
    pass


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:`use_:DeprecationWarning")  # Ray's own options, when it makes its DataContext
@pytest.mark.usefixtures("_ray")
def test_two_workers_stopped_on_the_way_give_the_weights_of_one_plain_loop(
    pictures: ImageFolder, tmp_path: Path
) -> None:
    # L1 has the sign of each difference as its gradient, and near the end rounding decides it; this loss is smooth.
    settings = replace(SETTINGS, steps=120, validate_every=60, loss="charbonnier")
    job = job_of(pictures, tmp_path / "ray", settings)

    def stop_after_the_first_validation(now: SrProgress) -> None:
        if now.gain_db is not None and any(job.folder.rglob("checkpoint_manager_snapshot.json")):  # Ray noted it
            raise _Stop

    with pytest.raises(_Stop), cluster():
        fit_on_workers(job, Resources(actors=2), stop_after_the_first_validation)
    assert not job.out.exists()
    (first,) = states_of(job)
    told: list[SrProgress] = []
    with cluster():
        fit_on_workers(job, Resources(actors=2), told.append)
    assert is_trained(job)
    assert (told[-1].step, told[-1].steps) == (120, 120)
    assert len(states_of(job)) == 2
    assert first in states_of(job), "steps 1 to 60 were not done again"

    plain = job_of(pictures, tmp_path / "plain", settings)
    publish_weights(plain, plain_state(plain))
    expected = load_state(plain.out)
    begun = build_trainer(job, torch.device("cpu")).network.state_dict()
    found = load_state(job.out)
    moved = sum(float((value - begun[key]).abs().sum()) for key, value in expected.items())
    apart = sum(float((value - found[key]).abs().sum()) for key, value in expected.items())
    assert apart < 1e-3 * moved, "more than the order in which gradients are added up differs"
    mine, theirs = (provenance(path)["validation"][0] for path in (job.out, plain.out))
    assert mine["psnr_db"] == pytest.approx(theirs["psnr_db"], abs=0.01)
    assert not ray.is_initialized()
