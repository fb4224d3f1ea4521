"""The lease: one driver at a time on object storage, where no kernel keeps a lock for whoever is alive.

It is an object that is created, renewed, taken over and given back by conditional PUTs: of two drivers one wins. The
holder renews it; whoever wants it watches it. A lease that does not change for as long as it is valid, by the
watcher's own clock, has lost its holder: no two clocks are ever compared. Where holder and watcher run under one kernel
and see the same temporary files, the kernel tells at once: the holder has locked a folder there, of its random name.
"""

import _thread
import json
import os
import secrets
import signal
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from infra import object_store
from infra.errors import ConfigError, PipelineError, StoreError
from infra.logs import events
from infra.object_store import ObjectPath
from infra.temporary import temporary_folder, was_abandoned

if TYPE_CHECKING:
    from obstore import UpdateVersion

SECONDS = 60.0
"""For how long a lease is valid since it was renewed; what a run waits for after a killed one."""

_BOOT = Path("/proc/sys/kernel/random/boot_id")

_RENEWALS = 4
"""Renewals within that time: three may fail."""

_lost: set[ObjectPath] = set()
"""Leases that this process lost."""


@dataclass(frozen=True, slots=True)
class _Lease:
    """What the object holds, as JSON."""

    holder: str
    """A random name; of one driver."""
    host: str
    pid: int
    renewed: int
    """How often; no two contents are alike."""
    seconds: float
    """For how long it is valid."""
    held: bool = True
    """False once it was given back."""
    boot: str = ""
    """The kernel's name for its time since the machine started; empty where it has none."""

    def to_bytes(self) -> bytes:
        return json.dumps(asdict(self)).encode()


class _Renewal(threading.Thread):
    """Renews the lease until it is told to stop, and interrupts the driver where somebody else took it."""

    def __init__(self, path: ObjectPath, lease: _Lease, version: "UpdateVersion") -> None:
        super().__init__(name="lease", daemon=True)
        self._path, self._lease, self._version = path, lease, version
        self._stopped = threading.Event()
        self._in_main = threading.current_thread() is threading.main_thread()
        self.lost = False

    def run(self) -> None:
        renewed = time.monotonic()
        while not self._stopped.wait(self._lease.seconds / _RENEWALS):
            try:
                taken = not self._write(replace(self._lease, renewed=self._lease.renewed + 1))
                renewed = time.monotonic()
            except PipelineError:  # the service is away: others cannot take the lease either, nor can shards be written
                taken = time.monotonic() - renewed > 10 * self._lease.seconds
            if taken:
                self.lost = True
                _lost.add(self._path)
                events.error("the lease was lost: another run took it, or the store is out of reach")
                if self._in_main:
                    _thread.interrupt_main()
                return

    def give_back(self) -> None:
        """Stop renewing, and let others have the lease at once."""
        self._stopped.set()
        self.join()
        if not self.lost:
            self._write(replace(self._lease, renewed=self._lease.renewed + 1, held=False))

    def _write(self, lease: _Lease) -> bool:
        version = object_store.put_if(self._path, lease.to_bytes(), self._version)
        if version is None:
            return False
        self._lease, self._version = lease, version
        return True


@contextmanager
def held(path: ObjectPath) -> Iterator[None]:
    """Hold a lease while the block runs.

    A lease whose holder was killed is waited for, for at most `SECONDS`; on the same machine it is had at once.

    Args:
        path: The lease's object.

    Raises:
        ConfigError: Another driver holds it, and is alive.
        StoreError: The store cannot be written, or the lease was lost while the block ran.
    """
    lease = _Lease(secrets.token_hex(8), socket.gethostname(), os.getpid(), 0, SECONDS, boot=_boot())
    with temporary_folder(lease.holder), _interruptible():  # the folder is there before others can see its name
        yield from _held(path, lease)


