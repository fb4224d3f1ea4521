"""A web server on this machine that hands out one file, and misbehaves as told."""

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread


@dataclass
class Request:
    """What a client asked for, and how many bytes of content were sent to it."""

    path: str
    range: str | None
    if_range: str | None
    status: int = 0
    sent: int = 0


@dataclass
class FileServer:
    """One file at `url`; every setting may be changed between requests."""

    port: int
    content: bytes
    etag: str | None = '"one"'
    ranges: bool = True
    """Whether ranges are honoured."""
    missing: tuple[str, ...] = ()
    """Paths that are answered 404."""
    failures: list[int] = field(default_factory=list)
    """Status codes of the next answers, in their order."""
    cut_after: list[int] = field(default_factory=list)
    """Bytes after which the next connections are closed, in their order."""
    stall: list[float] = field(default_factory=list)
    """Seconds of silence before the next answers."""
    block_pause: float = 0.0
    """Seconds between blocks of 16 kB."""
    extra_headers: dict[str, str] = field(default_factory=dict)
    wrong_start: int = 0
    """Bytes by which a range's answer starts too late."""
    moved_to: str = "/w.pth"
    """Where `/moved` redirects to."""
    requests: list[Request] = field(default_factory=list)

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    @property
    def url(self) -> str:
        return f"{self.root}/w.pth"

    @property
    def sent(self) -> int:
        """Bytes of content sent to all clients."""
        return sum(request.sent for request in self.requests)


@contextmanager
def file_server(content: bytes) -> Iterator[FileServer]:
    """Serve content while the block runs."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, format: str, *args: object) -> None:  # noqa: A002  # the parent's name
            pass

        def do_GET(self) -> None:
            _answer(self, served)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    served = FileServer(server.server_address[1], content)
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _answer(handler: BaseHTTPRequestHandler, served: FileServer) -> None:
    handler.close_connection = True
    request = Request(handler.path, handler.headers["range"], handler.headers["if-range"])
    served.requests.append(request)
    if served.stall:
        time.sleep(served.stall.pop(0))
    if handler.path == "/moved":
        _head(handler, request, 302, {"location": served.moved_to}, 0)
        return
    if handler.path in served.missing:
        _head(handler, request, 404, {}, 0)
        return
    if served.failures:
        _head(handler, request, served.failures.pop(0), {}, 0)
        return
    headers = dict(served.extra_headers)
    if served.etag:
        headers["etag"] = served.etag
    start, size = 0, len(served.content)
    match = re.fullmatch(r"bytes=(\d+)-", request.range or "")
    current = request.if_range in {None, served.etag}
    if match and served.ranges and current:
        start = int(match[1])
        if start >= size:
            _head(handler, request, 416, {"content-range": f"bytes */{size}"}, 0)
            return
        start += served.wrong_start
        headers["content-range"] = f"bytes {start}-{size - 1}/{size}"
    _head(handler, request, 206 if "content-range" in headers else 200, headers, size - start)
    content = served.content[start:]
    if served.cut_after:
        content = content[: served.cut_after.pop(0)]
    try:
        for first in range(0, len(content), 16_384):
            request.sent += len(content[first : first + 16_384])  # before the client can have it and look here
            handler.wfile.write(content[first : first + 16_384])
            time.sleep(served.block_pause)
    except (BrokenPipeError, ConnectionResetError):
        return  # the client was killed


def _head(handler: BaseHTTPRequestHandler, request: Request, status: int, headers: dict[str, str], length: int) -> None:
    request.status = status
    handler.send_response(status)
    for key, value in headers.items():
        handler.send_header(key, value)
    handler.send_header("content-length", str(length))
    handler.send_header("connection", "close")
    handler.end_headers()
