"""Files whose blocks do not say what every pixel is, by hand from TIFF 6.0: refused before GDAL makes something up."""

import itertools
import struct
import tracemalloc
import warnings
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile

from infra.archives.tiff import decode, read_strip_tiff
from infra.errors import BadPatchError
from tests.fuzz.memory import filled

WIDTH, HEIGHT, TILE = 40, 24, 16
SIZES = {256: (3, WIDTH), 257: (3, HEIGHT), 258: (3, 16), 262: (3, 1), 277: (3, 1)}
IN_STRIPS = {**SIZES, 278: (3, TILE), 280: (3, 0)}
"""The last one tells the least value that occurs: nothing that matters, but such a file takes no fast path."""
IN_TILES = {**SIZES, 322: (3, TILE), 323: (3, TILE)}
STRIPS, TILES = (273, 279), (324, 325)
SHORT, LONG, DOUBLE = 3, 4, 12
CODES = {SHORT: "H", LONG: "I", DOUBLE: "d"}
DEFLATE, LZW, JPEG = 8, 5, 7

PIXELS = np.random.default_rng(5).integers(0, 9999, (HEIGHT, WIDTH)).astype("<u2")


def tiff(tags: Mapping[int, tuple[int, int]], compression: int, blocks: Sequence[bytes], **sizes: Any) -> bytes:
    """Return a classic little-endian TIFF of some blocks.

    Args:
        tags: Type and value of those with one value.
        compression: Of the blocks.
        blocks: Compressed.
        sizes: `kind` of the blocks' sizes, LONG if not given, and `told`, how many of them.
    """
    kind, told = sizes.get("kind", LONG), sizes.get("told", len(blocks))
    places, lengths = TILES if 322 in tags else STRIPS
    entries = len(tags) + 2 + (told > 0)
    end = 8 + 2 + 12 * entries + 4
    offsets = [end, *itertools.accumulate((len(block) for block in blocks), initial=end)][1:-1]
    tables: dict[int, tuple[int, tuple[float, ...]]] = {tag: (kind, (value,)) for tag, (kind, value) in tags.items()}
    tables |= {259: (SHORT, (compression,)), places: (LONG, tuple(offsets))}
    if told:
        tables[lengths] = (kind, tuple(len(block) for block in blocks[:told]))
    head, tail, at = b"", b"", end + sum(map(len, blocks))
    for tag, (kind, values) in sorted(tables.items()):
        value = struct.pack(f"<{len(values)}{CODES[kind]}", *values)
        head += struct.pack("<HHI", tag, kind, len(values))
        if len(value) <= 4:
            head += value.ljust(4, b"\0")
        else:
            head += struct.pack("<I", at + len(tail))
            tail += value
    return b"II*\0" + struct.pack("<IH", 8, entries) + head + bytes(4) + b"".join(blocks) + tail


def strips_of(pixels: np.ndarray[Any, Any]) -> list[bytes]:
    return [pixels[top : top + TILE].tobytes() for top in range(0, len(pixels), TILE)]


def tiles_of(pixels: np.ndarray[Any, Any]) -> list[bytes]:
    height, width = pixels.shape
    padded = np.pad(pixels, ((0, -height % TILE), (0, -width % TILE)), constant_values=7)
    corners = itertools.product(range(0, height, TILE), range(0, width, TILE))
    return [padded[top : top + TILE, left : left + TILE].tobytes() for top, left in corners]


CUTS = {"strip": (IN_STRIPS, strips_of(PIXELS)), "tile": (IN_TILES, tiles_of(PIXELS))}


def deflated(blocks: Sequence[bytes]) -> list[bytes]:
    return [zlib.compress(block) for block in blocks]


def too_long(blocks: Sequence[bytes]) -> list[bytes]:
    """Deflate; the first block ends in one zero and a repetition of it that goes on behind the block."""
    return deflated([blocks[0][:-6] + bytes(300), *blocks[1:]])


def by_rasterio(data: bytes) -> np.ndarray[Any, Any]:
    with MemoryFile(data) as memory, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        with memory.open(driver="GTiff") as dataset:
            return np.asarray(dataset.read(1))


def refused(data: bytes, reason: str, match: str) -> None:
    assert read_strip_tiff(data, "a.tif") is None, "GDAL is not asked"
    with pytest.raises(BadPatchError, match=match) as caught:
        decode(data, "folder/a.tif")
    assert (caught.value.reason, caught.value.path) == (reason, "folder/a.tif")


