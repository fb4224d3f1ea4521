"""Train: one classifier of one branch and seed, from stored shards to a checkpoint and its curve."""

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from classifiers.checkpoint import TrainedClassifier
from classifiers.standardise import Standardiser, from_archive_statistics
from classifiers.training import FitResult, TrainSettings, fit, fit_head, permutation
from infra.bigearthnet.classes import NAMES
from infra.errors import TrainingError
from infra.parts import StageParts, stage_parts
from infra.storage import write_atomically
from infra.tables import TRAINING
from sr_models.stretch import to_unit
from tasks.backbone import Backbone, load_network
from tasks.branch import Branch, BranchReader, worker_device
from tasks.labels import is_clean, multi_hot
from tasks.stage import ShardCount

_MEMORY_BYTES = 2**30
"""Pixels of a group of whole shards that training keeps at once; loading one takes about three times as much."""

Fitted = Literal["network", "backbone", "head"]


@dataclass(frozen=True, slots=True)
class TrainingSet:
    """Shards to train on, and a digest of the patches and labels in them."""

    train: tuple[int, ...]
    validation: tuple[int, ...]
    digest: str


@dataclass(frozen=True, slots=True)
class TrainJob:
    """What is trained, on what, from where. Holds names; cheap to pickle."""

    branch: Branch
    backbone: Backbone
    fitted: Fitted
    head: str
    settings: TrainSettings
    data: TrainingSet
    features: StageParts | None
    """Parts of the features that a head is fitted on; None where the whole network is trained."""
    parts: StageParts

    def checkpoint(self, seed: int) -> Path:
        """Where the checkpoint of a seed lies."""
        sr = "backbone" if self.fitted == "backbone" else self.branch.sr
        return self.branch.paths.checkpoint(sr, self.backbone.classifier, self.parts.config, seed)


def training_set(ingest: StageParts, train: Sequence[int], validation: Sequence[int]) -> TrainingSet:
    """Return the shards of the two splits and the digest of their clean, labelled patches.

    Raises:
        TrainingError: One of the two holds no such patch.
    """
    digest = hashlib.sha256()
    for split, shards in (("train", train), ("validation", validation)):
        samples = [
            json.dumps([split, row["patch_id"], row["labels"]])
            for shard in shards
            for row in clean_labelled(ingest, shard).select(["patch_id", "labels"]).to_pylist()
        ]
        if not samples:
            raise TrainingError(
                f"the archive has no labelled patch without snow or cloud in the split {split}: training needs both "
                "train and validation; give `models_from` to use classifiers trained elsewhere"
            )
        digest.update("\n".join(sorted(samples)).encode())
    return TrainingSet(tuple(train), tuple(validation), digest.hexdigest())


def clean_labelled(ingest: StageParts, shard: int) -> pa.Table:
    """Return a shard's patches that have labels and neither snow nor cloud, in the order of their rows."""
    patches = ingest.read(shard).sort_by("row")
    return patches.filter(pc.and_(is_clean(patches), pc.is_valid(patches["labels"])))


def train_job(
    branch: Branch,
    backbone: Backbone,
    fitted: Fitted,
    head: str,
    settings: TrainSettings,
    data: TrainingSet,
    features: StageParts | None = None,
) -> TrainJob:
    """Return a job under the config that determines its checkpoints; the seed names the part."""
    parameters = {key: value for key, value in asdict(settings).items() if key != "seed"}
    parts = stage_parts(
        branch.paths,
        "train",
        {
            "fitted": fitted,
            "head": head,
            "backbone": backbone.identity(),
            "pixels": branch.pixels.config,
            "settings": parameters,
            "samples": data.digest,
            "labels": list(NAMES),
            "schema": 1,
        },
    )
    return TrainJob(branch, backbone, fitted, head, settings, data, features, parts)


class Trainer:
    """Fits one job for one seed after the other."""

    def __init__(self, job: TrainJob) -> None:
        self._job = job
        self._device = worker_device()
        self._standardiser = from_archive_statistics(job.branch.bands, job.branch.max_dn)

    def run(self, seed: int) -> ShardCount:
        """Fit one seed and write its checkpoint, then its curve."""
        job = self._job
        settings = replace(job.settings, seed=seed)
        torch.manual_seed(seed)
        network = load_network(job.backbone, len(NAMES), len(job.branch.bands), job.head)
        if job.features is None:
            train = self._images(job.data.train, seed)
            n_samples = train.samples
            result = fit(network, train, self._images(job.data.validation, None), settings, self._device)
        else:
            train_features = load_features(job.features, job.branch.ingest, job.data.train)
            n_samples = len(train_features[0])
            validation_features = load_features(job.features, job.branch.ingest, job.data.validation)
            result = fit_head(network.head, train_features, validation_features, settings, self._device)
        trained = TrainedClassifier(
            name=job.backbone.classifier,
            head=job.head,
            labels=NAMES,
            bands=job.branch.bands,
            mean=self._standardiser.mean,
            std=self._standardiser.std,
            seed=seed,
            network=network,
            sr=dict(job.branch.identity),
        )
        write_atomically(job.checkpoint(seed), lambda path: _write_bytes(path, trained.to_bytes()))
        job.parts.write(seed, _curve(job, seed, result))
        return ShardCount(n_samples)

    def _images(self, shards: Sequence[int], shuffle_seed: int | None) -> "ImageBatches":
        reader = BranchReader(self._job.branch, self._device)
        return ImageBatches(reader, shards, self._job.settings.batch_size, self._standardiser, shuffle_seed)


