"""One store, and one service of it, for all of the explorer's tests that change nothing."""

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.parse import urlencode

import pytest
import uvicorn
from fastapi import FastAPI
from playwright.sync_api import Browser
from starlette.testclient import TestClient

from explorer.app import make_app
from explorer.server import HOST, listening
from tests.chromium import OpenPage, open_page
from tests.explorer.pages import ready
from tests.explorer.store import Made, make_store


@pytest.fixture(scope="session")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_store(tmp_path_factory.mktemp("explorer") / "store")


@pytest.fixture(scope="session")
def app(made: Made) -> FastAPI:
    return make_app(made.paths.root)


@pytest.fixture(scope="session")
def client(app: FastAPI) -> TestClient:
    return client_of(app)


def client_of(app: FastAPI) -> TestClient:
    return TestClient(app, base_url="http://127.0.0.1:8000", raise_server_exceptions=True)


def of_patch(patch_id: str, what: str = "", **query: str | int) -> str:
    """Return the address of something of a patch, such as /maps."""
    return f"/api/patch{what}?{urlencode({'patch_id': patch_id, **query})}"


@contextmanager
def served(app: FastAPI) -> Iterator[str]:
    """Serve an application on a free port from a thread, and give its address."""
    with listening(0) as listener:
        config = uvicorn.Config(app, log_level="critical", access_log=False, lifespan="off")
        config.timeout_graceful_shutdown = 1  # a browser holds connections open, and their end is waited for
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]}, daemon=True)
        thread.start()
        port = listener.getsockname()[1]
        _wait_for(port)
        try:
            yield f"http://{HOST}:{port}/"
        finally:
            server.should_exit = True
            thread.join(60)


def _wait_for(port: int) -> None:
    for _ in range(100):
        with socket.create_connection((HOST, port)) as connection:
            connection.settimeout(60)
            connection.sendall(b"GET /static/icon.svg HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
            if connection.recv(12).endswith(b"200"):
                return
        time.sleep(0.05)


@pytest.fixture(scope="session")
def address(app: FastAPI) -> Iterator[str]:
    with served(app) as url:
        yield url


@pytest.fixture(scope="session")
def unfinished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A store whose first run goes on: patches alone, and the pixels of the second shard are lost."""
    return make_store(tmp_path_factory.mktemp("unfinished") / "store", run=False, lost_shard=True).paths.root


@pytest.fixture
def opened(browser: Browser, address: str) -> Iterator[OpenPage]:
    with open_page(browser, address) as found:
        ready(found.page)
        yield found
        found.assert_quiet()
