"""Multi-label metrics and their cluster-bootstrap intervals.

Every metric is one formula over weighted sums of per-patch quantities, plus a weighted average precision. With weights
of one that is the metric itself; with the multiplicities of a resample it is the metric of the resampled patches. The
definitions are those of `docs/metrics.md`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple, Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.errors import ConfigError, ShapeError

type Floats = NDArray[np.float64]
type Bools = NDArray[np.bool_]

OVERALL: tuple[str, ...] = (
    "acc",
    "hl",
    "oe",
    "precision",
    "recall",
    "f1",
    "f2_macro",
    "f1_macro",
    "f1_micro",
    "ap_macro",
    "ap_micro",
    "coverage_error",
    "ranking_loss",
    "empty_truth_share",
    "empty_predicted_share",
    "prevalence_macro",
    "ap_macro_above_prevalence",
)
"""Names of the overall metrics, in the order of the tables."""

PER_LABEL: tuple[str, ...] = ("f1", "f2", "ap", "precision", "recall", "prevalence", "support")
"""Names of the metrics of one label."""

_PATCH_SUMS: tuple[str, ...] = (
    "n",
    "acc",
    "hl",
    "labelled",
    "oe",
    "precision",
    "recall",
    "f1",
    "coverage_error",
    "ranking_loss",
    "empty_truth",
    "empty_predicted",
)

_ROWS_AT_ONCE = 8192
_COUNTS_AT_ONCE = 1 << 22


def multilabel_metrics(probs: ArrayLike, truth: ArrayLike, threshold: ArrayLike = 0.5) -> dict[str, float]:
    """Return the metrics of `OVERALL` and `n_labels`, the number of labels with a positive.

    Args:
        probs: Probabilities, (N, L), finite, N >= 1.
        truth: Multi-hot labels, (N, L), of 0 and 1.
        threshold: Probability from which a label is predicted, one or (L,); compared in the dtype of `probs`.

    Returns:
        Metric name to value; NaN where there is nothing to measure (no patch with a label, no label with a positive).

    Raises:
        ShapeError: The inputs are not two (N, L) arrays of one shape, or the threshold is neither one nor (L,).
        ConfigError: A probability is not finite or a truth is not 0 or 1.
    """
    sample = _Sample.of(probs, truth, threshold)
    overall, per_label = sample.metrics()
    values = {name: float(overall[name]) for name in OVERALL}
    values["n_labels"] = float((per_label["support"] > 0).sum())
    return values


def per_label_metrics(probs: ArrayLike, truth: ArrayLike, threshold: ArrayLike = 0.5) -> dict[str, Floats]:
    """Return the metrics of `PER_LABEL`, each (L,).

    Arguments and errors are those of `multilabel_metrics`. `ap` is NaN for a label without a positive; ratios with a
    denominator of 0 are 0. `support` is the number of positives.
    """
    return _Sample.of(probs, truth, threshold).metrics()[1]


class Interval(NamedTuple):
    """A value with its 95 % interval; NaN where null."""

    value: float
    """The metric of the patches as they are."""
    low: float
    """2.5th percentile over the resamples in which the metric is defined."""
    high: float
    """97.5th percentile."""


@dataclass(frozen=True, slots=True)
class Intervals:
    """Values and intervals of all metrics."""

    overall: dict[str, Interval]
    """Metric of `OVERALL` to its interval."""
    per_label: dict[str, tuple[Interval, ...]]
    """Metric of `PER_LABEL` to the intervals of the L labels."""


@dataclass(frozen=True, slots=True)
class Resamples:
    """Metrics of every resample. Equal seeds and clusters resample alike, so differences of two models are paired."""

    overall: dict[str, Floats]
    """Metric of `OVERALL` to (R,)."""
    per_label: dict[str, Floats]
    """Metric of `PER_LABEL` to (R, L)."""


def bootstrap(
    probs: ArrayLike,
    truth: ArrayLike,
    clusters: Sequence[int] | Sequence[str] | NDArray[np.generic] | None,
    n_resamples: int = 1000,
    seed: int = 0,
    threshold: ArrayLike = 0.5,
) -> Intervals:
    """Return all metrics with their percentile intervals over resampled clusters.

    Args:
        probs: Probabilities, (N, L), as for `multilabel_metrics`.
        truth: Multi-hot labels, (N, L).
        clusters: Cluster of each patch (its MGRS tile), (N,); None makes every patch its own.
        n_resamples: R, at least 1; each draws as many clusters as there are, with replacement.
        seed: Seed of the draws, which depend on nothing but it and the number of clusters.
        threshold: As for `multilabel_metrics`.

    Returns:
        Values and intervals; with one cluster only there is nothing to resample and the bounds are NaN.

    Raises:
        ShapeError: As for `multilabel_metrics`, or `clusters` is not (N,).
        ConfigError: As for `multilabel_metrics`, or n_resamples is below 1.
    """
    overall, per_label = _Sample.of(probs, truth, threshold).metrics()
    draws = resample(probs, truth, clusters, n_resamples, seed, threshold)
    return Intervals(
        {name: _interval(overall[name], draws.overall[name]) for name in OVERALL},
        {
            name: tuple(
                _interval(value, column) for value, column in zip(per_label[name], draws.per_label[name].T, strict=True)
            )
            for name in PER_LABEL
        },
    )


def resample(
    probs: ArrayLike,
    truth: ArrayLike,
    clusters: Sequence[int] | Sequence[str] | NDArray[np.generic] | None,
    n_resamples: int = 1000,
    seed: int = 0,
    threshold: ArrayLike = 0.5,
) -> Resamples:
    """Return all metrics of every resample; arguments and errors are those of `bootstrap`.

    With one cluster the result is empty: R = 0.
    """
    sample = _Sample.of(probs, truth, threshold)
    if n_resamples < 1:
        raise ConfigError(f"a bootstrap needs at least one resample, got {n_resamples}")
    index, n_clusters = _cluster_index(clusters, len(sample.probs))
    chunks = [_empty_chunk(sample.probs.shape[1])]
    if n_clusters > 1:
        sums, rankings = sample.sums(index, n_clusters), sample.rankings(index)
        for counts in _draws(n_clusters, n_resamples, seed):
            ap = np.stack([ranking.average_precision(counts) for ranking in rankings.per_label], axis=1)
            chunks.append(_formulas(counts @ sums, ap, rankings.micro.average_precision(counts)))
    return Resamples(
        {name: np.concatenate([overall[name] for overall, _ in chunks]) for name in OVERALL},
        {name: np.concatenate([per_label[name] for _, per_label in chunks]) for name in PER_LABEL},
    )


def bootstrap_means(
    values: ArrayLike,
    clusters: Sequence[int] | Sequence[str] | NDArray[np.generic] | None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> tuple[Interval, ...]:
    """Return the mean of every column with its percentile interval over resampled clusters.

    Args:
        values: (N, K), one row a patch; NaN where a patch has no value, which leaves it out of that column.
        clusters: As for `bootstrap`, (N,).
        n_resamples: As for `bootstrap`.
        seed: As for `bootstrap`: the same clusters are drawn.

    Returns:
        K means; a mean of nothing is NaN, and with one cluster only the bounds are NaN.

    Raises:
        ShapeError: values is not (N, K) with N >= 1, or `clusters` is not (N,).
        ConfigError: n_resamples is below 1.
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not len(table):
        raise ShapeError(f"bootstrap_means needs values (N, K) with N >= 1, got {table.shape}")
    if n_resamples < 1:
        raise ConfigError(f"a bootstrap needs at least one resample, got {n_resamples}")
    index, n_clusters = _cluster_index(clusters, len(table))
    known = ~np.isnan(table)
    sums, counts = (
        np.stack([np.bincount(index, column, minlength=n_clusters) for column in columns.T], axis=1)
        for columns in (np.where(known, table, 0.0), known)
    )
    means = _ratio(sums.sum(axis=0), counts.sum(axis=0), otherwise=np.nan)
    draws = np.empty((0, table.shape[1]))
    if n_clusters > 1:
        weights = _draws(n_clusters, n_resamples, seed)
        draws = np.concatenate([_ratio(w @ sums, w @ counts, otherwise=np.nan) for w in weights])
    return tuple(_interval(mean, column) for mean, column in zip(means, draws.T, strict=True))


