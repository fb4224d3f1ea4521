"""The oracle is zarr-python: it reads what is written here, and writes the same bytes itself."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import zarr
from zarr.codecs import BloscCodec, BytesCodec, Crc32cCodec, GzipCodec, ShardingCodec

from infra.zarr_shard import chunk_codec, write_shard

SHAPE = (12, 3, 5)
CHUNK = 4


def shard(dtype: str) -> np.ndarray[Any, Any]:
    """Return noise, a chunk of zeros in its middle."""
    values = np.random.default_rng(0).integers(0, 2 if dtype == "bool" else 4000, SHAPE).astype(dtype)
    values[CHUNK : 2 * CHUNK] = 0
    if dtype == "float32":
        values[2 * CHUNK :] = -0.0
    return values


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
    (tmp_path / "ours" / key).parent.mkdir(parents=True)
    with (tmp_path / "ours" / key).open("wb") as file:
        write_shard(file, values, CHUNK, chunk_codec(ours))
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
    (tmp_path / "a/c/0/0").mkdir(parents=True)
    with (tmp_path / "a/c/0/0/0").open("wb") as file:
        write_shard(file, values, CHUNK, chunk_codec(array))
    np.testing.assert_array_equal(array[:], values)


def test_a_shard_that_is_all_zero_is_written_and_damage_to_its_index_is_seen(tmp_path: Path) -> None:
    array = make(tmp_path / "a", "uint16")
    file = tmp_path / "a/c/0/0/0"
    file.parent.mkdir(parents=True)
    with file.open("wb") as opened:
        write_shard(opened, np.zeros(SHAPE, np.uint16), CHUNK, chunk_codec(array))
    assert file.stat().st_size > 0
    assert not array[:].any()
    data = bytearray(file.read_bytes())
    data[-20] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="checksum"):
        array[:]


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
