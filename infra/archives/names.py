"""What the names of Sentinel products and patches tell, and which names may be shown."""

import re
import unicodedata
from datetime import date

_DAY = re.compile(r"(?:^|_)(\d{4})(\d{2})(\d{2})T\d{1,6}(?=_|\.|$)", re.ASCII)
_TILE = re.compile(r"(?:^|_)T(\d{2}[A-Z]{3})(?=_|\.|$)", re.ASCII)
_BASELINE = re.compile(r"(?:^|_)N(\d{4})(?=_|\.|$)", re.ASCII)
_JOINERS = "\u200c\u200d"  # which words of Persian or Hindi, and many emoji, are written with


def product_of(patch_id: str) -> str:
    """Return the product folder of a v2 patch: its id without row and column."""
    return patch_id.rsplit("_", 2)[0]


def s1_product_of(s1_name: str) -> str:
    """Return the product folder of a v2 Sentinel-1 patch: the first five parts of its name."""
    return "_".join(s1_name.split("_", 5)[:5])


def day_of(name: str) -> str | None:
    """Return the day, YYYY-MM-DD, of the first time stamp in a name (some of v1's have five digits for the hour)."""
    match = _DAY.search(name)
    if match is None:
        return None
    try:
        return date(int(match[1]), int(match[2]), int(match[3])).isoformat()
    except ValueError:
        return None


def tile_of(name: str) -> str | None:
    """Return the MGRS tile in a name, for example 33UUP."""
    match = _TILE.search(name)
    return match[1] if match else None


def baseline_of(name: str) -> int | None:
    """Return the processing baseline in a name, for example 400 for N0400."""
    match = _BASELINE.search(name)
    return int(match[1]) if match else None


def is_displayable(text: str) -> bool:
    """Return whether no character of a text steers a terminal, turns the direction of a line or hides.

    Refused are controls, formats other than the two joiners, line and paragraph separators, and what has no meaning:
    halves of pairs, private and unassigned characters. Spaces of any width are taken.
    """
    return text.isprintable() or all(
        character.isprintable() or character in _JOINERS or unicodedata.category(character) == "Zs"
        for character in text
    )
