"""What the report says of reliability: clusters, what flipping and withholding decisions would do, what to look at."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from markupsafe import Markup

from infra.parquet_files import parquet_dataset
from infra.tables import RELIABILITY, RELIABILITY_CLUSTERS, RELIABILITY_METRICS, RISK_COVERAGE, read_table
from tasks.charts import ClusterBar, Line, line_chart, outcome_bars
from tasks.pictures import map_uri
from tasks.reliability_judge import VALIDATION
from tasks.report_cells import Cell, number, signed
from tasks.report_means import of_configs
from tasks.report_numbers import HiveFolder, Numbers

LEAST_RELIABLE = 12
"""Predictions that are listed for a person to look at."""

_SCORE_NAMES = {
    "reliability": "reliability of the map's cluster",
    "probability": "probability of the decision",
    "temperature": "the same, temperature-scaled",
}


@dataclass(frozen=True, slots=True)
class ReliabilityLine:
    """One classifier on one branch: what flipping and withholding would do on the shown split."""

    sr: str
    classifier: str
    cells: Mapping[str, Cell]
    """Accuracy and average class accuracy before, after and their difference; areas under risk and coverage."""
    n: int
    """Decisions."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """One cluster of maps."""

    number: int
    prototype: str | None
    """Its mean map as an image inside the page."""
    n: int
    error_rate: float | None
    """On validation."""
    flipped: bool


@dataclass(frozen=True, slots=True)
class ClusterFigure:
    """The clusters of one fit, as the paper draws them."""

    label: str | None
    bars: Sequence[tuple[str, Markup]]
    """Split and its chart."""
    clusters: Sequence[Cluster]


@dataclass(frozen=True, slots=True)
class BranchClusters:
    """All fits of one branch, and its curves."""

    sr: str
    classifier: str
    curves: Markup | None
    """Risk by coverage of each score."""
    figures: Sequence[ClusterFigure]


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A prediction for a person to look at."""

    patch_id: str
    sr: str
    label: str
    prob: float
    predicted: bool
    truth: bool | None
    error_rate: float


@dataclass(frozen=True, slots=True)
class ReliabilityOfRun:
    """All that the section shows."""

    split: str
    method: str
    lines: Sequence[ReliabilityLine]
    branches: Sequence[BranchClusters]
    doubtful: Sequence[Doubtful]
    score_names: Sequence[tuple[int, str]]
    """Number of each score's colour, and its name."""


def reliability_of_run(numbers: Numbers) -> ReliabilityOfRun | None:
    """Return what the tables say of the run's reliability; None where they have no rows of it."""
    metrics = of_configs(
        read_table(numbers.paths.table("reliability_metrics")), RELIABILITY_METRICS, numbers.run.configs
    )
    there = set(metrics["split"].to_pylist())
    split = numbers.split if numbers.split in there else next((s for s in ("test", VALIDATION) if s in there), None)
    if split is None:
        return None
    clusters, curves = (
        of_configs(read_table(numbers.paths.table(name)), schema, numbers.run.configs).to_pylist()
        for name, schema in (("reliability_clusters", RELIABILITY_CLUSTERS), ("risk_coverage", RISK_COVERAGE))
    )
    of_split = metrics.filter(pc.and_(pc.equal(metrics["split"], split), pc.is_null(metrics["label"]))).to_pylist()
    of_lines = groupby(
        sorted(of_split, key=lambda row: numbers.order(row["sr"], row["classifier"])),
        key=lambda row: (row["sr"], row["classifier"]),
    )
    lines = [_line(sr, classifier, list(rows)) for (sr, classifier), rows in of_lines]
    branches = [
        BranchClusters(
            line.sr,
            line.classifier,
            _curves([row for row in curves if _is_of(row, line) and row["split"] == split], line),
            _figures([row for row in clusters if _is_of(row, line)], split),
        )
        for line in lines
        if line.classifier == lines[0].classifier
    ]
    return ReliabilityOfRun(
        split,
        of_split[0]["method"],
        lines,
        branches,
        _doubtful(numbers, split),
        list(enumerate(_SCORE_NAMES.values())),
    )


def _is_of(row: Mapping[str, Any], line: ReliabilityLine) -> bool:
    return bool((row["sr"], row["classifier"]) == (line.sr, line.classifier))


