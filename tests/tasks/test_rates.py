import json
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.ray_pool import Devices
from infra.storage import StorePaths
from infra.tables import VERSION_KEY
from tasks.last_run import last_run
from tasks.rates import SHIPPED, stored_rates
from tasks.run_record import RunRecord
from tasks.stage import StageReport

RESULTS = Path(__file__).parents[2] / "benchmarks" / "results"
START = datetime(2026, 11, 5, tzinfo=UTC)


def ran(paths: StorePaths, day: int, settings: dict[str, Any], *stages: StageReport) -> str:
    """Leave the record of a run, and return its id."""
    record = RunRecord(paths, json.dumps(settings), START + timedelta(days=day))
    record.stages += stages
    record.publish()
    return record.run_id


def stage(title: str, patches: int, busy: float, devices: Devices) -> StageReport:
    return StageReport(title, done=2, patches=patches, seconds=busy, devices=devices, busy_seconds=busy)


CORES = Devices("cpu", count=8.0, workers=2)


def test_a_rate_is_of_one_device_at_work(tmp_path: Path) -> None:
    """1,000 patches in 50 s of workers that have 4 cores each: 5 a second and core."""
    paths = StorePaths(tmp_path)
    run = ran(paths, 0, {}, stage("ingest", 1000, 50.0, CORES), StageReport("evaluate", skipped=3))
    (title, rate), *others = stored_rates(paths).items()
    assert (title, rate.device, rate.source, others) == ("ingest", "cpu", f"run {run}", [])
    assert rate.per_second == pytest.approx(5.0)


def test_the_newest_run_that_did_the_stage_counts(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    gpu = Devices("H200", count=2.0, workers=2)
    old = ran(paths, 0, {}, stage("ingest", 1000, 50.0, CORES), stage("predict none", 80, 10.0, gpu))
    new = ran(paths, 1, {}, stage("ingest", 4000, 50.0, CORES), StageReport("predict none", skipped=2))
    found = stored_rates(paths)
    assert {title: (rate.source, rate.device) for title, rate in found.items()} == {
        "ingest": (f"run {new}", "cpu"),
        "predict none": (f"run {old}", "H200"),
    }
    assert found["predict none"].per_second == pytest.approx(8.0)


def test_other_work_gives_no_rate(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    then = {
        "archive": {"layout": "bigearthnet-v2", "root": "/a"},
        "store": "/s",
        "sr": ["none"],
        "classifiers": ["resnet50"],
        "train": {"epochs": 3, "seeds": [0]},
        "resources": {"batch_size": 16, "actors": 4},
    }
    titles = ("ingest", "super-resolve hat", "predict none", "train none resnet50")
    ran(paths, 0, then, *(stage(title, 10, 1.0, CORES) for title in titles))

    def of(**changes: Any) -> set[str]:
        return set(stored_rates(paths, {**then, **changes}))

    assert of() == {*titles}
    assert of(store="/t", sr=["hat"], archive={"layout": "bigearthnet-v2", "root": "/b"}) == {*titles}
    assert of(train={"epochs": 30, "seeds": [0]}, resources={"batch_size": 16, "actors": 64}) == {*titles}
    assert of(classifiers=["resnet50", "resnet101"]) == {"ingest", "super-resolve hat"}
    assert of(resources={"batch_size": 64}) == {"ingest"}
    assert of(archive={"layout": "scene"}) == {*titles[1:]}


def test_options_of_a_model_in_sr_shards_make_other_work(tmp_path: Path) -> None:
    """Its stage's title says more than the model's name."""
    titles = ("super-resolve seesr, SR shards", "super-resolve hat")
    paths, then = StorePaths(tmp_path), {"sr_options": {"seesr": {"steps": 20}}}
    ran(paths, 0, then, *(stage(title, 10, 1.0, CORES) for title in titles))
    assert set(stored_rates(paths, then)) == {*titles}
    assert set(stored_rates(paths, {"sr_options": {"seesr": {"steps": 50}}})) == {"super-resolve hat"}


def test_a_run_of_an_earlier_version_has_none(tmp_path: Path) -> None:
    """Its stages lack what devices did; the last run is read all the same."""
    paths = StorePaths(tmp_path)
    ran(paths, 0, {}, stage("predict none", 1000, 50.0, CORES))
    (path,) = paths.table("runs").glob("*.parquet")
    row = pq.read_table(path).to_pylist()[0]
    new = {"device", "devices", "workers", "device_hours", "busy_device_hours"}
    row["stages"] = [{name: value for name, value in each.items() if name not in new} for each in row["stages"]]
    old = pa.Table.from_pylist([row]).replace_schema_metadata({VERSION_KEY: "1"})
    assert not new & {field.name for field in old.schema.field("stages").type.value_type}
    pq.write_table(old, path)
    assert stored_rates(paths) == {}
    assert (last_run(paths).stages[0].patches, last_run(paths).stages[0].device_hours) == (1000, None)


def test_an_empty_store_has_none(tmp_path: Path) -> None:
    assert stored_rates(StorePaths(tmp_path)) == {}


def test_shipped_rates_are_those_of_the_benchmarks() -> None:
    """Each divided by the cores that it was measured on."""
    results = {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("ingest", "sr_throughput")}
    results |= {name: json.loads((RESULTS / f"{name}.json").read_text()) for name in ("prediction", "training")}
    (ingest,) = [row for row in results["ingest"]["rows"] if row["name"] == "reading and writing"]
    expected = {"ingest": ingest["patches_per_second"] / ingest["processes"]}
    assert results["sr_throughput"]["device"] == "x86_64, 2 threads"
    for row in results["sr_throughput"]["rows"]:
        if row["engine"] == "superscene":
            dtype = "" if row["model"] == "bicubic" else f" {row['dtype']}"
            expected[f"pixels {row['model']}{dtype}"] = row["patches_per_second"] / 2
    assert (results["prediction"]["threads"], results["training"]["threads"]) == (1, 1)
    patches = {(row["case"], row["way"]): row["patches"] for row in results["prediction"]["rows"]}
    for row in results["prediction"]["stages"]:
        if row["stage"].startswith("backbone of ") and row["case"] != "one classifier":
            edge = 120 if row["case"] == "3 seeds, no SR" else 480
            name = f"backbone {row['stage'].removeprefix('backbone of ')} {edge}"
            expected[name] = patches[row["case"], "one fused pass"] / row["seconds"]
    (wait,) = [row for row in results["training"]["waits"] if row["loader"] == "superscene, from disk"]
    expected[f"training {results['training']['network']} 120"] = wait["device_patches_per_second"]
    assert {name: rate.per_second for name, rate in SHIPPED.items()} == {
        name: pytest.approx(value, rel=1e-3) for name, value in expected.items()
    }
    assert {rate.device for rate in SHIPPED.values()} == {"cpu"}
