"""What the documentation says: made pages equal what they are made from, and examples answer what they say."""

import re
import runpy
import shutil
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from classifiers import explain, explain_methods
from classifiers.cam.methods import METHODS
from flows.config import RunConfig
from infra.query import query
from tests.docs_pages import blocks_of, tables_with_reliability
from tests.flows.stores import PROJECT, Inputs, shared_inputs

QUESTIONS = (PROJECT / "docs" / "questions.md").read_text(encoding="utf-8")
EXPLAIN = (PROJECT / "docs" / "explain.md").read_text(encoding="utf-8")
RUN_YAML = (PROJECT / "docs" / "run-yaml.md").read_text(encoding="utf-8")


def blocks(text: str, language: str) -> list[str]:
    return [block.text for block in blocks_of(text) if block.language == language]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Inputs:
    base = tmp_path_factory.getbasetemp()
    return shared_inputs((base if worker_id == "master" else base.parent) / "flow-inputs")


def test_the_page_of_tables_is_made_from_the_schemas() -> None:
    made = runpy.run_path(str(PROJECT / "docs" / "make_tables.py"))["tables_page"]()
    assert (PROJECT / "docs" / "tables.md").read_text(encoding="utf-8") == made, "run python docs/make_tables.py"


def test_the_page_of_the_command_line_is_made_from_its_help() -> None:
    made = runpy.run_path(str(PROJECT / "docs" / "make_cli.py"))["cli_page"]()
    assert (PROJECT / "docs" / "cli.md").read_text(encoding="utf-8") == made, "run python docs/make_cli.py"
    assert "## superscene super-resolve\n" in made
    assert "## superscene weights fetch\n" in made
    assert "| `--set " in made


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
    rows = [
        line.split("|")[1:4]
        for line in RUN_YAML.split("## Maps")[1].split("\n## ")[0].splitlines()
        if line.startswith("| `")
    ]
    told = {method: (options, cost) for names, options, cost in rows for method in re.findall(r"`(\w+)`", names)}
    assert set(told) == set(explain_methods())
    for method, entry in METHODS.items():
        options, cost = told[method]
        defaults = re.findall(r"`(\w+): ([\w.]+)`", options)
        assert {name: yaml.safe_load(value) for name, value in defaults} == asdict(entry.options())
        assert ("costly" in cost) == (entry.forwards == "many")


