"""Fetching from real servers: mirrors, wrong content, killed processes, races, no network."""

import hashlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import pytest

from infra import weights_fetch
from infra.download import download
from infra.errors import ConfigError, StoreError, WeightsError
from infra.weights_fetch import fetch
from infra.weights_store import OfficialFile, WeightsStore
from tests.infra.file_server import FileServer, file_server

PROJECT = Path(__file__).resolve().parents[2]
CONTENT = bytes(range(256)) * 2000
HASH = hashlib.sha256(CONTENT).hexdigest()
OTHER = CONTENT[::-1]


def anything(_path: Path) -> None:
    """Take any file for one of the model."""


def never(path: Path) -> None:
    raise AssertionError(f"{path} has its official hash: nobody need ask whether it fits")


def only_content(path: Path) -> None:
    if path.suffix != ".pth" or path.read_bytes() != CONTENT:
        raise WeightsError(f"{path.name} does not fit net")


@pytest.fixture(autouse=True)
def _loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(weights_fetch, "download", partial(download, pauses=(0, 0)))


@pytest.fixture
def server() -> Iterator[FileServer]:
    with file_server(CONTENT) as served:
        yield served


@pytest.fixture
def mirror() -> Iterator[FileServer]:
    with file_server(CONTENT) as served:
        yield served


@pytest.fixture
def store(tmp_path: Path) -> WeightsStore:
    return WeightsStore(tmp_path / "Gewichte ü")


def pinned(server: FileServer) -> OfficialFile:
    return OfficialFile("w.pth", server.url, HASH)


def unpinned(server: FileServer) -> OfficialFile:
    return OfficialFile("w.pth", server.url, None)


def files(store: WeightsStore) -> set[str]:
    """Everything but the lock that is in the model's folder."""
    found = (path for path in store.folder.rglob("*") if path.is_file() and path.name != "lock")
    return {str(path.relative_to(store.folder / "net")) for path in found}


class TestFetch:
    def test_the_file_and_its_hash_are_stored_once(self, server: FileServer, store: WeightsStore) -> None:
        path = fetch(store, "net", pinned(server), never)
        assert path == store.folder / "net" / "w.pth"
        assert path.read_bytes() == CONTENT
        assert (path.parent / "w.pth.sha256").read_text(encoding="utf-8") == f"{HASH}  w.pth\n"
        assert files(store) == {"w.pth", "w.pth.sha256"}
        assert fetch(store, "net", pinned(server), never) == path
        assert len(server.requests) == 1

    def test_a_file_without_official_hash_must_fit_and_is_recorded(
        self, server: FileServer, store: WeightsStore
    ) -> None:
        path = fetch(store, "net", unpinned(server), only_content)
        assert store.recorded(path) == HASH

    def test_of_a_hash_known_by_its_first_digits_both_digits_and_network_must_fit(
        self, server: FileServer, store: WeightsStore
    ) -> None:
        official = OfficialFile("w.pth", server.url, HASH[:8])
        server.content = OTHER
        with pytest.raises(WeightsError, match=rf"sent a file .* the official file has {HASH[:8]}\.\.\.: not stored"):
            fetch(store, "net", official, never)
        server.content = CONTENT
        with pytest.raises(AssertionError):
            fetch(store, "net", official, never)
        path = fetch(store, "net", official, only_content)
        assert store.recorded(path) == HASH

    def test_a_page_instead_of_the_file_is_not_stored(self, server: FileServer, store: WeightsStore) -> None:
        server.content = b"<html>sign in</html>"
        with pytest.raises(WeightsError, match=r"w\.pth does not fit net"):
            fetch(store, "net", unpinned(server), only_content)
        assert files(store) == set()

    def test_wrong_content_is_not_stored_under_any_name(self, server: FileServer, store: WeightsStore) -> None:
        server.content = OTHER
        with pytest.raises(WeightsError) as caught:
            fetch(store, "net", pinned(server), never)
        assert HASH in str(caught.value)
        assert hashlib.sha256(OTHER).hexdigest() in str(caught.value)
        assert "superscene weights add net FILE" in str(caught.value)
        assert files(store) == set()
        assert len(server.requests) == 1

    def test_a_damaged_stored_file_is_not_fetched_over(self, server: FileServer, store: WeightsStore) -> None:
        path = fetch(store, "net", pinned(server), never)
        path.write_bytes(OTHER)
        with pytest.raises(WeightsError, match="changed or damaged"):
            fetch(store, "net", pinned(server), never)


