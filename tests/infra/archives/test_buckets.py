import os
import stat
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest

from infra.archives.buckets import MAX_FILES, MAX_OPEN, Bucket, Buckets, BucketWriter, Fault, folder_record
from infra.errors import BadPatchError, StoreError


def append(buckets: Buckets, shard: int, record: Sequence[bytes | memoryview]) -> int:
    with BucketWriter(buckets) as writer:
        return writer.append(shard, record)


def test_a_bucket_gives_back_what_was_appended(tmp_path: Path) -> None:
    buckets = Buckets(tmp_path / "buckets")
    buckets.make()
    files = {f"top/a{i % 3}_é/{i}": os.urandom(i * 1000) for i in range(9)}
    for i in range(3):
        folder = f"top/a{i}_é"
        here = [(str(k), files[f"{folder}/{k}"]) for k in range(i, 9, 3)]
        for part in (here[:2], here[2:]):
            record = folder_record(folder, [(name, memoryview(data)) for name, data in part])
            names = "\0".join([folder, *(name for name, _ in part)])
            size = 4 + 2 + 4 * len(part) + len(names.encode()) + sum(len(data) for _, data in part)
            assert append(buckets, 7, record) == size
    append(buckets, 7, folder_record("top/empty", []))
    append(buckets, 7, folder_record("top/a0_é", []))
    append(buckets, 7, folder_record("top/empty", [("link", Fault("unreadable", "it is\na link"))]))
    assert [path.name for path in buckets.folder.iterdir()] == ["shard-00007.bucket"]
    assert not stat.S_IMODE(buckets.path(7).stat().st_mode) & 0o111
    with Bucket(buckets.path(7)) as bucket:
        for path, data in files.items():
            folder, _, name = path.rpartition("/")
            opened = bucket.open(folder)
            assert opened is not None
            with opened:
                assert (opened.relative, bytes(opened.read(name, whole=True))) == (folder, data)
                assert opened.has_any({name, "other"})
                assert not opened.has_any({"other"})
                with pytest.raises(BadPatchError, match=f"^{folder}/other: no_metadata: it does not exist$"):
                    opened.read("other", "no_metadata")
        empty = bucket.open("top/empty")
        assert empty is not None
        with pytest.raises(BadPatchError) as caught:
            empty.read("link")
        assert (caught.value.path, caught.value.reason, caught.value.detail) == (
            "top/empty/link",
            "unreadable",
            "it is\na link",
        )
        assert empty.has_any({"link"})
        assert bucket.open("top") is bucket.open("top/a0_é/0") is None


def test_of_two_files_of_one_name_the_first_counts(tmp_path: Path) -> None:
    buckets = Buckets(tmp_path)
    for data in (b"first", b"second"):
        append(buckets, 0, folder_record("a", [("b", memoryview(data))]))
    with Bucket(buckets.path(0)) as bucket:
        opened = bucket.open("a")
        assert opened is not None
        assert bytes(opened.read("b")) == b"first"


def test_an_empty_bucket_has_no_folder(tmp_path: Path) -> None:
    assert append(Buckets(tmp_path), 0, ()) == 0
    with Bucket(Buckets(tmp_path).path(0)) as bucket:
        assert bucket.open("a") is None


def test_a_record_of_the_most_files_is_one_system_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "write")  # which is asked for what is left
    files = [(str(i), memoryview(bytes([i % 256]))) for i in range(MAX_FILES)]
    append(Buckets(tmp_path), 0, folder_record("a", files))
    with Bucket(Buckets(tmp_path).path(0)) as bucket:
        opened = bucket.open("a")
        assert opened is not None
        assert [bytes(opened.read(name)) for name, _ in files] == [bytes(data) for _, data in files]


def test_what_is_held_outlives_the_bucket(tmp_path: Path) -> None:
    append(Buckets(tmp_path), 0, folder_record("a", [("b", memoryview(b"kept"))]))
    with Bucket(Buckets(tmp_path).path(0)) as bucket:
        opened = bucket.open("a")
        assert opened is not None
        data = opened.read("b")
    Buckets(tmp_path).path(0).unlink()
    assert bytes(data) == b"kept"
    assert bucket.open("a") is None


def test_what_cannot_be_written_or_found_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("no folder")
    with pytest.raises(StoreError, match="a part of the path is a file"):
        Buckets(tmp_path / "file" / "buckets").make()
    with pytest.raises(StoreError, match=r"cannot write .*shard-00003\.bucket"):
        append(Buckets(tmp_path / "gone"), 3, [b"x"])
    with pytest.raises(StoreError, match=r"shard-00003\.bucket does not exist"):
        Bucket(Buckets(tmp_path).path(3))


