"""Random predictions of several seeds on a few patches, and stores that hold them."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from infra.archives.model import BIGEARTHNET
from infra.bigearthnet.bands import RGB
from infra.bigearthnet.classes import NAMES
from infra.parts import stage_parts
from infra.storage import StorePaths
from infra.tables import CLASSES, PATCHES, hive_folder, predictions_schema, publish
from tasks.branch import Inputs, make_branch
from tasks.evaluate import EvaluateJob, evaluate_job
from tasks.metric_rows import Bootstrap
from tasks.score import ScoredClassifier

TILES = ("33UUP", "34TCR", "29UPU", "31UGR")
COUNTRY = {"33UUP": "Austria", "34TCR": "Serbia", "29UPU": "Ireland", "31UGR": "Austria"}
COUNT = len(NAMES)


class Case:
    """Patches of two splits, some of them flagged or without labels, and what a classifier makes of them."""

    def __init__(self, seed: int = 0, n: int = 60, seeds: Sequence[int] = (0, 1), skill: float = 0.2) -> None:
        rng = np.random.default_rng(seed)
        self.ids = [f"patch_{i:03d}" for i in range(n)]
        self.split = np.where(rng.random(n) < 0.4, "test", "train")
        self.truth = rng.random((n, COUNT)) < 0.3
        self.truth[:, 5] = False
        self.flag = rng.choice(np.array(["", "has_snow", "has_cloud"]), n, p=[0.8, 0.1, 0.1])
        self.labelled = rng.random(n) < 0.9
        self.tile = rng.choice(np.array(TILES), n)
        self.season = rng.choice(np.array(["summer", "winter"]), n)
        self.thresholds = np.linspace(0.4, 0.9, COUNT).astype(np.float32)
        self.known = np.ones(COUNT, np.bool_)
        self.guess(skill, seeds)

    def guess(self, skill: float, seeds: Sequence[int], by: int = 0) -> None:
        """Draw probabilities anew; of some skill, of each seed."""
        self.probs: Mapping[int, np.ndarray[Any, Any]] = {
            s: np.clip(skill * self.truth + np.random.default_rng([by, s]).random(self.truth.shape), 0, 1).astype(
                np.float32
            )
            for s in seeds
        }

    def predicted(self, seed: int) -> np.ndarray[Any, Any]:
        return (self.probs[seed] >= self.thresholds) & self.known

    def predictions(self, of: Sequence[int] | None = None) -> pa.Table:
        rows = [
            {
                "patch_id": self.ids[i],
                "split": self.split[i],
                "seed": seed,
                "probs": [float(p) if known else None for p, known in zip(probs[i], self.known, strict=True)],
                "predicted": [NAMES[k] for k in np.flatnonzero(self.predicted(seed)[i])],
                "labels": [NAMES[k] for k in np.flatnonzero(self.truth[i])] if self.labelled[i] else None,
            }
            for seed, probs in self.probs.items()
            for i in (range(len(self.ids)) if of is None else of)
        ]
        return pa.Table.from_pylist(rows, predictions_schema(COUNT))

    def patches(self, *, tiles: bool = True) -> pa.Table:
        rows = [
            {
                "patch_id": name,
                "shard": 0,
                "row": i,
                "split": self.split[i],
                "tile": self.tile[i] if tiles or i else None,
                "country": COUNTRY[self.tile[i]],
                "season": self.season[i],
                "has_snow": self.flag[i] == "has_snow" or None,
                "has_cloud": self.flag[i] == "has_cloud",
                "has_s1": False,
                "has_map": False,
                "nodata_share": 0.0,
                "source_version": "",
            }
            for i, name in enumerate(self.ids)
        ]
        return pa.Table.from_pylist(rows, PATCHES)

    def scored(self, split: str) -> np.ndarray[Any, Any]:
        """Patches of a split that count."""
        return np.flatnonzero((self.split == split) & (self.flag == "") & self.labelled)


def publish_patches(paths: StorePaths, case: Case) -> None:
    publish(paths.table("patches"), case.patches(), PATCHES, ["patch_id"])
    classes = [{"label_index": i, "label": name, "clc_codes": None} for i, name in enumerate(NAMES)]
    publish(paths.table("classes"), pa.Table.from_pylist(classes, CLASSES), CLASSES, ["label_index"])


def publish_case(
    paths: StorePaths,
    case: Case,
    sr: str,
    of: Sequence[int] | None = None,
    *,
    shards: Sequence[int] = (0,),
    resamples: int = 20,
) -> EvaluateJob:
    """Publish a case's predictions as those of a branch, and return their evaluation."""
    ingest = stage_parts(paths, "ingest", {"layout": "bigearthnet-v2"})
    branch = make_branch(Inputs(ingest, BIGEARTHNET, RGB, (3000,) * 3), sr, None)
    predictions = stage_parts(paths, "predictions", {"classifier": "resnet18", "pixels": branch.pixels.config})
    table = case.predictions(of)
    for shard in shards:
        predictions.write(shard, table)
    folder = hive_folder(paths.table("predictions"), sr=sr, classifier="resnet18", config=predictions.config)
    publish(folder, table, predictions_schema(COUNT), ["patch_id", "seed"])
    checkpoints = dict.fromkeys(case.probs, paths.root / "none")
    known = tuple(name for name, there in zip(NAMES, case.known, strict=True) if there)
    scored = ScoredClassifier("resnet18", "resnet18", known, "sigmoid", checkpoints, predictions, {})
    return evaluate_job(branch, scored, Bootstrap(resamples))
