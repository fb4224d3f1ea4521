"""A store made of numbers that a test can foresee: tables and Zarr stores without a run behind them."""

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from infra.bigearthnet.bands import S2_10M
from infra.bigearthnet.classes import NAMES
from infra.parts import stage_parts
from infra.storage import StorePaths
from infra.tables import (
    EXPLANATIONS,
    METRICS,
    PATCHES,
    QUARANTINE,
    RUNS,
    SR_QUALITY,
    TRAINING,
    hive_folder,
    predictions_schema,
    publish,
)
from infra.zarr_store import ArraySpec, ShardedStore, archive_arrays, create_store
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
    ("resnet50", "none"): 0.7,
    ("resnet50", "bicubic"): 0.65,
    ("resnet50", "srresnet"): 0.6999,
}
HL = {sr: 0.3 - 0.1 * i for i, sr in enumerate(SR)}
ACC = {"none": 0.41, "bicubic": 0.4438, "srresnet": 0.4451}
F2 = {"none": 0.25, "bicubic": 0.75, "srresnet": 0.5}
LABELS: tuple[list[str], ...] = (["Urban fabric", "Pastures"], ["Urban fabric"], ["Inland waters", "Marine waters"], [])
"""True labels of the patches."""


@dataclass(frozen=True, slots=True)
class Made:
    """A store, and what was put into it."""

    paths: StorePaths
    dn: Any
    """B02, B03, B04, B08 of the patches, (4, 4, 120, 120) uint16."""
    configs: Mapping[str, str]
    """Predictions config by "classifier sr"."""


def make_store(root: Path, *, labelled: bool = True, n: int = len(PATCH_IDS)) -> Made:
    """Write a store of one shard: n test patches, three SR models, two classifiers, one seed."""
    paths = StorePaths(root)
    rng = np.random.default_rng(0)
    blocks = rng.integers(0, 4000, (len(PATCH_IDS), 4, 6, 6)).astype(np.uint16)
    dn = np.kron(blocks, np.ones((1, 1, 20, 20), np.uint16))  # noise in every pixel would take long to compress
    create_store(paths.archive, archive_arrays(NAMES), 4, 1, {})
    ShardedStore(paths.archive, writable=True).write(0, S2_10M.array, dn)
    configs, predictions = [], {}
    for sr in SR:
        pixels = stage_parts(paths, "super_resolve", {"sr": sr, "sr_input_max_dn": 3000})
        if sr == "srresnet":
            spec = ArraySpec("sr", ("band", "y", "x"), (3, 480, 480), "uint16", 0, {})
            create_store(paths.super_resolved(sr, pixels.config), (spec,), 4, 1, {})
            store = ShardedStore(paths.super_resolved(sr, pixels.config), writable=True)
            store.write(0, "sr", np.full((4, 3, 480, 480), 375, np.uint16))
            pixels.write(0, pa.table({"patch_id": list(PATCH_IDS)}))
        if sr != "none":
            quality = stage_parts(paths, "sr_quality", {"sr": sr, "pixels": pixels.config})
            configs.append(quality.config)
            _quality(paths, sr, pixels.config, n)
        for classifier in CLASSIFIERS:
            parts = stage_parts(paths, "predictions", {"classifier": classifier, "pixels": pixels.config})
            maps = stage_parts(paths, "explanations", {"predictions": parts.config})
            predictions[f"{classifier} {sr}"] = parts.config
            configs += [parts.config, maps.config]
            _predictions(paths, sr, classifier, parts.config, n, labelled=labelled)
            _explanations(paths, sr, classifier, maps.config, n)
            if labelled:
                _metrics(paths, sr, classifier, parts.config)
            train = stage_parts(paths, "train", {"classifier": classifier, "pixels": pixels.config})
            configs.append(train.config)
            _training(paths, sr, classifier, train.config)
    _patches(paths, n, labelled=labelled)
    _quarantine(paths)
    publish_configs(paths)
    _run(paths, configs, n)
    return Made(paths, dn, predictions)


def _probs(patch: int) -> list[float]:
    """Urban fabric 0.9, Arable land 0.8, Pastures 0.3, the rest 0.1: one right, one wrong, one missed in p0."""
    probs = np.full(len(NAMES), 0.1)
    probs[[0, 2, 4]] = 0.9 - 0.01 * patch, 0.8, 0.3
    return [float(p) for p in probs]


def _predictions(paths: StorePaths, sr: str, classifier: str, config: str, n: int, *, labelled: bool) -> None:
    schema = predictions_schema(len(NAMES))
    rows = [
        {
            "patch_id": patch_id,
            "split": "test",
            "seed": 7,
            "probs": _probs(i),
            "predicted": ["Urban fabric", "Arable land"],
            "labels": LABELS[i] if labelled else None,
        }
        for i, patch_id in enumerate(PATCH_IDS[:n])
    ]
    folder = hive_folder(paths.table("predictions"), sr=sr, classifier=classifier, config=config)
    publish(folder, pa.Table.from_pylist(rows, schema), schema, ["patch_id", "seed"])


