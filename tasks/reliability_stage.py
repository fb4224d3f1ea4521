"""The two stages of reliability: fit on the validation split, then give every map its cluster."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from classifiers.reliability import (
    POOLED,
    FittedReliability,
    FittingReliability,
    adjusted_decisions,
    check_enough,
    check_outcomes,
    choose_landmarks,
    fit_clusters,
    outcomes,
    to_bytes,
)
from infra.errors import ConfigError
from infra.storage import write_bytes
from infra.tables import RELIABILITY
from tasks.reliability import FITS, ReliabilityJob
from tasks.reliability_samples import SampleReader, ShardSamples
from tasks.stage import ShardCount

_BYTES_AT_ONCE = 1 << 30  # of landmarks' maps that wait for their fit


class ReliabilityFitter:
    """Fits one of several jobs after the other; it needs no GPU."""

    def __init__(self, jobs: Sequence[ReliabilityJob]) -> None:
        self._jobs = jobs

    def run(self, item: int) -> ShardCount:
        """Fit one classifier on one branch: the model's file first, the part last."""
        job = self._jobs[item]
        fit = _Fit(job)
        fitted = fit.run()
        write_bytes(job.file, to_bytes(fitted))
        names = sorted({*fitted.by_label, *fitted.why_not})
        rows = {
            "label": names,
            "fitted": [name in fitted.by_label for name in names],
            "n": [int(fitted.by_label[name].n.sum()) if name in fitted.by_label else 0 for name in names],
        }
        assert job.fit is not None  # a borrowed fit is no work
        job.fit.write(0, pa.table(rows, schema=FITS))
        return ShardCount(len(fit.patches))


@dataclass(frozen=True)
class _Unit:
    """One fit: the label, or all of them, its samples' outcomes, and which of them are landmarks."""

    name: str
    labels: NDArray[np.intp]
    """Columns of the maps."""
    patch: NDArray[np.intp]
    """Place among the patches of each landmark, (M,)."""
    column: NDArray[np.intp]
    """Column of the maps of each landmark, (M,)."""


