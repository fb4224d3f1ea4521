"""A sample: probabilities, decisions and truth of N patches, and every metric of them or of some of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Self

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifiers.metrics.bootstrap import Clusters, Intervals, cluster_counts, cluster_index, interval_of
from classifiers.metrics.calibration import bin_gaps
from classifiers.metrics.formulas import OVERALL, PATCH_SUMS, PER_LABEL, Bools, Floats, Metrics, metrics_of_sums, ratio
from classifiers.metrics.ranking import Ranking
from infra.errors import ConfigError, ShapeError

_ROWS_AT_ONCE = 8192


def multilabel_metrics(
    probs: ArrayLike, truth: ArrayLike, threshold: ArrayLike = 0.5, *, decisions: ArrayLike | None = None
) -> dict[str, float]:
    """Return the metrics of `OVERALL` and `n_labels`, the number of labels with a positive.

    Args:
        probs: Probabilities, (N, L), finite, N >= 1.
        truth: Multi-hot labels, (N, L), of 0 and 1.
        threshold: Probability from which a label is predicted, one or (L,); compared in the dtype of `probs`.
        decisions: What was predicted, (N, L), of 0 and 1, in place of a threshold.

    Returns:
        Metric name to value; NaN where there is nothing to measure (no patch with a label, no label with a positive).

    Raises:
        ShapeError: The inputs are not (N, L) arrays of one shape, or the threshold is neither one nor (L,).
        ConfigError: A probability is not finite, or a truth or decision is not 0 or 1.
    """
    found = Sample.of(probs, truth, threshold, decisions=decisions).metrics()
    values = {name: float(found.overall[name]) for name in OVERALL}
    values["n_labels"] = float((found.per_label["support"] > 0).sum())
    return values


def per_label_metrics(
    probs: ArrayLike, truth: ArrayLike, threshold: ArrayLike = 0.5, *, decisions: ArrayLike | None = None
) -> dict[str, Floats]:
    """Return the metrics of `PER_LABEL`, each (L,).

    Arguments and errors are those of `multilabel_metrics`. `ap` is NaN for a label without a positive; ratios with a
    denominator of 0 are 0. `support` is the number of positives.
    """
    return Sample.of(probs, truth, threshold, decisions=decisions).metrics().per_label


@dataclass(frozen=True, slots=True)
class Resampled:
    """Metrics of a sample and of its resamples.

    Equal seeds and clusters resample alike, so differences of two classifiers on the same patches are paired.
    """

    values: Metrics
    """Of the patches as they are: () and (L,)."""
    draws: Metrics
    """Of every resample: (R,) and (R, L); R = 0 with one cluster, where there is nothing to resample."""

    def intervals(self) -> Intervals:
        """Return the values with their percentile intervals; without resamples the bounds are NaN."""
        values, draws = self.values, self.draws
        return Intervals(
            {name: interval_of(float(values.overall[name]), draws.overall[name]) for name in OVERALL},
            {
                name: tuple(
                    interval_of(float(value), column)
                    for value, column in zip(values.per_label[name], draws.per_label[name].T, strict=True)
                )
                for name in PER_LABEL
            },
        )


@dataclass(frozen=True)
class Sample:
    """Checked inputs of all metrics; what does not depend on the subset or the resample is computed once."""

    probs: NDArray[np.floating]
    truth: Bools
    predicted: Bools

    @classmethod
    def of(
        cls, probs: ArrayLike, truth: ArrayLike, threshold: ArrayLike = 0.5, *, decisions: ArrayLike | None = None
    ) -> Self:
        """Return the sample; arguments and errors are those of `multilabel_metrics`."""
        p = np.asarray(probs)
        if not np.issubdtype(p.dtype, np.floating):
            p = p.astype(np.float64)
        t, limit = np.asarray(truth), np.asarray(threshold).astype(p.dtype)
        if p.ndim != 2 or p.shape != t.shape or 0 in p.shape:
            raise ShapeError(f"metrics need probs and truth of one shape (N, L), got {p.shape} and {t.shape}")
        if limit.shape not in {(), (1,), (p.shape[1],)}:
            raise ShapeError(f"{p.shape[1]} labels need one threshold or as many, got {limit.shape}")
        predicted = p >= limit if decisions is None else np.asarray(decisions)
        if predicted.shape != p.shape:
            raise ShapeError(f"metrics need a decision for each of {p.shape} probabilities, got {predicted.shape}")
        if not np.isfinite(p).all() or not np.isin(t, (0, 1)).all() or not np.isin(predicted, (0, 1)).all():
            raise ConfigError("metrics need finite probabilities, and a truth and decisions of 0 and 1")
        return cls(p, t.astype(np.bool_), predicted.astype(np.bool_))

    def metrics(self) -> Metrics:
        """Return the metrics of the patches as they are, () and (L,)."""
        return self._metrics(np.zeros(len(self.probs), np.intp), np.ones((1, 1)), single=True)

    def resample(
        self, clusters: Clusters, n_resamples: int = 1000, seed: int = 0, *, rows: Bools | None = None
    ) -> Resampled:
        """Return all metrics of some of the patches, and of every resample of their clusters.

        Args:
            clusters: Cluster of each patch (its MGRS tile), (N,); None makes every patch its own.
            n_resamples: R, at least 1; each draws as many clusters as the chosen patches have, with replacement.
            seed: Seed of the draws, which depend on nothing but it and the number of clusters.
            rows: Which patches, (N,), at least one; None: all.

        Raises:
            ShapeError: `clusters` or `rows` is not (N,).
            ConfigError: n_resamples is below 1, or no patch is chosen.
        """
        n = len(self.probs)
        chosen = np.ones(n, np.bool_) if rows is None else rows
        of_patches = None if clusters is None else np.asarray(clusters)
        if chosen.shape != (n,) or (of_patches is not None and of_patches.shape != (n,)):
            got = chosen.shape if of_patches is None else of_patches.shape
            raise ShapeError(f"{n} patches need as many cluster names and choices, got {got}")
        if not chosen.any():
            raise ConfigError("metrics need at least one patch, none is chosen")
        index = np.full(n, -1, np.intp)
        of_chosen = None if of_patches is None else of_patches[chosen]
        index[chosen], n_clusters = cluster_index(of_chosen, int(chosen.sum()))
        values = self._metrics(np.where(chosen, 0, -1), np.ones((1, 1)), single=True)
        parts = [self._metrics(index, counts) for counts in cluster_counts(n_clusters, n_resamples, seed)]
        return Resampled(values, _joined(parts, self.probs.shape[1]))

    def _metrics(self, clusters: NDArray[np.intp], counts: Floats, *, single: bool = False) -> Metrics:
        """Return metrics under each row of cluster weights, (R, C); patches of cluster -1 are left out."""
        rankings = [ranking.by_cluster(clusters) for ranking in self._rankings]
        ap = np.stack([ranking.average_precision(counts) for ranking in rankings], axis=1)
        sums = counts @ self._sums(clusters, counts.shape[1])
        pick = 0 if single else slice(None)
        return metrics_of_sums(sums[pick], ap[pick, :-1], ap[pick, -1])

    @cached_property
    def _rankings(self) -> list[Ranking]:
        """Of each label, and of all together."""
        columns = zip(self.probs.T, self.truth.T, strict=True)
        return [*(Ranking.of(scores, truth) for scores, truth in columns), Ranking.of(self.probs, self.truth)]

    def _sums(self, clusters: NDArray[np.intp], n_clusters: int) -> Floats:
        """Return the sums of `_columns` over the patches of each cluster, (C, K)."""
        kept = clusters >= 0
        of_kept, columns = clusters[kept], self._columns
        if not kept.all():
            columns = columns[kept]
        return np.stack([np.bincount(of_kept, column, minlength=n_clusters) for column in columns.T], axis=1)

    @cached_property
    def _columns(self) -> Floats:
        """Quantities of each patch that add up, (N, K), in the order that `PATCH_SUMS` tells."""
        t, p = self.truth, self.predicted
        hit = t & p
        n_true, n_predicted, n_hit = (mask.sum(axis=1).astype(np.float64) for mask in (t, p, hit))
        coverage_error, ranking_loss = _ranking_errors(self.probs, t)
        patch: Mapping[str, Floats] = {
            "n": np.ones(len(t)),
            "acc": ratio(n_hit, n_true + n_predicted - n_hit),
            "hl": (t ^ p).mean(axis=1),
            "labelled": (n_true > 0).astype(np.float64),
            "oe": ((n_true > 0) & ~t[np.arange(len(t)), self.probs.argmax(axis=1)]).astype(np.float64),
            "precision": ratio(n_hit, n_predicted),
            "recall": ratio(n_hit, n_true),
            "f1": ratio(2 * n_hit, n_true + n_predicted),
            "coverage_error": coverage_error,
            "ranking_loss": ranking_loss,
            "empty_truth": (n_true == 0).astype(np.float64),
            "empty_predicted": (n_predicted == 0).astype(np.float64),
        }
        gaps = bin_gaps(self.probs, t)
        return np.asfortranarray(np.column_stack([*(patch[name] for name in PATCH_SUMS), gaps, hit, p & ~t, t & ~p]))


def _joined(parts: list[Metrics], n_labels: int) -> Metrics:
    return Metrics(
        {name: np.concatenate([np.empty(0), *(part.overall[name] for part in parts)]) for name in OVERALL},
        {
            name: np.concatenate([np.empty((0, n_labels)), *(part.per_label[name] for part in parts)])
            for name in PER_LABEL
        },
    )


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
    return coverage, ratio(wrong, n_true * (truth.shape[1] - n_true))
