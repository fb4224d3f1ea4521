"""Stores of activation maps: half precision in units of each map's largest value, which is stored beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.errors import MisalignedWriteError, StoreError
from infra.fingerprint import Json
from infra.zarr_store import ArraySpec, ShardedStore, create_store

_CHUNK_BYTES = 1 << 20
_WRITTEN_AT_ONCE = 64  # patches in a Zarr shard of maps: what a worker holds at full size


def create_map_store(
    path: Path,
    names: Sequence[str],
    size: tuple[int, int],
    shard_size: int,
    n_shards: int,
    attributes: Mapping[str, Json],
) -> None:
    """Make or grow a store of maps; for the driver alone.

    Args:
        path: Where.
        names: What the maps of a patch are of: labels, or one name for a method without labels.
        size: Height and width of a map.
        shard_size: Patches in a shard.
        n_shards: Shards to have room for.
        attributes: What the method is, for readers.
    """
    chunk = max(1, min(64, _CHUNK_BYTES // (2 * len(names) * size[0] * size[1])))
    of_maps: dict[str, Json] = {
        "long_name": "activation map in units of its scale, at its own resolution; on the patch's grid where finer",
        "units": "1; times scale, the unit of the method",
    }
    of_scale: dict[str, Json] = {"long_name": "largest absolute value of the map; NaN for a map that is not finite"}
    arrays = (
        ArraySpec(
            "maps",
            ("label", "y", "x"),
            (len(names), *size),
            "float16",
            float("nan"),
            of_maps,
            chunk=chunk,
            names=tuple(names),
            zarr_shard=_WRITTEN_AT_ONCE,
        ),
        ArraySpec("scale", ("label",), (len(names),), "float32", float("nan"), of_scale, chunk=4096),
    )
    create_store(path, arrays, shard_size, n_shards, attributes)


class MapWriter:
    """Writes the maps of one shard in the order of its rows; those of one Zarr shard at most are held."""

    def __init__(self, path: Path, shard: int) -> None:
        """Open the store.

        Args:
            path: The store.
            shard: The shard.

        Raises:
            StoreError: There is no such store.
        """
        self._store, self._shard = ShardedStore(path, writable=True), shard
        self._shape = self._store.array("maps").shape[1:]
        self._block = self._store.block("maps")
        self._next_row = 0  # the first one that is not written
        self._held: NDArray[np.float16] | None = None  # the Zarr shard that begins there
        self._scales = np.full((self._store.shard_size, self._shape[0]), np.nan, np.float32)
        self._valid = np.zeros(self._store.shard_size, np.bool_)

    def add(self, rows: NDArray[np.int64], maps: NDArray[np.float32]) -> None:
        """Take maps, and write the Zarr shards before theirs.

        Args:
            rows: Rows of the shard, sorted, in no Zarr shard before that of the last call's, (M,).
            maps: Raw maps, (M, L, h, w).

        Raises:
            MisalignedWriteError: A row lies in a Zarr shard that is written already.
            StoreError: The disk is full or read-only.
        """
        if len(rows) and rows[0] < self._next_row:
            raise MisalignedWriteError(
                f"row {rows[0]} of shard {self._shard} of {self._store.path} comes after the Zarr shards of all rows "
                f"before {self._next_row} were written: add maps in the order of rows"
            )
        scale = np.abs(maps).max(axis=(2, 3), initial=0.0)  # NaN and infinity go through
        scale[~np.isfinite(scale)] = np.nan
        self._scales[rows], self._valid[rows] = scale, True
        divisor = np.where(scale == 0, 1.0, scale)[:, :, None, None]
        blocks = rows // self._block
        for block in np.unique(blocks).tolist():
            self._write_before(block * self._block)
            chosen = blocks == block
            self._of_block()[rows[chosen] - self._next_row] = maps[chosen] / divisor[chosen]

    def close(self) -> None:
        """Write what is left; rows that never came hold NaN.

        Raises:
            StoreError: The disk is full or read-only.
        """
        self._write_before(self._store.shard_size)
        self._store.write(self._shard, "scale", self._scales)
        self._store.write(self._shard, "valid", self._valid)

    def _of_block(self) -> NDArray[np.float16]:
        if self._held is None:
            self._held = np.full((self._block, *self._shape), np.nan, np.float16)
        return self._held

    def _write_before(self, row: int) -> None:
        while self._next_row < row:
            self._store.write(self._shard, "maps", self._of_block(), self._next_row)
            self._next_row += self._block
            self._held = None


def read_map(store: ShardedStore, index: int, label: int) -> NDArray[np.float32]:
    """Return one raw map, (h, w), in the unit of its method; NaN where it is not finite or was never made.

    Args:
        store: Of maps.
        index: Place on the patch axis: shard * shard_size + row.
        label: Place on the label axis.

    Raises:
        StoreError: The store is not of maps, or of an earlier layout, without scales.
    """
    if not is_map_store(store.path):
        raise StoreError(
            f"{store.path} holds no maps with their scales: an earlier version wrote it, or something else; run the "
            "flow again, and maps are made in a store of today's layout"
        )
    scale = np.asarray(store.array("scale")[index, label], np.float32)
    return np.asarray(store.array("maps")[index, label], np.float32) * scale


def is_map_store(path: Path) -> bool:
    """Return whether a folder is a store of maps in today's layout."""
    try:
        return "scale" in ShardedStore(path).group
    except StoreError:
        return False
