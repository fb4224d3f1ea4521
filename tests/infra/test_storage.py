import errno
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra import object_store
from infra.errors import ConfigError, PipelineError, StoreError, TransientError
from infra.object_store import ObjectPath
from infra.parts import write_parquet
from infra.storage import (
    StorePaths,
    file_sha256,
    file_size,
    is_locked,
    location,
    locked_store,
    open_once,
    remove_folder,
    scratch_folder,
    states_folder,
    store_error,
    sweep_partials,
    version,
    write_atomically,
    write_bytes,
    write_text,
    writing,
)
from infra.zarr_store import ArraySpec, ShardedStore, create_store
from tests.infra.s3_server import BUCKET, Fault, S3Server

ROOT = Path(__file__).parents[2]


def files_below(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@contextmanager
def mounted(folder: Path, options: str) -> Iterator[Path]:
    """A small file system of its own, where mounting one is permitted."""
    folder.mkdir()
    mount = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", options, "tmpfs", folder], check=False, capture_output=True, text=True
    )
    if mount.returncode:
        pytest.skip(f"mounting a tmpfs is not permitted here: {mount.stderr.strip()}")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", folder], check=True)


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """64 KiB and not a byte more."""
    with mounted(tmp_path / "disk", "size=64k") as disk:
        yield disk


def run_and_wait(code: str, *args: Path) -> int:
    """Run Python code in a process of its own and return its exit status."""
    return subprocess.run([sys.executable, "-c", code, *map(str, args)], cwd=ROOT, check=False).returncode


