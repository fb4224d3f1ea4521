"""Train: one classifier of one branch and seed, from stored shards to a checkpoint and its curve.

Heads on frozen features are fitted by the pool, a seed a call; whole networks by Ray Train, all workers on one seed
after the other. Both keep their state after every epoch, and go on from it.
"""

import hashlib
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Literal

import pyarrow as pa
import pyarrow.compute as pc
import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from classifiers.checkpoint import TrainedClassifier
from classifiers.network import Classifier, layer_depths
from classifiers.registry import spec
from classifiers.standardise import from_archive_statistics
from classifiers.training import ClassifierTrainer, FitResult, HeadTrainer, Trainer, TrainSettings
from infra.errors import ConfigError, TrainingError, WeightsError
from infra.parts import StageParts, stage_parts
from infra.ray_pool import Devices, Resources
from infra.ray_train import TrainWorker, devices, train_on_workers
from infra.storage import remove_folder, states_folder, write_bytes
from infra.tables import TRAINING
from infra.zarr_store import divisor
from tasks.backbone import Backbone, load_network
from tasks.branch import Branch, BranchReader, Inputs, worker_device
from tasks.labels import multi_hot
from tasks.shard_batches import LANES, Samples, ShardBatches, clean_labelled, samples_of
from tasks.stage import ShardCount

Fitted = Literal["network", "backbone", "head"]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Shards to train on, and a digest of the patches and labels in them."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    digest: str
    absent: tuple[str, ...]
    """Labels that no training patch has."""


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What is trained, on what, from where. Holds names; cheap to pickle."""

    branch: Branch
    classifier: str
    """Name of the classifier: of its network, or of a variant; of a backbone, its network's, as variants share it."""
    backbone: Backbone
    fitted: Fitted
    head: str
    labels: tuple[str, ...]
    """Labels to learn, in the archive's order."""
    settings: TrainSettings
    compiled: bool | None
    """Whether a whole network is compiled; None: on GPUs."""
    data: TrainingSet
    features: StageParts | None
    """Parts of the features that a head is fitted on; None where the whole network is trained."""
    parts: StageParts

    def checkpoint(self, seed: int) -> Path:
        """Where the checkpoint of a seed lies."""
        sr = "backbone" if self.fitted == "backbone" else self.branch.sr
        return self.branch.paths.checkpoint(sr, self.classifier, self.parts.config, seed)

    def state(self, seed: int) -> Path:
        """Where the state to go on from lies while a seed is fitted: a file for a head, a folder for a network."""
        return self.parts.folder / f"state-{seed}"


def training_set(
    inputs: Inputs, train: Sequence[int], validation: Sequence[int], labels: Sequence[str], *, exactly_one: bool
) -> TrainingSet:
    """Return the shards of the two splits and the digest of their clean, labelled patches.

    Args:
        inputs: What the branches see.
        train: Shards of the training split.
        validation: Shards of the validation split.
        labels: Labels to learn.
        exactly_one: Whether every patch needs exactly one of them, as softmax does.

    Raises:
        TrainingError: One of the two holds no such patch, no training patch has any of the labels, one of them has
            not exactly one, or there is but one label to choose from.
    """
    if exactly_one and len(labels) < 2:
        raise TrainingError(
            f"loss: softmax needs several labels, this archive has {', '.join(labels)}: choose loss: bce"
        )
    digest = hashlib.sha256()
    seen: set[str] = set()
    for split, shards in (("train", train), ("validation", validation)):
        samples = []
        for shard in shards:
            for row in clean_labelled(inputs, shard).select(["patch_id", "labels"]).to_pylist():
                known = [label for label in row["labels"] if label in labels]
                if exactly_one and len(known) != 1:
                    raise TrainingError(
                        f"{row['patch_id']} has {len(known)} labels ({', '.join(known) or 'none'}), and loss: softmax "
                        "needs exactly one: choose loss: bce"
                    )
                seen |= set(known) if split == "train" else set()
                samples.append(json.dumps([split, row["patch_id"], row["labels"]]))
        if not samples:
            raise TrainingError(
                f"the archive has no labelled patch without snow or cloud in the split {split}"
                f"{' that has all bands' if len(inputs.groups) > 1 else ''}: training needs both train and validation; "
                "give `models_from` to use classifiers trained elsewhere"
            )
        digest.update("\n".join(sorted(samples)).encode())
    absent = tuple(label for label in labels if label not in seen)
    if len(absent) == len(labels):
        raise TrainingError(f"no training patch has the label {' or '.join(labels)}: there is nothing to learn")
    return TrainingSet(tuple(train), tuple(validation), digest.hexdigest(), absent)


