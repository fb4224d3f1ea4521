"""What Prometheus reads from Ray's exporter, held against what was done, and against what the manual says."""

import re
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import suppress
from functools import partial
from pathlib import Path

import psutil
import pytest
import ray
from prometheus_client.parser import text_string_to_metric_families

from infra import metrics, ray_cluster
from infra.logs import bound
from infra.metrics import METRICS, GpuMemory
from infra.parts import StageParts
from infra.ray_cluster import cluster
from infra.ray_pool import Resources
from infra.storage import StorePaths
from tasks.stage import StageReport, run_stage
from tests.tasks.stage_workers import PartWriter

PROJECT = Path(__file__).parents[2]
RUN = "20261105T000000000000Z"
LABELS = ("run", "stage", "outcome", "what", "device", "worker", "kind", "le")

type Samples = dict[str, dict[tuple[tuple[str, str], ...], float]]


@pytest.fixture(scope="module")
def exporter() -> Iterator[str]:
    """The address of a local cluster's exporter, which is told every second and forgets gauges after two."""
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.delenv("SUPERSCENE_METRICS_PORT", raising=False)
        patch.setenv("RAY_metrics_report_interval_ms", "1000")
        patch.setattr(ray_cluster, "available_cores", lambda: 2)
        patch.setitem(ray_cluster._SPARING, "idle_worker_killing_time_threshold_ms", 500)
        patch.setattr(metrics, "_REFRESH_SECONDS", 0.5)
        with cluster():
            (node,) = ray.nodes()  # type: ignore[no-untyped-call]
            assert node["MetricsExportPort"] > 0, "Ray has no exporter: install what requirements.lock says"
            yield f"http://{node['NodeManagerAddress']}:{node['MetricsExportPort']}/metrics"


@pytest.fixture(scope="module")
def stage(exporter: str, tmp_path_factory: pytest.TempPathFactory) -> StageReport:
    """A stage of seven shards: one was done before, one kills its process, one raises an error, four are done."""
    parts = StageParts(StorePaths(tmp_path_factory.mktemp("store")), "predict", "abcdef01")
    before = partial(PartWriter, parts, {})
    run_stage("before", before, [parts], [6], Resources(actors=1))
    with bound(run=RUN):
        build = partial(PartWriter, parts, {1: "kill", 2: "error"})
        return run_stage("predict none", build, [parts], range(7), Resources(actors=2))


def samples(address: str) -> Samples:
    """Our samples of the exporter: by name, then by our own labels."""
    assert address.startswith("http://127.0.0.1:")
    with urllib.request.urlopen(address, timeout=30) as answer:
        text = answer.read().decode()
    found: Samples = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name.startswith("ray_superscene"):
                key = tuple((name, sample.labels[name]) for name in LABELS if name in sample.labels)
                found.setdefault(sample.name, {})[key] = sample.value
    return found


def scraped(address: str, enough: Callable[[Samples], bool]) -> Samples:
    """Our samples as soon as there are enough: Ray's processes tell the exporter every second, at best."""
    deadline = time.monotonic() + 45
    while not enough(found := samples(address)):
        assert time.monotonic() < deadline, found
        time.sleep(0.2)
    return found


def of_stage(found: Samples, name: str, **labels: str) -> float:
    key = {"run": RUN, "stage": "predict none", **labels}
    return found[name][tuple((label, key[label]) for label in LABELS if label in key)]


def test_the_exporter_tells_what_a_stage_did(exporter: str, stage: StageReport) -> None:
    assert (stage.done, stage.skipped, len(stage.failures)) == (4, 1, 2)
    failed = (("run", RUN), ("stage", "predict none"), ("outcome", "failed"))
    found = scraped(exporter, lambda now: now.get("ray_superscene_shards_total", {}).get(failed) == 2)
    assert of_stage(found, "ray_superscene_patches_total") == 0 + 3 + 4 + 5 == stage.patches
    for outcome, shards in (("done", 4), ("skipped", 1), ("failed", 2)):
        assert of_stage(found, "ray_superscene_shards_total", outcome=outcome) == shards
    assert of_stage(found, "ray_superscene_retries_total") == 2, "of three attempts"
    assert of_stage(found, "ray_superscene_losses_total", what="actor") == 3
    assert of_stage(found, "ray_superscene_shard_seconds_count") == 4
    assert of_stage(found, "ray_superscene_shard_seconds_bucket", le="+Inf") == 4
    held = of_stage(found, "ray_superscene_device_seconds_total", device="cpu")
    assert held == pytest.approx(stage.device_hours * 3600, rel=0.05)
    busy = of_stage(found, "ray_superscene_busy_device_seconds_total", device="cpu")
    assert busy == pytest.approx(stage.busy_device_hours * 3600, rel=1e-6)


