"""Selective prediction: how right a classifier is on what is kept when the least confident decisions are withheld."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.sparse import csr_array
from scipy.special import digamma

from classifiers.metrics.bootstrap import Clusters, cluster_counts, cluster_index
from infra.errors import ConfigError, ShapeError

type Floats = NDArray[np.float64]

_LEVELS = 512
"""Groups of equal confidence in resamples, at most; finer ones change the ends of intervals by less than they vary."""

_AT_ONCE = 64
"""Resamples whose steps are in memory at a time: few enough to stay in a processor's cache."""

_DENSE = 1 << 22
"""Clusters times levels up to which their counts are held in full."""


@dataclass(frozen=True, slots=True)
class RiskCoverage:
    """The error rate of the k most confident decisions, for every k."""

    risk: Floats
    """Expected share of wrong ones among the first k, (N,): decisions of equal confidence come in random order."""

    @property
    def area(self) -> float:
        """Area under the curve (AURC), the mean risk over all k; the lower, the better the order."""
        return float(self.risk.mean())

    def at(self, coverage: float) -> float:
        """Return the risk when a share of the decisions, 0 to 1, is kept, and at least one of them."""
        return float(self.risk[max(1, round(coverage * len(self.risk))) - 1])


def confidence(probs: ArrayLike, decisions: ArrayLike) -> Floats:
    """Return the probability of what was decided: p where the label was predicted, 1 - p where not; same shape."""
    p = np.asarray(probs, np.float64)
    return np.where(np.asarray(decisions, np.bool_), p, 1 - p)


def risk_coverage(confidence: ArrayLike, wrong: ArrayLike) -> RiskCoverage:
    """Return the risk-coverage curve: how often the most confident decisions are wrong, whatever their number.

    Args:
        confidence: The higher, the sooner a decision is kept, (N,), N >= 1; no NaN.
        wrong: Whether each decision is wrong, (N,).

    Raises:
        ShapeError: The two are not of one shape (N,), or empty.
        ConfigError: A confidence is NaN.

    Source: Geifman and El-Yaniv 2017, arXiv:1705.08500, section 2; for the area Geifman et al. 2019, arXiv:1805.08206.
    """
    sure, errors = _checked(confidence, wrong)
    values, sizes = _steps(sure)
    up_to = np.searchsorted(np.sort(-sure[errors]), values, side="right")  # wrong ones of a step and all before it
    expected = np.repeat(np.diff(up_to, prepend=0) / sizes, sizes)  # error of each place in the order
    return RiskCoverage(np.cumsum(expected) / np.arange(1, len(sure) + 1))


def resampled_areas(
    confidence: ArrayLike, wrong: ArrayLike, clusters: Clusters, n_resamples: int = 1000, seed: int = 0
) -> Floats:
    """Return the area under the risk-coverage curve of every resample of clusters, (R,); paired for equal seeds.

    Args:
        confidence: As `risk_coverage` has it; of more than 512 different ones, neighbours count as equal, so that
            there are 512 steps of about equal size.
        wrong: As `risk_coverage` has it.
        clusters: Cluster of each decision (its patch's MGRS tile), (N,); None makes every decision its own.
        n_resamples: R, at least 1.
        seed: Of the draws, which depend on nothing but it and the number of clusters.

    Returns:
        (R,); R = 0 with one cluster, where there is nothing to resample.

    Raises:
        ShapeError, ConfigError: As `risk_coverage`; or the clusters are not (N,).
    """
    sure, errors = _checked(confidence, wrong)
    index, n_clusters = cluster_index(clusters, len(sure))
    values, sizes = _steps(sure)
    if len(values) > _LEVELS:
        group = (np.cumsum(sizes) - sizes) * _LEVELS // len(sure)
        values = values[np.diff(group, prepend=-1) > 0]
    levels = np.searchsorted(values, -sure, side="right") - 1
    n, wrong_ones = (_counted(index[of], levels[of], n_clusters, len(values)) for of in (slice(None), errors))
    found = [
        _areas(counts[first : first + _AT_ONCE] @ n, counts[first : first + _AT_ONCE] @ wrong_ones)
        for counts in cluster_counts(n_clusters, n_resamples, seed)
        for first in range(0, len(counts), _AT_ONCE)
    ]
    return np.concatenate([np.empty(0), *found])


def _steps(sure: Floats) -> tuple[Floats, NDArray[np.intp]]:
    """Return the different confidences, negated and so the highest first, and how many decisions have each."""
    falling = np.sort(-sure)  # values alone: several times as fast as an order of places
    first = np.flatnonzero(np.concatenate([[True], falling[1:] != falling[:-1]]))
    return falling[first], np.diff(first, append=len(sure))


def _counted(index: NDArray[np.intp], levels: NDArray[np.intp], n_clusters: int, n_levels: int) -> Floats | csr_array:
    """Return how many decisions each cluster has at each level, (clusters, levels).

    Sparse where that would be large: with a cluster for every decision, there are as many numbers as decisions.
    """
    if n_clusters * n_levels > _DENSE:
        return csr_array((np.ones(len(index)), (index, levels)), shape=(n_clusters, n_levels))
    counts = np.bincount(index * n_levels + levels, minlength=n_clusters * n_levels)
    return counts.reshape(n_clusters, n_levels).astype(np.float64)


def _areas(n: Floats, wrong: Floats) -> Floats:
    """Return the areas of curves whose decisions come in steps of equal confidence, (R, steps) to (R,).

    The risk after j of the s decisions of a step, K decisions and E errors before it, is (E + j e) / (K + j), with e
    the step's own error rate; its sum over j is e s + (E - e K) (H(K + s) - H(K)), H the harmonic numbers.
    """
    after, wrong_after = np.cumsum(n, axis=1), np.cumsum(wrong, axis=1)
    harmonic = np.diff(digamma(after + 1), axis=1, prepend=digamma(1))
    rate = wrong / np.maximum(n, 1)
    sums: Floats = (wrong + (wrong_after - wrong - rate * (after - n)) * harmonic).sum(axis=1)
    return sums / after[:, -1]


def _checked(confidence: ArrayLike, wrong: ArrayLike) -> tuple[Floats, NDArray[np.bool_]]:
    sure, errors = np.asarray(confidence, np.float64), np.asarray(wrong, np.bool_)
    if sure.ndim != 1 or sure.shape != errors.shape or not len(sure):
        raise ShapeError(f"risk and coverage need confidence and errors (N,), got {sure.shape} and {errors.shape}")
    if np.isnan(sure).any():
        raise ConfigError(f"{np.isnan(sure).sum()} of {len(sure)} decisions have no confidence: leave them out")
    return sure, errors
