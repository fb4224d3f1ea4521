"""Whether the blocks (strips or tiles) of a TIFF say what every pixel of its first band is: asked before GDAL is.

Where a block decodes to something else than itself, GDAL hands out what its memory held, and says nothing:

- of a deflate stream that is longer than its block, libdeflate leaves the last repetition away where it does not fit,
  and libtiff takes the block for decoded;
- of a JPEG that is smaller than its block, libtiff writes what there is;
- sizes of blocks that a file does not tell, libtiff guesses.

Source: TIFF 6.0 (Adobe 1992), sections 3, 14 and 15; Adobe TIFF Technical Notes 2 (JPEG) and 3 (deflate); ITU-T T.81
(JPEG), B.2; libtiff 4.7.1, tif_zip.c, tif_jpeg.c and tif_dirread.c.
"""

import struct
import zlib
from collections.abc import Iterator
from typing import NamedTuple

from infra.archives.tiff_directory import Entry, integers, read_directory, truncated
from infra.errors import BadPatchError

MAX_PIXEL_BYTES = 1 << 30
"""Largest band that is decoded; a header that promises more is `wrong_size`."""

MAX_BLOCK_BYTES = 1 << 28
"""Largest tile or strip that GDAL may be asked to decode; it allocates a whole one, however small the image."""

UNCOMPRESSED = 1
DEFLATE = frozenset({8, 32946})
_JPEG = 7
_MAX_DECODED_BYTES = 4 * MAX_PIXEL_BYTES  # of all blocks; a small image may be cut into tiles that are none
_FRAMES = frozenset({*range(0xC0, 0xD0)} - {0xC4, 0xC8, 0xCC})  # JPEG markers before a frame's size
_REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
_BARE = frozenset({0x01, *range(0xD0, 0xD9)})  # JPEG markers that no length follows


class _Blocks(NamedTuple):
    """How the first band's image is cut."""

    width: int
    """Pixels of a block's row."""
    rows: int
    """Of a whole block."""
    last_rows: int
    """Of the image, within the lowest blocks."""
    per_row: int
    """Blocks beside each other."""
    per_plane: int
    """Blocks of one band, or of all where their values alternate."""
    planes: int
    tiled: bool
    row_bytes: int
    """Of one row of one block, decoded."""


def check_blocks(data: bytes, shown: str) -> None:
    """Raise an error where the file's blocks do not lie in it, or do not say what all pixels of its first band are.

    Args:
        data: The whole file.
        shown: The path for messages.

    Raises:
        BadPatchError: truncated, corrupt, wrong_size or not_a_tiff.
    """
    order, entries, _ = read_directory(data, shown)
    blocks = _cut(data, order, entries)
    compression = _number(data, order, entries.get(259), UNCOMPRESSED)
    tags = (324, 325) if 324 in entries else (273, 279)
    most = None if blocks is None else blocks.per_plane * blocks.planes
    offsets, counts = (integers(data, entries.get(tag), order, most) for tag in tags)
    end = max((offset + count for offset, count in zip(offsets, counts, strict=False) if offset), default=0)
    if end > len(data):
        raise truncated(shown, f"its pixels end at byte {end}, the file has {len(data)}")
    if compression == UNCOMPRESSED:
        return  # libtiff takes as many bytes as a block has pixels, or fails
    if blocks is None or compression < 1:
        raise BadPatchError(shown, "corrupt", "its tags do not say how its compressed pixels are cut into blocks")
    decoded = blocks.row_bytes * blocks.rows
    if decoded > MAX_BLOCK_BYTES or decoded * blocks.per_plane > _MAX_DECODED_BYTES:
        raise BadPatchError(shown, "wrong_size", f"its header promises {blocks.per_plane} blocks of {decoded} B")
    if min(len(offsets), len(counts)) < blocks.per_plane:
        known = f"places of {len(offsets)} and sizes of {len(counts)}"
        raise BadPatchError(
            shown, "corrupt", f"of its {blocks.per_plane} compressed blocks it tells the {known}: the rest is a guess"
        )
    for i, (offset, count) in enumerate(zip(offsets[: blocks.per_plane], counts, strict=False)):
        if count == 0:
            continue  # sparse: GDAL fills it
        block = data[offset : offset + count]
        rows = blocks.last_rows if i + blocks.per_row >= blocks.per_plane else blocks.rows
        name = f"{'tile' if blocks.tiled else 'strip'} {i}"
        if compression in DEFLATE:
            if _number(data, order, entries.get(266), 1) == 2:  # FillOrder: the first bit of a byte is its lowest
                block = block.translate(_REVERSED)
            whole = (blocks.rows if blocks.tiled else rows) * blocks.row_bytes
            inflated(block, name, shown, rows * blocks.row_bytes, whole)
        elif compression == _JPEG:
            _check_frame(block, name, shown, blocks.width, blocks.rows if blocks.tiled else rows)


