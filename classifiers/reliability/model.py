"""Reliability scores: how often the decisions of each cluster of maps were wrong on the validation split."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any

import numpy as np
import safetensors
import safetensors.numpy
from numpy.typing import ArrayLike, NDArray

from classifiers.reliability.clusters import (
    DEFAULTS,
    SAMPLES_PER_CLUSTER,
    ClusterSettings,
    Floats,
    MapClusters,
    check_enough,
    choose_landmarks,
    fit_clusters,
    vectors_of,
)
from infra.errors import ConfigError, ShapeError, WeightsError

OUTCOMES = ("tn", "fp", "fn", "tp")
"""What a decision can turn out to be, in the order of `outcomes`."""

FORMAT = 1
_METADATA_KEY = "superscene"
_ARRAYS = ("mean", "components", "landmarks", "of_landmarks", "counts", "prototypes")


@dataclass(frozen=True)
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
    """What determines the maps that it was fitted on: method, options, layer, network."""

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
        if dict(maps_of) != dict(self.maps_of):
            differs = [
                f"{name} {self.maps_of.get(name)!r}, not {maps_of.get(name)!r}"
                for name in sorted({*self.maps_of, *maps_of})
                if self.maps_of.get(name) != maps_of.get(name)
            ]
            raise ConfigError(f"the reliability was fitted on maps of {', '.join(differs)}: fit it on these maps")
        return self.clusters.assign(maps)

    def error_rates(self, clusters: NDArray[np.integer]) -> NDArray[np.float64]:
        """Return the error rate of samples by their cluster, (N,); NaN where it is -1 or empty."""
        return np.asarray(np.append(self.error_rate, np.nan)[clusters])

    def adjusted(self, decisions: NDArray[np.bool_], clusters: NDArray[np.integer]) -> NDArray[np.bool_]:
        """Return decisions, (N,), those of flipped clusters flipped."""
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

    Args:
        maps: Raw maps of one label, or of several pooled, (N, h, w), finite.
        decisions: Whether the label was predicted, (N,).
        truth: Whether it is there, (N,).
        maps_of: What determines the maps: method, options, layer, network. JSON.
        settings: How maps are clustered.
        threshold: Error rate above which the decisions of a cluster are flipped, 0 to 1;
            never chosen on the test split.

    Raises:
        ShapeError: The arrays do not fit together.
        ConfigError: The maps are too small, too few or not finite; no sample is positive, or no decision is wrong, so
            that there is nothing to learn; or the threshold is out of range.

    Source: Kierdorf and Roscher 2023, arXiv:2305.15149, sections 2.5 and 2.6.
    """
    values = np.asarray(maps)
    outcome = outcomes(decisions, truth)
    if values.ndim != 3 or outcome.shape != values.shape[:1]:
        raise ShapeError(f"maps (N, h, w) need N decisions and truths, got {values.shape} and {outcome.shape}")
    check_enough(values[0].size if len(values) else 0, len(values), settings)
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
        if not 0 <= threshold <= 1:
            raise ConfigError(f"threshold is an error rate from 0 to 1, got {threshold}")
        q = int(clusters.of_landmarks.max()) + 1
        self._clusters, self._settings, self._threshold, self._maps_of = clusters, settings, threshold, maps_of
        self._counts = np.zeros((q, len(OUTCOMES)), np.int64)
        self._sums = np.zeros((q, clusters.size[0] * clusters.size[1]))

    def add(self, maps: ArrayLike, outcome: NDArray[np.int8]) -> None:
        """Add validation samples, raw maps (N, h, w) and their `outcomes`, (N,); maps that are not finite are left out."""
        cluster = self._clusters.assign(maps)
        known = np.flatnonzero(cluster >= 0)
        q = len(self._counts)
        at = cluster[known].astype(np.intp) * len(OUTCOMES) + outcome[known]
        self._counts += np.bincount(at, minlength=q * len(OUTCOMES)).reshape(q, -1)
        vectors = vectors_of(np.asarray(maps)[known])
        for i in np.unique(cluster[known]):
            self._sums[i] += vectors[cluster[known] == i].sum(axis=0, dtype=np.float64)

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
            dict(self._maps_of),
        )


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


def to_bytes(fitted: Mapping[str, Reliability]) -> bytes:
    """Return the content of a file of several fits: arrays and JSON; equal fits give equal bytes.

    Args:
        fitted: By label; one that is pooled over all labels is called "".
    """
    tensors: dict[str, NDArray[np.generic]] = {}
    entries: list[dict[str, object]] = []
    for i, (label, item) in enumerate(sorted(fitted.items())):
        c = item.clusters
        arrays = (c.mean, c.components, c.landmarks, c.of_landmarks, item.counts, item.prototypes)
        for name, values in zip(_ARRAYS, arrays, strict=True):
            tensors[f"{i}.{name}"] = np.ascontiguousarray(values)
        entries.append(
            {
                "label": label,
                "settings": asdict(item.settings),
                "threshold": item.threshold,
                "maps_of": dict(item.maps_of),
            }
        )
    # One metadata key only: the format leaves the order of several to chance.
    text = json.dumps({"format": FORMAT, "fitted": entries}, sort_keys=True, allow_nan=False, separators=(",", ":"))
    return bytes(safetensors.numpy.save(tensors, {_METADATA_KEY: text}))


def from_bytes(content: bytes) -> dict[str, Reliability]:
    """Return the fits of a file by label; one that is pooled over all labels is called "".

    Raises:
        WeightsError: The content is damaged, or of another format.
    """
    try:
        tensors = safetensors.numpy.load(content)
        length = int.from_bytes(content[:8], "little")
        about = json.loads(json.loads(content[8 : 8 + length])["__metadata__"][_METADATA_KEY])
        known = about["format"] == FORMAT
        fitted = (
            {
                str(entry["label"]): _restored(entry, {name: tensors[f"{i}.{name}"] for name in _ARRAYS})
                for i, entry in enumerate(about["fitted"])
            }
            if known
            else {}
        )
    except (safetensors.SafetensorError, KeyError, TypeError, ValueError) as error:
        raise WeightsError(f"this file holds no reliability: it is damaged, or something else ({error})") from error
    if not known:
        raise WeightsError(f"a reliability file of format {about['format']}, this version reads {FORMAT}: fit it anew")
    return fitted


def _restored(entry: Mapping[str, Any], arrays: Mapping[str, NDArray[Any]]) -> Reliability:
    settings = ClusterSettings(**entry["settings"])
    prototypes = arrays["prototypes"]
    clusters = MapClusters(
        (prototypes.shape[1], prototypes.shape[2]),
        arrays["mean"],
        arrays["components"],
        arrays["landmarks"],
        arrays["of_landmarks"],
        settings.neighbours,
    )
    return Reliability(clusters, arrays["counts"], prototypes, settings, float(entry["threshold"]), entry["maps_of"])
