"""Score: one pass over a shard gives predictions, activation maps and explanations of several classifiers."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

import classifiers
from classifiers import checkpoint
from classifiers.cam.grad_cam import grad_cam_from_features
from classifiers.cam.summary import summarise
from classifiers.checkpoint import TrainedClassifier
from classifiers.network import pool
from classifiers.training.standardise_features import input_layer
from infra.errors import ConfigError
from infra.fingerprint import Json
from infra.parts import StageParts, stage_parts
from infra.tables import EXPLANATIONS, SR_QUALITY, predictions_schema
from infra.zarr_store import ArraySpec, ShardedStore, create_store
from tasks.branch import Batch, Branch, BranchReader, worker_device
from tasks.labels import multi_hot
from tasks.stage import ShardCount
from tasks.trained import load_trained

_FROM_FEATURES = {"grad_cam": grad_cam_from_features}
"""Methods that need no more than the activations of the pass that predicts."""

ExplainLabels = Literal["predicted", "true", "all"]


@dataclass(frozen=True, slots=True)
class ScoredClassifier:
    """A classifier's checkpoints on one branch, and where its rows and maps go. Cheap to pickle."""

    classifier: str
    network: str
    """Its network."""
    labels: tuple[str, ...]
    """Labels that it knows, in the archive's order."""
    checkpoints: Mapping[int, Path]
    """Checkpoint file by seed; maps are made of the first."""
    predictions: StageParts
    explanations: Mapping[str, StageParts]
    """By method."""
    explain_labels: ExplainLabels
    features: StageParts | None = None
    """Parts of the features of its frozen backbone, of which predictions are made where no map is asked for."""

    @property
    def outputs(self) -> list[StageParts]:
        """All parts that a shard's call writes, the predictions last."""
        return [*self.explanations.values(), self.predictions]


def scored_classifier(
    branch: Branch,
    classifier: str,
    checkpoints: Mapping[int, Path],
    methods: Sequence[str],
    explain_labels: ExplainLabels,
    features: StageParts | None = None,
) -> ScoredClassifier:
    """Return a classifier's outputs under their configs, which its checkpoints' hashes determine.

    Raises:
        ConfigError: A checkpoint was trained on another branch, or on other labels.
        WeightsError: A checkpoint cannot be read.
    """
    digests: dict[str, Json] = {}
    names = branch.inputs.format.labels
    network, labels = "", names
    for seed, path in checkpoints.items():
        trained = load_trained(path, branch)
        network, labels = trained.name, trained.labels
        if labels != tuple(label for label in names if label in labels):
            raise ConfigError(
                f"{path} has the labels {', '.join(labels)}, this archive {', '.join(names)}: other labels, or another "
                "order of them; train a classifier on this archive"
            )
        digests[str(seed)] = checkpoint.sha256(path)
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
    explanations = {
        method: stage_parts(
            branch.paths,
            "explanations",
            {
                "method": method,
                "labels": explain_labels,
                "predictions": predictions.config,
                "seed": next(iter(checkpoints)),
                "schema": 1,
            },
        )
        for method in methods
    }
    return ScoredClassifier(
        classifier, network, labels, checkpoints, predictions, explanations, explain_labels, features
    )


def map_arrays(
    sr: str, classifier: str, method: str, labels: tuple[str, ...], height: int, width: int
) -> tuple[ArraySpec, ...]:
    """Return the arrays of a map store, (patch, label, h, w), NaN where there is no patch."""
    attributes: dict[str, Json] = {
        "long_name": f"{method} maps of {classifier} on the {sr} branch, raw, at the layer's resolution",
        "units": "logit",
    }
    shape = (len(labels), height, width)
    return (ArraySpec("maps", ("label", "y", "x"), shape, "float32", float("nan"), attributes, chunk=64, names=labels),)


def create_map_stores(branch: Branch, scored: Sequence[ScoredClassifier], shard_size: int, n_shards: int) -> None:
    """Make or grow the map stores of a branch's classifiers; for the driver alone."""
    edge = branch.size
    for item in scored:
        if not item.explanations:
            continue
        with torch.device("meta"):
            network = classifiers.build(item.network, len(item.labels), len(branch.bands)).eval()
            height, width = network.features(torch.empty(1, len(branch.bands), edge, edge)).shape[2:]
        for method, parts in item.explanations.items():
            arrays = map_arrays(branch.sr, item.classifier, method, item.labels, height, width)
            create_store(branch.paths.maps(method, parts.config), arrays, shard_size, n_shards, {"method": method})


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
        results = [_ShardResult(network, shard, patches) for network in networks]
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
        self.names = branch.inputs.format.labels
        self.grid = branch.inputs.format.size
        self.trained = {seed: load_trained(path, branch) for seed, path in scored.checkpoints.items()}
        for trained in self.trained.values():
            trained.network.eval().to(device).to(memory_format=torch.channels_last)
        self.first_seed = next(iter(scored.checkpoints))
        self.shard_size = ShardedStore(branch.paths.archive).shard_size
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
            standardised = trained.standardiser(self._x).contiguous(memory_format=torch.channels_last)
            self._activations[key] = trained.network.features(standardised)
        return self._activations[key]