def _line(sr: str, classifier: str, rows: Sequence[Mapping[str, Any]]) -> ReliabilityLine:
    cells = {}
    for row in rows:
        text = number if row["reference"] is None else signed
        name = "-".join(str(row[key]) for key in ("metric", "score", "reference") if row[key] is not None)
        cells[name] = Cell(row["value"], text(row["value"], 3), low=row["low"], high=row["high"])
    return ReliabilityLine(sr, classifier, cells, max(row["n"] for row in rows))


def _curves(rows: Sequence[Mapping[str, Any]], line: ReliabilityLine) -> Markup | None:
    if not rows:
        return None
    lines = []
    for i, (score, name) in enumerate(_SCORE_NAMES.items()):
        points = sorted((100 * row["coverage"], 100 * row["risk"]) for row in rows if row["score"] == score)
        if points:
            lines.append(Line(name, i, points, dashed=score == "temperature"))
    name = f"Share of wrong decisions by share kept, {line.classifier} on {line.sr}"
    return line_chart(name, lines, "decisions kept, %")


def _figures(rows: Sequence[Mapping[str, Any]], split: str) -> list[ClusterFigure]:
    """Return the fits of a branch, those with the most flipped and wrong decisions first."""
    by_label: dict[str | None, list[Mapping[str, Any]]] = {}
    for row in rows:
        by_label.setdefault(row["label"], []).append(row)
    figures = []
    for label, of_label in by_label.items():
        fitted = sorted((row for row in of_label if row["split"] == VALIDATION), key=lambda row: row["cluster"])
        bars = []
        for name in dict.fromkeys((VALIDATION, split)):
            counted = sorted((row for row in of_label if row["split"] == name), key=lambda row: row["cluster"])
            bars.append((name, outcome_bars(f"Decisions by cluster, {name}", [_bar(row) for row in counted])))
        clusters = [
            Cluster(
                row["cluster"],
                None if row["prototype"] is None else map_uri(_prototype(row)),
                row["n"],
                row["error_rate"],
                row["flipped"],
            )
            for row in fitted
        ]
        figures.append(ClusterFigure(label, bars, clusters))
    return sorted(figures, key=lambda f: -max((c.error_rate or 0.0 for c in f.clusters if c.n >= 20), default=0.0))


def _bar(row: Mapping[str, Any]) -> ClusterBar:
    return ClusterBar(row["cluster"], row["tp"], row["tn"], row["fp"], row["fn"])


def _prototype(row: Mapping[str, Any]) -> "np.ndarray[Any, np.dtype[np.float32]]":
    return np.array(row["prototype"], np.float32).reshape(row["height"], row["width"])


def _doubtful(numbers: Numbers, split: str) -> list[Doubtful]:
    """Return the least reliable predictions of a split, of those the least probable ones."""
    folders = numbers.hive("reliability")
    if not folders:
        return []
    first = folders[0].keys["classifier"]
    found = [
        (row, folder)
        for folder in folders
        if folder.keys["classifier"] == first
        for row in _least_reliable(folder, split)
    ]
    found.sort(
        key=lambda pair: (-pair[0]["cluster_error_rate"], pair[0]["sure"], pair[0]["patch_id"], pair[0]["label"])
    )
    return [
        Doubtful(
            row["patch_id"],
            folder.keys["sr"],
            row["label"],
            row["prob"],
            row["predicted"],
            row["truth"],
            row["cluster_error_rate"],
        )
        for row, folder in found[:LEAST_RELIABLE]
    ]


def _least_reliable(folder: HiveFolder, split: str) -> list[dict[str, Any]]:
    files = sorted(folder.path.glob("*.parquet"))
    wanted = (ds.field("split") == split) & ds.field("cluster_error_rate").is_valid()
    table = parquet_dataset(files, RELIABILITY).to_table(filter=wanted)
    prob = table["prob"].cast(pa.float64())
    sure = pc.if_else(table["predicted"], prob, pc.subtract(1.0, prob))
    table = table.append_column("sure", sure)
    keys = [("cluster_error_rate", "descending"), ("sure", "ascending"), ("patch_id", "ascending")]
    return list(table.take(pc.select_k_unstable(table, LEAST_RELIABLE, sort_keys=keys)).to_pylist())
