"""The cluster bootstrap: what is drawn, and percentile intervals of what comes out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifiers.metrics.formulas import Floats, ratio
from infra.errors import ConfigError, ShapeError

type Clusters = Sequence[int] | Sequence[str] | NDArray[np.generic] | None
"""Cluster of each patch (its MGRS tile), (N,); None makes every patch its own."""

COUNTS_AT_ONCE = 1 << 22
"""Bounds the memory of multiplicities: resamples at once times clusters."""

COUNTS_KEPT = 1 << 18
"""Up to so many multiplicities are kept for the next one who asks, and 64 times as many in all."""


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


def interval_of(value: float, draws: Floats) -> Interval:
    """Return a value with the percentiles of its resamples, (R,); NaN among them are left out."""
    defined = draws[~np.isnan(draws)]
    if not len(defined) or np.isnan(value):
        return Interval(float(value), np.nan, np.nan)
    low, high = np.percentile(defined, [2.5, 97.5])
    return Interval(float(value), float(low), float(high))


def cluster_index(clusters: Clusters, n: int) -> tuple[NDArray[np.intp], int]:
    """Return the rank of each patch's cluster among the sorted clusters, (N,), and their number.

    Raises:
        ShapeError: The clusters are not (N,).
    """
    if clusters is None:
        return np.arange(n), n
    values = np.asarray(clusters)
    if values.shape != (n,):
        raise ShapeError(f"{n} patches need as many cluster names, got an array of shape {values.shape}")
    names, index = np.unique(values, return_inverse=True)
    return index.astype(np.intp), len(names)


def cluster_counts(n_clusters: int, n_resamples: int, seed: int) -> Iterator[Floats]:
    """Yield how often each cluster was drawn, (resamples, clusters), a bounded number of resamples at a time.

    Each resample draws as many clusters as there are, with replacement. Of one cluster there is nothing to draw.

    Raises:
        ConfigError: n_resamples is below 1.
    """
    if n_resamples < 1:
        raise ConfigError(f"a bootstrap needs at least one resample, got {n_resamples}")
    if n_clusters < 2:
        return
    if n_clusters * n_resamples <= min(COUNTS_KEPT, COUNTS_AT_ONCE):
        yield _few_counts(n_clusters, n_resamples, seed)
        return
    rng = np.random.default_rng(seed)
    at_once = max(1, COUNTS_AT_ONCE // n_clusters)
    for start in range(0, n_resamples, at_once):
        yield _drawn(rng, n_clusters, min(at_once, n_resamples - start))


@lru_cache(maxsize=64)
def _few_counts(n_clusters: int, n_resamples: int, seed: int) -> Floats:
    """Return all multiplicities at once, read-only, since others get the same array."""
    counts = _drawn(np.random.default_rng(seed), n_clusters, n_resamples)
    counts.setflags(write=False)
    return counts


def _drawn(rng: np.random.Generator, n_clusters: int, n_resamples: int) -> Floats:
    counts = [np.bincount(rng.integers(n_clusters, size=n_clusters), minlength=n_clusters) for _ in range(n_resamples)]
    return np.stack(counts).astype(np.float64)


def seed_counts(n_seeds: int, n_resamples: int, seed: int) -> Floats:
    """Return how often each of some training seeds was drawn, (resamples, seeds); one seed is drawn every time."""
    rng = np.random.default_rng([seed, 1])  # a stream of its own: tiles and seeds are drawn independently
    drawn = rng.integers(n_seeds, size=(n_resamples, n_seeds))
    counts: Floats = (drawn[:, :, None] == np.arange(n_seeds)).sum(axis=1).astype(np.float64)
    return counts


def bootstrap_means(
    values: ArrayLike, clusters: Clusters, n_resamples: int = 1000, seed: int = 0
) -> tuple[Interval, ...]:
    """Return the mean of every column with its percentile interval over resampled clusters.

    Args:
        values: (N, K), one row a patch; NaN where a patch has no value, which leaves it out of that column.
        clusters: Cluster of each patch, (N,); None makes every patch its own.
        n_resamples: At least 1.
        seed: Seed of the draws, which depend on nothing but it and the number of clusters.

    Returns:
        K means; a mean of nothing is NaN, and with one cluster only the bounds are NaN.

    Raises:
        ShapeError: values is not (N, K) with N >= 1, or `clusters` is not (N,).
        ConfigError: n_resamples is below 1.
    """
    table = np.asarray(values, np.float64)
    if table.ndim != 2 or not len(table):
        raise ShapeError(f"bootstrap_means needs values (N, K) with N >= 1, got {table.shape}")
    index, n_clusters = cluster_index(clusters, len(table))
    known = ~np.isnan(table)
    sums, counts = (
        np.stack([np.bincount(index, column, minlength=n_clusters) for column in columns.T], axis=1)
        for columns in (np.where(known, table, 0.0), known)
    )
    return means_of_sums(sums, counts, n_resamples, seed)


def means_of_sums(sums: Floats, counts: Floats, n_resamples: int = 1000, seed: int = 0) -> tuple[Interval, ...]:
    """Return what `bootstrap_means` does, of values that are summed over each cluster already.

    Args:
        sums: Sum of each column's values, (C, K), in the order of the clusters' names; 0 where there are none.
        counts: How many values that are, (C, K).
        n_resamples: At least 1.
        seed: As there.

    Raises:
        ConfigError: n_resamples is below 1.
    """
    means = ratio(sums.sum(axis=0), counts.sum(axis=0), otherwise=np.nan)
    weights = cluster_counts(len(sums), n_resamples, seed)
    none = np.empty((0, sums.shape[1]))
    draws = np.concatenate([none, *(ratio(w @ sums, w @ counts, otherwise=np.nan) for w in weights)])
    whole = np.flatnonzero(~np.isnan(draws).any(axis=0) & (len(draws) > 0))  # as a rule all, and then at once
    bounds = np.percentile(draws[:, whole], [2.5, 97.5], axis=0).T if len(whole) else ()
    at_once = dict(zip(whole.tolist(), bounds, strict=True))
    return tuple(
        Interval(float(mean), *map(float, at_once[k])) if k in at_once else interval_of(mean, draws[:, k])
        for k, mean in enumerate(means)
    )
