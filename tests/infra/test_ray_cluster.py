import os
from functools import partial
from pathlib import Path

import psutil
import pytest

from infra import ray_cluster
from infra.errors import ConfigError
from infra.ray_cluster import available_cores, cluster
from infra.ray_pool import Done, Resources, run_pool
from tests.infra.pool_workers import Scripted


@pytest.mark.parametrize(
    ("quota", "cores"), [(None, 8), ("max 100000", 8), ("250000 100000", 2), ("50000 100000", 1), ("9900000 100000", 8)]
)
def test_a_container_s_quota_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quota: str | None, cores: int
) -> None:
    class Process:
        def cpu_affinity(self) -> list[int]:
            return list(range(8))

    monkeypatch.setattr(psutil, "Process", Process)
    monkeypatch.setattr(ray_cluster, "_CPU_QUOTA", tmp_path / "cpu.max")
    if quota:
        (tmp_path / "cpu.max").write_text(f"{quota}\n")
    assert available_cores() == cores


def test_a_system_without_affinity_has_all_its_cores(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Process:
        pass

    monkeypatch.setattr(psutil, "Process", Process)
    monkeypatch.setattr(ray_cluster, "_CPU_QUOTA", tmp_path / "none")
    assert available_cores() == os.cpu_count()


@pytest.mark.parametrize("port", ["http", "0", "65536", "-1", "80.5"])
def test_a_port_that_is_none_is_refused(monkeypatch: pytest.MonkeyPatch, port: str) -> None:
    monkeypatch.setenv("SUPERSCENE_METRICS_PORT", port)
    with pytest.raises(ConfigError, match="SUPERSCENE_METRICS_PORT"):
        ray_cluster._metrics_port()


def test_a_port_is_taken_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERSCENE_METRICS_PORT", "8080")
    assert ray_cluster._metrics_port() == 8080


def test_actors_end_before_their_cluster_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Left to end by themselves, those with large libraries outlive the driver by seconds, and hold a GPU's memory."""
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray_cluster, "available_cores", lambda: 1)
    with cluster():
        assert list(run_pool(partial(Scripted, tmp_path), [3], Resources(actors=1))) == [Done(3, 9)]
        actors = [
            process
            for process in psutil.Process().children(recursive=True)
            if "ray::_Host" in "".join(process.cmdline())
        ]
    assert len(actors) == 1
    assert not psutil.wait_procs(actors, timeout=0.5)[1]
