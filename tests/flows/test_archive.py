"""The whole flow, end to end on the CPU."""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from flows.archive import archive, explain_plan
from flows.config import load_config
from infra.archives.layouts import LAYOUTS
from infra.archives.synthetic import write_synthetic_archive
from infra.errors import StoreError
from infra.parts import StageParts
from infra.storage import StorePaths
from infra.tables import VERSION_KEY
from tasks.score import scored_classifier
from tests.flows.stores import (
    PATCHES,
    Inputs,
    assert_same_tables,
    environment,
    maps_by_patch,
    part_states,
    run_flows,
    superscene,
    tables,
)
from tests.infra.archives.tar_files import pack
from tests.tasks.small_store import branch_of, ingest, inputs_of, untrained, v2


@pytest.fixture(scope="module")
def stored(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference run's work, cut into other shards and batches, by one worker, with stored SR pixels."""
    store = tmp_path_factory.mktemp("variants") / "stored"
    changes = {"shard_size": 5, "keep_sr": "always", "resources": {"actors": 1, "batch_size": 16}}
    result = run_flows([inputs.config(store, None, **changes)])
    assert result.returncode == 0, result.stderr
    return store


def test_tables_do_not_depend_on_batches_shards_workers_or_order(inputs: Inputs, stored: Path) -> None:
    assert_same_tables(stored, inputs.reference)


@pytest.mark.slow
def test_tables_do_not_depend_on_the_size_of_one_shard(inputs: Inputs, tmp_path: Path) -> None:
    changes = {"shard_size": 24, "resources": {"actors": 2, "batch_size": 5}}
    result = run_flows([inputs.config(tmp_path / "store", None, **changes)])
    assert result.returncode == 0, result.stderr
    assert_same_tables(tmp_path / "store", inputs.reference)


def test_maps_do_not_depend_on_them_either(inputs: Inputs, stored: Path) -> None:
    ours, theirs = maps_by_patch(stored), maps_by_patch(inputs.reference)
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        np.testing.assert_allclose(ours[key], expected, rtol=0, atol=1e-5)


def test_stored_pixels_are_there_only_where_asked(inputs: Inputs, stored: Path) -> None:
    assert [path.name.split("-")[0] for path in (stored / "sr").iterdir()] == ["bicubic"]
    assert not (inputs.reference / "sr").exists()


def test_every_input_is_counted_once(inputs: Inputs) -> None:
    found = tables(inputs.reference)
    run = pd.read_parquet(inputs.reference / "tables" / "runs").iloc[0]
    flagged = PATCHES // 24
    assert len(found["patches"]) == PATCHES - flagged == run["patches"]
    assert run["inputs"] == run["patches"] + run["quarantined"] + run["absent"]
    assert len(found["predictions"]) == 2 * run["patches"]
    assert run["status"] == "complete"
    assert run["startup_seconds"] > 0


def test_a_second_run_does_nothing_twice(inputs: Inputs) -> None:
    before = part_states(inputs.reference)
    result = superscene("run", inputs.config(inputs.reference))
    assert result.returncode == 0, result.stderr
    assert part_states(inputs.reference) == before
    run = pd.read_parquet(inputs.reference / "tables" / "runs").iloc[-1]
    assert sum(stage["done"] for stage in run["stages"]) == 0
    assert sum(stage["skipped"] for stage in run["stages"]) > 0


@pytest.mark.slow  # tests/tasks/test_bucket_ingest.py compares the same without a command
def test_tar_archives_are_ingested_as_the_folders_are(inputs: Inputs, tmp_path: Path) -> None:
    root = pack(inputs.archive, tmp_path / "packed", ".tar.zst")
    store = tmp_path / "store"
    config = inputs.config(store, archive={"layout": "bigearthnet-v2", "root": str(root)})
    result = superscene("ingest", config)
    assert result.returncode == 0, result.stderr
    for folder in ("archive.zarr", "tables/patches", "tables/quarantine", "work/ingest", "work/plan"):
        found, expected = (
            {path.relative_to(base): path.read_bytes() for path in (base / folder).rglob("*") if path.is_file()}
            for base in (store, inputs.reference)
        )
        assert found == expected, folder
    assert not (store / "work" / "buckets").exists()


def test_prefect_keeps_a_bar_for_each_stage_and_a_summary(stored: Path) -> None:
    (database,) = Path(environment()["PREFECT_HOME"]).glob("*.db")
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        stages = {row[0] for row in connection.execute("SELECT description FROM artifact WHERE type = 'progress'")}
        summaries = [row[0] for row in connection.execute("SELECT data FROM artifact WHERE type = 'markdown'")]
        states = {row[0] for row in connection.execute("SELECT state_type FROM flow_run WHERE end_time IS NOT NULL")}
    assert {"ingest", "train none resnet18", "predict none", "super-resolve bicubic"} <= stages
    assert any("macro AP" in summary for summary in summaries)
    assert "COMPLETED" in states


def test_a_shard_that_fails_to_be_ingested_changes_no_map_that_is_wanted(tmp_path: Path) -> None:
    """Else one of them would have the maps of the whole archive made again, once it is mended."""
    root = tmp_path / "archive"
    write_synthetic_archive(root, PATCHES)
    plan = ingest(v2(root), tmp_path / "store", shard_size=4)
    run_yaml = tmp_path / "RUN.yaml"
    run_yaml.write_text(
        f"{{archive: {{layout: bigearthnet-v2, root: {root}}}, store: {tmp_path / 'store'}, classifiers: [resnet18],\n"
        "train: {backbone: random}, explain: {methods: [grad_cam, rise], sample: 2}}"
    )
    config, branch = load_config(run_yaml), branch_of(plan)
    file = untrained(branch, tmp_path / "0.safetensors")

    def configs() -> dict[str, str]:
        scored = scored_classifier(branch, "resnet18", {0: file}, explain_plan(config, branch.inputs))
        return {method: item.parts.config for method, item in scored.explanations.items()}

    assert len(explain_plan(config, branch.inputs).sample) == 2 * len(set(plan.shards.values()))
    before = configs()
    assert before.keys() == {"grad_cam", "rise", "random"}
    for shard in plan.ingested("train")[:1] + plan.ingested("test"):
        plan.parts.path(shard).unlink()
        assert configs() == before


@pytest.mark.parametrize("layout", list(LAYOUTS))
def test_noise_is_added_where_maps_are_compared_with_land_cover_alone(tmp_path: Path, layout: str) -> None:
    """Of the five layouts one has reference maps; what there are no methods for needs no floor."""
    run_yaml = tmp_path / "RUN.yaml"
    text = (
        f"{{archive: {{layout: {layout}, root: /data}}, store: /store, classifiers: [resnet18],\n"
        "sr: [none], train: {backbone: random}, explain: {methods: METHODS}}"
    )
    for methods, expected in (("grad_cam", ("grad_cam", "random")), ("random, cam", ("random", "cam")), ("", ())):
        run_yaml.write_text(text.replace("METHODS", f"[{methods}]"))
        found = explain_plan(load_config(run_yaml), inputs_of(StageParts(StorePaths(tmp_path), "ingest", "a0000000")))
        given = tuple(methods.split(", ")) if methods else ()
        assert found.methods == (expected if layout == "bigearthnet-v2" else given)


def test_a_store_of_a_newer_superscene_is_left_as_it_is(tmp_path: Path) -> None:
    run_yaml = tmp_path / "RUN.yaml"
    run_yaml.write_text(
        f"{{archive: {{layout: bigearthnet-v2, root: {tmp_path}}}, store: {tmp_path / 'store'}, "
        "classifiers: [resnet18], train: {backbone: random}}"
    )
    metrics = tmp_path / "store" / "tables" / "metrics" / "data-00000.parquet"
    metrics.parent.mkdir(parents=True)
    pq.write_table(pa.table({"value": [1]}, metadata={VERSION_KEY: "999"}), metrics)
    with pytest.raises(StoreError, match="newer superscene"):
        archive.fn(load_config(run_yaml))
    assert [path.name for path in (tmp_path / "store").iterdir()] == ["tables"]
