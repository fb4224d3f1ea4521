"""Zarr stores whose shards are the pipeline's shards: the driver makes and grows them, one worker writes a shard.

Two writers on one Zarr shard lose data (zarr-python #3682), and a shard that is all fill is not written by default:
so every write here covers whole shards, and empty chunks are written.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from infra.bigearthnet.bands import S1, S2_GROUPS, BandGroup
from infra.errors import ConfigError, MisalignedWriteError, StoreError
from infra.fingerprint import Json
from infra.storage import writing

LAYOUT_VERSION = 1
"""Raised when the arrays of archive.zarr change."""


@dataclass(frozen=True, slots=True)
class ArraySpec:
    """One array of a store, patch axis first."""

    name: str
    dims: tuple[str, ...]
    """Names of the axes after `patch`."""
    shape: tuple[int, ...]
    """Lengths of the axes after `patch`."""
    dtype: str
    fill: float
    """Value of rows that hold no patch."""
    attributes: Mapping[str, Json]
    chunk: int = 16
    """Patches in an inner chunk, at most."""
    names: tuple[str, ...] = ()
    """Names along the first axis after `patch`: a coordinate of the dataset."""


def _bands(group: BandGroup, dtype: str, units: str, long_name: str) -> ArraySpec:
    grid = f"{group.gsd}m" if group is not S1 else "s1"
    return ArraySpec(
        group.array,
        (f"band_{grid}", f"y_{group.gsd}m", f"x_{group.gsd}m"),
        (len(group.bands), group.size, group.size),
        dtype,
        0,
        {"units": units, "gsd_m": group.gsd, "long_name": long_name},
        names=group.bands,
    )


def archive_arrays(labels: Sequence[str]) -> tuple[ArraySpec, ...]:
    """Return the arrays of archive.zarr for a label order."""
    s2 = tuple(
        _bands(group, "uint16", "DN = 10000 * surface reflectance; 0 = nodata", "Sentinel-2 L2A") for group in S2_GROUPS
    )
    return (
        *s2,
        _bands(S1, "float32", "dB", "Sentinel-1 GRD backscatter"),
        ArraySpec(
            "reference_map",
            ("y_10m", "x_10m"),
            (120, 120),
            "uint16",
            0,
            {"units": "CORINE level-3 code; 0 = unknown", "gsd_m": 10, "long_name": "land-cover reference map"},
        ),
        ArraySpec(
            "labels", ("label",), (len(labels),), "bool", 0, {"long_name": "label is present"}, names=tuple(labels)
        ),
    )


VALID = ArraySpec("valid", (), (), "bool", 0, {"long_name": "row holds a patch"}, chunk=4096)
"""Every store has it."""


class ShardedStore:
    """A Zarr group of arrays that share the patch axis and its shards."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Open a store.

        Raises:
            StoreError: There is none, or it is not one of ours.
        """
        self.path = path
        try:
            self.group = zarr.open_group(path, mode="r+" if writable else "r")
            self.shard_size = int(str(self.group.attrs["shard_size"]))
        except (FileNotFoundError, KeyError) as error:
            raise StoreError(f"{path} is not a store of this project: no shard_size in its attributes") from error

    @property
    def n_shards(self) -> int:
        """Shards that the arrays have room for."""
        return int(self.array("valid").shape[0]) // self.shard_size

    def array(self, name: str) -> zarr.Array:  # type: ignore[type-arg]  # zarr's parameter is its metadata version
        """Return one array."""
        array = self.group[name]
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{self.path}/{name} is not an array")
        return array

    def write(self, shard: int, name: str, values: NDArray[np.generic]) -> None:
        """Write one whole shard of one array.

        Raises:
            MisalignedWriteError: values is not (shard_size, …) of the array's shape and dtype.
            StoreError: The disk is full or read-only, or the shard lies past the arrays' end.
        """
        array = self.array(name)
        expected = (self.shard_size, *array.shape[1:])
        if values.shape != expected or values.dtype != array.dtype:
            raise MisalignedWriteError(
                f"shard {shard} of {self.path}/{name} is {values.dtype} {values.shape}, the array holds {array.dtype} "
                f"{expected}: write whole shards, or create the store with another shape"
            )
        if shard >= self.n_shards:
            raise StoreError(
                f"{self.path} has {self.n_shards} shards, none numbered {shard}: the driver grows it first"
            )
        with writing(self.path):
            whole = array.with_config({"write_empty_chunks": True})
            whole[shard * self.shard_size : (shard + 1) * self.shard_size] = values

    def read(self, shard: int, name: str) -> NDArray[np.generic]:
        """Return one whole shard of one array, (shard_size, …)."""
        values = self.array(name)[shard * self.shard_size : (shard + 1) * self.shard_size]
        return np.asarray(values)


def create_store(
    path: Path, arrays: Sequence[ArraySpec], shard_size: int, n_shards: int, attributes: Mapping[str, Json]
) -> None:
    """Create a store, or grow it to n_shards; for the driver alone, before any worker writes.

    Args:
        path: The store's folder.
        arrays: Its arrays, besides `valid`.
        shard_size: Patches in a shard.
        n_shards: Shards to make room for; a larger store stays as it is.
        attributes: Attributes of the group, besides shard_size.

    Raises:
        ConfigError: The store exists with another shard size.
        StoreError: It cannot be written.
    """
    arrays = (*arrays, VALID)
    if not (path / "zarr.json").exists():
        _create(path, arrays, shard_size, attributes)
    store = ShardedStore(path, writable=True)
    if store.shard_size != shard_size:
        raise ConfigError(
            f"{path} was made with shard_size {store.shard_size}, the configuration says {shard_size}: "
            "keep the first, or choose another store"
        )
    with writing(path):
        for spec in arrays:
            array = store.array(spec.name)
            if array.shape[0] < n_shards * shard_size:
                array.resize((n_shards * shard_size, *array.shape[1:]))


def _create(path: Path, arrays: Sequence[ArraySpec], shard_size: int, attributes: Mapping[str, Json]) -> None:
    """Make the arrays; the group's attributes come last, so that a half-made store has none and is made again."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        group = zarr.open_group(path, mode="w")
        for spec in arrays:
            chunk = inner_chunk(shard_size, spec.chunk)
            group.create_array(
                spec.name,
                shape=(0, *spec.shape),
                shards=(shard_size, *spec.shape),
                chunks=(chunk, *spec.shape),
                dtype=spec.dtype,
                fill_value=spec.fill,
                compressors=BloscCodec(cname="lz4", clevel=5, shuffle="shuffle"),
                dimension_names=("patch", *spec.dims),
                attributes=dict(spec.attributes),
            )
            if spec.names:
                names = group.create_array(
                    spec.dims[0], shape=(len(spec.names),), dtype=str, dimension_names=(spec.dims[0],)
                )
                names[:] = np.array(spec.names, dtype=object)
        group.attrs.update({**attributes, "shard_size": shard_size})


def inner_chunk(shard_size: int, at_most: int) -> int:
    """Return the largest divisor of shard_size up to at_most: Zarr wants whole inner chunks in a shard."""
    return next(n for n in range(min(at_most, shard_size), 0, -1) if shard_size % n == 0)
