"""What a round happens in: an S3 server, a Ray cluster of three nodes, a small disk, and the driver, all processes."""

import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

from benchmarks.chaos.report import End

PROJECT = Path(__file__).resolve().parents[2]
MARK = "SUPERSCENE_CHAOS"
"""Environment variable of every process that is started here, so that strays are found."""

_NODE = {"object_store_memory": 100 * 2**20}
_HEALTH = {"health_check_initial_delay_ms": 0, "health_check_period_ms": 1000, "health_check_failure_threshold": 4}
"""A node is called lost after four seconds of silence instead of fifteen or so, so that three minutes see several."""

_CPUS = (2, 1, 1)
"""Cores of the head and of the two other nodes: room for four actors."""


@contextmanager
def environment(values: Mapping[str, str]) -> Iterator[None]:
    """Let this process, and what it starts, have variables while the block runs."""
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


class S3:
    """The server's process."""

    def __init__(self) -> None:
        """Start it with an empty bucket."""
        command = [sys.executable, "-m", "benchmarks.chaos.s3_process"]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, cwd=PROJECT
        )
        self.environment: dict[str, str] = self._answer()

    def inject(self, kind: str, times: int, every: int) -> None:
        """Let one of so many requests fail, so many times.

        Args:
            kind: "status" with a number, or another kind of `tests.infra.s3_server.Fault`.
            times: Requests to fail.
            every: Of so many requests one fails.
        """
        word, _, status = kind.partition(" ")
        self._tell({"kind": word, "times": times, "every": every, **({"status": int(status)} if status else {})})

    def heal(self) -> dict[str, int]:
        """End all faults, and return how many requests each kind has hit since the server started."""
        return self._tell({})

    def unfinished_uploads(self, bucket: str) -> int:
        """Return how many uploads in pieces were begun and neither finished nor given up."""
        with urllib.request.urlopen(f"{self.environment['AWS_ENDPOINT_URL']}/{bucket}?uploads", timeout=60) as answer:
            return int(answer.read().count(b"<UploadId>"))

    def close(self) -> None:
        """End the server."""
        self._process.communicate(timeout=60)

    def _tell(self, words: Mapping[str, object]) -> dict[str, Any]:
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps(words) + "\n")
        self._process.stdin.flush()
        return self._answer()

    def _answer(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer


class Nodes:
    """A Ray cluster of three nodes on this machine; Ray starts nodes from the main thread alone."""

    def __init__(self, folder: Path) -> None:
        """Start it.

        Args:
            folder: Of its session; a short name, since paths of sockets are.
        """
        from ray.cluster_utils import Cluster

        head = {**_NODE, "num_cpus": _CPUS[0], "include_dashboard": False, "_system_config": _HEALTH}
        self._cluster: Any = Cluster(initialize_head=True, head_node_args={**head, "temp_dir": str(folder)})
        self._nodes: dict[int, Any] = {place: self._add(place) for place in range(1, len(_CPUS))}
        self._lost: dict[int, float] = {}

    @property
    def address(self) -> str:
        """Where drivers reach it."""
        return str(self._cluster.address)

    def raylets(self) -> list[int]:
        """Return the places of the nodes that can be lost: all that live, but the head's."""
        return sorted(self._nodes.keys() - self._lost.keys())

    def kill_raylet(self, place: int) -> None:
        """End a node's raylet by SIGKILL; its actors are left to find out."""
        os.kill(_raylet(self._nodes[place]), signal.SIGKILL)
        self._lost[place] = time.monotonic()

    def replace_lost(self, after_seconds: float) -> None:
        """Let nodes that were lost so long ago join anew, as a provider's replacements do."""
        for place, since in list(self._lost.items()):
            if time.monotonic() - since >= after_seconds:
                self._cluster.remove_node(self._nodes[place], allow_graceful=False)
                self._nodes[place] = self._add(place)
                del self._lost[place]

    def actors(self, *, at_work: bool) -> list[psutil.Process]:
        """Return the processes of the pool's actors on living nodes: all, or those with a shard in hand."""
        living = [self._cluster.head_node, *(self._nodes[place] for place in self.raylets())]
        title = "ray::_Host.run" if at_work else "ray::_Host"
        return [process for node in living for process in _children(_raylet(node)) if _is_called(process, title)]

    def close(self) -> None:
        """End all nodes."""
        self._cluster.shutdown()

    def _add(self, place: int) -> Any:  # noqa: ANN401  # Ray has no types here
        return self._cluster.add_node(num_cpus=_CPUS[place], **_NODE)


def _raylet(node: Any) -> int:  # noqa: ANN401  # Ray has no types here
    (info,) = node.all_processes["raylet"]
    return int(info.process.pid)


def _children(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _is_called(process: psutil.Process, title: str) -> bool:
    try:
        return any(title in word for word in process.cmdline())
    except psutil.Error:
        return False


@dataclass(slots=True)
class Disk:
    """A small file system for whatever is written to this machine."""

    folder: Path
    limited: bool
    """Whether it is one; false where none may be mounted: then it cannot be filled."""
    full_since: float | None = None

    @property
    def _filler(self) -> Path:
        return self.folder / "filler"

    def fill(self) -> None:
        """Take all of what is free."""
        self.full_since = time.monotonic()
        block = bytes(2**20)
        with self._filler.open("wb", buffering=0) as file:
            try:
                while file.write(block):
                    pass
            except OSError:
                return

    def free(self) -> float:
        """Give back what was taken, and return for how many seconds the disk was full."""
        assert self.full_since is not None
        seconds = time.monotonic() - self.full_since
        self._filler.unlink()
        self.full_since = None
        return seconds


@contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Disk]:
    """Mount a file system of memory while the block runs, where that is permitted; else use the folder as it is."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    limited = os.geteuid() == 0 and subprocess.run(mount, capture_output=True, check=False).returncode == 0
    try:
        yield Disk(folder, limited)
    finally:
        if limited:
            subprocess.run(["umount", "-l", str(folder)], check=True)


@dataclass(slots=True)
class Driver:
    """One start of `superscene run`."""

    process: "subprocess.Popen[bytes]"
    log: Path
    started: float = field(default_factory=time.monotonic)
    killed: bool = False

    def at_work(self) -> bool:
        """Whether it has begun a stage: it tells of each."""
        return self.log.stat().st_size > 0

    def kill(self) -> None:
        """End it by SIGKILL."""
        self.killed = True
        self.process.kill()

    def end(self) -> End | None:
        """Return how it ended; None while it runs."""
        code = self.process.poll()
        if code is None:
            return None
        lines = [line for line in self.log.read_text(errors="replace").splitlines() if line.strip()]
        killed = self.killed and code == -signal.SIGKILL
        return End(time.monotonic() - self.started, code, killed, lines[-1].strip() if lines else "")


def start_driver(run_yaml: Path, log: Path, environment: Mapping[str, str]) -> Driver:
    """Start a run whose words go to a log of its own."""
    command = [str(Path(sys.executable).with_name("superscene")), "run", str(run_yaml)]
    with log.open("wb") as file:
        return Driver(subprocess.Popen(command, stdout=file, stderr=file, env=dict(environment), cwd=PROJECT), log)


@dataclass(frozen=True, slots=True)
class World:
    """Everything that a round needs."""

    folder: Path
    s3: S3
    nodes: Nodes
    disk: Disk
    environment: Mapping[str, str]
    """Of drivers."""
    mark: str

    def marked(self) -> list[psutil.Process]:
        """Return the processes that were started here, this one excepted."""
        found = []
        for process in psutil.process_iter():
            try:
                if process.pid != os.getpid() and process.environ().get(MARK) == self.mark:
                    found.append(process)
            except psutil.Error:
                continue
        return found


@contextmanager
def world(disk_megabytes: int) -> Iterator[World]:
    """Start everything, and end it with the block."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="chaos-", ignore_cleanup_errors=True)))
        disk = stack.enter_context(small_disk(folder / "disk", disk_megabytes))
        values = {
            MARK: folder.name,
            "PYTHONPATH": str(PROJECT),
            "OMP_NUM_THREADS": "1",
            "RAY_USAGE_STATS_ENABLED": "0",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_HOME": str(folder / "prefect"),
            "RAY_TMPDIR": str(folder),
        }
        stack.enter_context(environment(values))
        s3 = S3()
        stack.callback(s3.close)
        stack.enter_context(environment(s3.environment))
        stack.enter_context(environment({"PREFECT_API_URL": stack.enter_context(_prefect_server(folder))}))
        # To the end, for nodes that join later too.
        stack.enter_context(environment({"TMPDIR": str(disk.folder), "SUPERSCENE_SCRATCH": str(disk.folder)}))
        nodes = Nodes(folder / "ray")
        stack.callback(nodes.close)
        of_drivers = {**os.environ, "RAY_ADDRESS": nodes.address}
        yield World(folder, s3, nodes, disk, of_drivers, folder.name)


@contextmanager
def _prefect_server(folder: Path) -> Iterator[str]:
    """One server for all drivers, as in production: each would start one of its own in seconds."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    address = f"http://127.0.0.1:{port}/api"
    command = [str(Path(sys.executable).with_name("prefect")), "server", "start", "--host", "127.0.0.1", "--port"]
    with (folder / "prefect.log").open("wb") as log:
        server = subprocess.Popen([*command, str(port)], stdout=log, stderr=log)
    try:
        _wait_for(f"{address}/health", server)
        yield address
    finally:
        server.terminate()
        server.wait(timeout=60)


def _wait_for(address: str, server: "subprocess.Popen[bytes]", seconds: float = 180) -> None:
    deadline = time.monotonic() + seconds
    while True:
        try:
            with urllib.request.urlopen(address, timeout=5):
                return
        except OSError:
            if server.poll() is not None or time.monotonic() > deadline:
                raise
            time.sleep(0.2)
