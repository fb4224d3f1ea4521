"""Explain: the activation maps of one shard, what they say in numbers, and how far they can be trusted."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from types import MappingProxyType
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

import classifiers
from classifiers.cam.faithfulness import judge_faithfulness
from classifiers.cam.grid import on_grid
from classifiers.cam.localisation import LOCALISATION, localise
from classifiers.cam.methods import METHODS, ExplainMethod, method_and_options
from classifiers.cam.options import OptionValue
from classifiers.cam.summary import summarise
from classifiers.cam.target import Target
from classifiers.checkpoint import TrainedClassifier
from classifiers.network import Classifier
from infra.bigearthnet.reference_map import label_masks
from infra.errors import ConfigError
from infra.fingerprint import Json
from infra.parts import StageParts, stage_parts
from infra.tables import EXPLANATIONS, QUARANTINED_MAPS
from infra.zarr_store import ShardedStore
from tasks.branch import Branch
from tasks.labels import multi_hot
from tasks.map_store import MapWriter, create_map_store

ExplainLabels = Literal["predicted", "true", "all"]

QUARANTINED = "quarantined_maps"
"""Side table of the explanations' parts."""

WHOLE_PATCH = "patch"
"""What the maps of a method without labels are of."""

_SCHEMA = 3  # raised when a column of EXPLANATIONS or QUARANTINED_MAPS comes, goes or changes


@dataclass(frozen=True, slots=True)
class ExplainPlan:
    """Which maps a run wants."""

    methods: tuple[str, ...]
    labels: ExplainLabels = "predicted"
    """Labels that get a row."""
    options: Mapping[str, Mapping[str, OptionValue]] = MappingProxyType({})
    """Options of methods, by method."""
    sample_size: int | None = None
    """Patches of each split in the sample; None: costly methods run on every patch, and nothing is judged by passes."""
    sample: frozenset[str] = frozenset()
    """Names of those patches."""

    @property
    def sample_digest(self) -> str | None:
        """What determines the sample, which is another one once more patches are stored; None without one."""
        if self.sample_size is None:
            return None
        return hashlib.blake2b("\n".join(sorted(self.sample)).encode(), digest_size=8).hexdigest()


@dataclass(frozen=True, slots=True)
class Explained:
    """One method on one classifier and branch, and where its rows go. Cheap to pickle."""

    method: str
    options: Mapping[str, OptionValue]
    """All of the method's options."""
    labels: ExplainLabels
    """Labels that get a row."""
    sampled: bool
    """Whether it sees the sample alone, as a costly method does, and not every patch."""
    parts: StageParts
    """Parts of the rows; maps lie in the store of the same config."""

    @property
    def entry(self) -> ExplainMethod:
        """The method."""
        return METHODS[self.method]


def check_methods(
    methods: Sequence[str],
    network: Classifier,
    options: Mapping[str, Mapping[str, OptionValue]] = MappingProxyType({}),
    shape: tuple[int, int, int] | None = None,
) -> None:
    """Refuse methods that are not defined for a network's head, and options that do not fit what it sees.

    Args:
        methods: Names of methods.
        network: The network to be explained, on any device, torch's `meta` among them.
        options: Options of methods, by method.
        shape: Of what the network sees of a patch, (C, H, W); None: not known, and not asked.

    Raises:
        UnknownNameError: There is no such method.
        ConfigError: A method does not take an option, or needs a head of one linear layer and the network has another;
            or a window, a grid or a reduced input does not fit the shape.
        ShapeError: The shape is too small for the network, and an option asks for the size of its map.
    """
    for method in methods:
        entry, chosen = method_and_options(method, options.get(method, {}))
        if shape is not None:
            entry.check(chosen, network, shape)
        if entry.linear_head_only and not isinstance(network.head, torch.nn.Linear):
            raise ConfigError(
                f"{method} needs a head that is one linear layer; {network.name} has another: leave {method} out, "
                "grad_cam is its generalisation"
            )


def explained(
    branch: Branch, plan: ExplainPlan, classifier: str, network: Classifier, seed: int, digest: str
) -> dict[str, Explained]:
    """Return what is made of each method for a classifier; checkpoints of its other seeds change no config.

    Args:
        branch: What it sees.
        plan: Which maps are wanted.
        classifier: Its name.
        network: The network explained.
        seed: Of that network.
        digest: SHA-256 of its checkpoint.

    Raises:
        UnknownNameError, ConfigError, ShapeError: As `check_methods` does.
    """
    check_methods(plan.methods, network, plan.options, (len(branch.bands), branch.size, branch.size))
    found = {}
    for method in plan.methods:
        entry, options = method_and_options(method, plan.options.get(method, {}))
        values: dict[str, OptionValue] = asdict(options)
        determines: dict[str, Json] = {
            "method": method,
            "options": dict(values),
            "rows": plan.labels,
            "sample": plan.sample_digest,
            "classifier": classifier,
            "checkpoint": digest,
            "seed": seed,
            "pixels": branch.pixels.config,
            "labels": list(branch.inputs.format.labels),
            "schema": _SCHEMA,
        }
        parts = stage_parts(branch.paths, "explanations", determines)
        sampled = plan.sample_size is not None and not entry.is_cheap(network)
        found[method] = Explained(method, values, plan.labels, sampled, parts)
    return found