@contextmanager
def _interruptible() -> Iterator[None]:
    """Let the driver be interrupted while the block runs, also where it was started with interrupts ignored.

    A shell does that to what it starts in the background, and then nothing would stop a driver that lost its lease.
    """
    ignored = signal.getsignal(signal.SIGINT) == signal.SIG_IGN
    if not ignored or threading.current_thread() is not threading.main_thread():
        yield
        return
    signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, signal.SIG_IGN)


def _held(path: ObjectPath, lease: _Lease) -> Iterator[None]:
    """Yield once, between taking the lease and giving it back."""
    renewal = _Renewal(path, lease, _acquired(path, lease))
    renewal.start()
    lost = StoreError(f"the lease {path} was lost: another run took the store, or it was out of reach for too long")
    try:
        yield
    except BaseException as error:
        try:
            renewal.give_back()
        except PipelineError as failure:  # what ended the run is to be told, not this: the lease runs out by itself
            events.warning("the lease was not given back: %s", failure)
        if isinstance(error, KeyboardInterrupt) and renewal.lost:
            raise lost from None
        raise
    renewal.give_back()
    if renewal.lost:
        raise lost


def is_lost(path: ObjectPath) -> bool:
    """Return whether this process had a lease and lost it: then the store is another driver's."""
    return path in _lost


def is_held(path: ObjectPath) -> bool:
    """Return whether a driver holds the lease, as far as this machine's clock can tell."""
    try:
        lease, written = _read(path)[0], object_store.modified(path)
    except FileNotFoundError:
        return False
    recent = (datetime.now(UTC) - written).total_seconds() < 2 * lease.seconds
    return lease.held and recent and not _is_dead(lease)


def left_behind(path: ObjectPath) -> str | None:
    """Return whose lease it is that was not given back, and that nobody holds; None where there is none such.

    Raises:
        StoreError: The object is no lease.
    """
    try:
        lease = _read(path)[0]
    except FileNotFoundError:
        return None
    return f"process {lease.pid} on {lease.host}" if lease.held and not is_held(path) else None


def _acquired(path: ObjectPath, lease: _Lease) -> "UpdateVersion":
    """Wait until the lease is free or abandoned, take it, and return its version."""
    version = object_store.put_if(path, lease.to_bytes(), None)
    watched: _Lease | None = None
    since = time.monotonic()
    while version is None:
        try:
            found, its_version = _read(path)
        except FileNotFoundError:
            version = object_store.put_if(path, lease.to_bytes(), None)
            continue
        if watched is not None and watched != found and found.held:
            raise ConfigError(
                f"another run (process {found.pid} on {found.host}) is writing to the store of {path}; wait for it, "
                "or choose another store"
            )
        if not found.held or _is_dead(found) or time.monotonic() - since > found.seconds:
            version = object_store.put_if(path, lease.to_bytes(), its_version)
            if version is not None and found.held:
                events.warning("the lease of process %d on %s ran out and was taken over", found.pid, found.host)
            continue
        if watched is None:
            events.info("waiting for the lease of process %d on %s to change or run out", found.pid, found.host)
        watched = found
        time.sleep(found.seconds / _RENEWALS / 5)
    return version


def _is_dead(lease: _Lease) -> bool:
    """Return whether this machine knows that the holder is gone.

    A copy of a machine's disk would have its folder without its lock, so the kernel must be the very same.
    """
    return bool(lease.boot) and lease.boot == _boot() and was_abandoned(lease.holder)


def _boot() -> str:
    return _BOOT.read_text().strip() if _BOOT.is_file() else ""


def _read(path: ObjectPath) -> "tuple[_Lease, UpdateVersion]":
    """Return the lease, and the version that it had before it was read: what is put upon that replaces no later one.

    Raises:
        FileNotFoundError: There is none.
        StoreError: The object is no lease.
    """
    version = object_store.version(path)
    try:
        return _Lease(**json.loads(path.read_bytes())), version
    except (ValueError, TypeError) as error:
        raise StoreError(f"{path} is no lease of this project: remove it, once no run is writing there") from error
