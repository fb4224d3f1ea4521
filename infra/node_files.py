"""Files of a run's models on the nodes that need them: put into the store once, fetched once for each node."""

import errno
import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

import platformdirs

from infra.object_store import ObjectPath
from infra.storage import StorePaths, file_sha256, version, write_atomically, writing

_KEPT_SECONDS = 2 * 86400.0
"""Since its last use: a node that lives on for weeks does not fill up with the checkpoints of old runs."""


def share(file: Path, paths: StorePaths) -> Path:
    """Return a file's place in the store, where it is copied if need be: other nodes may not have it under its own.

    Args:
        file: A file of this machine, or of object storage, which all nodes have.
        paths: The store.

    Raises:
        StoreError: The store cannot be written.
    """
    if isinstance(file, ObjectPath) or file.resolve().is_relative_to(paths.root):
        return file
    place = paths.shared_weights(file_sha256(file), file.name)
    if not place.exists():
        write_atomically(place, lambda temporary: _copy(file, temporary))
    return place


def _copy(file: Path, temporary: Path) -> None:
    shutil.copyfile(file, temporary)


@contextmanager
def local_file(path: Path) -> Iterator[Path]:
    """Yield a file of this machine for libraries that take no other: path itself, or this node's copy of an object.

    The first process of a node to ask fetches an object, others wait for it; the copy is kept for two days after its
    last use, below SUPERSCENE_CACHE or else the user's folder for caches.

    Raises:
        FileNotFoundError: There is none on object storage.
        StoreError: The copy cannot be written.
        TransientError: Object storage does not hand it out.
    """
    if not isinstance(path, ObjectPath):
        yield path
        return
    copy = _folder() / _digest(path) / path.name
    with writing(copy), _locked(copy.parent):
        try:
            os.utime(copy)
        except FileNotFoundError:
            _sweep(copy.parent.parent)
            write_atomically(copy, lambda temporary: _fetch(path, temporary), sync=False)
    yield copy


def _locked(folder: Path) -> IO[str]:
    """Return the open lock of a copy's folder, which is made anew where a sweep removed it meanwhile."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with suppress(FileExistsError):
            folder.mkdir()
        try:
            lock = (folder / "lock").open("a")
        except FileNotFoundError:
            continue
        fcntl.flock(lock, fcntl.LOCK_EX)
        if _is_in_place(lock, folder):
            return lock
        lock.close()


def _is_in_place(lock: IO[str], folder: Path) -> bool:
    """Return whether a lock is the one that others find in the folder, not one that a sweep removed."""
    try:
        return os.path.samestat(os.fstat(lock.fileno()), (folder / "lock").stat())
    except FileNotFoundError:
        return False


def _folder() -> Path:
    root = os.environ.get("SUPERSCENE_CACHE")
    return (Path(root) if root else platformdirs.user_cache_path("superscene")) / "objects"


def _digest(path: ObjectPath) -> str:
    """Return a name for one content of an object: one that is written anew gets another."""
    return hashlib.sha256(f"{path} {version(path)}".encode()).hexdigest()[:32]


def _fetch(path: ObjectPath, temporary: Path) -> None:
    with path.open("rb") as source, temporary.open("wb") as target:
        shutil.copyfileobj(source, target, 2**23)


def _sweep(folder: Path) -> None:
    """Remove the folders of copies that were not used for long; a process that has one open keeps what it has."""
    for place in folder.iterdir():
        try:
            with (place / "lock").open("a") as lock:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if _is_in_place(lock, place):
                    _remove_unused(place)
        except (BlockingIOError, FileNotFoundError, NotADirectoryError):
            continue  # somebody fetches it or has just removed it, or it is no folder of ours


def _remove_unused(place: Path) -> None:
    """Remove a copy that was not used for long with its folder, whose lock is held."""
    files = [file for file in place.iterdir() if file.name != "lock"]
    if any(time.time() - file.stat().st_mtime <= _KEPT_SECONDS for file in files):
        return
    for file in (*files, place / "lock"):
        file.unlink(missing_ok=True)
    try:
        place.rmdir()
    except OSError as error:
        if error.errno != errno.ENOTEMPTY:  # somebody who wants the copy anew has made a lock there
            raise
