"""What the report says of reliability: clusters, what flipping and withholding decisions would do, what to look at."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from markupsafe import Markup
from numpy.typing import NDArray
from PIL import Image

from classifiers.cluster_settings import SAMPLES_PER_CLUSTER
from infra.parquet_files import parquet_dataset
from infra.tables import RELIABILITY, RELIABILITY_CLUSTERS, RELIABILITY_METRICS, RISK_COVERAGE
from tasks.charts import ClusterBar, Line, line_chart, outcome_bars
from tasks.pictures import map_uri
from tasks.reliability_judge import OF_FIT, SCORES
from tasks.report.cells import Cell, number, signed
from tasks.report.numbers import HiveFolder, Numbers
from tasks.report.order import shown_split

LEAST_RELIABLE = 12
"""Predictions that are listed for a person to look at."""

DRAWN_LABELS = 6
"""Labels of a branch whose clusters are drawn, those with the worst clusters; the others have a line of a table."""

FIGURE_BYTES = 1_200_000
"""What all charts and prototypes may add to the page; of every branch the worst labels come first."""

PROTOTYPE_SIZE = 32
"""Edge of a prototype's picture, pixels, at most; larger ones are reduced to means."""

_SCORE_NAMES = dict(
    zip(
        SCORES,
        ("reliability of the map's cluster", "probability of the decision", "the same, temperature-scaled"),
        strict=True,
    )
)

type _Row = Mapping[str, Any]


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
    """One cluster of maps, as it was fitted."""

    number: int
    prototype: str | None
    """Its mean map as an image inside the page."""
    n: int
    error_rate: float | None
    flipped: bool


@dataclass(frozen=True, slots=True)
class ClusterFigure:
    """The clusters of one fit, as the paper draws them."""

    label: str | None
    bars: Sequence[tuple[str, Markup]]
    """Split, or the fit, and its chart."""
    clusters: Sequence[Cluster]

    @property
    def size(self) -> int:
        """What it adds to the page, bytes, about."""
        return sum(len(chart) for _, chart in self.bars) + sum(len(c.prototype or "") for c in self.clusters)


@dataclass(frozen=True, slots=True)
class LabelLine:
    """The clusters of one fit in a line of a table."""

    label: str | None
    """None: of all labels."""
    n: int
    """Samples of the fit."""
    clusters: int
    worst: float | None
    """Highest error rate of a cluster with enough samples; None: there is none."""
    flipped: int
    """Clusters whose decisions are flipped."""


@dataclass(frozen=True, slots=True)
class BranchClusters:
    """All fits of one branch, and its curves."""

    sr: str
    classifier: str
    curves: Markup | None
    """Risk by coverage of each score."""
    figures: Sequence[ClusterFigure]
    """Of some labels, the worst first."""
    labels: Sequence[LabelLine]
    """Of all labels, the worst first."""


@dataclass(frozen=True, slots=True)
class Doubtful:
    """A prediction for a person to look at."""

    patch_id: str
    sr: str
    classifier: str
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
    classifier: str
    """Whose clusters and curves are shown."""
    lines: Sequence[ReliabilityLine]
    """Empty where nobody knows the truth."""
    branches: Sequence[BranchClusters]
    doubtful: Sequence[Doubtful]
    doubtful_sql: str
    """A query that lists the same."""
    score_names: Sequence[tuple[int, str]]
    """Number of each score's colour, and its name."""


def reliability_of_run(numbers: Numbers) -> ReliabilityOfRun | None:
    """Return what the tables say of the run's reliability; None where they have no rows of it."""
    metrics = _rows(numbers, "reliability_metrics", RELIABILITY_METRICS, pc.is_null(ds.field("label")))
    every = _rows(
        numbers, "reliability_clusters", RELIABILITY_CLUSTERS, ds.field("split") == OF_FIT, [*_NAMES, "method"]
    )
    if not metrics and not every:
        return None
    there = {row["split"] for row in metrics}
    split = numbers.split if numbers.split in there else shown_split(there or numbers.split_counts)
    lines = [
        _line(sr, classifier, [row for row in metrics if row["split"] == split and _is_of(row, sr, classifier)])
        for sr, classifier in _subjects(numbers, [row for row in metrics if row["split"] == split])
    ]
    subjects = _subjects(numbers, [*metrics, *every])
    classifier = subjects[0][1]
    branches = [sr for sr, name in subjects if name == classifier]
    of_classifier = ds.field("classifier") == classifier
    curves = _rows(numbers, "risk_coverage", RISK_COVERAGE, of_classifier & (ds.field("split") == split))
    return ReliabilityOfRun(
        split or "",
        [*every, *metrics][0]["method"],
        classifier,
        lines,
        list(_branches(numbers, classifier, branches, split, curves)),
        _doubtful(numbers, split),
        _doubtful_sql(split),
        list(enumerate(_SCORE_NAMES.values())),
    )