def labels_to_learn(inputs: Inputs, one_against_rest: str | None) -> tuple[str, ...]:
    """Return the labels of a classifier, in the archive's order.

    Raises:
        ConfigError: The archive has no such label.
    """
    labels = inputs.format.labels
    if one_against_rest is None:
        return labels
    if one_against_rest not in labels:
        raise ConfigError(f"one_against_rest: there is no label {one_against_rest!r}; there are {', '.join(labels)}")
    return (one_against_rest,)


def train_job(
    branch: Branch,
    classifier: str,
    backbone: Backbone,
    fitted: Fitted,
    head: str,
    labels: tuple[str, ...],
    settings: TrainSettings,
    data: TrainingSet,
    *,
    features: StageParts | None = None,
    compiled: bool | None = None,
) -> TrainJob:
    """Return a job under the config that determines its checkpoints; the seed names the part."""
    parameters = {key: value for key, value in asdict(settings).items() if key != "seed"}
    parts = stage_parts(
        branch.paths,
        "train",
        {
            "classifier": classifier,  # its curve has the name, and its checkpoint's path
            "fitted": fitted,
            "head": head,
            "backbone": backbone.identity(),
            "pixels": branch.pixels.config,
            "features": None if features is None else features.config,
            "settings": parameters,
            "samples": data.digest,
            "labels": list(labels),
            "schema": 3,
        },
    )
    return TrainJob(branch, classifier, backbone, fitted, head, labels, settings, compiled, data, features, parts)


class HeadFitter:
    """Fits the head of one job for one seed after the other."""

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self._device = worker_device()

    def run(self, seed: int) -> ShardCount:
        """Fit one seed and write its checkpoint, then its curve; a fit that was stopped goes on from its last epoch."""
        job = self._job
        if job.features is None:
            raise ConfigError(f"{job.classifier}: a whole network is trained by fit_network")
        network = _network(job, seed)
        train_ids, *train = load_features(job, job.data.train)
        validation_ids, *validation = load_features(job, job.data.validation)
        trainer = HeadTrainer(
            network.head,
            (train[0], train[1]),
            (validation[0][:, 0], validation[1]),  # as it is: validation is never augmented
            replace(job.settings, seed=seed),
            self._device,
            (train_ids, validation_ids),
        )
        state = job.state(seed)
        if state.exists():
            try:
                trainer.restore(state.read_bytes())
            except WeightsError as error:
                raise WeightsError(f"{error}; the state is {state}") from error
        while not trainer.done:
            trainer.advance()
            write_bytes(state, trainer.state(), sync=False)
        _publish(job, seed, network, trainer.finish())
        state.unlink(missing_ok=True)
        return ShardCount(len(train_ids) * trainer.epoch)


def fit_network(job: TrainJob, seed: int, resources: Resources, tell: Callable[[int], None]) -> ShardCount:
    """Fit a whole network for one seed on the Ray cluster that this process is connected to.

    A fit that was stopped goes on from its last epoch.

    Args:
        job: What to fit.
        seed: Its seed.
        resources: `actors` workers; None: one a GPU, or one a node without GPUs.
        tell: Told the number of epochs that are done, as it grows.

    Raises:
        TrainingError: A loss is not finite, or workers keep dying.
        WeightsError: The state to go on from cannot be used.
        PipelineError: What a worker raised.
    """
    progress, state = job.parts.folder / f"epochs-{seed}.json", states_folder(job.state(seed))
    progress.unlink(missing_ok=True)  # how far a stopped run was says nothing of this one
    told = 0

    def tell_if_new() -> None:
        nonlocal told
        now = int(json.loads(progress.read_text(encoding="utf-8"))) if progress.exists() else 0
        if now != told:
            told = now
            tell(now)

    loop = partial(_fit, job, seed, progress)
    workers = divisor(LANES, job.settings.batch_size)  # at most
    try:
        last = train_on_workers(loop, state, resources, workers, tell_if_new)
    except TrainingError as error:
        raise TrainingError(f"{error}; states of ended epochs are kept in {state}") from error
    except WeightsError as error:
        raise WeightsError(f"{error}; the state lies in {state}") from error
    network = _network(job, seed)
    trainer = _trainer(job, seed, network, torch.device("cpu"))
    trainer.restore(last)
    _publish(job, seed, network, trainer.finish())
    remove_folder(state)
    progress.unlink(missing_ok=True)
    return ShardCount(len(samples_of(job.branch.inputs, job.data.train, job.labels)) * trainer.epoch)


def fit_devices(job: TrainJob, resources: Resources) -> Devices:
    """Return what a fit of one seed holds."""
    return devices(resources, divisor(LANES, job.settings.batch_size))


