"""The explorer as a command: a server of this machine alone, until it is interrupted."""

import errno
import socket
import threading
import webbrowser
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import uvicorn

from explorer.app import make_app
from infra.errors import ConfigError

HOST = "127.0.0.1"
"""The only address that is listened on."""


def serve(
    store: Path,
    *,
    port: int = 8000,
    basemap: str | None = None,
    open_browser: bool = False,
    ready: Callable[[str], None] | None = None,
) -> None:
    """Serve a store's pages until the process is interrupted.

    Args:
        store: The store, a folder or on object storage.
        port: Port of 127.0.0.1; 0: any free one.
        basemap: URL of map tiles with {z}, {x} and {y}; None: no request leaves this machine.
        open_browser: Whether to open the page in the user's browser.
        ready: Told the page's address once it can be opened.

    Raises:
        ConfigError: The port is in use or not ours to take, or the basemap is no URL of tiles.
        StoreError: The store has no patches, or they cannot be read.
    """
    with listening(port) as listener:
        app = make_app(store, basemap)
        config = uvicorn.Config(app, log_level="warning", access_log=False, server_header=False)
        config.timeout_graceful_shutdown = 1  # s; a browser holds connections open, and their end is waited for
        server = uvicorn.Server(config)
        threading.Thread(target=app.state.explorer.warm, name="warm", daemon=True).start()
        address = f"http://{HOST}:{listener.getsockname()[1]}/"
        if ready is not None:
            ready(address)
        if open_browser:
            webbrowser.open(address)
        with suppress(KeyboardInterrupt):  # uvicorn ends in good order and then raises it again
            server.run(sockets=[listener])


def listening(port: int) -> socket.socket:
    """Return a socket that listens on a port of this machine; requests wait until somebody answers.

    Raises:
        ConfigError: The port is in use, or not ours to take.
    """
    # Named as TCP, or asyncio leaves Nagle's algorithm on: that costs 40 ms an answer on a kept connection.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that a server just left is free
        listener.bind((HOST, port))
        listener.listen(128)
    except OSError as error:
        listener.close()
        why = "in use by another program" if error.errno == errno.EADDRINUSE else (error.strerror or str(error)).lower()
        raise ConfigError(f"port {port} of {HOST} is {why}: choose another with --port") from error
    except OverflowError as error:
        listener.close()
        raise ConfigError(f"--port {port} is none: ports go from 0 to 65535") from error
    return listener
