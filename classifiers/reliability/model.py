"""Reliability scores: how often the decisions of each cluster of maps were wrong on the validation split."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifiers.reliability.clusters import (
    DEFAULTS,
    SAMPLES_PER_CLUSTER,
    ClusterSettings,
    Floats,
    MapClusters,
    blocks,
    check_enough,
    choose_landmarks,
    fit_clusters,
    vectors_of,
)
from infra.errors import ConfigError, ShapeError

OUTCOMES = ("tn", "fp", "fn", "tp")
"""What a decision can turn out to be, in the order of `outcomes`."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Clusters of maps, and what the decisions on validation samples in each turned out to be."""

    clusters: MapClusters
    counts: NDArray[np.int64]
    """Validation samples, (q, 4), by `OUTCOMES`."""
    prototypes: Floats
    """Mean of the maps of each cluster, each scaled to [0, 1], (q, h, w); NaN for a cluster without any."""
    settings: ClusterSettings
    threshold: float
    """Error rate above which the decisions of a cluster are flipped."""
    maps_of: Mapping[str, object]
    """What determines the maps that it was fitted on: method, options, layer, network; JSON."""

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)

    @cached_property
    def n(self) -> NDArray[np.int64]:
        """Validation samples of each cluster, (q,)."""
        return self.counts.sum(axis=1)

    @cached_property
    def error_rate(self) -> NDArray[np.float64]:
        """(FP + FN) / n of each cluster, (q,); NaN for an empty one. The higher, the less reliable."""
        wrong = self.counts[:, OUTCOMES.index("fp")] + self.counts[:, OUTCOMES.index("fn")]
        return np.where(self.n > 0, wrong / np.maximum(self.n, 1), np.nan)

    @cached_property
    def flipped(self) -> NDArray[np.bool_]:
        """Clusters whose decisions are flipped, (q,): above the threshold, with at least 20 samples."""
        return (self.n >= SAMPLES_PER_CLUSTER) & (np.nan_to_num(self.error_rate) > self.threshold)

    def assign(self, maps: ArrayLike, maps_of: Mapping[str, object]) -> NDArray[np.int32]:
        """Return the cluster of each map, (N, h, w) to (N,); -1 for one that is not finite.

        Args:
            maps: Raw maps.
            maps_of: What determines them; the same as when fitted.

        Raises:
            ConfigError: They are maps of another method, layer or network than were fitted.
            ShapeError: They are of another size.
        """
        fitted, given = (
            {name: json.dumps(value, sort_keys=True) for name, value in of.items()} for of in (self.maps_of, maps_of)
        )
        differs = [
            f"{name} {fitted.get(name, 'unknown')}, not {given.get(name, 'unknown')}"
            for name in sorted({*fitted, *given})
            if fitted.get(name) != given.get(name)
        ]
        if differs:
            raise ConfigError(
                f"the reliability was fitted on other maps than these ({'; '.join(differs)}): fit it on maps of these"
            )
        return self.clusters.assign(maps)

    def error_rates(self, clusters: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the error rate of samples by their cluster, (N,); NaN where it is -1 or empty."""
        return np.asarray(np.append(self.error_rate, np.nan)[clusters])

    def adjusted(self, decisions: NDArray[np.bool_], clusters: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return decisions, (N,), those of flipped clusters flipped; clusters as `assign` gives them."""
        return np.asarray(decisions ^ np.append(self.flipped, values=False)[clusters])


def fit_reliability(
    maps: ArrayLike,
    decisions: ArrayLike,
    truth: ArrayLike,
    maps_of: Mapping[str, object],
    settings: ClusterSettings = DEFAULTS,
    threshold: float = 0.75,
) -> Reliability:
    """Fit clusters and their error rates on the samples of a validation split.

    A sample is one label of one patch, whether it was predicted or not. The landmarks hold true and false, positives
    and negatives in their own proportions; error rates are of all samples, each in the cluster that it is assigned to.
    Samples whose map is not finite are left out.

    The result depends on the samples, their order, the settings and nothing else: samples that are read in shards or by
    several workers are to be put in an order of their own, such as that of their names, first.

    Args:
        maps: Raw maps of one label, or of several pooled, (N, h, w).
        decisions: Whether the label was predicted, (N,).
        truth: Whether it is there, (N,).
        maps_of: What determines the maps: method, options, layer, network. JSON.
        settings: How maps are clustered.
        threshold: Error rate above which the decisions of a cluster are flipped, 0 to 1;
            never chosen on the test split.

    Raises:
        ShapeError: The arrays do not fit together.
        ConfigError: The maps are too small, too few or all alike; no sample is positive, or no decision is wrong, so
            that there is nothing to learn; or the threshold is out of range.

    Source: Kierdorf and Roscher 2023, arXiv:2305.15149, sections 2.5 and 2.6.
    """
    values = np.asarray(maps)
    outcome = outcomes(decisions, truth)
    if values.ndim != 3 or outcome.shape != values.shape[:1]:
        raise ShapeError(f"maps (N, h, w) need N decisions and truths, got {values.shape} and {outcome.shape}")
    _check_threshold(threshold)
    finite = np.isfinite(values).all(axis=(1, 2))
    if not finite.all():
        values, outcome = values[finite], outcome[finite]
    check_enough(values.shape[1] * values.shape[2], len(values), settings)
    check_outcomes(outcome)
    chosen = choose_landmarks(outcome, settings.landmarks, settings.seed)
    fitting = FittingReliability(fit_clusters(values[chosen], settings), settings, threshold, maps_of)
    fitting.add(values, outcome)
    return fitting.result()


class FittingReliability:
    """Counts what the samples of each cluster turned out to be, as many maps at a time as are at hand."""

    def __init__(
        self, clusters: MapClusters, settings: ClusterSettings, threshold: float, maps_of: Mapping[str, object]
    ) -> None:
        """Begin with no sample; arguments as `Reliability` and `fit_reliability` have them.

        Raises:
            ConfigError: The threshold is out of range.
        """
        _check_threshold(threshold)
        q = int(clusters.of_landmarks.max()) + 1
        self._clusters, self._settings, self._threshold, self._maps_of = clusters, settings, threshold, maps_of
        self._counts = np.zeros((q, len(OUTCOMES)), np.int64)
        self._sums = np.zeros((q, clusters.size[0] * clusters.size[1]))

    def add(self, maps: ArrayLike, outcome: NDArray[np.int8]) -> None:
        """Add validation samples; those whose map is not finite are left out.

        Args:
            maps: Raw maps, (N, h, w).
            outcome: Their `outcomes`, (N,).

        Raises:
            ShapeError: The maps are of another size, or the outcomes are not (N,).
        """
        values = np.asarray(maps)
        self._clusters.check_size(values)
        if outcome.shape != values.shape[:1]:
            raise ShapeError(f"{len(values)} maps need as many outcomes, got {outcome.shape}")
        for rows in blocks(values):
            self._add(vectors_of(values[rows]), outcome[rows])

    def _add(self, vectors: Floats, outcome: NDArray[np.int8]) -> None:
        cluster = self._clusters.assign_vectors(vectors)
        known = cluster >= 0
        np.add.at(self._counts, (cluster[known], outcome[known]), 1)
        for i in range(len(self._sums)):
            self._sums[i] += vectors[cluster == i].sum(axis=0, dtype=np.float64)

    def result(self) -> Reliability:
        """Return the reliability of the samples added."""
        n = self._counts.sum(axis=1)
        prototypes = np.where(n[:, None] > 0, self._sums / np.maximum(n, 1)[:, None], np.nan)
        shape = (len(n), *self._clusters.size)
        return Reliability(
            self._clusters,
            self._counts,
            prototypes.astype(np.float32).reshape(shape),
            self._settings,
            self._threshold,
            self._maps_of,
        )


def _check_threshold(threshold: float) -> None:
    if not 0 <= threshold <= 1:
        raise ConfigError(f"threshold is an error rate from 0 to 1, got {threshold}")


def outcomes(decisions: ArrayLike, truth: ArrayLike) -> NDArray[np.int8]:
    """Return what each decision turned out to be, an index into `OUTCOMES`, of the inputs' shape.

    Raises:
        ShapeError: The two are not of one shape.
    """
    decided, true = np.asarray(decisions, np.bool_), np.asarray(truth, np.bool_)
    if decided.shape != true.shape:
        raise ShapeError(f"decisions and truth need one shape, got {decided.shape} and {true.shape}")
    return (2 * true + decided).astype(np.int8)


def check_outcomes(outcome: NDArray[np.int8]) -> None:
    """Refuse samples of which nothing can be learnt.

    Raises:
        ConfigError: None of them is positive, or no decision is wrong.
    """
    n = np.bincount(outcome, minlength=len(OUTCOMES))
    of = dict(zip(OUTCOMES, n.tolist(), strict=True))
    if of["tp"] + of["fn"] == 0:
        raise ConfigError(f"none of {n.sum()} validation samples is positive: nothing tells right from wrong maps")
    if of["fp"] + of["fn"] == 0:
        raise ConfigError(f"no decision on {n.sum()} validation samples is wrong: every cluster would be reliable")
