"""A small store for the explorer, made by hand: what is in it, the test knows from the same rows."""

import json
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.archives.model import BIGEARTHNET
from infra.bigearthnet.bands import S2_10M
from infra.bigearthnet.classes import NAMES
from infra.geo import footprints
from infra.parts import stage_parts
from infra.storage import StorePaths
from infra.tables import (
    CLASSES,
    EXPLANATIONS,
    PATCHES,
    RELIABILITY,
    RELIABILITY_CLUSTERS,
    RUNS,
    hive_folder,
    predictions_schema,
    publish,
)
from infra.zarr_store import ArraySpec, ShardedStore, archive_arrays, create_store
from tasks.map_store import MapWriter, create_map_store
from tasks.publish import publish_configs

N, SHARD = 60, 32
SR = ("none", "bicubic", "srresnet")
CLASSIFIER = "resnet18"
METHODS = ("grad_cam", "layer_cam")
NASTY = "<img src=x onerror=alert(1)>&amp;'; DROP TABLE patches; --"
"""A name that would do harm in a page or a query that takes it for more than text."""
SLASHED = "Forest/Forest_1.jpg"
"""A name as archives of image folders have them: the class, and the file."""
PLACES = {"Austria": (32633, 400_000, 5_300_000), "Finland": (32635, 400_000, 6_800_000)}
"""EPSG code, easting and northing of the first patch of each country."""
THRESHOLD = 0.5


@dataclass(frozen=True, slots=True)
class Made:
    """A store, and what was put into it."""

    paths: StorePaths
    rows: list[dict[str, Any]]
    """Of tables/patches, by shard and row; the table is sorted by name."""
    dn: NDArray[np.uint16]
    """(N, 4, 120, 120) B02, B03, B04, B08."""
    sr_dn: NDArray[np.uint16]
    """(N, 3, 480, 480) of srresnet."""
    codes: NDArray[np.uint16]
    """(N, 120, 120) CORINE codes."""
    probs: dict[str, NDArray[np.float32]]
    """(N, 19) by SR model, in the order of rows."""
    reliability: dict[str, NDArray[np.float64]]
    """(N, 19) likewise; NaN: no score."""
    branches: dict[str, str]
    """Name of the branch by SR model."""
    maps: dict[str, NDArray[np.float32]]
    """(N, 19, 4, 4) by method, on srresnet."""


def make_store(root: Path, *, run: bool = True, lost_shard: bool = False) -> Made:
    """Write a store of two shards.

    Args:
        root: Its folder.
        run: Whether a run has ended: predictions, maps, reliability.
        lost_shard: Whether the pixels of the second shard were lost.
    """
    paths, rng = StorePaths(root), np.random.default_rng(3)
    rows = _patches(paths, rng)
    blocks = rng.integers(0, 4000, (N, 4, 6, 6)).astype(np.uint16)
    dn = np.kron(blocks, np.ones((1, 1, 20, 20), np.uint16))
    codes = np.kron(rng.choice([112, 211, 512, 0], (N, 6, 6)), np.ones((1, 20, 20), np.int64)).astype(np.uint16)
    create_store(paths.archive, archive_arrays(BIGEARTHNET), SHARD, 2, {})
    archive = ShardedStore(paths.archive, writable=True)
    for shard in (0,) if lost_shard else (0, 1):
        archive.write(shard, S2_10M.array, _padded(dn, shard))
        archive.write(shard, "reference_map", _padded(codes, shard))
        archive.write(shard, "valid", _padded(np.ones(N, np.bool_), shard))
    classes = [{"label_index": i, "label": name, "clc_codes": []} for i, name in enumerate(NAMES)]
    publish(paths.table("classes"), pa.Table.from_pylist(classes, CLASSES), CLASSES, ["label_index"])
    made = Made(paths, rows, dn, np.empty((0, 3, 480, 480), np.uint16), codes, {}, {}, {}, {})
    return _with_run(made, rng) if run else made


