"""The version of the tables' schemas: what each changed, and what this superscene can read."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa

from infra.errors import StoreError

SCHEMA_VERSION = "2"
"""Raised when a column changes its name, type or meaning, or one is added; stored in every file."""

CHANGES: Mapping[str, str] = MappingProxyType(
    {
        "1": "The first.",
        "2": "Every column says its unit and its source in the files; names, types and meanings are as before.",
    }
)
"""What each version changed; all of them are read."""

VERSION_KEY = "superscene.schema_version"
"""Key of a file's metadata."""


def file_version(schema: pa.Schema) -> str | None:
    """Return the version that a file's metadata tell, None where they tell none."""
    said = (schema.metadata or {}).get(VERSION_KEY.encode())
    return None if said is None else bytes(said).decode(errors="replace")


def check_version(schema: pa.Schema, path: Path, *, ours: bool = True) -> str | None:
    """Return the version of a file, which this superscene reads.

    Args:
        schema: The file's schema, with its metadata.
        path: The file, for the message.
        ours: Whether a file without a version is refused: it lies where only superscene writes.

    Returns:
        The version; None for a file of somebody else's.

    Raises:
        StoreError: A newer superscene wrote the file, or none did.
    """
    version = file_version(schema)
    if version in CHANGES or (version is None and not ours):
        return version
    if version is None:
        raise StoreError(
            f"{path} was not written by superscene, or was changed since: it does not tell the version of its columns "
            f"({VERSION_KEY}). Move it out of the store's tables, where a folder of another name is fine too, and let "
            "the flow write its own again"
        )
    if version.isascii() and version.isdigit() and int(version) > int(SCHEMA_VERSION):
        raise StoreError(
            f"{path} was written by a newer superscene: its columns are of version {version}, this one reads up to "
            f"{SCHEMA_VERSION}. Update superscene, or use another store"
        )
    raise StoreError(f"{path} has columns of version {version!r}; superscene reads {', '.join(CHANGES)}")


def check_versions(files: Sequence[Path], schemas: Sequence[pa.Schema], *, ours: bool = True) -> None:
    """Check each of some files by its schema; arguments and errors are those of `check_version`."""
    for file, schema in zip(files, schemas, strict=True):
        check_version(schema, file, ours=ours)
