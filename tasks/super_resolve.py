"""Super-resolve: the pixels of one shard, stored, and their quality."""

import numpy as np
import pyarrow as pa

from infra.tables import SR_QUALITY
from infra.zarr_store import ShardedStore
from tasks.branch import Branch, BranchReader, block_batches, stored_block, worker_device
from tasks.stage import ShardCount


class ShardSuperResolver:
    """Stores one branch's pixels, block by block, so that memory stays small whatever the shard's size.

    While a block is compressed and written, the device works on the next batch.
    """

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self._reader = BranchReader(branch, worker_device())
        self._store = ShardedStore(branch.store, writable=True)

    def run(self, shard: int) -> ShardCount:
        """Super-resolve and store one shard; its quality rows come before its own part."""
        branch, store = self._branch, self._store
        patches = branch.inputs.patches(shard)
        rows = patches["row"].to_numpy()
        ids = patches["patch_id"].to_pylist()
        archive = self._reader.archive_rows(shard)
        block = stored_block(store.shard_size)
        batches = {
            first: block_batches(rows, first, block, branch.batch_size) for first in range(0, store.shard_size, block)
        }
        enlarged = self._reader.stream(archive[rows[batch]] for of_block in batches.values() for batch in of_block)
        quality: list[pa.Table] = []
        for first, of_block in batches.items():
            pixels = np.zeros((block, *store.array("sr").shape[1:]), np.uint16)
            for batch in of_block:
                result = next(enlarged)
                pixels[rows[batch] - first] = result.dn
                if result.columns is not None:
                    quality.append(self._reader.quality_table(ids[batch], result.columns))
            store.write(shard, "sr", pixels, first)
        valid = np.zeros(store.shard_size, np.bool_)
        valid[rows] = True
        store.write(shard, "valid", valid)
        branch.quality.write(shard, pa.concat_tables(quality) if quality else SR_QUALITY.empty_table())
        branch.pixels.write(shard, patches.select(["patch_id", "row"]))
        return ShardCount(len(rows))
