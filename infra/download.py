"""Download of one file over HTTP that goes on where it was cut off, in this process or an earlier one."""

import errno
import json
import re
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from infra.errors import TransientError, WeightsError

if TYPE_CHECKING:
    import httpx

Progress = Callable[[int, int | None], None]
"""Is told how many bytes have arrived, and how many there are (None: the server does not say)."""

_PAUSES = (1.0, 2.0, 4.0)
_TIMEOUT = 30.0
_CONTENT_RANGE = re.compile(r"bytes (?:(\d+)-\d+|\*)/(\d+|\*)")


def silent(_done: int, _total: int | None) -> None:
    """Tell nobody."""


def download(
    url: str,
    partial: Path,
    *,
    any_source: bool = False,
    progress: Progress = silent,
    pauses: Sequence[float] = _PAUSES,
    timeout: float = _TIMEOUT,
) -> bool:
    """Bring partial to the whole content of url, and return whether earlier bytes were gone on from.

    What partial holds is gone on from where the server vouches for it (same address, same strong ETag), else it is
    fetched anew. What arrives stays in partial when the download fails; `<partial>.source` remembers where it is from.

    Args:
        url: An http or https address; redirects are followed, from https to nothing but https.
        partial: Where the bytes go; its folder exists.
        any_source: Go on from what partial holds wherever it came from: the caller knows the hash of the whole.
        progress: Is told of every block.
        pauses: Seconds between attempts; one more attempt than pauses, counted anew whenever bytes arrive.
        timeout: Seconds without an answer or a byte after which an attempt is given up.

    Raises:
        WeightsError: The server has no such file, or does not get it across; the message says why.
        OSError: partial cannot be written; the disk is full.
    """
    import httpx

    transfer = _Transfer(url, partial, any_source, progress)
    headers = {"accept-encoding": "identity", "user-agent": "superscene"}
    failures = 0
    with httpx.Client(follow_redirects=True, timeout=timeout, headers=headers) as client:
        while True:
            before = transfer.size()
            try:
                transfer.attempt(client)
            except TransientError as error:
                failures = 1 if transfer.size() > before else failures + 1
                if failures > len(pauses):
                    raise WeightsError(f"{url}: {error}, after {failures} attempts") from error
                time.sleep(pauses[failures - 1])
            else:
                return transfer.continued


