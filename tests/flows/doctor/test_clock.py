"""Clocks: this machine's is moved by an hour or a year, files are dated, a server of S3 tells its time."""

import os
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.doctor import clock
from flows.doctor.case import Case
from infra.object_store import ObjectPath

REAL = time.time


def moved(monkeypatch: pytest.MonkeyPatch, seconds: float) -> None:
    """Let the doctor alone believe in another time: servers and files of the test have the true one."""
    monkeypatch.setattr(clock, "time", SimpleNamespace(time=lambda: REAL() + seconds))


def test_a_clock_that_has_forgotten_the_year(monkeypatch: pytest.MonkeyPatch) -> None:
    assert clock.installed(Case()).state == "ok"
    moved(monkeypatch, 1000.0 - REAL())
    finding = clock.installed(Case())
    assert (finding.state, finding.found.startswith("1970-01-01 00:16:4")) == ("fail", True)


@pytest.mark.parametrize(
    ("seconds", "state", "words"), [(0, "ok", "same"), (90, "warn", "behind"), (-90, "warn", "ahead")]
)
def test_a_file_system_with_another_time(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seconds: float, state: str, words: str
) -> None:
    moved(monkeypatch, seconds)
    finding = clock.file_system(Case(store=tmp_path / "store"))
    assert finding is not None
    assert (finding.state, words in finding.found) == (state, True)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(("seconds", "state"), [(0, "ok"), (120, "warn"), (-3600, "fail")])
def test_object_storage_with_another_time(
    s3_folder: ObjectPath, monkeypatch: pytest.MonkeyPatch, seconds: float, state: str
) -> None:
    moved(monkeypatch, seconds)
    finding = clock.object_storage(Case(store=s3_folder))
    assert finding is not None
    assert finding.state == state, finding


def test_object_storage_that_tells_no_time(s3_folder: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    finding = clock.object_storage(Case(store=s3_folder))
    assert finding is not None
    assert (finding.state, "http://127.0.0.1:9 does not tell its time" in finding.found) == ("warn", True)
    assert clock.object_storage(Case(store=Path("/store"))) is None


def test_files_of_the_future(tmp_path: Path) -> None:
    for name in ("old", "new"):
        (tmp_path / name).touch()
    finding = clock.future_files(Case(archive=tmp_path))
    assert finding is not None
    assert finding.state == "ok"
    os.utime(tmp_path / "new", (REAL() + 86_400, REAL() + 86_400))
    finding = clock.future_files(Case(archive=tmp_path))
    assert finding is not None
    assert finding.state == "warn"
    assert str(tmp_path / "new") in finding.found
    assert clock.future_files(Case(archive=tmp_path / "none")) is None
