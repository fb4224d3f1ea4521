"""Stores of activation maps: half precision in units of each map's largest value, which is stored beside it."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from infra.errors import StoreError
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
        "long_name": "activation map in units of its scale, at its own resolution",
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


def write_maps(path: Path, shard: int, rows: NDArray[np.int64], maps: NDArray[np.float32]) -> None:
    """Write all maps of one shard.

    Args:
        path: The store.
        shard: The shard.
        rows: Rows that have maps, sorted, (M,); the others hold NaN.
        maps: Raw maps, (M, L, h, w).
    """
    store = ShardedStore(path, writable=True)
    shape = store.array("maps").shape[1:]
    scale = np.abs(maps).max(axis=(2, 3), initial=0.0)  # NaN and infinity go through
    scale[~np.isfinite(scale)] = np.nan
    scales = np.full((store.shard_size, shape[0]), np.nan, np.float32)
    scales[rows] = scale
    block = store.block("maps")
    for first in range(0, store.shard_size, block):
        values = np.full((block, *shape), np.nan, np.float16)
        start, stop = np.searchsorted(rows, [first, first + block]).tolist()
        divisor = np.where(scale[start:stop] == 0, 1.0, scale[start:stop])[:, :, None, None]
        values[rows[start:stop] - first] = maps[start:stop] / divisor
        store.write(shard, "maps", values, first)
    store.write(shard, "scale", scales)
    valid = np.zeros(store.shard_size, np.bool_)
    valid[rows] = True
    store.write(shard, "valid", valid)


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