class _Transfer:
    """One file on its way in, over any number of attempts."""

    def __init__(self, url: str, partial: Path, any_source: bool, progress: Progress) -> None:  # noqa: FBT001
        self._url, self._partial, self._progress = url, partial, progress
        self._source = partial.with_name(f"{partial.name}.source")
        self._any_source = any_source
        self.continued = False

    def size(self) -> int:
        """Return how many bytes have arrived."""
        try:
            return self._partial.stat().st_size
        except FileNotFoundError:
            return 0

    def attempt(self, client: "httpx.Client") -> None:
        """Ask for what is missing and write it; returns when the file is whole.

        Raises:
            TransientError: Worth another attempt.
            WeightsError: Not worth one.
            OSError: The bytes cannot be written.
        """
        have, etag = self._usable()
        headers = {"range": f"bytes={have}-"} if have else {}
        if have and etag:
            headers["if-range"] = etag
        with _transport_errors(), client.stream("GET", self._url, headers=headers) as response:
            for before, after in pairwise([*response.history, response]):
                if before.url.scheme == "https" != after.url.scheme:
                    raise WeightsError(f"{self._url} leads to {after.url}, which anybody on the way may change")
            if response.status_code == 416:
                self._past_the_end(response, have)
                return
            if response.headers.get("content-encoding", "identity") != "identity":
                raise WeightsError(f"{self._url}: the server sends the file compressed, though asked not to")
            if response.status_code == 206:
                total = self._goes_on(response, have, etag)
            else:
                _require_ok(response)
                have, total = 0, _content_length(response)
                self._begin(response)
            self._receive(response, have, total)

    def _usable(self) -> tuple[int, str | None]:
        """Return the bytes to go on from, and the ETag of the file they are of."""
        have = self.size()
        try:
            source = json.loads(self._source.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):  # ValueError: cut short by a power cut; as good as none
            source = {}
        etag = source.get("etag") if isinstance(source, dict) and source.get("url") == self._url else None
        return (have, etag) if etag or self._any_source else (0, None)

    def _begin(self, response: "httpx.Response") -> None:
        """Empty the partial file and remember what it is going to be of."""
        self._partial.write_bytes(b"")
        etag = _strong_etag(response)
        self._source.write_text(json.dumps({"url": self._url, "etag": etag}), encoding="utf-8")

    def _goes_on(self, response: "httpx.Response", have: int, etag: str | None) -> int | None:
        """Return the whole file's size, after checking that the answer starts where the partial file ends."""
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        other = etag is not None and _strong_etag(response) not in {None, etag}
        if not have or match is None or match[1] is None or int(match[1]) != have or other:
            discard(self._partial)
            raise TransientError("the server did not go on from where the partial file ends")
        if etag is None:
            self._source.unlink(missing_ok=True)  # bytes of two sources: only the hash of the whole vouches for them
        self.continued = True
        return None if match[2] == "*" else int(match[2])

    def _past_the_end(self, response: "httpx.Response", have: int) -> None:
        """Take a range that cannot be satisfied for the end of the file, or start over."""
        match = _CONTENT_RANGE.fullmatch(response.headers.get("content-range", ""))
        if have and match is not None and match[2] == str(have):
            self.continued = True
            self._progress(have, have)
            return
        discard(self._partial)
        raise TransientError("the partial file is longer than the server's")

    def _receive(self, response: "httpx.Response", have: int, total: int | None) -> None:
        free = shutil.disk_usage(self._partial.parent).free
        if total is not None and total - have > free:
            need, left = (f"{n / 1e6:.1f} MB" for n in (total - have, free))
            raise OSError(errno.ENOSPC, f"{need} more are needed, {left} are free")
        self._progress(have, total)
        with self._partial.open("ab") as file:
            for block in response.iter_raw():  # as it comes: a size given would hold back bytes that a cut then loses
                file.write(block)
                have += len(block)
                self._progress(have, total)
        if total is not None and have != total:
            if have > total:
                discard(self._partial)
            raise TransientError(f"{have} bytes have arrived, the server announced {total}")


def discard(partial: Path) -> None:
    """Remove a partial file and what is remembered of it."""
    partial.unlink(missing_ok=True)
    partial.with_name(f"{partial.name}.source").unlink(missing_ok=True)


@contextmanager
def _transport_errors() -> Iterator[None]:
    """Turn what a network does into TransientError, and what will not get better into WeightsError."""
    import httpx

    try:
        yield
    except (httpx.UnsupportedProtocol, httpx.InvalidURL, httpx.TooManyRedirects) as error:
        raise WeightsError(f"the address cannot be used: {error}") from error
    except httpx.TimeoutException as error:
        raise TransientError(f"no answer in time ({type(error).__name__})") from error
    except httpx.HTTPError as error:
        raise TransientError(f"{type(error).__name__}: {error}") from error


def _require_ok(response: "httpx.Response") -> None:
    answer = f"the server answers {response.status_code} {response.reason_phrase}"
    if response.status_code in {408, 425, 429} or response.status_code >= 500:
        raise TransientError(answer)
    if response.status_code != 200:
        raise WeightsError(f"{response.request.url}: {answer}")


def _content_length(response: "httpx.Response") -> int | None:
    length = response.headers.get("content-length", "")
    return int(length) if length.isdecimal() else None


def _strong_etag(response: "httpx.Response") -> str | None:
    etag: str | None = response.headers.get("etag")
    return etag if etag and etag.startswith('"') else None  # a weak one, W/"...", does not vouch for bytes
