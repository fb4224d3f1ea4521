"""Folders beside the store: real ones, and some whose disk is said to be full, closed or noexec."""

import os
import shutil
import tempfile
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.doctor import files
from flows.doctor.case import Case, nearest, scratch


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("SUPERSCENE_SCRATCH", "RAY_TMPDIR", "TMPDIR", "PREFECT_HOME"):
        monkeypatch.delenv(name, raising=False)


def test_the_innermost_folder_that_exists(tmp_path: Path) -> None:
    assert nearest(tmp_path / "a" / "b") == tmp_path
    assert nearest(tmp_path) == tmp_path


def test_the_scratch_folder_is_the_environments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert scratch() == Path(tempfile.gettempdir())
    monkeypatch.setenv("SUPERSCENE_SCRATCH", str(tmp_path))
    assert scratch() == tmp_path


@pytest.mark.parametrize(("free", "state"), [(0.9e9, "fail"), (4.9e9, "warn"), (5.1e9, "ok")])
def test_room(monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    finding = files.room(Case())
    assert (finding.state, f"{free / 1e9:.1f} GB" in finding.found) == (state, True)


@pytest.mark.parametrize(("flags", "state"), [(0, "ok"), (os.ST_NOEXEC, "warn"), (os.ST_NOSUID, "ok")])
def test_noexec(monkeypatch: pytest.MonkeyPatch, flags: int, state: str) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_flag=flags))
    assert files.executable(Case()).state == state


def test_a_folder_that_takes_no_file(monkeypatch: pytest.MonkeyPatch) -> None:
    """/proc refuses the administrator too."""
    monkeypatch.setenv("SUPERSCENE_SCRATCH", "/proc/self/here")
    assert files.writable(Case()).state == "fail"
    monkeypatch.setenv("PREFECT_HOME", "/proc/self/prefect")
    finding = files.home(Case())
    assert (finding.state, "/proc/self/prefect" in finding.found) == ("fail", True)


def test_folders_that_take_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERSCENE_SCRATCH", str(tmp_path / "new"))
    monkeypatch.setenv("PREFECT_HOME", str(tmp_path / "prefect"))
    assert files.writable(Case()).state == "ok"
    assert files.home(Case()).state == "ok"
    assert list(tmp_path.iterdir()) == []


def test_rays_sockets_are_as_long_as_rays_own_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """/tmp/ray and the rest are 72 bytes, so a folder may have 35 more."""
    monkeypatch.setenv("RAY_TMPDIR", "/tmp")
    assert "72 bytes" in files.sockets(Case()).found
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 34)
    assert files.sockets(Case()).state == "ok"
    monkeypatch.setenv("RAY_TMPDIR", "/tmp/" + "x" * 35)
    assert files.sockets(Case()).state == "fail"


def test_rays_folder_is_where_ray_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray._common.utils import get_default_ray_temp_dir

    for name in ("", "TMPDIR", "RAY_TMPDIR"):
        if name:
            monkeypatch.setenv(name, str(tmp_path / name))
        assert str(files.ray_folder()) == get_default_ray_temp_dir()  # type: ignore[no-untyped-call]