@pytest.fixture
def start() -> Iterator[Callable[..., subprocess.Popen[str]]]:
    """Start Python code in a process of its own, and wait for its first line."""
    running = []

    def run(code: str, *args: Path) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)], cwd=ROOT, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def test_a_file_is_written_whole_into_new_folders(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "c.txt"
    write_text(path, "naïve\n")
    assert path.read_bytes() == b"na\xc3\xafve\n"
    write_text(path, "2")
    assert path.read_bytes() == b"2"
    assert files_below(tmp_path) == ["a/b/c.txt"]


def test_a_writer_that_raises_leaves_neither_name_and_the_old_file(tmp_path: Path) -> None:
    def half(path: Path) -> None:
        path.write_text("half")
        raise KeyError("the rest")

    with pytest.raises(KeyError):
        write_atomically(tmp_path / "new", half)
    assert files_below(tmp_path) == []
    write_text(tmp_path / "old", "whole")
    with pytest.raises(KeyError):
        write_atomically(tmp_path / "old", half)
    assert (tmp_path / "old").read_text() == "whole"
    assert files_below(tmp_path) == ["old"]


def test_a_killed_writer_leaves_no_file_and_the_sweep_removes_its_partial(tmp_path: Path) -> None:
    code = """
import os, signal, sys
from pathlib import Path
from infra.storage import write_atomically
def write(path):
    path.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
write_atomically(Path(sys.argv[1]) / "part.parquet", write)
"""
    assert run_and_wait(code, tmp_path / "work" / "stage") == -signal.SIGKILL
    (left,) = files_below(tmp_path)
    assert left.endswith(".partial")
    (tmp_path / "work" / "kept.parquet").touch()
    (tmp_path / "folder.partial").mkdir()
    assert sweep_partials(tmp_path) == 1
    assert files_below(tmp_path) == ["work/kept.parquet"]
    assert sweep_partials(tmp_path) == 0


@pytest.mark.parametrize(
    ("code", "why"),
    [
        (errno.ENOSPC, "the disk is full"),
        (errno.EDQUOT, "the disk quota is used up"),
        (errno.EROFS, "the file system is read-only"),
        (errno.EACCES, "permission denied"),
    ],
)
def test_the_sentence_names_path_and_reason(tmp_path: Path, code: int, why: str) -> None:
    path = tmp_path / "part-00001.parquet"

    def refuse(temporary: Path) -> None:
        temporary.write_text("x")
        raise OSError(code, os.strerror(code), str(temporary))

    with pytest.raises(StoreError) as caught:
        write_atomically(path, refuse)
    assert str(caught.value) == f"cannot write {path}: {why}"
    assert isinstance(caught.value.__cause__, OSError)
    assert files_below(tmp_path) == []


def test_other_errors_pass_as_they_are(tmp_path: Path) -> None:
    timeout = TimeoutError(errno.ETIMEDOUT, "slow disk")
    assert store_error(timeout, tmp_path) is timeout
    no_code = OSError("no number")
    with pytest.raises(OSError, match="no number") as caught, writing(tmp_path):
        raise no_code
    assert caught.value is no_code
    of_ours = StoreError("cannot write the first one")
    with pytest.raises(StoreError) as kept, writing(tmp_path):
        raise of_ours
    assert kept.value is of_ours


def test_a_file_in_the_way_of_a_folder_is_told(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    for path in (tmp_path / "file" / "a", tmp_path / "file" / "b" / "a", tmp_path / "folder"):
        with pytest.raises(StoreError, match=f"cannot write {path}: a (file|folder|part of the path) "):
            write_text(path, "x")
    assert files_below(tmp_path) == ["file"]


def test_a_full_disk_stops_every_kind_of_write_and_leaves_no_rest(tiny_disk: Path) -> None:
    noise = np.random.default_rng(0).integers(0, 2**16, (16, 8000), dtype=np.uint16)  # 256 kB that zstd cannot shrink
    store = tiny_disk / "a.zarr"
    create_store(store, [ArraySpec("a", ("x",), (8000,), "uint16", 0, {})], 16, 1, {})
    before = files_below(tiny_disk)
    with pytest.raises(StoreError, match=r"cannot write .*part\.parquet: the disk is full"):
        write_parquet(tiny_disk / "part.parquet", pa.table({"a": pa.array(noise.ravel())}))
    with pytest.raises(StoreError, match=r"cannot write .*text: the disk is full"):
        write_text(tiny_disk / "text", "x" * 2**17)
    with pytest.raises(StoreError, match=r"cannot write .*a\.zarr.*: the disk is full"):
        ShardedStore(store, writable=True).write(0, "a", noise)
    assert files_below(tiny_disk) == before
    with pytest.raises(PipelineError, match="is not on disk"):
        ShardedStore(store).read(0, "a")


def test_a_full_disk_shows_when_the_store_is_locked(tiny_disk: Path) -> None:
    (tiny_disk / "work").mkdir()
    with pytest.raises(OSError, match="No space left"):
        (tiny_disk / "filler").write_bytes(b"x" * 2**17)
    with (
        pytest.raises(StoreError, match=f"cannot write {tiny_disk}: the disk is full"),
        locked_store(StorePaths(tiny_disk)),
    ):
        pytest.fail("the store was locked")


def test_a_read_only_disk_is_told(tmp_path: Path) -> None:
    with mounted(tmp_path / "disk", "size=1m,ro") as disk:
        with pytest.raises(StoreError, match=f"cannot write {disk}/a: the file system is read-only"):
            write_text(disk / "a", "x")
        with pytest.raises(StoreError, match="read-only"), locked_store(StorePaths(disk)):
            pytest.fail("the store was locked")


HOLDER = """
import sys, time
from pathlib import Path
from infra.storage import StorePaths, locked_store
with locked_store(StorePaths(Path(sys.argv[1]))):
    print("ready", flush=True)
    time.sleep(60)
"""


def test_one_driver_at_a_time_even_after_a_killed_one(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    first = start(HOLDER, tmp_path)
    (tmp_path / "work" / ".part.parquet.0.partial").touch()
    with pytest.raises(ConfigError, match=f"another run is writing to {tmp_path}"), locked_store(StorePaths(tmp_path)):
        pytest.fail("two drivers hold the store")
    assert (tmp_path / "work" / ".part.parquet.0.partial").exists(), "the first one's file was swept away"
    first.send_signal(signal.SIGKILL)
    first.wait()
    with locked_store(StorePaths(tmp_path)):
        assert files_below(tmp_path) == ["work/lock"]


def test_the_lock_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), locked_store(StorePaths(tmp_path)):
            raise KeyError
    with locked_store(StorePaths(tmp_path / "of")), locked_store(StorePaths(tmp_path / "two")):
        pass


def test_whoever_asks_for_the_lock_keeps_no_run_out(tmp_path: Path) -> None:
    """As `superscene status` does again and again while a run begins."""
    paths = StorePaths(tmp_path)
    with locked_store(paths):
        pass
    over = threading.Event()

    def ask() -> None:
        while not over.wait(0.001):
            is_locked(paths)

    thread = threading.Thread(target=ask)
    thread.start()
    try:
        for _ in range(200):
            with locked_store(paths):
                assert is_locked(paths)
    finally:
        over.set()
        thread.join()


def test_every_place_lies_in_the_store(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    assert {
        str(path.relative_to(tmp_path))
        for path in (
            paths.archive,
            paths.table("metrics"),
            paths.report,
            paths.super_resolved("hat", "abcdef01"),
            paths.maps("grad_cam", "abcdef01"),
            paths.checkpoint("hat", "resnet50", "abcdef01", 3),
        )
    } == {
        "archive.zarr",
        "tables/metrics",
        "report/index.html",
        "sr/hat-abcdef01.zarr",
        "maps/grad_cam-abcdef01.zarr",
        "checkpoints/hat-resnet50-abcdef01/seed-3.safetensors",
    }


def test_a_location_is_a_path_or_a_url(tmp_path: Path) -> None:
    assert location("a/b") == Path("a/b")
    assert location("/a:b") == Path("/a:b")
    assert location("file:///a/b%20c") == location("file://localhost/a/b c") == Path("/a/b c")
    assert str(location("s3://bucket/a")) == "s3://bucket/a"
    assert isinstance(location("gs://bucket/a"), ObjectPath)
    for refused in ("http://host/a", "file://host/a", "file:///a?b", "az://a/b", "s3://user:word@bucket/a"):
        with pytest.raises(ConfigError) as caught:
            location(refused)
        assert "word" not in str(caught.value)


def test_on_object_storage_a_file_appears_whole_by_one_request(s3: S3Server, s3_folder: ObjectPath) -> None:
    path = s3_folder / "a" / "b.parquet"
    write_parquet(path, pa.table({"a": [1]}))
    assert s3.requests == [f"PUT /{BUCKET}/{path.key}?"]
    before = version(path)

    def half(scratch: Path) -> None:
        scratch.write_text("half")
        raise KeyError("the rest")

    for name in ("b.parquet", "new"):
        with pytest.raises(KeyError):
            write_atomically(path.with_name(name), half)
    assert version(path) == before
    write_text(path, "naïve")
    assert version(path) != before
    file, size = open_once(str(path))
    with file:
        assert (file.read(size), size) == (b"na\xc3\xafve", 6)
    assert [found.name for found in path.parent.iterdir()] == ["b.parquet"]
    assert sweep_partials(s3_folder) == 0


def test_a_put_that_fails_for_good_leaves_what_was_there(s3: S3Server, s3_folder: ObjectPath) -> None:
    write_bytes(s3_folder / "a", b"old")
    s3.faults.append(Fault("status", 503, method="PUT", times=100))
    with pytest.raises(TransientError, match="503"):
        write_bytes(s3_folder / "a", b"new")
    s3.faults[:] = [Fault("status", 403, method="PUT", times=100)]
    with pytest.raises(StoreError, match="access denied"):
        write_parquet(s3_folder / "a", pa.table({"a": [1]}))
    assert (s3_folder / "a").read_bytes() == b"old"


def test_folders_are_removed_with_what_lies_in_them(s3_folder: ObjectPath, tmp_path: Path) -> None:
    for root in (s3_folder, tmp_path):
        for name in ("a/b/c", "a/d", "ab"):
            write_bytes(root / name, b"")
        remove_folder(root / "a")
        remove_folder(root / "none")
        assert [path.name for path in root.glob("*")] == ["ab"]
    file, size = open_once(f"file://{tmp_path}/ab")
    with file:
        assert (file.read(), size) == (b"", 0)


@pytest.mark.parametrize("length", [0, 99, 100, 101, 1000, 1234])
def test_an_object_is_read_once_in_ranges_that_come_ahead(
    s3: S3Server, s3_folder: ObjectPath, monkeypatch: pytest.MonkeyPatch, length: int
) -> None:
    monkeypatch.setattr(object_store, "_READ_AHEAD", 100)
    content = os.urandom(length)
    write_bytes(s3_folder / "a", content)
    s3.requests.clear()
    s3.faults += [Fault("status", 503, method="GET", times=2), Fault("half", method="GET")]
    file, size = open_once(str(s3_folder / "a"))
    with file:
        assert size == length
        found = b""
        while part := file.read(37):
            found += part
            assert file.tell() == len(found)
        assert found == content
    ranges = -(-length // 100)
    assert s3.count("GET", "/a") == (ranges + 3 if ranges else 0)
    assert s3.count("HEAD", "/a") == 1, "a second one could fail, with the ranges on their way"


def test_an_object_that_is_not_there_or_not_read_to_its_end(
    s3: S3Server, s3_folder: ObjectPath, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(FileNotFoundError, match="there is no s3://"):
        open_once(str(s3_folder / "none"))
    monkeypatch.setattr(object_store, "_READ_AHEAD", 100)
    write_bytes(s3_folder / "a", bytes(10_000))
    s3.requests.clear()
    file, _ = open_once(str(s3_folder / "a"))
    with file:
        assert len(file.read(150)) == 100  # no more than has come
    assert s3.count("GET", "/a") <= 1 + 4
    s3.faults.append(Fault("status", 503, method="GET", times=1000))
    file, _ = open_once(str(s3_folder / "a"))
    with file, pytest.raises(TransientError, match="503"):
        file.read(1)


def test_a_file_is_closed_without_waiting_for_what_is_on_its_way(s3: S3Server, s3_folder: ObjectPath) -> None:
    write_bytes(s3_folder / "a", b"content")
    s3.faults.append(Fault("stall", method="GET", seconds=3.0))
    file, _ = open_once(str(s3_folder / "a"))
    started = time.monotonic()
    file.close()
    assert time.monotonic() - started < 1.5
    left = [thread for thread in threading.enumerate() if thread.name.startswith("read-ahead")]
    assert left, "nothing was on its way"
    for thread in left:  # each ends with its request
        thread.join(timeout=60)
        assert not thread.is_alive()


def test_states_of_training_lie_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERSCENE_STATES", str(tmp_path))
    assert states_folder(tmp_path / "a") == tmp_path / "a"
    one, two = (states_folder(location(f"s3://bucket/{name}")) for name in ("a", "b"))
    assert one.parent == two.parent == tmp_path
    assert one != two
    assert states_folder(location("s3://bucket/a")) == one


def test_scratch_lies_on_a_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "temporary"))
    assert scratch_folder(tmp_path / "a") == tmp_path / "a"
    assert StorePaths(tmp_path).buckets == tmp_path / "work" / "buckets"
    one, two = (StorePaths(location(f"s3://bucket/{name}")).buckets for name in ("a", "b"))
    assert one.parent == two.parent == tmp_path / "temporary"
    assert one != two
    assert not isinstance(one, ObjectPath)
    monkeypatch.setenv("SUPERSCENE_SCRATCH", str(tmp_path / "scratch"))
    assert StorePaths(location("s3://bucket/a")).buckets == tmp_path / "scratch" / one.name


def test_the_newest_fit_comes_first(s3_folder: ObjectPath, tmp_path: Path) -> None:
    for root in (tmp_path, s3_folder):
        paths = StorePaths(root)
        files = [
            paths.reliability(sr, "resnet18", name) for sr, name in (("none", "a"), ("none", "b"), ("bicubic", "c"))
        ]
        for i, file in enumerate(files):
            write_bytes(file, b"x" * i)
            if i == 0:
                time.sleep(1.1)  # the service tells whole seconds
        assert paths.reliabilities("none", "resnet18") == files[1::-1]
        assert paths.reliabilities("none", "resnet50") == []
        assert [file_size(file) for file in files] == [0, 1, 2]
        with pytest.raises(FileNotFoundError):
            file_size(root / "none")


def test_a_file_s_digest_is_that_of_its_content(s3_folder: ObjectPath, tmp_path: Path) -> None:
    for root in (s3_folder, tmp_path):
        write_bytes(root / "a", b"abc")
        assert file_sha256(root / "a").startswith("ba7816bf8f01cfea414140de5dae2223")  # FIPS 180-4, example of "abc"
