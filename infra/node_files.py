"""Files of a run's models on the nodes that need them: put into the store once, fetched once for each node."""

import fcntl
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path

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


def share_folder(folder: Path, files: Sequence[Path], sha256: str, paths: StorePaths) -> Path:
    """Return a folder's place in the store, where its files are copied if need be: see `share`.

    Args:
        folder: A folder of this machine, or of object storage, which all nodes have.
        files: Those of its files that are needed, by their paths in it.
        sha256: Of all of them together, in hex.
        paths: The store.

    Raises:
        StoreError: The store cannot be written.
    """
    if isinstance(folder, ObjectPath) or folder.resolve().is_relative_to(paths.root):
        return folder
    place = paths.shared_weights(sha256, folder.name)
    for file in files:
        if not (place / file).exists():
            write_atomically(place / file, partial(_copy, folder / file))
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
    folder = _folder()
    copy = folder / _digest(path) / path.name
    with writing(copy), _one_at_a_time(folder):
        _keep(copy, path, folder)
    yield copy


@contextmanager
def local_folder(path: Path) -> Iterator[Path]:
    """Yield a folder of this machine: path itself, or this node's copy of the objects below path.

    As `local_file` does it. What lies there never changes: its name says what it holds, as `share_folder` has it.

    Raises:
        FileNotFoundError: There is nothing on object storage.
        StoreError: The copy cannot be written.
        TransientError: Object storage does not hand it out.
    """
    if not isinstance(path, ObjectPath):
        yield path
        return
    folder = _folder()
    copy = folder / hashlib.sha256(str(path).encode()).hexdigest()[:32] / path.name
    with writing(copy), _one_at_a_time(folder):
        files = [file for file in path.rglob("*") if file.is_file()]
        if not files:
            raise FileNotFoundError(f"there is nothing below {path}")
        for file in files:
            _keep(copy / file.relative_to(path), file, folder)
    yield copy


def _keep(copy: Path, path: ObjectPath, folder: Path) -> None:
    """Say that a copy is used, or fetch its object where there is none; the caller is alone at the copies."""
    try:
        os.utime(copy)
    except FileNotFoundError:
        _sweep(folder)
        write_atomically(copy, partial(_fetch, path), sync=False)


@contextmanager
def _one_at_a_time(folder: Path) -> Iterator[None]:
    """Let one process of the node at the copies: what several want at once is nearly always one object."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / "lock").open("a") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


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
    """Remove the copies that were not used for long; a process that has one open keeps what it has."""
    for place in [place for place in folder.iterdir() if place.is_dir()]:
        files = [file for file in place.rglob("*") if file.is_file()]
        if all(time.time() - file.stat().st_mtime > _KEPT_SECONDS for file in files):
            shutil.rmtree(place)