def _with_run(made: Made, rng: np.random.Generator) -> Made:
    configs: list[str] = []
    sr_dn = np.kron(rng.integers(0, 3000, (N, 3, 6, 6)).astype(np.uint16), np.ones((1, 1, 80, 80), np.uint16))
    for sr in SR:
        pixels = stage_parts(made.paths, "super_resolve", {"sr": sr})
        if sr == "srresnet":
            spec = ArraySpec("sr", ("band", "y", "x"), (3, 480, 480), "uint16", 0, {})
            create_store(made.paths.super_resolved(sr, pixels.config), (spec,), SHARD, 2, {})
            store = ShardedStore(made.paths.super_resolved(sr, pixels.config), writable=True)
            for shard in (0, 1):
                store.write(shard, "sr", _padded(sr_dn, shard))
                pixels.write(shard, pa.table({"patch_id": ["done"]}))
        parts = stage_parts(made.paths, "predictions", {"classifier": CLASSIFIER, "pixels": pixels.config})
        made.branches[sr] = f"{sr}/{CLASSIFIER}/{parts.config}"
        made.probs[sr] = _predictions(made, sr, parts.config, rng)
        configs.append(parts.config)
        if sr != "bicubic":
            scored = stage_parts(made.paths, "reliability", {"predictions": parts.config}).config
            made.reliability[sr] = _reliability(made, sr, scored)
            configs.append(scored)
        if sr == "srresnet":
            configs += [_maps(made, sr, method, rng) for method in METHODS]
    publish_configs(made.paths)
    _run(made.paths, configs)
    return replace(made, sr_dn=sr_dn)


def _padded(values: NDArray[Any], shard: int) -> NDArray[Any]:
    """Return one shard's rows, and zeros behind the last."""
    found = values[shard * SHARD : (shard + 1) * SHARD]
    return np.concatenate([found, np.zeros((SHARD - len(found), *values.shape[1:]), values.dtype)])


