"""A store of planted maps: every map is one of two known patterns, and the decisions on one of them always err."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from classifiers.reliability import ClusterSettings
from infra.archives.model import BIGEARTHNET
from infra.bigearthnet.bands import RGB
from infra.parts import stage_parts
from infra.storage import StorePaths
from infra.tables import EXPLANATIONS, PATCHES, predictions_schema, publish
from tasks.branch import Branch, Inputs, make_branch
from tasks.explain import Explained
from tasks.map_store import MapWriter, create_map_store
from tasks.reliability import ReliabilityJob, ReliabilityPlan, reliability_job
from tasks.score import ScoredClassifier

LABELS = ("Urban fabric", "Pastures", "Coniferous forest")
SIZE = 6
SEED = 3
TILES = tuple(f"33U{a}{b}" for a in "VWXYZ" for b in "ABCD")
SETTINGS = ClusterSettings(clusters=2)

type Bools = np.ndarray[Any, np.dtype[np.bool_]]


@dataclass(frozen=True)
class Planted:
    """What the store holds; all arrays are (N, 3) but for split."""

    split: Sequence[str]
    truth: Bools
    predicted: Bools
    odd: Bools
    """Where the map has the second pattern."""


def planted(n_validation: int = 120, n_test: int = 80, seed: int = 0) -> Planted:
    """Decisions that are right where a map has the first pattern and wrong where it has the second, a third of all.

    The third label has no positive: nothing can be learnt of it.
    """
    rng = np.random.default_rng(seed)
    n = n_validation + n_test
    truth = rng.random((n, 3)) < 0.5
    truth[:, 2] = False
    odd = rng.random((n, 3)) < 1 / 3
    predicted = truth ^ odd
    predicted[:, 2] = False
    return Planted(["validation"] * n_validation + ["test"] * n_test, truth, predicted, odd)


def planted_maps(odd: Bools, seed: int = 1) -> np.ndarray[Any, np.dtype[np.float32]]:
    """A bright corner, upper left or, where odd, lower right, and noise; of all scales, (N, 3, 6, 6)."""
    rng = np.random.default_rng(seed)
    maps = 0.2 * rng.random((*odd.shape, SIZE, SIZE))
    maps[~odd, :3, :3] += 1
    maps[odd, 3:, 3:] += 1
    return (maps * 10.0 ** rng.integers(-3, 4, (*odd.shape, 1, 1))).astype(np.float32)


def patch_names(n: int) -> list[str]:
    return [f"patch_{i:03d}" for i in np.random.default_rng(9).permutation(n)]


@dataclass(frozen=True)
class PlantedStore:
    """The store, and what stands in it."""

    branch: Branch
    scored: ScoredClassifier
    case: Planted
    names: Sequence[str]
    shards: Sequence[int]
    validation: Sequence[int]

    def job(self, plan: ReliabilityPlan, source: StorePaths | None = None) -> ReliabilityJob:
        return reliability_job(self.branch, self.scored, plan, self.validation, source)


def plan_of(*, pooled: bool = False, settings: ClusterSettings = SETTINGS, threshold: float = 0.75) -> ReliabilityPlan:
    return ReliabilityPlan("grad_cam", settings, threshold, pooled)


def planted_store(
    folder: Path,
    case: Planted | None = None,
    *,
    shard_size: int = 32,
    broken: Sequence[tuple[int, int]] = (),
    flagged: Sequence[int] = (),
    unlabelled: Sequence[int] = (),
    shuffled: bool = False,
    shared: bool = False,
    enlarged: int = 1,
    padded: int = 0,
    sr: str = "none",
) -> PlantedStore:
    """Write patches, predictions and maps, shard by shard; a shard holds one split.

    Args:
        folder: The store.
        case: What it holds.
        shard_size: Patches in a shard.
        broken: Patch and label of maps that are not finite.
        flagged: Patches with snow.
        unlabelled: Patches without labels.
        shuffled: Whether maps are dealt out at random.
        shared: Whether the map of the first label is that of all: of a method without labels, under the same name.
        enlarged: Pixels of the store for each of a map, along an edge.
        padded: Edge of the store's maps, filled up by a frame of 0; 0: without one.
        sr: SR model of the branch.
    """
    case = planted() if case is None else case
    paths = StorePaths(folder)
    n = len(case.split)
    names = patch_names(n)
    maps = planted_maps(case.odd)
    if shuffled:
        maps = maps[np.random.default_rng(5).permutation(n)]
    for patch, label in broken:
        maps[patch, label, 0, 0] = np.nan
    maps = maps.repeat(enlarged, axis=2).repeat(enlarged, axis=3)
    frame = max(0, padded - SIZE * enlarged)
    maps = np.pad(maps, ((0, 0), (0, 0), (0, frame), (0, frame)))
    if shared:
        maps = maps[:, :1]
    network = folder / "network.safetensors"
    network.parent.mkdir(parents=True, exist_ok=True)
    network.write_bytes(b"weights")
    patch_format = replace(BIGEARTHNET, labels=LABELS)
    ingest = stage_parts(paths, "ingest", {"layout": "bigearthnet-v2"})
    branch = make_branch(Inputs(ingest, patch_format, RGB, (3000,) * 3), sr, None)
    predictions = stage_parts(paths, "predictions", {"classifier": "resnet18"})
    parts = stage_parts(paths, "explanations", {"method": "grad_cam"})
    item = Explained("grad_cam", {}, "predicted", sampled=False, parts=parts)
    places: list[tuple[int, str, list[int]]] = []
    for split in dict.fromkeys(case.split):
        of_split = [i for i in range(n) if case.split[i] == split]
        for first in range(0, len(of_split), shard_size):
            places.append((len(places), split, of_split[first : first + shard_size]))
    store = paths.maps("grad_cam", parts.config)
    names_of_maps = LABELS[:1] if shared else LABELS
    create_map_store(store, names_of_maps, (maps.shape[2], maps.shape[3]), shard_size, len(places), {})
    every_row = []
    for shard, split, members in places:
        rows = [
            {
                "patch_id": names[i],
                "shard": shard,
                "row": row,
                "split": split,
                "labels": None if i in unlabelled else _names(case.truth[i]),
                "tile": TILES[i % len(TILES)],
                "has_snow": i in flagged,
                "has_cloud": False,
                "has_s1": False,
                "has_map": False,
                "nodata_share": 0.0,
                "source_version": "",
            }
            for row, i in enumerate(members)
        ]
        every_row += rows
        ingest.write(shard, pa.Table.from_pylist(rows, PATCHES))
        probs = np.where(case.predicted, 0.875, 0.125)  # exact in float32
        predicted = [
            {
                "patch_id": names[i],
                "split": split,
                "seed": seed,
                "probs": probs[i].tolist() if seed == SEED else [0.5] * 3,
                "predicted": _names(case.predicted[i]) if seed == SEED else [],
                "labels": None if i in unlabelled else _names(case.truth[i]),
            }
            for seed in (SEED + 1, SEED)  # rows of another seed stand before
            for i in members
        ]
        predictions.write(shard, pa.Table.from_pylist(predicted, predictions_schema(3)))
        writer = MapWriter(store, shard)
        writer.add(np.arange(len(members)), maps[members])
        writer.close()
        parts.write(shard, EXPLANATIONS.empty_table())
    publish(paths.table("patches"), pa.Table.from_pylist(every_row, PATCHES), PATCHES, ["patch_id"])
    scored = ScoredClassifier(
        "resnet18",
        "resnet18",
        LABELS,
        "sigmoid",
        {SEED: network, SEED + 1: network},
        predictions,
        {"grad_cam": item},
    )
    validation = [shard for shard, split, _ in places if split == "validation"]
    return PlantedStore(branch, scored, case, names, [shard for shard, *_ in places], validation)


def _names(there: Bools) -> list[str]:
    return [label for label, present in zip(LABELS, there, strict=True) if present]
