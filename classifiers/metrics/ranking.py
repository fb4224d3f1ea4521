"""Average precision under weights: scores are sorted once, and every resample is a matter of counting."""

from dataclasses import dataclass
from typing import Self

import numpy as np
from numpy.typing import NDArray

from classifiers.metrics.formulas import Bools, Floats

_THRESHOLDS_AT_ONCE = 256  # with a thousand resamples, a block of them stays in a core's cache
_EXACT_IN_FLOAT32 = 1 << 24


@dataclass(frozen=True, slots=True)
class Ranking:
    """Scores sorted once, best first."""

    patches: NDArray[np.int32]
    """Patch of each score."""
    truth: Bools
    """Whether it is a positive."""
    steps: NDArray[np.int32]
    """Number of its value among the distinct ones, from 0: equal scores are one threshold."""

    @classmethod
    def of(cls, scores: NDArray[np.floating], truth: Bools) -> Self:
        """Return the ranking of scores (N,) or (N, K) with truth of that shape; rows are patches."""
        flat = scores.ravel()
        order = np.argsort(-flat, kind="stable")
        ordered = flat[order]
        steps = np.concatenate([[0], np.cumsum(ordered[1:] != ordered[:-1])])
        patches = order // (flat.size // len(scores))
        return cls(patches.astype(np.int32), truth.ravel()[order], steps.astype(np.int32))

    def by_cluster(self, clusters: NDArray[np.intp]) -> "ClusterRanking":
        """Return the ranking by cluster of each patch, (N,); patches of a negative one are left out."""
        found = clusters[self.patches]
        kept = found >= 0
        return ClusterRanking.of(found[kept], self.truth[kept], self.steps[kept])


@dataclass(frozen=True, slots=True)
class ClusterRanking:
    """A ranking in which only the scores' clusters count.

    Only thresholds with a positive add to average precision, so only they are kept.
    """

    clusters: NDArray[np.intp]
    """Cluster of every score down to the last positive's threshold, (n,)."""
    ends: NDArray[np.intp]
    """Last position of each threshold, (G,)."""
    positive_clusters: NDArray[np.intp]
    """Cluster of every positive, in the same order, (P,)."""
    positive_starts: NDArray[np.intp]
    """First positive of each threshold, (G,)."""

    @classmethod
    def of(cls, clusters: NDArray[np.intp], truth: Bools, steps: NDArray[np.int32]) -> Self:
        """Return the ranking of scores in order: their clusters, truth and steps, (n,) each."""
        positions = np.flatnonzero(truth)
        if not len(positions):
            return cls(*(np.empty(0, np.intp) for _ in range(4)))
        last = np.flatnonzero(np.append(steps[1:] != steps[:-1], True))
        ends, starts = np.unique(last[np.searchsorted(last, positions)], return_index=True)
        return cls(clusters[: ends[-1] + 1], ends, clusters[positions], starts)

    def average_precision(self, counts: Floats) -> Floats:
        """Return sum_g (R_g - R_{g-1}) P_g of each row of cluster weights, (R, C) to (R,); NaN without a positive.

        Args:
            counts: Weights, whole numbers >= 0.
        """
        if not len(self.ends):
            return np.full(len(counts), np.nan)
        # Nanoseconds a resample, as benchmarks/metrics.py finds them on one core: which way is the shorter?
        n, p, g, c = len(self.clusters), len(self.positive_clusters), len(self.ends), counts.shape[1]
        one_by_one = 2.2 * n + 4.0 * p
        by_matrix = g * (2.2 + 0.045 * c) + (10.0 * n + 4.0 * g * c) / len(counts)
        return self.by_matrix_product(counts) if by_matrix < one_by_one else self.one_by_one(counts)

    def one_by_one(self, counts: Floats) -> Floats:
        """Return `average_precision` by cumulative sums of each resample: for many clusters, or few resamples."""
        values = np.full(len(counts), np.nan)
        dtype = np.int32 if self._heaviest(counts) < np.iinfo(np.int32).max else np.int64
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

    def by_matrix_product(self, counts: Floats) -> Floats:
        """Return `average_precision` by cumulative counts at the thresholds, (G, C), times weights, (C, R).

        Whole numbers below 2^24 are exact in float32, so the products are exact; the ratios are in float64.
        """
        exact: type[np.floating] = np.float32 if self._heaviest(counts) < _EXACT_IN_FLOAT32 else np.float64
        n_resamples, n_clusters = counts.shape
        weights = np.ascontiguousarray(counts.T)
        factors = weights.astype(exact)
        ends = np.concatenate([[-1], self.ends])
        starts = np.append(self.positive_starts, len(self.positive_clusters))
        seen_before, hits_before = np.zeros(n_clusters, exact), np.zeros(n_clusters, exact)
        block = min(_THRESHOLDS_AT_ONCE, len(self.ends))
        products = [np.empty((block, n_resamples), exact) for _ in range(2)]
        wide = [np.empty((block, n_resamples)) for _ in range(2)]
        total = np.zeros(n_resamples)
        for first in range(0, len(self.ends), block):
            size = min(block, len(self.ends) - first)
            limits = ends[first : first + size + 1] + 1
            seen_counts = _counts(self.clusters, limits, n_clusters)
            gained_counts = _counts(self.positive_clusters, starts[first : first + size + 1], n_clusters)
            seen_until = np.cumsum(seen_counts, axis=0, dtype=exact) + seen_before
            hits_until = np.cumsum(gained_counts, axis=0, dtype=exact) + hits_before
            seen_before, hits_before = seen_until[-1], hits_until[-1]
            seen = np.matmul(seen_until, factors, out=products[0][:size])
            hits = np.matmul(hits_until, factors, out=products[1][:size])
            precision, other = wide[0][:size], wide[1][:size]
            precision[:] = hits
            np.maximum(seen, 1, out=other)
            precision /= other
            positives = self.positive_clusters[starts[first] : starts[first + size]]
            if len(positives) == size:
                gained = np.take(weights, positives, axis=0, out=other, mode="clip")
            else:  # ties
                gained = np.matmul(gained_counts.astype(np.float64), weights, out=other)
            total += np.einsum("gr,gr->r", precision, gained)
        all_hits = hits_before.astype(np.float64) @ weights
        values = np.full(n_resamples, np.nan)
        np.divide(total, all_hits, out=values, where=all_hits > 0)
        return values

    def _heaviest(self, counts: Floats) -> float:
        """Return the largest weight of all scores together."""
        return float((counts @ np.bincount(self.clusters, minlength=counts.shape[1])).max())


def _counts(clusters: NDArray[np.intp], limits: NDArray[np.intp], n_clusters: int) -> NDArray[np.intp]:
    """Return how many of each cluster lie between successive limits, (len(limits) - 1, C)."""
    rows = len(limits) - 1
    row = np.repeat(np.arange(rows), np.diff(limits))
    place = row * n_clusters + clusters[limits[0] : limits[-1]]
    return np.bincount(place, minlength=rows * n_clusters).reshape(rows, n_clusters)
