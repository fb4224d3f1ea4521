"""Downloads from a real server that cuts, stalls, forgets and lies."""

import errno
import shutil
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from infra.download import discard, download
from infra.errors import WeightsError
from tests.infra.file_server import FileServer, file_server

CONTENT = bytes(range(256)) * 1000
OTHER = CONTENT[::-1]


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[FileServer]:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    with file_server(CONTENT) as served:
        yield served


@pytest.fixture
def partial(tmp_path: Path) -> Path:
    return tmp_path / "w.pth"


def fetch(server: FileServer, partial: Path, url: str = "", any_source: bool = False, timeout: float = 5) -> bool:
    return download(url or server.url, partial, any_source=any_source, pauses=(0, 0), timeout=timeout)


def cut_off(server: FileServer, partial: Path, at: int = 100_000) -> None:
    """Leave the first bytes of the file, as a client that gave up leaves them."""
    server.cut_after, server.failures = [at], []
    with pytest.raises(WeightsError):
        download(server.url, partial, pauses=())
    assert partial.read_bytes() == server.content[:at]
    server.requests.clear()


def test_the_content_arrives_and_progress_adds_up(server: FileServer, partial: Path) -> None:
    told: list[tuple[int, int | None]] = []
    assert not download(server.url, partial, progress=lambda done, total: told.append((done, total)))
    assert partial.read_bytes() == CONTENT
    assert told[0] == (0, len(CONTENT))
    assert told[-1] == (len(CONTENT), len(CONTENT))
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_redirects_are_followed(server: FileServer, partial: Path) -> None:
    fetch(server, partial, f"{server.root}/moved")
    assert partial.read_bytes() == CONTENT
    assert [request.path for request in server.requests] == ["/moved", "/w.pth"]


class TestResuming:
    def test_a_connection_cut_off_is_gone_on_with(self, server: FileServer, partial: Path) -> None:
        server.cut_after = [100_000, 50_000, 10_000, 10_000, 10_000]  # more cuts than attempts: bytes arrived each time
        assert fetch(server, partial)
        assert partial.read_bytes() == CONTENT
        assert server.sent == len(CONTENT)
        assert [request.range for request in server.requests[:3]] == [None, "bytes=100000-", "bytes=150000-"]
        assert {request.if_range for request in server.requests[1:]} == {'"one"'}

    def test_a_later_process_goes_on(self, server: FileServer, partial: Path) -> None:
        cut_off(server, partial)
        assert fetch(server, partial)
        assert partial.read_bytes() == CONTENT
        assert server.sent == len(CONTENT) - 100_000

    def test_a_changed_file_is_fetched_anew(self, server: FileServer, partial: Path) -> None:
        cut_off(server, partial)
        server.content, server.etag = OTHER, '"two"'
        assert not fetch(server, partial)
        assert partial.read_bytes() == OTHER

    def test_a_server_without_ranges_sends_all_again(self, server: FileServer, partial: Path) -> None:
        cut_off(server, partial)
        server.ranges = False
        assert not fetch(server, partial)
        assert partial.read_bytes() == CONTENT
        assert server.requests[0].range == "bytes=100000-"

    @pytest.mark.parametrize("etag", [None, 'W/"weak"'])
    def test_without_a_strong_etag_only_a_known_hash_lets_it_go_on(
        self, server: FileServer, partial: Path, etag: str | None
    ) -> None:
        server.etag = etag
        cut_off(server, partial)
        assert not fetch(server, partial)
        assert (partial.read_bytes(), server.sent) == (CONTENT, len(CONTENT))
        cut_off(server, partial)
        assert fetch(server, partial, any_source=True)
        assert (partial.read_bytes(), server.sent) == (CONTENT, len(CONTENT) - 100_000)

    def test_another_address_goes_on_only_with_a_known_hash(self, server: FileServer, partial: Path) -> None:
        cut_off(server, partial)
        fetch(server, partial, f"{server.root}/elsewhere/w.pth")
        assert (partial.read_bytes(), server.sent) == (CONTENT, len(CONTENT))
        discard(partial)
        cut_off(server, partial)
        fetch(server, partial, f"{server.root}/elsewhere/w.pth", any_source=True)
        assert (partial.read_bytes(), server.sent) == (CONTENT, len(CONTENT) - 100_000)

    def test_bytes_of_two_sources_are_no_longer_vouched_for(self, server: FileServer, partial: Path) -> None:
        cut_off(server, partial)
        server.cut_after = [50_000]
        with pytest.raises(WeightsError):
            download(f"{server.root}/elsewhere/w.pth", partial, any_source=True, pauses=())
        server.requests.clear()
        assert not fetch(server, partial, f"{server.root}/elsewhere/w.pth")
        assert (partial.read_bytes(), server.requests[0].range) == (CONTENT, None)

    def test_a_file_that_had_all_arrived_is_not_sent_again(self, server: FileServer, partial: Path) -> None:
        fetch(server, partial)
        server.requests.clear()
        assert fetch(server, partial)
        assert partial.read_bytes() == CONTENT
        assert [(request.status, request.sent) for request in server.requests] == [(416, 0)]

    def test_a_partial_file_longer_than_the_servers_is_thrown_away(self, server: FileServer, partial: Path) -> None:
        fetch(server, partial)
        server.content = CONTENT[:1000]  # the same ETag: a server that lies
        fetch(server, partial)
        assert partial.read_bytes() == CONTENT[:1000]

    def test_an_answer_that_starts_elsewhere_is_thrown_away(self, server: FileServer, partial: Path) -> None:
        cut_off(server, partial)
        server.wrong_start = 7
        fetch(server, partial)
        assert partial.read_bytes() == CONTENT

    def test_a_damaged_memory_of_the_source_counts_as_none(self, server: FileServer, partial: Path) -> None:
        cut_off(server, partial)
        partial.with_name("w.pth.source").write_text("{", encoding="utf-8")
        assert not fetch(server, partial)
        assert partial.read_bytes() == CONTENT


