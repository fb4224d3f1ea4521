"""Checks of the clock: by the files of this installation, of the store's file system and the archive, and by S3."""

import os
import tempfile
import time
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from pathlib import Path

import httpx

from flows.doctor.case import Case, Finding, fail, nearest, ok, warn, without_user
from infra.object_store import ObjectPath, endpoint

_DAY = 86_400.0
_REFUSED = 900.0
"""Seconds from which on S3 refuses a request; source: Amazon S3 API Reference, RequestTimeTooSkewed."""
_APART, _MINUTE = 2.0, 60.0
_ENTRIES = 1000


def installed(case: Case) -> Finding:  # noqa: ARG001  # of this machine alone
    """Look whether the clock is before the time at which this program was installed."""
    now, then = time.time(), Path(__file__).stat().st_mtime
    found = f"{datetime.fromtimestamp(now, UTC):%Y-%m-%d %H:%M:%S} UTC"
    if now < then - _DAY:
        return fail(f"{found}, {timedelta(seconds=round(then - now))} before this program was installed")
    return ok(found)


def file_system(case: Case) -> Finding | None:
    """Look whether the store's file system, which may be another machine's, has the same time."""
    if case.local_store is None:
        return None
    place = nearest(case.local_store)
    try:
        with tempfile.TemporaryFile(dir=place) as file:
            before = time.time()
            file.write(b" ")
            file.flush()
            apart = os.fstat(file.fileno()).st_mtime - before
    except OSError:
        return None  # the check of the store tells
    found = f"the file system of {place} is {abs(apart):.1f} s {'ahead' if apart > 0 else 'behind'}"
    return warn(found) if abs(apart) > _APART else ok(f"the file system of {place} has the same time")


def object_storage(case: Case) -> Finding | None:
    """Look whether the object storage has the same time."""
    if not isinstance(case.store, ObjectPath):
        return None
    address = _address(case.store)
    try:
        answer = httpx.head(address, timeout=5.0, follow_redirects=False)
        theirs = parsedate_to_datetime(answer.headers["Date"]).timestamp()
    except (httpx.HTTPError, httpx.InvalidURL, KeyError, ValueError) as error:
        return warn(f"{without_user(address)} does not tell its time: {type(error).__name__}")
    apart = time.time() - theirs
    found = f"this clock is {abs(apart):.0f} s {'ahead of' if apart > 0 else 'behind'} that of {without_user(address)}"
    if abs(apart) > _REFUSED:
        return fail(found)
    return warn(found) if abs(apart) > _MINUTE else ok(found)


def _address(store: ObjectPath) -> str:
    if str(store).startswith("gs:"):
        return "https://storage.googleapis.com"
    region = os.environ.get("AWS_REGION") or os.environ.get("AWS_DEFAULT_REGION") or "us-east-1"
    return endpoint() or f"https://s3.{region}.amazonaws.com"


def future_files(case: Case) -> Finding | None:
    """Look whether files of the archive or the store were written in the future."""
    places = [place for place in (case.local_archive, case.local_store) if place is not None and place.exists()]
    if not places:
        return None
    ahead: dict[Path, float] = {}
    for place in places:
        for path in (place, *_entries(place)):
            late = path.lstat().st_mtime - time.time()
            if late > _MINUTE:
                ahead[path] = late
    if not ahead:
        return ok("no file is from the future")
    path, late = max(ahead.items(), key=lambda item: item[1])
    return warn(f"{len(ahead)} are from the future, {path} by {timedelta(seconds=round(late))}")


def _entries(folder: Path) -> list[Path]:
    """Return what lies directly in a folder, the first thousand."""
    try:
        with os.scandir(folder) as entries:
            return [Path(entry.path) for _, entry in zip(range(_ENTRIES), entries, strict=False)]
    except OSError:
        return []  # a file, or unreadable: the checks of the archive and the store tell
