"""Train SR: one super-resolution network, from images to a weight file and its curve, on one worker or several.

Ray Train starts the workers, averages their gradients and keeps the states to go on from; the loop is
`sr_models.training`.
"""

import json
import os
import platform
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")  # read when ray.train is imported

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from infra.bigearthnet.bands import RGB
from infra.errors import ConfigError, PipelineError, TrainingError
from infra.fingerprint import Json
from infra.parts import stage_parts
from infra.ray_pool import Resources
from infra.storage import StorePaths, write_atomically
from sr_models.registry import spec
from sr_models.trained_weights import provenance, to_bytes
from sr_models.training import CurveRow, SrTrainer, SrTrainSettings, initial_network
from sr_models.weights import load_into, load_state, sha256
from tasks.sr_images import ImageFolder, Scene, StorePatches, pools, validation_sets

_STATE_FILE = "state.pt"
_MAX_FAILURES = 3
"""Workers that may die in one call before it gives up; the next call goes on from the last state all the same."""

_POLL_SECONDS = 1.0


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
    found = provenance(job.out).get("config")
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
    workers, per_worker = _share(resources, job.settings.batch_size)
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # Ray's stubs forget the returned value, which `Result` carries
        train_loop_config={"job": job, "threads": int(per_worker["CPU"])},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu="GPU" in per_worker, resources_per_worker=per_worker),
        torch_config=TorchConfig(backend="nccl" if "GPU" in per_worker else "gloo"),
        run_config=RunConfig(  # type: ignore[arg-type]  # the class of version 2, which is the one in use
            name="ray",
            storage_path=str(job.folder.resolve()),
            failure_config=FailureConfig(max_failures=_MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    job.progress.unlink(missing_ok=True)  # how far a stopped run was says nothing of this one
    outcome = _in_thread(trainer, job, tell)
    if isinstance(outcome, BaseException):
        raise _plain(outcome) from outcome
    if outcome.return_value is not None:
        raise TrainingError(str(outcome.return_value))
    with outcome.checkpoint.as_directory() as folder:
        state = (Path(folder) / _STATE_FILE).read_bytes()
    publish_weights(job, state)


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
            "start_sha256": None if job.start is None else sha256(job.start),
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
    write_atomically(job.curve, lambda path: _write(path, _curve_json(trainer.curve).encode()))
    write_atomically(job.out, lambda path: _write(path, content))  # last: it says that the run is done


def build_trainer(
    job: SrTrainJob,
    device: torch.device,
    *,
    rank: int = 0,
    workers: int = 1,
    parallel: Callable[[nn.Module], nn.Module] = lambda network: network,
) -> SrTrainer:
    """Return the loop of a job on one device, its images read."""
    start = None if job.start is None else load_state(job.start)
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


def _work(config: dict[str, Any]) -> str | None:
    """Train on one worker; return why the run failed where another attempt would fail too."""
    job: SrTrainJob = config["job"]
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    rank, workers = context.get_world_rank(), context.get_world_size()
    device = ray.train.torch.get_device()
    trainer = build_trainer(
        job, device, rank=rank, workers=workers, parallel=_averaging(device) if workers > 1 else _alone
    )
    saved = ray.train.get_checkpoint()
    if saved is not None:
        with saved.as_directory() as folder:
            trainer.restore((Path(folder) / _STATE_FILE).read_bytes())
    try:
        told = 0.0
        while trainer.step < job.settings.steps:
            row = trainer.advance()
            if row is not None:
                _report(trainer, row, rank)
            if rank == 0 and (row is not None or time.monotonic() - told > _POLL_SECONDS):
                told = time.monotonic()
                _write_progress(job, trainer)
    except TrainingError as error:  # a loss that is not finite is so on all workers, since gradients are averaged
        return str(error)
    return None


def _report(trainer: SrTrainer, row: CurveRow, rank: int) -> None:
    """Hand Ray the state, from one worker; all of them meet here."""
    metrics = {"step": row.step, "loss": row.loss, "gain_db": row.gain_db}
    if rank:
        ray.train.report(metrics)
        return
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / _STATE_FILE).write_bytes(trainer.state())
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(folder))


def _alone(network: nn.Module) -> nn.Module:
    return network


def _averaging(device: torch.device) -> Callable[[nn.Module], nn.Module]:
    def wrap(network: nn.Module) -> nn.Module:
        return DistributedDataParallel(network, device_ids=[device.index] if device.type == "cuda" else None)

    return wrap


def _share(resources: Resources, batch_size: int) -> tuple[int, dict[str, float]]:
    """Return the number of workers, a divisor of the batch, and what each gets."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    nodes = [node["Resources"] for node in nodes if node["Alive"]]
    cores = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if not cores:
        raise ConfigError("the Ray cluster has no CPU to train on")
    wanted = resources.actors or gpus or len(cores)
    most = min(wanted, gpus or sum(cores), batch_size)
    workers = max(n for n in range(1, most + 1) if batch_size % n == 0)
    if gpus:
        return workers, {"CPU": 1.0, "GPU": 1.0}
    per_node = -(-workers // len(cores))
    return workers, {"CPU": float(max(1, min(cores) // per_node))}


def _in_thread(trainer: TorchTrainer, job: SrTrainJob, tell: Callable[[SrProgress], None]) -> Any:  # noqa: ANN401  # Ray's
    """Run the trainer in a thread, so that an interrupt reaches this one and not Ray; return its result or error."""
    outcome: list[Any] = []

    def fit() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            outcome.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    last: SrProgress | None = None
    while thread.is_alive():
        thread.join(_POLL_SECONDS)
        now = _read_progress(job)
        if now is not None and now != last:
            tell(now)
            last = now
    return outcome[0]


def _plain(error: BaseException) -> BaseException:
    """Return the project's own error that a worker raised, or one that tells of Ray's in a sentence."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in (*failures.values(), error):
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, PipelineError):
                return cause
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
    if not isinstance(error, Exception):
        return error
    lines = [line for line in str(next(iter(failures.values()), error)).splitlines() if line.strip()]
    why = lines[-1] if lines else type(error).__name__
    times = f"workers died more than {_MAX_FAILURES} times" if failures else "Ray Train failed"
    return TrainingError(f"training stopped, {times}: {why}; the same command goes on from the last validation")


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
    content = json.dumps(asdict(progress)).encode()
    write_atomically(job.progress, lambda path: _write(path, content), sync=False)


def _read_progress(job: SrTrainJob) -> SrProgress | None:
    try:
        return SrProgress(**json.loads(job.progress.read_text(encoding="utf-8")))
    except FileNotFoundError:
        return None


def _curve_json(rows: Sequence[CurveRow]) -> str:
    return json.dumps([asdict(row) for row in rows], indent=1) + "\n"


def _write(path: Path, content: bytes) -> None:
    path.write_bytes(content)
