"""Inner chunks put together from rows that were compressed one by one, as they came, whatever their order.

A Blosc frame is a header, the offsets of its blocks, and the blocks, each compressed by itself. So the frames of single
rows, one block each, become the frame of a chunk without being compressed again: the header counts more bytes, and the
blocks follow each other. Whoever reads the store sees an ordinary frame.

Source: c-blosc 1.21, README_CHUNK_FORMAT.rst: bytes 2 flags, 4 to 7 bytes uncompressed, 8 to 11 bytes of a block, 12 to
15 bytes of the frame, all integers little-endian; then the offset of each block as int32.
"""

import struct
from dataclasses import dataclass
from typing import Any

import numpy as np
from numcodecs import Blosc
from numpy.typing import NDArray

_SIZES = struct.Struct("<3i")
_SIZES_AT = 4
_HEADER = _SIZES_AT + _SIZES.size
_FIRST_BLOCK = _HEADER + 4
_FLAGS_AT = 2
_STORED = 0x02
"""Flag of a frame whose bytes stand there as they were, since they get no smaller: it has no blocks."""


@dataclass(frozen=True, slots=True)
class PackedRow:
    """One patch's row of an array, compressed."""

    frame: bytes | memoryview


class RowCodec:
    """Compresses rows of one array, and joins them to its inner chunks."""

    def __init__(self, codec: Blosc, shape: tuple[int, ...], dtype: np.dtype[Any]) -> None:
        """Prepare.

        Args:
            codec: What compresses the array's chunks.
            shape: Of a row.
            dtype: Of the array.
        """
        self.shape = shape
        self._dtype = dtype.newbyteorder("<")
        self._codec = codec
        self._bytes = int(np.prod(shape)) * dtype.itemsize
        self._row = Blosc(codec.cname, codec.clevel, codec.shuffle, self._bytes, dtype.itemsize)
        self._zeros = self.pack(np.zeros(shape, dtype)).frame  # a row without Sentinel-1 or map, again and again
        self._nothing: dict[int, list[bytes | memoryview]] = {}  # chunks of so many of them
        _, block, _ = _SIZES.unpack_from(self._zeros, _SIZES_AT)
        if block != self._bytes:  # a large image has several: it is kept as it is, and compressed with the others
            self._row = Blosc(codec.cname, 0, codec.shuffle, 0, dtype.itemsize)
            self._zeros = self.pack(np.zeros(shape, dtype)).frame

    def pack(self, values: NDArray[np.generic]) -> PackedRow:
        """Compress one row, of the array's shape and dtype."""
        assert values.shape == self.shape
        frame: bytes = self._row.encode(np.ascontiguousarray(values, self._dtype))
        return PackedRow(frame)

    def join(self, rows: list[PackedRow | None]) -> list[bytes | memoryview]:
        """Return the frame of an inner chunk, in pieces.

        Args:
            rows: Its rows, of which those that are None are zero; the list is empty afterwards.
        """
        if rows.count(None) == len(rows):
            nothing = self._nothing.get(len(rows))
            if nothing is None:
                nothing = self._nothing[len(rows)] = self._joined([self._zeros] * len(rows))
            rows.clear()
            return nothing
        frames = [self._zeros if row is None else row.frame for row in rows]
        rows.clear()
        return self._joined(frames)

    def _joined(self, frames: list[bytes | memoryview]) -> list[bytes | memoryview]:
        if any(frame[_FLAGS_AT] & _STORED for frame in frames):
            return [self._compressed(frames)]
        sizes = [len(frame) - _FIRST_BLOCK for frame in frames]
        starts = np.full(len(frames), _HEADER + 4 * len(frames), "<i4")
        starts[1:] += np.cumsum(sizes[:-1], dtype="<i4")
        whole = _SIZES.pack(self._bytes * len(frames), self._bytes, int(starts[-1]) + sizes[-1])
        return [bytes(frames[0][:_SIZES_AT]) + whole + starts.tobytes(), *(frame[_FIRST_BLOCK:] for frame in frames)]

    def _compressed(self, frames: list[bytes | memoryview]) -> bytes:
        """Return the frame of rows of which some are not compressed: all are, together."""
        pixels = np.empty((len(frames), *self.shape), self._dtype)
        for row in range(len(frames)):  # each is let go of as it is copied: images may be large
            self._row.decode(frames.pop(0), out=pixels[row])
        frame: bytes = self._codec.encode(pixels)
        return frame
