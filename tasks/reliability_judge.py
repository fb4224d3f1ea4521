"""What reliability is worth: its clusters, the accuracy when decisions are flipped, the risk when some are withheld."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from classifiers.metrics import Interval, interval_of
from classifiers.reliability import (
    OUTCOMES,
    Reliability,
    adjustment,
    confidence,
    fit_temperatures,
    resampled_areas,
    risk_coverage,
    scale_by_temperature,
)
from infra.fingerprint import Json
from infra.parquet_files import count_rows, read_coded, read_each
from infra.parts import StageParts, stage_parts
from infra.storage import StorePaths
from infra.tables import (
    PATCHES,
    RELIABILITY,
    RELIABILITY_CLUSTERS,
    RELIABILITY_METRICS,
    RISK_COVERAGE,
    hive_folder,
    open_table,
    publish,
    publish_parts,
)
from tasks.evaluate import interval_columns
from tasks.metric_rows import PLACES, scored_patches, tile_ranks
from tasks.reliability import POOLED, ReliabilityJob
from tasks.stage import ShardCount

type Floats = NDArray[np.float64]

SCORES = ("reliability", "probability", "temperature")
"""What decisions can be ordered by: the clusters' score, and what users would take instead."""

COVERAGES = tuple(round(0.05 * i, 2) for i in range(1, 21))
"""Shares of the decisions kept, in tables/risk_coverage."""

VALIDATION = "validation"

OF_FIT = "fit"
"""What stands for the split in rows about the samples of the fit: the validation split of the store that fitted."""

_PREDICTED, _TRUE, _ADJUSTED = 1, 2, 4
"""Bits of a decision; the first two are its place among `OUTCOMES`."""

_COLUMNS = ["patch_id", "split", "prob", "predicted", "truth", "cluster", "adjusted"]
"""Columns of tables/reliability that are judged; what a cluster is worth, the fit itself says."""

_OF_PATCHES = pa.schema([("patch_id", pa.string()), ("split", pa.string()), ("truth", pa.bool_())])

_SIDES = {"reliability_clusters": RELIABILITY_CLUSTERS, "risk_coverage": RISK_COVERAGE}


def judged(job: ReliabilityJob) -> StageParts:
    """Return the part, 0, of what a job's clusters are worth; call it when all shards have theirs."""
    assigned = job.assignment()
    shards = hashlib.sha256(json.dumps(sorted(assigned.done())).encode()).hexdigest()
    determines: dict[str, Json] = {"reliability": assigned.config, "shards": shards, "schema": 1}
    return stage_parts(assigned.paths, "reliability_judge", determines)


def publish_reliability(job: ReliabilityJob, shards: Sequence[int]) -> None:
    """Write one job's rows of tables/reliability, reliability_clusters, reliability_metrics and risk_coverage."""
    assigned, of_judge = job.assignment(), judged(job)
    done = sorted(set(shards) & assigned.done())
    complete = len(done) == len(shards)
    keys = {"sr": job.sr, "classifier": job.classifier, "config": assigned.config}
    folder = hive_folder(assigned.paths.table("reliability"), **keys)
    parts = [assigned.path(shard) for shard in done]
    publish_parts(folder, parts, RELIABILITY, ["patch_id", "label"], complete=complete)
    if not of_judge.is_done(0):
        return
    stem = f"{job.sr}-{job.classifier}-{assigned.config}"
    tables = {
        "reliability_metrics": (RELIABILITY_METRICS, of_judge.read(0)),
        **{name: (schema, of_judge.read_side(name, 0)) for name, schema in _SIDES.items()},
    }
    keys_of = {
        "reliability_metrics": ["split", "metric", "score", "reference", "label"],
        "reliability_clusters": ["split", "label", "cluster"],
        "risk_coverage": ["split", "score", "coverage"],
    }
    for name, (schema, of_job) in tables.items():
        publish(assigned.paths.table(name), of_job, schema, keys_of[name], complete=complete, file_stem=stem)


