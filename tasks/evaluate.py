"""Evaluate: metrics, calibration and resamples of one classifier on one branch, from its published predictions."""

import hashlib
import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.dataset as ds

from classifiers.metrics import BINS, EDGES, Interval
from infra.fingerprint import Json
from infra.parts import StageParts, read_parts, stage_parts
from infra.tables import CALIBRATION, METRICS, hive_folder, open_table, predictions_schema, publish, read_table
from tasks.branch import Branch
from tasks.metric_rows import Bootstrap, MetricRow, calibrations, metric_rows, scored_patches
from tasks.score import ScoredClassifier
from tasks.stage import PartsOfItems, ShardCount

RESAMPLES = pa.schema(
    [
        pa.field("split", pa.string()),
        pa.field("country", pa.string()),
        pa.field("season", pa.string()),
        pa.field("metric", pa.string()),
        pa.field("label", pa.string()),
        pa.field("value", pa.float64()),
        pa.field("draws", pa.list_(pa.float32())),
        pa.field("n", pa.int64()),
        pa.field("n_labels", pa.int32()),
        pa.field("digest", pa.string()),
    ]
)
"""Side table: what comparisons need of every row of METRICS; NaN where a metric is not defined."""

_KEY = ["seed", "split", "country", "season", "metric", "label"]


@dataclass(frozen=True, slots=True)
class EvaluateJob:
    """A classifier on a branch whose predictions are evaluated, seed by seed. Cheap to pickle."""

    sr: str
    classifier: str
    labels: tuple[str, ...]
    """Labels of the archive, in the order of the probabilities."""
    seeds: tuple[int, ...]
    predictions: StageParts
    """Parts of the predictions; their config names the published table."""
    bootstrap: Bootstrap
    parts: StageParts
    """Parts of this stage, one a seed."""

    @property
    def folder(self) -> Path:
        """The published predictions."""
        table = self.parts.paths.table("predictions")
        return hive_folder(table, sr=self.sr, classifier=self.classifier, config=self.predictions.config)

    def read(self, seed: int) -> pa.Table:
        """Return a seed's predictions of labelled patches without snow or cloud, see `scored_patches`."""
        table = open_table(self.folder, predictions_schema(len(self.labels)))
        rows = table.to_table(filter=ds.field("seed") == seed)
        return scored_patches(rows, read_table(self.parts.paths.table("patches")))


def evaluate_job(branch: Branch, scored: ScoredClassifier, bootstrap: Bootstrap = Bootstrap()) -> EvaluateJob:  # noqa: B008  # frozen
    """Return the evaluation of a classifier on a branch, under the config that determines its rows.

    Call it when the predictions are published: the shards that were scored are part of the config, so predictions of
    more shards are evaluated anew.
    """
    shards: list[Json] = [*sorted(scored.predictions.done())]
    parts = stage_parts(
        branch.paths,
        "evaluate",
        {
            "predictions": scored.predictions.config,
            "shards": hashlib.sha256(json.dumps(shards).encode()).hexdigest(),
            "n_resamples": bootstrap.n_resamples,
            "seed": bootstrap.seed,
            "schema": 1,
        },
    )
    seeds = tuple(scored.checkpoints)
    labels = branch.inputs.format.labels
    return EvaluateJob(branch.sr, scored.classifier, labels, seeds, scored.predictions, bootstrap, parts)


class SeedEvaluator:
    """Evaluates one job, a seed after the other; it needs no GPU."""

    def __init__(self, job: EvaluateJob) -> None:
        self._job = job

    def run(self, seed: int) -> ShardCount:
        """Evaluate one seed: its calibration and resamples first, its metrics last."""
        job = self._job
        scored = job.read(seed)
        rows = list(metric_rows(scored, job.labels, job.bootstrap))
        side = {"calibration": _calibration_table(job, seed, scored), "resamples": resamples_table(rows)}
        names: dict[str, str | int] = {
            "sr": job.sr,
            "classifier": job.classifier,
            "config": job.predictions.config,
            "seed": seed,
        }
        job.parts.write(seed, metrics_table(names, rows), side)
        return ShardCount(scored.num_rows)


