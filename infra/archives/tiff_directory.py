"""The first directory (IFD) of a TIFF, classic or BigTIFF: its entries, located and inside the file.

Source: TIFF 6.0 (Adobe 1992), section 2; BigTIFF (Adobe, AWare) has wider counts and offsets.
"""

import struct
from dataclasses import dataclass

from infra.errors import BadPatchError

_MAX_ENTRIES = 512  # an IFD of this archive has 16
_TYPE_BYTES = {1: 1, 2: 1, 3: 2, 4: 4, 5: 8, 6: 1, 7: 1, 8: 2, 9: 4, 10: 8, 11: 4, 12: 8, 13: 4, 16: 8, 17: 8, 18: 8}
_TYPE_CODES = {1: "B", 3: "H", 4: "I", 13: "I", 16: "Q", 18: "Q"}


@dataclass(frozen=True, slots=True)
class Entry:
    """One IFD entry, its value located and inside the file."""

    kind: int
    count: int
    start: int
    """Where its value starts in the file."""
    stop: int


def truncated(shown: str, detail: str) -> BadPatchError:
    """Return the error of a file that ends too early."""
    return BadPatchError(shown, "truncated", f"{detail}; copy or unpack it again")


def read_directory(data: bytes, shown: str) -> tuple[str, dict[int, Entry], bool]:
    """Return byte order, entries of the first IFD and whether it is plain: classic, little-endian, tags in order.

    Args:
        data: The whole file.
        shown: The path for messages.

    Returns:
        "<" or ">", the entries by tag (of two of one tag the first, as in libtiff), and whether it is plain.

    Raises:
        BadPatchError: truncated or not_a_tiff.
    """
    if not data:
        raise truncated(shown, "the file is empty")
    order = {b"II": "<", b"MM": ">"}.get(data[:2])
    if order is None and not (len(data) == 1 and data in b"IM"):
        raise BadPatchError(shown, "not_a_tiff", f"it starts with {data[:8]!r}, a TIFF with b'II' or b'MM'")
    if order is None or len(data) < 8:
        raise truncated(shown, f"{len(data)} bytes are less than a TIFF header")
    (magic,) = struct.unpack_from(order + "H", data, 2)
    if magic not in {42, 43}:
        raise BadPatchError(shown, "not_a_tiff", f"its version is {magic}, a TIFF has 42 or, if large, 43")
    big = magic == 43
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (number,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    except (struct.error, OverflowError):
        raise truncated(shown, f"its directory lies beyond the end of its {len(data)} bytes") from None
    if not 0 < number <= _MAX_ENTRIES:
        raise BadPatchError(shown, "not_a_tiff", f"its directory claims {number} entries")
    start += 8 if big else 2
    width, inline = (20, 8) if big else (12, 4)
    if start + number * width > len(data):
        raise truncated(shown, f"its directory of {number} entries does not fit into {len(data)} bytes")
    entries: dict[int, Entry] = {}
    plain = order == "<" and not big
    last = 0
    for at in range(start, start + number * width, width):
        tag, kind, count = struct.unpack_from(order + ("HHQ" if big else "HHI"), data, at)
        plain = plain and tag > last and kind in _TYPE_BYTES
        last = tag
        size = _TYPE_BYTES.get(kind, 1) * count
        value = at + width - inline
        if size > inline:
            (value,) = struct.unpack_from(order + ("Q" if big else "I"), data, value)
            if value + size > len(data):
                raise truncated(shown, f"tag {tag} needs bytes {value} to {value + size}, the file has {len(data)}")
        entries.setdefault(tag, Entry(kind, count, value, value + size))
    return order, entries, plain


def integers(data: bytes, entry: Entry | None, order: str = "<", most: int | None = None) -> tuple[int, ...]:
    """Return the values, at most so many, of an entry of an unsigned type; empty for none or another type."""
    if entry is None or entry.kind not in _TYPE_CODES:
        return ()
    count = entry.count if most is None else min(entry.count, most)
    return struct.unpack_from(f"{order}{count}{_TYPE_CODES[entry.kind]}", data, entry.start)
