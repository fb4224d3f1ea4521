import errno
import os
from pathlib import Path

import pytest

from infra.archives.places import is_missing
from infra.object_store import ObjectPath
from infra.storage import write_bytes


def test_what_is_missing_is_what_nothing_bears_the_name_of(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "file").touch()
    (tmp_path / "lost link").symlink_to(tmp_path / "nowhere")
    found = {name: is_missing(str(tmp_path), name) for name in ("folder", "file", "lost link", "nothing")}
    assert found == {"folder": False, "file": False, "lost link": False, "nothing": True}


def test_on_a_lost_disk_nothing_is_missing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a patch would be stored without the pair that it has: who opens the folder tells what is wrong."""
    assert not is_missing(str(tmp_path / "unmounted"), "folder")

    def stale(_: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(os, "lstat", stale)
    assert not is_missing(str(tmp_path), "folder")


def test_on_object_storage(s3_folder: ObjectPath) -> None:
    write_bytes(s3_folder / "folder" / "file", b"1")
    assert not is_missing(str(s3_folder), "folder")
    assert is_missing(str(s3_folder), "nothing")
