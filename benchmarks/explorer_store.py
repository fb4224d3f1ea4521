"""A store of BigEarthNet's size without its pixels, for `benchmarks/explorer.py`: tables as a run publishes them."""

import json
import os
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.archives.bigearthnet_v2 import FLAGGED_METADATA, METADATA
from infra.archives.model import BIGEARTHNET
from infra.bigearthnet.bands import PATCH_METRES, S2_10M
from infra.bigearthnet.classes import NAMES
from infra.geo import footprints
from infra.parts import StageParts, stage_parts
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
    publish_parts,
)
from infra.zarr_store import ArraySpec, ShardedStore, archive_arrays, create_store
from tasks.map_store import MapWriter, create_map_store
from tasks.publish import publish_configs

SHARD = 512
WITH_SR = 64
"""Patches of the first shard that have stored SR pixels: a Zarr shard of them."""
CLASSIFIER = "resnet50"
SR = ("none", "srresnet")
METHODS = ("grad_cam", "layer_cam")
SEED = 0

_SEASONS = ("winter", "spring", "summer", "autumn")
_COLUMNS = ("ABCDEFGH", "JKLMNPQR", "STUVWXYZ")
_ROWS = "ABCDEFGHJKLMNPQRSTUV"
_BANDS = "NPQRSTUVWX"  # of 8 degrees each, from the equator north
_CLUSTERS = 8