def test_what_is_told_outside_of_a_run_has_empty_labels(exporter: str, stage: StageReport) -> None:
    metrics.count(metrics.QUARANTINED, 3)
    metrics.count(metrics.QUARANTINED, 0)
    metrics.count(metrics.QUARANTINED, 4)
    name = "ray_superscene_quarantined_total"
    assert scraped(exporter, lambda now: name in now)[name] == {(("run", ""), ("stage", "")): 7}


def test_a_gauge_stays_until_it_is_taken_away(exporter: str) -> None:
    """Ray's agent forgets it two seconds after it was told, here."""
    key = (("run", RUN), ("stage", "train"))

    def shown(now: Samples) -> bool:
        return now.get("ray_superscene_shards_missing", {}).get(key) == 5

    with bound(run=RUN, stage="train"):
        metrics.show(metrics.MISSING, 5)
    scraped(exporter, shown)
    time.sleep(4)
    assert shown(samples(exporter))
    metrics.take_away(metrics.MISSING)
    scraped(exporter, lambda now: not shown(now))


def test_a_local_cluster_listens_on_loopback_alone(exporter: str) -> None:
    """Whoever reaches Ray's ports can run code: the exporter, the agents, the raylet, the store and every worker."""
    listening = {
        (process.name(), connection.laddr.ip)
        for process in (psutil.Process(), *psutil.Process().children(recursive=True))
        for connection in process.net_connections(kind="inet")
        if connection.status == psutil.CONN_LISTEN
    }
    assert {"raylet", "gcs_server"} <= {name for name, _ in listening}
    assert {ip for _, ip in listening} <= {"127.0.0.1", "::ffff:127.0.0.1", "::1"}


def test_a_local_cluster_has_no_process_that_nobody_asks(exporter: str, stage: StageReport) -> None:
    """Each takes time from the models on a small machine: what is left are Ray's core and its exporter."""

    def others() -> list[str]:
        living = []
        for process in psutil.Process().children(recursive=True):
            with suppress(psutil.Error):  # it has ended meanwhile
                living.append(" ".join(process.cmdline()))
        return [words for words in living if "ray" in words and "ray::_Host" not in words]

    deadline = time.monotonic() + 45
    while any("ray::IDLE" in words for words in others()):
        assert time.monotonic() < deadline, others()
        time.sleep(0.2)
    wanted = ("gcs_server", "raylet", "DashboardAgent", "RuntimeEnvAgent")
    assert not [words for words in others() if not any(name in words for name in wanted)]


def test_outside_of_a_cluster_nothing_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(metrics, "_ray_metric", None)  # calling it would fail
    metrics.count(metrics.PATCHES, 3)
    metrics.observe(metrics.SHARD_SECONDS, 3)
    metrics.show(metrics.MISSING, 3)
    assert not metrics._gauges


def test_memory_is_none_without_a_gpu_in_use() -> None:
    assert metrics.gpu_memory() is None


@pytest.mark.gpu
def test_memory_is_what_torch_holds() -> None:
    import torch

    held = torch.empty(2**20, dtype=torch.uint8, device="cuda")
    found = metrics.gpu_memory()
    assert isinstance(found, GpuMemory)
    assert 2**20 <= found.allocated <= found.peak <= found.reserved
    assert found.allocated == torch.cuda.memory_allocated()
    del held


def test_the_manual_tells_every_metric() -> None:
    manual = (PROJECT / "docs" / "operations.md").read_text(encoding="utf-8")
    section = manual.split("## Metrics")[1].split("\n## ")[0]
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")]
        for line in section.splitlines()
        if line.startswith("| `ray_")
    ]
    told = {row[0].strip("`"): (row[1], tuple(re.findall(r"`(\w+)`", row[2])), row[3]) for row in rows}
    assert told == {metric.exported: (metric.kind, metric.labels, metric.meaning) for metric in METRICS}
    assert len({metric.name for metric in METRICS}) == len(METRICS)
