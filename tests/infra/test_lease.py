import json
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Protocol

import pytest

from infra import lease
from infra.errors import ConfigError, StoreError
from infra.object_store import ObjectPath, put
from infra.storage import StorePaths, is_locked, is_lost, locked_store
from tests.infra.s3_server import Fault, S3Server

ROOT = Path(__file__).parents[2]
SECONDS = 3.0
"""For how long a lease of these tests is valid."""

HOLDER = f"""
import sys, time
from infra import lease
from infra.storage import StorePaths, location, locked_store
lease.SECONDS = {SECONDS}
with locked_store(StorePaths(location(sys.argv[1]))):
    print("ready", flush=True)
    sys.stdin.read()
"""


class Start(Protocol):
    def __call__(self, paths: StorePaths, temporary: Path | None = None) -> subprocess.Popen[str]: ...


@pytest.fixture
def paths(s3_folder: ObjectPath, monkeypatch: pytest.MonkeyPatch) -> StorePaths:
    monkeypatch.setattr(lease, "SECONDS", SECONDS)
    return StorePaths(s3_folder)


@pytest.fixture
def start() -> Iterator[Start]:
    """Start a process that holds a store until its input ends; its temporary files may lie elsewhere."""
    running = []

    def run(paths: StorePaths, temporary: Path | None = None) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            [sys.executable, "-c", HOLDER, str(paths.root)],
            cwd=ROOT,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=os.environ | ({} if temporary is None else {"TMPDIR": str(temporary)}),
        )
        running.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        return process

    yield run
    for process in running:
        process.kill()
        process.communicate()


def test_a_second_run_stops_and_names_the_first(paths: StorePaths, start: Start) -> None:
    first = start(paths)
    assert is_locked(paths)
    with (
        pytest.raises(ConfigError, match=rf"another run \(process {first.pid} on .*\) is writing"),
        locked_store(paths),
    ):
        pytest.fail("two drivers hold the store")
    first.communicate(timeout=120)
    assert first.returncode == 0
    assert not is_locked(paths)
    begun = time.monotonic()
    with locked_store(paths):
        assert time.monotonic() - begun < SECONDS, "what was given back is free at once"


def test_the_lease_of_a_run_that_was_killed_elsewhere_ends_by_itself(
    paths: StorePaths, start: Start, tmp_path: Path
) -> None:
    first = start(paths, tmp_path)  # temporary files of its own, as another machine has
    first.send_signal(signal.SIGKILL)
    first.wait()
    begun = time.monotonic()
    with locked_store(paths):
        assert time.monotonic() - begun >= SECONDS
        assert is_locked(paths)
    assert not is_locked(paths)


def test_the_lease_of_a_run_that_was_killed_here_is_had_at_once(
    paths: StorePaths, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = start(paths, tmp_path)
    assert is_locked(paths)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not is_locked(paths)
    begun = time.monotonic()
    with locked_store(paths):
        assert time.monotonic() - begun < SECONDS
        assert is_locked(paths)
        assert len(list(tmp_path.iterdir())) == 1, "the dead one's folder is swept, this one's is there"
    assert not list(tmp_path.iterdir())


def test_a_lease_of_another_boot_is_waited_for(
    paths: StorePaths, start: Start, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A copy of a machine has the folder, and no lock on it, while the first may go on."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    first = start(paths, tmp_path)
    first.send_signal(signal.SIGKILL)
    first.wait()
    (other := tmp_path / "boot_id").write_text("another")
    monkeypatch.setattr(lease, "_BOOT", other)
    begun = time.monotonic()
    with locked_store(paths):
        assert time.monotonic() - begun >= SECONDS


def test_of_many_that_wait_for_a_dead_one_a_single_one_gets_it(paths: StorePaths) -> None:
    dead = {"holder": "0", "host": "gone", "pid": 1, "renewed": 3, "seconds": 0.5, "held": True}
    put(paths.root / "lease", json.dumps(dead).encode())  # type: ignore[arg-type]
    outcomes: list[str] = []
    ready = threading.Barrier(5)

    def compete() -> None:
        ready.wait()
        try:
            with lease.held(paths.root / "lease"):  # type: ignore[arg-type]
                time.sleep(2 * SECONDS)
                outcomes.append("held")
        except ConfigError:
            outcomes.append("refused")

    threads = [threading.Thread(target=compete) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(outcomes) == ["held", *["refused"] * 4]


def test_a_holder_outlives_faults_and_is_renewed_all_the_while(paths: StorePaths, s3: S3Server) -> None:
    with locked_store(paths):
        s3.requests.clear()
        s3.faults.append(Fault("status", 503, key="lease.json", times=12))  # two renewals and their retries
        time.sleep(2 * SECONDS)
        assert is_locked(paths)
        assert s3.count("PUT", "lease.json") >= 4
    assert not is_locked(paths)


@pytest.fixture(params=[signal.default_int_handler, signal.SIG_IGN], ids=["listening", "ignoring"])
def _interrupts(request: pytest.FixtureRequest) -> Iterator[None]:
    """As a driver is started by a person, and as a script's shell starts one in the background."""
    before = signal.signal(signal.SIGINT, request.param)
    yield
    assert signal.getsignal(signal.SIGINT) == request.param, "it is left as it was"
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("_interrupts")
def test_who_lost_the_lease_is_interrupted(paths: StorePaths) -> None:
    with pytest.raises(StoreError, match=r"the lease s3://.* was lost"), locked_store(paths):  # noqa: PT012
        put(paths.work / "lease.json", b"another's")  # type: ignore[arg-type]
        for _ in range(300):  # an interruption from a thread waits for the end of a sleep
            time.sleep(0.1)
        pytest.fail("nobody interrupted it")
    assert (paths.work / "lease.json").read_bytes() == b"another's", "it gave back what was not its own"
    assert is_lost(paths)
    assert not is_lost(StorePaths(paths.root / "other"))


def test_what_is_no_lease_is_told(paths: StorePaths) -> None:
    put(paths.work / "lease.json", b"[]")  # type: ignore[arg-type]
    with pytest.raises(StoreError, match="is no lease of this project"), locked_store(paths):
        pytest.fail("the store was locked")


def test_what_ended_a_run_is_told_and_not_that_its_lease_could_not_be_given_back(
    paths: StorePaths, s3: S3Server
) -> None:
    with pytest.raises(KeyError), locked_store(paths):  # noqa: PT012
        s3.faults.append(Fault("status", 503, method="PUT", times=1000))
        raise KeyError
    assert s3.faults[0].times < 1000, "it was tried"


def test_an_error_gives_the_lease_back(paths: StorePaths) -> None:
    for _ in range(2):
        with pytest.raises(KeyError), locked_store(paths):
            raise KeyError


def test_a_store_that_cannot_be_written_is_told_at_once(paths: StorePaths, s3: S3Server) -> None:
    s3.faults.append(Fault("status", 403, method="PUT", times=1))
    with pytest.raises(StoreError, match="access denied"), locked_store(paths):
        pytest.fail("the store was locked")
