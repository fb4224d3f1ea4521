"""What a column says of itself: its meaning, its unit, and where its values come from; all stored in every file."""

from collections.abc import Mapping
from types import MappingProxyType

import pyarrow as pa

from infra.errors import UnknownNameError

MEANING, UNIT, SOURCE = b"description", b"unit", b"source"
"""Keys of a field's metadata."""

UNITS: Mapping[str, str] = MappingProxyType(
    {
        "id": "a number that names something, no quantity",
        "index": "a place, from 0",
        "count": "how many",
        "share": "0 to 1",
        "percent": "0 to 100",
        "probability": "0 to 1",
        "score": "no unit; 0 to 1, the higher the better",
        "score difference": "of two scores, -1 to 1",
        "1": "no unit",
        "of metric": "that of the row's metric, see metrics.md",
        "nat": "mean cross-entropy, natural logarithm, or the loss that RUN.yaml names",
        "dB": "decibels",
        "degree": "of arc",
        "reflectance": "surface reflectance, 1 = 10,000 DN",
        "px 10 m": "pixels of 10 m, parts of them too",
        "s": "seconds",
        "h": "hours of one core or GPU",
        "patches/s": "patches a second",
        "time": "an instant, UTC",
    }
)
"""Every unit, with what it says."""


def required(
    name: str, type_: pa.DataType, meaning: str, source: str, unit: str | None = None
) -> "pa.Field[pa.DataType]":
    """Return a column that is never null; arguments are those of `optional`."""
    return optional(name, type_, meaning, source, unit).with_nullable(False)  # noqa: FBT003  # pyarrow has no keyword


def optional(
    name: str, type_: pa.DataType, meaning: str, source: str, unit: str | None = None
) -> "pa.Field[pa.DataType]":
    """Return a column that may be null.

    Args:
        name: Its name.
        type_: Its type.
        meaning: What it says, without a full stop.
        source: Where its values come from: a paper's formula, another table, the archive, the run.
        unit: One of UNITS, for every number and instant; None for texts and truth values.

    Raises:
        UnknownNameError: There is no such unit.
    """
    if unit is not None and unit not in UNITS:
        raise UnknownNameError(f"the column {name} has the unit {unit!r}, known are {', '.join(UNITS)}")
    metadata = {MEANING: meaning, SOURCE: source} | ({} if unit is None else {UNIT: unit})
    return pa.field(name, type_, metadata=metadata)


def said(field: "pa.Field[pa.DataType]", key: bytes) -> str:
    """Return what a field's metadata say under a key; "" where they do not."""
    return bytes((field.metadata or {}).get(key, b"")).decode()
