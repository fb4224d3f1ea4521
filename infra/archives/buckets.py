"""Buckets: the files of one shard's patches, as they came out of a tar archive, in one file on local scratch.

A bucket is written by appending only. A record is what came by of one folder in one go: how many bytes its names have
and how many files there are, the length of each, the folder's path and the names of the files with zero bytes between
them, and then the files. Paths are what is looked up in a bucket; none ever becomes the name of a file.

Where the bands of a folder were packed, it has, in their place, what they show: names that start with a slash, which no
file's name has.
"""

import mmap
import os
import shutil
import struct
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import NamedTuple, Self

from infra.archives.modality import FolderPixels, Ground
from infra.errors import BadPatchError, StoreError
from infra.storage import writing
from infra.zarr_rows import PackedRow

MAX_FILES = 1000
"""Files in a record: with two pieces more, what a system call takes is 1,024."""

MAX_OPEN = 64
"""Buckets that are open at once: patches of one acquisition follow each other, and lie in few shards."""

_HEAD = struct.Struct("<IH")
_GROUND = struct.Struct("<i3d")  # EPSG code, left, top, share of nodata
_GROUND_NAME = "/"


class Fault(NamedTuple):
    """Why a member of an archive that has a file's name cannot be used as one."""

    reason: str
    detail: str


@dataclass(frozen=True, slots=True)
class Buckets:
    """All buckets of a store. Cheap to pickle: it holds a path only."""

    folder: Path

    def path(self, shard: int) -> Path:
        """The bucket of one shard."""
        return self.folder / f"shard-{shard:05d}.bucket"

    def make(self) -> None:
        """Make the folder, which must not be there: among other users' temporary files it may not be theirs."""
        with writing(self.folder):
            self.folder.mkdir(parents=True)

    def remove(self) -> None:
        """Remove the folder and whatever is in it, such as what a killed run left."""
        if self.folder.exists():
            with writing(self.folder):
                shutil.rmtree(self.folder, onexc=_unless_gone)