_NAMES = ["sr", "classifier"]
_COUNTS = ["tp", "tn", "fp", "fn"]


def _rows(
    numbers: Numbers, table: str, schema: pa.Schema, which: pc.Expression, columns: list[str] | None = None
) -> list[dict[str, Any]]:
    """Return some rows of the run; others, and other columns, are not made Python objects."""
    files = sorted(numbers.paths.table(table).glob("*.parquet"))
    if not files:
        return []
    of_run = ds.field("config").isin(pa.array(sorted(numbers.run.configs), pa.string()))
    found = parquet_dataset(files, schema).to_table(columns=columns, filter=of_run & which)
    rows: list[dict[str, Any]] = found.to_pylist()
    return rows


def _subjects(numbers: Numbers, rows: Sequence[_Row]) -> list[tuple[str, str]]:
    """Return SR models and classifiers of rows, in the order of RUN.yaml."""
    return sorted({(row["sr"], row["classifier"]) for row in rows}, key=lambda names: numbers.order(*names))


def _is_of(row: _Row, sr: str, classifier: str) -> bool:
    return bool((row["sr"], row["classifier"]) == (sr, classifier))


def _line(sr: str, classifier: str, rows: Sequence[_Row]) -> ReliabilityLine:
    cells = {}
    for row in rows:
        text = number if row["reference"] is None else signed
        name = "-".join(str(row[key]) for key in ("metric", "score", "reference") if row[key] is not None)
        cells[name] = Cell(row["value"], text(row["value"], 3), low=row["low"], high=row["high"])
    return ReliabilityLine(sr, classifier, cells, max(row["n"] for row in rows))


def _curves(rows: Sequence[_Row], sr: str, classifier: str) -> Markup | None:
    lines = []
    for i, (score, name) in enumerate(_SCORE_NAMES.items()):
        points = sorted((100 * row["coverage"], 100 * row["risk"]) for row in rows if row["score"] == score)
        if points:
            lines.append(Line(name, i, points, dashed=score == "temperature"))
    if not lines:
        return None
    return line_chart(f"Share of wrong decisions by share kept, {classifier} on {sr}", lines, "decisions kept, %")


def _branches(
    numbers: Numbers, classifier: str, branches: Sequence[str], split: str | None, curves: Sequence[_Row]
) -> Iterator[BranchClusters]:
    """Yield the branches of a classifier, with as many figures as the page has room for."""
    columns = [*_NAMES, "split", "label", "cluster", "n", *_COUNTS, "error_rate", "flipped"]
    wanted = (ds.field("classifier") == classifier) & ds.field("split").isin([OF_FIT, split or OF_FIT])
    rows = _rows(numbers, "reliability_clusters", RELIABILITY_CLUSTERS, wanted, columns)
    fits = {sr: _fits([row for row in rows if row["sr"] == sr]) for sr in branches}
    figures: dict[str, list[ClusterFigure]] = {sr: [] for sr in branches}
    room = FIGURE_BYTES
    for rank in range(DRAWN_LABELS):
        for sr in branches:
            if rank < len(fits[sr]):
                label = fits[sr][rank][0].label
                of_label = [row for row in rows if (row["sr"], row["label"]) == (sr, label)]
                figure = _figure(label, of_label, split, _prototypes(numbers, sr, classifier, label))
                room -= figure.size
                if room >= 0:
                    figures[sr].append(figure)
        if room < 0:
            break
    for sr in branches:
        chart = _curves([row for row in curves if row["sr"] == sr], sr, classifier)
        yield BranchClusters(sr, classifier, chart, figures[sr], [line for line, _ in fits[sr]])


def _fits(rows: Sequence[_Row]) -> list[tuple[LabelLine, Sequence[_Row]]]:
    """Return the fits of a branch with the rows of their clusters, those with the worst clusters first."""
    by_label: dict[str | None, list[_Row]] = {}
    for row in rows:
        if row["split"] == OF_FIT:
            by_label.setdefault(row["label"], []).append(row)
    found = []
    for label, of_label in by_label.items():
        worst = max((row["error_rate"] for row in of_label if row["n"] >= SAMPLES_PER_CLUSTER), default=None)
        flipped = sum(row["flipped"] for row in of_label)
        line = LabelLine(label, sum(row["n"] for row in of_label), len(of_label), worst, flipped)
        found.append((line, of_label))
    return sorted(found, key=lambda fit: (-(fit[0].worst or 0.0), fit[0].label or ""))


