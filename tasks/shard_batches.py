"""Training batches streamed from whole shards: what is read, by whom, and in which order.

A shard is a random sample of its split. Each epoch goes through the shards in a new order, in groups that fit the
memory; the samples of a group are shuffled. Every worker reads one slice of the rows of each shard, once an epoch, and
has those samples of each batch that lie in it; of other rows nothing is kept. Which samples a batch holds does not
depend on the number of workers: rows belong to lanes, of which a worker has several, and a group's lanes are shuffled
each by itself and then merged so that every batch has its share of each.
"""

import os
from collections.abc import Generator, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

from classifiers.standardise import Standardiser
from classifiers.training.batches import TrainingBatch
from infra.errors import ConfigError
from infra.prefetch import prefetch
from tasks.branch import BranchReader, Inputs, Stored
from tasks.labels import is_clean, multi_hot

LANES = 32
"""Slices of a shard's rows; the number of workers divides it."""

_GROUP_BYTES = 2**29
"""Pixels of a group, over all workers; three groups are held: in use, ready, and being read."""

_BATCHES_AHEAD = 4
_READERS = 8

_Pixels = dict[int, tuple[int, Stored]]
"""By shard of a group: index of the first of this worker's samples, and the pixels of all of them, (N, ...) each."""


@dataclass(frozen=True, slots=True)
class Samples:
    """The labelled patches of some shards that a network may be trained on, in the order of shards and rows."""

    ids: pa.ChunkedArray
    """Names of the patches, (N,)."""
    shards: NDArray[np.int64]
    """Shard of each, (N,)."""
    rows: NDArray[np.int64]
    """Row in it, (N,)."""
    truth: NDArray[np.bool_]
    """Multi-hot labels, (N, L)."""

    def __len__(self) -> int:
        return len(self.shards)


def clean_labelled(inputs: Inputs, shard: int) -> pa.Table:
    """Return a shard's patches that have all bands, labels, and neither snow nor cloud, in the order of their rows."""
    patches = inputs.patches(shard)
    return patches.filter(pc.and_(is_clean(patches), pc.is_valid(patches["labels"])))


def samples_of(inputs: Inputs, shards: Sequence[int], labels: Sequence[str]) -> Samples:
    """Return the samples of some shards; labels that are not among `labels` are left out of the truth."""
    tables = {shard: clean_labelled(inputs, shard) for shard in sorted(shards)}
    of_shard = [np.full(table.num_rows, shard) for shard, table in tables.items()]
    names = [table["patch_id"] for table in tables.values()]
    return Samples(
        pa.chunked_array([chunk for column in names for chunk in column.chunks], pa.string()),
        np.concatenate([np.zeros(0, np.int64), *of_shard]).astype(np.int64),
        np.concatenate([np.zeros(0, np.int64), *(table["row"].to_numpy() for table in tables.values())]).astype(
            np.int64
        ),
        np.concatenate(
            [
                np.zeros((0, len(labels)), np.bool_),
                *(multi_hot(table["labels"].to_pylist(), labels) for table in tables.values()),
            ]
        ),
    )


@dataclass(frozen=True, slots=True)
class Group:
    """Shards that are held together, and the order in which an epoch goes through their samples."""

    shards: tuple[int, ...]
    order: NDArray[np.int64]
    """Indices of samples."""


def epoch_groups(
    shards: NDArray[np.int64], lanes: NDArray[np.int64], room: int, seed: int | None, epoch: int
) -> list[Group]:
    """Return the groups of an epoch.

    Args:
        shards: Shard of each sample, (N,), ascending.
        lanes: Lane of each sample, (N,), in 0..LANES-1.
        room: Samples of a group, at most; one shard may be more.
        seed: Of the order, with the epoch; None: shards and samples as they are, in every epoch.
        epoch: From 0.

    Returns:
        Groups in which every sample comes once. Any run of k samples of a group has k/n of each lane, to within two.
    """
    names, starts = np.unique(shards, return_index=True)
    bounds = np.append(starts, len(shards))
    rng = None if seed is None else np.random.default_rng([seed, epoch])
    turn = np.arange(len(names)) if rng is None else rng.permutation(len(names))
    groups: list[list[int]] = []
    filled = room
    for place in turn.tolist():
        count = int(bounds[place + 1] - bounds[place])
        if filled + count > room:
            groups.append([])
            filled = 0
        groups[-1].append(place)
        filled += count
    found = []
    for group in groups:
        members = np.concatenate([np.arange(bounds[place], bounds[place + 1]) for place in group])
        order = members if rng is None else members[_merged(lanes[members], rng)]
        found.append(Group(tuple(int(names[place]) for place in group), order))
    return found