@pytest.mark.parametrize("name", CUTS)
def test_sound_blocks_are_read_as_they_were_written(name: str) -> None:
    tags, blocks = CUTS[name]
    reversing = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
    in_reverse = [block.translate(reversing) for block in deflated(blocks)]
    for data in (
        tiff(tags, DEFLATE, deflated(blocks)),
        tiff({**tags, 266: (SHORT, 2)}, DEFLATE, in_reverse),
        tiff(tags, 1, blocks),
    ):
        assert read_strip_tiff(data, "a.tif") is None, "GDAL is not asked"
        np.testing.assert_array_equal(decode(data, "a.tif").pixels, PIXELS)
        np.testing.assert_array_equal(by_rasterio(data), PIXELS)


@pytest.mark.parametrize("name", CUTS)
def test_a_block_that_inflates_to_more_than_itself_is_corrupt(name: str) -> None:
    """Of its last repetition, libdeflate writes nothing where it does not fit: those pixels are what memory held."""
    tags, blocks = CUTS[name]
    whole = TILE * (WIDTH if name == "strip" else TILE) * 2
    refused(
        tiff(tags, DEFLATE, too_long(blocks)),
        "corrupt",
        f"{name} 0 inflates to more than the {whole} bytes of its rows",
    )


def test_gdal_would_read_what_memory_held() -> None:
    data = tiff(IN_STRIPS, DEFLATE, too_long(strips_of(PIXELS)))
    readings = []
    for value in (0x5A, 0xA5):
        with filled(value):
            readings.append(by_rasterio(data))
    rows, columns = (readings[0] != readings[1]).nonzero()
    assert (rows.tolist(), columns.tolist()) == ([TILE - 1] * 3, [WIDTH - 3, WIDTH - 2, WIDTH - 1])


@pytest.mark.parametrize("name", CUTS)
def test_a_block_that_inflates_to_less_than_its_rows_is_truncated(name: str) -> None:
    tags, blocks = CUTS[name]
    size = len(blocks[1])
    shorter = deflated([blocks[0], blocks[1][:-1], *blocks[2:]])
    refused(tiff(tags, DEFLATE, shorter), "truncated", f"{name} 1 inflates to {size - 1} bytes, its rows need {size}")
    cut = [*deflated(blocks[:-1]), zlib.compress(blocks[-1])[:-1]]
    refused(tiff(tags, DEFLATE, cut), "truncated", f"{name} {len(blocks) - 1} ends before its checksum")
    broken = [b"\0" + zlib.compress(blocks[0])[1:], *deflated(blocks[1:])]
    refused(tiff(tags, DEFLATE, broken), "corrupt", f"{name} 0 cannot be inflated: ")


def test_the_lowest_tiles_need_no_rows_below_the_image() -> None:
    tags, blocks = CUTS["tile"]
    row = TILE * 2
    cut = deflated([*blocks[:3], *(block[: (HEIGHT - TILE) * row] for block in blocks[3:])])
    np.testing.assert_array_equal(decode(tiff(tags, DEFLATE, cut), "a.tif").pixels, PIXELS)
    np.testing.assert_array_equal(by_rasterio(tiff(tags, DEFLATE, cut)), PIXELS)
    shorter = [*cut[:-1], zlib.compress(blocks[-1][: (HEIGHT - TILE) * row - 2])]
    refused(tiff(tags, DEFLATE, shorter), "truncated", "tile 5 inflates to 254 bytes, its rows need 256")


@pytest.mark.parametrize("sizes", [{"kind": DOUBLE}, {"told": 0}, {"told": 1}])
@pytest.mark.parametrize("compression", [DEFLATE, LZW])
@pytest.mark.parametrize("name", CUTS)
def test_sizes_that_are_not_told_are_not_guessed(name: str, compression: int, sizes: dict[str, int]) -> None:
    tags, blocks = CUTS[name]
    told = sizes.get("told", 0)
    refused(
        tiff(tags, compression, deflated(blocks), **sizes),
        "corrupt",
        f"of its {len(blocks)} compressed blocks it tells the places of {len(blocks)} and sizes of {told}",
    )


@pytest.mark.parametrize("tag", [256, 257, 258, 322, 323])
def test_compressed_blocks_of_no_known_size_are_corrupt(tag: int) -> None:
    tags, blocks = CUTS["tile"]
    for value in ((SHORT, 0), (DOUBLE, 16)):
        refused(tiff({**tags, tag: value}, DEFLATE, deflated(blocks)), "corrupt", "do not say how its compressed pix")


def test_a_missing_block_is_left_to_gdal() -> None:
    tags, blocks = CUTS["tile"]
    data = tiff(tags, DEFLATE, [*deflated(blocks[:-1]), b""])
    pixels = decode(data, "a.tif").pixels
    np.testing.assert_array_equal(pixels, by_rasterio(data))
    assert not pixels[TILE:, 2 * TILE :].any()
    np.testing.assert_array_equal(pixels[:TILE], PIXELS[:TILE])


