"""The weights store: a folder of official weight files, each with the hash it had when it came in.

`<folder>/<model>/<file>` and beside it `<file>.sha256`, as `sha256sum` writes it, so that `sha256sum -c` checks it too.
What is on its way in lies in `<folder>/<model>/.partial/`, and gets its name only when it is whole and checked.
"""

import errno
import hashlib
import logging
import os
import re
import secrets
import time
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path, PurePosixPath
from typing import Literal

from infra.errors import PipelineError, StoreError, WeightsError

VARIABLE = "SUPERSCENE_WEIGHTS"
"""The environment variable that names the folder."""

_DIGITS = 64  # of a SHA-256 in hex
_RECORD = re.compile(r"([0-9a-f]{64}) [ *](.+)\n?")
_COPIED_AT_ONCE = 2**20
_CLOCK_TICK_NS = 2_000_000_000  # coarsest time stamp of a file system in use (FAT): younger files may change unseen

logger = logging.getLogger(__name__)

Check = Callable[[Path], None]
"""Raises WeightsError for a file that is not one of the model's."""


@dataclass(frozen=True, slots=True)
class OfficialFile:
    """A weight file as its authors publish it."""

    name: str
    """File name, as published; with its folders, where it lies in a larger collection."""
    url: str
    """Where it is found: the file, or a page or folder from which a person gets it."""
    sha256: str | None
    """Lower-case hex digest, or its first digits where only those are published; None where none is known."""
    direct: bool = True
    """Whether `url` is the file; False for a page or a folder."""

    @property
    def file_name(self) -> str:
        """The name without folders, as it is stored."""
        return PurePosixPath(self.name).name

    @property
    def pinned(self) -> bool:
        """Whether the whole digest is known, so that there is one such file only."""
        return self.sha256 is not None and len(self.sha256) == _DIGITS

    def accepts(self, digest: str) -> bool:
        """Return whether a file of this whole digest may be the official one, as far as is known."""
        return self.sha256 is None or digest.startswith(self.sha256)

    def where_to_get(self, model: str, licence: str) -> str:
        """Return one sentence for a person: which file a model takes, where it is, how to name it."""
        store = f"`superscene weights fetch {model}` stores it"
        if not self.direct:
            store = f"download it with a browser and store it with `superscene weights add {model} FILE`"
        return (
            f"The official file is {self.name}, from {self.url} ({licence}): {store}; or name a file as the "
            f"`weights` argument, or in RUN.yaml as `weights: {{{model}: FILE}}`."
        )


@dataclass(frozen=True, slots=True)
class Verified:
    """What was found of one stored file, all its bytes read anew."""

    model: str
    path: Path
    state: Literal["ok", "changed", "not recorded", "missing"]
    """missing: a hash is recorded, and the file is gone."""
    detail: str
    """The hash found, and the one expected where that is another."""