def create_stores(
    branch: Branch, network: str, names: Sequence[str], items: Sequence[Explained], shard_size: int, n_shards: int
) -> None:
    """Make or grow the map stores of a classifier's methods; for the driver alone.

    Args:
        branch: What the classifier sees.
        network: Its network.
        names: Labels that the classifier knows.
        items: Its methods.
        shard_size: Patches in a shard.
        n_shards: Shards to have room for.
    """
    if not items:
        return
    grid = branch.inputs.format.size
    with torch.device("meta"):
        meta = classifiers.build(network, len(names), len(branch.bands)).eval()
    for item in items:
        entry, options = method_and_options(item.method, item.options)
        height, width = entry.map_size(options, meta, (len(branch.bands), branch.size, branch.size))
        size = (min(height, grid), min(width, grid))
        attributes: dict[str, Json] = {
            "method": item.method,
            "options": dict(item.options),
            "source": item.entry.source,
        }
        path = branch.paths.maps(item.method, item.parts.config)
        create_map_store(
            path, names if item.entry.per_label else (WHOLE_PATCH,), size, shard_size, n_shards, attributes
        )


class ShardTruth:
    """The land-cover reference maps of one shard, read once, on first use."""

    def __init__(self, branch: Branch, shard: int, patches: pa.Table) -> None:
        self._branch, self._shard = branch, shard
        self._has_map = dict(zip(patches["row"].to_pylist(), patches["has_map"].to_pylist(), strict=True))
        self._codes: NDArray[np.uint16] | None = None

    def masks(self, rows: NDArray[np.int64], labels: Sequence[str]) -> NDArray[np.bool_] | None:
        """Return where each row's land cover is its label, (M, S, S); nowhere without a map; None: no row has one."""
        known = np.array([self._has_map[row] for row in rows.tolist()], np.bool_)
        if not known.any():
            return None
        if self._codes is None:
            values = ShardedStore(self._branch.paths.archive).read(self._shard, "reference_map")
            self._codes = values.astype(np.uint16, copy=False)
        return np.asarray(label_masks(self._codes[rows], labels) & known[:, None, None])


@dataclass(frozen=True)
class ExplainBatch:
    """What all methods see of one batch."""

    rows: NDArray[np.int64]
    """Rows in the shard, (N,)."""
    predicted: pa.Table
    """Its rows of tables/predictions."""
    probs: NDArray[np.float32]
    """(N, L)."""
    target: Target
    """Its pixels and activations."""
    sampled: NDArray[np.bool_]
    """Which of the patches are in the sample, (N,)."""

    @cached_property
    def of_sample(self) -> "ExplainBatch":
        """The patches in the sample alone; one batch for all methods, so that what they compute is shared."""
        chosen = np.flatnonzero(self.sampled)
        return ExplainBatch(
            self.rows[chosen],
            self.predicted.take(pa.array(chosen)),
            self.probs[chosen],
            self.target.of_patches(torch.from_numpy(chosen)),
            self.sampled[chosen],
        )


