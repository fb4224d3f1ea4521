"""A store made of numbers that a test can foresee: tables and Zarr stores without a run behind them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pyarrow as pa

from infra.archives.model import BIGEARTHNET
from infra.bigearthnet.bands import S2_10M
from infra.bigearthnet.classes import NAMES
from infra.fingerprint import Json
from infra.parts import stage_parts
from infra.storage import StorePaths
from infra.tables import (
    CALIBRATION,
    CLASSES,
    COMPARISONS,
    EXPLANATION_METRICS,
    EXPLANATIONS,
    METRICS,
    PATCHES,
    QUARANTINE,
    QUARANTINED_MAPS,
    RUNS,
    SR_QUALITY,
    TRAINING,
    hive_folder,
    predictions_schema,
    publish,
)
from infra.zarr_store import ArraySpec, ShardedStore, archive_arrays, create_store
from tasks.map_store import MapWriter, create_map_store
from tasks.publish import publish_configs

SR = ("none", "bicubic", "srresnet")
CLASSIFIERS = ("resnet18", "resnet50")
NASTY = "<script>alert('patch')</script>&amp;"
"""A name that would do harm in a page that does not escape it."""
PATCH_IDS = ("p0", "p1", NASTY, "p3")
TILES = ("33UUP", "34VDK")
"""Tiles of the first two patches, and of the last two."""
MAP_EDGE = 4

AP = {
    ("resnet18", "none"): 0.5,
    ("resnet18", "bicubic"): 0.52,
    ("resnet18", "srresnet"): 0.561,
    ("resnet18", "hr"): 0.75,
    ("resnet50", "none"): 0.7,
    ("resnet50", "bicubic"): 0.65,
    ("resnet50", "srresnet"): 0.6999,
    ("resnet50", "hr"): 0.625,
}
"""Mean over the seeds; so are the next three."""
HL = {"none": 0.3, "bicubic": 0.2, "srresnet": 0.1, "hr": 0.05}
ACC = {"none": 0.41, "bicubic": 0.4438, "srresnet": 0.4451, "hr": 0.5}
F2 = {"none": 0.25, "bicubic": 0.75, "srresnet": 0.5, "hr": 0.875}
WIDTH = {"resnet18": 0.03, "resnet50": 0.06}
"""Half of a difference's interval."""
MAP_METHODS = (
    "grad_cam",
    "hires_cam",
    "eigen_cam",
    "layer_cam",
    "grad_cam_pp",
    "smooth_grad_cam_pp",
    "score_cam",
    "random",
)
"""Methods of a store of judged maps, in the order of RUN.yaml."""
JUDD = {
    "grad_cam": 0.75,
    "hires_cam": 0.7504,
    "eigen_cam": 0.625,
    "layer_cam": 0.8125,
    "grad_cam_pp": 0.6875,
    "smooth_grad_cam_pp": 0.5625,
    "random": 0.4375,
}
"""Mean Judd AUC on none; each branch behind it has 1/32 more. HiResCAM is Grad-CAM but for rounding."""
SAMPLE_JUDD = {
    **JUDD,
    "eigen_cam": 0.9375,
    "layer_cam": 0.59375,
    "score_cam": 0.875,
    "random": 0.46875,
}
"""The same on the sample, the only patches that Score-CAM saw."""
POINTING = {
    "grad_cam": 0.25,
    "hires_cam": 0.25,
    "eigen_cam": 0.375,
    "layer_cam": 0.125,
    "grad_cam_pp": 0.0625,
    "smooth_grad_cam_pp": -0.125,
    "score_cam": 0.5,
    "random": 0.0,
}
"""Mean pointing less area."""
MAP_WIDTH = 0.015625
"""Half of an interval."""
QUARTER_AREAS = (0.0625, 0.125, 0.25, 0.5)
"""Mean area of the labels of each quarter."""
LABELS: tuple[list[str], ...] = (["Urban fabric", "Pastures"], ["Urban fabric"], ["Inland waters", "Marine waters"], [])
"""True labels of the patches."""
PICTURE_LABELS = ("airplane", "beach", "court", "dock", "field")
"""Labels of an archive of pictures; classifiers do not know the last one."""