@dataclass(frozen=True, slots=True)
class WeightsStore:
    """A folder of official weight files. Reading needs no lock; whoever writes a model's folder holds its lock."""

    folder: Path

    @classmethod
    def default(cls) -> "WeightsStore":
        """Return the user's store: `SUPERSCENE_WEIGHTS`, or `superscene/weights` in the platform's cache folder."""
        named = os.environ.get(VARIABLE)
        if named:
            return cls(Path(named).expanduser().absolute())
        from platformdirs import user_cache_path

        return cls(user_cache_path("superscene", appauthor=False, opinion=False) / "weights")

    def path(self, model: str, official: OfficialFile) -> Path:
        """Return where a model's official file is stored, or would be."""
        return self.folder / model / official.file_name

    def partial(self, model: str, official: OfficialFile) -> Path:
        """Return where a model's official file grows while it is fetched; its suffix is the file's own."""
        return self.folder / model / ".partial" / official.file_name

    def find(self, model: str, official: OfficialFile) -> Path | None:
        """Return a model's stored file, None where it is not stored.

        A file that someone put there by hand, of which no whole hash is known, gets its hash recorded by its first use.

        Raises:
            WeightsError: The file is not what its official or its recorded hash says.
        """
        path = self.path(model, official)
        if not _is_file(path):
            return None
        digest, expected, whose = sha256(path), official.sha256, "the official file"
        if not official.pinned and official.accepts(digest):
            expected = self.recorded(path) or self._record_first(path, digest)
            whose = f"the one recorded in {record_path(path).name}"
        if expected is not None and not digest.startswith(expected):
            raise WeightsError(
                f"{path} has the SHA-256 {digest}, {whose} has {shown(expected)}: the file was changed or damaged. "
                f"Delete it and get it anew (`superscene weights fetch {model}`), or name the file you mean in "
                f"RUN.yaml as `weights: {{{model}: FILE}}`"
            )
        return path

    def add(self, model: str, official: OfficialFile, file: Path, check: Check, *, replace: bool = False) -> Path:
        """Copy a local file into the store as a model's official file, and return where it is.

        Args:
            model: The model.
            official: Its file; where its whole hash is not known, any file is taken that fits and begins as is known.
            file: The local file.
            check: Refuses a file of another network.
            replace: Take the place of a stored file that is another one, where the whole official hash is not known.

        Raises:
            WeightsError: The file cannot be read, does not fit, is not the official one, or another one is stored.
            StoreError: The store cannot be written.
        """
        digest = sha256(file)
        if official.sha256 is not None and not official.accepts(digest):
            raise WeightsError(
                f"{file} is not {official.file_name}: it has the SHA-256 {digest}, the official file has "
                f"{shown(official.sha256)}. To use it all the same, name it in RUN.yaml as `weights: {{{model}: FILE}}`"
            )
        if (file.suffix == ".safetensors") != (official.file_name.endswith(".safetensors")):
            raise WeightsError(
                f"{file} is of another format than the official file {official.file_name}: name it in RUN.yaml as "
                f"`weights: {{{model}: FILE}}`"
            )
        check(file)
        path = self.path(model, official)
        with self.lock(model):
            stored = sha256(path) if _is_file(path) else None
            known = self.recorded(path) or stored
            if not official.pinned and known not in {None, digest} and not replace:
                raise WeightsError(
                    f"{path} is another file (SHA-256 {known}) than {file} ({digest}): results would change with it. "
                    "Add --replace if that is what you want"
                )
            if stored == digest:
                self.record(path, digest)
            else:
                self._copy_in(file, path, digest)
        return path

    def verify(self, officials: Mapping[str, OfficialFile], without: Collection[str] = ()) -> list[Verified]:
        """Read every stored file anew and compare it with its official hash, or its recorded one.

        The recorded one counts where the official one is not known as a whole.

        Args:
            officials: The official file of each model.
            without: Models whose folders are not looked at: those of several files have no hash of their own.

        Raises:
            WeightsError: The folder or a record cannot be read.
        """
        by_path = {self.path(model, official): official for model, official in officials.items()}
        found = []
        for path in (path for path in self.files() if path.parent.name not in without):
            model, official, digest = path.parent.name, by_path.get(path), None
            if _is_file(path):
                digest = hash_anew(path)
            expected, whose = self.recorded(path), "recorded"
            if official is not None and (official.pinned or not (digest is None or official.accepts(digest))):
                expected, whose = official.sha256, "official"
            if digest is None:
                found.append(Verified(model, path, "missing", f"{expected} is recorded"))
            elif expected is None:
                found.append(Verified(model, path, "not recorded", f"{digest} now"))
            elif not digest.startswith(expected):
                found.append(Verified(model, path, "changed", f"{digest} now, {shown(expected)} {whose}"))
            else:
                found.append(Verified(model, path, "ok", digest))
        return found

    def files(self) -> list[Path]:
        """Return the files that are stored or recorded, by model and name.

        Raises:
            WeightsError: The folder cannot be read.
        """
        try:
            if not self.folder.is_dir():
                return []
            models = [entry for entry in self.folder.iterdir() if entry.is_dir() and not entry.name.startswith(".")]
            inside = [path for model in models for path in model.iterdir() if not path.is_dir()]
        except OSError as error:
            raise WeightsError(f"cannot read the weights folder {self.folder}: {error.strerror}") from error
        return sorted({path.with_suffix("") if path.suffix == ".sha256" else path for path in inside})

    def recorded(self, path: Path) -> str | None:
        """Return the hash recorded for a file, None where none is.

        Raises:
            WeightsError: The record is damaged.
        """
        record = record_path(path)
        try:
            text = record.read_text(encoding="utf-8")
        except FileNotFoundError:
            return None
        except (OSError, UnicodeDecodeError) as error:
            raise WeightsError(f"cannot read {record}: {error}; delete it, and the hash is recorded anew") from error
        match = _RECORD.fullmatch(text)
        if match is None or match[2] != path.name:
            raise WeightsError(
                f"{record} does not read `HASH  {path.name}`, as `sha256sum` writes it: delete it, and the hash is "
                "recorded anew"
            )
        return match[1]

    def record(self, path: Path, digest: str) -> None:
        """Write a file's hash beside it; the caller holds the lock.

        Raises:
            StoreError: The store cannot be written.
        """
        record = record_path(path)
        temporary = record.parent / ".partial" / f"{secrets.token_hex(4)}-{record.name}"
        with writing(record):
            try:
                temporary.write_text(f"{digest}  {path.name}\n", encoding="utf-8")
                _rename_for_good(temporary, record)
            finally:
                temporary.unlink(missing_ok=True)

    def install(self, whole: Path, path: Path, digest: str) -> None:
        """Give a checked file of `.partial/` its name and record its hash; the caller holds the lock.

        Raises:
            StoreError: The store cannot be written.
        """
        with writing(path):
            # A stop between these steps leaves a file without a record, never a file beside another one's record.
            record_path(path).unlink(missing_ok=True)
            _rename_for_good(whole, path)
        self.record(path, digest)

    @contextmanager
    def lock(self, model: str, waiting: Callable[[], None] = lambda: None) -> Iterator[None]:
        """Hold a model's folder, which is made; the kernel drops the lock when the process ends, however it ends.

        The thread that holds it may take it again.

        Args:
            model: The model.
            waiting: Called once when another process holds it.

        Raises:
            StoreError: The folder cannot be written.
        """
        from filelock import FileLock, Timeout

        incoming = self.folder / model / ".partial"
        with writing(incoming):
            incoming.mkdir(parents=True, exist_ok=True)
        lock = FileLock(incoming / "lock", is_singleton=True)  # so that who holds it may take it again
        with writing(incoming):
            try:
                lock.acquire(timeout=0)
            except Timeout:
                waiting()
                lock.acquire()
        try:
            yield
        finally:
            lock.release()

    def writable(self) -> bool:
        """Return whether files can be stored: the folder, or the nearest one above it, may be written."""
        nearest = next(folder for folder in (self.folder, *self.folder.parents) if folder.exists())
        return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)

    def _record_first(self, path: Path, digest: str) -> str:
        """Return the recorded hash of a file that had none when the caller looked; record digest if it still has none.

        A store that is shared and read-only keeps no record: the hash is part of every result's config all the same.
        """
        try:
            with self.lock(path.parent.name):
                recorded = self.recorded(path)
                if recorded is None:
                    self.record(path, digest)
                return recorded or digest
        except StoreError as error:
            logger.warning("the hash of %s is not recorded: %s", path, error)
            return digest

    def _copy_in(self, file: Path, path: Path, digest: str) -> None:
        temporary = path.parent / ".partial" / f"{secrets.token_hex(4)}-{path.name}"
        copied = hashlib.sha256()
        try:
            with writing(path), file.open("rb") as source, temporary.open("wb") as target:
                while block := source.read(_COPIED_AT_ONCE):
                    copied.update(block)
                    target.write(block)
            if copied.hexdigest() != digest:
                raise WeightsError(f"{file} changed while it was copied: try again when it is finished")
            self.install(temporary, path, digest)
        finally:
            temporary.unlink(missing_ok=True)