class TestMirrors:
    def test_they_are_asked_first_in_their_order_under_the_files_name(
        self, server: FileServer, mirror: FileServer, store: WeightsStore
    ) -> None:
        mirror.missing = ("/first/w.pth",)
        mirrors = [f"{mirror.root}/first/", f"{mirror.root}/second", f"{mirror.root}/third"]
        fetch(store, "net", pinned(server), never, mirrors=mirrors)
        assert [request.path for request in mirror.requests] == ["/first/w.pth", "/second/w.pth"]
        assert server.requests == []

    def test_the_official_address_is_the_last_resort(
        self, server: FileServer, mirror: FileServer, store: WeightsStore
    ) -> None:
        mirror.content = OTHER
        with file_server(b"") as gone:
            dead = gone.root
        path = fetch(store, "net", pinned(server), never, mirrors=[mirror.root, dead])
        assert path.read_bytes() == CONTENT

    def test_a_mirror_goes_on_where_another_stopped(
        self, server: FileServer, mirror: FileServer, store: WeightsStore
    ) -> None:
        mirror.cut_after = [100_000, 0, 0, 0]
        path = fetch(store, "net", pinned(server), never, mirrors=[mirror.root])
        assert path.read_bytes() == CONTENT
        assert server.requests[0].range == "bytes=100000-"

    def test_what_a_bad_mirror_began_is_fetched_anew(
        self, server: FileServer, mirror: FileServer, store: WeightsStore
    ) -> None:
        mirror.content, mirror.cut_after = OTHER, [100_000, 0, 0, 0]
        path = fetch(store, "net", pinned(server), never, mirrors=[mirror.root])
        assert path.read_bytes() == CONTENT
        assert [request.range for request in server.requests] == ["bytes=100000-", None]

    def test_all_that_went_wrong_is_told(self, server: FileServer, mirror: FileServer, store: WeightsStore) -> None:
        mirror.missing, server.failures = ("/w.pth",), [503] * 3
        with pytest.raises(WeightsError) as caught:
            fetch(store, "net", pinned(server), never, mirrors=[mirror.root])
        assert f"{mirror.root}/w.pth: the server answers 404" in str(caught.value)
        assert f"{server.url}: the server answers 503" in str(caught.value)

    def test_a_folder_of_downloads_needs_a_person_or_a_mirror(self, mirror: FileServer, store: WeightsStore) -> None:
        official = OfficialFile("runs/best/w.pth", "https://drive.example.org/folder", None, direct=False)
        with pytest.raises(WeightsError) as caught:
            fetch(store, "net", official, only_content)
        for word in ("runs/best/w.pth", official.url, "superscene weights add net FILE", str(store.folder)):
            assert word in str(caught.value)
        assert fetch(store, "net", official, only_content, mirrors=[mirror.root]).read_bytes() == CONTENT
        assert [request.path for request in mirror.requests] == ["/w.pth"]

    @pytest.mark.parametrize("mirror", ["ftp://example.org", "/mnt/weights", ""])
    def test_an_address_of_another_kind_is_refused(self, mirror: str, server: FileServer, store: WeightsStore) -> None:
        with pytest.raises(ConfigError, match="--mirror"):
            fetch(store, "net", pinned(server), never, mirrors=[mirror])
        assert server.requests == []


def test_offline_nothing_is_asked_and_what_is_stored_is_used(
    server: FileServer, mirror: FileServer, store: WeightsStore
) -> None:
    with pytest.raises(WeightsError) as caught:
        fetch(store, "net", pinned(server), never, mirrors=[mirror.root], offline=True)
    for word in ("offline", "w.pth", server.url, "superscene weights add net FILE", str(store.folder / "net")):
        assert word in str(caught.value)
    assert (server.requests, mirror.requests) == ([], [])
    path = fetch(store, "net", pinned(server), never)
    assert fetch(store, "net", pinned(server), never, offline=True) == path


def test_a_full_disk_is_one_sentence_and_keeps_what_has_arrived(
    server: FileServer, store: WeightsStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fills_up(url: str, partial: Path, **_settings: object) -> bool:
        partial.write_bytes(CONTENT[:1000])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(weights_fetch, "download", fills_up)
        with pytest.raises(StoreError, match=r"w\.pth: No space left on device; free some space, or set SUPERSCENE_W"):
            fetch(store, "net", pinned(server), never)
    assert files(store) == {".partial/w.pth"}
    fetch(store, "net", pinned(server), never)
    assert server.requests[0].range == "bytes=1000-"


def test_a_folder_that_cannot_be_written(server: FileServer) -> None:
    with pytest.raises(StoreError, match=r"cannot write /proc/superscene.*set SUPERSCENE_WEIGHTS"):
        fetch(WeightsStore(Path("/proc/superscene")), "net", pinned(server), never)
    assert server.requests == []


def process(store: WeightsStore, server: FileServer) -> "subprocess.Popen[str]":
    """Start another process that fetches the file."""
    return subprocess.Popen(
        [sys.executable, "-W", "error", "-m", "tests.infra.weights_process", str(store.folder), server.url, HASH],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=PROJECT,
        env={**os.environ, "PYTHONPATH": str(PROJECT)},
    )


def test_a_killed_process_is_gone_on_with(server: FileServer, store: WeightsStore) -> None:
    server.block_pause = 0.02
    growing = store.partial("net", pinned(server))
    with process(store, server) as first:
        deadline = time.monotonic() + 120
        while not (growing.exists() and growing.stat().st_size > 100_000):
            assert time.monotonic() < deadline
            assert first.poll() is None, first.communicate()
            time.sleep(0.005)
        first.send_signal(signal.SIGKILL)
    kept = growing.stat().st_size
    assert 100_000 < kept < len(CONTENT)
    assert not store.path("net", pinned(server)).exists()
    server.block_pause = 0
    with process(store, server) as second:
        out, err = second.communicate(timeout=120)
    assert (second.returncode, err) == (0, "")
    assert out.splitlines() == [str(store.path("net", pinned(server))), ""]  # and no heavy library was imported
    assert store.path("net", pinned(server)).read_bytes() == CONTENT
    assert (server.requests[1].range, server.requests[1].sent) == (f"bytes={kept}-", len(CONTENT) - kept)


def test_of_processes_at_once_one_downloads(server: FileServer, store: WeightsStore) -> None:
    server.block_pause = 0.05  # 32 blocks: the others start while the first is at it
    running = [process(store, server) for _ in range(3)]
    results = [p.communicate(timeout=120) for p in running]
    assert [(p.returncode, err) for p, (_, err) in zip(running, results, strict=True)] == [(0, "")] * 3
    assert {out.splitlines()[0] for out, _ in results} == {str(store.path("net", pinned(server)))}
    assert [request.sent for request in server.requests] == [len(CONTENT)]
    assert files(store) == {"w.pth", "w.pth.sha256"}
