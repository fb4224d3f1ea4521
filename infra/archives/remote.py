"""An archive's folders on object storage: what lies in one is listed once and fetched together."""

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache
from types import TracebackType
from typing import Self

import obstore

from infra.archives.inventory import Condense, Found
from infra.archives.tar_reader import MEMBER_BYTES
from infra.errors import ArchiveError, BadPatchError
from infra.object_store import ObjectPath, again

_AT_ONCE = 16
"""Requests that wait for their answers at a time: a patch has twelve files."""

_FILES = 64
"""Files of a folder that are fetched together, at most; more than any patch has."""


@lru_cache(maxsize=1)
def _threads() -> ThreadPoolExecutor:
    """Return the threads of this process that wait for object storage."""
    return ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="archive")


class RemoteFolder:
    """A folder of an archive on object storage; what `Folder` is on disk.

    Attributes:
        relative: Its path below the root.
    """

    packed: None = None
    """Its files are read when they are asked for."""

    def __init__(self, root: ObjectPath, relative: str, sizes: dict[str, int]) -> None:
        self._root, self.relative, self._sizes = root, relative, sizes
        self._content: dict[str, bytes | FileNotFoundError | BadPatchError] | None = None

    @classmethod
    def open(cls, root: ObjectPath, relative: str) -> Self | None:
        """Return the folder, or None where nothing lies below it.

        Raises:
            StoreError, TransientError: Object storage does not let it be listed.
        """
        prefix = f"{root.key}/{relative}/".lstrip("/")
        found = again(lambda: obstore.list_with_delimiter(root.bucket, prefix), root)
        if not (found["objects"] or found["common_prefixes"]):
            return None
        return cls(root, relative, {item["path"].removeprefix(prefix): item["size"] for item in found["objects"]})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Let go of what was fetched."""
        self._content = None

    def read(self, name: str, absent: str = "missing_band", *, whole: bool = False) -> bytes:  # noqa: ARG002
        """Return the bytes of a file in this folder; with the first, all of them are fetched side by side.

        Args:
            name: The file's name.
            absent: The reason to give where it does not exist.
            whole: Whether a short read may not count as the end; it never does here.

        Raises:
            BadPatchError: It is missing, or larger than any file of such an archive.
            StoreError, TransientError: Object storage does not hand it out.
        """
        shown = f"{self.relative}/{name}"
        size = self._sizes.get(name)
        if size is None:
            raise BadPatchError(shown, absent, "it does not exist")
        if size > MEMBER_BYTES:
            raise _too_large(shown, size)
        if self._content is None:
            small = [other for other, its_size in self._sizes.items() if its_size <= MEMBER_BYTES and other != name]
            names = [name, *small[: _FILES - 1]]
            self._content = dict(zip(names, _threads().map(self._fetch, names), strict=True))
        content = self._content[name] if name in self._content else self._fetch(name)
        if isinstance(content, FileNotFoundError):  # it was removed since the folder was listed
            raise BadPatchError(shown, absent, "it does not exist")
        if isinstance(content, BadPatchError):  # it has grown since
            raise content
        return content

    def _fetch(self, name: str) -> bytes | FileNotFoundError | BadPatchError:
        try:
            return _get(self._root, f"{self.relative}/{name}")
        except (FileNotFoundError, BadPatchError) as error:
            return error

    def has_any(self, names: Iterable[str]) -> bool:
        """Return whether one of the names is in this folder."""
        return not self._sizes.keys().isdisjoint(names)


@dataclass(frozen=True, slots=True)
class RemoteInventory:
    """The inventory of an archive of folders on object storage."""

    root: ObjectPath

    def has(self, top: str) -> bool:
        """Return whether anything lies in a modality's folder."""
        return (self.root / top).is_dir()

    def folders(self, top: str, *, by_product: bool) -> Found:
        """Return a modality's patch folders.

        Raises:
            ArchiveError: There is none.
            StoreError, TransientError: Object storage does not let them be listed.
        """
        found = _folders(self.root, [top])
        if not found:
            raise ArchiveError(f"the archive {self.root} needs a folder {top}: nothing lies there")
        return Found(_folders(self.root, found) if by_product else found)

    def notes(self, top: str, suffix: str, condense: Condense) -> dict[str, str | BadPatchError]:
        """Read a small file of every patch folder."""
        folders = sorted(self.folders(top, by_product=False).folders)

        def note(folder: str) -> str | BadPatchError:
            shown = f"{folder}/{folder.rpartition('/')[2]}{suffix}"
            try:
                return condense(_get(self.root, shown), shown)
            except BadPatchError as error:
                return error
            except FileNotFoundError:
                return BadPatchError(shown, "no_metadata", "it does not exist")

        return dict(zip(folders, _threads().map(note, folders), strict=True))


def _folders(root: ObjectPath, parents: Sequence[str]) -> list[str]:
    """Return the folders that lie directly in some folders, relative to the root, hidden ones left out."""
    start = f"{root.key}/".lstrip("/")

    def of(parent: str) -> list[str]:
        prefix = f"{start}{parent}/"
        found = again(lambda: obstore.list_with_delimiter(root.bucket, prefix), root)["common_prefixes"]
        names = (key.removeprefix(prefix).rstrip("/") for key in found)
        return [f"{parent}/{name}" for name in names if name and name[0] != "."]

    return [folder for folders in _threads().map(of, parents) for folder in folders]


def _get(root: ObjectPath, relative: str) -> bytes:
    """Return a small object below the root, whose name may hold what a store's own names do not.

    Raises:
        BadPatchError: It is larger than any file of such an archive; its content is not fetched.
    """
    key = f"{root.key}/{relative}".lstrip("/")

    def ask() -> bytes:
        found = obstore.get(root.bucket, key)
        if found.meta["size"] > MEMBER_BYTES:
            raise _too_large(relative, found.meta["size"])
        return found.bytes().to_bytes()

    return again(ask, root)


def _too_large(shown: str, size: int) -> BadPatchError:
    return BadPatchError(shown, "unreadable", f"it has {size} bytes, where {MEMBER_BYTES} are plenty")
