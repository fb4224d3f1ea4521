"""Super-resolve: the pixels of one shard, or of a part of one, stored, and their quality."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from infra.tables import SR_QUALITY
from infra.zarr_store import ShardedStore
from sr_models import Condition
from tasks.branch import Branch, BranchReader, block_batches, worker_device
from tasks.stage import ShardCount

_QUALITY = "sr_quality"
"""Side table of an SR shard's part."""


class ShardSuperResolver:
    """Stores one branch's pixels, block by block, so that memory stays small whatever the shard's size.

    While a block is compressed and written, the device works on the next batch.
    """

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self._pixels = _Pixels(branch)

    def run(self, shard: int) -> ShardCount:
        """Super-resolve and store one shard; its quality rows come before its own part."""
        size = self._pixels.store.shard_size
        patches = self._branch.inputs.patches(shard)
        quality = self._pixels.write(shard, patches, range(0, size, self._branch.block(size)))
        _seal(self._branch, self._pixels.store, shard, patches, quality)
        return ShardCount(patches.num_rows)


@dataclass(frozen=True, slots=True)
class SrShards:
    """A branch's shards cut into SR shards, which are numbered through: a slow model loses little where it is ended."""

    branch: Branch
    shard_size: int

    def of(self, shards: Iterable[int]) -> list[int]:
        """Return the SR shards that make up shards."""
        n = self.shard_size // self.branch.block(self.shard_size)
        return [n * shard + i for shard in shards for i in range(n)]

    def place(self, sr_shard: int) -> tuple[int, int]:
        """Return the shard that an SR shard is of, and its first row there."""
        block = self.branch.block(self.shard_size)
        shard, i = divmod(sr_shard, self.shard_size // block)
        return shard, i * block

    def seal(self, shards: Iterable[int]) -> None:
        """Say of every shard whose SR shards are all stored that it is; for the driver, after their stage."""
        done, sealed = self.branch.sr_shards.done(), self.branch.pixels.done()
        store = ShardedStore(self.branch.store, writable=True)
        for shard in shards:
            own = self.of([shard])
            if done.issuperset(own) and shard not in sealed:
                quality = self.branch.sr_shards.read_all(own, _QUALITY)
                _seal(self.branch, store, shard, self.branch.inputs.patches(shard), quality)


class SrShardSuperResolver:
    """Stores one branch's pixels, an SR shard at a time."""

    def __init__(self, sr_shards: SrShards) -> None:
        self._sr_shards = sr_shards
        self._pixels = _Pixels(sr_shards.branch)

    def run(self, sr_shard: int) -> ShardCount:
        """Super-resolve and store one SR shard, then its part with its quality rows beside."""
        branch = self._sr_shards.branch
        shard, first = self._sr_shards.place(sr_shard)
        patches = branch.inputs.patches(shard)
        quality = self._pixels.write(shard, patches, [first])
        rows = patches["row"].to_numpy()
        here = patches.filter((rows >= first) & (rows < first + branch.block(self._sr_shards.shard_size)))
        branch.sr_shards.write(sr_shard, here.select(["patch_id", "row"]), {_QUALITY: pa.concat_tables(quality)})
        return ShardCount(here.num_rows)


class _Pixels:
    """Writes SR pixels block by block; a block is written again with the same bytes."""

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self._reader = BranchReader(branch, worker_device())
        self.store = ShardedStore(branch.store, writable=True)

    def write(self, shard: int, patches: pa.Table, first_rows: Sequence[int]) -> list[pa.Table]:
        """Super-resolve and store blocks of a shard and return their SR_QUALITY rows, at least an empty table.

        Args:
            shard: The shard.
            patches: All its patches, by row.
            first_rows: The blocks.
        """
        branch, store = self._branch, self.store
        rows, ids = patches["row"].to_numpy(), patches["patch_id"].to_pylist()
        block = branch.block(store.shard_size)
        # a slow model is given all there is: how much of it fits its device it finds out itself
        at_once = branch.batch_size if branch.spec.sr_shard is None else block
        batches = {first: block_batches(rows, first, block, at_once) for first in first_rows}
        enlarged = self._reader.stream(self._inputs(shard, patches, [b for of in batches.values() for b in of]))
        quality = [SR_QUALITY.empty_table()]
        for first, of_block in batches.items():
            pixels = np.zeros((block, *store.array("sr").shape[1:]), np.uint16)
            for batch in of_block:
                result = next(enlarged)
                pixels[rows[batch] - first] = result.dn
                if result.columns is not None:
                    quality.append(self._reader.quality_table(ids[batch], result.columns))
            store.write(shard, "sr", pixels, first)
        return quality

    def _inputs(
        self, shard: int, patches: pa.Table, batches: Sequence[slice]
    ) -> Iterator[tuple[NDArray[np.uint16], Sequence[Condition]]]:
        if not batches:
            return
        rows = patches["row"].to_numpy()[batches[0].start : batches[-1].stop]
        first, start = int(rows[0]), batches[0].start
        archive = self._reader.archive_rows(shard, first, int(rows[-1]) - first + 1)
        conditions = self._reader.conditions(shard, patches.slice(start, len(rows)))
        for batch in batches:
            here = slice(batch.start - start, batch.stop - start)
            yield archive[rows[here] - first], conditions[here]


def _seal(branch: Branch, store: ShardedStore, shard: int, patches: pa.Table, quality: Sequence[pa.Table]) -> None:
    """Say that a shard's pixels are all stored."""
    valid = np.zeros(store.shard_size, np.bool_)
    valid[patches["row"].to_numpy()] = True
    store.write(shard, "valid", valid)
    branch.quality.write(shard, pa.concat_tables(quality))
    branch.pixels.write(shard, patches.select(["patch_id", "row"]))
