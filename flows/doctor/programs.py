"""Checks of Python, the packages, and how this process reads and writes text."""

import locale
import os
import platform
import re
import sys
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path

from packaging.requirements import Requirement

from flows.doctor.case import Case, Finding, fail, ok, warn

PYTHON = (3, 12)
LOCK = Path(__file__).parents[2] / "requirements.lock"
"""The versions that the tests run with; there where this is a checkout."""

_SHOWN = ("torch", "ray", "prefect", "zarr", "rasterio", "timm")
_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS", "NUMEXPR_NUM_THREADS")
_MOST_NAMED = 6


def python(case: Case) -> Finding:  # noqa: ARG001  # of the interpreter alone
    """Look at the interpreter's version."""
    found = f"{platform.python_version()}, {sys.executable}"
    return ok(found) if sys.version_info[:2] == PYTHON else fail(found)


def packages(case: Case) -> Finding:  # noqa: ARG001  # of the environment alone
    """Look whether every package is there, in a version that this project works with."""
    wrong = []
    for text in requires("superscene") or []:
        wanted = Requirement(text)
        if wanted.marker is not None and not wanted.marker.evaluate({"extra": ""}):
            continue
        try:
            there = version(wanted.name)
        except PackageNotFoundError:
            wrong.append(f"{wanted.name} is missing")
            continue
        if not wanted.specifier.contains(there, prereleases=True):
            wrong.append(f"{wanted.name} is {there}, needs {wanted.specifier}")
    if wrong:
        return fail("; ".join(wrong))
    return ok(", ".join(f"{name} {version(name)}" for name in _SHOWN))


def lock(case: Case) -> Finding | None:  # noqa: ARG001  # of the environment alone
    """Look whether the packages have the versions that the tests run with."""
    if not LOCK.is_file():
        return None
    locked = dict(re.findall(r"^([A-Za-z0-9._-]+)==([^\s;\\]+)", LOCK.read_text(encoding="utf-8"), re.MULTILINE))
    needed = {re.sub(r"[-_.]+", "-", Requirement(text).name).lower() for text in requires("superscene") or []}
    others = []
    for name in sorted(needed & locked.keys()):
        try:
            there = version(name)
        except PackageNotFoundError:
            continue  # the check `packages` tells
        if there.partition("+")[0] != locked[name].partition("+")[0]:
            others.append(f"{name} {there}, tested with {locked[name]}")
    if not others:
        return ok(f"{len(needed & locked.keys())} packages as in requirements.lock")
    more = f"; and {len(others) - _MOST_NAMED} more" if len(others) > _MOST_NAMED else ""
    return warn("; ".join(others[:_MOST_NAMED]) + more)


def encoding(case: Case) -> Finding:  # noqa: ARG001  # of this process alone
    """Look whether names of files and texts are UTF-8."""
    kinds = {
        "names of files": sys.getfilesystemencoding(),
        "texts": locale.getpreferredencoding(do_setlocale=False),
        "the terminal": getattr(sys.stdout, "encoding", None) or "utf-8",
    }
    other = [f"{what}: {kind}" for what, kind in kinds.items() if kind.lower().replace("-", "") != "utf8"]
    if not other:
        return ok("UTF-8")
    found = "; ".join(other)
    return fail(found) if kinds["names of files"].lower() != "utf-8" else warn(found)


def threads(case: Case) -> Finding:
    """Look whether the environment gives every worker more threads than there are cores for it."""
    from infra.ray_cluster import available_cores

    cores = available_cores()
    each = max(1, cores // (case.actors or cores))
    wrong = []
    for name in _THREADS:
        text = os.environ.get(name, "")
        most = cores if name == "OMP_NUM_THREADS" else each  # workers set that one themselves
        first = text.partition(",")[0]
        if text and not first.isdecimal():
            wrong.append(f"{name}={text} is no number")
        elif text and int(first) > most:
            wrong.append(f"{name}={text}, for {each} of {cores} cores a worker")
    return warn("; ".join(wrong)) if wrong else ok(f"{cores} cores, and no variable gives a worker more threads")
