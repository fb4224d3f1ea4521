"""The store's folder: its places, one writer at a time, and files that are there whole or not at all."""

import errno
import fcntl
import os
import secrets
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from infra.errors import ConfigError, StoreError

_FULL_OR_CLOSED = {
    errno.ENOSPC: "the disk is full",
    errno.EDQUOT: "the disk quota is used up",
    errno.EROFS: "the file system is read-only",
    errno.EACCES: "permission denied",
    errno.EPERM: "operation not permitted",
    errno.ENOTDIR: "a part of the path is a file",
    errno.EEXIST: "a file lies where a folder is needed",
    errno.EISDIR: "a folder lies where a file is needed",
    errno.ENOENT: "there is no such folder, and none can be made",
    errno.EFBIG: "the file would pass the size limit",
}


@dataclass(frozen=True, slots=True)
class StorePaths:
    """Where everything of one store lies; the only place that spells its folders."""

    root: Path

    @property
    def archive(self) -> Path:
        """The patches' pixels."""
        return self.root / "archive.zarr"

    @property
    def work(self) -> Path:
        """Parts, plans and run records: the machinery's own."""
        return self.root / "work"

    @property
    def buckets(self) -> Path:
        """Scratch: the files of shards that are not ingested yet, where the archive is tar archives."""
        return self.work / "buckets"

    @property
    def inventories(self) -> Path:
        """What passes over tar archives found in them."""
        return self.work / "inventories"

    @property
    def tables(self) -> Path:
        """What analysts read."""
        return self.root / "tables"

    @property
    def report(self) -> Path:
        """The page made from the tables."""
        return self.root / "report" / "index.html"

    def super_resolved(self, model: str, config: str) -> Path:
        """Stored pixels of one SR model."""
        return self.root / "sr" / f"{model}-{config}.zarr"

    def maps(self, method: str, config: str) -> Path:
        """Activation maps of one method, SR model and classifier."""
        return self.root / "maps" / f"{method}-{config}.zarr"

    def checkpoint(self, sr: str, classifier: str, config: str, seed: int) -> Path:
        """A trained classifier; sr is "backbone" for a network that only lends its backbone."""
        return self.root / "checkpoints" / f"{sr}-{classifier}-{config}" / f"seed-{seed}.safetensors"

    def trained_sr(self, model: str, config: str) -> Path:
        """Weights of a super-resolution network that was fitted here."""
        return self.root / "checkpoints" / f"sr-{model}-{config}" / "weights.safetensors"

    def reliability(self, sr: str, classifier: str, config: str) -> Path:
        """Clusters of a classifier's maps, fitted on its validation split."""
        return self.root / "checkpoints" / f"reliability-{sr}-{classifier}-{config}" / "clusters.safetensors"

    def reliabilities(self, sr: str, classifier: str) -> list[Path]:
        """All such files of one classifier on one branch, the newest first."""
        found = self.root.glob(f"checkpoints/reliability-{sr}-{classifier}-*/clusters.safetensors")
        return sorted(found, key=lambda path: (-path.stat().st_mtime_ns, path))

    def table(self, name: str) -> Path:
        """One table's folder."""
        return self.tables / name


def store_error(error: OSError, path: Path) -> OSError:
    """Return a StoreError that says why path cannot be written, or error itself if it is of another kind."""
    why = _FULL_OR_CLOSED.get(error.errno or 0)
    return StoreError(f"cannot write {path}: {why}") if why else error


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the operating system's "full", "read-only" and "denied" into a StoreError that names path."""
    try:
        yield
    except StoreError:
        raise
    except OSError as error:
        raise store_error(error, path) from error


def write_atomically(path: Path, write: Callable[[Path], None], *, sync: bool = True) -> None:
    """Write a file under a temporary name and rename it into place, so that path is whole or absent.

    Args:
        path: The final name; its folder is made.
        write: Writes the content to the path it is given.
        sync: Wait until the disk holds the content; without it a power cut may leave an empty file.

    Raises:
        StoreError: The disk is full, read-only or not ours; nothing is left behind under either name.
    """
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            write(temporary)
            if sync:
                with temporary.open("rb+") as file:
                    os.fsync(file.fileno())
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file's content atomically; arguments and errors are those of `write_atomically`."""

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write, sync=sync)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; errors are those of `write_atomically`."""
    write_bytes(path, text.encode())


def sweep_partials(root: Path) -> int:
    """Remove what killed writers left (`*.partial`) and return how many; call it with the store's lock held."""
    leftovers = [path for path in root.rglob("*.partial") if path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


@contextmanager
def locked_store(paths: StorePaths) -> Iterator[None]:
    """Hold the store for one driver, after proving that it can be written.

    The kernel drops the lock when the process ends, however it ends.

    Raises:
        StoreError: The folder cannot be written.
        ConfigError: Another run holds the store.
    """
    lock_path = paths.work / "lock"
    with ExitStack() as stack:
        with writing(paths.root):
            paths.work.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(lock_path.open("wb", buffering=0))  # no buffer left to write when it is closed
            lock.write(f"{os.getpid()}\n".encode() + b" " * 4096)  # more than an inode holds: a full disk shows here
            os.fsync(lock.fileno())
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise ConfigError(
                f"another run is writing to {paths.root}; wait for it, or choose another store"
            ) from error
        sweep_partials(paths.root)
        yield


def is_locked(paths: StorePaths) -> bool:
    """Return whether a driver holds the store now."""
    try:
        lock = (paths.work / "lock").open("r")
    except FileNotFoundError:
        return False
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            return True
    return False
