"""Hours and cost, by hand."""

from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from flows.config import RunConfig
from flows.estimate_hours import Patches, hours_rows
from infra.ray_pool import Devices
from infra.storage import StorePaths
from tasks.rates import SHIPPED
from tasks.run_record import RunRecord
from tasks.stage import StageReport

PATCHES = Patches(all=36_000, fitted=27_000, trained_on=18_000)


def config_of(tmp_path: Path, **changes: Any) -> RunConfig:
    settings: dict[str, Any] = {
        "archive": {"layout": "bigearthnet-v2", "root": tmp_path},
        "store": tmp_path / "store",
        "sr": ["none"],
        "classifiers": ["resnet50"],
        "train": {"backbone": "random", "freeze_backbone": False, "epochs": 10, "seeds": [0, 1, 2]},
        **changes,
    }
    return RunConfig.model_validate(settings)


def told(
    config: RunConfig, price: float | None = None, passes: dict[tuple[str, str], float] | None = None
) -> dict[str, str]:
    return {row.title: row.text for row in hours_rows(config, PATCHES, 120, passes or {}, price)}


def rate(name: str) -> float:
    return SHIPPED[name].per_second


def test_measured_parts_add_up(tmp_path: Path) -> None:
    """36,000 patches are 10 hours at one a second; three seeds are three networks, each a pass, and one of maps."""
    rows = told(config_of(tmp_path), 2.0, {("none", "resnet50"): 36_000.0})
    ingest, train = 10 / rate("ingest"), 5 * 10 * 3 / rate("training resnet50 120")
    predict = 10 * (3 + 1) / rate("backbone resnet50 120")
    sources = ("benchmarks/ingest.py", "benchmarks/training.py", "benchmarks/prediction.py")
    hours = (ingest, train, predict)
    stages = ("ingest", "train none resnet50", "predict none")
    assert rows == {
        **{
            f"hours of {stage}": f"{n:,.3g} core (measured by {source} on another machine)"
            for stage, n, source in zip(stages, hours, sources, strict=True)
        },
        "core-hours in all": f"{sum(hours):,.3g}",
        "cost at 2 an hour": f"{2 * sum(hours):.2f}",
    }


def test_pixels_are_made_once_where_they_are_stored(tmp_path: Path) -> None:
    """SRResNet's are, before training; bicubic's are made again in every epoch and by prediction."""
    rows = told(config_of(tmp_path, sr=["bicubic", "srresnet"], classifiers=["resnet18"]))
    assert rows["hours of super-resolve srresnet"].startswith(f"{10 / rate('pixels srresnet float32'):,.3g} core")
    backbone = 10 * 3 / rate("backbone resnet18 480")
    assert rows["hours of predict srresnet"].startswith(f"{backbone:,.3g} core")
    assert rows["hours of predict bicubic"].startswith(f"{backbone + 10 / rate('pixels bicubic'):,.3g} core")
    assert "hours of super-resolve bicubic" not in rows
    rows = told(config_of(tmp_path, sr=["none", "seesr_tiny"], classifiers=["resnet18"]))
    assert rows["hours of super-resolve seesr_tiny, SR shards"] == "unknown: never measured"


def test_what_was_never_measured_is_unknown(tmp_path: Path) -> None:
    rows = told(config_of(tmp_path, bands="s2"), 1.0)
    assert rows["hours of train none resnet50"] == "unknown: never measured"
    assert rows["hours of predict none"] == "unknown: never measured"
    ingest = 10 / rate("ingest")
    assert rows["core-hours in all"] == f"at least {ingest:.3g}"
    assert rows["cost at 1 an hour"] == f"at least {ingest:.2f}; unknown: train none resnet50, predict none"


def test_a_run_of_the_store_comes_first_and_only_gpus_are_priced(tmp_path: Path) -> None:
    """100 patches in 40 s of a GPU: 2.5 a second, so 36,000 take 4 hours of it, at 3 an hour."""
    config = config_of(tmp_path)
    record = RunRecord(StorePaths(config.store), config.model_dump_json(), datetime(2026, 11, 5, tzinfo=UTC))
    gpu = Devices("H200", count=2.0, workers=2)
    record.stages += [
        StageReport(title, done=1, patches=100, seconds=20.0, devices=gpu, busy_seconds=40.0)
        for title in ("predict none", "train none resnet50")
    ]
    record.publish()
    rows = told(config, 3.0)
    assert rows["hours of predict none"] == f"4 GPU H200 (2.5 patches/s, run {record.run_id})"
    assert rows["hours of train none resnet50"].startswith("60 GPU H200 (")  # 18,000 x 10 x 3 samples
    assert rows["GPU H200-hours in all"] == "64"
    assert rows["core-hours in all"] == f"{10 / rate('ingest'):.3g}"
    assert rows["cost at 3 an hour"] == "192.00, without the core-hours"
    other = config_of(tmp_path, explain={"methods": []})
    assert "benchmarks/prediction.py" in told(other)["hours of predict none"]


def test_heads_on_frozen_features(tmp_path: Path) -> None:
    """Features are one pass of train and validation, whatever the seeds; fitting heads was never measured."""
    train = {"backbone": "archive", "freeze_backbone": True, "epochs": 4, "seeds": [0, 1]}
    rows = told(config_of(tmp_path, train=train))
    step, forward = rate("training resnet50 120"), rate("backbone resnet50 120")
    assert rows["hours of train backbone resnet50"].startswith(f"{5 * 4 / step:.3g} core")
    assert rows["hours of features none resnet50"].startswith(f"{7.5 / forward:.3g} core")
    assert rows["hours of train none resnet50"] == "unknown: never measured"
    assert rows["hours of predict none"].startswith(f"{10 / forward:.3g} core")