def _fit(job: TrainJob, seed: int, progress: Path, worker: TrainWorker) -> None:
    """Fit on one worker."""
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32 here as it does where classes are predicted
    parallel = _averaging(worker.device) if worker.workers > 1 else _alone
    compiled = worker.device.type == "cuda" if job.compiled is None else job.compiled
    trainer = _trainer(
        job, seed, _network(job, seed), worker.device, worker.rank, worker.workers, parallel, compiled=compiled
    )
    saved = worker.saved()
    if saved is not None:
        trainer.restore(saved)
    while not trainer.done:
        trainer.advance()
        worker.save(trainer.state)
        if worker.rank == 0:
            write_bytes(progress, str(trainer.epoch).encode(), sync=False)


def _trainer(
    job: TrainJob,
    seed: int,
    network: Classifier,
    device: torch.device,
    rank: int = 0,
    workers: int = 1,
    parallel: Callable[[nn.Module], nn.Module] = lambda network: network,
    *,
    compiled: bool = False,
) -> Trainer:
    """Return the loop of a whole network on one device."""
    train = samples_of(job.branch.inputs, job.data.train, job.labels)
    validation = samples_of(job.branch.inputs, job.data.validation, job.labels)
    standardiser = from_archive_statistics(job.branch.bands, job.branch.max_dn)
    reader = BranchReader(job.branch, device)

    def batches(samples: Samples, shuffle_seed: int | None) -> ShardBatches:
        size = job.settings.batch_size
        return ShardBatches(reader, samples, size, standardiser, shuffle_seed, rank=rank, workers=workers)

    return ClassifierTrainer(
        network,
        batches(train, seed),
        batches(validation, None),
        replace(job.settings, seed=seed),
        device,
        rank=rank,
        workers=workers,
        parallel=parallel,
        compiled=compiled,
        label_counts=torch.from_numpy(train.truth.sum(axis=0)),
        depths=None if job.settings.layer_decay == 1 else layer_depths(network),  # which only timm's networks know
    )


def _network(job: TrainJob, seed: int) -> Classifier:
    """Return the network as a seed starts it; the caller's random numbers are left as they were."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return load_network(job.backbone, len(job.labels), job.branch.bands, job.head)


def _alone(network: nn.Module) -> nn.Module:
    return network


def _averaging(device: torch.device) -> Callable[[nn.Module], nn.Module]:
    def wrap(network: nn.Module) -> nn.Module:
        return DistributedDataParallel(
            network, device_ids=[device.index] if device.type == "cuda" else None, broadcast_buffers=False
        )

    return wrap


def load_features(job: TrainJob, shards: Sequence[int]) -> tuple[list[str], Tensor, Tensor]:
    """Return ids, features (N, V, K) of V views and truth (N, L) of shards' clean, labelled patches, by patch id."""
    if job.features is None:
        raise ConfigError(f"{job.classifier} is not trained on features")
    tables = []
    for shard in shards:
        patches = clean_labelled(job.branch.inputs, shard)
        part = job.features.read(shard)
        part = part.filter(pc.is_in(part["patch_id"], value_set=patches["patch_id"].combine_chunks()))
        tables.append(part.append_column("labels", patches["labels"]))
    table = pa.concat_tables(table for table in tables if table.num_rows).sort_by("patch_id")
    values = table["features"].combine_chunks().flatten().to_numpy()
    channels = spec(job.backbone.network).feature_channels
    features = torch.from_numpy(values.reshape(table.num_rows, -1, channels).copy())
    truth = torch.from_numpy(multi_hot(table["labels"].to_pylist(), job.labels))
    return table["patch_id"].to_pylist(), features, truth


def _publish(job: TrainJob, seed: int, network: Classifier, result: FitResult) -> None:
    """Write a seed's checkpoint, then its curve, which says that it is done."""
    standardiser = from_archive_statistics(job.branch.bands, job.branch.max_dn)
    trained = TrainedClassifier(
        name=job.backbone.network,
        head=job.head,
        labels=job.labels,
        bands=job.branch.bands,
        mean=standardiser.mean,
        std=standardiser.std,
        seed=seed,
        network=network,
        sr=dict(job.branch.identity),
        thresholds=result.thresholds,
        activation="softmax" if job.settings.loss == "softmax" else "sigmoid",
    )
    write_bytes(job.checkpoint(seed), trained.to_bytes())
    job.parts.write(seed, _curve(job, seed, result))


def _curve(job: TrainJob, seed: int, result: FitResult) -> pa.Table:
    common = {
        "sr": job.branch.sr,
        "classifier": job.classifier,
        "config": job.parts.config,
        "seed": seed,
        "fitted": job.fitted,
    }
    rows: list[dict[str, object]] = []
    for row in result.rows:
        values: dict[str, object] = asdict(row)
        if math.isnan(row.validation_ap_macro):
            values["validation_ap_macro"] = None
        rows.append({**common, **values})
    return pa.Table.from_pylist(rows, schema=TRAINING)