SOMEWHERE = {
    "country": "Austria",
    "season": "summer",
    "acquired": "2017-06-13",
    "crs": "EPSG:32633",
    "has_snow": False,
    "has_cloud": False,
}
NOWHERE = {"crs": ""}


@dataclass(frozen=True, slots=True)
class Wanted:
    """What a store is to hold."""

    labelled: bool = True
    n: int = len(PATCH_IDS)
    sr: tuple[str, ...] = SR
    seeds: tuple[int, ...] = (7,)
    study: bool = False
    """Whether comparisons, calibration, and metrics by country and season are there."""
    pictures: bool = False
    """Whether the archive is of pictures: 64 x 64 pixels of R, G, B, other labels, no tiles, no CRS; the ceiling, where
    it is among the branches, has them, and the others see a quarter of that."""
    judged: Literal["not", "located", "coverage"] = "not"
    """Whether maps of several methods were judged: against land cover too, or their coverage alone."""

    @property
    def degrade(self) -> int | None:
        """Factor by which all branches but the ceiling see the pixels reduced."""
        return 4 if "hr" in self.sr else None

    @property
    def labels(self) -> tuple[str, ...]:
        """The archive's labels."""
        return PICTURE_LABELS if self.pictures else NAMES

    def truth(self, patch: int) -> list[str] | None:
        """True labels of a patch."""
        if not self.labelled:
            return None
        return ["airplane", "field"] if self.pictures else LABELS[patch]


STUDY = Wanted(sr=("hr", *SR), seeds=(7, 8, 9), study=True)
"""Three seeds, the ceiling, and everything that a study has; the ceiling comes first in RUN.yaml."""


@dataclass(frozen=True, slots=True)
class Made:
    """A store, and what was put into it."""

    paths: StorePaths
    dn: Any
    """Bands of the patches, uint16: B02, B03, B04, B08, (4, 4, 120, 120); of pictures R, G, B, (4, 3, 64, 64)."""
    configs: Mapping[str, str]
    """Predictions config by "classifier sr"."""


def make_store(root: Path, wanted: Wanted = Wanted()) -> Made:
    """Write a store of one shard of test patches, and two classifiers."""
    paths = StorePaths(root)
    dn = _archive(paths, wanted)
    configs, predictions = [], {}
    for sr in wanted.sr:
        pixels = stage_parts(paths, "super_resolve", {"sr": sr, "sr_input_max_dn": 3000})
        if sr == "srresnet":
            size = 4 * dn.shape[-1] // (wanted.degrade or 1)
            spec = ArraySpec("sr", ("band", "y", "x"), (3, size, size), "uint16", 0, {})
            create_store(paths.super_resolved(sr, pixels.config), (spec,), 4, 1, {})
            store = ShardedStore(paths.super_resolved(sr, pixels.config), writable=True)
            store.write(0, "sr", np.full((4, 3, size, size), 375, np.uint16))
            pixels.write(0, pa.table({"patch_id": list(PATCH_IDS)}))
        if sr not in {"none", "hr"}:
            quality = stage_parts(paths, "sr_quality", {"sr": sr, "pixels": pixels.config})
            configs.append(quality.config)
            _quality(paths, sr, pixels.config, wanted.n)
        for classifier in CLASSIFIERS:
            parts = stage_parts(paths, "predictions", {"classifier": classifier, "pixels": pixels.config})
            maps = stage_parts(paths, "explanations", {"predictions": parts.config})
            predictions[f"{classifier} {sr}"] = parts.config
            configs += [parts.config, maps.config]
            _predictions(paths, sr, classifier, parts.config, wanted)
            _explanations(paths, sr, classifier, maps.config, wanted)
            if wanted.judged != "not":
                configs += _judged_maps(paths, sr, classifier, parts.config, wanted)
            if wanted.labelled:
                _metrics(paths, sr, classifier, parts.config, wanted)
            if wanted.study:
                _calibration(paths, sr, classifier, parts.config, wanted)
            train = stage_parts(paths, "train", {"classifier": classifier, "pixels": pixels.config})
            configs.append(train.config)
            _training(paths, sr, classifier, train.config, wanted)
    if wanted.study:
        _comparisons(paths, predictions, wanted)
    classes = [{"label_index": i, "label": label, "clc_codes": []} for i, label in enumerate(wanted.labels)]
    publish(paths.table("classes"), pa.Table.from_pylist(classes, CLASSES), CLASSES, ["label_index"])
    _patches(paths, wanted)
    _quarantine(paths)
    publish_configs(paths)
    _run(paths, configs, wanted)
    return Made(paths, dn, predictions)


