"""What reliability is worth: its clusters, the accuracy when decisions are flipped, the risk when some are withheld."""

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from classifiers.metrics import Interval, interval_of
from classifiers.reliability import (
    OUTCOMES,
    adjustment,
    confidence,
    fit_temperatures,
    outcomes,
    resampled_areas,
    risk_coverage,
    scale_by_temperature,
)
from infra.parts import StageParts, read_parts, stage_parts
from infra.tables import (
    RELIABILITY,
    RELIABILITY_CLUSTERS,
    RELIABILITY_METRICS,
    RISK_COVERAGE,
    hive_folder,
    publish,
    read_table,
)
from tasks.evaluate import interval_columns
from tasks.labels import is_clean
from tasks.reliability import POOLED, ReliabilityJob
from tasks.stage import ShardCount

SCORES = ("reliability", "probability", "temperature")
"""What decisions can be ordered by: the clusters' score, and what users would take instead."""

COVERAGES = tuple(round(0.05 * i, 2) for i in range(1, 21))
"""Shares of the decisions kept, in tables/risk_coverage."""

VALIDATION = "validation"

_SIDES = {"reliability_clusters": RELIABILITY_CLUSTERS, "risk_coverage": RISK_COVERAGE}


def judged(job: ReliabilityJob) -> StageParts:
    """Return the part, 0, of what a job's clusters are worth; call it when all shards have theirs."""
    assigned = job.assignment()
    shards = hashlib.sha256(json.dumps(sorted(assigned.done())).encode()).hexdigest()
    return stage_parts(assigned.paths, "reliability_judge", {"reliability": assigned.config, "shards": shards})


def publish_reliability(job: ReliabilityJob, shards: Sequence[int]) -> None:
    """Write one job's rows of tables/reliability, reliability_clusters, reliability_metrics and risk_coverage."""
    assigned, of_judge = job.assignment(), judged(job)
    done = sorted(set(shards) & assigned.done())
    rows = read_parts(assigned, done) if done else RELIABILITY.empty_table()
    complete = len(done) == len(shards)
    keys = {"sr": job.sr, "classifier": job.classifier, "config": assigned.config}
    folder = hive_folder(assigned.paths.table("reliability"), **keys)
    publish(folder, rows, RELIABILITY, ["patch_id", "label"], complete=complete)
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
        assigned = job.assignment()
        rows = pa.concat_tables([RELIABILITY.empty_table(), *map(assigned.read, sorted(assigned.done()))])
        decisions = _scored(rows, job, read_table(assigned.paths.table("patches")))
        names: dict[str, object] = {
            "sr": job.sr,
            "classifier": job.classifier,
            "config": assigned.config,
            "method": job.plan.method,
            "seed": job.seed,
        }
        clusters: list[dict[str, object]] = []
        metrics: list[dict[str, object]] = []
        curves: list[dict[str, object]] = []
        temperatures = _temperatures(decisions.get(VALIDATION), job)
        for split, of_split in decisions.items():
            of_names = {**names, "split": split}
            clusters += _cluster_rows(of_names, of_split, job)
            metrics += _adjustment_rows(of_names, of_split, job.known)
            orders = of_split.orders(temperatures, job)
            metrics += _area_rows(of_names, of_split, orders, job.known)
            curves += _curve_rows(of_names, of_split, orders)
        side = {
            "reliability_clusters": pa.Table.from_pylist(clusters, RELIABILITY_CLUSTERS),
            "risk_coverage": pa.Table.from_pylist(curves, RISK_COVERAGE),
        }
        judged(job).write(0, pa.Table.from_pylist(metrics, RELIABILITY_METRICS), side)
        return ShardCount(sum(len(of_split.probs) for of_split in decisions.values()))


@dataclass(frozen=True)
class _Decisions:
    """Decisions on the N labelled, clean patches of a split, on L labels each; all arrays are (N, L)."""

    tiles: NDArray[np.str_]
    """What intervals resample, of each patch, (N,)."""
    probs: NDArray[np.float32]
    truth: NDArray[np.bool_]
    predicted: NDArray[np.bool_]
    adjusted: NDArray[np.bool_]
    cluster: NDArray[np.int32]
    """-1 where there is none."""
    reliability: NDArray[np.float64]
    """NaN where there is none."""

    @property
    def has_score(self) -> NDArray[np.bool_]:
        """Where the three scores can be compared: where there is a reliability."""
        return ~np.isnan(self.reliability)

    @property
    def is_wrong(self) -> NDArray[np.bool_]:
        """Where the prediction is."""
        return self.predicted ^ self.truth

    def orders(self, temperatures: NDArray[np.float64] | None, job: ReliabilityJob) -> dict[str, NDArray[np.float64]]:
        """Return each score of every decision; the higher, the surer; probabilities to the digits of float32."""
        found = {"reliability": self.reliability, "probability": confidence(self.probs, self.predicted).round(7)}
        if temperatures is not None:
            scaled = scale_by_temperature(self.probs, temperatures, job.activation)
            found["temperature"] = confidence(scaled, self.predicted).round(7)
        return found


