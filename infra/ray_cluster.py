"""The Ray cluster that this process is connected to: of this machine alone, or reached by its address."""

import logging
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import psutil

# Ray tells of each dead worker on stdout in 1,200 characters, and of each lost node in 25 lines of its log; the pool
# tells of it in one line. Read at Ray's import.
os.environ.setdefault(
    "RAY_DEDUP_LOGS_SKIP_REGEX",
    "^(A worker died or was killed while executing a task|Raylet is terminated|The node with node id)",
)

import ray
from ray._private import ray_constants
from ray._private.node import Node

from infra import metrics
from infra.errors import ConfigError, TransientError

_OBJECT_STORE_BYTES = 100 * 2**20
"""Ray moves no pixels here, so a local cluster needs little shared memory."""

_UNASKED = ("start_log_monitor", "start_monitor", "start_api_server")
"""How Ray starts what nobody asks anything on a local cluster: what sends workers' lines to drivers, which pool and
logs do, the autoscaler, and the dashboard's server, which without a dashboard only tells of usage."""

_SPARING = {
    "num_workers_soft_limit": 0,
    "idle_worker_killing_time_threshold_ms": 30_000,
    "kill_idle_workers_interval_ms": 2000,
    "raylet_check_gc_period_milliseconds": 2000,
    "object_manager_timer_freq_ms": 2000,
}
"""What takes less of the cores that models want: Ray keeps a worker for each core, of which one that waits takes a
hundredth, so that it ends after half a minute; and it looks round five to ten times a second for what can wait."""

_CPU_QUOTA = Path("/sys/fs/cgroup/cpu.max")
"""A container's share of the cores: microseconds of work (or "max") in a period of so many microseconds."""

_PORTS = 65536

_FOR_WORKERS = (
    *("SUPERSCENE_SCRATCH", "SUPERSCENE_CACHE", "SUPERSCENE_OFFLINE"),
    *("AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT", "AWS_REGION", "AWS_DEFAULT_REGION"),
)
"""Settings that workers take over from the driver. Credentials come from each node's own environment or role."""

_elastic = False
"""Whether nodes may join: the cluster was reached by its address."""

_connect: Callable[[], None] | None = None
"""Makes the connection that this process has, once more."""

_when_left: list[Callable[[bool], None]] = []
"""Called before a connection is left: whoever holds actors of it lets go of them."""


def when_left(call: Callable[[bool], None]) -> None:
    """Have a function called before each connection is left, with whether all went well: then the cluster answers."""
    _when_left.append(call)


@contextmanager
def cluster(address: str | None = None, scratch: Path | None = None) -> Iterator[None]:
    """Connect to a Ray cluster, or start a local one on this machine, and leave it afterwards.

    Args:
        address: A cluster's address; None: `RAY_ADDRESS`, else a local cluster.
        scratch: Folder for a local cluster's session files; None: Ray's own default.

    Raises:
        ConfigError: The cluster does not answer.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("REPORTER_UPDATE_INTERVAL_MS", "15000")  # who asks for metrics asks about as often
    # Ray tells after one second that an actor is gone, but after fifteen that its whole node is: wait for that.
    os.environ.setdefault("RAY_timeout_ms_task_wait_for_death_info", "60000")
    address = address or os.environ.get("RAY_ADDRESS") or None
    local: dict[str, Any] = {
        "include_dashboard": False,
        "num_cpus": available_cores(),
        "object_store_memory": _OBJECT_STORE_BYTES,
        "_temp_dir": str(scratch) if scratch else None,
        "_metrics_export_port": _metrics_port(),
        "_system_config": _SPARING,
    }
    if address:
        _refuse_silent_address(address)

    def connect() -> None:
        try:
            with _own_sigterm():
                ray.init(
                    address=address or "local",
                    log_to_driver=False,  # a worker's error and its lines come back with its shard's outcome
                    logging_level=logging.ERROR,
                    **({} if address else local),
                )
        except (ConnectionError, RuntimeError, ValueError) as error:
            if address:
                raise ConfigError(f"no Ray cluster answers at {address}: {error}") from error
            raise

    with nullcontext() if address else _on_loopback(), nullcontext() if address else _without_unasked():
        connect()
        global _elastic, _connect  # one connection a process, as Ray has
        _elastic, _connect = bool(address), connect
        well = False
        try:
            with metrics.kept_alive():
                yield
            well = True
        finally:
            _elastic, _connect = False, None
            _leave(well=well)


@contextmanager
def _on_loopback() -> Iterator[None]:
    """Let a local cluster listen on 127.0.0.1 alone: Ray's ports run whatever they are sent.

    On Linux Ray listens on all of a machine's addresses, and takes no loopback address by its options; this is what it
    does on other systems by itself.
    """
    before = ray_constants.ENABLE_RAY_CLUSTER
    ray_constants.ENABLE_RAY_CLUSTER = False
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before


@contextmanager
def _without_unasked() -> Iterator[None]:
    """Let a local cluster start no more processes than it needs: they take turns with the models on the same cores.

    `ray start` has options for that, `ray.init` has none.
    """
    before = {name: getattr(Node, name) for name in _UNASKED}
    for name in _UNASKED:
        setattr(Node, name, _start_nothing)
    try:
        yield
    finally:
        for name, start in before.items():
            setattr(Node, name, start)


def _start_nothing(node: Node, **_options: object) -> None:
    """Start none of a node's processes."""


