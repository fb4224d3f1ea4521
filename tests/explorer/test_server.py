"""The server listens on this machine alone, and says what to do where it cannot."""

import http.client
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from explorer.server import HOST, listening, serve
from infra.errors import ConfigError, StoreError
from tests.explorer.store import Made


def test_a_port_in_use_is_told_with_what_to_do(made: Made) -> None:
    with listening(0) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(ConfigError, match=f"port {port} of 127.0.0.1 is in use .* --port"):
            serve(made.paths.root, port=port)
    with pytest.raises(ConfigError, match="ports go from 0 to 65535"):
        serve(made.paths.root, port=70_000)


def test_it_listens_on_loopback_alone() -> None:
    with listening(0) as listener:
        assert listener.getsockname()[0] == HOST == "127.0.0.1"
        port = listener.getsockname()[1]
        for address in {info[4][0] for info in socket.getaddrinfo(socket.gethostname(), None, socket.AF_INET)} - {HOST}:
            if not str(address).startswith("127."):
                with pytest.raises(ConnectionRefusedError):
                    socket.create_connection((str(address), port), timeout=5).close()


def test_a_store_without_patches_is_told_before_anything_is_served(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="holds no patches"):
        serve(tmp_path, port=0)


_SERVE = """
import sys
from pathlib import Path
from explorer.server import serve
serve(Path(sys.argv[1]), port=0, ready=lambda address: print(address, flush=True))
print("ended")
"""


def test_it_serves_until_it_is_interrupted(made: Made) -> None:
    process = subprocess.Popen(
        [sys.executable, "-c", _SERVE, str(made.paths.root)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
    )
    assert process.stdout is not None
    try:
        address = process.stdout.readline().strip()
        host, port = address.removeprefix("http://").rstrip("/").split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=120)
        connection.request("GET", "/api/store")
        assert connection.getresponse().status == 200
        connection.close()
        process.send_signal(signal.SIGINT)
        assert process.wait(120) == 0
        assert process.stdout.read() == "ended\n"
    finally:
        process.kill()
        process.stdout.close()
        process.wait()