def _scored(rows: pa.Table, job: ReliabilityJob, patches: pa.Table) -> dict[str, _Decisions]:
    """Return the decisions of every split, in the order of the patches' names."""
    n_labels = len(job.known)
    first = rows.take(pa.array(np.arange(0, rows.num_rows, n_labels)))  # a shard's rows go through the labels in turn
    clean = patches.filter(pc.and_(is_clean(patches), pc.is_valid(patches["labels"])))
    place = pc.index_in(first["patch_id"], value_set=clean["patch_id"].combine_chunks())
    tiles = clean["tile"].combine_chunks().take(place.combine_chunks())
    ids = np.array(first["patch_id"].to_pylist(), dtype=str)
    splits = np.array(first["split"].to_pylist(), dtype=str)
    is_scored = place.is_valid().to_numpy()
    names = ("prob", "truth", "predicted", "adjusted", "cluster", "reliability")
    grids = {name: _grid(rows, name, n_labels) for name in names}
    found = {}
    for split in sorted(set(splits[is_scored])):
        chosen = np.flatnonzero(is_scored & (splits == split))
        chosen = chosen[np.argsort(ids[chosen], kind="stable")]
        of_patches = tiles.take(pa.array(chosen))
        clusters = ids[chosen] if of_patches.null_count else np.array(of_patches.to_pylist(), dtype=str)
        probs, truth, predicted, adjusted, cluster, reliability = (grids[name][chosen] for name in names)
        found[split] = _Decisions(
            clusters,
            probs,
            truth.astype(np.bool_),
            predicted.astype(np.bool_),
            adjusted.astype(np.bool_),
            cluster.astype(np.int32),
            reliability,
        )
    return found


def _grid(rows: pa.Table, name: str, n_labels: int) -> NDArray[Any]:
    """Return a column, (N, L)."""
    column = rows[name]
    if name == "cluster":
        column = column.fill_null(-1)
    if name == "truth":
        column = column.fill_null(fill_value=False)  # of patches that are not scored
    values = column.to_numpy()
    return np.asarray(values).reshape(-1, n_labels)


def _temperatures(validation: _Decisions | None, job: ReliabilityJob) -> NDArray[np.float64] | None:
    if validation is None:
        return None
    return fit_temperatures(validation.probs, validation.truth, job.activation)


def _cluster_rows(
    names: Mapping[str, object], decisions: _Decisions, job: ReliabilityJob
) -> Iterator[dict[str, object]]:
    outcome = outcomes(decisions.predicted, decisions.truth)
    for label, item in job.fitted().items():
        columns = slice(None) if label == POOLED else [job.known.index(label)]
        cluster, turned_out = decisions.cluster[:, columns].ravel(), outcome[:, columns].ravel()
        for i, prototype in enumerate(item.prototypes):
            n = np.bincount(turned_out[cluster == i], minlength=len(OUTCOMES))
            counts = dict(zip(OUTCOMES, n.tolist(), strict=True))
            total = int(n.sum())
            yield {
                **names,
                "label": label or None,
                "cluster": i,
                "n": total,
                **counts,
                "error_rate": (counts["fp"] + counts["fn"]) / total if total else None,
                "flipped": bool(item.flipped[i]),
                "height": prototype.shape[0],
                "width": prototype.shape[1],
                "prototype": None if np.isnan(prototype).any() else prototype.ravel().tolist(),
            }


def _adjustment_rows(
    names: Mapping[str, object], decisions: _Decisions, labels: Sequence[str]
) -> Iterator[dict[str, object]]:
    n, n_labels = decisions.probs.shape
    found = adjustment(
        np.tile(np.arange(n_labels), n),
        decisions.truth.ravel(),
        decisions.predicted.ravel(),
        decisions.adjusted.ravel(),
        n_labels,
        np.repeat(decisions.tiles, n_labels),
    )
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


def _area_rows(
    names: Mapping[str, object],
    decisions: _Decisions,
    orders: Mapping[str, NDArray[np.float64]],
    labels: Sequence[str],
) -> Iterator[dict[str, object]]:
    for columns, label in [(slice(None), None), *((slice(i, i + 1), name) for i, name in enumerate(labels))]:
        scored = decisions.has_score[:, columns]
        if not scored.any():
            continue
        wrong = decisions.is_wrong[:, columns][scored]
        tiles = np.repeat(decisions.tiles, scored.shape[1]).reshape(scored.shape)[scored]
        of = {**names, "metric": "aurc", "label": label, "n": len(wrong)}
        values, draws = {}, {}
        for score, order in orders.items():
            values[score] = risk_coverage(order[:, columns][scored], wrong).area
            draws[score] = resampled_areas(order[:, columns][scored], wrong, tiles)
            yield _row(of, score, None, interval_of(values[score], draws[score]))
        for other in SCORES[1:]:
            if other in values:
                change = interval_of(values["reliability"] - values[other], draws["reliability"] - draws[other])
                yield _row(of, "reliability", other, change)


def _curve_rows(
    names: Mapping[str, object], decisions: _Decisions, orders: Mapping[str, NDArray[np.float64]]
) -> Iterator[dict[str, object]]:
    scored = decisions.has_score
    if not scored.any():
        return
    wrong = decisions.is_wrong[scored]
    for score, order in orders.items():
        curve = risk_coverage(order[scored], wrong)
        for coverage in COVERAGES:
            yield {**names, "score": score, "coverage": coverage, "risk": curve.at(coverage), "n": len(wrong)}


def _row(names: Mapping[str, object], score: str, reference: str | None, interval: Interval) -> dict[str, object]:
    return {**names, "score": score, "reference": reference, **interval_columns(interval)}