class ShardExplanations:
    """What one method makes of one shard, batch by batch: its maps are written as they come, its rows are gathered."""

    def __init__(
        self, item: Explained, trained: TrainedClassifier, branch: Branch, shard: int, truth: ShardTruth
    ) -> None:
        self._item, self._trained, self._branch, self._shard, self._truth = item, trained, branch, shard, truth
        self._grid = branch.inputs.format.size
        self._path = branch.paths.maps(item.method, item.parts.config)
        self._options: Any = method_and_options(item.method, item.options)[1]
        self._first_index = shard * ShardedStore(branch.paths.archive).shard_size
        self._maps = MapWriter(self._path, shard)
        self._tables: list[pa.Table] = []
        self._faults: list[pa.Table] = []

    def add(self, batch: ExplainBatch) -> None:
        """Make the maps of a batch, or of those of its patches that are in the sample."""
        if self._item.sampled:
            if not batch.sampled.any():
                return
            batch = batch.of_sample
        maps = self._item.entry.run(batch.target, self._options)
        # Numbers are of the maps as they are: means over a pixel of the grid would mix what speaks for and against.
        stored = on_grid(maps, self._grid) if maps.shape[-1] > self._grid else maps
        self._maps.add(batch.rows, stored.float().cpu().numpy())
        self._describe(batch, maps)

    def write(self) -> None:
        """Write the maps that are not written yet, then the rows."""
        parts = self._item.parts
        if parts.is_done(self._shard):
            return
        self._maps.close()
        rows = pa.concat_tables([EXPLANATIONS.empty_table(), *self._tables])
        faults = pa.concat_tables([QUARANTINED_MAPS.empty_table(), *self._faults])
        parts.write(self._shard, rows, {QUARANTINED: faults})

    def _describe(self, batch: ExplainBatch, maps: Tensor) -> None:
        known = self._trained.labels
        # Of every map, not of those alone that get a row: a NaN probability predicts no label, and so has no row.
        finite = maps.isfinite().all(dim=(2, 3)).cpu().numpy()  # (N, L), or (N, 1) without labels
        self._faults.append(self._fault_rows(batch, finite))
        patch, label = np.nonzero(_wanted_labels(batch.predicted, known, self._item.labels) & finite)
        of_label = label if self._item.entry.per_label else np.zeros_like(label)
        chosen = maps[torch.from_numpy(patch), torch.from_numpy(of_label)]  # (M, h, w)
        names = [known[i] for i in label]
        columns = {
            **self._summary(chosen),
            **self._localisation(chosen, batch.rows[patch], names),
            **self._faithfulness(batch, chosen, patch, label),
        }
        store = str(self._path.relative_to(self._branch.paths.root))
        self._tables.append(
            pa.table(
                {
                    "patch_id": batch.predicted["patch_id"].take(pa.array(patch)),
                    "split": batch.predicted["split"].take(pa.array(patch)),
                    "label": pa.array(names, pa.string()),
                    "seed": batch.predicted["seed"].take(pa.array(patch)),
                    "prob": batch.probs[patch, label],
                    "sampled": batch.sampled[patch],
                    **{name: pa.array(values, pa.float32(), from_pandas=True) for name, values in columns.items()},
                    "map_store": [store] * len(patch),
                    "map_index": self._first_index + batch.rows[patch],
                    "map_label": pa.array(of_label, pa.int32()),
                }
            )
            .select(EXPLANATIONS.names)
            .cast(EXPLANATIONS)
        )

    def _fault_rows(self, batch: ExplainBatch, finite: NDArray[np.bool_]) -> pa.Table:
        patch, label = np.nonzero(~finite)
        names = self._trained.labels if self._item.entry.per_label else (WHOLE_PATCH,)
        detail = f"the {self._item.method} map of {self._branch.sr} has values that are not finite"
        return pa.table(
            {
                "patch_id": batch.predicted["patch_id"].take(pa.array(patch)),
                "label": pa.array([names[i] for i in label], pa.string()),
                "seed": batch.predicted["seed"].take(pa.array(patch)),
                "reason": ["not finite"] * len(patch),
                "detail": [detail] * len(patch),
            },
            schema=QUARANTINED_MAPS,
        )

    def _summary(self, maps: Tensor) -> dict[str, NDArray[np.float32]]:
        summary = summarise(maps[:, None], self._grid)
        values = {
            "coverage": summary.coverage,
            "entropy": summary.entropy,
            # A share of the edge means the same for maps and patches of any size.
            "centroid_row": (summary.centroid_row + 0.5) / self._grid,
            "centroid_col": (summary.centroid_col + 0.5) / self._grid,
        }
        return {name: value[:, 0].cpu().numpy() for name, value in values.items()}

    def _localisation(
        self, maps: Tensor, rows: NDArray[np.int64], names: Sequence[str]
    ) -> dict[str, NDArray[np.float32]]:
        columns = {name: np.full(len(rows), np.nan, np.float32) for name in LOCALISATION}
        masks = self._truth.masks(rows, names) if len(rows) else None
        if masks is not None:
            present = np.flatnonzero(masks.any(axis=(1, 2)))
            if len(present):
                chosen = torch.from_numpy(masks[present]).to(maps.device)
                found = localise(maps[torch.from_numpy(present).to(maps.device)], chosen)
                for name in LOCALISATION:
                    columns[name][present] = getattr(found, name).float().cpu().numpy()
        return columns

    def _faithfulness(
        self, batch: ExplainBatch, maps: Tensor, patch: NDArray[np.intp], label: NDArray[np.intp]
    ) -> dict[str, NDArray[np.float32]]:
        names = ("average_drop", "average_increase", "deletion_auc", "insertion_auc")
        columns = {name: np.full(len(patch), np.nan, np.float32) for name in names}
        judged = np.flatnonzero(batch.sampled[patch])
        if len(judged):
            at = torch.from_numpy(judged).to(maps.device)
            found = judge_faithfulness(
                batch.target, maps[at], torch.from_numpy(patch[judged]), torch.from_numpy(label[judged])
            )
            for name in names:
                columns[name][judged] = getattr(found, name).float().cpu().numpy()
        return columns


def patch_seed(patch_id: str) -> int:
    """Return a number of a patch's own, for methods that draw noise."""
    return int.from_bytes(hashlib.blake2b(patch_id.encode(), digest_size=8).digest(), "big")


def _wanted_labels(predicted: pa.Table, known: Sequence[str], labels: ExplainLabels) -> NDArray[np.bool_]:
    """Return which (patch, label that the classifier knows) get a row, (N, L)."""
    if labels == "all":
        return np.ones((predicted.num_rows, len(known)), np.bool_)
    return multi_hot(predicted["predicted" if labels == "predicted" else "labels"].to_pylist(), known)
