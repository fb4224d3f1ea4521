"""Opening an archive's files: never outside the archive, never waiting, every failure with a reason.

An archive's root, and the folders directly in it (a modality or a scene may lie on another disk), may be symbolic
links: its owner laid them out. Any other link has to end within one of these.
"""

import errno
import os
import stat
from collections.abc import Iterable
from functools import lru_cache
from types import TracebackType
from typing import NoReturn, Self

from infra.errors import ArchiveError, BadPatchError, TransientError

_TRANSIENT = frozenset(
    {errno.ESTALE, errno.ETIMEDOUT, errno.ENOTCONN, errno.EHOSTDOWN, errno.EHOSTUNREACH, errno.ECONNRESET}
)
_THIS_PROCESS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOSPC})
_ABSENT = frozenset({errno.ENOENT, errno.ENOTDIR})
_FILE_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe must not stall a worker
_FOLDER_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_DIRECTORY

FIRST_READ = 1 << 16
"""Bytes asked for at first: more than any file of BigEarthNet has."""


def read_file(
    path: str, shown: str, *, dir_fd: int | None = None, follow: bool = False, whole: bool = False, limit: int = 1 << 26
) -> bytes:
    """Return a file's bytes, at most `limit` of them.

    Args:
        path: The file; relative to `dir_fd` where that is given.
        shown: The path for messages.
        dir_fd: An open folder.
        follow: Open what a symbolic link points to; otherwise a link raises OSError with ELOOP.
        whole: Read until the end is seen; otherwise a short read counts as the end, as it is on local disks.
        limit: Bytes at which reading stops.

    Raises:
        OSError: As the system says, to be named by `bad_file`.
        BadPatchError: It is a pipe, a socket or a device.
    """
    fd = os.open(path, _FILE_FLAGS if follow else _FILE_FLAGS | os.O_NOFOLLOW, dir_fd=dir_fd)
    try:
        data = os.read(fd, FIRST_READ)
        if data and len(data) < FIRST_READ and not whole:
            return data
        if not stat.S_ISREG(os.fstat(fd).st_mode):
            raise BadPatchError(shown, "unreadable", "it is not a regular file")
        parts = [data]
        size = len(data)
        while data and size < limit:
            data = os.read(fd, min(limit - size, 1 << 24))
            parts.append(data)
            size += len(data)
        return b"".join(parts)
    finally:
        os.close(fd)


def bad_file(error: OSError, root: str, shown: str, absent: str = "missing_band") -> BadPatchError:
    """Return the reason why one file cannot be used.

    Args:
        error: What opening or reading it raised.
        root: The archive's root: if that is gone too, no single patch is at fault.
        shown: The file, relative to the root.
        absent: The reason where it does not exist.

    Raises:
        TransientError: Another attempt may succeed.
        ArchiveError: The root itself has gone.
        OSError: The process or the disk is at fault, not this file.
    """
    if error.errno in _TRANSIENT:
        raise TransientError(error.errno, f"{error.strerror}, reading {shown}: try again") from error
    if error.errno in _THIS_PROCESS:
        raise error
    try:
        os.stat(root)  # noqa: PTH116 - one system call
    except OSError:
        _root_gone(root, error)
    if error.errno in _ABSENT:
        return BadPatchError(shown, absent, "it does not exist")
    return BadPatchError(shown, "unreadable", f"{error.strerror or error} ({errno.errorcode.get(error.errno or 0)})")


def _root_gone(root: str, error: OSError) -> NoReturn:
    raise ArchiveError(f"the archive {root} can no longer be read: is its disk still mounted?") from error


@lru_cache(maxsize=256)
def _bases(root: str, top: str) -> tuple[str, ...]:
    """Return the real folders that a link may end in."""
    real = os.path.realpath(f"{root}/{top}")
    return (os.path.realpath(root), real) if os.path.isdir(real) else (os.path.realpath(root),)  # noqa: PTH112 - a string


