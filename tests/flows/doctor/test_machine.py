"""What a machine or a container lacks: asked of psutil and the kernel, whose answers are set here."""

import os
import resource
import shutil
from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flows.doctor import machine
from flows.doctor.case import Case
from infra import ray_cluster
from tests.flows.doctor.system import written


@pytest.fixture
def four_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray_cluster, "available_cores", lambda: 4)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)


@pytest.mark.usefixtures("four_cores")
def test_more_workers_than_cores() -> None:
    assert machine.cores(Case(actors=4)).state == "ok"
    finding = machine.cores(Case(actors=8))
    assert finding.state == "warn"
    assert "4 of the machine's 16 cores" in finding.found
    assert "actors: 8" in finding.found


@pytest.mark.usefixtures("four_cores")
def test_a_cluster_has_cores_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "head:6379")
    assert machine.cores(Case(actors=8)).state == "ok"


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize(
    ("free", "actors", "state"), [(1.9e9, None, "fail"), (5.9e9, None, "warn"), (5.9e9, 2, "ok"), (6.1e9, None, "ok")]
)
def test_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: float, actors: int | None, state: str) -> None:
    """Four workers of 1.5 GB take 6 GB."""
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=free, total=64e9))
    assert machine.memory(Case(system=tmp_path, actors=actors)).state == state


@pytest.mark.usefixtures("four_cores")
@pytest.mark.parametrize("version", [1, 2])
def test_memory_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, version: int) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=60e9, total=64e9))
    if version == 2:
        folder, cache = "sys__fs__cgroup__memory", "inactive_file"
        files = {f"{folder}.max": "2000000000\n", f"{folder}.current": "500000000\n"}
    else:
        folder, cache = "sys__fs__cgroup__memory__memory", "total_inactive_file"
        files = {f"{folder}.limit_in_bytes": "2000000000\n", f"{folder}.usage_in_bytes": "500000000\n"}
    finding = machine.memory(Case(system=written(tmp_path, **files)))
    assert (finding.state, finding.found) == ("fail", "1.5 GB free, which is this container's limit")
    pages = {f"{folder}.stat": f"anon 90000000\n{cache} 400000000\nactive_file 5\n"}  # given back on demand
    finding = machine.memory(Case(system=written(tmp_path, **files, **pages), actors=1))
    assert (finding.state, finding.found) == ("fail", "1.9 GB free, which is this container's limit")


@pytest.mark.usefixtures("four_cores")
def test_a_container_without_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(psutil, "virtual_memory", lambda: SimpleNamespace(available=60e9, total=64e9))
    assert machine.memory(Case(system=written(tmp_path, **{"sys__fs__cgroup__memory.max": "max\n"}))).state == "ok"
    huge = written(tmp_path, **{"sys__fs__cgroup__memory__memory.limit_in_bytes": f"{2**63 - 4096}\n"})
    assert machine.memory(Case(system=huge)).state == "ok"


@pytest.mark.parametrize(("free", "state"), [(64 * 2**20, "warn"), (2**30, "ok")])
def test_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int, state: str) -> None:
    (tmp_path / "dev" / "shm").mkdir(parents=True)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(total=free, used=0, free=free))
    assert machine.shared_memory(Case(system=tmp_path)).state == state


def test_the_limit_of_open_files_is_this_process_own() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        for limit, state in ((200, "fail"), (1000, "warn"), (1024, "ok")):
            resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
            finding = machine.open_files(Case())
            assert (finding.state, finding.found.split()[0]) == (state, str(limit))
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(("pids", "state"), [("100\n", "fail"), ("512\n", "warn"), ("max\n", "ok"), ("32768\n", "ok")])
def test_processes_of_a_container(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, pids: str, state: str) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    assert machine.processes(Case(system=written(tmp_path, **{"sys__fs__cgroup__pids.max": pids}))).state == state


def test_processes_of_a_user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (1024, 4096))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    assert machine.processes(Case(system=tmp_path)).state == "warn"
    monkeypatch.setattr(os, "geteuid", lambda: 0)  # whom that limit does not bind
    assert machine.processes(Case(system=tmp_path)).state == "ok"