class _Fit:
    """The validation samples of one job, and their fits.

    Patches are put in the order of their names, whatever shards they lie in: the same archive has the same landmarks.
    """

    def __init__(self, job: ReliabilityJob) -> None:
        self._job = job
        self._reader = SampleReader(job)
        self._samples = {shard: self._reader.samples(shard) for shard in job.validation}
        found = [
            (name, shard, place)
            for shard, samples in self._samples.items()
            for place, name in enumerate(samples.predicted["patch_id"].to_pylist())
            if samples.is_scored[place]
        ]
        self.patches = sorted(found)
        """Name, shard, and place among the shard's samples."""
        self._outcome = {s: outcomes(samples.decisions, samples.truth) for s, samples in self._samples.items()}
        shape = (len(self.patches), len(job.known))
        self._outcome_of_patches, self._is_finite = np.empty(shape, np.int8), np.empty(shape, np.bool_)
        for i, (_, shard, place) in enumerate(self.patches):
            self._outcome_of_patches[i] = self._outcome[shard][place]
            self._is_finite[i] = self._samples[shard].is_finite[place]

    def run(self) -> FittedReliability:
        """Return the fits by label, and why others have none."""
        job = self._job
        everything = np.arange(len(job.known))
        of_units = {POOLED: everything} if job.plan.pooled else {n: everything[[i]] for i, n in enumerate(job.known)}
        units, why_not = [], {}
        for name, labels in of_units.items():
            try:
                units.append(self._unit(name, labels))
            except ConfigError as error:
                why_not[name] = str(error)
        height, width = self._reader.map_size
        at_once = max(1, _BYTES_AT_ONCE // (4 * height * width * job.plan.settings.landmarks))
        fitting: dict[str, FittingReliability] = {}
        for first in range(0, len(units), at_once):
            group = units[first : first + at_once]
            for unit, maps in zip(group, self._landmarks(group), strict=True):
                try:
                    clusters = fit_clusters(maps, job.plan.settings)
                except ConfigError as error:
                    why_not[unit.name] = str(error)
                    continue
                fitting[unit.name] = FittingReliability(clusters, job.plan.threshold)
        self._count([(fitting[unit.name], unit.labels) for unit in units if unit.name in fitting])
        by_label = {name: item.result() for name, item in fitting.items()}
        plan = job.plan
        return FittedReliability(plan.settings, plan.threshold, plan.pooled, job.maps_of, by_label, why_not)

    def _unit(self, name: str, labels: NDArray[np.intp]) -> _Unit:
        """Choose the landmarks of a label, or of all pooled.

        Raises:
            ConfigError: Its samples are too few, or have nothing to teach.
        """
        settings = self._job.plan.settings
        outcome = self._outcome_of_patches[:, labels]
        patch, column = np.nonzero(self._is_finite[:, labels])
        turned_out = outcome[patch, column]
        plan, (height, width) = self._job.plan, self._reader.map_size
        poolable = not plan.pooled and len(self._job.known) > 1
        check_enough(height * width, len(turned_out), settings, poolable=poolable)
        check_outcomes(turned_out)
        chosen = choose_landmarks(turned_out * len(labels) + column, settings.landmarks, settings.seed)
        return _Unit(name, labels, patch[chosen], labels[column[chosen]])

    def _landmarks(self, units: Sequence[_Unit]) -> list[NDArray[np.float32]]:
        """Return the maps of the landmarks of units, (M, h, w) each; every shard is read once."""
        found = [np.empty((len(unit.patch), *self._reader.map_size), np.float32) for unit in units]
        shards, places = (np.array([patch[i] for patch in self.patches], np.int64) for i in (1, 2))
        for shard, samples in self._samples.items():
            for rows, maps in self._reader.maps(shard, samples):
                for unit, values in zip(units, found, strict=True):
                    at = places[unit.patch]
                    here = (shards[unit.patch] == shard) & (at >= rows.start) & (at < rows.stop)
                    column = np.minimum(unit.column[here], maps.shape[1] - 1)  # of one map for all labels, the first
                    values[here] = maps[at[here] - rows.start, column]
        return found

    def _count(self, fitting: Sequence[tuple[FittingReliability, NDArray[np.intp]]]) -> None:
        """Let every fit see the maps of all its samples."""
        for shard, samples in self._samples.items():
            for rows, maps in self._reader.maps(shard, samples):
                counted = samples.is_scored[rows, None] & samples.is_finite[rows]
                outcome = self._outcome[shard][rows]
                if maps.shape[1] < len(self._job.known):  # one map for all labels, which is finite for all or none
                    of_all, turned_out = maps[counted[:, 0], 0], outcome[counted[:, 0]]
                    for item, labels in fitting:
                        item.add(of_all, turned_out[:, labels])
                    continue
                for item, labels in fitting:
                    every = len(labels) == len(self._job.known)
                    of_labels, chosen = (maps, counted) if every else (maps[:, labels], counted[:, labels])
                    item.add(of_labels[chosen], outcome[:, labels][chosen])


class ReliabilityAssigner:
    """Gives the maps of one job their clusters, shard by shard; it needs no GPU."""

    def __init__(self, job: ReliabilityJob) -> None:
        self._job, self._parts = job, job.assignment()
        self._reader = SampleReader(job)
        self._fitted = job.model()
        self._fitted.check_maps(job.maps_of)

    def run(self, shard: int) -> ShardCount:
        """Write the rows of one shard."""
        samples = self._reader.samples(shard)
        shape = samples.decisions.shape
        cluster = np.full(shape, -1, np.int32)
        for rows, maps in self._reader.maps(shard, samples):
            cluster[rows] = self._clusters(maps)
        self._parts.write(shard, self._rows(samples, cluster))
        return ShardCount(len(samples.rows))

    def _clusters(self, maps: NDArray[np.float32]) -> NDArray[np.int32]:
        """Return the clusters of some patches' maps, (n, K, h, w) to (n, L); a map of all labels is assigned once."""
        known = self._job.known
        found = np.full((len(maps), len(known)), -1, np.int32)
        shared = maps.shape[1] < len(known)
        if shared and self._fitted.pooled:
            item = self._fitted.of(POOLED)
            return found if item is None else np.broadcast_to(item.assign(maps[:, 0])[:, None], found.shape)
        for i, label in enumerate(known):
            if (item := self._fitted.of(label)) is not None:
                found[:, i] = item.assign(maps[:, 0 if shared else i])
        return found

    def _rows(self, samples: ShardSamples, cluster: NDArray[np.int32]) -> pa.Table:
        names = self._job.known
        rate = np.full(cluster.shape, np.nan)
        flipped = np.zeros(cluster.shape, np.bool_)
        for i, label in enumerate(names):
            if (item := self._fitted.of(label)) is not None:
                rate[:, i] = item.error_rates(cluster[:, i])
                flipped[:, i] = item.is_flipped(cluster[:, i])
        adjusted = adjusted_decisions(samples.decisions, flipped, self._job.activation)
        patch, label_index = (values.ravel() for values in np.indices(cluster.shape))
        is_known = samples.predicted["labels"].is_valid().to_numpy()
        probs = samples.predicted["probs"].combine_chunks().flatten().to_numpy(zero_copy_only=False)
        of_archive = [self._job.inputs.format.labels.index(name) for name in names]
        flat = cluster.ravel()
        return (
            pa.table(
                {
                    "patch_id": samples.predicted["patch_id"].take(pa.array(patch)),
                    "split": samples.predicted["split"].take(pa.array(patch)),
                    "label": pa.array(names, pa.string()).take(pa.array(label_index)),
                    "seed": samples.predicted["seed"].take(pa.array(patch)),
                    "prob": probs.reshape(len(cluster), -1)[:, of_archive].ravel(),
                    "predicted": samples.decisions.ravel(),
                    "truth": pa.array(samples.truth.ravel(), mask=~is_known[patch]),
                    "cluster": pa.array(flat, pa.int32(), mask=flat < 0),
                    "cluster_error_rate": pa.array(rate.ravel(), from_pandas=True),
                    "reliability": pa.array(1 - rate.ravel(), from_pandas=True),
                    "adjusted": adjusted.ravel(),
                }
            )
            .select(RELIABILITY.names)
            .cast(RELIABILITY)
        )
