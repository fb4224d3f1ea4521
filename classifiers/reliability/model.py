"""Reliability scores: how often the decisions of each cluster of maps were wrong on the validation split."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifiers.cam.target import Activation
from classifiers.cluster_settings import SAMPLES_PER_CLUSTER, ClusterSettings
from classifiers.reliability.clusters import (
    Floats,
    MapClusters,
    blocks,
    one_thread,
    vectors_of,
)
from infra.errors import ConfigError, ShapeError

OUTCOMES = ("tn", "fp", "fn", "tp")
"""What a decision can turn out to be, in the order of `outcomes`."""

EXCLUSIVE_FLIPPED = 2
"""Labels that exclude each other whose decisions can be flipped: one of the two is right."""

POOLED = ""
"""What stands for the label where all labels have one fit between them."""


@dataclass(frozen=True, eq=False)
class Reliability:
    """Clusters of maps, and what the decisions on validation samples in each turned out to be."""

    clusters: MapClusters
    counts: NDArray[np.int64]
    """Validation samples, (q, 4), by `OUTCOMES`."""
    prototypes: Floats
    """Mean of the maps of each cluster, each reduced and scaled to [0, 1], (q, h, w); NaN for a cluster without any."""
    threshold: float
    """Error rate above which the decisions of a cluster are flipped."""

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

    def assign(self, maps: ArrayLike) -> NDArray[np.int32]:
        """Return the cluster of each raw map, (N, h, w) to (N,); -1 for one that is not finite.

        Raises:
            ShapeError: They are of another size than were fitted.
        """
        return self.clusters.assign(maps)

    def error_rates(self, clusters: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the error rate of samples by their cluster, (N,); NaN where it is -1 or empty."""
        return np.asarray(np.append(self.error_rate, np.nan)[clusters])

    def is_flipped(self, clusters: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return whether samples lie in a cluster whose decisions are flipped, (N,); clusters as `assign` has them."""
        return np.asarray(np.append(self.flipped, values=False)[clusters])


def adjusted_decisions(
    decisions: NDArray[np.bool_], is_flipped: NDArray[np.bool_], activation: Activation
) -> NDArray[np.bool_]:
    """Return decisions, flipped where their cluster says so.

    Of labels that exclude each other, flipping one by one would leave patches with no class, or with two. Of two such
    labels, the one that is not predicted is the opposite of the one that is: they swap where the map of the predicted
    label lies in a flipped cluster. Of more, nothing says which class is the right one instead: nothing is flipped.

    Args:
        decisions: (N, L); with softmax, one a patch.
        is_flipped: Whether the label's map lies in a cluster whose decisions are flipped, (N, L).
        activation: What makes probabilities of the classifier's logits; with softmax its labels exclude each other.

    Returns:
        (N, L); a patch without any decision with softmax, where probabilities are not finite, is left alone.

    Source: Kierdorf and Roscher 2023, arXiv:2305.15149, section 2.6, of two classes, the map of the predicted one.
    """
    if activation == "sigmoid":
        return np.asarray(decisions ^ is_flipped)
    if decisions.shape[1] != EXCLUSIVE_FLIPPED:
        return decisions.copy()
    return np.asarray(decisions ^ (decisions & is_flipped).any(axis=1, keepdims=True))


@dataclass(frozen=True, eq=False)
class FittedReliability:
    """The fits of all labels of one classifier on one branch, and what they were made by."""

    settings: ClusterSettings
    threshold: float
    """Error rate above which the decisions of a cluster are flipped."""
    pooled: bool
    """Whether all labels share their clusters."""
    maps_of: Mapping[str, object]
    """What determines the maps that were clustered: method, options, layer, size, network, branch; JSON."""
    by_label: Mapping[str, Reliability]
    """Fits by label; one that is pooled over all labels is called `POOLED`."""
    why_not: Mapping[str, str] = MappingProxyType({})
    """Why the other labels have none."""

    def __post_init__(self) -> None:
        _check_threshold(self.threshold)
        others = sorted({item.threshold for item in self.by_label.values()} - {self.threshold})
        if others:
            raise ConfigError(f"all labels have the threshold {self.threshold}, got {others}")
        wrong = sorted(label for label in (*self.by_label, *self.why_not) if (label == POOLED) != self.pooled)
        if wrong:
            raise ConfigError(f"a fit is of all labels or of each, got {wrong} with pooled {self.pooled}")

    def of(self, label: str) -> Reliability | None:
        """Return the fit that the maps of a label are assigned by; None where there is none."""
        return self.by_label.get(POOLED if self.pooled else label)

    def check_maps(self, maps_of: Mapping[str, object]) -> None:
        """Refuse maps that are determined by something else than those that were fitted.

        Raises:
            ConfigError: They are of another method, layer, size, network or branch.
        """
        if differs := _differences(self.maps_of, maps_of):
            raise ConfigError(
                f"the reliability was fitted on other maps than these ({'; '.join(differs)}): fit it on maps of these"
            )

    def differences(
        self, *, settings: ClusterSettings, threshold: float, pooled: bool, maps_of: Mapping[str, object]
    ) -> list[str]:
        """Return how this was made otherwise than so, in words; nothing where it was made so."""
        mine, given = (
            {**asdict(of_clusters), "threshold": t, "pooled": p, **maps}
            for of_clusters, t, p, maps in (
                (self.settings, self.threshold, self.pooled, self.maps_of),
                (settings, threshold, pooled, maps_of),
            )
        )
        return _differences(mine, given)


def _differences(mine: Mapping[str, object], given: Mapping[str, object]) -> list[str]:
    """Return which values differ as JSON, which knows no tuples and no order of keys, in words."""
    one, other = ({name: json.dumps(value, sort_keys=True) for name, value in of.items()} for of in (mine, given))
    return [
        f"{name} {one.get(name, 'unknown')}, not {other.get(name, 'unknown')}"
        for name in sorted({*one, *other})
        if one.get(name) != other.get(name)
    ]


class FittingReliability:
    """Counts what the samples of each cluster turned out to be, as many maps at a time as are at hand.

    A sample is one label of one patch, whether it was predicted or not. The landmarks that the clusters were found by
    are to hold true and false, positives and negatives in their own proportions (`choose_landmarks`); error rates are
    of all samples, each in the cluster that it is assigned to.

    Source: Kierdorf and Roscher 2023, arXiv:2305.15149, sections 2.5 and 2.6.
    """

    def __init__(self, clusters: MapClusters, threshold: float) -> None:
        """Begin with no sample.

        Args:
            clusters: What samples are assigned to.
            threshold: Error rate above which the decisions of a cluster are flipped, 0 to 1; never chosen on test.

        Raises:
            ConfigError: The threshold is out of range.
        """
        _check_threshold(threshold)
        q = int(clusters.of_landmarks.max()) + 1
        self._clusters, self._threshold = clusters, threshold
        self._counts = np.zeros((q, len(OUTCOMES)), np.int64)
        self._sums = np.zeros((q, clusters.size[0] * clusters.size[1]))

    def add(self, maps: ArrayLike, outcome: NDArray[np.int8]) -> None:
        """Add validation samples; those whose map is not finite are left out.

        Args:
            maps: Raw maps, (N, h, w).
            outcome: Their `outcomes`, (N,); or (N, L) of L samples that have one map between them.

        Raises:
            ShapeError: The maps are of another size, or the outcomes are not (N,) or (N, L).
        """
        values = np.asarray(maps)
        self._clusters.check_size(values)
        if outcome.ndim not in {1, 2} or outcome.shape[:1] != values.shape[:1]:
            raise ShapeError(f"{len(values)} maps need as many outcomes, got {outcome.shape}")
        of_maps = outcome if outcome.ndim == 2 else outcome[:, None]
        with one_thread():
            for rows in blocks(values):
                self._add(vectors_of(values[rows]), of_maps[rows])

    def _add(self, vectors: Floats, outcome: NDArray[np.int8]) -> None:
        cluster = self._clusters.assign_vectors(vectors)
        known = cluster >= 0
        np.add.at(self._counts, (cluster[known, None], outcome[known]), 1)
        for i in range(len(self._sums)):
            self._sums[i] += outcome.shape[1] * vectors[cluster == i].sum(axis=0, dtype=np.float64)

    def result(self) -> Reliability:
        """Return the reliability of the samples added."""
        n = self._counts.sum(axis=1)
        prototypes = np.where(n[:, None] > 0, self._sums / np.maximum(n, 1)[:, None], np.nan)
        shape = (len(n), *self._clusters.size)
        return Reliability(
            self._clusters,
            self._counts,
            prototypes.astype(np.float32).reshape(shape),
            self._threshold,
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