def _explanations(paths: StorePaths, sr: str, classifier: str, config: str, n: int) -> None:
    store = paths.maps("grad_cam", config)
    spec = ArraySpec("maps", ("label", "y", "x"), (len(NAMES), MAP_EDGE, MAP_EDGE), "float32", float("nan"), {})
    create_store(store, (spec,), 4, 1, {})
    maps = np.zeros((4, len(NAMES), MAP_EDGE, MAP_EDGE), np.float32)
    maps[:, 0, 0, 0] = 5.0  # Urban fabric: bright in one corner; Arable land: a zero map
    ShardedStore(store, writable=True).write(0, "maps", maps)
    rows = [
        {
            "patch_id": patch_id,
            "label": label,
            "seed": 7,
            "prob": _probs(i)[NAMES.index(label)],
            "map_store": str(store.relative_to(paths.root)),
            "map_index": i,
            "map_label": NAMES.index(label),
        }
        for i, patch_id in enumerate(PATCH_IDS[:n])
        for label in ("Urban fabric", "Arable land")
    ]
    folder = hive_folder(paths.table("explanations"), sr=sr, classifier=classifier, method="grad_cam", config=config)
    publish(folder, pa.Table.from_pylist(rows, EXPLANATIONS), EXPLANATIONS, ["patch_id", "map_label"])


def _metrics(paths: StorePaths, sr: str, classifier: str, config: str) -> None:
    common = {"sr": sr, "classifier": classifier, "config": config, "seed": 7, "n": 4, "n_labels": 19}
    ap = AP[classifier, sr]
    overall = {"acc": ACC[sr], "hl": HL[sr], "oe": None, "ap_macro": ap, "prevalence_macro": 0.125}
    rows: list[dict[str, Any]] = [
        {**common, "split": split, "metric": metric, "value": value}
        for split in ("test", "train")
        for metric, value in overall.items()
    ]
    above = {"metric": "ap_macro_above_prevalence", "value": ap - 0.125, "low": ap - 0.2, "high": ap - 0.05}
    rows.append({**common, "split": "test", **above})
    rows += [{**common, "split": "test", "metric": "f2", "label": "Urban fabric", "value": F2[sr]}]
    rows += [{**common, "split": "test", "metric": "f2", "label": "Mixed forest", "value": 0.0}]
    rows += [{**common, "split": "test", "metric": "support", "label": "Urban fabric", "value": 2.0}]
    rows += [{**common, "split": "test", "metric": "support", "label": "Mixed forest", "value": 0.0}]
    table = pa.Table.from_pylist(rows, METRICS)
    publish(paths.table("metrics"), table, METRICS, ["split", "metric"], file_stem=f"{sr}-{classifier}-{config}")


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


def _training(paths: StorePaths, sr: str, classifier: str, config: str) -> None:
    rows = [
        {
            "sr": sr,
            "classifier": classifier,
            "config": config,
            "seed": 7,
            "fitted": "network",
            "epoch": epoch,
            "lr": 0.001,
            "train_loss": 0.9 - 0.1 * epoch,
            "validation_loss": 0.8 - 0.05 * epoch,
            "validation_ap_macro": [0.5, 0.625, 0.6][epoch],
            "best": epoch == 1,
            "seconds": 1.0,
        }
        for epoch in range(3)
    ]
    publish(paths.table("training"), pa.Table.from_pylist(rows, TRAINING), TRAINING, ["epoch"], file_stem=config)


def _patches(paths: StorePaths, n: int, *, labelled: bool) -> None:
    rows = [
        {
            "patch_id": patch_id,
            "shard": 0,
            "row": i,
            "labels": LABELS[i] if labelled else None,
            "split": "test",
            "country": "Austria",
            "season": "summer",
            "acquired": "2017-06-13",
            "tile": TILES[i // 2],
            "has_snow": False,
            "has_cloud": False,
            "has_s1": False,
            "has_map": False,
            "nodata_share": 0.0,
            "crs": "EPSG:32633",
            "geometry": b"",
            "source_version": "test",
        }
        for i, patch_id in enumerate(PATCH_IDS[:n])
    ]
    publish(paths.table("patches"), pa.Table.from_pylist(rows, PATCHES), PATCHES, ["patch_id"])


def _quarantine(paths: StorePaths) -> None:
    rows = [{"path": f"folder/{i}", "reason": "truncated", "detail": f"the file {i} ends early"} for i in range(5)]
    rows += [{"path": "x/<b>", "reason": "bad name", "detail": '<img src="http://example.org/x.png" onerror="f()">'}]
    publish(paths.table("quarantine"), pa.Table.from_pylist(rows, QUARANTINE), QUARANTINE, ["reason", "path"])


def _run(paths: StorePaths, configs: list[str], n: int) -> None:
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
                "sr": SR,
                "sr_input_max_dn": 3000,
                "classifiers": CLASSIFIERS,
                "explain": {"methods": ["grad_cam"]},
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
        elif tag == "b" and self.tables and self._rows and self._rows[-1]:
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