def _empty_chunk(n_labels: int) -> tuple[dict[str, Floats], dict[str, Floats]]:
    return {name: np.empty(0) for name in OVERALL}, {name: np.empty((0, n_labels)) for name in PER_LABEL}


def _interval(value: np.float64 | Floats, draws: Floats) -> Interval:
    defined = draws[~np.isnan(draws)]
    if not len(defined) or np.isnan(value):
        return Interval(float(value), np.nan, np.nan)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def _cluster_index(
    clusters: Sequence[int] | Sequence[str] | NDArray[np.generic] | None, n: int
) -> tuple[NDArray[np.intp], int]:
    """Return the rank of each patch's cluster among the sorted clusters, (N,), and their number."""
    if clusters is None:
        return np.arange(n), n
    values = np.asarray(clusters)
    if values.shape != (n,):
        raise ShapeError(f"{n} patches need as many cluster names, got an array of shape {values.shape}")
    names, index = np.unique(values, return_inverse=True)
    return index.astype(np.intp), len(names)


def _draws(n_clusters: int, n_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield multiplicities of the clusters, (resamples, clusters), a bounded number of resamples at a time."""
    rng = np.random.default_rng(seed)
    at_once = max(1, _COUNTS_AT_ONCE // n_clusters)
    for start in range(0, n_resamples, at_once):
        size = min(at_once, n_resamples - start)
        yield np.stack(
            [np.bincount(rng.integers(n_clusters, size=n_clusters), minlength=n_clusters) for _ in range(size)]
        ).astype(np.float64)


def _formulas(sums: Floats, ap: Floats, ap_micro: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
    """Return the overall metrics, (...), and those per label, (..., L).

    Args:
        sums: Weighted sums of the columns of `_Sample.columns`, (..., M + 3 L).
        ap: Average precision per label, (..., L), NaN without a positive.
        ap_micro: Micro average precision, (...).
    """
    n_labels = ap.shape[-1]
    patch = {name: sums[..., i] for i, name in enumerate(_PATCH_SUMS)}
    counts = sums[..., len(_PATCH_SUMS) :]
    tp, fp, fn = (counts[..., i * n_labels : (i + 1) * n_labels] for i in range(3))
    n, support = patch["n"], tp + fn
    per_label = {
        "f1": _ratio(2 * tp, 2 * tp + fp + fn),
        "f2": _ratio(5 * tp, 5 * tp + fp + 4 * fn),
        "ap": ap,
        "precision": _ratio(tp, tp + fp),
        "recall": _ratio(tp, support),
        "prevalence": support / n[..., None],
        "support": support,
    }
    total_tp, total_fp, total_fn = tp.sum(axis=-1), fp.sum(axis=-1), fn.sum(axis=-1)
    has_positive = support > 0
    ap_macro = _mean_where(ap, has_positive)
    prevalence_macro = _mean_where(per_label["prevalence"], has_positive)
    overall = {
        **{name: patch[name] / n for name in ("acc", "hl", "precision", "recall", "f1")},
        "oe": _ratio(patch["oe"], patch["labelled"], otherwise=np.nan),
        "f2_macro": per_label["f2"].mean(axis=-1),
        "f1_macro": per_label["f1"].mean(axis=-1),
        "f1_micro": _ratio(2 * total_tp, 2 * total_tp + total_fp + total_fn),
        "ap_macro": ap_macro,
        "ap_micro": ap_micro,
        "coverage_error": patch["coverage_error"] / n,
        "ranking_loss": patch["ranking_loss"] / n,
        "empty_truth_share": patch["empty_truth"] / n,
        "empty_predicted_share": patch["empty_predicted"] / n,
        "prevalence_macro": prevalence_macro,
        "ap_macro_above_prevalence": ap_macro - prevalence_macro,
    }
    return overall, per_label


def _ratio(numerator: Floats, denominator: Floats, otherwise: float = 0.0) -> Floats:
    ratio = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), otherwise)
    np.divide(numerator, denominator, out=ratio, where=denominator != 0)
    return ratio


def _mean_where(values: Floats, mask: Bools) -> Floats:
    """Return the mean over the last axis of the values under the mask, NaN where there are none."""
    return _ratio(np.where(mask, values, 0.0).sum(axis=-1), mask.sum(axis=-1).astype(np.float64), otherwise=np.nan)


@dataclass(frozen=True, slots=True)
class _Ranking:
    """One list of scores sorted once, best first, so that average precision under any weights is a cumulative sum.

    Equal scores are one threshold. Only thresholds with a positive add to average precision, so only they are kept.
    """

    clusters: NDArray[np.intp]
    """Cluster of every score down to the last positive's threshold."""
    ends: NDArray[np.intp]
    """Last position of each threshold, (G,)."""
    positive_clusters: NDArray[np.intp]
    """Cluster of every positive, in the same order, (P,)."""
    positive_starts: NDArray[np.intp]
    """First positive of each threshold, (G,)."""

    @classmethod
    def of(cls, scores: NDArray[np.floating], truth: Bools, clusters: NDArray[np.intp]) -> Self:
        """Return the ranking of scores (n,) with truth (n,) and clusters (n,)."""
        order = np.argsort(-scores, kind="stable")
        ordered = scores[order]
        positions = np.flatnonzero(truth[order])
        if not len(positions):
            return cls(*(np.empty(0, np.intp) for _ in range(4)))
        last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True))
        ends, starts = np.unique(last[np.searchsorted(last, positions)], return_index=True)
        order = order[: ends[-1] + 1]
        return cls(clusters[order], ends, clusters[order[positions]], starts)

    def average_precision(self, counts: Floats) -> Floats:
        """Return sum_g (R_g - R_{g-1}) P_g for each row of cluster weights, (R, C) to (R,); NaN without a positive."""
        values = np.full(len(counts), np.nan)
        if not len(self.ends):
            return values
        sizes = np.bincount(self.clusters, minlength=counts.shape[1])
        dtype = np.int32 if (counts @ sizes).max() < np.iinfo(np.int32).max else np.int64
        tied = len(self.ends) < len(self.positive_clusters)
        # Buffers are reused: at this size, fresh memory for every resample costs more than the sums.
        running = np.empty(len(self.clusters), dtype)
        gains = np.empty(len(self.positive_clusters), dtype)
        hits, seen = np.empty(len(self.ends), dtype), np.empty(len(self.ends), dtype)
        precision = np.empty(len(self.ends))
        for row, weights in enumerate(counts.astype(dtype)):
            np.take(weights, self.clusters, out=running, mode="clip")  # clip: numpy copies `out` otherwise
            np.cumsum(running, dtype=dtype, out=running)
            np.take(running, self.ends, out=seen, mode="clip")
            np.take(weights, self.positive_clusters, out=gains, mode="clip")
            gained = np.add.reduceat(gains, self.positive_starts, dtype=dtype) if tied else gains
            np.cumsum(gained, dtype=dtype, out=hits)
            if hits[-1]:
                np.divide(hits, np.maximum(seen, 1, out=seen), out=precision)
                values[row] = np.dot(precision, gained) / hits[-1]
        return values


