"""The weights store against sha256sum, hand-placed files, other content, full disks and read-only folders."""

import hashlib
import os
import shutil
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from infra import weights_store
from infra.errors import StoreError, WeightsError
from infra.weights_store import OfficialFile, WeightsStore, record_path, sha256

ONE, TWO = b"one" * 1000, b"two" * 1000
PINNED = OfficialFile("w.pth", "https://example.org/w.pth", hashlib.sha256(ONE).hexdigest())
BEGINS = OfficialFile("w.pth", "https://example.org/w.pth", hashlib.sha256(ONE).hexdigest()[:8])
UNPINNED = OfficialFile("runs/best/w.pth", "https://example.org/runs", None, direct=False)


def anything(_path: Path) -> None:
    """Take any file for one of the model."""


def nothing(path: Path) -> None:
    raise WeightsError(f"{path} does not fit net")


@pytest.fixture(params=["store", "Gewichte ü 重み"])
def store(tmp_path: Path, request: pytest.FixtureRequest) -> WeightsStore:
    return WeightsStore(tmp_path / request.param)


@pytest.fixture
def local(tmp_path: Path) -> Path:
    return written(tmp_path / "Downloads" / "my file ü.pth", ONE)


def written(path: Path, content: bytes) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(folder: Path) -> set[str]:
    """All files below a folder that a user would see."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(folder)) for path in files}


class TestFolder:
    def test_the_variable_names_it(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("SUPERSCENE_WEIGHTS", str(tmp_path / "ü"))
        assert WeightsStore.default().folder == tmp_path / "ü"
        monkeypatch.setenv("SUPERSCENE_WEIGHTS", "~/w")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert WeightsStore.default().folder == tmp_path / "w"
        monkeypatch.chdir(tmp_path)
        monkeypatch.setenv("SUPERSCENE_WEIGHTS", "w")
        assert WeightsStore.default().folder == tmp_path / "w"

    @pytest.mark.skipif(sys.platform != "linux", reason="XDG is Linux")
    def test_without_it_the_cache_folder_of_the_platform(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
        monkeypatch.setenv("SUPERSCENE_WEIGHTS", "")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        assert WeightsStore.default().folder == tmp_path / "cache" / "superscene" / "weights"
        monkeypatch.delenv("XDG_CACHE_HOME")
        monkeypatch.setenv("HOME", str(tmp_path))
        assert WeightsStore.default().folder == tmp_path / ".cache" / "superscene" / "weights"

    def test_the_layout(self, store: WeightsStore) -> None:
        assert store.path("net", UNPINNED) == store.folder / "net" / "w.pth"
        assert store.partial("net", UNPINNED).parent.name == ".partial"


class TestHash:
    def test_a_file_is_hashed_once_until_it_changes(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        path = written(tmp_path / "w", ONE)
        os.utime(path, ns=(0, 1_000_000_000))
        read: list[Path] = []
        whole = weights_store.hash_anew

        def counted(path: Path) -> str:
            read.append(path)
            return whole(path)

        monkeypatch.setattr(weights_store, "hash_anew", counted)
        assert sha256(path) == sha256(str(path)) == hashlib.sha256(ONE).hexdigest()
        assert len(read) == 1
        path.write_bytes(TWO)
        os.utime(path, ns=(0, 2_000_000_000))
        assert sha256(path) == hashlib.sha256(TWO).hexdigest()

    def test_a_file_as_young_as_the_clock_is_coarse_is_hashed_each_time(self, tmp_path: Path) -> None:
        """Same size, same time stamp, other content: what a write within one tick of the clock looks like."""
        path = written(tmp_path / "w", ONE)
        now = time.time_ns()
        for content in (ONE, TWO, ONE):
            path.write_bytes(content)
            os.utime(path, ns=(now, now))
            assert sha256(path) == hashlib.sha256(content).hexdigest()


class TestFind:
    def test_nothing_is_stored(self, store: WeightsStore) -> None:
        assert store.find("net", PINNED) is None
        assert not store.folder.exists()

    def test_the_official_file_placed_by_hand_is_found(self, store: WeightsStore) -> None:
        path = written(store.path("net", PINNED), ONE)
        assert store.find("net", PINNED) == path

    def test_another_file_is_refused_by_the_official_hash(self, store: WeightsStore) -> None:
        path = written(store.path("net", PINNED), TWO)
        with pytest.raises(WeightsError) as caught:
            store.find("net", PINNED)
        message = str(caught.value)
        assert str(path) in message
        assert hashlib.sha256(ONE).hexdigest() in message
        assert hashlib.sha256(TWO).hexdigest() in message
        assert "superscene weights fetch net" in message
        assert "weights: {net: FILE}" in message

    def test_first_use_records_the_hash_and_a_later_change_is_refused(self, store: WeightsStore) -> None:
        path = written(store.path("net", UNPINNED), ONE)
        assert store.find("net", UNPINNED) == path
        assert store.recorded(path) == hashlib.sha256(ONE).hexdigest()
        assert store.find("net", UNPINNED) == path
        path.write_bytes(TWO)
        with pytest.raises(
            WeightsError, match=rf"{hashlib.sha256(TWO).hexdigest()}.*{hashlib.sha256(ONE).hexdigest()}"
        ):
            store.find("net", UNPINNED)

    def test_a_damaged_record_is_an_error_that_says_what_to_do(self, store: WeightsStore) -> None:
        path = written(store.path("net", UNPINNED), ONE)
        for record in (b"", b"12  w.pth\n", f"{'0' * 64}  other.pth\n".encode(), b"\xff"):
            record_path(path).write_bytes(record)
            with pytest.raises(WeightsError, match=r"w\.pth\.sha256.*delete it"):
                store.find("net", UNPINNED)

    def test_a_store_that_cannot_be_written_is_used_and_says_so(
        self, store: WeightsStore, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
    ) -> None:
        path = written(store.path("net", UNPINNED), ONE)
        monkeypatch.setattr(Path, "mkdir", read_only)
        assert store.find("net", UNPINNED) == path
        assert "is not recorded" in caplog.text
        assert not record_path(path).exists()


class TestFirstDigits:
    """Of the official hash only the first digits are known: they are tested, and the whole hash is recorded."""

    def test_which_files_they_accept(self) -> None:
        one, two = hashlib.sha256(ONE).hexdigest(), hashlib.sha256(TWO).hexdigest()
        assert [official.accepts(one) for official in (PINNED, BEGINS, UNPINNED)] == [True, True, True]
        assert [official.accepts(two) for official in (PINNED, BEGINS, UNPINNED)] == [False, False, True]
        assert [official.pinned for official in (PINNED, BEGINS, UNPINNED)] == [True, False, False]

    def test_a_file_placed_by_hand_is_recorded_at_its_first_use(self, store: WeightsStore) -> None:
        path = written(store.path("net", BEGINS), ONE)
        assert store.find("net", BEGINS) == path
        assert store.recorded(path) == hashlib.sha256(ONE).hexdigest()

    def test_another_file_is_refused_even_where_it_is_recorded(self, store: WeightsStore) -> None:
        path = written(store.path("net", BEGINS), TWO)
        digest = hashlib.sha256(TWO).hexdigest()
        record_path(path).write_text(f"{digest}  w.pth\n", encoding="utf-8")
        with pytest.raises(WeightsError, match=rf"{digest}, the official file has {BEGINS.sha256}\.\.\.:"):
            store.find("net", BEGINS)
        assert [(found.state, found.detail) for found in store.verify({"net": BEGINS})] == [
            ("changed", f"{digest} now, {BEGINS.sha256}... official")
        ]

    def test_the_record_tells_a_change_that_the_digits_do_not(self, store: WeightsStore) -> None:
        """A file with the same first eight digits is out of reach; one digit is found in a few tries."""
        some = next(bytes([i]) for i in range(256) if hashlib.sha256(bytes([i])).hexdigest()[0] == "0")
        other = next(bytes([i, i]) for i in range(256) if hashlib.sha256(bytes([i, i])).hexdigest()[0] == "0")
        official = OfficialFile("w.pth", "https://example.org/w.pth", "0")
        path = written(store.path("net", official), some)
        assert store.find("net", official) == path
        assert [found.state for found in store.verify({"net": official})] == ["ok"]
        path.write_bytes(other)
        with pytest.raises(WeightsError, match=r"the one recorded in w\.pth\.sha256"):
            store.find("net", official)
        assert [found.state for found in store.verify({"net": official})] == ["changed"]

    def test_adding_another_file_is_refused(self, store: WeightsStore, local: Path) -> None:
        assert store.add("net", BEGINS, local, anything).read_bytes() == ONE
        local.write_bytes(TWO)
        with pytest.raises(WeightsError, match=rf"is not w\.pth: .* has {BEGINS.sha256}\.\.\.\."):
            store.add("net", BEGINS, local, anything, replace=True)


def read_only(path: Path, *_arguments: object, **_more: object) -> None:
    raise OSError(30, "Read-only file system", str(path))


class TestAdd:
    def test_a_file_is_copied_under_the_official_name(self, store: WeightsStore, local: Path) -> None:
        path = store.add("net", UNPINNED, local, anything)
        assert path == store.path("net", UNPINNED)
        assert path.read_bytes() == ONE
        assert names(store.folder) == {"net/w.pth", "net/w.pth.sha256"}
        assert store.find("net", UNPINNED) == path

    @pytest.mark.skipif(shutil.which("sha256sum") is None, reason="sha256sum is not installed")
    def test_sha256sum_agrees(self, store: WeightsStore, local: Path) -> None:
        path = store.add("net", UNPINNED, local, anything)
        check = ["sha256sum", "--strict", "-c", record_path(path).name]
        done = subprocess.run(check, cwd=path.parent, capture_output=True, text=True, check=False)
        assert (done.returncode, done.stdout) == (0, "w.pth: OK\n")
        by_hand = subprocess.run(["sha256sum", "w.pth"], cwd=path.parent, capture_output=True, text=True, check=True)
        assert record_path(path).read_text(encoding="utf-8") == by_hand.stdout

    def test_a_file_of_another_network_is_not_stored(self, store: WeightsStore, local: Path) -> None:
        with pytest.raises(WeightsError, match="does not fit net"):
            store.add("net", UNPINNED, local, nothing)
        assert names(store.folder) == set()

    def test_another_file_than_the_official_one_names_both_hashes(self, store: WeightsStore, local: Path) -> None:
        local.write_bytes(TWO)
        with pytest.raises(
            WeightsError, match=rf"{hashlib.sha256(TWO).hexdigest()}.*{hashlib.sha256(ONE).hexdigest()}"
        ):
            store.add("net", PINNED, local, anything, replace=True)
        assert names(store.folder) == set()

    def test_another_format_is_refused(self, store: WeightsStore, local: Path) -> None:
        with pytest.raises(WeightsError, match=r"another format than the official file w\.pth"):
            store.add("net", UNPINNED, local.rename(local.with_suffix(".safetensors")), anything)

    def test_a_file_that_is_not_there(self, store: WeightsStore, tmp_path: Path) -> None:
        with pytest.raises(WeightsError, match=r"no weight file that can be read at .*absent\.pth"):
            store.add("net", UNPINNED, tmp_path / "absent.pth", anything)

    def test_another_file_takes_the_place_only_when_told_to(self, store: WeightsStore, local: Path) -> None:
        path = store.add("net", UNPINNED, local, anything)
        store.add("net", UNPINNED, local, anything)
        local.write_bytes(TWO)
        with pytest.raises(WeightsError, match=r"is another file .* Add --replace"):
            store.add("net", UNPINNED, local, anything)
        assert path.read_bytes() == ONE
        store.add("net", UNPINNED, local, anything, replace=True)
        assert path.read_bytes() == TWO
        assert store.find("net", UNPINNED) == path

    def test_a_stored_file_that_was_edited_is_not_taken_over_by_adding_it(
        self, store: WeightsStore, local: Path
    ) -> None:
        path = store.add("net", UNPINNED, local, anything)
        path.write_bytes(TWO)
        with pytest.raises(WeightsError, match="Add --replace"):
            store.add("net", UNPINNED, path, anything)
        store.add("net", UNPINNED, path, anything, replace=True)
        assert store.find("net", UNPINNED) == path

    def test_the_official_file_mends_a_damaged_one(self, store: WeightsStore, local: Path) -> None:
        path = written(store.path("net", PINNED), TWO)
        store.add("net", PINNED, local, anything)
        assert path.read_bytes() == ONE

    def test_a_file_that_changes_meanwhile_is_refused(self, store: WeightsStore, local: Path) -> None:
        def meanwhile(path: Path) -> None:
            path.write_bytes(TWO)

        with pytest.raises(WeightsError, match="changed while it was copied"):
            store.add("net", UNPINNED, local, meanwhile)
        assert names(store.folder) == set()

    def test_a_full_disk_leaves_nothing_behind(
        self, store: WeightsStore, local: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        def full(_descriptor: int) -> None:
            raise OSError(28, "No space left on device")

        monkeypatch.setattr(os, "fsync", full)
        with pytest.raises(StoreError, match=r"w\.pth: No space left on device; free some space, or set SUPERSCENE_W"):
            store.add("net", UNPINNED, local, anything)
        assert names(store.folder) == set()

    def test_a_folder_that_cannot_be_made(self, local: Path, tmp_path: Path) -> None:
        for folder in (written(tmp_path / "file", b"") / "store", Path("/proc/superscene")):
            store = WeightsStore(folder)
            with pytest.raises(StoreError, match=f"cannot write {folder}.*set SUPERSCENE_WEIGHTS to a folder"):
                store.add("net", UNPINNED, local, anything)


class TestVerify:
    def test_every_state(self, store: WeightsStore, local: Path) -> None:
        officials = dict.fromkeys(("kept", "edited", "lost", "placed"), UNPINNED) | {
            "pinned": PINNED,
            "bad": PINNED,
        }
        for name in ("kept", "edited", "lost", "pinned"):
            store.add(name, officials[name], local, anything)
        edited = store.path("edited", UNPINNED)
        stat = edited.stat()
        edited.write_bytes(TWO)
        os.utime(edited, ns=(stat.st_atime_ns, stat.st_mtime_ns))  # size and time stamp tell nothing
        store.path("lost", UNPINNED).unlink()
        written(store.path("placed", UNPINNED), ONE)
        bad = written(store.path("bad", PINNED), TWO)
        with store.lock("bad"):
            store.record(bad, hashlib.sha256(TWO).hexdigest())  # the record agrees, the official hash does not
        found = {item.model: item for item in store.verify(officials)}
        assert {name: item.state for name, item in found.items()} == {
            "kept": "ok",
            "edited": "changed",
            "lost": "missing",
            "placed": "not recorded",
            "pinned": "ok",
            "bad": "changed",
        }
        for name, whose in (("edited", "recorded"), ("bad", "official")):
            one, two = (hashlib.sha256(content).hexdigest() for content in (ONE, TWO))
            assert found[name].detail == f"{two} now, {one} {whose}"

    def test_an_empty_store_has_nothing_to_tell(self, store: WeightsStore) -> None:
        assert store.verify({"net": PINNED}) == []


def test_a_lock_is_waited_for_and_the_wait_is_told(store: WeightsStore) -> None:
    order: list[str] = []
    entered = threading.Event()

    def waits() -> None:
        order.append("waits")
        entered.set()

    def second() -> None:
        with store.lock("net", waits):
            order.append("second")

    with store.lock("net", lambda: order.append("never")):
        thread = threading.Thread(target=second)
        thread.start()
        assert entered.wait(60)
        order.append("first")
    thread.join(60)
    assert order == ["waits", "first", "second"]


@pytest.mark.timeout(60)
def test_who_holds_the_lock_may_use_the_store(store: WeightsStore) -> None:
    """A file that came without a record while another process fetched it is recorded by the one that waited."""
    path = written(store.path("net", UNPINNED), ONE)
    with store.lock("net"):
        assert store.find("net", UNPINNED) == path
    assert store.recorded(path) == hashlib.sha256(ONE).hexdigest()


def test_writable_looks_at_the_folder_that_would_be_made(tmp_path: Path) -> None:
    assert WeightsStore(tmp_path / "a" / "b" / "c").writable()
    assert list(tmp_path.iterdir()) == []
    assert not WeightsStore(written(tmp_path / "file", b"") / "store").writable()


def test_importing_the_store_needs_no_library() -> None:
    libraries = ("filelock", "httpx", "platformdirs", "torch", "pydantic", "zarr")
    code = f"import sys, infra.weights_store; print([m for m in {libraries} if m in sys.modules])"
    done = subprocess.run([sys.executable, "-W", "error", "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr) == ("[]", "")
