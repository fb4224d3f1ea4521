"""How fast devices did the stages of a run: as a store's own runs recorded it, and as this project measured it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from infra.storage import StorePaths
from infra.tables import read_file
from tasks.stage_titles import sr_of_title


@dataclass(frozen=True, slots=True)
class Rate:
    """Patches that one device does in a second, and how that is known."""

    per_second: float
    device: str
    """cpu: one core; else the kind of GPU."""
    source: str
    """The run or the benchmark that measured it."""


def _core(per_second: float, source: str) -> Rate:
    return Rate(per_second, "cpu", f"benchmarks/{source}.py")


SHIPPED: Mapping[str, Rate] = MappingProxyType(
    {
        "ingest": _core(2266.0, "ingest"),
        "pixels bicubic": _core(65.14, "sr_throughput"),
        "pixels srresnet float32": _core(1.197, "sr_throughput"),
        "pixels srresnet bfloat16": _core(2.290, "sr_throughput"),
        "pixels realesrgan_general float32": _core(3.123, "sr_throughput"),
        "pixels realesrgan_general bfloat16": _core(5.983, "sr_throughput"),
        "pixels realesrgan float32": _core(0.1892, "sr_throughput"),
        "pixels realesrgan bfloat16": _core(0.3898, "sr_throughput"),
        "pixels hat_s float32": _core(0.1064, "sr_throughput"),
        "pixels hat_s bfloat16": _core(0.1760, "sr_throughput"),
        "backbone resnet50 120": _core(36.60, "prediction"),
        "backbone resnet18 480": _core(6.310, "prediction"),
        "backbone resnet50 480": _core(2.294, "prediction"),
        "backbone resnet101 480": _core(1.185, "prediction"),
        "backbone inception_v4 480": _core(1.436, "prediction"),
        "training resnet50 120": _core(10.73, "training"),
    }
)
"""What this project measured, on two cores of an x86-64 server: ingest; the pixels of an SR model at 120 x 120, float32
or bfloat16; a pass of a network on RGB of an edge in pixels; a step of training of a whole network, per patch. What is
not here was not measured. Four digits of the figures in benchmarks/results."""


def stored_rates(paths: StorePaths, settings: Mapping[str, Any] | None = None) -> dict[str, Rate]:
    """Return the rate of every stage that a run of the store recorded, the newest run's.

    Time at work counts, from when a worker was given a shard to its end; the start of workers and their waiting do not.

    Args:
        paths: The store.
        settings: RUN.yaml as values; stages of runs whose settings made other work of them are left out.
    """
    found: dict[str, Rate] = {}
    for path in sorted(paths.table("runs").glob("run-*.parquet"), reverse=True):
        (row,) = read_file(path, ["run_id", "run_yaml", "stages"]).to_pylist()
        then = json.loads(row["run_yaml"])
        for stage in row["stages"]:
            hours, title = stage.get("busy_device_hours"), stage["stage"]  # runs of earlier versions have none
            if not (hours and stage["patches"]) or title in found:
                continue
            if settings is None or _work(title, then) == _work(title, settings):
                found[title] = Rate(stage["patches"] / hours / 3600, stage["device"], f"run {row['run_id']}")
    return found


_PIXELS = ("bands", "degrade", "resampling", "sr_dtype")
_NOT_WORK = (
    "archive",
    "store",
    "shard_size",
    "sr",
    "sr_input_max_dn",
    "sr_options",
    "weights",
    "reliability",
    "train_sr",
    "models_from",
)
_NOT_SPEED = ("actors", "gpus_per_actor")


def _work(title: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return those settings on which it depends how much work a stage is for one patch."""
    if title == "ingest":
        archive = settings.get("archive", {})
        return {name: archive.get(name) for name in ("layout", "image_size")}
    resources = {name: v for name, v in settings.get("resources", {}).items() if name not in _NOT_SPEED}
    if (sr := sr_of_title(title)) is not None:
        options = settings.get("sr_options", {}).get(sr)
        return {**{name: settings.get(name) for name in _PIXELS}, "options": options, "resources": resources}
    train = {name: v for name, v in settings.get("train", {}).items() if name != "epochs"}
    return {
        **{name: v for name, v in settings.items() if name not in _NOT_WORK},
        "resources": resources,
        "train": train,
    }