@dataclass(frozen=True, slots=True)
class _Rankings:
    per_label: tuple[_Ranking, ...]
    micro: _Ranking


@dataclass(frozen=True, slots=True)
class _Sample:
    """Checked inputs of all metrics."""

    probs: NDArray[np.floating]
    truth: Bools
    predicted: Bools

    @classmethod
    def of(cls, probs: ArrayLike, truth: ArrayLike, threshold: ArrayLike) -> Self:
        p = np.asarray(probs)
        if not np.issubdtype(p.dtype, np.floating):
            p = p.astype(np.float64)
        t, limit = np.asarray(truth), np.asarray(threshold).astype(p.dtype)
        if p.ndim != 2 or p.shape != t.shape or 0 in p.shape:
            raise ShapeError(f"metrics need probs and truth of one shape (N, L), got {p.shape} and {t.shape}")
        if limit.shape not in {(), (1,), (p.shape[1],)}:
            raise ShapeError(f"{p.shape[1]} labels need one threshold or as many, got {limit.shape}")
        if not np.isfinite(p).all() or not np.isin(t, (0, 1)).all():
            raise ConfigError("metrics need finite probabilities and a truth of 0 and 1")
        return cls(p, t.astype(np.bool_), p >= limit)

    def metrics(self) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Return the metrics of the patches as they are: one cluster of weight 1."""
        whole, one = np.zeros(len(self.probs), np.intp), np.ones((1, 1))
        rankings = self.rankings(whole)
        ap = np.stack([ranking.average_precision(one)[0] for ranking in rankings.per_label])
        return _formulas(self.sums(whole, 1)[0], ap, rankings.micro.average_precision(one)[0])

    def rankings(self, clusters: NDArray[np.intp]) -> _Rankings:
        per_label = tuple(
            _Ranking.of(scores, truth, clusters) for scores, truth in zip(self.probs.T, self.truth.T, strict=True)
        )
        return _Rankings(
            per_label, _Ranking.of(self.probs.ravel(), self.truth.ravel(), np.repeat(clusters, self.probs.shape[1]))
        )

    def sums(self, clusters: NDArray[np.intp], n_clusters: int) -> Floats:
        """Return the sums of `columns` over the patches of each cluster, (C, M + 3 L)."""
        columns = self.columns()
        return np.stack([np.bincount(clusters, column, minlength=n_clusters) for column in columns.T], axis=1)

    def columns(self) -> Floats:
        """Return the quantities of each patch that add up, (N, M + 3 L): `_PATCH_SUMS`, then TP, FP, FN per label."""
        t, p = self.truth, self.predicted
        hit = t & p
        n_true, n_predicted, n_hit = (mask.sum(axis=1).astype(np.float64) for mask in (t, p, hit))
        coverage_error, ranking_loss = _ranking_errors(self.probs, t)
        patch: Mapping[str, Floats] = {
            "n": np.ones(len(t)),
            "acc": _ratio(n_hit, n_true + n_predicted - n_hit),
            "hl": (t ^ p).mean(axis=1),
            "labelled": (n_true > 0).astype(np.float64),
            "oe": ((n_true > 0) & ~t[np.arange(len(t)), self.probs.argmax(axis=1)]).astype(np.float64),
            "precision": _ratio(n_hit, n_predicted),
            "recall": _ratio(n_hit, n_true),
            "f1": _ratio(2 * n_hit, n_true + n_predicted),
            "coverage_error": coverage_error,
            "ranking_loss": ranking_loss,
            "empty_truth": (n_true == 0).astype(np.float64),
            "empty_predicted": (n_predicted == 0).astype(np.float64),
        }
        return np.column_stack([*(patch[name] for name in _PATCH_SUMS), hit, p & ~t, t & ~p])


def _ranking_errors(probs: NDArray[np.floating], truth: Bools) -> tuple[Floats, Floats]:
    """Return each patch's coverage error and ranking loss, both (N,), 0 where they have nothing to rank."""
    lowest = np.where(truth, probs, np.inf).min(axis=1, keepdims=True)
    coverage = (probs >= lowest).sum(axis=1).astype(np.float64)
    wrong = np.empty(len(probs))
    for start in range(0, len(probs), _ROWS_AT_ONCE):
        rows = slice(start, start + _ROWS_AT_ONCE)
        p, t = probs[rows], truth[rows]
        reversed_pairs = (p[:, None, :] >= p[:, :, None]) & t[:, :, None] & ~t[:, None, :]  # (n, true, false)
        wrong[rows] = reversed_pairs.sum(axis=(1, 2))
    n_true = truth.sum(axis=1).astype(np.float64)
    return coverage, _ratio(wrong, n_true * (truth.shape[1] - n_true))
