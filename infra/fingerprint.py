"""Fingerprints: eight hex digits over whatever determines a stage's rows."""

import hashlib
import json
from collections.abc import Mapping

type Json = str | int | float | bool | list[Json] | Mapping[str, Json] | None


def canonical_json(value: Json) -> str:
    """Return JSON with sorted keys and no spaces, so that equal values give equal text."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False, default=_plain_mapping
    )


def _plain_mapping(value: object) -> dict[str, Json]:
    if isinstance(value, Mapping):  # a read-only view of a dict, for one
        return dict(value)
    raise TypeError(f"{type(value).__name__} has no place in a config: {value!r}")


def fingerprint(value: Json) -> str:
    """Return eight hex digits of the SHA-256 of value's canonical JSON, the first of them a letter.

    A first digit a-f keeps every reader of Hive paths (`config=…`) from taking the value for a number.
    """
    digest = hashlib.sha256(canonical_json(value).encode()).hexdigest()
    start = next(i for i, digit in enumerate(digest) if digit in "abcdef")  # absent once in 10^13
    return (digest + digest)[start : start + 8]