class _ShardResult:
    """What one classifier makes of one shard, gathered batch by batch."""

    def __init__(self, network: _Network, shard: int, patches: pa.Table) -> None:
        self._network, self._shard, self._patches = network, shard, patches
        self._predictions: list[pa.Table] = []
        self._explanations: dict[str, list[pa.Table]] = {method: [] for method in network.scored.explanations}
        self._maps: dict[str, NDArray[np.float32]] = {}

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
        scored = self._network.scored
        for seed, trained in self._network.trained.items():
            activations = forward.activations(trained)
            table, values = self._predict(seed, pool(activations), rows)
            if seed != self._network.first_seed:
                continue
            for method in scored.explanations:
                maps = _FROM_FEATURES[method](activations, trained.network.head)
                self._keep_maps(method, batch.rows, maps)
                self._explanations[method].append(self._explanation_rows(method, batch, table, values, maps))

    def write(self) -> None:
        """Write maps, then explanations, then the predictions."""
        scored, shard = self._network.scored, self._shard
        for method, parts in scored.explanations.items():
            if parts.is_done(shard):
                continue
            store = ShardedStore(parts.paths.maps(method, parts.config), writable=True)
            maps = np.full((store.shard_size, *store.array("maps").shape[1:]), np.nan, np.float32)
            valid = np.zeros(store.shard_size, np.bool_)
            if method in self._maps:
                rows = self._patches["row"].to_numpy()
                maps[rows], valid[rows] = self._maps[method], True
            store.write(shard, "maps", maps)
            store.write(shard, "valid", valid)
            parts.write(shard, _concatenated(self._explanations[method], EXPLANATIONS))
        if not scored.predictions.is_done(shard):
            scored.predictions.write(
                shard, _concatenated(self._predictions, predictions_schema(len(self._network.names)))
            )

    def _keep_maps(self, method: str, rows: NDArray[np.int64], maps: Tensor) -> None:
        values = maps.cpu().numpy()
        kept = self._maps.get(method)
        if kept is None:
            kept = self._maps[method] = np.empty((self._patches.num_rows, *values.shape[1:]), np.float32)
        first = int(np.searchsorted(self._patches["row"].to_numpy(), rows[0]))
        kept[first : first + len(rows)] = values

    def _explanation_rows(
        self, method: str, batch: Batch, predicted: pa.Table, probs: NDArray[np.float32], maps: Tensor
    ) -> pa.Table:
        scored, grid = self._network.scored, self._network.grid
        wanted = _wanted_labels(predicted, scored.labels, scored.explain_labels)
        patch, label = np.nonzero(wanted)
        summary = summarise(maps[torch.from_numpy(patch), torch.from_numpy(label)][:, None], grid)
        store = scored.explanations[method].paths.maps(method, scored.explanations[method].config)
        index = self._shard * self._network.shard_size + batch.rows
        return pa.table(
            {
                "patch_id": predicted["patch_id"].take(pa.array(patch)),
                "label": [scored.labels[i] for i in label],
                "seed": pa.array(np.full(len(patch), self._network.first_seed), pa.int32()),
                "prob": probs[patch, label],
                **{
                    name: pa.array(values[:, 0].cpu().numpy(), pa.float32(), from_pandas=True)
                    for name, values in {
                        "coverage": summary.coverage,
                        "entropy": summary.entropy,
                        # A share of the edge means the same for maps and patches of any size.
                        "centroid_row": (summary.centroid_row + 0.5) / grid,
                        "centroid_col": (summary.centroid_col + 0.5) / grid,
                    }.items()
                },
                "map_store": [str(store.relative_to(scored.predictions.paths.root))] * len(patch),
                "map_index": index[patch],
                "map_label": pa.array(label, pa.int32()),
            },
            schema=EXPLANATIONS,
        )


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


def _wanted_labels(predicted: pa.Table, known: Sequence[str], labels: ExplainLabels) -> NDArray[np.bool_]:
    """Return which (patch, label that the classifier knows) get a row, (N, L)."""
    if labels == "all":
        return np.ones((predicted.num_rows, len(known)), np.bool_)
    return multi_hot(predicted["predicted" if labels == "predicted" else "labels"].to_pylist(), known)


def _concatenated(tables: list[pa.Table], schema: pa.Schema) -> pa.Table:
    return pa.concat_tables(tables) if tables else schema.empty_table()