def _patches(paths: StorePaths, rng: np.random.Generator) -> list[dict[str, Any]]:
    """Patches in rows of six on the ground; the last two lie where the first one does, on other days."""
    rows: list[dict[str, Any]] = []
    for i in range(N):
        country = "Austria" if i % 2 == 0 else "Finland"
        epsg, left, bottom = PLACES[country]
        place = 0 if i >= N - 2 else i // 2
        x, y = left + 1200 * (place % 6), bottom + 1200 * (place // 6)
        box = [x, y, x + 1200, y + 1200]
        picked = sorted(rng.choice(len(NAMES), int(rng.integers(1, 4)), replace=False).tolist())
        rows.append(
            {
                "patch_id": {2: SLASHED, 7: NASTY}.get(i)
                or f"S2A_2017{i % 12 + 1:02d}13_T33UUP_{N - i:02d}_{place:02d}",
                "shard": i // SHARD,
                "row": i % SHARD,
                "labels": None if i == 5 else [NAMES[k] for k in picked],
                "split": "test" if i % 3 else "train",
                "country": None if i == 9 else country,
                "season": ("winter", "spring", "summer", "autumn")[i % 4],
                "acquired": f"2017-{i % 12 + 1:02d}-13",
                "tile": "33UUP" if country == "Austria" else "35VLJ",
                "has_snow": i == 11,
                "has_cloud": None,
                "has_s1": False,
                "has_map": i != 13,
                "nodata_share": 0.0,
                "crs": f"EPSG:{epsg}",
                "geometry": None if i == 17 else footprints([epsg], [box])[0],
                "source_version": "test",
            }
        )
    publish(paths.table("patches"), pa.Table.from_pylist(rows, PATCHES), PATCHES, ["patch_id"])
    return rows


def _predictions(made: Made, sr: str, config: str, rng: np.random.Generator) -> NDArray[np.float32]:
    """Probabilities of seed 4, near the truth; rows of seed 1 say the opposite."""
    truth = np.array([[name in (row["labels"] or ()) for name in NAMES] for row in made.rows])
    probs = np.where(truth, 0.8, 0.2).astype(np.float32) + rng.normal(0, 0.15, truth.shape).astype(np.float32)
    probs = probs.clip(0.01, 0.99)
    schema = predictions_schema(len(NAMES))
    rows = [
        {
            "patch_id": row["patch_id"],
            "split": row["split"],
            "seed": seed,
            "probs": of_seed.tolist(),
            "predicted": [name for name, prob in zip(NAMES, of_seed, strict=True) if prob >= THRESHOLD],
            "labels": row["labels"],
        }
        for row, of_patch in zip(made.rows, probs, strict=True)
        for seed, of_seed in ((4, of_patch), (1, 1 - of_patch))
        if row["patch_id"] != made.rows[21]["patch_id"]  # one that no network saw
    ]
    folder = hive_folder(made.paths.table("predictions"), sr=sr, classifier=CLASSIFIER, config=config)
    publish(folder, pa.Table.from_pylist(rows, schema), schema, ["patch_id", "seed"])
    return probs


def _reliability(made: Made, sr: str, config: str) -> NDArray[np.float64]:
    """Clusters 0 and 1 of every label, wrong in 1/4 and 1/16 + label/32 of the cases; the first label has no fit."""
    probs = made.probs[sr]
    rates = np.array([[0.25, 1 / 16 + k / 32] for k in range(len(NAMES))])
    found, rows = np.full(probs.shape, np.nan), []
    for i, row in enumerate(made.rows):
        for k, name in enumerate(NAMES):
            cluster = None if k == 0 else (i + k) % 2
            rate = None if cluster is None else float(rates[k, cluster])
            found[i, k] = np.nan if rate is None else 1 - rate
            rows.append(
                {
                    "patch_id": row["patch_id"],
                    "split": row["split"],
                    "label": name,
                    "seed": 4,
                    "prob": float(probs[i, k]),
                    "predicted": bool(probs[i, k] >= THRESHOLD),
                    "truth": None if row["labels"] is None else name in row["labels"],
                    "cluster": cluster,
                    "cluster_error_rate": rate,
                    "reliability": None if rate is None else 1 - rate,
                    "adjusted": bool(probs[i, k] >= THRESHOLD),
                }
            )
    folder = hive_folder(made.paths.table("reliability"), sr=sr, classifier=CLASSIFIER, config=config)
    publish(folder, pa.Table.from_pylist(rows, RELIABILITY), RELIABILITY, ["patch_id", "label"])
    of = {"sr": sr, "classifier": CLASSIFIER, "config": config, "method": METHODS[0], "seed": 4}
    clusters = [
        {
            **of,
            "split": split,
            "label": name,
            "cluster": cluster,
            "n": 320 if split == "fit" else 3,
            **dict.fromkeys(("tp", "tn", "fp", "fn"), 1),
            "error_rate": float(rates[k, cluster]),
            "flipped": False,
            "height": 2 if split == "fit" else None,
            "width": 2 if split == "fit" else None,
            "prototype": [0.0, 0.25, 0.5, 1.0] if split == "fit" else None,
        }
        for split in ("fit", "test")
        for k, name in enumerate(NAMES)
        for cluster in (0, 1)
    ]
    table = pa.Table.from_pylist(clusters, RELIABILITY_CLUSTERS)
    stem = f"{sr}-{CLASSIFIER}-{config}"
    keys = ["split", "label", "cluster"]
    publish(made.paths.table("reliability_clusters"), table, RELIABILITY_CLUSTERS, keys, file_stem=stem)
    return found


def _maps(made: Made, sr: str, method: str, rng: np.random.Generator) -> str:
    """Maps of every label; the second one's are nowhere above 0. LayerCAM was not run on the second shard."""
    maps = rng.random((N, len(NAMES), 4, 4)).astype(np.float32)
    maps[:, 1] = -1.0
    made.maps[method] = maps
    config = stage_parts(made.paths, "explanations", {"sr": sr, "method": method}).config
    store = made.paths.maps(method, config)
    create_map_store(store, NAMES, (4, 4), SHARD, 2, {})
    shards = (0, 1) if method == METHODS[0] else (0,)
    for shard in shards:
        of_shard = maps[shard * SHARD : (shard + 1) * SHARD]
        writer = MapWriter(store, shard)
        writer.add(np.arange(len(of_shard)), of_shard)
        writer.close()
    rows = [
        {
            "patch_id": row["patch_id"],
            "split": row["split"],
            "label": NAMES[0],
            "seed": 4,
            "prob": 0.5,
            "sampled": False,
            "map_store": str(store.relative_to(made.paths.root)),
            "map_index": i,
            "map_label": 0,
        }
        for i, row in enumerate(made.rows)
        if i // SHARD in shards
    ]
    keys = {"sr": sr, "classifier": CLASSIFIER, "method": method, "config": config}
    folder = hive_folder(made.paths.table("explanations"), **keys)
    publish(folder, pa.Table.from_pylist(rows, EXPLANATIONS), EXPLANATIONS, ["patch_id", "label"])
    return config


def _run(paths: StorePaths, configs: list[str]) -> None:
    started = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
    settings = {"sr": SR, "sr_input_max_dn": 3000, "classifiers": [CLASSIFIER], "train": {"seeds": [4, 1]}}
    stage = {"stage": "predict none", "done": 2, "skipped": 0, "failed": 0, "patches": N, "seconds": 8.0}
    row = {
        "run_id": "20260304T050600000000Z",
        "started": started,
        "ended": started + timedelta(minutes=2),
        "status": "complete",
        "configs": configs,
        "run_yaml": json.dumps({**settings, "explain": {"methods": METHODS}}),
        "versions": "{}",
        "git_commit": None,
        "startup_seconds": 1.0,
        "inputs": N,
        "patches": N,
        "quarantined": 0,
        "absent": 0,
        "stages": [{**stage, "patches_per_second": 7.5}],
    }
    publish(paths.table("runs"), pa.Table.from_pylist([row], RUNS), RUNS, ["run_id"], file_stem=f"run-{row['run_id']}")
