"""Buckets: the files of one shard's patches, as they came out of a tar archive, in one file on local scratch.

A bucket is written by appending only: a record is a kind, the length of a path, the length of what belongs to it, the
path and that. Paths are what is looked up in a bucket; none ever becomes the name of a file.
"""

import mmap
import os
import shutil
import struct
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from infra.errors import BadPatchError, StoreError
from infra.storage import writing

_RECORD = struct.Struct("<BHI")
_FOLDER, _FILE, _FAULT = range(3)


class Place(NamedTuple):
    """Where a file's bytes lie in a bucket."""

    start: int
    stop: int


@dataclass(frozen=True, slots=True)
class Buckets:
    """All buckets of a store. Cheap to pickle: it holds a path only."""

    folder: Path

    def path(self, shard: int) -> Path:
        """The bucket of one shard."""
        return self.folder / f"shard-{shard:05d}.bucket"

    def append(self, shard: int, records: Sequence[bytes | memoryview]) -> int:
        """Append what the functions below return, made if need be, and return how many bytes that is.

        Args:
            shard: Whose bucket.
            records: At most 1,024 pieces, which is what a system call takes.

        Raises:
            StoreError: The scratch folder is full or cannot be written.
        """
        size = sum(map(len, records))
        path = self.path(shard)
        with writing(path):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                written = os.writev(fd, records) if records else 0
                rest = memoryview(b"".join(records))[written:] if written < size else None
                while rest:
                    rest = rest[os.write(fd, rest) :]
            finally:
                os.close(fd)
        return size

    def make(self) -> None:
        """Make the folder."""
        with writing(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)

    def remove(self) -> None:
        """Remove the folder and whatever is in it, such as what a killed run left."""
        if self.folder.exists():
            with writing(self.folder):
                shutil.rmtree(self.folder)


def folder_record(folder: str) -> tuple[bytes, ...]:
    """Return the record of a folder: it is there, even if nothing is in it."""
    return _record(_FOLDER, folder, b"")


def file_record(path: str, data: memoryview) -> tuple[bytes | memoryview, ...]:
    """Return the record of a file."""
    return _record(_FILE, path, data)


def fault_record(path: str, reason: str, detail: str) -> tuple[bytes | memoryview, ...]:
    """Return the record of a member that has a file's name and cannot be used as one."""
    return _record(_FAULT, path, f"{reason}\n{detail}".encode())


def _record[T: (bytes, memoryview)](kind: int, path: str, data: T) -> tuple[bytes | T, ...]:
    name = path.encode()
    return _RECORD.pack(kind, len(name), len(data)), name, data


class Bucket:
    """An open bucket, read at random."""

    def __init__(self, path: Path) -> None:
        """Open it and look up what it holds.

        Raises:
            StoreError: It does not exist.
        """
        try:
            with path.open("rb") as file:
                size = os.fstat(file.fileno()).st_size
                self._map = mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else None
        except FileNotFoundError as error:
            raise StoreError(f"{path} does not exist: is the store's folder the same for all workers?") from error
        self._folders: dict[str, dict[str, Place | BadPatchError]] = {}
        at = 0
        while at < size:
            at = self._look_up(at)

    def _look_up(self, at: int) -> int:
        """Note one record and return where the next one starts."""
        assert self._map is not None
        kind: int
        name_bytes: int
        data_bytes: int
        kind, name_bytes, data_bytes = _RECORD.unpack_from(self._map, at)
        start = at + _RECORD.size + name_bytes
        stop = start + data_bytes
        path = self._map[start - name_bytes : start].decode()
        if kind == _FOLDER:
            self._folders.setdefault(path, {})
            return stop
        folder, _, name = path.rpartition("/")
        files = self._folders.setdefault(folder, {})
        if kind == _FILE:
            files.setdefault(name, Place(start, stop))
        else:
            reason, _, detail = self._map[start:stop].decode().partition("\n")
            files.setdefault(name, BadPatchError(path, reason, detail))
        return stop

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._map is not None:
            self._map.close()

    def open(self, relative: str) -> "BucketFolder | None":
        """Return a folder, or None where the archive has none of that name."""
        files = self._folders.get(relative)
        return None if files is None or self._map is None else BucketFolder(relative, files, self._map)


class BucketFolder:
    """A folder in a bucket; what `Folder` is on disk.

    Attributes:
        relative: Its path in the archive.
    """

    def __init__(self, relative: str, files: dict[str, Place | BadPatchError], content: mmap.mmap) -> None:
        self.relative, self._files, self._content = relative, files, content

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it; the bucket stays open."""

    def read(self, name: str, absent: str = "missing_band", *, whole: bool = False) -> bytes:  # noqa: ARG002
        """Return the bytes of a file in this folder.

        Args:
            name: The file's name.
            absent: The reason to give where it does not exist.
            whole: Whether a short read may not count as the end; it never does here.

        Raises:
            BadPatchError: The archive does not have it, or has something else in its place.
        """
        place = self._files.get(name)
        if place is None:
            raise BadPatchError(f"{self.relative}/{name}", absent, "it does not exist")
        if isinstance(place, BadPatchError):
            raise place
        return self._content[place.start : place.stop]

    def has_any(self, names: Iterable[str]) -> bool:
        """Return whether one of the names is in this folder, of whatever type."""
        return not self._files.keys().isdisjoint(names)
