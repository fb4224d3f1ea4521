import os
import signal
import subprocess
import sys
import tempfile
import threading
from pathlib import Path

import pytest

from infra import temporary
from infra.errors import StoreError
from infra.temporary import sweep_abandoned, temporary_folder, was_abandoned

ROOT = Path(__file__).parents[2]

HOLDER = """
import sys
from infra.temporary import temporary_folder
with temporary_folder("mine"), temporary_folder("other") as folder:
    (folder / "file").write_text("half")
    print("ready", flush=True)
    sys.stdin.read()
"""


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where temporary files go in these tests."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    temporary._sweep_once.cache_clear()
    return tmp_path


def holder(folder: Path) -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        [sys.executable, "-c", HOLDER],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env=os.environ | {"TMPDIR": str(folder)},
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_folder_ends_with_its_block_however_that_ends(folder: Path) -> None:
    with pytest.raises(KeyError), temporary_folder() as made:  # noqa: PT012
        (made / "a").mkdir()
        (made / "a" / "b").write_text("b")
        assert made.parent == folder
        assert made.stat().st_mode & 0o777 == 0o700
        raise KeyError
    assert not list(folder.iterdir())


def test_a_name_that_a_sweep_has_for_a_moment_is_waited_for(folder: Path) -> None:
    swept = folder / "superscene-tmp-mine"
    swept.mkdir()
    sweep = threading.Timer(0.2, swept.rmdir)
    sweep.start()
    with temporary_folder("mine") as made:
        assert made == swept
        assert not was_abandoned("mine")
    sweep.join()


def test_a_name_that_is_taken_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(temporary, "_SWEEP_SECONDS", 0.05)
    with temporary_folder("mine"), pytest.raises(StoreError, match="cannot make"), temporary_folder("mine"):
        pytest.fail("two have one folder")


def test_a_folder_that_somebody_removed_is_no_error(folder: Path) -> None:
    with temporary_folder() as made:
        made.rmdir()
    assert not list(folder.iterdir())


def test_what_a_living_process_has_stays_and_what_a_killed_one_left_goes(folder: Path) -> None:
    (folder / "superscene-buckets-1").mkdir()
    process = holder(folder)
    assert sweep_abandoned() == 0
    assert not was_abandoned("mine")
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert was_abandoned("mine")
    assert not was_abandoned("nobodys")
    with temporary_folder("this") as made:
        assert was_abandoned("mine"), "who looks for a name sweeps nothing"
        with temporary_folder():
            assert not was_abandoned("mine")
            assert sorted(path.name for path in folder.glob("*-other")) == []
        assert made.is_dir()
    assert [path.name for path in folder.iterdir()] == ["superscene-buckets-1"]


def test_a_process_that_ends_by_itself_leaves_nothing(folder: Path) -> None:
    holder(folder).communicate(timeout=120)
    assert not list(folder.iterdir())


def test_sweeps_take_no_folder_from_those_who_make_some(folder: Path) -> None:
    over = threading.Event()
    swept: list[int] = []

    def sweep() -> None:
        while not over.is_set():
            swept.append(sweep_abandoned())

    threads = [threading.Thread(target=sweep) for _ in range(2)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(300):
            with temporary_folder() as made:
                (made / "file").write_text("whole")
                assert (made / "file").read_text() == "whole"
    finally:
        over.set()
        for thread in threads:
            thread.join()
    assert swept
    assert not list(folder.iterdir())


def test_a_link_to_a_folder_is_not_followed(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> None:
    target = tmp_path_factory.mktemp("elsewhere")
    (target / "file").write_text("kept")
    (folder / "superscene-tmp-link").symlink_to(target)
    assert sweep_abandoned() == 0
    assert (target / "file").read_text() == "kept"


def test_a_place_that_is_closed_is_told(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "file").write_text("")
    monkeypatch.setattr(tempfile, "tempdir", str(folder / "file"))
    with pytest.raises(StoreError, match=r"cannot make a folder for temporary files, .*: Not a directory"):
        temporary_folder("mine").__enter__()
