"""Score: one pass over a shard gives predictions, activation maps and explanations of several classifiers."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from classifiers.cam.target import Target
from classifiers.checkpoint import Activation, TrainedClassifier
from classifiers.network import pool
from classifiers.training.standardise_features import input_layer
from infra.errors import ConfigError
from infra.fingerprint import Json
from infra.parts import StageParts, stage_parts
from infra.storage import file_sha256
from infra.tables import SR_QUALITY, predictions_schema
from tasks.branch import Batch, Branch, BranchReader, worker_device
from tasks.explain import (
    ExplainBatch,
    Explained,
    ExplainPlan,
    ShardExplanations,
    ShardTruth,
    create_stores,
    explained,
    patch_seed,
)
from tasks.stage import ShardCount
from tasks.trained import load_trained


@dataclass(frozen=True, slots=True)
class ScoredClassifier:
    """A classifier's checkpoints on one branch, and where its rows and maps go. Cheap to pickle."""

    classifier: str
    network: str
    """Its network."""
    labels: tuple[str, ...]
    """Labels that it knows, in the archive's order."""
    activation: Activation
    """What makes probabilities of its logits."""
    checkpoints: Mapping[int, Path]
    """Checkpoint file by seed; maps are made of the first."""
    predictions: StageParts
    explanations: Mapping[str, Explained]
    """By method."""
    sample: frozenset[str] = frozenset()
    """Patches in the sample on which costly methods run and maps are judged by further passes."""
    features: StageParts | None = None
    """Parts of the features of its frozen backbone, of which predictions are made where no map is asked for."""

    @property
    def outputs(self) -> list[StageParts]:
        """All parts that a shard's call writes, the predictions last."""
        return [*(item.parts for item in self.explanations.values()), self.predictions]


def scored_classifier(
    branch: Branch,
    classifier: str,
    checkpoints: Mapping[int, Path],
    explain: ExplainPlan,
    features: StageParts | None = None,
) -> ScoredClassifier:
    """Return a classifier's outputs under their configs, which its checkpoints' hashes determine.

    Raises:
        ConfigError: A checkpoint was trained on another branch, or on other labels; or a method is not defined for it.
        WeightsError: A checkpoint cannot be read.
    """
    digests: dict[str, Json] = {}
    names = branch.inputs.format.labels
    first: TrainedClassifier | None = None
    for seed, path in checkpoints.items():
        trained = load_trained(path, branch)
        first = first or trained
        labels = trained.labels
        if labels != tuple(label for label in names if label in labels):
            raise ConfigError(
                f"{path} has the labels {', '.join(labels)}, this archive {', '.join(names)}: other labels, or another "
                "order of them; train a classifier on this archive"
            )
        digests[str(seed)] = file_sha256(path)
    predictions = stage_parts(
        branch.paths,
        "predictions",
        {
            "classifier": classifier,
            "checkpoints": digests,
            "pixels": branch.pixels.config,
            "labels": list(names),
            "schema": 1,
        },
    )
    if first is None:
        raise ConfigError(f"{classifier} has no checkpoint on the branch {branch.sr}")
    seed = next(iter(checkpoints))
    explanations = explained(branch, explain, classifier, first.network, seed, str(digests[str(seed)]))
    return ScoredClassifier(
        classifier,
        first.name,
        first.labels,
        first.activation,
        checkpoints,
        predictions,
        explanations,
        explain.sample,
        features,
    )


def create_map_stores(branch: Branch, scored: Sequence[ScoredClassifier], shard_size: int, n_shards: int) -> None:
    """Make or grow the map stores of a branch's classifiers; for the driver alone."""
    for item in scored:
        create_stores(branch, item.network, item.labels, list(item.explanations.values()), shard_size, n_shards)


class ShardScorer:
    """All classifiers of one branch on one device. A rewrite stores the same rows, so a shard may run twice."""

    def __init__(self, branch: Branch, scored: Sequence[ScoredClassifier]) -> None:
        self._branch = branch
        self._device = worker_device()
        self._reader = BranchReader(branch, self._device)
        self._networks = [_Network(branch, item, self._device) for item in scored]
        share_backbones([trained for network in self._networks for trained in network.trained.values()])

    def run(self, shard: int) -> ShardCount:
        """Score one shard; outputs whose part exists are left alone."""
        patches = self._branch.inputs.patches(shard)
        networks = [n for n in self._networks if not all(parts.is_done(shard) for parts in n.scored.outputs)]
        truth = ShardTruth(self._branch, shard, patches)
        results = [_ShardResult(network, shard, patches, truth) for network in networks]
        of_pixels = [result for result in results if not result.add_stored_features()]
        judged = all(parts.is_done(shard) for parts in self._branch.quality_outputs)
        quality: list[pa.Table] = []
        start = 0
        for batch in self._reader.batches(shard, patches) if of_pixels or not judged else ():
            rows = patches.slice(start, len(batch.rows))
            start += len(batch.rows)
            quality += [batch.quality] if batch.quality is not None else []
            forward = _ForwardPass(batch.x)
            for result in of_pixels:
                result.add(batch, forward, rows)
        for parts in self._branch.quality_outputs:
            if not parts.is_done(shard):
                parts.write(shard, _concatenated(quality, SR_QUALITY))
        for result in results:
            result.write()
        return ShardCount(patches.num_rows)


class _Network:
    """One classifier's networks, one a seed, on the device."""

    def __init__(self, branch: Branch, scored: ScoredClassifier, device: torch.device) -> None:
        self.scored = scored
        self.branch = branch
        self.names = branch.inputs.format.labels
        self.trained = {seed: load_trained(path, branch) for seed, path in scored.checkpoints.items()}
        for trained in self.trained.values():
            trained.network.eval().to(device).to(memory_format=torch.channels_last)
        self.first_seed = next(iter(scored.checkpoints))
        self.device = device