def _archive(paths: StorePaths, wanted: Wanted) -> Any:
    rng = np.random.default_rng(0)
    n_bands, cell = (3, 16) if wanted.pictures else (4, 20)  # noise in every pixel would take long to compress
    blocks = rng.integers(0, 4000, (len(PATCH_IDS), n_bands, 6 if cell == 20 else 4, 6 if cell == 20 else 4))
    dn = np.kron(blocks.astype(np.uint16), np.ones((1, 1, cell, cell), np.uint16))
    if wanted.pictures:
        rgb = ArraySpec("rgb", ("band_rgb", "y", "x"), dn.shape[1:], "uint16", 0, {}, names=("R", "G", "B"))
        create_store(paths.archive, (rgb,), 4, 1, {})
        ShardedStore(paths.archive, writable=True).write(0, "rgb", dn)
    else:
        create_store(paths.archive, archive_arrays(BIGEARTHNET), 4, 1, {})
        ShardedStore(paths.archive, writable=True).write(0, S2_10M.array, dn)
    return dn


def _probs(patch: int, wanted: Wanted) -> list[float | None]:
    """First label 0.9, third 0.8, fifth 0.3, the rest 0.1: one right, one wrong, one missed in p0."""
    probs = np.full(len(wanted.labels), 0.1)
    probs[[0, 2, 4]] = 0.9 - 0.01 * patch, 0.8, 0.3
    values: list[float | None] = [float(p) for p in probs]
    return [*values[:-1], None] if wanted.pictures else values


def _predictions(paths: StorePaths, sr: str, classifier: str, config: str, wanted: Wanted) -> None:
    schema = predictions_schema(len(wanted.labels))
    rows = [
        {
            "patch_id": patch_id,
            "split": "test",
            "seed": seed,
            "probs": _probs(i, wanted),
            "predicted": [wanted.labels[0], wanted.labels[2]],
            "labels": wanted.truth(i),
        }
        for i, patch_id in enumerate(PATCH_IDS[: wanted.n])
        for seed in wanted.seeds
    ]
    folder = hive_folder(paths.table("predictions"), sr=sr, classifier=classifier, config=config)
    publish(folder, pa.Table.from_pylist(rows, schema), schema, ["patch_id", "seed"])


def _explanations(paths: StorePaths, sr: str, classifier: str, config: str, wanted: Wanted) -> None:
    store = paths.maps("grad_cam", config)
    n_labels = len(wanted.labels)
    create_map_store(store, wanted.labels, (MAP_EDGE, MAP_EDGE), 4, 1, {})
    maps = np.zeros((4, n_labels, MAP_EDGE, MAP_EDGE), np.float32)
    maps[:, 0, 0, 0] = 5.0  # the first label: bright in one corner; the third: a zero map
    writer = MapWriter(store, 0)
    writer.add(np.arange(4), maps)
    writer.close()
    rows = [
        {
            "patch_id": patch_id,
            "split": "test",
            "sampled": False,
            "label": wanted.labels[label],
            "seed": wanted.seeds[0],
            "prob": _probs(i, wanted)[label],
            "map_store": str(store.relative_to(paths.root)),
            "map_index": i,
            "map_label": label,
        }
        for i, patch_id in enumerate(PATCH_IDS[: wanted.n])
        for label in (0, 2)
    ]
    folder = hive_folder(paths.table("explanations"), sr=sr, classifier=classifier, method="grad_cam", config=config)
    publish(folder, pa.Table.from_pylist(rows, EXPLANATIONS), EXPLANATIONS, ["patch_id", "label"])