def _merged(lanes: NDArray[np.int64], rng: np.random.Generator) -> NDArray[np.int64]:
    """Return an order of samples in which each lane is shuffled and evenly spread.

    The i-th of a lane's n samples, shuffled, is put at a random place of the i-th n-th of the whole.
    """
    shuffled = rng.permutation(len(lanes))
    by_lane = shuffled[np.argsort(lanes[shuffled], kind="stable")]
    _, starts, counts = np.unique(lanes[by_lane], return_index=True, return_counts=True)
    rank = np.arange(len(lanes)) - np.repeat(starts, counts)
    place = (rank + rng.random(len(lanes))) / np.repeat(counts, counts)
    return by_lane[np.argsort(place, kind="stable")]


class ShardBatches:
    """A branch's training or validation samples as batches of one worker; `classifiers.training.batches.Batches`.

    While a batch is used, the next are gathered, and the next group of shards is read, each in a thread of its own. An
    archive of one group is read once and kept.

    Args:
        reader: The branch's pixels, on this worker's device.
        samples: The samples, over all workers.
        batch_size: Samples of a batch, over all workers.
        standardiser: Applied on the device.
        shuffle_seed: Of the order; None: the same every epoch.
        rank: This worker's number.
        workers: How many share each batch; a divisor of LANES.

    Raises:
        ConfigError: The number of workers does not divide LANES.
    """

    def __init__(
        self,
        reader: BranchReader,
        samples: Samples,
        batch_size: int,
        standardiser: Standardiser,
        shuffle_seed: int | None,
        *,
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        if LANES % workers:
            raise ConfigError(f"{workers} workers cannot share a shard: their number needs to divide {LANES}")
        self._reader, self._samples, self._batch_size = reader, samples, batch_size
        self._standardiser, self._seed = standardiser, shuffle_seed
        per_worker = LANES // workers
        self._lanes = samples.rows * LANES // reader.shard_size
        self._mine = self._lanes // per_worker == rank
        self._on_gpu = reader.device.type == "cuda"
        self._readers = max(1, min(_READERS, (os.cpu_count() or 1) // workers))
        self._kept: _Pixels | None = None
        # From one source for all shards: a batch holds several, and a run that was stopped may have stored some.
        self._is_stored = reader.are_stored(np.unique(samples.shards).tolist())

    @property
    def samples(self) -> int:
        """Samples of an epoch, over all workers."""
        return len(self._samples)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        return -(-len(self._samples) // self._batch_size)

    @cached_property
    def _room(self) -> int:
        inputs = self._reader.branch.inputs
        values = sum(
            len(set(inputs.bands) & set(group.bands)) * group.size**2 * np.dtype(group.dtype).itemsize
            for group in inputs.groups
        )
        # Groups decide the order, which must not depend on whether SR pixels are stored: the larger of both counts.
        return max(1, _GROUP_BYTES // max(values, len(inputs.bands) * self._reader.branch.size**2 * 2))

    def patch_ids(self, epoch: int, step: int) -> list[str]:
        """Return the ids of the whole batch of a step of an epoch, by place."""
        order = np.concatenate([group.order for group in self._groups(epoch)])
        chosen = np.array_split(order, self.steps_per_epoch)[step]
        names: list[str] = self._samples.ids.take(pa.array(chosen)).to_pylist()
        return names

    def batches(self, epoch: int) -> Generator[TrainingBatch]:
        """Yield this worker's shares of the batches of one epoch."""
        with closing(prefetch(self._gathered(epoch), _BATCHES_AHEAD)) as shares:
            for stored, truth, places, n_total in shares:
                x = self._standardiser(self._reader.network_input(stored))
                yield TrainingBatch(x, truth.to(x.device, non_blocking=True), places, n_total)

    def _groups(self, epoch: int) -> list[Group]:
        return epoch_groups(self._samples.shards, self._lanes, self._room, self._seed, epoch)

    def _gathered(self, epoch: int) -> Iterator[tuple[dict[str, Tensor], Tensor, NDArray[np.int64], int]]:
        """Yield each batch's pixels on the host, its truth, its samples' places, and the whole batch's size."""
        groups = self._groups(epoch)
        if not groups:
            return
        ends = iter(np.cumsum([len(group.order) for group in groups]).tolist())
        order = np.concatenate([group.order for group in groups])
        loaded = self._loaded(groups)
        with closing(loaded):
            held, end = next(loaded), next(ends)
            for part in np.array_split(np.arange(len(order)), self.steps_per_epoch):
                mine = part[self._mine[order[part]]]
                pixels = self._room_for(len(mine), held)
                begun = 0
                while True:  # a batch may begin in one group and end in a later one: the first is let go before
                    stop = int(np.searchsorted(mine, end))
                    self._fill(pixels, begun, held, order[mine[begun:stop]])
                    begun = stop
                    if part[-1] < end:
                        break
                    held, end = next(loaded), next(ends)
                truth = torch.from_numpy(self._samples.truth[order[mine]])
                yield pixels, truth.pin_memory() if self._on_gpu else truth, mine - part[0], len(part)

    def _loaded(self, groups: list[Group]) -> Generator[_Pixels]:
        """Yield this worker's pixels of each group; of the only one, those that are kept."""
        if len(groups) > 1:
            with closing(prefetch(map(self._load, groups), 1)) as ahead:
                yield from ahead
            return
        if self._kept is None:
            self._kept = self._load(groups[0])
        yield self._kept

    def _load(self, group: Group) -> _Pixels:
        with ThreadPoolExecutor(self._readers) as pool:
            return dict(zip(group.shards, pool.map(self._read, group.shards), strict=True))

    def _read(self, shard: int) -> tuple[int, Stored]:
        """Return this worker's samples of a shard: the first one's index, and the pixels of all of them."""
        first, stop = np.searchsorted(self._samples.shards, [shard, shard + 1]).tolist()
        mine = np.flatnonzero(self._mine[first:stop]) + first  # one after the other, since lanes are
        if not len(mine):
            return first, self._reader.read(shard, 0, 0, super_resolved=self._is_stored)
        rows = self._samples.rows[mine]
        from_row, n_rows = int(rows[0]), int(rows[-1] - rows[0]) + 1
        pixels = self._reader.read(shard, from_row, n_rows, super_resolved=self._is_stored)
        if n_rows > len(rows):  # the others would take up memory
            pixels = {name: values[rows - from_row] for name, values in pixels.items()}
        return int(mine[0]), pixels

    def _room_for(self, n: int, like: _Pixels) -> dict[str, Tensor]:
        _, arrays = next(iter(like.values()))
        return {name: self._empty((n, *values.shape[1:]), values.dtype) for name, values in arrays.items()}

    def _empty(self, shape: tuple[int, ...], dtype: np.dtype[np.generic]) -> Tensor:
        like = torch.from_numpy(np.empty(0, dtype))
        return torch.empty(shape, dtype=like.dtype, pin_memory=self._on_gpu)

    def _fill(self, pixels: Mapping[str, Tensor], begun: int, held: _Pixels, samples: NDArray[np.int64]) -> None:
        """Copy samples of one group into a batch's pixels, from a place on."""
        into = {name: values.numpy() for name, values in pixels.items()}
        shards = self._samples.shards[samples].tolist()
        for place, (shard, sample) in enumerate(zip(shards, samples.tolist(), strict=True), begun):
            first, arrays = held[shard]
            for name, values in arrays.items():
                into[name][place] = values[sample - first]
