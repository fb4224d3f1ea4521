"""The whole flow, end to end on the CPU."""

import sqlite3
from contextlib import closing
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

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


@pytest.fixture(scope="module")
def variants(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The reference run's work, cut into other shards and batches, on other workers, with stored SR pixels."""
    folder = tmp_path_factory.mktemp("variants")
    changes: dict[str, dict[str, object]] = {
        "one-worker": {"shard_size": 24, "resources": {"actors": 1, "batch_size": 5}},
        "stored": {"shard_size": 5, "keep_sr": "always", "resources": {"actors": 2, "batch_size": 16}},
    }
    configs = [inputs.config(folder / name, None, **change) for name, change in changes.items()]
    result = run_flows(configs)
    assert result.returncode == 0, result.stderr
    return {name: folder / name for name in changes}


@pytest.mark.parametrize("variant", ["one-worker", "stored"])
def test_tables_do_not_depend_on_batches_shards_workers_or_order(
    inputs: Inputs, variants: dict[str, Path], variant: str
) -> None:
    assert_same_tables(variants[variant], inputs.reference)


def test_maps_do_not_depend_on_them_either(inputs: Inputs, variants: dict[str, Path]) -> None:
    ours, theirs = maps_by_patch(variants["stored"]), maps_by_patch(inputs.reference)
    assert ours.keys() == theirs.keys()
    for key, expected in theirs.items():
        np.testing.assert_allclose(ours[key], expected, rtol=0, atol=1e-5)


def test_stored_pixels_are_there_only_where_asked(inputs: Inputs, variants: dict[str, Path]) -> None:
    assert [path.name.split("-")[0] for path in (variants["stored"] / "sr").iterdir()] == ["bicubic"]
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


def test_prefect_keeps_a_bar_for_each_stage_and_a_summary(variants: dict[str, Path]) -> None:
    (database,) = Path(environment()["PREFECT_HOME"]).glob("*.db")
    with closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        stages = {row[0] for row in connection.execute("SELECT description FROM artifact WHERE type = 'progress'")}
        summaries = [row[0] for row in connection.execute("SELECT data FROM artifact WHERE type = 'markdown'")]
        states = {row[0] for row in connection.execute("SELECT state_type FROM flow_run WHERE end_time IS NOT NULL")}
    assert {"ingest", "train none resnet18", "predict none", "super-resolve bicubic"} <= stages
    assert any("macro AP" in summary for summary in summaries)
    assert "COMPLETED" in states
