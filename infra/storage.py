"""The store: its places, one writer at a time, and files that are there whole or not at all.

It lies in a folder of this machine or on object storage (`infra.object_store`); here is what differs between the two.
"""

import errno
import fcntl
import hashlib
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Callable, Hashable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote, urlsplit

import platformdirs
import pyarrow as pa

from infra import lease, object_store
from infra.errors import ConfigError, StoreError, did_you_mean
from infra.object_store import ObjectPath, object_path
from infra.temporary import sweep_abandoned, temporary_folder

_LEASE = "lease.json"

_LOOKS = (0.02, 0.05, 0.1, 0.2)
"""Seconds between attempts at the lock: `is_locked`, which `superscene status` asks, holds it for a moment."""

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
        """Scratch: the files of shards that are not ingested yet, where the archive is tar archives; on a disk."""
        return scratch_folder(self.work / "buckets")

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

    def shared_weights(self, sha256: str, name: str) -> Path:
        """A weight file that workers on other nodes need, by its content."""
        return self.work / "weights" / sha256[:16] / name

    def trained_sr(self, model: str, config: str) -> Path:
        """Weights of a super-resolution network that was fitted here."""
        return self.root / "checkpoints" / f"sr-{model}-{config}" / "weights.safetensors"

    def reliability(self, sr: str, classifier: str, config: str) -> Path:
        """Clusters of a classifier's maps, fitted on its validation split."""
        return self.root / "checkpoints" / f"reliability-{sr}-{classifier}-{config}" / "clusters.safetensors"

    def reliabilities(self, sr: str, classifier: str) -> list[Path]:
        """All such files of one classifier on one branch, the newest first."""
        found = self.root.glob(f"checkpoints/reliability-{sr}-{classifier}-*/clusters.safetensors")
        return sorted(found, key=lambda path: (-_written_ns(path), path))

    def table(self, name: str) -> Path:
        """One table's folder."""
        return self.tables / name


def location(text: str) -> Path:
    """Return where a store lies: a path of this machine as it is, or what an s3://, gs:// or file:// URL names.

    Raises:
        ConfigError: A URL of another kind, or one that holds more than a place, such as a password.
    """
    scheme, is_url, _ = text.partition("://")
    if not is_url:
        return Path(text)
    if scheme in {"s3", "gs"}:
        return object_path(text)
    parts = urlsplit(text)
    if scheme != "file" or "@" in text or parts.query or parts.fragment:
        hint = did_you_mean(scheme, ("s3", "gs", "file"))
        raise ConfigError(
            f"a URL {scheme}://… cannot be used: {hint}write a path, s3://bucket/prefix, gs://… or file:///path"
        )
    if parts.netloc not in {"", "localhost"}:
        raise ConfigError(f"{text} names a folder of the machine {parts.netloc}: write file:///path, three slashes")
    return Path(unquote(parts.path))


def open_once(text: str) -> tuple[pa.NativeFile, int]:
    """Open a file to be read once, from its beginning to its end, and return it with its size in bytes.

    On object storage it is fetched in ranges of some megabytes, several at a time, each of which is tried again by
    itself.

    Args:
        text: A path, or an s3://, gs:// or file:// URL.

    Raises:
        OSError: There is none, or it cannot be read.
        ConfigError: The URL is of another kind, or holds more than a place.
    """
    place = location(text)
    if isinstance(place, ObjectPath):
        ahead = object_store.Ahead(place)
        return pa.PythonFile(ahead), ahead.size()
    file = pa.OSFile(str(place), "rb")
    return file, file.size()


def file_sha256(path: Path) -> str:
    """Return the SHA-256 of a file's content, hexadecimal.

    Raises:
        FileNotFoundError: There is none.
    """
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def file_size(path: Path) -> int:
    """Return a file's length, bytes.

    Raises:
        FileNotFoundError: There is none.
    """
    return object_store.size(path) if isinstance(path, ObjectPath) else path.stat().st_size


def states_folder(path: Path) -> Path:
    """Return the folder for Ray Train's states, which it writes itself: path, or one of this machine for an object's.

    A run that goes on from a state finds it on the same machine only, or where SUPERSCENE_STATES names a folder that
    all nodes of a cluster see.
    """
    if not isinstance(path, ObjectPath):
        return path.resolve()
    root = os.environ.get("SUPERSCENE_STATES")
    folder = Path(root) if root else platformdirs.user_state_path("superscene") / "states"
    return folder.resolve() / _digest(path)


def scratch_folder(path: Path) -> Path:
    """Return the folder for files that are written piece by piece: path, or one of this machine for an object's.

    It is below SUPERSCENE_SCRATCH, which all nodes of a cluster have to see, or else the folder for temporary files.
    """
    if not isinstance(path, ObjectPath):
        return path
    root = os.environ.get("SUPERSCENE_SCRATCH") or tempfile.gettempdir()
    return Path(root).absolute() / f"superscene-{path.name}-{_digest(path)}"


