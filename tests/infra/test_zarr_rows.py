"""The oracles are c-blosc, which reads what is joined here, and zarr-python, which reads it out of a store."""

import tracemalloc
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from numcodecs import Blosc
from numpy.typing import NDArray
from zarr.codecs import BloscCodec

from infra.zarr_rows import PackedRow, RowCodec
from infra.zarr_shard import ShardFile, chunk_codec

SHUFFLES = (Blosc.NOSHUFFLE, Blosc.SHUFFLE, Blosc.BITSHUFFLE)
SHAPES = {
    "10 m": ((4, 120, 120), "uint16"),
    "60 m": ((2, 20, 20), "uint16"),
    "Sentinel-1": ((2, 120, 120), "float32"),
    "too small to compress": ((1, 3, 3), "uint8"),
    "odd": ((3, 7, 5), "uint16"),
    "larger than a block of Blosc": ((3, 480, 480), "uint8"),
}


def rows_of(shape: tuple[int, ...], dtype: str, high: int) -> NDArray[Any]:
    """Return some rows; of few values, they compress, of all, they do not."""
    return np.random.default_rng(0).integers(0, high, (5, *shape)).astype(dtype)


@pytest.mark.parametrize("high", [4, 256], ids=["few values", "noise"])
@pytest.mark.parametrize("shuffle", SHUFFLES)
@pytest.mark.parametrize("what", SHAPES)
def test_a_chunk_is_its_rows(what: str, shuffle: int, high: int) -> None:
    shape, dtype = SHAPES[what]
    values = rows_of(shape, dtype, high)
    codec = RowCodec(Blosc("lz4", 5, shuffle), shape, values.dtype)
    rows: list[PackedRow | None] = [codec.pack(row) for row in values]
    rows[2], values[2] = None, 0
    frame = b"".join(codec.join(rows))
    found = np.frombuffer(Blosc().decode(frame), dtype).reshape(values.shape)
    np.testing.assert_array_equal(found, values)


@pytest.mark.parametrize(
    ("shape", "dtype", "mean", "shuffle"),
    [((4, 120, 120), "uint16", 2000, Blosc.BITSHUFFLE), ((2, 120, 120), "float32", -15, Blosc.SHUFFLE)],
    ids=["DN", "dB"],
)
def test_images_compressed_one_by_one_take_no_more_room(
    shape: tuple[int, ...], dtype: str, mean: float, shuffle: int
) -> None:
    values = np.random.default_rng(0).normal(mean, abs(mean) / 4, (16, *shape)).astype(dtype)
    blosc = Blosc("lz4", 5, shuffle)
    codec = RowCodec(blosc, shape, values.dtype)
    joined = b"".join(codec.join([codec.pack(row) for row in values]))
    assert len(joined) < 1.01 * len(blosc.encode(values))


def test_rows_that_get_no_smaller_beside_those_that_do() -> None:
    noise, smooth = rows_of((2, 20, 20), "uint16", 65536), rows_of((2, 20, 20), "uint16", 4)
    codec = RowCodec(Blosc("lz4", 5, Blosc.NOSHUFFLE), (2, 20, 20), noise.dtype)
    values = np.stack([smooth[0], noise[0], smooth[1]])
    frame = b"".join(codec.join([codec.pack(row) for row in values]))
    np.testing.assert_array_equal(np.frombuffer(Blosc().decode(frame), "uint16").reshape(values.shape), values)


def test_a_frame_is_read_wherever_it_lies() -> None:
    """In a bucket that is mapped into memory, say; and it says what it says, in whatever order bytes were."""
    values = rows_of((2, 20, 20), "uint16", 4)
    codec = RowCodec(Blosc("lz4", 5, Blosc.BITSHUFFLE), (2, 20, 20), values.dtype)
    packed = [codec.pack(row) for row in values]
    mapped: list[PackedRow | None] = [PackedRow(memoryview(b"x" + bytes(row.frame))[1:]) for row in packed]
    assert b"".join(codec.join(mapped)) == b"".join(codec.join([*packed]))
    others = [codec.pack(row) for row in (np.asfortranarray(values[0]), values[1].astype(">u2"), values[2])]
    assert [row.frame for row in others] == [row.frame for row in packed[:3]]


def test_large_images_take_no_more_than_twice_their_room() -> None:
    """As many of them as a chunk has, and what they become; all of noise, which gets no smaller."""
    noise = np.random.default_rng(0).integers(0, 256, (700, 700, 3), np.uint8)
    codec = RowCodec(Blosc("lz4", 5, Blosc.SHUFFLE), noise.shape, noise.dtype)
    rows: list[PackedRow | None] = [codec.pack(noise) for _ in range(16)]
    tracemalloc.start()
    codec.join(rows)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert rows == []
    assert peak < 2.1 * 16 * noise.nbytes


def test_zarr_reads_a_shard_of_joined_rows(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a",
        shape=(8, 2, 20, 20),
        shards=(8, 2, 20, 20),
        chunks=(4, 2, 20, 20),
        dtype="uint16",
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle="bitshuffle"),
    )
    blosc = chunk_codec(array)
    assert blosc is not None
    codec = RowCodec(blosc, (2, 20, 20), array.dtype)
    values = np.random.default_rng(0).integers(0, 4000, (8, 2, 20, 20), np.uint16)
    values[5] = 0
    rows = [codec.pack(row) if row.any() else None for row in values]
    shard = ShardFile(file := BytesIO(), 4, blosc)
    shard.append_chunk(codec.join(rows[:4]))
    shard.append_chunk(codec.join(rows[4:]))
    assert shard.finish() == 8
    place = tmp_path / "a/c/0/0/0/0"
    place.parent.mkdir(parents=True)
    place.write_bytes(file.getvalue())
    np.testing.assert_array_equal(array[:], values)
