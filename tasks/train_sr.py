"""Train SR: one super-resolution network, from images to a weight file and its curve, on one worker or several.

Ray Train (`infra.ray_train`) starts the workers and keeps the states to go on from; the loop is `sr_models.training`.
"""

import json
import platform
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from importlib.metadata import version
from pathlib import Path

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from infra.bigearthnet.bands import RGB
from infra.errors import ConfigError, TrainingError
from infra.fingerprint import Json
from infra.logs import events, fields
from infra.node_files import local_file
from infra.parts import stage_parts
from infra.ray_pool import Resources
from infra.ray_train import TrainWorker, devices, train_on_workers
from infra.storage import StorePaths, file_sha256, states_folder, write_bytes
from infra.weights_store import sha256
from sr_models.registry import spec
from sr_models.trained_weights import provenance, to_bytes
from sr_models.training import CurveRow, SrTrainer, SrTrainSettings, initial_network
from sr_models.weights import load_into, load_state
from tasks.sr_images import ImageFolder, Scene, StorePatches, pools, validation_sets
from tasks.stage_watch import StageWatch

_TELL_SECONDS = 1.0
"""Between two notes of how far a run is."""


@dataclass(frozen=True, slots=True)
class SrTrainJob:
    """What is fitted, on what, and where the result goes. Holds names; cheap to pickle."""

    paths: StorePaths
    config: str
    """Digits over whatever determines the weights."""
    settings: SrTrainSettings
    start: Path | None
    """Weights to start from; None: random ones."""
    sources: tuple[Scene | ImageFolder, ...]
    patches: StorePatches | None
    out: Path
    """The weight file."""
    described: Mapping[str, Json]
    """The sources as the weight file tells of them: names, counts and digests."""
    terms: str
    """Licence and attribution of the weights, for the weight file."""

    @property
    def folder(self) -> Path:
        """Where the states to go on from lie."""
        return self.paths.work / "train_sr" / self.config

    @property
    def curve(self) -> Path:
        """The validations of the run, beside the weights."""
        return self.out.with_suffix(".curve.json")

    @property
    def progress(self) -> Path:
        """How far the run is, for the terminal."""
        return self.folder / "progress.json"


@dataclass(frozen=True, slots=True)
class SrProgress:
    """How far a run is."""

    step: int
    steps: int
    loss: float | None
    """Mean since the last validation, as it was then."""
    psnr_db: float | None
    """Of the last validation, mean over the sets."""
    gain_db: float | None
    """Above bicubic."""


def sr_train_job(
    paths: StorePaths,
    settings: SrTrainSettings,
    start: Path | None,
    sources: Sequence[Scene | ImageFolder],
    patches: StorePatches | None,
    out: Path | None,
    terms: str = "not stated: the terms of the sources hold",
) -> SrTrainJob:
    """Return a job under the config that determines its weights; the sources are read once for their digests.

    Raises:
        ConfigError: There is nothing to train on.
        ArchiveError, TrainingError: A source cannot be read, or holds too little.
        WeightsError: The weights to start from are missing or of another network.
    """
    if not sources and patches is None:
        raise ConfigError(
            "train_sr has nothing to train on: give sources, or let train_sr.patches be above 0 to use the archive"
        )
    if start is not None:
        load_into(spec(settings.model).build(), start, settings.model)
    images: dict[str, Json] = {} if patches is None else {patches.name: patches.digest()}
    counts: dict[str, Json] = {}
    edge = spec(settings.model).scale
    for source in sources:
        train, validation = source.read("train"), source.read("validation")
        train.crop_edge(settings.crop, edge)
        if source.name in images and isinstance(images[source.name], str):
            raise ConfigError(f"train_sr.sources: two are called {source.name}: rename one, or drop it")
        images[source.name] = f"{train.digest()} {validation.digest()} {source.weight}"
        counts[source.name] = {
            "train": len(train.images),
            "validation": len(validation.images),
            "weight": source.weight,
            "max_dn": train.max_dn,
            "sha256_train": train.digest(),
        }
    validation_sets(sources, patches)  # refuses now what could not choose later
    if patches is not None:
        counts[patches.name] = {"weight": patches.weight, "max_dn": patches.max_dn, "sha256": patches.digest()}
    determines: dict[str, Json] = {
        "settings": json.loads(json.dumps(asdict(settings))),
        "start": None if start is None else sha256(start),
        "images": images,
        "patches_weight": None if patches is None else patches.weight,
        "schema": 1,
    }
    parts = stage_parts(paths, "train_sr", determines)
    chosen = out if out is not None else paths.trained_sr(settings.model, parts.config)
    return SrTrainJob(paths, parts.config, settings, start, tuple(sources), patches, chosen.resolve(), counts, terms)


def is_trained(job: SrTrainJob) -> bool:
    """Return whether the weight file is there and is this job's.

    Raises:
        ConfigError: A file is there that is another's.
        WeightsError: It cannot be read.
    """
    if not job.out.exists():
        return False
    with local_file(job.out) as file:
        found = provenance(file).get("config")
    if found != job.config:
        raise ConfigError(
            f"train_sr.out: {job.out} holds weights of {'another run' if found else 'unknown origin'} "
            f"({found or 'no config'}, this run is {job.config}): name another file, or remove it"
        )
    return True