def is_inside(root: str, relative: str) -> bool:
    """Return whether a path, every link in it followed, stays within the archive.

    Args:
        root: The archive's root.
        relative: A path below it.
    """
    real = os.path.realpath(f"{root}/{relative}")
    return any(real == base or real.startswith(base.rstrip("/") + "/") for base in _bases(root, _top(relative)))


def _top(relative: str) -> str:
    top = relative.partition("/")[0]
    return "" if top in {"", ".", ".."} else top


@lru_cache(maxsize=1 << 14)
def _parent_is_inside(root: str, parent: str) -> bool:
    return is_inside(root, parent)


def leaves(shown: str) -> BadPatchError:
    """Return the error of a path that leaves the archive."""
    return BadPatchError(shown, "outside_archive", "a symbolic link or its name leads out of the archive's folder")


def refuse_link_out(root: str, relative: str) -> None:
    """Refuse a file that describes the whole archive and is a link out of it: it may be anybody's.

    Args:
        root: The archive's root.
        relative: The file, below it or not.

    Raises:
        ArchiveError: It lies in the archive by its name, and elsewhere in truth.
    """
    below = not os.path.isabs(relative) and os.path.normpath(relative).split("/")[0] != ".."  # noqa: PTH117 - a string
    if below and not is_inside(root, relative):
        raise ArchiveError(f"{root}/{relative} is a symbolic link that leads out of the archive: put the file there")


class Folder:
    """An open folder of an archive: its files are opened relative to it, and without following links blindly.

    Attributes:
        relative: Its path below the root.
    """

    packed: None = None
    """Its files are read when they are asked for."""

    def __init__(self, root: str, relative: str, fd: int) -> None:
        self._root, self.relative, self._fd = root, relative, fd

    @classmethod
    def open(cls, root: str, relative: str) -> Self | None:
        """Return the folder, or None where it does not exist.

        Raises:
            BadPatchError: outside_archive or unreadable.
        """
        if not _parent_is_inside(root, relative.rpartition("/")[0]):
            raise leaves(relative)
        path = f"{root}/{relative}"
        try:
            try:
                fd = os.open(path, _FOLDER_FLAGS | os.O_NOFOLLOW)
            except OSError as error:
                if error.errno not in {errno.ELOOP, errno.ENOTDIR} or not os.path.islink(path):  # noqa: PTH114
                    raise
                if not is_inside(root, relative):
                    raise leaves(relative) from error
                fd = os.open(path, _FOLDER_FLAGS)
        except FileNotFoundError as error:
            bad_file(error, root, relative)  # raises where the archive itself has gone
            return None
        except NotADirectoryError:
            raise BadPatchError(relative, "unreadable", "it should be a folder and is a file") from None
        except OSError as error:
            raise bad_file(error, root, relative) from error
        return cls(root, relative, fd)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        os.close(self._fd)

    def read(self, name: str, absent: str = "missing_band", *, whole: bool = False) -> bytes:
        """Return the bytes of a file in this folder.

        Args:
            name: The file's name.
            absent: The reason to give where it does not exist.
            whole: As in `read_file`.

        Raises:
            BadPatchError: It is missing, unreadable or a link out of the archive.
        """
        shown = f"{self.relative}/{name}"
        try:
            return read_file(name, shown, dir_fd=self._fd, whole=whole)
        except OSError as error:
            if error.errno != errno.ELOOP:
                raise bad_file(error, self._root, shown, absent) from error
        if not is_inside(self._root, shown):
            raise leaves(shown)
        try:
            return read_file(name, shown, dir_fd=self._fd, follow=True, whole=whole)
        except OSError as error:
            raise bad_file(error, self._root, shown, absent) from error

    def has_any(self, names: Iterable[str]) -> bool:
        """Return whether one of the names is in this folder, of whatever type."""
        return not set(names).isdisjoint(os.listdir(self._fd))  # noqa: PTH208 - a descriptor