class ReliabilityJudge:
    """Judges one of several jobs after the other; it needs no GPU."""

    def __init__(self, jobs: Sequence[ReliabilityJob]) -> None:
        self._jobs = jobs

    def run(self, item: int) -> ShardCount:
        """Judge one job: its clusters and curves first, its metrics last."""
        job = self._jobs[item]
        fitted = job.fitted()
        names: dict[str, object] = {
            "sr": job.sr,
            "classifier": job.classifier,
            "config": job.assignment().config,
            "method": job.plan.method,
            "seed": job.seed,
        }
        clusters = list(_fit_rows({**names, "split": OF_FIT}, fitted, flips=job.flips))
        metrics: list[dict[str, object]] = []
        curves: list[dict[str, object]] = []
        rows = _JobRows(job)
        validation = rows.of(VALIDATION)
        temperatures = fit_temperatures(validation.probs, validation.truth, job.activation)
        del validation
        for split in rows.splits:
            decisions, of_names = rows.of(split), {**names, "split": split}
            clusters += _cluster_rows(of_names, decisions, fitted, job.known, flips=job.flips)
            metrics += _adjustment_rows(of_names, decisions, job.known)
            orders = _Orders(job, fitted, temperatures, decisions)
            areas, of_split = _area_and_curve_rows(of_names, decisions, orders, job.known)
            metrics += areas
            curves += of_split
        side = {
            "reliability_clusters": pa.Table.from_pylist(clusters, RELIABILITY_CLUSTERS),
            "risk_coverage": pa.Table.from_pylist(curves, RISK_COVERAGE),
        }
        judged(job).write(0, pa.Table.from_pylist(metrics, RELIABILITY_METRICS), side)
        return ShardCount(rows.n_patches)


@dataclass(frozen=True)
class _Decisions:
    """Decisions on the N labelled, clean patches of a split, on L labels each; all arrays are (N, L)."""

    tiles: NDArray[np.integer]
    """What intervals resample, of each patch, (N,)."""
    probs: NDArray[np.float32]
    """NaN where there is none."""
    bits: NDArray[np.uint8]
    cluster: NDArray[np.int32]
    """-1 where there is none."""

    @property
    def truth(self) -> NDArray[np.bool_]:
        """Whether the label is there."""
        return (self.bits & _TRUE).astype(np.bool_)

    @property
    def predicted(self) -> NDArray[np.bool_]:
        """Whether it was predicted."""
        return (self.bits & _PREDICTED).astype(np.bool_)

    @property
    def adjusted(self) -> NDArray[np.bool_]:
        """Whether it is, when decisions are flipped."""
        return (self.bits & _ADJUSTED).astype(np.bool_)