def _judged_maps(paths: StorePaths, sr: str, classifier: str, predictions: str, wanted: Wanted) -> list[str]:
    """Numbers of every method, and rows beside them that no table of the report shows; return the configs.

    There is a sample of half of the patches, and Score-CAM was run on no others; two maps of LayerCAM on srresnet are
    quarantined.
    """
    configs = []
    for method in MAP_METHODS:
        determines: dict[str, Json] = {"predictions": predictions, "method": method, "sample": 2}
        config = stage_parts(paths, "explanations", determines).config
        configs.append(config)
        of = {"sr": sr, "classifier": classifier, "method": method, "config": config, "seed": wanted.seeds[0]}
        rows = []
        for subset in ("all", "sample"):
            if subset == "sample" or method != "score_cam":
                of_subset = {**of, "subset": subset}
                rows += [*_map_rows(of_subset, wanted), *_area_rows(of_subset, wanted)]
                rows += _map_minus_rows(of_subset, wanted)
        rows += [{**row, "split": "train", "value": 0.999} for row in rows]
        table = pa.Table.from_pylist(rows, EXPLANATION_METRICS)
        stem = f"{sr}-{classifier}-{method}-{config}"
        publish(paths.table("explanation_metrics"), table, EXPLANATION_METRICS, ["method", "metric"], file_stem=stem)
        for of_run in (config, "a0000000"):
            n = 2 * (sr == "srresnet" and method == "layer_cam")
            fault = {"patch_id": "p0", "label": wanted.labels[0], "seed": 7, "reason": "not finite", "detail": "NaN"}
            keys = {"sr": sr, "classifier": classifier, "method": method, "config": of_run}
            folder = hive_folder(paths.table("quarantined_maps"), **keys)
            publish(folder, pa.Table.from_pylist([fault] * n, QUARANTINED_MAPS), QUARANTINED_MAPS, [])
    return configs


