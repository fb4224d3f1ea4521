"""Checks of the store: whether it can be written, by whom, on which file system, and whether somebody writes there."""

import fcntl
import json
import os
import pwd
import shutil
import tempfile
from pathlib import Path

from flows.doctor.case import Case, Finding, fail, gigabytes, nearest, ok, warn
from flows.doctor.files import write_fault
from infra import object_store
from infra.errors import PipelineError
from infra.object_store import ObjectPath
from infra.storage import StorePaths, is_locked, left_behind

NETWORK = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "ceph", "lustre", "beegfs", "gpfs", "glusterfs", "afs"}
)
"""File systems of other machines, where a lock may not reach everybody, and small files are slow."""

BUCKETS = ("s3fs", "gcsfuse", "goofys", "rclone", "mountpoint-s3", "blobfuse", "geesefs")
"""Object storage that is mounted as if it were a disk."""

LOCAL_FUSE = frozenset({"fuseblk", "fuse.fuse-overlayfs"})
"""File systems of a disk here: NTFS and exFAT, and the root of a container without privileges."""

_LEAST_BYTES, _FEW_BYTES = 1e9, 20e9
_LEAST_NODES, _FEW_NODES = 10_000, 100_000
_TAR_GROWS = 2.0  # bytes of a store to those of the tar archives it is made from
_ENTRIES = 1000


def place(case: Case) -> Finding | None:
    """Look whether the store's folder can be written."""
    folder = case.local_store
    if folder is None:
        return None
    there = nearest(folder)
    if not there.is_dir():
        return fail(f"{there} is a file")
    if fault := write_fault(there):
        return fail(f"{there}: {fault}")
    return ok(f"{folder}" if folder.exists() else f"{folder}, to be made in {there}")


def owner(case: Case) -> Finding | None:
    """Look whether the store's files belong to whoever runs this."""
    folder = case.local_store
    if folder is None or not folder.is_dir():
        return None
    paths = [folder, *folder.glob("*"), *folder.glob("*/*")][:_ENTRIES]
    others = [path for path in paths if path.lstat().st_uid != os.geteuid()]
    if not others:
        return ok(f"{_user(os.geteuid())}'s, all of {len(paths)} looked at")
    found = f"{len(others)} of {len(paths)} belong to {_user(others[0].lstat().st_uid)}, such as {others[0]}"
    return warn(f"{found}; this is run by {_user(os.geteuid())}")


def _user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:  # a container knows few
        return f"user {uid}"


def mount(case: Case, path: Path) -> tuple[str, str] | None:
    """Return the kind and the source of the file system that a path lies on; None where the system does not tell."""
    path, best = nearest(path).resolve(), None
    for line in (case.text("proc/mounts") or "").splitlines():
        source, point, kind, *_ = line.split(" ")
        folder = Path(point.replace("\\040", " "))
        if path.is_relative_to(folder) and (best is None or len(folder.parts) >= best[0]):
            best = len(folder.parts), kind, source
    return None if best is None else best[1:]


def file_system(case: Case) -> Finding | None:
    """Look whether the store's file system has locks that everybody sees."""
    folder = case.local_store
    if folder is None:
        return None
    there = nearest(folder)
    try:
        with tempfile.TemporaryFile(dir=there) as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return fail(f"{there} has no locks")
    except OSError as error:
        return fail(f"{there} has no locks: {error.strerror or error}") if not write_fault(there) else None
    found = mount(case, folder)
    if found is None:
        return ok("it has locks")
    kind, source = found
    if any(name in f"{kind} {source}" for name in BUCKETS):
        return warn(f"{there} is object storage, mounted by {kind}")
    if kind in NETWORK or (kind.startswith("fuse") and kind not in LOCAL_FUSE):
        return warn(f"{there} is on {kind}, a file system of another machine")
    return ok(f"{kind}, with locks")


def room(case: Case) -> Finding | None:
    """Look whether the store's disk has room."""
    if case.local_store is None:
        return None
    there = nearest(case.local_store)
    free = shutil.disk_usage(there).free
    found = f"{gigabytes(free)} free in {there}"
    if free < _LEAST_BYTES:
        return fail(found)
    needed = _tar_bytes(case) * _TAR_GROWS
    if free < needed:
        return warn(f"{found}, and the tar archives need about {gigabytes(needed)}")
    return warn(found) if free < _FEW_BYTES else ok(found)


def _tar_bytes(case: Case) -> int:
    root = case.local_archive
    if root is None or not root.is_file():
        return 0
    return sum(path.stat().st_size for path in root.parent.glob(f"*{''.join(root.suffixes[-2:])}") if path.is_file())


def inodes(case: Case) -> Finding | None:
    """Look whether the store's file system has room for more files."""
    if case.local_store is None:
        return None
    there = nearest(case.local_store)
    found = os.statvfs(there)
    if not found.f_files:  # made as they are needed, by btrfs for example
        return ok(f"no limit in {there}")
    words = f"{found.f_favail:,} more files in {there}"
    if found.f_favail < _LEAST_NODES:
        return fail(words)
    return warn(words) if found.f_favail < _FEW_NODES else ok(words)


def writer(case: Case) -> Finding | None:
    """Look whether a run is writing to the store, or a killed one has left it."""
    if case.store is None:
        return None
    paths = StorePaths(case.store)
    try:
        if is_locked(paths):
            return warn("a run is writing to it now")
        if left := left_behind(paths):
            return warn(f"the lease of {left} was not given back")
        record = paths.work / "run.json"
        state = json.loads(record.read_text(encoding="utf-8"))["status"] if record.is_file() else None
    except PipelineError as error:
        return fail(str(error))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return warn(f"{paths.work} cannot be read: {error}")
    if state is None:
        return ok("no run has been there")
    if state in {"running", "stopped"}:
        return warn("its last run was stopped, and is not done")
    return ok(f"free; its last run is {state}")


def bucket(case: Case) -> Finding | None:
    """Look whether the object storage answers, with the credentials that there are."""
    if not isinstance(case.store, ObjectPath):
        return None
    try:
        object_store.ask_once(case.store)
    except PipelineError as error:
        return fail(str(error))
    return ok(f"{case.store} answers")