def _metrics_port() -> int | None:
    """Return the port of a local cluster's metrics that SUPERSCENE_METRICS_PORT names; None: whichever is free.

    Raises:
        ConfigError: It is no port.
    """
    text = os.environ.get("SUPERSCENE_METRICS_PORT")
    if not text:
        return None
    if not (text.isdecimal() and 0 < int(text) < _PORTS):
        raise ConfigError(f"SUPERSCENE_METRICS_PORT is {text!r}: give a port, 1 to {_PORTS - 1}, or leave it out")
    return int(text)


@contextmanager
def _own_sigterm() -> Iterator[None]:
    """Keep the process's handler of SIGTERM: Ray's ends it by SystemExit, and whoever started the run has another."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def reconnect() -> None:
    """Connect anew where this process's own node has died; a local cluster is started anew.

    Raises:
        ConfigError: The cluster does not answer.
    """
    if _connect is not None and not own_node_lives():
        _leave(well=False)
        _connect()


def _leave(*, well: bool) -> None:
    for call in _when_left:
        call(well)
    ray.shutdown()


def own_node_lives() -> bool:
    """Return whether the Ray node that this process is attached to is alive: without it no actor can be had."""
    own = ray.get_runtime_context().get_node_id()
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return all(node["Alive"] or node.get("NodeID") != own for node in nodes)  # dead ones stay in the list


def refuse_lost_node() -> None:
    """Refuse to go on where this process's own node has died: Ray itself would wait for ever.

    Raises:
        TransientError: It has.
    """
    if not own_node_lives():
        raise TransientError(
            "the Ray node that this run's driver is attached to has died, perhaps for lack of memory; what is done "
            "stays: the same command goes on from here"
        )


def is_elastic() -> bool:
    """Return whether nodes may join the cluster that this process is connected to: it was reached by its address."""
    return _elastic


def living_nodes() -> list[dict[str, Any]]:
    """Return Ray's records of the nodes that are alive; `Resources` is what each has, used or not."""
    nodes: list[dict[str, Any]] = ray.nodes()  # type: ignore[no-untyped-call]
    return [node for node in nodes if node["Alive"]]


def settings_for_workers() -> dict[str, str]:
    """Return the settings of this process that workers on other nodes need; secrets are none of them."""
    return {name: os.environ[name] for name in _FOR_WORKERS if name in os.environ}


def take_over(settings: Mapping[str, str]) -> None:
    """In a worker: set what the driver has set; what its own node has set counts for more."""
    for name, value in settings.items():
        os.environ.setdefault(name, value)


def _refuse_silent_address(address: str) -> None:
    """Raise ConfigError where nobody listens: Ray itself would go on trying for many minutes."""
    host, _, port = address.removeprefix("ray://").rpartition(":")
    if not port.isdigit():
        return  # "auto" and the like are looked up by Ray
    try:
        socket.create_connection((host, int(port)), timeout=5).close()
    except OSError as error:
        raise ConfigError(f"no Ray cluster answers at {address}: {error}") from error


def available_cores() -> int:
    """Return the cores that this process may use, in a container with a quota too."""
    process = psutil.Process()
    affinity = process.cpu_affinity() if hasattr(process, "cpu_affinity") else None  # macOS has none
    cores = len(affinity or []) or os.cpu_count() or 1
    if _CPU_QUOTA.is_file():
        work, period = _CPU_QUOTA.read_text().split()
        if work != "max":
            cores = min(cores, max(1, int(work) // int(period)))
    return cores