def _map_rows(of: Mapping[str, Any], wanted: Wanted) -> list[dict[str, Any]]:
    method, shift = of["method"], wanted.sr.index(of["sr"]) / 32
    sampled = of["subset"] == "sample"
    n = 20 if sampled else 40
    values = {"coverage": 0.5 + shift, "entropy": 0.9, "zero_share": 0.25 if method == "eigen_cam" else 0.0}
    uniform = {}
    if wanted.judged == "located":
        judd = (SAMPLE_JUDD if sampled else JUDD)[method]
        values |= {"judd_auc": judd + shift, "pointing_minus_area": POINTING[method], "iou_75": 0.375}
        values |= {"correlation": judd - 0.5}
        uniform = {"judd_auc": 0.5, "pointing_minus_area": 0.0, "iou_75": 0.125 if sampled else 0.25}
    if method == "layer_cam" and sampled:
        values |= {"average_drop": 12.5, "average_increase": 25.0, "deletion_auc": 0.125, "insertion_auc": 0.375}
    of_test = {**of, "split": "test"}
    rows = [_map_row(of_test, name, value, n if name == "zero_share" else n // 2) for name, value in values.items()]
    rows += [_map_row(of_test, name, value, n // 2) | {"method": "uniform"} for name, value in uniform.items()]
    return rows + [row | {"label": wanted.labels[0], "value": 0.999} for row in rows]


def _area_rows(of: Mapping[str, Any], wanted: Wanted) -> list[dict[str, Any]]:
    if wanted.judged != "located":
        return []
    rows = []
    for quarter, area in enumerate(QUARTER_AREAS, start=1):
        of_quarter = {**of, "split": "test", "area_quartile": quarter}
        above = (0.125 if of["method"] == "grad_cam" else 0.0625) / (1 if of["subset"] == "all" else 2)
        rows.append(_map_row(of_quarter, "iou_75", area + above, 5))
        rows.append(_map_row(of_quarter, "iou_75", area, 5) | {"method": "uniform"})
        rows.append(_map_row(of_quarter, "similarity", area / 2, 5) | {"method": "uniform"})
    return rows


def _map_minus_rows(of: Mapping[str, Any], wanted: Wanted) -> list[dict[str, Any]]:
    """Differences: to bicubic 1/32 of Judd AUC and of coverage, 1/16 on the sample; to none something else."""
    rows = []
    step = 0.03125 if of["subset"] == "all" else 0.0625
    for reference in {"none", "bicubic"} & set(wanted.sr) - {of["sr"]} if of["sr"] != "none" else ():
        compared = {**of, "split": "test", "reference": reference}
        values = {"coverage": step} | ({"judd_auc": step} if wanted.judged == "located" else {})
        rows += [_map_row(compared, name, v if reference == "bicubic" else 0.777, 18) for name, v in values.items()]
    return rows


def _map_row(of: Mapping[str, Any], metric: str, value: float, n: int) -> dict[str, Any]:
    return {**of, "metric": metric, "value": value, "low": value - MAP_WIDTH, "high": value + MAP_WIDTH, "n": n}


def _offsets(wanted: Wanted) -> dict[int, float]:
    """How far each seed lies from the mean over seeds."""
    middle = (len(wanted.seeds) - 1) / 2
    return {seed: (i - middle) / 64 for i, seed in enumerate(wanted.seeds)}


def _metrics(paths: StorePaths, sr: str, classifier: str, config: str, wanted: Wanted) -> None:
    rows: list[dict[str, Any]] = []
    often, never = (wanted.labels[0], 2.0), (wanted.labels[10 % len(wanted.labels)], 0.0)
    for seed, offset in _offsets(wanted).items():
        common = {"sr": sr, "classifier": classifier, "config": config, "seed": seed, "n": 4, "n_labels": 19}
        test = {**common, "split": "test"}
        ap = AP[classifier, sr] + offset
        overall = {"acc": ACC[sr] + offset, "hl": HL[sr], "oe": None, "ap_macro": ap, "prevalence_macro": 0.125}
        rows += [
            {**common, "split": split, "metric": metric, "value": value}
            for split in ("test", "train")
            for metric, value in overall.items()
        ]
        above = {"metric": "ap_macro_above_prevalence", "value": ap - 0.125, "low": ap - 0.2, "high": ap - 0.05}
        rows.append({**test, **above})
        rows.append({**test, "metric": "f2_macro", "value": F2[sr] / 2 + offset})
        rows += [{**test, "metric": "f2", "label": often[0], "value": F2[sr] + offset}]
        rows += [{**test, "metric": "f2", "label": never[0], "value": 0.0}]
        rows += [{**test, "metric": "support", "label": label, "value": count} for label, count in (often, never)]
        if wanted.study:
            rows.append({**test, "metric": "ece", "value": 0.0625 + offset})
            ends = {"low": ap - 0.1, "high": ap + 0.08}
            rows = [{**r, **ends} if (r["metric"], r["seed"]) == ("ap_macro", seed) else r for r in rows]
            # of a part of the patches: they must not get into any mean over all patches
            rows.append({**test, "metric": "ap_macro", "value": 0.999, "country": "Austria", "n": 3})
            rows.append({**test, "metric": "f2", "label": often[0], "value": 0.999, "season": "summer", "n": 3})
    table = pa.Table.from_pylist(rows, METRICS)
    publish(paths.table("metrics"), table, METRICS, ["split", "metric"], file_stem=f"{sr}-{classifier}-{config}")


def _comparisons(paths: StorePaths, configs: Mapping[str, str], wanted: Wanted) -> None:
    """Differences of the means, with intervals of the same width for all of a classifier's."""
    places = [(None, None, 4), ("Austria", None, 3), ("Ireland", None, 12), (None, "summer", 4), (None, "winter", 2)]
    for key, config in configs.items():
        classifier, sr = key.split()
        rows = []
        for reference in {"none", "bicubic"} - {sr}:
            differences = [
                ("acc", None, ACC[sr] - ACC[reference], *places[0]),
                ("hl", None, HL[sr] - HL[reference], *places[0]),
                ("oe", None, None, *places[0]),
                ("f2_macro", None, (F2[sr] - F2[reference]) / 2, *places[0]),
                ("f2", wanted.labels[0], F2[sr] - F2[reference], *places[0]),
                ("f2", wanted.labels[10], 0.0, *places[0]),
                *(("ap_macro", None, AP[classifier, sr] - AP[classifier, reference], *place) for place in places),
            ]
            for metric, label, value, country, season, n in differences:
                width = WIDTH[classifier]
                ends = {} if value is None else {"low": value - width, "high": value + width}
                rows.append(
                    {
                        "sr": sr,
                        "reference": reference,
                        "classifier": classifier,
                        "config": config,
                        "reference_config": configs[f"{classifier} {reference}"],
                        "split": "test",
                        "country": country,
                        "season": season,
                        "metric": metric,
                        "label": label,
                        "value": value,
                        **ends,
                        "significant": None if value is None or len(wanted.seeds) < 3 else abs(value) > width,
                        "n_seeds": len(wanted.seeds),
                        "n": n,
                        "n_labels": 19,
                    }
                )
        table = pa.Table.from_pylist(rows, COMPARISONS)
        publish(paths.table("comparisons"), table, COMPARISONS, ["metric", "reference"], file_stem=f"{sr}-{config}")


def _calibration(paths: StorePaths, sr: str, classifier: str, config: str, wanted: Wanted) -> None:
    """Four bins: 900 and 100 decisions in the outer ones, few in the third, none in the second."""
    best = 0.75 + 0.0625 * wanted.sr.index(sr)
    bins = [(0, 900, 0.0625, 0.125), (1, 0, None, None), (2, 4, 0.5625, 0.25), (3, 100, 0.875, best)]
    rows = [
        {
            "sr": sr,
            "classifier": classifier,
            "config": config,
            "seed": seed,
            "split": split,
            "bin": i,
            "prob_low": i / 4,
            "prob_high": (i + 1) / 4,
            "n": n,
            "prob_mean": mean,
            "positive_share": share,
        }
        for split in ("test", "train")
        for seed in wanted.seeds
        for i, n, mean, share in bins
    ]
    table = pa.Table.from_pylist(rows, CALIBRATION)
    publish(paths.table("calibration"), table, CALIBRATION, ["split", "seed", "bin"], file_stem=f"{sr}-{config}")


def _quality(paths: StorePaths, sr: str, config: str, n: int) -> None:
    """A network is 1 dB better, improves less, makes up more in one tile and less in the other, is off by 0.5 px."""
    network = float(sr == "srresnet")
    rows = [
        {
            "patch_id": patch_id,
            "sr": sr,
            "config": config,
            "psnr_db": 30.0 + i + network,
            "ssim": None if i == 0 else 0.75,
            "sam_deg": 2.0 - network,
            "ergas": 3.0,
            "improvement_share": 0.25 - 0.125 * network,
            "omission_share": 0.5,
            "hallucination_share": 0.25 + (0.125 if i < 2 else -0.125) * network,
            "reflectance_mae": 0.0015,
            "consistency_sam_deg": 0.25,
            "shift_row_px": -0.3 * network,
            "shift_col_px": 0.4 * network,
            "clipped_share": 0.015,
        }
        for i, patch_id in enumerate(PATCH_IDS[:n])
    ]
    table = pa.Table.from_pylist(rows, SR_QUALITY)
    publish(paths.table("sr_quality"), table, SR_QUALITY, ["patch_id"], file_stem=f"{sr}-{config}")


def _training(paths: StorePaths, sr: str, classifier: str, config: str, wanted: Wanted) -> None:
    rows = [
        {
            "sr": sr,
            "classifier": classifier,
            "config": config,
            "seed": seed,
            "fitted": "network",
            "epoch": epoch,
            "lr": 0.001,
            "train_loss": 0.9 - 0.1 * epoch + offset,
            "validation_loss": 0.8 - 0.05 * epoch + offset,
            "train_accuracy": 0.75 + 0.05 * epoch,
            "validation_accuracy": 0.7 + 0.04 * epoch + offset,
            "validation_ap_macro": [0.5, 0.625, 0.6, 0.55][epoch] + offset,
            "best": epoch == 1,
            "seconds": 1.0,
            "wait_share": 0.01,
        }
        for seed, offset in _offsets(wanted).items()
        for epoch in range(4 if seed == 9 else 3)  # the third seed stops later
    ]
    table = pa.Table.from_pylist(rows, TRAINING)
    publish(paths.table("training"), table, TRAINING, ["seed", "epoch"], file_stem=config)


def _patches(paths: StorePaths, wanted: Wanted) -> None:
    rows = [
        {
            "patch_id": patch_id,
            "shard": 0,
            "row": i,
            "labels": wanted.truth(i),
            "split": "test",
            **(NOWHERE if wanted.pictures else {**SOMEWHERE, "tile": TILES[i // 2]}),
            "has_s1": False,
            "has_map": False,
            "nodata_share": 0.0,
            "geometry": b"",
            "source_version": "test",
        }
        for i, patch_id in enumerate(PATCH_IDS[: wanted.n])
    ]
    publish(paths.table("patches"), pa.Table.from_pylist(rows, PATCHES), PATCHES, ["patch_id"])


def _quarantine(paths: StorePaths) -> None:
    rows = [{"path": f"folder/{i}", "reason": "truncated", "detail": f"the file {i} ends early"} for i in range(5)]
    rows += [{"path": "x/<b>", "reason": "bad name", "detail": '<img src="http://example.org/x.png" onerror="f()">'}]
    publish(paths.table("quarantine"), pa.Table.from_pylist(rows, QUARANTINE), QUARANTINE, ["reason", "path"])


def _run(paths: StorePaths, configs: list[str], wanted: Wanted) -> None:
    n = wanted.n
    started = datetime(2026, 3, 4, 5, 6, tzinfo=UTC)
    stage = {"stage": "predict none", "done": 1, "skipped": 0, "failed": 0, "patches": n, "seconds": 8.0}
    row = {
        "run_id": "20260304T050600000000Z",
        "started": started,
        "ended": started + timedelta(seconds=3725),
        "status": "complete",
        "configs": configs,
        "run_yaml": json.dumps(
            {
                "archive": {"layout": "bigearthnet-v2"},
                "sr": wanted.sr,
                "degrade": wanted.degrade,
                "sr_input_max_dn": 3000,
                "classifiers": CLASSIFIERS,
                "explain": {"methods": ["grad_cam"] if wanted.judged == "not" else MAP_METHODS},
            }
        ),
        "versions": json.dumps({"superscene": "0.1.0", "python": "3.12.1"}),
        "git_commit": None,
        "startup_seconds": 12.5,
        "inputs": 1000 + n,
        "patches": n,
        "quarantined": 6,
        "absent": 994,
        "stages": [{**stage, "patches_per_second": n / 8.0}],
    }
    publish(paths.table("runs"), pa.Table.from_pylist([row], RUNS), RUNS, ["run_id"], file_stem=f"run-{row['run_id']}")


class TableCell:
    """One cell."""

    def __init__(self, attributes: dict[str, str]) -> None:
        self.attributes = attributes
        self.texts: list[str] = []
        self.bold = False

    @property
    def text(self) -> str:
        """Its text, white space as one blank."""
        return " ".join("".join(self.texts).split())

    @property
    def value(self) -> float | None:
        """The number behind the text."""
        return float(self.attributes["data-v"]) if "data-v" in self.attributes else None


class Page(HTMLParser):
    """A page as a browser would read it: elements, texts, and the cells of tables."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str]]] = []
        self.texts: list[str] = []
        """Text outside scripts and style sheets."""
        self.tables: dict[str, list[list[TableCell]]] = {}
        """Rows of cells by the table's id, or its number."""
        self._path: list[str] = []
        self.feed(text)
        self.close()

    @property
    def text(self) -> str:
        """All text, white space as one blank."""
        return re.sub(r"[ \n]+", " ", " ".join(self.texts))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = {name: value or "" for name, value in attrs}
        self.elements.append((tag, values))
        if tag not in {"meta", "link", "img", "br"}:
            self._path.append(tag)
        if tag == "table":
            self.tables[values.get("id", str(len(self.tables)))] = []
        elif tag == "tr":
            self._rows.append([])
        elif tag in {"td", "th"}:
            self._rows[-1].append(TableCell(values))
        elif tag == "b" and {"td", "th"} & set(self._path):
            self._rows[-1][-1].bold = True

    def handle_endtag(self, tag: str) -> None:
        assert self._path.pop() == tag, f"</{tag}> closes nothing"

    def handle_data(self, data: str) -> None:
        if not {"script", "style"} & set(self._path):
            self.texts.append(data)
        if {"td", "th"} & set(self._path):
            self._rows[-1][-1].texts.append(data)

    @property
    def _rows(self) -> list[list[TableCell]]:
        return list(self.tables.values())[-1]
