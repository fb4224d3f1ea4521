"""What the documentation says: the tables' page equals the schemas, and the README's examples run."""

import re
import runpy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import duckdb
import pandas as pd
import pytest
import torch
import xarray as xr
import yaml

from classifiers import explain, explain_methods
from classifiers.cam.explain import METHODS
from flows.config import RunConfig
from infra.query import query
from tests.flows.stores import PROJECT, Inputs, shared_inputs

README = (PROJECT / "README.md").read_text(encoding="utf-8")
RUN_YAML = (PROJECT / "docs" / "run-yaml.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", text, flags=re.DOTALL)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Inputs:
    base = tmp_path_factory.getbasetemp()
    return shared_inputs((base if worker_id == "master" else base.parent) / "flow-inputs")


def test_the_page_of_tables_is_made_from_the_schemas() -> None:
    made = runpy.run_path(str(PROJECT / "docs" / "make_tables.py"))["tables_page"]()
    assert (PROJECT / "docs" / "tables.md").read_text(encoding="utf-8") == made, "run python docs/make_tables.py"


def test_the_reference_of_run_yaml_is_complete_and_true(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "resnet50-s2-v0.2.0.safetensors").touch()  # which an example names
    text, *examples = blocks(RUN_YAML, "yaml")
    told = yaml.safe_load(text)
    here = {**told, "train": {**told["train"], "backbone": "random"}}
    for example in examples:
        RunConfig.model_validate({**here, **yaml.safe_load(example)})
    config = RunConfig.model_validate(here)
    defaults = RunConfig.model_validate(
        {
            "archive": {"layout": "bigearthnet-v2", "root": "/data/BigEarthNet"},
            "store": "/data/superscene",
            "train": {"backbone": "random"},
        }
    )
    assert config == defaults
    assert set(told) == set(RunConfig.model_fields)
    for section in ("archive", "train", "train_sr", "explain", "resources"):
        assert set(told[section]) == set(type(getattr(config, section)).model_fields)


def test_every_explanation_method_is_told_with_its_options() -> None:
    rows = [line.split("|")[1:4] for line in RUN_YAML.split("## Maps")[1].splitlines() if line.startswith("| `")]
    told = {method: (options, cost) for names, options, cost in rows for method in re.findall(r"`(\w+)`", names)}
    assert set(told) == set(explain_methods())
    for method, entry in METHODS.items():
        options, cost = told[method]
        defaults = re.findall(r"`(\w+): ([\w.]+)`", options)
        assert {name: yaml.safe_load(value) for name, value in defaults} == asdict(entry.options())
        assert ("costly" in cost) == (entry.forwards == "many")


@pytest.mark.parametrize("statement", blocks(README, "sql"))
def test_the_sql_examples_answer(inputs: Inputs, statement: str) -> None:
    rows = query(inputs.reference / "tables", None, statement).fetchall()
    assert rows


def test_the_gain_example_is_what_pandas_finds(inputs: Inputs) -> None:
    statement = next(s for s in blocks(README, "sql") if "AS gain" in s)
    answer = query(inputs.reference / "tables", None, statement).df().set_index("label")["gain"]
    metrics = pd.read_parquet(inputs.reference / "tables" / "metrics")
    f2 = metrics.query("metric == 'f2' and split == 'test' and label.notna() and country.isna() and season.isna()")
    by_sr = f2.pivot_table(index="label", columns="sr", values="value")
    expected = by_sr["bicubic"] - by_sr["none"]
    pd.testing.assert_series_equal(answer.sort_index(), expected.sort_index(), check_names=False)


def test_the_example_of_super_resolution_carries_every_map_to_the_patch() -> None:
    """Of the last SR model, by torch's own enlargement of what `explain` gives."""
    (example,) = (text for text in blocks(README, "python") if "on_grid" in text)
    found: dict[str, Any] = {}
    exec(compile(example, "README.md", "exec"), found)
    assert {sr: cam.shape for sr, cam in found["on_patch"].items()} == dict.fromkeys(
        ("none", "bicubic", "srresnet"), (120, 120)
    )
    assert found["x"].shape == (1, 3, 480, 480)
    maps = explain(found["model"], found["x"], "layer_cam", labels=[5])
    assert maps.shape == (1, 1, 15, 15)
    large = torch.nn.functional.interpolate(maps, size=120, mode="bilinear")[0, 0]
    assert large.any()
    torch.testing.assert_close(found["on_patch"]["srresnet"], large)


@pytest.mark.parametrize("example", blocks(README, "python"))
def test_the_python_examples_run(
    inputs: Inputs, example: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "store").symlink_to(inputs.reference)
    monkeypatch.chdir(tmp_path)
    exec(compile(example, "README.md", "exec"), {})
    assert capsys.readouterr().out
    assert {duckdb.__name__, xr.__name__} == {"duckdb", "xarray"}
