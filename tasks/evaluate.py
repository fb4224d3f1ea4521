"""Evaluate: the metrics of one classifier on one branch, from its published predictions."""

import json
import math
from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from classifiers.metrics import Interval, bootstrap
from infra.bigearthnet.classes import NAMES
from infra.storage import write_text
from infra.tables import METRICS, publish, read_table
from tasks.branch import Branch
from tasks.labels import is_clean, multi_hot
from tasks.score import ScoredClassifier

_OVER_ALL_LABELS = ("f1_macro", "f2_macro")  # a label without a positive counts, as scikit-learn has it

RESAMPLES = 1000
"""Resamples of the bootstrap."""


def publish_metrics(branch: Branch, scored: ScoredClassifier, predictions: pa.Table, *, fresh: bool) -> None:
    """Write one classifier's rows of tables/metrics.

    Args:
        branch: The branch.
        scored: The classifier on it.
        predictions: All its rows of `tables/predictions`.
        fresh: Whether any of them was made by this run; if not, rows that are there stay, provided that they are of
            the same shards: a run may have ended between predictions and metrics.
    """
    folder = branch.paths.table("metrics")
    stem = f"{branch.sr}-{scored.classifier}-{scored.predictions.config}"
    scored_shards = json.dumps(sorted(scored.predictions.done()))
    note = scored.predictions.folder / "metrics.json"  # says which shards the rows are of
    there = note.exists() and list(folder.glob(f"{stem}-*.parquet"))
    if not fresh and there and note.read_text(encoding="utf-8") == scored_shards:
        return
    names = {"sr": branch.sr, "classifier": scored.classifier, "config": scored.predictions.config}
    rows = metric_rows(names, predictions, read_table(branch.paths.table("patches")), scored.labels)
    publish(folder, rows, METRICS, ["split", "seed", "metric", "label"], file_stem=stem)
    write_text(note, scored_shards)


def metric_rows(
    names: Mapping[str, str],
    predictions: pa.Table,
    patches: pa.Table,
    labels: Sequence[str] = NAMES,
    resamples: int = RESAMPLES,
) -> pa.Table:
    """Return the METRICS rows of every seed and split, over labelled patches without snow or cloud.

    Intervals resample MGRS tiles where every patch has one, and patches otherwise.

    Args:
        names: The columns sr, classifier and config of every row.
        predictions: Rows of `tables/predictions`, any order.
        patches: `tables/patches`: patch_id, tile, has_snow, has_cloud.
        resamples: Resamples of the bootstrap.
    """
    clean = patches.filter(is_clean(patches))
    place = pc.index_in(predictions["patch_id"], value_set=clean["patch_id"].combine_chunks())
    table = predictions.append_column("tile", clean["tile"].take(place))
    table = table.filter(pc.and_(pc.is_valid(place), pc.is_valid(predictions["labels"]))).sort_by("patch_id")
    rows: list[dict[str, object]] = []
    for split in sorted(pc.unique(table["split"]).to_pylist()):
        for seed in sorted(pc.unique(table["seed"]).to_pylist()):
            chosen = table.filter(pc.and_(pc.equal(table["split"], split), pc.equal(table["seed"], seed)))
            if chosen.num_rows:
                rows += _rows({**names, "split": split, "seed": seed, "n": chosen.num_rows}, chosen, labels, resamples)
    return pa.Table.from_pylist(rows, schema=METRICS)


def _rows(
    common: Mapping[str, object], table: pa.Table, labels: Sequence[str], resamples: int
) -> list[dict[str, object]]:
    probs = table["probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False).reshape(table.num_rows, -1)
    probs = probs[:, ~np.isnan(probs).any(axis=0)]
    truth = multi_hot(table["labels"].to_pylist(), labels)
    predicted = multi_hot(table["predicted"].to_pylist(), labels)
    clusters = None if table["tile"].null_count else np.array(table["tile"].to_pylist())
    # The decisions of the table count, whatever thresholds made them.
    threshold = _thresholds(probs, predicted)
    result = bootstrap(probs, truth, clusters, resamples, threshold=threshold)
    n_labels = int(truth.any(axis=0).sum())
    rows: list[dict[str, object]] = [
        {
            **common,
            "metric": metric,
            "label": None,
            "n_labels": len(labels) if metric in _OVER_ALL_LABELS else n_labels,
            **_interval(interval),
        }
        for metric, interval in result.overall.items()
    ]
    for metric, intervals in result.per_label.items():
        rows += [
            {**common, "metric": metric, "label": label, "n_labels": 1, **_interval(interval)}
            for label, interval in zip(labels, intervals, strict=True)
        ]
    return rows


def _thresholds(probs: NDArray[np.float32], predicted: NDArray[np.bool_]) -> NDArray[np.float32]:
    """Return per-label thresholds that give the table's decisions: the least probability that was predicted."""
    lowest = np.where(predicted, probs, np.inf).min(axis=0)
    return np.where(np.isfinite(lowest), lowest, 2.0)


def _interval(interval: Interval) -> dict[str, float | None]:
    return {
        name: None if math.isnan(value) else value
        for name, value in zip(("value", "low", "high"), interval, strict=True)
    }