def make_store(root: Path, patches: int) -> tuple[StorePaths, str]:
    """Write the store, and return it and what its ids are."""
    paths, rng = StorePaths(root), np.random.default_rng(0)
    table, kind = _metadata(patches)
    table, quads = _patches(paths, table)
    classes = [{"label_index": i, "label": name, "clc_codes": []} for i, name in enumerate(NAMES)]
    publish(paths.table("classes"), pa.Table.from_pylist(classes, CLASSES), CLASSES, ["label_index"])
    configs = []
    truth = _truth(table)
    for sr in SR:
        pixels = stage_parts(paths, "super_resolve", {"sr": sr})
        parts = stage_parts(paths, "predictions", {"sr": sr, "pixels": pixels.config})
        given = _predictions(paths, sr, parts.config, table, truth, rng)
        configs.append(parts.config)
        if sr == "none":
            scored = stage_parts(paths, "reliability", {"sr": sr})
            _reliability(paths, sr, scored.config, table, truth, given, rng)
            configs.append(scored.config)
        else:
            _sr_pixels(paths, sr, pixels.config, rng)
            pixels.write(0, pa.table({"patch_id": ["done"]}))
        configs += [_maps(paths, sr, method, table, rng) for method in METHODS]
    _archive(paths, -(-quads // SHARD), min(SHARD, table.num_rows), rng)
    publish_configs(paths)
    _run(paths, configs, table.num_rows)
    return paths, kind


def corner(tile: str) -> tuple[int, float, float]:
    """Return EPSG code and upper left corner, m, of an MGRS square of 100 km of the northern half, such as 33UUP."""
    zone, band, column, row = int(tile[:2]), tile[2], tile[3], tile[4]
    left = 100_000.0 * (_COLUMNS[(zone - 1) % 3].index(column) + 1)
    bottom = 100_000.0 * ((_ROWS.index(row) - (0 if zone % 2 else 5)) % len(_ROWS))
    begins = 8 * _BANDS.index(band) * 110_500.0  # m north of the equator, rather too few
    while bottom + 100_000 < begins:
        bottom += 100_000.0 * len(_ROWS)  # the letters repeat
    return 32600 + zone, left, bottom + 100_000


def _metadata(patches: int) -> tuple[pa.Table, str]:
    """Return the metadata of patches, and what they are."""
    data = os.environ.get("SUPERSCENE_DATA")
    if data:
        source = Path(data) / "bigearthnet_v2"
        tables = [pq.read_table(source / name) for name in (METADATA, FLAGGED_METADATA)]
        return pa.concat_tables(tables).slice(0, patches), "BigEarthNet v2's metadata"
    numbers = range(patches)
    ids = [
        f"S2A_MSIL2A_2017{i % 12 + 1:02d}13T101031_N9999_R022_T33U{'UVW'[i % 3]}P_{i // 3 % 91:02d}_{i // 273:02d}"
        for i in numbers
    ]
    columns = {
        "patch_id": ids,
        "labels": [[NAMES[i % 19], NAMES[(7 * i + 1) % 19]] for i in numbers],
        "split": [("train", "train", "validation", "test")[i % 4] for i in numbers],
        "country": [("Austria", "Finland")[i % 2] for i in numbers],
        "contains_seasonal_snow": [False] * patches,
        "contains_cloud_or_shadow": [False] * patches,
    }
    return pa.table(columns), "generated"


def _patches(paths: StorePaths, metadata: pa.Table) -> tuple[pa.Table, int]:
    """Write tables/patches; return its rows by shard and row, and how many rows the shards have room for."""
    ids = metadata["patch_id"].to_pylist()
    n = len(ids)
    split = np.array(metadata["split"].to_pylist())
    order = np.lexsort((np.random.default_rng(1).permutation(n), split))
    shard, row, first = np.empty(n, np.int32), np.empty(n, np.int32), 0
    for name in sorted(set(split.tolist())):  # a shard holds one split
        places = order[split[order] == name]
        shard[places] = first + np.arange(len(places)) // SHARD
        row[places] = np.arange(len(places)) % SHARD
        first += -(-len(places) // SHARD)
    parts = [name.rsplit("_", 3) for name in ids]
    corners = {tile: corner(tile.removeprefix("T")) for tile in {part[1] for part in parts}}
    epsg = np.array([corners[part[1]][0] for part in parts])
    left = np.array([corners[part[1]][1] + PATCH_METRES * int(part[2]) for part in parts])
    top = np.array([corners[part[1]][2] - PATCH_METRES * int(part[3]) for part in parts])
    days = [name[11:19] for name in ids]
    columns = {
        "patch_id": metadata["patch_id"],
        "shard": shard,
        "row": row,
        "labels": metadata["labels"],
        "split": metadata["split"],
        "country": metadata["country"],
        "season": [_SEASONS[int(day[4:6]) % 12 // 3] for day in days],
        "acquired": [f"{day[:4]}-{day[4:6]}-{day[6:]}" for day in days],
        "tile": [part[1].removeprefix("T") for part in parts],
        "has_snow": metadata["contains_seasonal_snow"],
        "has_cloud": metadata["contains_cloud_or_shadow"],
        "has_s1": np.ones(n, np.bool_),
        "has_map": np.ones(n, np.bool_),
        "nodata_share": np.zeros(n, np.float32),
        "crs": [f"EPSG:{code}" for code in epsg],
        "geometry": pa.array(footprints(epsg, np.stack([left, top - PATCH_METRES, left + PATCH_METRES, top], axis=1))),
        "source_version": ["benchmark"] * n,
    }
    table = pa.table(columns).select(PATCHES.names).cast(PATCHES)
    publish(paths.table("patches"), table, PATCHES, ["patch_id"])
    return table.sort_by([("shard", "ascending"), ("row", "ascending")]), first * SHARD


def _truth(table: pa.Table) -> NDArray[np.bool_]:
    lists = pa.concat_arrays(table["labels"].chunks)
    hot = np.zeros((table.num_rows, len(NAMES)), np.bool_)
    codes = pc.index_in(lists.flatten(), value_set=pa.array(NAMES)).to_numpy()
    hot[np.repeat(np.arange(table.num_rows), pc.list_value_length(lists).to_numpy()), codes] = True
    return hot


def _lists(hot: NDArray[np.bool_]) -> pa.ListArray:
    offsets = np.concatenate([[0], np.cumsum(hot.sum(axis=1))]).astype(np.int32)
    return pa.ListArray.from_arrays(pa.array(offsets), pa.array(NAMES).take(pa.array(np.nonzero(hot)[1])))


def _predictions(
    paths: StorePaths, sr: str, config: str, table: pa.Table, truth: NDArray[np.bool_], rng: np.random.Generator
) -> NDArray[np.bool_]:
    probs = np.where(truth, 0.8, 0.15).astype(np.float32) + rng.normal(0, 0.18, truth.shape).astype(np.float32)
    probs = probs.clip(0, 1)
    rows = pa.table(
        {
            "patch_id": table["patch_id"],
            "split": table["split"],
            "seed": np.full(len(probs), SEED, np.int32),
            "probs": pa.FixedSizeListArray.from_arrays(pa.array(probs.ravel()), len(NAMES)),
            "predicted": _lists(probs >= 0.5),
            "labels": table["labels"],
        }
    )
    parts = StageParts(paths, "predictions", config)
    for shard, first, end in _shards(table):
        parts.write(shard, rows.slice(first, end - first))
    folder = hive_folder(paths.table("predictions"), sr=sr, classifier=CLASSIFIER, config=config)
    publish(folder, rows, predictions_schema(len(NAMES)), ["patch_id", "seed"])
    return probs >= 0.5


def _shards(table: pa.Table) -> list[tuple[int, int, int]]:
    """Return the shards of patches in their order, and the first row of each and of the next one."""
    shards, first = np.unique(table["shard"].to_numpy(), return_index=True)
    ends = [*first[1:].tolist(), table.num_rows]
    return list(zip(shards.tolist(), first.tolist(), ends, strict=True))


def _reliability(
    paths: StorePaths,
    sr: str,
    config: str,
    table: pa.Table,
    truth: NDArray[np.bool_],
    given: NDArray[np.bool_],
    rng: np.random.Generator,
) -> None:
    """Clusters at random: a row for each patch and label, in parts, which are then published in order."""
    parts = stage_parts(paths, "reliability", {"sr": sr})
    rates = rng.random((len(NAMES), _CLUSTERS)) * 0.4
    for shard, first, end in _shards(table):
        some = table.slice(first, end - first)
        n = some.num_rows
        cluster = rng.integers(0, _CLUSTERS, (n, len(NAMES)))
        rate = rates[np.arange(len(NAMES)), cluster].ravel()
        patch, label = (values.ravel() for values in np.indices((n, len(NAMES))))
        predicted = given[first : first + n].ravel()
        columns = {
            "patch_id": some["patch_id"].take(pa.array(patch)),
            "split": some["split"].take(pa.array(patch)),
            "label": pa.array(NAMES).take(pa.array(label)),
            "seed": np.full(len(patch), SEED, np.int32),
            "prob": predicted.astype(np.float32),
            "predicted": predicted,
            "truth": truth[first : first + n].ravel(),
            "cluster": cluster.ravel().astype(np.int32),
            "cluster_error_rate": rate,
            "reliability": 1 - rate,
            "adjusted": predicted,
        }
        parts.write(shard, pa.table(columns).cast(RELIABILITY))
    folder = hive_folder(paths.table("reliability"), sr=sr, classifier=CLASSIFIER, config=config)
    files = [parts.path(shard) for shard in sorted(parts.done())]
    publish_parts(folder, files, RELIABILITY, ["patch_id", "label"])
    of = {"sr": sr, "classifier": CLASSIFIER, "config": config, "method": METHODS[0], "seed": SEED, "split": "fit"}
    clusters = [
        {**of, "label": name, "cluster": c, "n": 1000, "tp": 1, "tn": 1, "fp": 1, "fn": 1, "error_rate": rates[k, c]}
        | {"flipped": False, "height": 4, "width": 4, "prototype": rng.random(16).tolist()}
        for k, name in enumerate(NAMES)
        for c in range(_CLUSTERS)
    ]
    rows = pa.Table.from_pylist(clusters, RELIABILITY_CLUSTERS)
    publish(paths.table("reliability_clusters"), rows, RELIABILITY_CLUSTERS, ["label", "cluster"], file_stem=config)


def _archive(paths: StorePaths, n_shards: int, first_shard: int, rng: np.random.Generator) -> None:
    """Pixels of the first shard; of all others there are none."""
    create_store(paths.archive, archive_arrays(BIGEARTHNET), SHARD, n_shards, {})
    archive = ShardedStore(paths.archive, writable=True)
    for name, high in ((S2_10M.array, 3000), ("reference_map", 400)):
        shape = (SHARD, *archive.array(name).shape[1:])
        archive.write(0, name, rng.integers(0, high, shape, dtype=np.uint16))
    archive.write(0, "valid", np.arange(SHARD) < first_shard)


def _sr_pixels(paths: StorePaths, sr: str, config: str, rng: np.random.Generator) -> None:
    spec = ArraySpec("sr", ("band", "y", "x"), (3, 480, 480), "uint16", 0, {}, chunk=4, zarr_shard=WITH_SR)
    create_store(paths.super_resolved(sr, config), (spec,), SHARD, 1, {})
    store = ShardedStore(paths.super_resolved(sr, config), writable=True)
    store.write(0, "sr", rng.integers(0, 3000, (WITH_SR, 3, 480, 480), dtype=np.uint16))


def _maps(paths: StorePaths, sr: str, method: str, table: pa.Table, rng: np.random.Generator) -> str:
    config = stage_parts(paths, "explanations", {"sr": sr, "method": method}).config
    store, size = paths.maps(method, config), 4 if sr == "none" else 15
    n = min(SHARD, table.num_rows)
    create_map_store(store, NAMES, (size, size), SHARD, 1, {})
    writer = MapWriter(store, 0)
    writer.add(np.arange(n), rng.random((n, len(NAMES), size, size), dtype=np.float32))
    writer.close()
    of = {"split": "train", "label": NAMES[0], "seed": SEED, "prob": 0.5, "sampled": False, "map_label": 0}
    of = {**of, "map_store": str(store.relative_to(paths.root))}
    ids = table["patch_id"].slice(0, n).to_pylist()
    rows = [{**of, "patch_id": patch_id, "map_index": i} for i, patch_id in enumerate(ids)]
    folder = hive_folder(paths.table("explanations"), sr=sr, classifier=CLASSIFIER, method=method, config=config)
    publish(folder, pa.Table.from_pylist(rows, EXPLANATIONS), EXPLANATIONS, ["patch_id", "label"])
    return config


def _run(paths: StorePaths, configs: list[str], n: int) -> None:
    now = datetime(2026, 1, 1, tzinfo=UTC)
    settings: Mapping[str, object] = {"sr": SR, "classifiers": [CLASSIFIER], "explain": {"methods": METHODS}}
    stage = {"stage": "predict", "done": 1, "skipped": 0, "failed": 0, "patches": n, "seconds": 1.0}
    row = {
        "run_id": "20260101T000000000000Z",
        "started": now,
        "ended": now,
        "status": "complete",
        "configs": configs,
        "run_yaml": json.dumps(settings),
        "versions": "{}",
        "startup_seconds": 0.0,
        "inputs": n,
        "patches": n,
        "quarantined": 0,
        "absent": 0,
        "stages": [{**stage, "patches_per_second": 1.0}],
    }
    publish(paths.table("runs"), pa.Table.from_pylist([row], RUNS), RUNS, ["run_id"], file_stem=f"run-{row['run_id']}")
