"""Interpreter, packages, texts and threads: the answers of Python's own modules are set here."""

import importlib.metadata
import locale
import sys
from pathlib import Path

import pytest

from flows.doctor import programs
from flows.doctor.case import Case
from infra import ray_cluster


@pytest.mark.parametrize(("version", "state"), [((3, 11, 9), "fail"), ((3, 12, 4), "ok"), ((3, 13, 0), "fail")])
def test_the_interpreter(monkeypatch: pytest.MonkeyPatch, version: tuple[int, int, int], state: str) -> None:
    monkeypatch.setattr(sys, "version_info", version)
    assert programs.python(Case()).state == state


def test_packages_here_are_as_they_should_be() -> None:
    finding = programs.packages(Case())
    assert finding.state == "ok", finding
    assert f"torch {importlib.metadata.version('torch')}" in finding.found


def test_packages_that_are_missing_or_of_another_version(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [
        "numpy>=99",
        "no-such-package>=1",
        "zarr>=3",
        "pywin32>=1; sys_platform == 'win32'",
        "s3fs>=1; extra == 'x'",
    ]
    monkeypatch.setattr(programs, "requires", lambda _: wanted)
    finding = programs.packages(Case())
    numpy = importlib.metadata.version("numpy")
    assert finding.state == "fail"
    assert finding.found == f"numpy is {numpy}, needs >=99; no-such-package is missing"


def test_other_versions_than_the_locked_ones(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(programs, "requires", lambda _: ["numpy>=2", "torch>=2", "zarr>=3"])
    monkeypatch.setattr(programs, "LOCK", tmp_path / "requirements.lock")
    assert programs.lock(Case()) is None
    here = {name: importlib.metadata.version(name) for name in ("numpy", "torch", "zarr")}
    lines = [
        "numpy==1.0.0 \\",
        "    --hash=sha256:0",
        f"torch=={here['torch']}+cpu ; python_version == '3.12' \\",
        f"zarr=={here['zarr']}",
    ]
    text = "\n".join(lines)
    (tmp_path / "requirements.lock").write_text(text)
    finding = programs.lock(Case())
    assert finding is not None
    assert (finding.state, finding.found) == ("warn", f"numpy {here['numpy']}, tested with 1.0.0")
    (tmp_path / "requirements.lock").write_text(text.replace("1.0.0", here["numpy"]))
    finding = programs.lock(Case())
    assert finding is not None
    assert (finding.state, finding.found) == ("ok", "3 packages as in requirements.lock")


def test_texts_that_are_not_utf_8(monkeypatch: pytest.MonkeyPatch) -> None:
    assert programs.encoding(Case()).state == "ok"
    monkeypatch.setattr(locale, "getpreferredencoding", lambda do_setlocale: "ISO-8859-1")
    finding = programs.encoding(Case())
    assert (finding.state, finding.found) == ("warn", "texts: ISO-8859-1")
    monkeypatch.setattr(sys, "getfilesystemencoding", lambda: "ascii")
    assert programs.encoding(Case()).state == "fail"


@pytest.mark.parametrize(
    ("name", "value", "actors", "state"),
    [
        ("OMP_NUM_THREADS", "8", None, "ok"),
        ("OMP_NUM_THREADS", "9", None, "warn"),
        ("OMP_NUM_THREADS", "4,2", None, "ok"),
        ("MKL_NUM_THREADS", "1", None, "ok"),
        ("MKL_NUM_THREADS", "2", None, "warn"),
        ("MKL_NUM_THREADS", "2", 4, "ok"),
        ("OPENBLAS_NUM_THREADS", "many", None, "warn"),
    ],
)
def test_threads_of_all_workers_together(
    monkeypatch: pytest.MonkeyPatch, name: str, value: str, actors: int | None, state: str
) -> None:
    """Eight cores are eight workers of one thread, or four of two; OMP's number is set by the workers themselves."""
    monkeypatch.setattr(ray_cluster, "available_cores", lambda: 8)
    for other in programs._THREADS:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, value)
    assert programs.threads(Case(actors=actors)).state == state
