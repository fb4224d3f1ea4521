"""Folders for temporary files of which this machine can tell whether the process that made them lives.

A folder is locked (flock) as long as it is in use; the kernel drops the lock when the process ends, however it ends. So
what a killed process left is found and removed by the next one that looks, in another container too where both see it.
"""

import fcntl
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path

from infra.errors import StoreError

_PREFIX = "superscene-tmp-"

_SWEEP_SECONDS = 5.0
"""For how long a sweep may hold a new folder that it found unlocked."""


@contextmanager
def temporary_folder(name: str | None = None) -> Iterator[Path]:
    """Yield a new folder among the temporary files, removed with the block.

    Args:
        name: Of the process's own choice, for `was_abandoned`, and like no other; None: any, and a process that asks
            for its first one sweeps what others left.

    Raises:
        StoreError: It cannot be made: the disk is full, or closed to this user.
    """
    if name is None:
        _sweep_once()
    folder, lock = _made(name)
    try:
        yield folder
    finally:
        try:
            with suppress(FileNotFoundError):  # whoever cleans up temporary files after some days was first
                shutil.rmtree(folder)
        finally:
            os.close(lock)


def was_abandoned(name: str) -> bool:
    """Return whether a process of this machine left its folder of this name; false where there is none, or it lives."""
    folder = _folder(name)
    with suppress(FileNotFoundError), _locked(folder) as abandoned:
        return abandoned
    return False


def sweep_abandoned() -> int:
    """Remove this user's folders whose processes are gone, and return how many there were."""
    removed = 0
    for folder in Path(tempfile.gettempdir()).glob(f"{_PREFIX}*"):
        with suppress(FileNotFoundError):  # its process was done with it, or another one sweeps too
            if folder.lstat().st_uid != os.getuid() or folder.is_symlink():
                continue
            with _locked(folder) as abandoned:
                if abandoned:
                    shutil.rmtree(folder)
                    removed += 1
    return removed


@lru_cache
def _sweep_once() -> None:
    sweep_abandoned()


def _folder(name: str) -> Path:
    return Path(tempfile.gettempdir()) / f"{_PREFIX}{name}"


def _made(name: str | None) -> tuple[Path, int]:
    """Make a folder and return it with its lock; one that a sweep took before it was locked is made again."""
    given_up = time.monotonic() + _SWEEP_SECONDS
    while True:
        folder = _folder(name or secrets.token_hex(8))
        try:
            folder.mkdir(mode=0o700)
            lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except FileNotFoundError:
            if folder.parent.is_dir():
                continue
            raise
        except OSError as error:
            if isinstance(error, FileExistsError) and time.monotonic() < given_up:  # a sweep has it, and removes it
                time.sleep(0.01)
                continue
            why = error.strerror or type(error).__name__
            raise StoreError(f"cannot make a folder for temporary files, {folder}: {why}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            os.close(lock)
            continue
        if os.fstat(lock).st_nlink and folder.exists():
            return folder, lock
        os.close(lock)


@contextmanager
def _locked(folder: Path) -> Iterator[bool]:
    """Yield whether nobody had the folder's lock; then this block has it."""
    lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC | os.O_NOFOLLOW)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        yield False
    else:
        yield True
    finally:
        os.close(lock)
