"""Network checks: real sockets of the loopback, and the environment's proxies and addresses."""

import socket
from collections.abc import Iterator

import pytest

from flows.doctor import network
from flows.doctor.case import Case

PROXY = "http://me:secret@proxy.example:3128"


@pytest.fixture(autouse=True)
def _no_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    for name in ("RAY_ADDRESS", "PREFECT_API_URL", "SUPERSCENE_METRICS_PORT"):
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def port() -> Iterator[int]:
    """A port that somebody listens at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_no_proxy_is_fine() -> None:
    assert network.proxies(Case()).state == "ok"


@pytest.mark.parametrize("name", ["HTTP_PROXY", "https_proxy", "ALL_PROXY"])
def test_a_proxy_for_this_machine_itself(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setenv(name, PROXY)
    finding = network.proxies(Case())
    assert finding.state == "fail"
    assert "proxy.example:3128" in finding.found
    assert "secret" not in finding.found
    assert "NO_PROXY does not name localhost and 127.0.0.1" in finding.found


@pytest.mark.parametrize(
    ("left_out", "state"),
    [("localhost", "fail"), ("127.0.0.1", "fail"), ("localhost,127.0.0.1", "ok"), ("*", "ok"), (".example", "fail")],
)
def test_what_a_proxy_leaves_out(monkeypatch: pytest.MonkeyPatch, left_out: str, state: str) -> None:
    monkeypatch.setenv("HTTP_PROXY", PROXY)
    monkeypatch.setenv("NO_PROXY", left_out)
    assert network.proxies(Case()).state == state


def test_a_proxy_without_a_scheme(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NO_PROXY", "*")
    for proxy in ("proxy.example:3128", "me:secret@proxy.example:3128"):
        monkeypatch.setenv("HTTP_PROXY", proxy)
        finding = network.proxies(Case())
        assert (finding.state, finding.found) == (
            "fail",
            "http: proxy.example:3128; http has no scheme, such as http://",
        )


def test_a_port_in_use(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    monkeypatch.setattr(network, "PORTS", {port: "superscene serve"})
    finding = network.ports(Case())
    assert finding.state == "warn"
    assert f"{port} (superscene serve) is in use" in finding.found
    monkeypatch.setenv("PREFECT_API_URL", f"http://127.0.0.1:{port}/api")  # the server that is meant to be there
    assert network.ports(Case()).state == "ok"


def test_free_ports(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        free = server.getsockname()[1]
    monkeypatch.setattr(network, "PORTS", {free: "superscene serve"})
    assert network.ports(Case()).state == "ok"


def test_the_port_of_metrics(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    assert network.metrics_port(Case()) is None
    for text, words in ((str(port), "in use"), ("70000", "no port"), ("ninety", "no port")):
        monkeypatch.setenv("SUPERSCENE_METRICS_PORT", text)
        finding = network.metrics_port(Case())
        assert finding is not None
        assert (finding.state, words in finding.found) == ("fail", True)


def test_a_cluster_that_answers_and_one_that_does_not(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    assert network.ray_address(Case()) is None
    for address, state in ((f"127.0.0.1:{port}", "ok"), (f"ray://127.0.0.1:{port}", "ok"), ("127.0.0.1:9", "fail")):
        monkeypatch.setenv("RAY_ADDRESS", address)
        finding = network.ray_address(Case())
        assert finding is not None
        assert (finding.state, address in finding.found) == (state, True)


def test_a_prefect_server_that_answers_and_some_that_do_not(monkeypatch: pytest.MonkeyPatch, port: int) -> None:
    assert network.prefect_server(Case()) is None
    urls = {
        f"http://127.0.0.1:{port}/api": "ok",
        "http://127.0.0.1:9/api": "fail",
        "127.0.0.1:4200": "fail",
        "http://127.0.0.1:70000/api": "fail",
        "http://me:secret@127.0.0.1:9/api": "fail",
    }
    for url, state in urls.items():
        monkeypatch.setenv("PREFECT_API_URL", url)
        finding = network.prefect_server(Case())
        assert finding is not None
        assert (finding.state, "secret" in finding.found) == (state, False), url


def test_localhost_that_is_another_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    assert network.localhost(Case()).state == "ok"
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_: [(2, 1, 6, "", ("10.1.2.3", 0))])
    assert network.localhost(Case()).state == "fail"

    def unknown(*_: object) -> None:
        raise socket.gaierror(-2, "Name or service not known")

    monkeypatch.setattr(socket, "getaddrinfo", unknown)
    finding = network.localhost(Case())
    assert (finding.state, "Name or service not known" in finding.found) == ("fail", True)