class Evaluations(PartsOfItems):
    """All evaluations of a run as one list of work: an item is a place in it, one seed of one job."""

    def __init__(self, jobs: Sequence[EvaluateJob]) -> None:
        self.work = [(job, seed) for job in jobs for seed in job.seeds]
        super().__init__([(job.parts, seed) for job, seed in self.work])


class Evaluator:
    """Evaluates one item of all evaluations after the other."""

    def __init__(self, evaluations: Evaluations) -> None:
        self._work = evaluations.work

    def run(self, item: int) -> ShardCount:
        """Evaluate one item."""
        job, seed = self._work[item]
        return SeedEvaluator(job).run(seed)


def publish_metrics(job: EvaluateJob) -> None:
    """Write one job's rows of tables/metrics; an archive without labels has none."""
    done = _done(job)
    rows = read_parts(job.parts, done) if done else METRICS.empty_table()
    _publish(job, "metrics", rows, METRICS, _KEY, done)


def publish_calibration(job: EvaluateJob) -> None:
    """Write one job's rows of tables/calibration."""
    done = _done(job)
    rows = pa.concat_tables([CALIBRATION.empty_table(), *(job.parts.read_side("calibration", seed) for seed in done)])
    _publish(job, "calibration", rows, CALIBRATION, ["seed", "split", "bin"], done)


def metrics_table(names: dict[str, str | int], rows: Iterable[MetricRow]) -> pa.Table:
    """Return rows of METRICS.

    Args:
        names: sr, classifier, config and seed.
        rows: The metrics.
    """
    return pa.Table.from_pylist(
        [
            {
                **names,
                "split": row.subset.split,
                "country": row.subset.country,
                "season": row.subset.season,
                "metric": row.metric,
                "label": row.label,
                **interval_columns(row.interval),
                "n": row.subset.n,
                "n_labels": row.n_labels,
            }
            for row in rows
        ],
        schema=METRICS,
    )


def interval_columns(interval: Interval) -> dict[str, float | None]:
    """Return value, low and high, None where null."""
    return {
        name: None if math.isnan(value) else value
        for name, value in zip(("value", "low", "high"), interval, strict=True)
    }


def resamples_table(rows: Sequence[MetricRow]) -> pa.Table:
    """Return rows of RESAMPLES."""
    offsets = np.concatenate([[0], np.cumsum([len(row.draws) for row in rows])]).astype(np.int32)
    draws = np.concatenate([np.empty(0, np.float32), *(row.draws for row in rows)])
    return pa.table(
        {
            "split": [row.subset.split for row in rows],
            "country": [row.subset.country for row in rows],
            "season": [row.subset.season for row in rows],
            "metric": [row.metric for row in rows],
            "label": [row.label for row in rows],
            "value": np.array([row.interval.value for row in rows], np.float64),
            "draws": pa.ListArray.from_arrays(pa.array(offsets), pa.array(draws)),
            "n": [row.subset.n for row in rows],
            "n_labels": [row.n_labels for row in rows],
            "digest": [row.subset.digest for row in rows],
        },
        schema=RESAMPLES,
    )


def _calibration_table(job: EvaluateJob, seed: int, scored: pa.Table) -> pa.Table:
    tables = [
        pa.table(
            {
                "sr": [job.sr] * BINS,
                "classifier": [job.classifier] * BINS,
                "config": [job.predictions.config] * BINS,
                "seed": [seed] * BINS,
                "split": [split] * BINS,
                "bin": np.arange(BINS),
                "prob_low": EDGES[:-1],
                "prob_high": EDGES[1:],
                "n": found.n,
                "prob_mean": pa.array(found.prob_mean, from_pandas=True),
                "positive_share": pa.array(found.positive_share, from_pandas=True),
            }
        ).cast(CALIBRATION)
        for split, found in calibrations(scored, job.labels)
    ]
    return pa.concat_tables([CALIBRATION.empty_table(), *tables])


def _done(job: EvaluateJob) -> list[int]:
    return [seed for seed in job.seeds if job.parts.is_done(seed)]


def _publish(
    job: EvaluateJob, table: str, rows: pa.Table, schema: pa.Schema, key: Sequence[str], done: Sequence[int]
) -> None:
    stem = f"{job.sr}-{job.classifier}-{job.predictions.config}"
    complete = len(done) == len(job.seeds)
    publish(job.parts.paths.table(table), rows, schema, key, complete=complete, file_stem=stem)
