import os
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.flows.stores import Driver, Inputs, environment, shared_inputs


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, worker_id: str, _driver: None) -> Inputs:
    base = tmp_path_factory.getbasetemp()
    return shared_inputs((base if worker_id == "master" else base.parent) / "flow-inputs")


@pytest.fixture(scope="session")
def _driver(tmp_path_factory: pytest.TempPathFactory, prefect_server: None) -> Iterator[None]:
    """The driver that runs the commands of a test process."""
    Driver.running = Driver(tmp_path_factory.mktemp("driver"))
    yield
    ended, Driver.running = Driver.running, None
    ended.end()


@pytest.fixture(scope="session")
def prefect_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """One Prefect server for the runs of a test process, as in production: each would start one of its own in 6 s."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    prefect = str(Path(sys.executable).with_name("prefect"))
    with (tmp_path_factory.mktemp("prefect") / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [prefect, "server", "start", "--host", "127.0.0.1", "--port", str(port)],
            stdout=log,
            stderr=log,
            env=environment(),
        )
    try:
        _wait_for(f"http://127.0.0.1:{port}/api/health", server)
        os.environ["PREFECT_API_URL"] = f"http://127.0.0.1:{port}/api"
        yield
    finally:
        os.environ.pop("PREFECT_API_URL", None)
        server.kill()  # it has nothing to save, and would wait ten seconds for its connections to end
        server.wait(timeout=120)


def _wait_for(address: str, server: "subprocess.Popen[bytes]", seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        assert server.poll() is None, "the Prefect server ended"
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except (urllib.error.URLError, TimeoutError, ConnectionError):
            time.sleep(0.2)
    raise TimeoutError(f"no Prefect server at {address} after {seconds} s")