def test_a_folder_that_appears_beforehand_is_not_used(tmp_path: Path) -> None:
    """Somebody else's, in the folder for temporary files, or a link to what is not to be removed."""
    (tmp_path / "buckets").mkdir()
    with pytest.raises(StoreError, match=r"cannot write .*buckets"):
        Buckets(tmp_path / "buckets").make()


def test_a_full_disk_is_the_store_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(fd: int, data: memoryview) -> int:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "write", full)
    monkeypatch.setattr(os, "writev", lambda fd, records: 3)
    with pytest.raises(StoreError, match="the disk is full"):
        append(Buckets(tmp_path), 0, [b"abcd"])


def test_a_write_cut_short_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write = os.write
    monkeypatch.setattr(os, "writev", lambda fd, records: write(fd, b"".join(records)[:3]))
    monkeypatch.setattr(os, "write", lambda fd, data: write(fd, data[:2]))
    assert append(Buckets(tmp_path), 0, [b"ab", memoryview(b"cdefg"), b"", b"hij"]) == 10
    assert Buckets(tmp_path).path(0).read_bytes() == b"abcdefghij"


@pytest.mark.skipif(sys.platform != "linux", reason="other systems do not list a process's files there")
def test_many_buckets_take_turns_and_few_are_open(tmp_path: Path) -> None:
    """As many as may be, and none that was closed or left."""
    buckets = Buckets(tmp_path / "buckets")
    buckets.make()
    shards = range(2 * MAX_OPEN)

    def opened() -> set[str]:
        targets = [str(link.readlink()) for link in Path("/proc/self/fd").iterdir() if link.is_symlink()]
        return {Path(target).name for target in targets if target.startswith(f"{buckets.folder}/")}

    with BucketWriter(buckets) as writer:
        for turn in range(3):
            for shard in shards:
                assert writer.append(shard, [bytes([turn]), bytes([shard])]) == 2
        writer.append(shards[-MAX_OPEN], [b"again"])  # the longest unused otherwise
        writer.append(0, [b"last"])
        last = [*range(MAX_OPEN + 2, 2 * MAX_OPEN), MAX_OPEN, 0]
        assert opened() == {buckets.path(shard).name for shard in last}
        writer.close(0)
        writer.close(1)
        assert opened() == {buckets.path(shard).name for shard in last[:-1]}
    assert opened() == set()
    for shard in shards:
        more = {MAX_OPEN: b"again", 0: b"last"}.get(shard, b"")
        assert buckets.path(shard).read_bytes() == bytes([0, shard, 1, shard, 2, shard]) + more


def test_what_was_removed_is_not_filled_on(tmp_path: Path) -> None:
    """A pass that its run has given up ends, instead of filling a disk with what nobody sees."""
    buckets = Buckets(tmp_path / "buckets")
    buckets.make()
    with BucketWriter(buckets) as writer:
        writer.append(0, [b"x"])
        buckets.remove()
        with pytest.raises(StoreError, match=r"shard-00000\.bucket was removed"):
            writer.append(0, [b"x"])


def test_what_did_not_arrive_is_told_when_a_bucket_is_closed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As by file systems on a network, which write later; the others are closed nevertheless."""
    close, closed = os.close, list[int]()

    def refuse(fd: int) -> None:
        close(fd)
        closed.append(fd)
        raise OSError(122, "Disk quota exceeded")

    writer = BucketWriter(Buckets(tmp_path))
    writer.append(3, [b"x"])
    writer.append(4, [b"x"])
    monkeypatch.setattr(os, "close", refuse)
    with pytest.raises(StoreError, match=r"shard-0000[34]\.bucket"), writer:
        pass
    assert len(closed) == 2


def test_removing_passes_over_what_a_worker_removed_meanwhile(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    buckets = Buckets(tmp_path / "buckets")
    buckets.make()
    append(buckets, 1, [b"x"])
    unlink = os.unlink

    def late(path: str, *, dir_fd: int | None = None) -> None:
        unlink(path, dir_fd=dir_fd)
        unlink(path, dir_fd=dir_fd)

    monkeypatch.setattr(os, "unlink", late)
    buckets.remove()
    assert list(tmp_path.iterdir()) == []


def test_removing_leaves_nothing(tmp_path: Path) -> None:
    buckets = Buckets(tmp_path / "buckets")
    buckets.remove()
    buckets.make()
    append(buckets, 1, [b"x"])
    buckets.remove()
    assert list(tmp_path.iterdir()) == []
