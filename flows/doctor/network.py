"""Checks of this machine's network: its own name, ports, proxies, and the servers that the environment names."""

import os
import socket
from urllib.parse import urlsplit
from urllib.request import getproxies_environment, proxy_bypass

import psutil

from flows.doctor.case import Case, Finding, fail, ok, warn, without_user

PORTS = {
    8000: "superscene serve",
    4200: "prefect server start",
    6379: "ray start --head",
    8265: "Ray's dashboard",
}
"""Ports that commands take by default."""

_LOCAL = ("localhost", "127.0.0.1")
_SECONDS = 3.0


def localhost(case: Case) -> Finding:  # noqa: ARG001  # of this machine alone
    """Look whether `localhost` is this machine."""
    try:
        found = sorted({str(item[4][0]) for item in socket.getaddrinfo("localhost", None)})
    except OSError as error:
        return fail(f"localhost is not known: {error.strerror or error}")
    if not all(address.startswith("127.") or address == "::1" for address in found):
        return fail(f"localhost is {', '.join(found)}")
    return ok(f"localhost is {', '.join(found)}")


def proxies(case: Case) -> Finding:  # noqa: ARG001  # of the environment alone
    """Look whether what Ray and Prefect say to this machine itself would go through a proxy, which cannot reach it."""
    named = {kind: url for kind, url in getproxies_environment().items() if kind in {"http", "https", "all"}}
    if not named:
        return ok("none")
    hosts = ", ".join(f"{kind}: {without_user(url)}" for kind, url in sorted(named.items()))
    odd = [kind for kind, url in named.items() if "://" not in url]
    if odd:
        return fail(f"{hosts}; {', '.join(sorted(odd))} has no scheme, such as http://")
    reached = [host for host in _LOCAL if not proxy_bypass(host)]
    if reached:
        return fail(f"{hosts}; NO_PROXY does not name {' and '.join(reached)}")
    return ok(f"{hosts}; not for {' and '.join(_LOCAL)}")


def ports(case: Case) -> Finding:  # noqa: ARG001  # of this machine alone
    """Look whether the ports that commands take are free."""
    addresses = (urlsplit(os.environ.get("PREFECT_API_URL", "")).netloc, os.environ.get("RAY_ADDRESS", ""))
    own = {_port_of(address) for address in addresses}
    if os.environ.get("RAY_ADDRESS"):
        own.add(8265)  # its dashboard, where it is of this machine
    busy = [
        f"{port} ({what}) is in use{_by(port)}" for port, what in PORTS.items() if port not in own and not is_free(port)
    ]
    return warn("; ".join(busy)) if busy else ok(f"{', '.join(map(str, PORTS))} are free")


def metrics_port(case: Case) -> Finding | None:  # noqa: ARG001  # of the environment alone
    """Look at the port that SUPERSCENE_METRICS_PORT names."""
    text = os.environ.get("SUPERSCENE_METRICS_PORT")
    if not text:
        return None
    if not (text.isdecimal() and 0 < int(text) < 2**16):
        return fail(f"SUPERSCENE_METRICS_PORT is {text!r}, which is no port")
    return ok(f"{text} is free") if is_free(int(text)) else fail(f"{text} is in use{_by(int(text))}")


def is_free(port: int) -> bool:
    """Return whether a server of this machine could listen there."""
    with socket.socket() as server:
        server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # one that has just ended does not count
        try:
            server.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True


def _by(port: int) -> str:
    try:
        for connection in psutil.net_connections("tcp"):
            here = connection.laddr and connection.laddr.port == port
            if here and connection.status == psutil.CONN_LISTEN and connection.pid:
                return f" by {psutil.Process(connection.pid).name()}, process {connection.pid}"
    except psutil.Error:  # other users' are not shown
        return ""
    return ""


def _port_of(address: str) -> int | None:
    port = address.rpartition(":")[2]
    return int(port) if port.isdecimal() else None


def ray_address(case: Case) -> Finding | None:  # noqa: ARG001  # of the environment alone
    """Look whether somebody listens at RAY_ADDRESS."""
    address = os.environ.get("RAY_ADDRESS")
    port = _port_of(address or "")
    if not address or port is None:
        return None
    return _answer(address, address.removeprefix("ray://").rpartition(":")[0], port)


def prefect_server(case: Case) -> Finding | None:  # noqa: ARG001  # of the environment alone
    """Look whether somebody listens at PREFECT_API_URL."""
    url = os.environ.get("PREFECT_API_URL")
    if not url:
        return None
    parts = urlsplit(url)
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
    except ValueError:
        return fail(f"{without_user(url)} has no port that there is")
    if parts.scheme not in {"http", "https"} or not parts.hostname:
        return fail(f"{without_user(url)} is no address such as http://127.0.0.1:4200/api")
    return _answer(without_user(url), parts.hostname, port)


def _answer(address: str, host: str, port: int) -> Finding:
    try:
        socket.create_connection((host, port), timeout=_SECONDS).close()
    except OSError as error:
        return fail(f"nobody answers at {address}: {error.strerror or error}")
    return ok(f"{address} answers")
