"""moto's S3 on the loopback, behind a layer that misbehaves as told."""

import socket
import time
import urllib.request
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from threading import Lock, Thread
from typing import Any, Literal

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
from werkzeug.serving import WSGIRequestHandler, make_server

BUCKET = "bucket"
SECRET = "se/cret+Key40"
ACCESS_KEY = "AKIAFORTESTS"
TOKEN = "session-token-of-tests"


@dataclass
class Fault:
    """What happens to the next `times` requests of a kind."""

    kind: Literal["status", "cut", "lost", "half", "stall"]
    """An answer with a status; a connection that is closed before the request is carried out, or after; one that is
    closed in the middle of the answer; silence."""
    status: int = 503
    method: str = ""
    """Of these requests only."""
    key: str = ""
    """Of requests whose URL holds this only."""
    times: int = 1
    seconds: float = 0.0
    """How long a stall is."""
    every: int = 1
    """Of so many such requests one fails."""
    seen: int = 0
    """Requests of the kind so far."""


@dataclass
class S3Server:
    """The server at `url`."""

    url: str
    faults: list[Fault] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)
    """Method and URL of every request since the list was emptied."""
    sent: int = 0
    """Bytes of content of all answers."""
    page: int | None = None
    """Names in one answer to a listing, where that is to be less than S3's 1000."""
    lock: Lock = field(default_factory=Lock)

    def count(self, method: str, key: str = "") -> int:
        """How many requests of a method were for such a URL."""
        return sum(line.startswith(method + " ") and key in line for line in self.requests)

    def environment(self) -> dict[str, str]:
        """What a process needs to find it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": ACCESS_KEY,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_SESSION_TOKEN": TOKEN,
            "AWS_REGION": "us-east-1",
            "NO_PROXY": "127.0.0.1",
            "no_proxy": "127.0.0.1",
        }

    def fault(self, method: str, line: str) -> Fault | None:
        """Take note of a request and return what is to happen to it."""
        with self.lock:
            self.requests.append(line)
            for fault in self.faults:
                if fault.times and fault.method in {"", method} and fault.key in line:
                    fault.seen += 1
                    if fault.seen % fault.every == 0:
                        fault.times -= 1
                        return fault
        return None


class _Quiet(WSGIRequestHandler):
    def log(self, *args: object) -> None:
        pass


@contextmanager
def s3_server() -> Iterator[S3Server]:
    """Serve an empty bucket while the block runs."""
    moto = DomainDispatcherApplication(create_backend_app)
    served = S3Server("")

    def app(environ: dict[str, Any], start: Callable[..., Any]) -> Iterable[bytes]:
        if not environ.get("HTTP_AUTHORIZATION", "").startswith("AWS4"):  # Google's, of which moto knows nothing
            environ["HTTP_AUTHORIZATION"] = (
                f"AWS4-HMAC-SHA256 Credential={ACCESS_KEY}/20260101/us-east-1/s3/aws4_request"
            )
        method = environ["REQUEST_METHOD"]
        if served.page and "list-type=2" in environ["QUERY_STRING"]:
            environ["QUERY_STRING"] += f"&max-keys={served.page}"
        line = f"{method} {environ['PATH_INFO']}?{environ['QUERY_STRING']}"
        fault = served.fault(method, line)
        if fault is None:
            content = _whole(moto, environ, start)
            served.sent += sum(map(len, content)) if method == "GET" else 0
            return content
        if fault.kind == "stall":
            time.sleep(fault.seconds)
            return _whole(moto, environ, start)
        if fault.kind == "status":
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start(f"{fault.status} Injected", [("content-type", "application/xml")])
            # S3 repeats what was signed where the signature does not match
            said = f"<AWSAccessKeyId>{ACCESS_KEY}</AWSAccessKeyId><CanonicalRequest>{TOKEN}</CanonicalRequest>"
            return [f"<Error><Code>Injected</Code>{said}</Error>".encode()]
        if fault.kind == "half":
            return _half(moto, environ, start)
        if fault.kind == "lost":
            _whole(moto, environ, lambda *_: None)
        environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
        raise ConnectionAbortedError

    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    served.url = f"http://127.0.0.1:{server.server_port}"
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
    thread.start()
    try:
        urllib.request.urlopen(urllib.request.Request(f"{served.url}/{BUCKET}", method="PUT")).close()
        served.requests.clear()
        yield served
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _whole(moto: Any, environ: dict[str, Any], start: Callable[..., Any]) -> list[bytes]:
    answer = moto(environ, start)
    try:
        return list(answer)
    finally:
        if hasattr(answer, "close"):
            answer.close()


def _half(moto: Any, environ: dict[str, Any], start: Callable[..., Any]) -> Iterator[bytes]:
    content = b"".join(_whole(moto, environ, start))
    yield content[: len(content) // 2]
    environ["werkzeug.socket"].shutdown(socket.SHUT_RDWR)
