"""Zarr stores whose shards are the pipeline's shards: the driver makes and grows them, one worker writes a shard.

Two writers on one Zarr shard lose data (zarr-python #3682), and a shard that is all fill is not written by default:
so every write here covers whole shards, and empty chunks are written.
"""

from collections.abc import Hashable, Mapping, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np
import zarr
from numcodecs import Blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec
from zarr.errors import ChunkNotFoundError

from infra.archives.model import PatchFormat
from infra.bigearthnet.bands import S1, BandGroup
from infra.errors import ConfigError, MisalignedWriteError, PipelineError, StoreError
from infra.fingerprint import Json
from infra.object_store import ObjectPath, put
from infra.storage import temporary_name, version, writing
from infra.zarr_objects import ZarrObjects
from infra.zarr_rows import PackedRow, RowCodec
from infra.zarr_shard import ShardFile, chunk_codec

LAYOUT_VERSION = 1
"""Raised when the arrays of archive.zarr change."""

LABELS = "labels"
"""The array of an archive that says which labels its patches have."""


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
    zarr_shard: int | None = None
    """Patches in a Zarr shard, at most; None: one Zarr shard for one shard of the pipeline."""


def archive_arrays(patch_format: PatchFormat) -> tuple[ArraySpec, ...]:
    """Return the arrays of archive.zarr for an archive's patches."""
    size, labels = patch_format.size, patch_format.labels
    arrays = [_bands(group) for group in patch_format.groups]
    if patch_format.has_maps:
        attributes: dict[str, Json] = {
            "units": "CORINE level-3 code; 0 = unknown",
            "gsd_m": 10,
            "long_name": "land-cover reference map",
        }
        arrays.append(ArraySpec("reference_map", ("y_10m", "x_10m"), (size, size), "uint16", 0, attributes))
    of_labels: dict[str, Json] = {"long_name": "label is present"}
    arrays.append(ArraySpec(LABELS, ("label",), (len(labels),), "bool", 0, of_labels, names=labels))
    return tuple(arrays)


def _bands(group: BandGroup) -> ArraySpec:
    grid = f"{group.gsd}m" if group.gsd is not None else group.array
    attributes: dict[str, Json] = {
        "units": "DN = 10000 * surface reflectance; 0 = nodata",
        "gsd_m": group.gsd,
        "long_name": "Sentinel-2 L2A",
    }
    if group == S1:
        attributes |= {"units": "dB", "long_name": "Sentinel-1 GRD backscatter"}
    elif group.gsd is None:
        attributes = {"units": "DN of the image files", "long_name": "images"}
    return ArraySpec(
        group.array,
        (f"band_{'s1' if group == S1 else grid}", f"y_{grid}", f"x_{grid}"),
        (len(group.bands), group.size, group.size),
        group.dtype,
        0,
        attributes,
        names=group.bands,
    )


VALID = ArraySpec("valid", (), (), "bool", 0, {"long_name": "row holds a patch"}, chunk=4096)
"""Every store has it."""

_HALF_MADE = "superscene.half_made"
"""Attribute of a group whose arrays are still being made."""