def _prototypes(numbers: Numbers, sr: str, classifier: str, label: str | None) -> dict[int, str]:
    """Return the prototypes of one fit as images for the page, by cluster."""
    of_label = pc.is_null(ds.field("label")) if label is None else ds.field("label") == label
    wanted = (ds.field("sr") == sr) & (ds.field("classifier") == classifier) & (ds.field("split") == OF_FIT) & of_label
    columns = ["cluster", "height", "width", "prototype"]
    rows = _rows(numbers, "reliability_clusters", RELIABILITY_CLUSTERS, wanted, columns)
    return {row["cluster"]: map_uri(_prototype(row)) for row in rows if row["prototype"] is not None}


def _figure(label: str | None, rows: Sequence[_Row], split: str | None, prototypes: Mapping[int, str]) -> ClusterFigure:
    """Return the counts of a fit, and of the shown split where that is not what was fitted on."""
    fitted, counted = (
        sorted((row for row in rows if row["split"] == name), key=lambda row: row["cluster"])
        for name in (OF_FIT, split)
    )
    bars = [(OF_FIT, fitted)]
    if counted and [_bar(row) for row in counted] != [_bar(row) for row in fitted]:
        bars.append((split or "", counted))
    charts = [(name, outcome_bars(f"Decisions by cluster, {name}", [_bar(row) for row in of])) for name, of in bars]
    clusters = [
        Cluster(row["cluster"], prototypes.get(row["cluster"]), row["n"], row["error_rate"], row["flipped"])
        for row in fitted
    ]
    return ClusterFigure(label, charts, clusters)


def _bar(row: _Row) -> ClusterBar:
    return ClusterBar(row["cluster"], row["tp"], row["tn"], row["fp"], row["fn"])


def _prototype(row: _Row) -> NDArray[np.float32]:
    values = np.array(row["prototype"], np.float32).reshape(row["height"], row["width"])
    if max(values.shape) <= PROTOTYPE_SIZE:
        return values
    width, height = (min(PROTOTYPE_SIZE, edge) for edge in (row["width"], row["height"]))
    return np.asarray(Image.fromarray(values).resize((width, height), Image.Resampling.BOX))


_SHOWN = ["patch_id", "label", "prob", "predicted", "truth", "reliability", "cluster_error_rate"]


def _doubtful_sql(split: str | None) -> str:
    quoted = (split or "").replace("'", "''")
    return (
        "SELECT patch_id, sr, classifier, label, prob, predicted, truth, reliability FROM reliability "  # noqa: S608  # shown, not run
        f"WHERE split = '{quoted}' AND reliability IS NOT NULL "
        f"ORDER BY reliability, abs(prob - 0.5), patch_id, label, sr, classifier LIMIT {LEAST_RELIABLE}"
    )


def _doubtful(numbers: Numbers, split: str | None) -> list[Doubtful]:
    """Return the least reliable predictions of a split, of all branches and classifiers, as `doubtful_sql` does."""
    found = [
        ((row["reliability"], row["apart"], row["patch_id"], row["label"], keys["sr"], keys["classifier"]), row)
        for folder in numbers.hive("reliability")
        for keys, row in ((folder.keys, row) for row in _least_reliable(folder, split))
    ]
    return [
        Doubtful(
            row["patch_id"],
            sr,
            classifier,
            row["label"],
            row["prob"],
            row["predicted"],
            row["truth"],
            row["cluster_error_rate"],
        )
        for (*_, sr, classifier), row in sorted(found, key=lambda pair: pair[0])[:LEAST_RELIABLE]
    ]


def _least_reliable(folder: HiveFolder, split: str | None) -> list[dict[str, Any]]:
    """Return the first rows of a folder, which holds millions: a batch of them is in memory at a time."""
    files = sorted(folder.path.glob("*.parquet"))
    columns = {name: ds.field(name) for name in _SHOWN}
    columns["apart"] = pc.abs(pc.subtract(ds.field("prob").cast(pa.float64()), 0.5))
    wanted = (ds.field("split") == split) & ds.field("reliability").is_valid()
    keys = [(name, "ascending") for name in ("reliability", "apart", "patch_id", "label")]
    best: pa.Table | None = None
    dataset = parquet_dataset(files, RELIABILITY)
    for batch in dataset.to_batches(columns=columns, filter=wanted, batch_readahead=2, fragment_readahead=1):
        table = pa.Table.from_batches([batch])
        table = table if best is None else pa.concat_tables([best, table])
        best = table.take(pc.select_k_unstable(table, LEAST_RELIABLE, sort_keys=keys))
    rows: list[dict[str, Any]] = [] if best is None else best.to_pylist()
    return rows