def fit_on_workers(job: SrTrainJob, resources: Resources, tell: Callable[[SrProgress], None]) -> None:
    """Fit on the Ray cluster that this process is connected to, and write the weight file and its curve.

    A run that was stopped goes on from its last validation. An interrupt ends it at once.

    Args:
        job: What to fit.
        resources: `actors` workers; None: one a GPU, or one a node without GPUs.
        tell: Told now and then how far the run is.

    Raises:
        TrainingError: The loss is not finite, or workers keep dying.
        PipelineError: What a worker raised.
    """
    job.progress.unlink(missing_ok=True)  # how far a stopped run was says nothing of this one
    settings = job.settings
    held = devices(resources, settings.batch_size)
    last = SrProgress(0, settings.steps, None, None, None)
    begun = time.monotonic()
    with StageWatch(f"train {settings.model}", 1, 0, held) as watch:

        def tell_if_new() -> None:
            nonlocal last
            now = _read_progress(job) or last
            watch.tick(now.step, now.steps, "steps")
            if now != last:
                if now.gain_db is not None and now.gain_db != last.gain_db:
                    _log_validation(now)
                last = now
                tell(now)

        state = train_on_workers(
            partial(_fit, job), states_folder(job.folder), resources, settings.batch_size, tell_if_new
        )
        publish_weights(job, state)
        seconds = time.monotonic() - begun
        watch.done(0, settings.steps * settings.batch_size, seconds, held, held.workers)


def _log_validation(now: SrProgress) -> None:
    events.info(
        "step %d, at the last validation: loss %.4f, %.2f dB, %+.2f on bicubic",
        now.step,
        now.loss,
        now.psnr_db,
        now.gain_db,
        extra=fields(loss=now.loss, psnr_db=now.psnr_db, gain_db=now.gain_db),
    )


def publish_weights(job: SrTrainJob, state: bytes) -> None:
    """Write the weight file and its curve from a run's last state.

    Raises:
        TrainingError: The run is not at its end.
        WeightsError: The state is another run's.
    """
    trainer = build_trainer(job, torch.device("cpu"))
    trainer.restore(state)
    if trainer.step < job.settings.steps:
        raise TrainingError(f"the run stopped at step {trainer.step} of {job.settings.steps}: the same command goes on")
    best = max(trainer.curve, key=lambda row: row.gain_db)
    content = to_bytes(
        trainer.best,
        {
            "config": job.config,
            "model": job.settings.model,
            "scale": spec(job.settings.model).scale,
            "bands": list(RGB),
            "settings": asdict(job.settings),
            "start_sha256": None if job.start is None else file_sha256(job.start),
            "sources": dict(job.described),
            "step": best.step,
            "validation": [asdict(found) for found in best.validations],
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("superscene", "torch", "ray", "numpy")},
            },
            "terms": job.terms,
        },
    )
    write_bytes(job.curve, _curve_json(trainer.curve).encode())
    write_bytes(job.out, content)  # last: it says that the run is done


def build_trainer(
    job: SrTrainJob,
    device: torch.device,
    *,
    rank: int = 0,
    workers: int = 1,
    parallel: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> SrTrainer:
    """Return the loop of a job on one device, its images read."""
    start = None
    if job.start is not None:
        with local_file(job.start) as file:
            start = load_state(file)
    return SrTrainer(
        job.settings,
        initial_network(job.settings.model, start, job.settings.seed),
        pools(job.sources, job.patches, job.settings.seed),
        validation_sets(job.sources, job.patches),
        device,
        rank=rank,
        workers=workers,
        parallel=parallel,
    )


def _fit(job: SrTrainJob, worker: TrainWorker) -> None:
    """Fit on one worker."""
    trainer = build_trainer(
        job,
        worker.device,
        rank=worker.rank,
        workers=worker.workers,
        parallel=_averaging(worker.device) if worker.workers > 1 else _alone,
    )
    saved = worker.saved()
    if saved is not None:
        trainer.restore(saved)
    told = 0.0
    while trainer.step < job.settings.steps:
        row = trainer.advance()
        if row is not None:
            worker.save(trainer.state)
        if worker.rank == 0 and (row is not None or time.monotonic() - told > _TELL_SECONDS):
            told = time.monotonic()
            _write_progress(job, trainer)


def _alone(network: nn.Module) -> nn.Module:
    return network


def _averaging(device: torch.device) -> Callable[[nn.Module], nn.Module]:
    def wrap(network: nn.Module) -> nn.Module:
        return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)

    return wrap


def _write_progress(job: SrTrainJob, trainer: SrTrainer) -> None:
    row = trainer.curve[-1] if trainer.curve else None
    psnr = None if row is None else sum(found.psnr_db for found in row.validations) / len(row.validations)
    progress = SrProgress(
        trainer.step,
        job.settings.steps,
        None if row is None else row.loss,
        psnr,
        None if row is None else row.gain_db,
    )
    write_bytes(job.progress, json.dumps(asdict(progress)).encode(), sync=False)


def _read_progress(job: SrTrainJob) -> SrProgress | None:
    try:
        return SrProgress(**json.loads(job.progress.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _curve_json(rows: Sequence[CurveRow]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"
