"""Zarr shards written chunk by chunk: zarr-python's files without its second copy of every shard.

zarr-python starts a task and a thread for each inner chunk, joins what they return, and writes that; here a chunk goes
to the file as soon as its rows are there, out of the processor's cache. The file is the same, byte for byte.

Source: Zarr v3 sharding_indexed codec 1.0, index at the end: (offset, length) of each chunk as uint64, then CRC-32C.
"""

from collections.abc import Sequence
from typing import Any, BinaryIO

import numpy as np
import zarr
from numcodecs import Blosc
from numcodecs.checksum32 import CRC32C
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec

from infra.errors import MisalignedWriteError

_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")


def chunk_codec(array: zarr.Array[Any]) -> Blosc | None:
    """Return what compresses the inner chunks of an array, or None where `ShardFile` does not know its format."""
    compressors, codecs = array.compressors, getattr(array.metadata, "codecs", ())
    if array.shards is None or len(compressors) != 1 or not isinstance(blosc := compressors[0], BloscCodec):
        return None
    endian = BytesCodec(endian="little" if array.dtype.itemsize > 1 else None)
    known = ShardingCodec(chunk_shape=array.chunks, codecs=(endian, blosc))
    if [codec.to_dict() for codec in codecs] != [known.to_dict()] or array.chunks[1:] != array.shape[1:]:
        return None
    return Blosc(blosc.cname, blosc.clevel, _SHUFFLES.index(blosc.shuffle), blosc.blocksize, blosc.typesize)


class ShardFile:
    """One Zarr shard that is written as its rows come."""

    def __init__(self, file: BinaryIO, chunk: int, codec: Blosc) -> None:
        """Begin a shard.

        Args:
            file: Where it is written, from its beginning.
            chunk: Patches in an inner chunk.
            codec: What `chunk_codec` returned.
        """
        self._file, self._chunk, self._codec = file, chunk, codec
        self._pending: list[NDArray[np.generic]] = []  # rows of a chunk that is not full yet
        self._lengths: list[int] = []
        self._zeros: bytes | None = None  # what a chunk without Sentinel-1 or map becomes, again and again

    def append(self, values: NDArray[np.generic]) -> None:
        """Write the next rows, (patches, …); those that fill no chunk yet are kept, and copied."""
        if self._pending or len(values) % self._chunk:
            self._pending.append(values.copy())
            if sum(map(len, self._pending)) < self._chunk:
                return
            values, self._pending = np.concatenate(self._pending), []
            if rest := len(values) % self._chunk:
                self._pending = [values[-rest:]]
                values = values[:-rest]
        little = values.dtype.newbyteorder("<")
        for first in range(0, len(values), self._chunk):
            self._write(np.ascontiguousarray(values[first : first + self._chunk], little))

    def _write(self, pixels: NDArray[np.generic]) -> None:
        if pixels.view(np.uint8).max():  # bytes: -0.0 is not 0, and any() is slower
            encoded = self._codec.encode(pixels)
        else:
            encoded = self._zeros = self._zeros or self._codec.encode(pixels)
        self.append_chunk([encoded])

    def append_chunk(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Write the next inner chunk, compressed, from pieces; rows that fill none must not wait."""
        self._file.writelines(pieces)
        self._lengths.append(sum(map(len, pieces)))

    def finish(self) -> int:
        """Write the index, and return the rows of the shard.

        Raises:
            MisalignedWriteError: The last chunk is not full.
        """
        if self._pending:
            raise MisalignedWriteError(f"{sum(map(len, self._pending))} rows are left, a chunk has {self._chunk}")
        lengths = np.array(self._lengths, np.int64)
        offsets = np.cumsum(lengths) - lengths
        self._file.write(CRC32C(location="end").encode(np.stack([offsets, lengths], axis=1).astype("<u8")))
        return len(lengths) * self._chunk