def share_backbones(networks: Sequence[TrainedClassifier]) -> None:
    """Let networks whose backbones are equal, as seeds and variants of a frozen one are, have one between them."""
    found: dict[bytes, nn.Module] = {}
    for trained in networks:
        digest = hashlib.sha256()
        for name, values in trained.network.backbone.state_dict().items():
            digest.update(name.encode())
            digest.update(values.cpu().numpy().tobytes())
        trained.network.backbone = found.setdefault(digest.digest(), trained.network.backbone)


class _ForwardPass:
    """The activations of one batch, computed once for each backbone."""

    def __init__(self, x: Tensor) -> None:
        self._x = x
        self._activations: dict[tuple[object, ...], Tensor] = {}

    def activations(self, trained: TrainedClassifier) -> Tensor:
        """Return the activations (N, K, h, w) of a network."""
        key = (trained.network.backbone, trained.mean, trained.std)
        if key not in self._activations:
            self._activations[key] = trained.network.features(self._standardised(trained))
        return self._activations[key]

    def target(self, trained: TrainedClassifier, patch_ids: Sequence[str]) -> Target:
        """Return what explanation methods see of a network, for all its labels."""
        labels = tuple(range(trained.network.num_labels))
        x, activations = self._standardised(trained), self.activations(trained)
        seeds = [patch_seed(name) for name in patch_ids]
        return Target(trained.network, x, labels, None, trained.activation, activations, seeds)

    def _standardised(self, trained: TrainedClassifier) -> Tensor:
        return trained.standardiser(self._x).contiguous(memory_format=torch.channels_last)


class _ShardResult:
    """What one classifier makes of one shard, gathered batch by batch."""

    def __init__(self, network: _Network, shard: int, patches: pa.Table, truth: ShardTruth) -> None:
        self._network, self._shard, self._patches = network, shard, patches
        self._predictions: list[pa.Table] = []
        first = network.trained[network.first_seed]
        self._explanations = [
            ShardExplanations(item, first, network.branch, shard, truth)
            for item in network.scored.explanations.values()
            if not item.parts.is_done(shard)
        ]

    def add_stored_features(self) -> bool:
        """Classify the whole shard by stored features; return False where there are none, or where maps are wanted."""
        scored, patches = self._network.scored, self._patches
        if scored.features is None or scored.explanations or not scored.features.is_done(self._shard):
            return False
        if not patches.num_rows:  # an empty part does not tell how many features there would be
            return True
        stored = scored.features.read(self._shard)
        values = stored["features"].combine_chunks().flatten().to_numpy().reshape(stored.num_rows, -1)
        for seed, trained in self._network.trained.items():
            channels = input_layer(trained.network.head).in_features  # of the first view, the patch as it is
            pooled = torch.from_numpy(values[:, :channels].copy()).to(self._network.device)
            with torch.inference_mode():
                self._predict(seed, pooled, patches)
        return True

    def add(self, batch: Batch, forward: _ForwardPass, rows: pa.Table) -> None:
        """Classify one batch and keep its rows."""
        with torch.inference_mode():
            self._add(batch, forward, rows)

    def _predict(self, seed: int, pooled: Tensor, rows: pa.Table) -> tuple[pa.Table, NDArray[np.float32]]:
        trained = self._network.trained[seed]
        values = trained.probabilities(trained.network.classify(pooled)).cpu().numpy()
        predicted = trained.decisions(values)
        table = _prediction_rows(rows, seed, self._network.names, trained.labels, values, predicted)
        self._predictions.append(table)
        return table, values

    def _add(self, batch: Batch, forward: _ForwardPass, rows: pa.Table) -> None:
        for seed, trained in self._network.trained.items():
            table, probs = self._predict(seed, pool(forward.activations(trained)), rows)
            if seed == self._network.first_seed and self._explanations:
                ids = rows["patch_id"].to_pylist()
                sample = self._network.scored.sample
                sampled = np.array([name in sample for name in ids], np.bool_)
                seen = ExplainBatch(batch.rows, table, probs, forward.target(trained, ids), sampled)
                for method in self._explanations:
                    method.add(seen)

    def write(self) -> None:
        """Write maps and explanations, then the predictions."""
        for method in self._explanations:
            method.write()
        parts = self._network.scored.predictions
        if not parts.is_done(self._shard):
            parts.write(self._shard, _concatenated(self._predictions, predictions_schema(len(self._network.names))))


def _prediction_rows(
    rows: pa.Table,
    seed: int,
    names: Sequence[str],
    known: Sequence[str],
    probs: NDArray[np.float32],
    predicted: NDArray[np.bool_],
) -> pa.Table:
    """Return rows of predictions; probabilities of labels that the classifier does not know are null."""
    of_all = np.full((len(probs), len(names)), np.nan, np.float32)
    of_all[:, [names.index(label) for label in known]] = probs
    values = pa.FixedSizeListArray.from_arrays(pa.array(of_all.ravel(), from_pandas=True), len(names))
    labels = np.array(known, dtype=object)
    return pa.table(
        {
            "patch_id": rows["patch_id"],
            "split": rows["split"],
            "seed": pa.array(np.full(len(probs), seed), pa.int32()),
            "probs": values,
            "predicted": [labels[mask].tolist() for mask in predicted],
            "labels": rows["labels"],
        },
        schema=predictions_schema(len(names)),
    )


def _concatenated(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(tables) if tables else schema.empty_table()