@pytest.mark.parametrize("interleave", ["pixel", "band"])
@pytest.mark.parametrize("tiled", [False, True])
def test_a_jpeg_that_is_smaller_than_its_block_is_corrupt(tmp_path: Path, interleave: str, *, tiled: bool) -> None:
    """libtiff warns and writes what there is. Here the blocks stay, and the image is said to be wider or taller."""
    path = tmp_path / "a.tif"
    pixels = np.random.default_rng(2).integers(0, 255, (3, 32, 32)).astype(np.uint8)
    options = {"tiled": True, "blockxsize": 16, "blockysize": 16} if tiled else {"blockysize": 16}
    with (
        warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
        rasterio.open(
            *(path, "w"), driver="GTiff", height=32, width=32, count=3, dtype="uint8", compress="jpeg",
            interleave=interleave, **options
        ) as dataset,
    ):  # fmt: skip
        dataset.write(pixels)
    data = path.read_bytes()
    np.testing.assert_array_equal(decode(data, "a.tif").pixels, by_rasterio(data))
    name, shape = ("tile", "24 x 16") if tiled else ("strip", "16 x 40")
    tag, value = (323, 24) if tiled else (256, 40)
    found = "16 x 16" if tiled else "16 x 32"
    words = f"{name} 0 is a JPEG of {found} pixels, the block has {shape}"
    refused(with_tag(data, tag, value), "corrupt", words)
    frame = data.index(b"\xff\xc0")
    for damaged in (data[:frame] + b"\xff\xda" + data[frame + 2 :], data[:frame] + b"\0\0" + data[frame + 2 :]):
        refused(damaged, "corrupt", f"{name} 0 is no JPEG with a size")


def with_tag(data: bytes, tag: int, value: int) -> bytes:
    """Return a classic little-endian TIFF with the short or long value of one tag replaced."""
    (start,) = struct.unpack_from("<I", data, 4)
    (number,) = struct.unpack_from("<H", data, start)
    changed = bytearray(data)
    for at in range(start + 2, start + 2 + 12 * number, 12):
        if struct.unpack_from("<H", data, at) == (tag,):
            struct.pack_into("<HII", changed, at + 2, LONG, 1, value)
    assert changed != data
    return bytes(changed)


@pytest.mark.parametrize(
    "options",
    [
        {"tile": (32, 48)},
        {"predictor": 2, "rowsperstrip": 11},
        {"predictor": 2, "tile": (16, 16), "bigtiff": True, "byteorder": ">"},
        {"planarconfig": "separate", "shape": (3, 77, 90)},
        {"planarconfig": "separate", "shape": (3, 77, 90), "tile": (32, 32)},
        {"planarconfig": "contig", "shape": (77, 90, 3), "tile": (32, 32)},
        {"planarconfig": "contig", "shape": (77, 90, 5), "extrasamples": [0] * 4},
        {"dtype": "float64"},
        {"dtype": "float32", "tile": (80, 96)},
    ],
)
def test_what_tifffile_deflates_is_read(tmp_path: Path, options: dict[str, Any]) -> None:
    shape = options.pop("shape", (77, 90))
    pixels = np.random.default_rng(1).integers(0, 255, shape).astype(options.pop("dtype", "uint16"))
    photometric = "rgb" if shape.count(3) else "minisblack"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, compression="zlib", photometric=photometric, metadata=None, **options)
    expected = pixels if pixels.ndim == 2 else pixels[0] if shape[0] == 3 else pixels[..., 0]
    np.testing.assert_array_equal(decode(path.read_bytes(), "a.tif").pixels, expected)


def test_a_tile_that_inflates_to_gigabytes_costs_no_memory() -> None:
    _, blocks = CUTS["tile"]
    bombs = deflated([bytes(100_000_000), *blocks[1:]])
    tracemalloc.start()
    try:
        refused(tiff(IN_TILES, DEFLATE, bombs), "corrupt", "tile 0 inflates to more than the 512 bytes")
        vast = {**IN_TILES, 322: (LONG, 2**20), 323: (LONG, 2**20)}
        refused(tiff(vast, DEFLATE, bombs), "wrong_size", f"its header promises 1 blocks of {2**41} B")
        many = {**IN_TILES, 256: (LONG, 65536), 257: (LONG, 1), 323: (LONG, 65536), 322: (LONG, 16)}
        refused(tiff(many, DEFLATE, bombs), "wrong_size", f"its header promises 4096 blocks of {2**21} B")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
