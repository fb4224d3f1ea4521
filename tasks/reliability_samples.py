"""The samples of reliability: every label of every patch that has maps, shard by shard."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from classifiers.reliability import reduced_maps, reduced_size
from infra.zarr_store import ShardedStore
from tasks.labels import is_clean, multi_hot
from tasks.reliability import ReliabilityJob

_BYTES_AT_ONCE = 1 << 27  # of maps that are read at once: a shard of a network's maps, a few patches of finer ones


@dataclass(frozen=True)
class ShardSamples:
    """The samples of one shard: N patches that have maps, by the L labels that the classifier knows."""

    rows: NDArray[np.int64]
    """Rows of the patches in the shard, (N,), rising."""
    predicted: pa.Table
    """Their rows of tables/predictions."""
    decisions: NDArray[np.bool_]
    """(N, L)."""
    truth: NDArray[np.bool_]
    """(N, L); False where nobody knows."""
    is_scored: NDArray[np.bool_]
    """Whether the truth is known and the patch is without snow and cloud, (N,)."""
    is_finite: NDArray[np.bool_]
    """Whether the map is, (N, L)."""


class SampleReader:
    """Reads the samples of one job, and their maps."""

    def __init__(self, job: ReliabilityJob) -> None:
        self._job = job
        self._store = ShardedStore(job.map_store)

    @property
    def map_size(self) -> tuple[int, int]:
        """Height and width of a map, reduced."""
        height, width = self._store.array("maps").shape[2:]
        return reduced_size(height, width)

    def samples(self, shard: int) -> ShardSamples:
        """Return a shard's samples."""
        job, n_labels = self._job, len(self._job.known)
        patches = job.inputs.patches(shard)
        has_maps = self._store.read(shard, "valid").astype(np.bool_)
        chosen = np.flatnonzero(has_maps[patches["row"].to_numpy()])
        patches = patches.take(pa.array(chosen))
        predicted = job.predictions.read(shard)
        predicted = predicted.filter(pc.equal(predicted["seed"], job.seed)).take(pa.array(chosen))
        rows = patches["row"].to_numpy().astype(np.int64)
        finite = np.isfinite(self._store.read(shard, "scale")[rows])
        return ShardSamples(
            rows,
            predicted,
            multi_hot(predicted["predicted"].to_pylist(), job.known),
            multi_hot(predicted["labels"].to_pylist(), job.known),
            pc.and_(pc.is_valid(patches["labels"]), is_clean(patches)).to_numpy(),
            np.broadcast_to(finite, (len(rows), n_labels)),  # a method without labels has one map for all
        )

    def maps(self, shard: int, samples: ShardSamples) -> Iterator[tuple[slice, NDArray[np.float32]]]:
        """Yield maps of some of a shard's samples at a time, reduced, each up to a factor: which, and (n, K, h, w).

        K is L; or 1 where all labels of a patch have one map between them.
        """
        array = self._store.array("maps")
        block, size = array.chunks[0], self._store.shard_size  # of a Zarr shard, chunks can be read by themselves
        step = max(1, _BYTES_AT_ONCE // (4 * int(np.prod(array.shape[1:])) * block)) * block
        for first in range(0, size, step):
            start, stop = np.searchsorted(samples.rows, [first, first + step]).tolist()
            if start < stop:
                rows = samples.rows[start:stop] - first
                yield slice(start, stop), self._reduced(shard, first, min(step, size - first), rows)

    def _reduced(self, shard: int, first: int, count: int, rows: NDArray[np.int64]) -> NDArray[np.float32]:
        """Return the maps of some of the rows of a part of a shard, reduced; what is read is let go before the next."""
        chosen = self._store.read(shard, "maps", first, count)[rows].astype(np.float32)
        return reduced_maps(chosen).astype(np.float32, copy=False)