class BucketWriter:
    """Appends to buckets, and keeps those open that it wrote to last; left, it has closed them all."""

    def __init__(self, buckets: Buckets) -> None:
        self._buckets = buckets
        self._open: OrderedDict[int, tuple[Path, int]] = OrderedDict()  # file and descriptor, the last used at the end

    def append(self, shard: int, record: Sequence[bytes | memoryview]) -> int:
        """Append a record, and return how many bytes that is; the bucket is made if need be.

        Args:
            shard: Whose bucket.
            record: What `folder_record` returned; without any piece, the bucket is there then.

        Raises:
            StoreError: The scratch folder is full or cannot be written.
        """
        size = sum(map(len, record))
        path, fd = self._opened(shard)
        if not os.fstat(fd).st_nlink:
            raise StoreError(f"{path} was removed while it was filled: the run that wanted it has ended")
        with writing(path):
            written = os.writev(fd, record) if record else 0
            rest = memoryview(b"".join(record))[written:] if written < size else None
            while rest:
                rest = rest[os.write(fd, rest) :]
        return size

    def close(self, shard: int) -> None:
        """Close a bucket: only then is it sure to be whole for a worker on another node, where scratch is on a network.

        Raises:
            StoreError: What was written did not arrive.
        """
        if shard in self._open:
            path, fd = self._open.pop(shard)
            with writing(path):
                os.close(fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Close what is open."""
        with ExitStack() as closing:
            for shard in list(self._open):
                closing.callback(self.close, shard)

    def _opened(self, shard: int) -> tuple[Path, int]:
        found = self._open.get(shard)
        if found is not None:
            self._open.move_to_end(shard)
            return found
        if len(self._open) == MAX_OPEN:
            self.close(next(iter(self._open)))
        path = self._buckets.path(shard)
        with writing(path):
            fd = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o666)
        self._open[shard] = path, fd
        return path, fd


def _unless_gone(_: object, __: str, error: BaseException) -> None:
    """Pass over what somebody else removed meanwhile: a worker that outlived its run removes its last bucket itself."""
    if not isinstance(error, FileNotFoundError):
        raise error


def folder_record(folder: str, files: Sequence[tuple[str, memoryview | Fault]]) -> list[bytes | memoryview]:
    """Return the record of a folder: it is there, even if nothing is in it.

    Args:
        folder: Its path in the archive.
        files: Name in the folder and content of each file that came by, at most MAX_FILES.
    """
    content = [b"\n".join(map(str.encode, data)) if isinstance(data, Fault) else data for _, data in files]
    sizes = [
        -len(text) if isinstance(data, Fault) else len(text) for text, (_, data) in zip(content, files, strict=True)
    ]
    names = "\0".join([folder, *(name for name, _ in files)]).encode()
    return [_HEAD.pack(len(names), len(sizes)) + _sizes(len(sizes)).pack(*sizes) + names, *content]


def packed_files(pixels: FolderPixels) -> list[tuple[str, memoryview]]:
    """Return what a folder's record has in place of its bands."""
    ground = pixels.ground
    files = [(_GROUND_NAME, memoryview(_GROUND.pack(ground.epsg, ground.left, ground.top, pixels.nodata_share)))]
    for array, row in pixels.arrays.items():
        assert isinstance(row, PackedRow)
        files.append((f"/{array}", memoryview(row.frame)))
    return files


@lru_cache(maxsize=64)
def _sizes(files: int) -> struct.Struct:
    """Return how the lengths of so many files are written; of a fault it is negative."""
    return struct.Struct(f"<{files}i")


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
                self._content = memoryview(mmap.mmap(file.fileno(), size, access=mmap.ACCESS_READ) if size else b"")
        except FileNotFoundError as error:
            raise StoreError(f"{path} does not exist: is this folder the same for all workers?") from error
        self._folders: dict[str, dict[str, slice | Fault]] = {}
        at = 0
        while at < size:
            at = self._look_up(at)

    def _look_up(self, at: int) -> int:
        """Note one record and return where the next one starts."""
        names_bytes, files = _HEAD.unpack_from(self._content, at)
        sizes = _sizes(files).unpack_from(self._content, at + _HEAD.size)
        names_start = at + _HEAD.size + 4 * files
        start: int = names_start + names_bytes
        folder, *names = str(self._content[names_start:start], "utf-8").split("\0")
        known = self._folders.setdefault(folder, {})
        for name, size in zip(names, sizes, strict=True):
            place = slice(start, start + abs(size))
            if size < 0:
                known.setdefault(name, Fault(*str(self._content[place], "utf-8").split("\n", 1)))
            else:
                known.setdefault(name, place)
            start = place.stop
        return start

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of it; the file is closed with the last piece of it that is held."""
        self._content = memoryview(b"")
        self._folders.clear()

    def open(self, relative: str) -> "BucketFolder | None":
        """Return a folder, or None where the archive has none of that name."""
        files = self._folders.get(relative)
        return None if files is None else BucketFolder(relative, files, self._content)


class BucketFolder:
    """A folder in a bucket; what `Folder` is on disk.

    Attributes:
        relative: Its path in the archive.
    """

    def __init__(self, relative: str, files: dict[str, slice | Fault], content: memoryview) -> None:
        self.relative, self._files, self._content = relative, files, content

    @property
    def packed(self) -> FolderPixels | None:
        """What its bands show, where they were packed; None: its files are there."""
        place = self._files.get(_GROUND_NAME)
        if not isinstance(place, slice):
            return None
        epsg, left, top, share = _GROUND.unpack(self._content[place])
        arrays = {
            name[1:]: PackedRow(self._content[place])
            for name, place in self._files.items()
            if name[0] == "/" and name != _GROUND_NAME and isinstance(place, slice)
        }
        return FolderPixels(arrays, Ground(epsg, left, top), share)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Leave it; the bucket stays open."""

    def read(self, name: str, absent: str = "missing_band", *, whole: bool = False) -> memoryview:  # noqa: ARG002
        """Return the bytes of a file in this folder, where they lie.

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
        if isinstance(place, Fault):
            raise BadPatchError(f"{self.relative}/{name}", *place)
        return self._content[place]

    def has_any(self, names: Iterable[str]) -> bool:
        """Return whether one of the names is in this folder, of whatever type."""
        return not self._files.keys().isdisjoint(names)
