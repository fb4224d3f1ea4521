"""Zarr shards written chunk by chunk: zarr-python's files without its second copy of every shard.

zarr-python starts a task and a thread for each inner chunk, joins what they return, and writes that; here a chunk goes
to the file as soon as it is encoded. The file is the same, byte for byte, for two thirds of the processor time.

Source: Zarr v3 sharding_indexed codec 1.0, index at the end: (offset, length) of each chunk as uint64, then CRC-32C.
"""

from typing import Any, BinaryIO

import numpy as np
import zarr
from numcodecs import Blosc
from numcodecs.checksum32 import CRC32C
from numpy.typing import NDArray
from zarr.codecs import BloscCodec, BytesCodec, ShardingCodec

_SHUFFLES = ("noshuffle", "shuffle", "bitshuffle")


def chunk_codec(array: zarr.Array[Any]) -> Blosc | None:
    """Return what compresses the inner chunks of an array, or None where `write_shard` does not know its format."""
    compressors, codecs = array.compressors, getattr(array.metadata, "codecs", ())
    if array.shards is None or len(compressors) != 1 or not isinstance(blosc := compressors[0], BloscCodec):
        return None
    endian = BytesCodec(endian="little" if array.dtype.itemsize > 1 else None)
    known = ShardingCodec(chunk_shape=array.chunks, codecs=(endian, blosc))
    if [codec.to_dict() for codec in codecs] != [known.to_dict()] or array.chunks[1:] != array.shape[1:]:
        return None
    return Blosc(blosc.cname, blosc.clevel, _SHUFFLES.index(blosc.shuffle), blosc.blocksize, blosc.typesize)


def write_shard(file: BinaryIO, values: NDArray[np.generic], chunk: int, codec: Blosc) -> None:
    """Write one shard to a file.

    Args:
        file: Where it is written, from its beginning.
        values: (patches, …) of the whole shard.
        chunk: Patches in an inner chunk, a divisor of `patches`.
        codec: What `chunk_codec` returned.
    """
    little = values.dtype.newbyteorder("<")
    lengths = []
    zeros: bytes | None = None  # what a chunk without Sentinel-1 or map becomes, again and again
    for first in range(0, len(values), chunk):
        pixels = np.ascontiguousarray(values[first : first + chunk], little)
        if pixels.view(np.uint8).max():  # bytes: -0.0 is not 0, and any() is slower
            encoded = codec.encode(pixels)
        else:
            encoded = zeros = zeros or codec.encode(pixels)
        file.write(encoded)
        lengths.append(len(encoded))
    offsets = np.cumsum(lengths) - lengths
    file.write(CRC32C(location="end").encode(np.stack([offsets, lengths], axis=1).astype("<u8")))
