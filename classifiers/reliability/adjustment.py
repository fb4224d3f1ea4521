"""What flipping decisions does to accuracy, before and after, resampled in pairs."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifiers.metrics.bootstrap import Clusters, cluster_counts, cluster_index
from classifiers.reliability.model import OUTCOMES, outcomes
from infra.errors import ShapeError

type Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Accuracies:
    """Accuracy and average class accuracy, of everything and of each label; NaN where they are not defined."""

    accuracy: Floats
    """Share of right decisions, (R, 1 + L): over all decisions, then of each label."""
    class_accuracy: Floats
    """Mean of the shares of right decisions among positives and among negatives, (R, 1 + L): the mean over the labels
    that have both, then of each label."""


@dataclass(frozen=True, slots=True)
class Adjustment:
    """Accuracies before and after, of the decisions as they are, R = 1, and of every resample."""

    before: Accuracies
    after: Accuracies
    before_draws: Accuracies
    after_draws: Accuracies


def adjustment(
    truth: ArrayLike,
    before: ArrayLike,
    after: ArrayLike,
    clusters: Clusters = None,
    n_resamples: int = 1000,
    seed: int = 0,
) -> Adjustment:
    """Return accuracies of decisions before and after some were changed.

    Args:
        truth: Whether each label is there, (N, L).
        before: Whether it was predicted, (N, L).
        after: Whether it is predicted now, (N, L).
        clusters: Cluster of each patch (its MGRS tile), (N,); None makes every patch its own.
        n_resamples: R of the draws; 0 draws where there is one cluster.
        seed: Of the draws, which depend on nothing but it and the number of clusters.

    Raises:
        ShapeError: The decisions are not of one shape (N, L) with N >= 1, or the clusters are not (N,).

    Source: the two accuracies of Kierdorf and Roscher 2023, arXiv:2305.15149, section 2.6, for each label by itself.
    """
    true = np.asarray(truth, np.bool_)
    turned_out = [outcomes(decided, true) for decided in (before, after)]
    if true.ndim != 2 or not true.size:
        raise ShapeError(f"accuracies before and after need decisions (N, L), got {true.shape}")
    n, n_labels = true.shape
    index, n_clusters = cluster_index(clusters, n)
    k = n_labels * len(OUTCOMES)
    sums = [_counts(of_patches, index, n_clusters).reshape(n_clusters, k) for of_patches in turned_out]
    draws: list[list[Floats]] = [[np.empty((0, k))], [np.empty((0, k))]]
    for counts in cluster_counts(n_clusters, n_resamples, seed):
        for kept, of_clusters in zip(draws, sums, strict=True):
            kept.append(counts @ of_clusters)
    now = [_accuracies(of_clusters.sum(axis=0, keepdims=True), n_labels) for of_clusters in sums]
    drawn = [_accuracies(np.concatenate(parts), n_labels) for parts in draws]
    return Adjustment(now[0], now[1], drawn[0], drawn[1])


def _counts(outcome: NDArray[np.int8], index: NDArray[np.intp], n_clusters: int) -> Floats:
    """Return how many decisions of each cluster and label turned out to be what, (N, L) to (clusters, L, 4)."""
    k = len(OUTCOMES)
    of_labels = [np.bincount(k * index + column, minlength=k * n_clusters) for column in outcome.T]  # a label at a time
    return np.stack(of_labels, axis=1).reshape(n_clusters, k, -1).swapaxes(1, 2).astype(np.float64)


def _accuracies(counts: Floats, n_labels: int) -> Accuracies:
    """Return the accuracies of counts of outcomes, (R, L * 4)."""
    of_labels = counts.reshape(len(counts), n_labels, len(OUTCOMES))
    tn, fp, fn, tp = np.moveaxis(of_labels, 2, 0)  # (R, L) each
    everything = of_labels.sum(axis=1)
    right = everything[:, [0, 3]].sum(axis=1, keepdims=True)
    accuracy = np.concatenate(
        [_share(right, everything.sum(axis=1, keepdims=True)), _share(tn + tp, tn + fp + fn + tp)], axis=1
    )
    balanced = (_share(tp, tp + fn) + _share(tn, tn + fp)) / 2
    known = ~np.isnan(balanced)
    mean = _share(np.where(known, balanced, 0).sum(axis=1, keepdims=True), known.sum(axis=1, keepdims=True))
    return Accuracies(accuracy, np.concatenate([mean, balanced], axis=1))


def _share(part: Floats, whole: Floats) -> Floats:
    out = np.full(np.broadcast_shapes(part.shape, whole.shape), np.nan)
    return np.asarray(np.divide(part, whole, out=out, where=whole > 0))