@pytest.fixture(scope="module")
def tables(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tables_with_reliability(inputs, tmp_path_factory.mktemp("docs") / "tables")


def of_two_classifiers(tables: Path, name: str) -> pd.DataFrame:
    """A table of the store with the rows of a second classifier, whose numbers are a little higher."""
    rows = pd.read_parquet(tables / name)
    return pd.concat([rows, rows.assign(classifier="other", value=rows["value"] + 0.001)])


def test_the_example_of_methods_has_one_row_for_each_method_and_classifier(tables: Path, tmp_path: Path) -> None:
    """The uniform map's rows stand beside those of each method in the table."""
    statement = next(s for s in blocks(QUESTIONS, "sql") if "AS judd_auc" in s)
    rows = of_two_classifiers(tables, "explanation_metrics")
    (tmp_path / "mine").mkdir()  # under a name of superscene's own, a file that pandas wrote is refused
    rows.to_parquet(tmp_path / "mine" / "data-00000.parquet")
    wanted = rows.query("metric == 'judd_auc' and sr == 'bicubic' and split == 'test' and subset == 'all'")
    wanted = wanted[wanted[["reference", "label", "area_quartile"]].isna().all(axis=1)]
    assert wanted.duplicated(["classifier", "method"]).any()
    answer = query(tmp_path, None, statement.replace("explanation_metrics", "mine")).df()
    methods = [("resnet18", method) for method in ("grad_cam", "random", "uniform")]
    methods += [("other", method) for _, method in methods]
    found = [*zip(answer["classifier"], answer["method"], strict=True)]
    assert sorted(found) == sorted(methods)
    for key, of_classifier in answer.groupby("classifier"):
        assert of_classifier["judd_auc"].is_monotonic_decreasing
        expected = wanted[wanted["classifier"] == key].groupby("method")["value"].max()
        pd.testing.assert_series_equal(
            of_classifier.set_index("method")["judd_auc"].sort_index(), expected, check_names=False
        )


def test_the_example_of_reliability_lists_the_least_reliable_first(tables: Path) -> None:
    """Of equal ones the less sure first; without the score of no map, and of the test split alone."""
    statement = next(s for s in blocks(QUESTIONS, "sql") if "FROM reliability" in s)
    answer = query(tables, None, statement).df()
    assert answer["patch_id"].tolist() == ["c", "c", "b", "b", "a", "a"]
    assert answer["reliability"].tolist() == [0.25] * 4 + [0.75] * 2
    assert query(tables, ["abcdef01"], statement).fetchall() == [], "of another run"


def test_the_example_of_coverage_is_of_one_method_of_the_last_run(
    inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With rows of an earlier run, and of a second classifier, which must not be averaged with the first."""
    store = tmp_path / "demo" / "store"
    shutil.copytree(inputs.reference / "tables", store / "tables")
    (folder,) = (store / "tables" / "explanations" / "sr=none" / "classifier=resnet18" / "method=grad_cam").iterdir()
    rows = pd.read_parquet(next(folder.glob("*.parquet")), partitioning=None)
    other = folder.parents[1].with_name("classifier=other") / "method=grad_cam" / folder.name
    for path, value in ((folder.with_name("config=0000000a"), 8.0), (other, 5.0)):
        path.mkdir(parents=True)
        rows.assign(coverage=value).to_parquet(path / "data-00000.parquet")
    (example,) = (text for text in blocks(QUESTIONS, "python") if "explained" in text and "pd." in text)
    monkeypatch.chdir(tmp_path)
    found: dict[str, Any] = {}
    exec(compile(example, "docs", "exec"), found)
    answer = found["coverage"]
    expected = rows[rows["split"] == "test"].groupby("label", observed=True)["coverage"].mean()
    ours = answer.xs("none", level="sr").xs("resnet18", level="classifier")
    assert ours.to_dict() == pytest.approx(expected.to_dict(), nan_ok=True)
    assert set(answer.xs("other", level="classifier")) == {5.0}


def test_the_gain_example_is_what_pandas_finds(inputs: Inputs) -> None:
    statement = next(s for s in blocks(QUESTIONS, "sql") if "SELECT label, value AS gain" in s)
    answer = query(inputs.reference / "tables", None, statement).df().set_index("label")["gain"]
    metrics = pd.read_parquet(inputs.reference / "tables" / "metrics")
    f2 = metrics.query("metric == 'f2' and split == 'test' and label.notna() and country.isna() and season.isna()")
    by_sr = f2.pivot_table(index="label", columns="sr", values="value")
    expected = by_sr["bicubic"] - by_sr["none"]
    pd.testing.assert_series_equal(answer.sort_index(), expected.sort_index(), check_names=False)


def test_the_example_of_super_resolution_carries_every_map_to_the_patch() -> None:
    """Of the last SR model, by torch's own enlargement of what `explain` gives."""
    (example,) = (text for text in blocks(EXPLAIN, "python") if "on_grid" in text)
    found: dict[str, Any] = {}
    exec(compile(example, "docs", "exec"), found)
    assert {sr: cam.shape for sr, cam in found["on_patch"].items()} == dict.fromkeys(
        ("none", "bicubic", "srresnet"), (120, 120)
    )
    assert found["x"].shape == (1, 3, 480, 480)
    maps = explain(found["model"], found["x"], "layer_cam", labels=[5])
    assert maps.shape == (1, 1, 15, 15)
    large = torch.nn.functional.interpolate(maps, size=120, mode="bilinear")[0, 0]
    assert large.any()
    torch.testing.assert_close(found["on_patch"]["srresnet"], large)
