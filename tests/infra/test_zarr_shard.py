"""The oracle is zarr-python: it reads what is written here, and writes the same bytes itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec

from infra.errors import MisalignedWriteError
from infra.zarr_shard import ShardFile, chunk_codec

SHAPE = (12, 3, 5)
CHUNK = 4


def shard(dtype: str) -> np.ndarray[Any, Any]:
    """Return noise, a chunk of zeros in its middle."""
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 4000, SHAPE).astype(dtype)
    values[CHUNK : 2 * CHUNK] = 0
    if dtype == "float32":
        values[2 * CHUNK :] = -0.0
    return values


def write(path: Path, array: Any, *lots: np.ndarray[Any, Any]) -> int:
    """Write a shard and return the rows it is said to have."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        new = ShardFile(file, CHUNK, chunk_codec(array))
        for values in lots:
            new.append(values)
        return new.finish()


def make(path: Path, dtype: str, shuffle: Any = "bitshuffle") -> Any:
    return zarr.create_array(
        path,
        shape=SHAPE,
        shards=SHAPE,
        chunks=(CHUNK, *SHAPE[1:]),
        dtype=dtype,
        compressors=BloscCodec(cname="lz4", clevel=5, shuffle=shuffle),
        config={"write_empty_chunks": True},
    )


@pytest.mark.parametrize("shuffle", ["noshuffle", "shuffle", "bitshuffle"])
@pytest.mark.parametrize("dtype", ["uint16", "float32", "bool"])
def test_the_file_has_the_chunks_that_zarr_writes(tmp_path: Path, dtype: str, shuffle: str) -> None:
    theirs, ours = make(tmp_path / "theirs", dtype, shuffle), make(tmp_path / "ours", dtype, shuffle)
    values = shard(dtype)
    theirs[:] = values
    key = "c/0/0/0"
    assert write(tmp_path / "ours" / key, ours, values) == len(values)
    assert (tmp_path / "ours" / key).read_bytes() == (tmp_path / "theirs" / key).read_bytes()
    np.testing.assert_array_equal(ours[:], values)


@pytest.mark.parametrize(
    "view",
    [lambda v: v[::-1], np.asfortranarray, lambda v: v.astype(">u2")],
    ids=["-1", "F", "big-endian"],
)
def test_memory_order_does_not_matter(
    tmp_path: Path, view: Callable[[np.ndarray[Any, Any]], np.ndarray[Any, Any]]
) -> None:
    array = make(tmp_path / "a", "uint16")
    values = view(shard("uint16"))
    write(tmp_path / "a/c/0/0/0", array, values)
    np.testing.assert_array_equal(array[:], values)


def test_a_shard_that_is_all_zero_is_written_and_damage_to_its_index_is_seen(tmp_path: Path) -> None:
    array = make(tmp_path / "a", "uint16")
    file = tmp_path / "a/c/0/0/0"
    write(file, array, np.zeros(SHAPE, np.uint16))
    assert file.stat().st_size > 0
    assert not array[:].any()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        array[:]


@pytest.mark.parametrize("lot", [1, 3, 4, 5, 7, 8, 12])
def test_it_does_not_matter_how_rows_come(tmp_path: Path, lot: int) -> None:
    array, values = make(tmp_path / "a", "uint16"), shard("uint16")
    mine = np.empty_like(values[:lot])  # used again for each lot, as the reader of an archive does
    path = tmp_path / "a/c/0/0/0"
    path.parent.mkdir(parents=True)
    with path.open("wb") as file:
        new = ShardFile(file, CHUNK, chunk_codec(array))
        for first in range(0, len(values), lot):
            rows = values[first : first + lot]
            mine[: len(rows)] = rows
            new.append(mine[: len(rows)])
        new.finish()
    np.testing.assert_array_equal(array[:], values)


def test_a_chunk_that_is_not_full_is_refused(tmp_path: Path) -> None:
    with pytest.raises(MisalignedWriteError, match="1 rows are left, a chunk has 4"):
        write(tmp_path / "shard", make(tmp_path / "a", "uint16"), shard("uint16")[:5])


def sharding(**changes: Any) -> ShardingCodec:
    inner = {"chunk_shape": (CHUNK, *SHAPE[1:]), "codecs": (BytesCodec(), BloscCodec(shuffle="shuffle"))}
    return ShardingCodec(**(inner | changes))


@pytest.mark.parametrize(
    "codec",
    [
        sharding(index_location="start"),
        sharding(index_codecs=(BytesCodec(),)),
        sharding(codecs=(BytesCodec(), GzipCodec())),
        sharding(codecs=(BytesCodec(), BloscCodec(shuffle="shuffle"), Crc32cCodec())),
        sharding(codecs=(BytesCodec(endian="big"), BloscCodec(shuffle="shuffle"))),
        sharding(chunk_shape=(CHUNK, 1, SHAPE[2])),
    ],
    ids=["index first", "index without checksum", "gzip", "checksum", "big-endian", "chunks of part patches"],
)
def test_other_formats_are_left_to_zarr(tmp_path: Path, codec: ShardingCodec) -> None:
    array = zarr.create(SHAPE, chunks=SHAPE, dtype="uint16", codecs=[codec], store=tmp_path / "a")
    assert chunk_codec(array) is None


def test_an_array_without_shards_is_left_to_zarr(tmp_path: Path) -> None:
    array = zarr.create_array(
        tmp_path / "a", shape=SHAPE, chunks=SHAPE, dtype="uint16", compressors=BloscCodec(cname="lz4")
    )
    assert chunk_codec(array) is None