class _JobRows:
    """The rows of one job as arrays, nine bytes a decision: an archive has ten million of them for every job."""

    def __init__(self, job: ReliabilityJob) -> None:
        """Read them, shard by shard."""
        assigned, n_labels = job.assignment(), len(job.known)
        paths = [assigned.path(shard) for shard in sorted(assigned.done())]
        ends = np.cumsum([0, *(rows // n_labels for rows in count_rows(paths))]).tolist()
        self._probs = np.empty((ends[-1], n_labels), np.float32)
        self._bits = np.empty((ends[-1], n_labels), np.uint8)
        self._cluster = np.empty((ends[-1], n_labels), np.int32)
        places = {path: slice(start, stop) for path, (start, stop) in zip(paths, pairwise(ends), strict=True)}
        patches = read_each(paths, lambda path: self._note(path, places[path]))
        of_patches = pa.concat_tables([_OF_PATCHES.empty_table(), *patches])
        of_patches = of_patches.append_column("place", pa.array(np.arange(ends[-1])))
        self._scored = scored_patches(of_patches, _patches(assigned.paths), truth="truth")
        self._split = self._scored["split"].combine_chunks().dictionary_encode()

    def _note(self, path: Path, place: slice) -> pa.Table:
        """Note the decisions of a shard at their place, and return what is known of its patches."""
        rows, n_labels = read_coded(path, _COLUMNS), self._probs.shape[1]
        self._probs[place] = rows["prob"].to_numpy().reshape(-1, n_labels)
        self._bits[place] = _bits(rows).reshape(-1, n_labels)
        self._cluster[place] = rows["cluster"].fill_null(-1).to_numpy().reshape(-1, n_labels)
        first = pa.array(np.arange(0, rows.num_rows, n_labels))  # a shard's rows go through the labels in turn
        return rows.select(_OF_PATCHES.names).take(first).cast(_OF_PATCHES)

    @property
    def splits(self) -> list[str]:
        """Splits that have rows to judge."""
        return sorted(self._split.dictionary.to_pylist())

    @property
    def n_patches(self) -> int:
        """Patches that are judged."""
        return int(self._scored.num_rows)

    def of(self, split: str) -> _Decisions:
        """Return the decisions of a split, in the order of the patches' names."""
        names = self._split.dictionary.to_pylist()
        code = names.index(split) if split in names else -1
        of_split = self._scored.filter(pa.array(self._split.indices.to_numpy() == code))
        place = of_split["place"].to_numpy()
        tiles = tile_ranks(of_split)
        return _Decisions(
            np.arange(len(place)) if tiles is None else tiles,
            self._probs[place],
            self._bits[place],
            self._cluster[place],
        )


def _bits(rows: pa.Table) -> NDArray[np.uint8]:
    """Return the bits of each row's decision; a truth that nobody knows counts as false."""
    predicted, truth, adjusted = (
        rows[name].fill_null(fill_value=False).to_numpy() for name in ("predicted", "truth", "adjusted")
    )
    return np.asarray(_PREDICTED * predicted + _TRUE * truth + _ADJUSTED * adjusted, np.uint8)


def _patches(paths: StorePaths) -> pa.Table:
    """Return the columns of tables/patches that say which count."""
    columns = ["patch_id", "tile", *PLACES, "has_snow", "has_cloud"]
    return open_table(paths.table("patches"), PATCHES).to_table(columns=columns)


class _Orders:
    """The scores that the decisions of a split can be ordered by."""

    def __init__(
        self,
        job: ReliabilityJob,
        fitted: Mapping[str, Reliability],
        temperatures: Floats | None,
        decisions: _Decisions,
    ) -> None:
        self._activation, self._temperatures, self._decisions = job.activation, temperatures, decisions
        self._reliability = np.full(decisions.probs.shape, np.nan)
        for i, label in enumerate(job.known):
            if (item := fitted.get(POOLED if job.plan.pooled else label)) is not None:
                self._reliability[:, i] = 1 - item.error_rates(decisions.cluster[:, i])
        has_prob = ~np.isnan(decisions.probs)
        if job.activation == "softmax":  # without one of them, the others mean nothing
            has_prob &= has_prob.all(axis=1, keepdims=True)
        self.comparable = ~np.isnan(self._reliability) & has_prob
        """Where the scores can be compared: where there are a reliability and a probability, (N, L)."""

    @property
    def scores(self) -> list[str]:
        """Those of `SCORES` that there are."""
        return [score for score in SCORES if score != "temperature" or self._temperatures is not None]

    def of(self, score: str) -> Floats:
        """Return a score of every decision, (N, L), the higher, the surer; probabilities to the digits of float32."""
        decisions = self._decisions
        if score == "reliability":
            return self._reliability
        probs: NDArray[np.floating] = decisions.probs
        if score == "temperature" and self._temperatures is not None:
            probs = scale_by_temperature(probs, self._temperatures, self._activation)
        sure = confidence(probs, decisions.predicted)
        return sure.round(7, out=sure)


def _fit_rows(
    names: Mapping[str, object], fitted: Mapping[str, Reliability], *, flips: bool
) -> Iterator[dict[str, object]]:
    """Yield the clusters as they were fitted, with their prototypes."""
    for label, item in fitted.items():
        for i, prototype in enumerate(item.prototypes):
            row = _cluster_row(names, label, i, item.counts[i].tolist(), flipped=flips and bool(item.flipped[i]))
            row |= {"height": prototype.shape[0], "width": prototype.shape[1]}
            yield {**row, "prototype": None if np.isnan(prototype).any() else prototype.ravel().tolist()}


def _cluster_rows(
    names: Mapping[str, object],
    decisions: _Decisions,
    fitted: Mapping[str, Reliability],
    labels: Sequence[str],
    *,
    flips: bool,
) -> Iterator[dict[str, object]]:
    """Yield what the decisions of a split turned out to be, cluster by cluster."""
    for label, item in fitted.items():
        columns = range(len(labels)) if label == POOLED else [labels.index(label)]
        counts = np.zeros((len(item.n), len(OUTCOMES)), np.int64)
        for i in columns:
            cluster, turned_out = decisions.cluster[:, i], decisions.bits[:, i] & (_PREDICTED | _TRUE)
            np.add.at(counts, (cluster[cluster >= 0], turned_out[cluster >= 0]), 1)
        for i, of_cluster in enumerate(counts.tolist()):
            yield _cluster_row(names, label, i, of_cluster, flipped=flips and bool(item.flipped[i]))


def _cluster_row(
    names: Mapping[str, object], label: str, cluster: int, of_cluster: Sequence[int], *, flipped: bool
) -> dict[str, object]:
    counts, n = dict(zip(OUTCOMES, of_cluster, strict=True)), sum(of_cluster)
    return {
        **names,
        "label": label or None,
        "cluster": cluster,
        "n": n,
        **counts,
        "error_rate": (counts["fp"] + counts["fn"]) / n if n else None,
        "flipped": flipped,
    }


def _adjustment_rows(
    names: Mapping[str, object], decisions: _Decisions, labels: Sequence[str]
) -> Iterator[dict[str, object]]:
    n, n_labels = decisions.probs.shape
    found = adjustment(decisions.truth, decisions.predicted, decisions.adjusted, decisions.tiles)
    for metric in ("accuracy", "class_accuracy"):
        now = [getattr(part, metric)[0] for part in (found.before, found.after)]
        drawn = [getattr(part, metric) for part in (found.before_draws, found.after_draws)]
        for i, label in enumerate((None, *labels)):
            of = {**names, "metric": metric, "label": label, "n": n * (n_labels if label is None else 1)}
            before, after = (interval_of(value[i], draws[:, i]) for value, draws in zip(now, drawn, strict=True))
            change = interval_of(now[1][i] - now[0][i], drawn[1][:, i] - drawn[0][:, i])
            yield _row(of, "predicted", None, before)
            yield _row(of, "adjusted", None, after)
            yield _row(of, "adjusted", "predicted", change)


def _area_and_curve_rows(
    names: Mapping[str, object], decisions: _Decisions, orders: _Orders, labels: Sequence[str]
) -> tuple[list[dict[str, object]], list[dict[str, object]]]:
    """Return rows of tables/reliability_metrics and of tables/risk_coverage; one score is in memory at a time."""
    wrong = decisions.predicted ^ decisions.truth
    chosen = [(label, columns) for label, columns in _columns(labels) if orders.comparable[:, columns].any()]
    found: dict[str | None, dict[str, tuple[float, Floats]]] = {label: {} for label, _ in chosen}
    curves: list[dict[str, object]] = []
    for score in orders.scores:
        order = orders.of(score)
        for label, columns in chosen:
            scored = orders.comparable[:, columns]
            sure, errors = order[:, columns][scored], wrong[:, columns][scored]
            curve = risk_coverage(sure, errors)
            tiles = np.broadcast_to(decisions.tiles[:, None], scored.shape)[scored]
            found[label][score] = curve.area, resampled_areas(sure, errors, tiles)
            if label is None:
                of = {**names, "score": score, "n": len(errors)}
                curves += ({**of, "coverage": coverage, "risk": curve.at(coverage)} for coverage in COVERAGES)
    rows = []
    for label, columns in chosen:
        of = {**names, "metric": "aurc", "label": label, "n": int(orders.comparable[:, columns].sum())}
        rows += [_row(of, score, None, interval_of(*pair)) for score, pair in found[label].items()]
        area, draws = found[label]["reliability"]
        for other in orders.scores[1:]:
            of_other, other_draws = found[label][other]
            rows.append(_row(of, "reliability", other, interval_of(area - of_other, draws - other_draws)))
    return rows, curves


def _columns(labels: Sequence[str]) -> Iterator[tuple[str | None, slice]]:
    """Yield all labels, None, and each by itself, with their columns."""
    yield None, slice(None)
    yield from ((label, slice(i, i + 1)) for i, label in enumerate(labels))


def _row(names: Mapping[str, object], score: str, reference: str | None, interval: Interval) -> dict[str, object]:
    return {**names, "score": score, "reference": reference, **interval_columns(interval)}