def inflated(block: bytes | memoryview, name: str, shown: str, least: int, most: int) -> bytes:
    """Return what a deflated block holds.

    Args:
        block: The zlib stream.
        name: The block, for messages.
        shown: The path for messages.
        least: Bytes that its rows need.
        most: Bytes that it may have; no more are inflated.

    Raises:
        BadPatchError: corrupt or truncated.
    """
    inflater = zlib.decompressobj()
    try:
        content = inflater.decompress(block, most)  # never more, whatever the stream holds
        rest = inflater.decompress(inflater.unconsumed_tail, 1)  # nothing, but its checksum is looked at
    except zlib.error as error:
        raise BadPatchError(shown, "corrupt", f"{name} cannot be inflated: {error}") from error
    if len(content) < least:
        raise truncated(shown, f"{name} inflates to {len(content)} bytes, its rows need {least}")
    if rest:
        raise BadPatchError(shown, "corrupt", f"{name} inflates to more than the {most} bytes of its rows")
    if not inflater.eof:
        raise truncated(shown, f"{name} ends before its checksum")
    return content


def _cut(data: bytes, order: str, entries: dict[int, Entry]) -> _Blocks | None:
    """Return how the image is cut into blocks; None where its tags do not say it."""

    def one(tag: int, default: int) -> int:
        return _number(data, order, entries.get(tag), default)

    width, height, samples, bits = one(256, -1), one(257, -1), one(277, 1), one(258, 1)
    tiled = 322 in entries or 324 in entries
    columns, rows = (one(322, -1), one(323, -1)) if tiled else (width, min(one(278, height), height))
    if min(width, height, samples, bits, columns, rows) < 1:
        return None
    per_row, down = -(-width // columns), -(-height // rows)
    planes = samples if one(284, 1) == 2 else 1
    return _Blocks(
        width=columns,
        rows=rows,
        last_rows=height - (down - 1) * rows,
        per_row=per_row,
        per_plane=per_row * down,
        planes=planes,
        tiled=tiled,
        row_bytes=-(-columns * bits * samples // planes // 8),
    )


def _number(data: bytes, order: str, entry: Entry | None, default: int) -> int:
    """Return the value of an entry that has one for each band at most, or its default; -1 for what is no number."""
    if entry is None:
        return default
    values = integers(data, entry, order, 1)
    return values[0] if values else -1


def _check_frame(block: bytes, name: str, shown: str, width: int, rows: int) -> None:
    """Raise `corrupt` where a JPEG is smaller than the block that it stands for."""
    for marker, segment in _segments(block):
        if marker in _FRAMES and len(segment) >= 5:
            found_rows, found_width = struct.unpack_from(">HH", segment, 1)
            if found_rows < rows or found_width < width:
                found = f"is a JPEG of {found_rows} x {found_width} pixels, the block has {rows} x {width}"
                raise BadPatchError(shown, "corrupt", f"{name} {found}")
            return
    raise BadPatchError(shown, "corrupt", f"{name} is no JPEG with a size")


def _segments(block: bytes) -> Iterator[tuple[int, bytes]]:
    """Yield marker and content of a JPEG's segments, up to its first scan."""
    at = 0
    while at + 2 <= len(block):
        if block[at] != 0xFF:
            return
        marker = block[at + 1]
        at += 1 if marker == 0xFF else 2  # any number of fill bytes may stand before a marker
        if marker == 0xFF or marker == 0xD8 or marker in _BARE:
            continue
        if marker in {0xD9, 0xDA} or at + 2 > len(block):
            return
        (length,) = struct.unpack_from(">H", block, at)
        yield marker, block[at + 2 : at + length]
        at += max(2, length)
