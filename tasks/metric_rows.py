"""The metrics of one seed's predictions: of every split, and in it of every country and every season."""

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from classifiers.metrics import Calibration, Interval, Sample, calibration_of
from infra.errors import PipelineError
from tasks.labels import is_clean, multi_hot

_OVER_ALL_LABELS = ("f1_macro", "f2_macro")  # a label without a positive counts, as scikit-learn has it

PLACES = ("country", "season")
"""Columns of tables/patches by which a split is scored in parts."""


@dataclass(frozen=True, slots=True)
class Bootstrap:
    """How intervals are made."""

    n_resamples: int = 1000
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Subset:
    """Some patches of a split."""

    split: str
    country: str | None
    """None for all."""
    season: str | None
    """None for all."""
    n: int
    """Patches."""
    digest: str
    """Of the split's patches and of the labels scored: two classifiers of one digest were scored alike."""


@dataclass(frozen=True, slots=True)
class MetricRow:
    """One metric of one subset."""

    subset: Subset
    metric: str
    label: str | None
    """None for metrics over all labels."""
    interval: Interval
    draws: NDArray[np.float32]
    """The metric of every resample, (R,); R = 0 where there is nothing to resample."""
    n_labels: int
    """Labels that went into a macro mean."""


def scored_patches(rows: pa.Table, patches: pa.Table, truth: str = "labels") -> pa.Table:
    """Return rows of labelled patches without snow or cloud, with tile, country and season, by patch id.

    Args:
        rows: One a patch, any order: of one seed of `tables/predictions`, or others with its patch_id.
        patches: `tables/patches`: patch_id, tile, country, season, has_snow, has_cloud.
        truth: Column of the rows that is null where nobody labelled the patch.
    """
    clean = patches.filter(is_clean(patches))
    place = pc.index_in(rows["patch_id"], value_set=clean["patch_id"].combine_chunks())
    for name in ("tile", *PLACES):
        rows = rows.append_column(name, clean[name].take(place))
    return rows.filter(pc.and_(pc.is_valid(place), pc.is_valid(rows[truth]))).sort_by("patch_id")


def tile_ranks(scored: pa.Table) -> NDArray[np.unsignedinteger] | None:
    """Return the rank of each patch's tile among those there, (N,), what intervals resample; None: resample patches.

    Tiles are resampled where every patch has one.

    Args:
        scored: Rows from `scored_patches`.
    """
    if scored["tile"].null_count:
        return None
    tiles, index = np.unique(np.array(scored["tile"].to_pylist(), str), return_inverse=True)
    return index.astype(np.min_scalar_type(len(tiles)))  # small numbers sort several times as fast


def known_labels(scored: pa.Table, labels: Sequence[str]) -> tuple[str, ...]:
    """Return the labels that a classifier knows: those without a null among their probabilities.

    Raises:
        PipelineError: A label has a probability for some patches only: its network gave what is no number.
    """
    null = np.isnan(_probs(scored, len(labels)))
    known = ~null.any(axis=0)
    for i in np.flatnonzero(~known & ~null.all(axis=0)).tolist():
        first = scored["patch_id"][int(null[:, i].argmax())]
        raise PipelineError(
            f"the probability of {labels[i]} is no number for {null[:, i].sum()} of {len(null)} patches, the first "
            f"{first}: train the classifier anew, or look at those pixels"
        )
    return tuple(label for label, there in zip(labels, known, strict=True) if there)


def metric_rows(
    scored: pa.Table,
    labels: Sequence[str],
    bootstrap: Bootstrap,
    *,
    of: Sequence[str] | None = None,
    by_place: bool = True,
) -> Iterator[MetricRow]:
    """Yield every metric of every split, country and season.

    Intervals resample MGRS tiles where every patch of the split has one, and patches otherwise.

    Args:
        scored: Rows of one seed, from `scored_patches`.
        labels: Labels of the archive, in the order of the probabilities.
        bootstrap: How intervals are made.
        of: Labels to score; None: those that the classifier knows.
        by_place: Whether countries and seasons are scored too.

    Raises:
        PipelineError: As `known_labels`.
    """
    chosen = known_labels(scored, labels) if of is None else tuple(of)
    if not chosen:
        return
    for split in _values(scored, "split"):
        table = scored.filter(pc.equal(scored["split"], split))
        sample = _sample(table, labels, chosen)
        clusters = tile_ranks(table)
        digest = hashlib.sha256(json.dumps([table["patch_id"].to_pylist(), chosen]).encode()).hexdigest()
        everywhere: list[tuple[str | None, str | None]] = [(None, None)]
        if by_place:
            everywhere += [(country, None) for country in _values(table, "country")]
            everywhere += [(None, season) for season in _values(table, "season")]
        for country, season in everywhere:
            rows = np.ones(table.num_rows, np.bool_)
            for name, value in zip(PLACES, (country, season), strict=True):
                if value is not None:
                    rows &= pc.fill_null(pc.equal(table[name], value), fill_value=False).to_numpy()
            subset = Subset(split, country, season, int(rows.sum()), digest)
            yield from _rows(subset, sample, clusters, rows, chosen, bootstrap)


def calibrations(scored: pa.Table, labels: Sequence[str]) -> Iterator[tuple[str, Calibration]]:
    """Yield each split with the calibration of all decisions in it; arguments as for `metric_rows`."""
    known = known_labels(scored, labels)
    for split in _values(scored, "split") if known else []:
        sample = _sample(scored.filter(pc.equal(scored["split"], split)), labels, known)
        yield split, calibration_of(sample.probs, sample.truth)


def _rows(
    subset: Subset,
    sample: Sample,
    clusters: NDArray[np.generic] | None,
    rows: NDArray[np.bool_],
    labels: Sequence[str],
    bootstrap: Bootstrap,
) -> Iterator[MetricRow]:
    found = sample.resample(clusters, bootstrap.n_resamples, bootstrap.seed, rows=rows)
    intervals = found.intervals()
    with_positive = int((found.values.per_label["support"] > 0).sum())
    for metric, interval in intervals.overall.items():
        n_labels = len(labels) if metric in _OVER_ALL_LABELS else with_positive
        draws = found.draws.overall[metric].astype(np.float32)
        yield MetricRow(subset, metric, None, interval, draws, n_labels)
    for metric, of_labels in intervals.per_label.items():
        columns = found.draws.per_label[metric].T.astype(np.float32)
        for label, interval, draws in zip(labels, of_labels, columns, strict=True):
            yield MetricRow(subset, metric, label, interval, draws, 1)


def _sample(table: pa.Table, labels: Sequence[str], chosen: Sequence[str]) -> Sample:
    """Return probabilities, truth and decisions of some labels; the decisions of the table count, however made."""
    probs = _probs(table, len(labels))[:, [list(labels).index(label) for label in chosen]]
    truth, predicted = (multi_hot(table[name].to_pylist(), chosen) for name in ("labels", "predicted"))
    return Sample.of(probs, truth, decisions=predicted)


def _probs(table: pa.Table, n_labels: int) -> NDArray[np.float32]:
    """Return probabilities, (N, L), NaN where null."""
    values: NDArray[np.float32] = table["probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
    return values.reshape(table.num_rows, n_labels)


def _values(table: pa.Table, column: str) -> list[str]:
    return sorted(pc.drop_null(pc.unique(table[column])).to_pylist())