def sha256(path: str | Path) -> str:
    """Return the SHA-256 of a file, 64 lower-case hex digits.

    A file that is asked for again is not read again, unless its size, time stamp or identity has changed.

    Raises:
        WeightsError: There is no such file.
    """
    path = Path(path)
    try:
        stat = path.stat()
        if time.time_ns() - stat.st_mtime_ns < _CLOCK_TICK_NS:
            return hash_anew(path)
        return _cached_hash(path.absolute(), stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns)
    except OSError as error:
        raise WeightsError(f"no weight file that can be read at {path}: {error.strerror or error}") from error


def shown(sha256: str) -> str:
    """Return a digest for a message; a dot-dot-dot stands for the digits of one that is known in part."""
    return sha256 if len(sha256) == _DIGITS else f"{sha256}..."


def record_path(path: Path) -> Path:
    """Return where a file's hash is recorded."""
    return path.with_name(f"{path.name}.sha256")


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the operating system into a StoreError that names path and says what to do."""
    try:
        yield
    except PipelineError:
        raise
    except OSError as error:
        advice = f"set {VARIABLE} to a folder that can be written"
        if error.errno in {errno.ENOSPC, errno.EDQUOT}:
            advice = f"free some space, or set {VARIABLE} to a folder on another disk"
        raise StoreError(f"cannot write {path}: {error.strerror or error}; {advice}") from error


def _is_file(path: Path) -> bool:
    try:
        return path.is_file()
    except OSError as error:
        raise WeightsError(f"cannot look for the weight file {path}: {error.strerror}") from error


def hash_anew(path: Path) -> str:
    """Return the SHA-256 of a file, all its bytes read now; OSError where they cannot be."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@lru_cache(maxsize=256)
def _cached_hash(path: Path, *_identity: int) -> str:
    return hash_anew(path)


def _rename_for_good(temporary: Path, path: Path) -> None:
    """Rename a file into place so that neither its content nor its name is lost in a power cut."""
    with temporary.open("rb+") as file:
        os.fsync(file.fileno())
    temporary.replace(path)
    if os.name == "posix":  # Windows opens no folders
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
