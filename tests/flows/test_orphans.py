"""Prefect's own server, of a driver that is killed: a real one."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import psutil
import pytest

from flows.orphans import _is_orphan
from tests.flows.stores import PROJECT

DRIVER = """
import time
from flows.orphans import end_orphaned_servers
print("ended", end_orphaned_servers(), flush=True)
from prefect import flow

@flow
def nothing():
    print("running", flush=True)
    time.sleep({seconds})

nothing()
"""


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[[float], "subprocess.Popen[str]"]]:
    """Start a driver that has no server but its own; its children end with the test."""
    running: list[subprocess.Popen[str]] = []
    mark = f"SUPERSCENE_TEST={tmp_path}"
    env = {name: value for name, value in os.environ.items() if name not in {"PREFECT_API_URL", "SUPERSCENE_DRIVER"}}
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_LOGGING_LEVEL": "CRITICAL"}
    env |= quiet | {"PREFECT_HOME": str(tmp_path / "prefect"), "SUPERSCENE_TEST": str(tmp_path)}

    def run(seconds: float) -> "subprocess.Popen[str]":
        code = DRIVER.format(seconds=seconds)
        process = subprocess.Popen(
            [sys.executable, "-c", code], cwd=PROJECT, env=env, stdout=subprocess.PIPE, text=True
        )
        running.append(process)
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()
    for left in psutil.process_iter():
        try:
            if mark in (f"{name}={value}" for name, value in left.environ().items()):
                left.kill()
        except psutil.Error:
            continue


def line(process: "subprocess.Popen[str]") -> str:
    assert process.stdout is not None
    return process.stdout.readline().strip()


def servers(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    return [child for child in psutil.Process(process.pid).children() if "uvicorn" in child.cmdline()]


@dataclass
class Server:
    """A process as psutil tells of it."""

    home: str | None = "/home/prefect"
    driver: str | None = None
    parent: int = 1
    words: tuple[str, ...] = ("python", "-m", "uvicorn", "prefect.server.api.server:create_app")

    def cmdline(self) -> list[str]:
        return list(self.words)

    def environ(self) -> dict[str, str]:
        given = {"PREFECT_HOME": self.home, "SUPERSCENE_DRIVER": self.driver}
        return {name: value for name, value in given.items() if value is not None}

    def ppid(self) -> int:
        return self.parent

    def uids(self) -> SimpleNamespace:
        return SimpleNamespace(real=os.getuid())


HERE = Path("/proc/self/ns/pid").readlink()


@pytest.mark.parametrize(
    ("server", "expected"),
    [
        (Server(driver=f"7 {HERE}"), True),
        (Server(driver=f"7 {HERE}", parent=7), False),
        (Server(driver=f"7 {HERE}", home="/of/another/run"), False),
        (Server(driver="7 pid:[1]", parent=48211), False),
        (Server(), False),
        (Server(driver=f"7 {HERE}", words=("python", "prefect.server")), False),
    ],
    ids=["an orphan", "its driver lives", "of another home", "of another container", "nobody's", "no server"],
)
def test_whose_server_is_ended(monkeypatch: pytest.MonkeyPatch, server: Server, *, expected: bool) -> None:
    monkeypatch.setenv("PREFECT_HOME", "/home/prefect")
    assert _is_orphan(cast("psutil.Process", server)) == expected


@pytest.mark.slow
def test_the_server_of_a_killed_driver_ends_and_that_of_a_living_one_stays(
    start: Callable[[float], "subprocess.Popen[str]"],
) -> None:
    killed = start(300)
    assert [line(killed), line(killed)] == ["ended 0", "running"]
    (orphan,) = servers(killed)
    killed.send_signal(signal.SIGKILL)
    killed.wait()
    time.sleep(0.5)
    assert orphan.is_running(), "nobody else ends it"
    living = start(300)
    assert [line(living), line(living)] == ["ended 1", "running"]
    assert not orphan.is_running()
    (its_server,) = servers(living)
    last = start(0)
    assert [line(last), line(last)] == ["ended 0", "running"]
    assert its_server.is_running()
    assert last.wait(timeout=60) == 0
