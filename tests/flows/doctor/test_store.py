"""Stores in trouble: read-only, another's, full, on file systems of other machines, held or left by runs."""

import fcntl
import json
import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from flows.doctor import store
from flows.doctor.case import Case, Finding
from infra.object_store import ObjectPath, object_path
from infra.storage import StorePaths, locked_store, write_text
from tests.flows.doctor.system import written


def told(finding: Finding | None) -> tuple[str, str]:
    assert finding is not None
    return finding.state, finding.found


def test_a_folder_that_is_there_or_can_be_made(tmp_path: Path) -> None:
    assert told(store.place(Case(store=tmp_path))) == ("ok", str(tmp_path))
    state, found = told(store.place(Case(store=tmp_path / "a" / "b")))
    assert (state, found.endswith(f"to be made in {tmp_path}")) == ("ok", True)
    assert list(tmp_path.iterdir()) == []


def test_a_folder_that_nobody_can_write(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    assert told(store.place(Case(store=tmp_path / "file" / "store"))) == ("fail", f"{tmp_path / 'file'} is a file")
    assert told(store.place(Case(store=Path("/proc/self/store"))))[0] == "fail"


def test_a_store_of_another_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "work").mkdir()
    assert told(store.owner(Case(store=tmp_path)))[0] == "ok"
    mine = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: mine + 4711)
    state, found = told(store.owner(Case(store=tmp_path)))
    assert (state, f"2 of 2 belong to {store._user(mine)}" in found) == ("warn", True)
    assert f"run by user {mine + 4711}" in found


@pytest.mark.parametrize(
    ("line", "state", "words"),
    [
        ("/dev/sda1 {} ext4 rw 0 0", "ok", "ext4"),
        ("server:/export {} nfs4 rw,vers=4.2 0 0", "warn", "nfs4"),
        ("//server/share {} cifs rw 0 0", "warn", "cifs"),
        ("me@host:/data {} fuse.sshfs rw 0 0", "warn", "fuse.sshfs"),
        ("/dev/sdb1 {} fuseblk rw 0 0", "ok", "fuseblk, with locks"),
        ("s3fs {} fuse.s3fs rw 0 0", "warn", "object storage, mounted"),
        ("gcsfuse {} fuse rw 0 0", "warn", "object storage, mounted"),
    ],
)
def test_file_systems_by_the_mounts(tmp_path: Path, line: str, state: str, words: str) -> None:
    """The innermost mount counts, and a blank in its name is written in octal."""
    folder = tmp_path / "my store"
    folder.mkdir()
    mounts = "\n".join(["/dev/root / ext4 rw 0 0", line.format(str(folder).replace(" ", "\\040")), ""])
    system = written(tmp_path / "system", proc__mounts=mounts)
    found = told(store.file_system(Case(store=folder, system=system)))
    assert (found[0], words in found[1]) == (state, True), found


def test_a_file_system_without_locks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(37, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    state, found = told(store.file_system(Case(store=tmp_path)))
    assert (state, "No locks available" in found) == ("fail", True)


@pytest.mark.parametrize(("free", "state"), [(0.5e9, "fail"), (10e9, "warn"), (21e9, "ok")])
def test_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, state: str) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=free))
    assert told(store.room(Case(store=tmp_path)))[0] == state


def test_room_for_what_tar_archives_hold(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Two archives of 15 GB, of which nothing is written: 30 GB become about 60."""
    for name in ("BigEarthNet-S2.tar.zst", "BigEarthNet-S1.tar.zst"):
        with (tmp_path / name).open("wb") as file:
            file.truncate(15 * 10**9)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=40e9))
    case = Case(store=tmp_path, archive=tmp_path / "BigEarthNet-S2.tar.zst")
    state, found = told(store.room(case))
    assert (state, "about 60.0 GB" in found) == ("warn", True)


@pytest.mark.parametrize(
    ("nodes", "free", "state"), [(10**6, 9_999, "fail"), (10**6, 99_999, "warn"), (10**6, 10**6, "ok"), (0, 0, "ok")]
)
def test_inodes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, nodes: int, free: int, state: str) -> None:
    monkeypatch.setattr(os, "statvfs", lambda _: SimpleNamespace(f_files=nodes, f_favail=free))
    assert told(store.inodes(Case(store=tmp_path)))[0] == state


def test_a_run_that_writes_and_one_that_was_stopped(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    assert told(store.writer(Case(store=tmp_path))) == ("ok", "no run has been there")
    with locked_store(paths):
        assert told(store.writer(Case(store=tmp_path))) == ("warn", "a run is writing to it now")
    for status, state in (("running", "warn"), ("stopped", "warn"), ("complete", "ok"), ("incomplete", "ok")):
        (paths.work / "run.json").write_text(json.dumps({"status": status}))
        assert told(store.writer(Case(store=tmp_path)))[0] == state
    (paths.work / "run.json").write_text("{")
    state, found = told(store.writer(Case(store=tmp_path)))
    assert (state, "cannot be read" in found) == ("warn", True)


def test_a_lease_that_was_not_given_back(s3_folder: ObjectPath) -> None:
    """One that says it is valid for a hundredth of a second is stale after two of them."""
    paths = StorePaths(s3_folder)
    lease = {"holder": "a", "host": "node7", "pid": 4711, "renewed": 3, "seconds": 0.0, "held": True, "boot": ""}
    write_text(paths.work / "lease.json", json.dumps(lease))
    state, found = told(store.writer(Case(store=s3_folder)))
    assert (state, found) == ("warn", "the lease of process 4711 on node7 was not given back")
    write_text(paths.work / "lease.json", json.dumps({**lease, "held": False}))
    assert told(store.writer(Case(store=s3_folder)))[0] == "ok"
    write_text(paths.work / "lease.json", json.dumps({**lease, "seconds": 3600.0}))
    assert told(store.writer(Case(store=s3_folder))) == ("warn", "a run is writing to it now")


def test_a_bucket_that_answers_and_some_that_do_not(s3_folder: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    assert told(store.bucket(Case(store=s3_folder)))[0] == "ok"
    state, found = told(store.bucket(Case(store=object_path("s3://no-such-bucket/store"))))
    assert (state, "there is no such bucket" in found) == ("fail", True)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    state, found = told(store.bucket(Case(store=s3_folder)))
    assert (state, "no connection" in found) == ("fail", True)


def test_a_bucket_that_refuses_the_credentials(s3_folder: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_METADATA_ENDPOINT", "http://127.0.0.1:9")
    state, found = told(store.bucket(Case(store=s3_folder)))
    assert state == "fail", found


def test_a_bucket_is_no_folder(s3_folder: ObjectPath, tmp_path: Path) -> None:
    case = Case(store=s3_folder)
    assert [look(case) for look in (store.place, store.owner, store.file_system, store.room, store.inodes)] == [
        None
    ] * 5
    assert store.bucket(Case(store=tmp_path)) is None