class ImageBatches:
    """A branch's pixels as training batches, from whole shards in groups that fit the memory.

    Every whole shard is a random sample of its split, so shuffling within groups and among them is a fair shuffle.
    Within a group the order depends on the patch ids and the seed alone, not on where patches are stored.
    """

    def __init__(
        self,
        reader: BranchReader,
        shards: Sequence[int],
        batch_size: int,
        standardiser: Standardiser,
        shuffle_seed: int | None,
    ) -> None:
        self._reader, self._batch_size, self._standardiser = reader, batch_size, standardiser
        self._seed = shuffle_seed
        ingest = reader.branch.ingest
        counts = {shard: clean_labelled(ingest, shard).num_rows for shard in shards}
        self.samples = sum(counts.values())
        edge = 120 * reader.branch.scale
        room = max(1, _MEMORY_BYTES // (len(reader.branch.bands) * edge * edge * 2))
        self._groups = _grouped(counts, room)
        self._sizes = [sum(counts[shard] for shard in group) for group in self._groups]
        self._only_group: tuple[NDArray[np.uint16], Tensor] | None = None

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of one epoch."""
        return sum(math.ceil(size / self._batch_size) for size in self._sizes)

    def batches(self, epoch: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield standardised (N, C, H, W) on the device and multi-hot (N, L)."""
        order = range(len(self._groups)) if self._seed is None else permutation(len(self._groups), self._seed, epoch)
        for group in order:
            dn, truth = self._load(int(group))
            n = len(dn)
            index = np.arange(n) if self._seed is None else permutation(n, self._seed, epoch)
            for chosen in np.array_split(index, math.ceil(n / self._batch_size)):
                x = to_unit(dn[chosen], self._reader.branch.max_dn, self._reader.device)
                yield self._standardiser(x), truth[torch.from_numpy(chosen)]

    def _load(self, group: int) -> tuple[NDArray[np.uint16], Tensor]:
        if self._only_group is not None:
            return self._only_group
        pixels, ids, labels = [], [], []
        for shard in self._groups[group]:
            patches = clean_labelled(self._reader.branch.ingest, shard)
            pixels += [batch.dn.cpu().numpy() for batch in self._reader.batches(shard, patches)]
            ids += patches["patch_id"].to_pylist()
            labels += patches["labels"].to_pylist()
        order = np.argsort(np.array(ids), kind="stable")
        loaded = np.concatenate(pixels)[order], torch.from_numpy(multi_hot(labels)[order])
        if len(self._groups) == 1:
            self._only_group = loaded
        return loaded


def _grouped(counts: Mapping[int, int], room: int) -> list[list[int]]:
    """Return shards in runs of at most room samples; empty shards are left out."""
    groups: list[list[int]] = []
    filled = room
    for shard, count in counts.items():
        if not count:
            continue
        if filled + count > room:
            groups.append([])
            filled = 0
        groups[-1].append(shard)
        filled += count
    return groups


def load_features(features: StageParts, ingest: StageParts, shards: Sequence[int]) -> tuple[Tensor, Tensor]:
    """Return pooled features (N, K) and multi-hot truth (N, L) of shards' clean, labelled patches, by patch id."""
    tables = []
    for shard in shards:
        patches = clean_labelled(ingest, shard)
        part = features.read(shard)
        part = part.filter(pc.is_in(part["patch_id"], value_set=patches["patch_id"].combine_chunks()))
        tables.append(part.append_column("labels", patches["labels"]))
    table = pa.concat_tables(table for table in tables if table.num_rows).sort_by("patch_id")
    values = table["features"].combine_chunks().flatten().to_numpy().reshape(table.num_rows, -1)
    return torch.from_numpy(values.copy()), torch.from_numpy(multi_hot(table["labels"].to_pylist()))


def _curve(job: TrainJob, seed: int, result: FitResult) -> pa.Table:
    common = {
        "sr": job.branch.sr,
        "classifier": job.backbone.classifier,
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


def _write_bytes(path: Path, content: bytes) -> None:
    path.write_bytes(content)