class ShardedStore:
    """A Zarr group of arrays that share the patch axis and its shards."""

    def __init__(self, path: Path, *, writable: bool = False) -> None:
        """Open a store.

        Raises:
            StoreError: There is none, or it is not one of ours.
        """
        self.path = path
        self._opened: dict[str, tuple[Hashable, zarr.Array]] = {}  # type: ignore[type-arg]
        try:
            self.group = _open_group(path, "r+" if writable else "r")
            self.shard_size = int(str(self.group.attrs["shard_size"]))
        except (FileNotFoundError, KeyError, ValueError) as error:  # ValueError: an array, or metadata that is not JSON
            raise StoreError(f"{path} is not a store of this project: no shard_size in its attributes") from error

    @property
    def n_shards(self) -> int:
        """Shards that the arrays have room for."""
        return int(self.array("valid").shape[0]) // self.shard_size

    def array(self, name: str) -> zarr.Array:  # type: ignore[type-arg]  # zarr's parameter is its metadata version
        """Return one array; zarr-python takes a millisecond to open it, so it is kept until its metadata change."""
        try:
            stamp = version(self.path / name / "zarr.json")
        except (FileNotFoundError, NotADirectoryError) as error:
            raise StoreError(f"{self.path} has no array {name}") from error
        kept = self._opened.get(name)
        if kept is not None and kept[0] == stamp:
            return kept[1]
        array = self.group.get(name)
        if not isinstance(array, zarr.Array):
            raise StoreError(f"{self.path} has no array {name}")
        self._opened[name] = (stamp, array)
        return array

    def write(self, shard: int, name: str, values: NDArray[np.generic], first_row: int = 0) -> None:
        """Write whole Zarr shards of one array, all of the shard's or a run of them.

        Args:
            shard: Shard of the pipeline.
            name: The array.
            values: (rows, …), of the array's shape and dtype.
            first_row: Row of the shard where values begin.

        Raises:
            MisalignedWriteError: values have another shape or dtype, or would cover a Zarr shard in part.
            StoreError: The disk is full or read-only, the shard lies past the arrays' end, or the store was opened for
                reading.
        """
        if self.group.read_only:
            raise StoreError(f"{self.path} was opened for reading")
        array = self.array(name)
        unit = (array.shards or array.chunks)[0]
        whole = len(values) % unit == 0 and first_row % unit == 0 and 0 <= first_row < self.shard_size
        whole = whole and 0 < len(values) <= self.shard_size - first_row
        if not whole or values.shape[1:] != array.shape[1:] or values.dtype != array.dtype:
            raise MisalignedWriteError(
                f"rows {first_row} on of shard {shard} of {self.path}/{name}: {values.dtype} {values.shape}, the array "
                f"holds {array.dtype} {array.shape[1:]} in Zarr shards of {unit}: write whole Zarr shards"
            )
        if not 0 <= shard < self.n_shards:
            raise self._no_room(shard)
        start = shard * self.shard_size + first_row
        codec = chunk_codec(array)
        if codec is None:
            with writing(self.path):
                with_empty = array.with_config({"write_empty_chunks": True})
                with_empty[start : start + len(values)] = values
            return
        for row in range(0, len(values), unit):
            with closing(_NewShard(self._place(name, (start + row) // unit), array, codec)) as new:
                new.append(values[row : row + unit])
                new.commit()

    def writer(self, shard: int) -> "ShardWriter":
        """Return what writes one shard's arrays as their rows come.

        Args:
            shard: Shard of the pipeline.

        Raises:
            StoreError: The shard lies past the arrays' end, or the store was opened for reading.
        """
        if self.group.read_only:
            raise StoreError(f"{self.path} was opened for reading")
        if not 0 <= shard < self.n_shards:
            raise self._no_room(shard)
        return ShardWriter(self, shard)

    def _no_room(self, shard: int) -> StoreError:
        return StoreError(f"{self.path} has {self.n_shards} shards, none numbered {shard}: the driver grows it first")

    def _place(self, name: str, zarr_shard: int) -> Path:
        """Return the file of a Zarr shard of one array."""
        array = self.array(name)
        return self.path / name / array.metadata.encode_chunk_key((zarr_shard, *(0,) * (array.ndim - 1)))

    def new_shard(self, shard: int, name: str) -> "_NewShard":
        """Begin the one Zarr shard that an array has for a shard of the pipeline.

        Raises:
            StoreError: The array has several, or is none of this project's making.
        """
        array, codec = self._whole_shards(name)
        return _NewShard(self._place(name, shard), array, codec)

    def row_codec(self, name: str) -> RowCodec:
        """Return what compresses the rows of an array that has one Zarr shard for a shard of the pipeline.

        Raises:
            StoreError: The array has several, or is none of this project's making.
        """
        array, codec = self._whole_shards(name)
        return RowCodec(codec, array.shape[1:], array.dtype)

    def _whole_shards(self, name: str) -> tuple[zarr.Array[Any], Blosc]:
        array = self.array(name)
        codec = chunk_codec(array)
        if codec is None or array.shards is None or array.shards[0] != self.shard_size:
            raise StoreError(
                f"{self.path}/{name} is not stored as this project stores it, in Zarr shards of {self.shard_size} "
                "patches: it was made or changed by another program"
            )
        return array, codec

    def read(self, shard: int, name: str, first_row: int = 0, rows: int | None = None) -> NDArray[np.generic]:
        """Return rows of one shard of one array, all of them by default.

        Raises:
            PipelineError: The shard was never written, or its file is lost.
        """
        start = shard * self.shard_size + first_row
        count = self.shard_size - first_row if rows is None else rows
        # A part says that its shard was written: one that is missing now was lost, and must not read as zeros.
        array = self.array(name).with_config({"read_missing_chunks": False})
        try:
            return np.asarray(array[start : start + count])
        except ChunkNotFoundError as error:
            raise PipelineError(
                f"shard {shard} of {self.path}/{name} is not on disk: never written, or its file is lost; remove "
                f"the part that says that it is done (work/*/*/part-{shard:05d}.parquet) to have it made again"
            ) from error

    def block(self, name: str) -> int:
        """Return the patches of a Zarr shard of one array: what is written at once, and best read at once."""
        array = self.array(name)
        return int((array.shards or array.chunks)[0])


class _NewShard:
    """A Zarr shard that is being written, and is not there before it is whole."""

    def __init__(self, target: Path, array: zarr.Array[Any], codec: Blosc) -> None:
        assert array.shards is not None
        self._target, self._dtype, self._shape = target, array.dtype, (array.shards[0], *array.shape[1:])
        self._temporary = temporary_name(target)  # on object storage, what is not whole is held in memory
        with writing(target):
            self._file: BinaryIO = BytesIO() if isinstance(target, ObjectPath) else _new_file(self._temporary)
        self._chunk: int = array.chunks[0]
        self._rows: list[PackedRow | None] = []  # of a chunk that is not whole yet
        self._shard = ShardFile(self._file, self._chunk, codec)

    def append(self, values: NDArray[np.generic]) -> None:
        """Write the next rows."""
        if values.shape[1:] != self._shape[1:] or values.dtype != self._dtype:
            raise MisalignedWriteError(
                f"rows for {self._target}: {values.dtype} {values.shape[1:]}, the array holds {self._dtype} "
                f"{self._shape[1:]}"
            )
        with writing(self._target):
            self._shard.append(values)

    def append_row(self, codec: RowCodec, row: PackedRow | None) -> None:
        """Write the next row, once its inner chunk is whole."""
        self._rows.append(row)
        if len(self._rows) == self._chunk:
            with writing(self._target):
                self._shard.append_chunk(codec.join(self._rows))

    def commit(self) -> None:
        """Put the shard in its place, not waiting for the disk, as zarr-python writes local files.

        Raises:
            MisalignedWriteError: It has more rows than a shard, or fewer.
        """
        with writing(self._target):
            if (rows := self._shard.finish()) != self._shape[0]:
                raise MisalignedWriteError(f"{self._target} was given {rows} rows, a shard has {self._shape[0]}")
            if isinstance(self._target, ObjectPath):
                assert isinstance(self._file, BytesIO)
                put(self._target, self._file.getvalue())
            else:
                self._file.close()
                self._temporary.replace(self._target)

    def close(self) -> None:
        """Leave nothing behind but what was committed."""
        with writing(self._target):
            if not isinstance(self._target, ObjectPath):
                self._temporary.unlink(missing_ok=True)
            self._file.close()


def _new_file(path: Path) -> BinaryIO:
    path.parent.mkdir(parents=True, exist_ok=True)
    return path.open("wb")


class ShardWriter:
    """Writes all arrays of one shard of the pipeline as their rows come, each into its one Zarr shard.

    Nothing is there before `commit`; `close`, after it or without it, leaves nothing else behind.
    """

    def __init__(self, store: ShardedStore, shard: int) -> None:
        """Begin a shard; `ShardedStore.writer` does."""
        self._store, self._shard = store, shard
        self._new: dict[str, _NewShard] = {}

    def append(self, name: str, values: NDArray[np.generic]) -> None:
        """Write the next rows of one array.

        Args:
            name: The array.
            values: (rows, …), of the array's shape and dtype; best whole inner chunks, which are not copied.

        Raises:
            MisalignedWriteError: values have another shape or dtype.
            StoreError: The disk is full or read-only, or the array is not stored as this project stores it.
        """
        self._new_shard(name).append(values)

    def append_row(self, name: str, codec: RowCodec, row: PackedRow | None) -> None:
        """Write the next row of one array, once its inner chunk is whole.

        Args:
            name: The array.
            codec: Of the array.
            row: The row; None: no patch, which reads as zeros.

        Raises:
            StoreError: As in `append`.
        """
        self._new_shard(name).append_row(codec, row)

    def _new_shard(self, name: str) -> _NewShard:
        new = self._new.get(name)
        if new is None:
            new = self._new[name] = self._store.new_shard(self._shard, name)
        return new

    def commit(self) -> None:
        """Put every array's shard in its place.

        Raises:
            MisalignedWriteError: An array was given more rows than the shard has, or fewer.
            StoreError, TransientError: It cannot be written.
        """
        for new in self._new.values():
            new.commit()

    def close(self) -> None:
        """Leave nothing behind but what was committed."""
        with ExitStack() as all_of_them:
            for new in self._new.values():
                all_of_them.callback(new.close)


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
    if _is_absent_or_half_made(path):
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
    """Make the arrays; the group bears a mark until all of them are there."""
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        group = _open_group(path, "w", {_HALF_MADE: True})
        for spec in arrays:
            zarr_shard = divisor(shard_size, spec.zarr_shard or shard_size)
            group.create_array(
                spec.name,
                shape=(0, *spec.shape),
                shards=(zarr_shard, *spec.shape),
                chunks=(divisor(zarr_shard, spec.chunk), *spec.shape),
                dtype=spec.dtype,
                fill_value=spec.fill,
                compressors=_compressor(spec.dtype),
                dimension_names=("patch", *spec.dims),
                attributes=dict(spec.attributes),
            )
            if spec.names:
                names = group.create_array(
                    spec.dims[0], shape=(len(spec.names),), dtype=str, dimension_names=(spec.dims[0],)
                )
                names[:] = np.array(spec.names, dtype=object)
        group.attrs.put({**attributes, "shard_size": shard_size})  # in the mark's place


def _open_group(path: Path, mode: Literal["r", "r+", "w"], attributes: dict[str, Any] | None = None) -> zarr.Group:
    place = ZarrObjects(path, read_only=mode == "r") if isinstance(path, ObjectPath) else path
    return zarr.open_group(place, mode=mode, attributes=attributes)


def _compressor(dtype: str) -> BloscCodec:
    """Bits rather than bytes are sorted in DN: that is faster and 9 % smaller; floats get no smaller and slower."""
    return BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle" if dtype == "uint16" else "shuffle")


def _is_absent_or_half_made(path: Path) -> bool:
    """Tell whether a store is to be made: there is none, or its making was cut short; a foreign one is left alone."""
    if not (path / "zarr.json").exists():
        return True
    try:
        return _HALF_MADE in _open_group(path, "r").attrs
    except ValueError:  # an array, or not Zarr's: opening it says so
        return False


def divisor(whole: int, at_most: int) -> int:
    """Return the largest divisor of whole up to at_most: Zarr wants whole chunks in a shard."""
    return next(n for n in range(min(at_most, whole), 0, -1) if whole % n == 0)
