"""Who may ask, and what the browser may do with the answer: for a server that listens on this machine alone.

A page from elsewhere can send a browser to 127.0.0.1 under a name of its own (DNS rebinding): such a request says so in
its Host header and is refused.
"""

import re
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse

from infra.errors import ConfigError

type _Message = MutableMapping[str, Any]
type _Receive = Callable[[], Awaitable[_Message]]
type _Send = Callable[[_Message], Awaitable[None]]
type _App = Callable[[_Message, _Receive, _Send], Awaitable[None]]

MOST_QUERY_BYTES = 16_384
"""Longer queries are refused before anything reads them."""

_HOST = re.compile(r"(localhost|127\.0\.0\.1)(:[0-9]{1,5})?", re.ASCII | re.IGNORECASE)
_TEMPLATE = re.compile(r"https?://[A-Za-z0-9.-]+(:[0-9]{1,5})?/[A-Za-z0-9./_~%{}?=&@:+-]*", re.ASCII)


def check_basemap(template: str) -> str:
    """Return the origin of a URL of map tiles, which the page may then ask.

    Raises:
        ConfigError: It is no http URL with {z}, {x} and {y}.
    """
    if not _TEMPLATE.fullmatch(template) or not all(name in template for name in ("{z}", "{x}", "{y}")):
        raise ConfigError(
            f"--basemap {template!r} is no URL of map tiles: write http(s)://server/…/{{z}}/{{x}}/{{y}}.png"
        )
    parts = urlsplit(template)
    return f"{parts.scheme}://{parts.netloc}"


class Guard:
    """Lets GET requests to this machine through, and puts security headers on every answer."""

    def __init__(self, app: _App, basemap_origin: str | None = None) -> None:
        """Stand before an ASGI application.

        Args:
            app: The application.
            basemap_origin: A server that the page may load pictures from; None: none.
        """
        self._app = app
        images = "'self' data:" if basemap_origin is None else f"'self' data: {basemap_origin}"
        self._headers = {
            "Content-Security-Policy": f"default-src 'self'; img-src {images}; object-src 'none'; base-uri 'none'; "
            "form-action 'none'; frame-ancestors 'none'",
            "X-Content-Type-Options": "nosniff",
            "X-Frame-Options": "DENY",
            "Cross-Origin-Resource-Policy": "same-origin",
            "Cross-Origin-Opener-Policy": "same-origin",
            "Referrer-Policy": "no-referrer" if basemap_origin is None else "origin",
            "Cache-Control": "no-store",
        }

    async def __call__(self, scope: _Message, receive: _Receive, send: _Send) -> None:
        """Answer one request, or let the application do so."""
        if scope["type"] != "http":
            if scope["type"] == "lifespan":
                await self._app(scope, receive, send)
            return

        async def send_with_headers(message: _Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message).update(self._headers)
            await send(message)

        refused = self._refused(scope)
        if refused is None:
            await self._app(scope, receive, send_with_headers)
        else:
            status, why = refused
            allow = {"Allow": "GET"} if status == 405 else None
            await JSONResponse({"detail": why}, status, allow)(scope, receive, send_with_headers)

    def _refused(self, scope: _Message) -> tuple[int, str] | None:
        """Return a status and the reason why a request is not answered."""
        hosts = Headers(scope=scope).getlist("host")
        if len(hosts) != 1 or not _HOST.fullmatch(hosts[0]):
            return 421, "this server answers requests to localhost and 127.0.0.1 alone"
        if scope["method"] != "GET":
            return 405, "this server is read with GET; nothing can be changed"
        if len(scope["query_string"]) > MOST_QUERY_BYTES:
            return 414, f"the query is longer than {MOST_QUERY_BYTES} bytes"
        return None
