"""RUN.yaml, Prefect, Ray, and processes that nobody waits for."""

from pathlib import Path
from types import SimpleNamespace

import psutil
import pytest

from flows import orphans
from flows.doctor import services
from flows.doctor.case import Case
from infra import ray_cluster
from infra.errors import ConfigError

GOOD = "archive: {layout: bigearthnet-v2, root: /nowhere}\nstore: /data\ntrain: {backbone: random}\n"


def test_settings_that_can_be_run_and_some_that_cannot(tmp_path: Path) -> None:
    assert services.settings(Case()) is None
    run_yaml = tmp_path / "RUN.yaml"
    run_yaml.write_text(GOOD)
    finding = services.settings(Case(run_yaml=run_yaml))
    assert finding is not None
    assert finding.state == "ok"
    finding = services.settings(Case(run_yaml=run_yaml, overrides=("train.epoch=3",)))
    assert finding is not None
    assert (finding.state, "train.epoch" in finding.found) == ("fail", True)


def test_servers_of_runs_that_were_killed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(orphans, "orphaned_servers", lambda: [SimpleNamespace(pid=4711)])
    monkeypatch.setattr(services, "_lone_clusters", list)
    finding = services.orphans(Case())
    assert (finding.state, finding.found) == ("warn", "Prefect, process 4711")
    monkeypatch.setattr(orphans, "orphaned_servers", list)
    assert services.orphans(Case()).state == "ok"


@pytest.mark.parametrize(("name", "parent", "found"), [("gcs_server", 1, [7]), ("gcs_server", 99, []), ("bash", 1, [])])
def test_clusters_without_a_driver(monkeypatch: pytest.MonkeyPatch, name: str, parent: int, found: list[int]) -> None:
    mine = psutil.Process().uids().real
    process = SimpleNamespace(pid=7, name=lambda: name, ppid=lambda: parent, uids=lambda: SimpleNamespace(real=mine))
    monkeypatch.setattr(psutil, "process_iter", lambda: [process])
    assert services._lone_clusters() == found


def test_a_ray_that_does_not_start(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise ConfigError("no Ray cluster answers at head:6379")

    monkeypatch.setattr(ray_cluster, "cluster", broken)
    finding = services.ray(Case())
    assert (finding.state, "no Ray cluster answers at head:6379" in finding.found) == ("fail", True)


def test_prefects_settings_that_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    import prefect.settings

    def broken() -> None:
        raise ValueError("PREFECT_API_URL is odd")

    monkeypatch.setattr(prefect.settings, "get_current_settings", broken)
    finding = services.prefect(Case())
    assert (finding.state, "PREFECT_API_URL is odd" in finding.found) == ("fail", True)