def version(path: Path) -> Hashable:
    """Return what changes whenever a file is written anew.

    Raises:
        FileNotFoundError: There is none.
    """
    if isinstance(path, ObjectPath):
        return tuple(sorted(object_store.version(path).items()))
    status = path.stat()
    return status.st_ino, status.st_mtime_ns


def _digest(path: ObjectPath) -> str:
    """Return a name for what belongs to an object's path and lies on this machine."""
    return hashlib.sha256(str(path).encode()).hexdigest()[:16]


def _written_ns(path: Path) -> int:
    """Return when a file was written, nanoseconds of its own machine's clock."""
    if isinstance(path, ObjectPath):
        return int(object_store.modified(path).timestamp() * 1e9)
    return path.stat().st_mtime_ns


def remove_folder(path: Path) -> None:
    """Remove a folder and what lies in it; one that is not there is no error."""
    if isinstance(path, ObjectPath):
        for file in path.rglob("*"):
            file.unlink(missing_ok=True)
    elif path.exists():
        shutil.rmtree(path)


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

    On object storage, the file is written to this machine and appears there by one PUT.

    Args:
        path: The final name; its folder is made.
        write: Writes the content to the path it is given, of this machine.
        sync: Wait until the disk holds the content; without it a power cut may leave an empty file.

    Raises:
        StoreError: The disk is full, read-only or not ours; nothing is left behind under either name.
        TransientError: Object storage did not take it, however often it was asked.
    """
    if isinstance(path, ObjectPath):
        with temporary_folder() as folder:
            scratch = folder / path.name
            with writing(scratch):
                write(scratch)
            object_store.put(path, scratch)
        return
    temporary = temporary_name(path)
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


def temporary_name(path: Path) -> Path:
    """Return a name beside a file's own under which it is written, to be renamed."""
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def write_bytes(path: Path, content: bytes, *, sync: bool = True) -> None:
    """Write a file's content atomically; arguments and errors are those of `write_atomically`."""
    if isinstance(path, ObjectPath):
        object_store.put(path, content)
        return

    def write(temporary: Path) -> None:
        temporary.write_bytes(content)

    write_atomically(path, write, sync=sync)


def write_text(path: Path, text: str) -> None:
    """Write a UTF-8 text file atomically; errors are those of `write_atomically`."""
    write_bytes(path, text.encode())


def sweep_partials(root: Path) -> int:
    """Remove what killed writers left (`*.partial`) and return how many; call it with the store's lock held.

    On object storage there are none: what was not written whole is not there.
    """
    if isinstance(root, ObjectPath):
        return 0
    leftovers = [path for path in root.rglob("*.partial") if path.is_file()]
    for path in leftovers:
        path.unlink(missing_ok=True)
    return len(leftovers)


@contextmanager
def locked_store(paths: StorePaths) -> Iterator[None]:
    """Hold the store for one driver, after proving that it can be written.

    The kernel drops the lock when the process ends, however it ends; on object storage, a lease takes its place.

    Raises:
        StoreError: The folder cannot be written, or the lease was lost.
        ConfigError: Another run holds the store.
    """
    if isinstance(paths.work, ObjectPath):
        with lease.held(paths.work / _LEASE):
            sweep_abandoned()
            yield
        return
    lock_path = paths.work / "lock"
    with ExitStack() as stack:
        with writing(paths.root):
            paths.work.mkdir(parents=True, exist_ok=True)
            lock = stack.enter_context(lock_path.open("wb", buffering=0))  # no buffer left to write when it is closed
            lock.write(f"{os.getpid()}\n".encode() + b" " * 4096)  # more than an inode holds: a full disk shows here
            os.fsync(lock.fileno())
        for pause in (*_LOOKS, None):
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                if pause is None:
                    raise ConfigError(
                        f"another run is writing to {paths.root}; wait for it, or choose another store"
                    ) from error
                time.sleep(pause)
            else:
                break
        sweep_partials(paths.root)
        yield


def is_lost(paths: StorePaths) -> bool:
    """Return whether this process held the store and lost it to another driver."""
    return isinstance(paths.work, ObjectPath) and lease.is_lost(paths.work / _LEASE)


def is_locked(paths: StorePaths) -> bool:
    """Return whether a driver holds the store now."""
    if isinstance(paths.work, ObjectPath):
        return lease.is_held(paths.work / _LEASE)
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


def left_behind(paths: StorePaths) -> str | None:
    """Return whose lease of the store was not given back, and is held by nobody; None where there is none such.

    A folder has none: its lock ends with the process.
    """
    return lease.left_behind(paths.work / _LEASE) if isinstance(paths.work, ObjectPath) else None
