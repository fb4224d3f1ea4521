"""Checks of the folders that a run uses beside the store: temporary files, Ray's sockets, the user's own."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

from flows.doctor.case import Case, Finding, fail, gigabytes, nearest, ok, scratch, warn

LONGEST_SOCKET = 107 if sys.platform.startswith("linux") else 103
"""Bytes of a Unix socket's path."""

_LEAST_BYTES, _FEW_BYTES = 1e9, 5e9


def room(case: Case) -> Finding:  # noqa: ARG001  # the environment names the folder
    """Look whether there is room for temporary files."""
    place = nearest(scratch())
    free = shutil.disk_usage(place).free
    found = f"{gigabytes(free)} free in {place}"
    if free < _LEAST_BYTES:
        return fail(found)
    return warn(found) if free < _FEW_BYTES else ok(found)


def executable(case: Case) -> Finding:  # noqa: ARG001  # the environment names the folder
    """Look whether programs may be run from the folder for temporary files."""
    place = Path(tempfile.gettempdir())
    if os.statvfs(place).f_flag & os.ST_NOEXEC:
        return warn(f"{place} is mounted noexec")
    return ok(f"programs may run from {place}")


def writable(case: Case) -> Finding:  # noqa: ARG001  # the environment names the folder
    """Look whether temporary files can be written."""
    place = scratch()
    if fault := write_fault(nearest(place)):
        return fail(f"{place}: {fault}")
    return ok(str(place))


def ray_folder() -> Path:
    """Return the folder in which Ray keeps the files of its sessions."""
    on_linux = os.environ.get("TMPDIR") if sys.platform.startswith("linux") else None
    return Path(os.environ.get("RAY_TMPDIR") or on_linux or "/tmp") / "ray"  # noqa: S108  # as Ray chooses it


def sockets(case: Case) -> Finding:  # noqa: ARG001  # the environment names the folder
    """Look whether the names of Ray's sockets are short enough."""
    folder = ray_folder()
    longest = f"{folder}/session_2026-01-01_00-00-00_000000_{2**22}/sockets/plasma_store"
    length = len(os.fsencode(longest))
    found = f"sockets below {folder} have names of {length} bytes, of {LONGEST_SOCKET} that the system allows"
    return fail(found) if length > LONGEST_SOCKET else ok(found)


def home(case: Case) -> Finding:  # noqa: ARG001  # the environment names the folders
    """Look whether Prefect's folder can be written, and with it the user's own."""
    place = Path(os.environ.get("PREFECT_HOME") or Path("~/.prefect").expanduser())
    if fault := write_fault(nearest(place)):
        return fail(f"{place}: {fault}")
    return ok(str(place))


def write_fault(folder: Path) -> str | None:
    """Return why no file can be written to a folder; None where one can: it is tried, and leaves nothing."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b" " * 4096)
            file.flush()
    except OSError as error:
        return error.strerror or type(error).__name__
    return None
