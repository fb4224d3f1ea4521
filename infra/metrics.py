"""What a run tells Prometheus, through the exporter that Ray has on every node.

The driver tells it all, what its workers report included: once a shard, never once a patch. Ray puts `ray_` before the
names, and forgets a gauge that is not set anew for twenty seconds: a thread does that, since shards may take minutes.
Every series carries `run` and `stage`. Where Ray exports nothing, nothing is told and nothing is lost.
"""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from infra.logs import context

if TYPE_CHECKING:  # infra.ray_pool has a word to say before Ray is imported
    from ray.util.metrics import Counter, Gauge, Histogram

_REFRESH_SECONDS = 5.0
"""How often gauges are set anew; Ray's agent keeps them for twice its interval, which is ten seconds unless told."""

_SECONDS = (0.1, 0.3, 1.0, 2.0, 5.0, 10.0, 20.0, 40.0, 60.0, 90.0, 120.0, 180.0, 300.0, 600.0, 1200.0, 3600.0)
"""Bounds of the histogram's buckets."""

_CONTEXT = ("run", "stage")


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric, as it is told to Ray."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    meaning: str
    labels: tuple[str, ...] = ()
    """Beside run and stage."""

    @property
    def exported(self) -> str:
        """The name that Prometheus sees; a histogram's has `_bucket`, `_count` and `_sum` behind it."""
        return f"ray_{self.name}"


PATCHES = Metric("superscene_patches_total", "counter", "patches in shards that were done")
SHARDS = Metric("superscene_shards_total", "counter", "shards by outcome: done, skipped or failed", ("outcome",))
RETRIES = Metric("superscene_retries_total", "counter", "times a shard was put back to be tried again")
LOSSES = Metric("superscene_losses_total", "counter", "actors that died, and of these, with their node", ("what",))
QUARANTINED = Metric("superscene_quarantined_total", "counter", "inputs in quarantine, told at the end of ingest")
DEVICE_SECONDS = Metric(
    "superscene_device_seconds_total", "counter", "seconds of the devices that the stage held", ("device",)
)
BUSY_DEVICE_SECONDS = Metric(
    "superscene_busy_device_seconds_total", "counter", "of these, at work on shards that were done", ("device",)
)
SHARD_SECONDS = Metric("superscene_shard_seconds", "histogram", "seconds of a shard that was done, on its worker")
MISSING = Metric("superscene_shards_missing", "gauge", "shards of the stage that have no outcome yet")
IN_FLIGHT = Metric("superscene_shards_in_flight", "gauge", "shards that actors are at work on")
ACTORS = Metric("superscene_actors", "gauge", "actors of the stage that work or start")
GPU_MEMORY = Metric(
    "superscene_gpu_memory_bytes",
    "gauge",
    "memory of a worker's GPU in torch's hands after its last shard: allocated, reserved, or peak of allocated",
    ("worker", "kind"),
)

METRICS = (
    PATCHES,
    SHARDS,
    RETRIES,
    LOSSES,
    QUARANTINED,
    DEVICE_SECONDS,
    BUSY_DEVICE_SECONDS,
    SHARD_SECONDS,
    MISSING,
    IN_FLIGHT,
    ACTORS,
    GPU_MEMORY,
)


@dataclass(frozen=True, slots=True)
class GpuMemory:
    """What torch holds of a worker's GPU, bytes."""

    allocated: int
    reserved: int
    peak: int
    """Most that was allocated at once, since the worker began."""


type _Tags = tuple[tuple[str, str], ...]

_of_ray: "dict[str, Counter | Gauge | Histogram]" = {}
_gauges: dict[tuple[Metric, _Tags], float] = {}
_lock = threading.Lock()


def count(metric: Metric, amount: float = 1, **labels: str) -> None:
    """Add to a counter; nothing where the amount is 0."""
    if amount and _is_connected():
        _ray_metric(metric).inc(amount, dict(_tags(labels)))


def observe(metric: Metric, value: float, **labels: str) -> None:
    """Add a value to a histogram."""
    if _is_connected():
        _ray_metric(metric).observe(value, dict(_tags(labels)))


def show(metric: Metric, value: float, **labels: str) -> None:
    """Set a gauge, which stays at that until it is set again or the stage's are taken away."""
    if _is_connected():
        tags = _tags(labels)
        with _lock:
            _gauges[metric, tags] = value
            _ray_metric(metric).set(value, dict(tags))


def take_away(*metrics: Metric, **labels: str) -> None:
    """Show some gauges no longer, of those with these labels; they vanish from the exporter within half a minute."""
    with _lock:
        for key in [key for key in _gauges if key[0] in metrics and labels.items() <= dict(key[1]).items()]:
            del _gauges[key]


@contextmanager
def kept_alive() -> Iterator[None]:
    """Set all gauges anew every few seconds while the block runs, which is while the process is connected to Ray."""
    ended = threading.Event()
    thread = threading.Thread(target=_keep_alive, args=(ended,), name="metrics", daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        take_away(*METRICS)


def gpu_memory() -> GpuMemory | None:
    """Return what torch holds of this process's GPU; None where it has not touched any."""
    torch = sys.modules.get("torch")  # not every worker needs it
    if torch is None or not torch.cuda.is_initialized():
        return None
    return GpuMemory(torch.cuda.memory_allocated(), torch.cuda.memory_reserved(), torch.cuda.max_memory_allocated())


def _keep_alive(ended: threading.Event) -> None:
    while not ended.wait(_REFRESH_SECONDS):
        with _lock:
            for (metric, tags), value in _gauges.items():
                _ray_metric(metric).set(value, dict(tags))


def _is_connected() -> bool:
    ray = sys.modules.get("ray")
    return ray is not None and bool(ray.is_initialized())


def _tags(labels: dict[str, str]) -> _Tags:
    """Return labels with those of the process's work, in one order."""
    where = context()
    return tuple(sorted({"run": where.run or "", "stage": where.stage or "", **labels}.items()))


def _ray_metric(metric: Metric) -> Any:  # noqa: ANN401  # one of three classes, by its kind
    """Return Ray's own of a metric; made at its first use, since what is told before Ray begins is lost."""
    from ray.util.metrics import Counter, Gauge, Histogram

    if metric.name not in _of_ray:
        keys = (*_CONTEXT, *metric.labels)
        if metric.kind == "histogram":
            _of_ray[metric.name] = Histogram(metric.name, metric.meaning, list(_SECONDS), keys)
        else:
            made = Counter if metric.kind == "counter" else Gauge
            _of_ray[metric.name] = made(metric.name, metric.meaning, keys)
    return _of_ray[metric.name]
