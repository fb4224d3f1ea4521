import os
from pathlib import Path

import psutil
import pytest

from infra import ray_cluster
from infra.errors import ConfigError
from infra.ray_cluster import available_cores


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
