"""Super-resolve: the pixels of one shard, stored, and their quality."""

import numpy as np
import pyarrow as pa

from infra.tables import SR_QUALITY
from infra.zarr_store import ShardedStore
from tasks.branch import Branch, BranchReader, block_batches, stored_block, worker_device
from tasks.stage import ShardCount


class ShardSuperResolver:
    """Stores one branch's pixels, block by block, so that memory stays small whatever the shard's size."""

    def __init__(self, branch: Branch) -> None:
        self._branch = branch
        self._reader = BranchReader(branch, worker_device())
        self._store = ShardedStore(branch.store, writable=True)

    def run(self, shard: int) -> ShardCount:
        """Super-resolve and store one shard; its quality rows come before its own part."""
        branch, store = self._branch, self._store
        patches = branch.ingest.read(shard).sort_by("row")
        rows = patches["row"].to_numpy()
        ids = patches["patch_id"].to_pylist()
        lr = self._reader.input(shard)
        quality: list[pa.Table] = []
        block = stored_block(store.shard_size)
        for first in range(0, store.shard_size, block):
            pixels = np.zeros((block, *store.array("sr").shape[1:]), np.uint16)
            for part in block_batches(rows, first, block, branch.batch_size):
                dn, measured = self._reader.super_resolve(lr[rows[part]], ids[part])
                pixels[rows[part] - first] = dn.cpu().numpy()
                quality += [measured] if measured is not None else []
            store.write(shard, "sr", pixels, first)
        valid = np.zeros(store.shard_size, np.bool_)
        valid[rows] = True
        store.write(shard, "valid", valid)
        measured_rows = pa.concat_tables(quality) if quality else SR_QUALITY.empty_table()
        branch.quality.write(shard, measured_rows)
        branch.pixels.write(shard, patches.select(["patch_id", "row"]))
        return ShardCount(len(rows))