class TestFailures:
    def test_a_file_that_is_not_there_is_asked_for_once(self, server: FileServer, partial: Path) -> None:
        server.missing = ("/w.pth",)
        with pytest.raises(WeightsError, match=r"w\.pth: the server answers 404 Not Found"):
            fetch(server, partial)
        assert len(server.requests) == 1
        assert not partial.exists()

    @pytest.mark.parametrize("status", [429, 500, 503])
    def test_a_server_in_trouble_is_asked_again(self, server: FileServer, partial: Path, status: int) -> None:
        server.failures = [status, status]
        fetch(server, partial)
        assert partial.read_bytes() == CONTENT
        server.failures = [status] * 9
        discard(partial)
        with pytest.raises(WeightsError, match=rf"{status} .*after 3 attempts"):
            fetch(server, partial)
        assert len(server.failures) == 6

    def test_a_failure_keeps_what_has_arrived(self, server: FileServer, partial: Path) -> None:
        cut_off(server, partial)
        server.failures = [503] * 3
        with pytest.raises(WeightsError):
            fetch(server, partial)
        assert partial.read_bytes() == CONTENT[:100_000]

    def test_silence_is_given_up(self, server: FileServer, partial: Path) -> None:
        server.stall = [0.5, 0.5, 0.5]
        with pytest.raises(WeightsError, match=r"no answer in time \(ReadTimeout\), after 3 attempts"):
            fetch(server, partial, timeout=0.1)

    def test_a_body_that_stays_short_is_no_file(self, server: FileServer, partial: Path) -> None:
        server.cut_after = [100_000, 0, 0, 0]
        with pytest.raises(WeightsError, match="after 3 attempts"):
            fetch(server, partial)
        assert partial.stat().st_size == 100_000

    def test_nobody_listens(self, server: FileServer, partial: Path) -> None:
        with file_server(b"") as gone:
            url = gone.url
        with pytest.raises(WeightsError, match="ConnectError"):
            fetch(server, partial, url)

    @pytest.mark.parametrize("url", ["ftp://127.0.0.1/w.pth", "w.pth", "http://127.0.0.1:x/w.pth"])
    def test_an_address_of_another_kind(self, server: FileServer, partial: Path, url: str) -> None:
        with pytest.raises(WeightsError, match="the address cannot be used"):
            fetch(server, partial, url)

    def test_compressed_content_is_refused(self, server: FileServer, partial: Path) -> None:
        server.extra_headers = {"content-encoding": "gzip"}
        with pytest.raises(WeightsError, match="compressed"):
            fetch(server, partial)

    def test_a_disk_too_small_is_seen_before_it_is_full(
        self, server: FileServer, partial: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        usage = shutil.disk_usage(partial.parent)._replace(free=200_000)
        monkeypatch.setattr("infra.download.shutil.disk_usage", lambda _: usage)
        with pytest.raises(OSError, match=r"0\.3 MB more are needed, 0\.2 MB are free") as caught:
            fetch(server, partial)
        assert caught.value.errno == errno.ENOSPC
        assert partial.stat().st_size == 0


def test_a_redirect_leads_nowhere_but_to_a_server(server: FileServer, partial: Path, tmp_path: Path) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    for target in (f"file://{secret}", "ftp://127.0.0.1/w.pth"):
        server.moved_to = target
        with pytest.raises(WeightsError, match="cannot be used"):
            fetch(server, partial, f"{server.root}/moved")
        assert not partial.exists() or b"secret" not in partial.read_bytes()


def test_https_is_never_left_for_http(monkeypatch: pytest.MonkeyPatch, partial: Path) -> None:
    moved = {
        "https://example.org/left": "http://example.org/w.pth",
        "https://example.org/back": "http://example.org/way",
        "http://example.org/way": "https://example.org/w.pth",
        "http://example.org/begun": "https://example.org/back",
    }

    def answer(request: httpx.Request) -> httpx.Response:
        target = moved.get(str(request.url))
        return httpx.Response(302, headers={"location": target}) if target else httpx.Response(200, content=[CONTENT])

    client = httpx.Client
    monkeypatch.setattr(httpx, "Client", lambda **options: client(transport=httpx.MockTransport(answer), **options))
    for url, step in [
        ("https://example.org/left", "w.pth"),
        ("HTTPS://example.org/left", "w.pth"),
        ("https://example.org/back", "way"),  # from where it leads to https again
        ("http://example.org/begun", "way"),
    ]:
        with pytest.raises(WeightsError, match=rf"leads to http://example\.org/{step}, which anybody on the way"):
            download(url, partial)
        assert not partial.exists()
    for url in ("http://example.org/w.pth", "http://example.org/way"):
        assert not download(url, partial)
        assert partial.read_bytes() == CONTENT
