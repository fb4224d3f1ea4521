"""Reliability from the command line: on a store whose predictions are made, and what is refused at once."""

import re
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import classifiers
from flows.config import ReliabilityConfig, RunConfig, load_config
from flows.reliability import check_reliability
from infra.errors import ConfigError
from tests.flows.stores import PROJECT, Inputs, superscene
from tests.tasks.planted_maps import planted as planted_case
from tests.tasks.planted_maps import planted_store

SECTION = {"pooled": True, "clusters": 3}


@pytest.fixture(scope="module")
def store(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The reference store, with reliability on top."""
    folder = tmp_path_factory.mktemp("reliability") / "store"
    shutil.copytree(inputs.reference, folder)
    result = superscene("run", inputs.config(folder, reliability=SECTION))
    assert result.returncode == 0, result.stderr
    return folder


def table(store: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(store / "tables" / name)


def done_by_run(store: Path) -> list[dict[str, int]]:
    """Shards that each run did, by stage."""
    stages = table(store, "runs").sort_values("run_id")["stages"]
    return [{row["stage"]: row["done"] for row in of_run if row["done"]} for of_run in stages]


def test_every_decision_has_a_score_and_nothing_else_was_done_again(store: Path, inputs: Inputs) -> None:
    assert list(done_by_run(store)[-1]) == [
        "fit reliability",
        "reliability none resnet18",
        "reliability bicubic resnet18",
        "judge reliability",
    ]
    rows, predictions = table(store, "reliability"), table(store, "predictions")
    assert len(rows) == 19 * len(predictions)
    columns = zip(predictions.sr, predictions.patch_id, predictions.predicted.tolist(), strict=True)
    given = {(sr, patch): set(labels) for sr, patch, labels in columns}
    for row in rows.itertuples():
        assert row.predicted == (row.label in given[row.sr, row.patch_id])
    assert rows.reliability.notna().all()
    # The counts behind the scores, from the rows themselves.
    clusters = table(store, "reliability_clusters").query("split == 'validation'")
    patches = table(store, "patches").set_index("patch_id")
    clean = ~(patches.has_snow.fillna(value=False) | patches.has_cloud.fillna(value=False))
    of_validation = rows[(rows.split == "validation") & rows.patch_id.map(clean)]
    for (sr, cluster), members in of_validation.groupby(["sr", "cluster"], observed=True):
        (found,) = clusters[(clusters.sr == sr) & (clusters.cluster == cluster)].to_dict("records")
        wrong = (members.predicted != members.truth).mean()
        assert found["n"] == len(members)
        assert found["error_rate"] == pytest.approx(wrong)
        np.testing.assert_allclose(members.cluster_error_rate, wrong)
    judged = table(store, "reliability_metrics")
    test = rows[(rows.split == "test") & rows.patch_id.map(clean) & (rows.sr == "none")]
    (accuracy,) = judged.query(
        "sr == 'none' and split == 'test' and metric == 'accuracy' and score == 'predicted' and label.isna()"
    ).value
    assert accuracy == pytest.approx((test.predicted == test.truth).mean())


def test_the_report_says_what_it_is_worth(store: Path) -> None:
    page = (store / "report" / "index.html").read_text(encoding="utf-8")
    section = re.search(r'<section id="reliability">(.*?)</section>', page, re.DOTALL)
    assert section is not None
    for words in (
        "How far predictions can be trusted",
        'id="reliability-table"',
        "Mean map of cluster 1",
        "Worth a look",
    ):
        assert words in section[1]
    assert len(re.findall(r"<tr>", section[1].split('id="doubtful-table"')[1])) == 1 + 12
    assert "reliable to" in page


def test_another_threshold_repeats_no_pass(store: Path, inputs: Inputs) -> None:
    changed: dict[str, Any] = {**SECTION, "threshold": 0.1}
    result = superscene("reliability", inputs.config(store, reliability=changed))
    assert result.returncode == 0, result.stderr
    assert not {name for name in done_by_run(store)[-1] if name.startswith(("predict", "train", "features"))}
    rows = table(store, "reliability")
    flipped = rows[rows.predicted != rows.adjusted]
    assert len(flipped) > 0
    assert (flipped.cluster_error_rate > 0.1).all()


def test_what_cannot_be_fitted_is_refused_before_anything_is_trained(inputs: Inputs, tmp_path: Path) -> None:
    result = superscene("run", inputs.config(tmp_path / "few", reliability={"clusters": 8}))
    assert result.returncode == 2
    assert "needs 20 validation samples for each of 8 clusters, 160 in all, found" in " ".join(result.stderr.split())
    assert not (tmp_path / "few" / "checkpoints").exists()


def test_a_fit_whose_file_was_lost_is_made_again(store: Path, inputs: Inputs) -> None:
    """As the run before had it: the same bytes, so no map is assigned again."""
    section: dict[str, Any] = {**SECTION, "threshold": 0.1}
    config = inputs.config(store, reliability=section)
    files = {path: path.read_bytes() for path in store.glob("checkpoints/reliability-*/clusters.safetensors")}
    for path in files:
        path.unlink()
    result = superscene("reliability", config)
    assert result.returncode == 0, result.stderr
    again = {path: path.read_bytes() for path in store.glob("checkpoints/reliability-*/clusters.safetensors")}
    assert len(again) == 2  # one a branch
    assert again.items() <= files.items()
    assert done_by_run(store)[-1] == {"fit reliability": 2}


def test_a_store_that_lends_no_such_fit_is_refused_before_anything_is_predicted(
    store: Path, inputs: Inputs, tmp_path: Path
) -> None:
    section: dict[str, Any] = {**SECTION, "clusters": 4}
    config = inputs.config(tmp_path / "borrower", models_from=str(store), reliability=section)
    result = superscene("run", config)
    words = " ".join(result.stderr.split())
    assert result.returncode == 2, words
    assert "has no reliability of these settings for grad_cam maps of resnet18 on none" in words
    assert "clusters 3, not 4" in words
    assert not (tmp_path / "borrower" / "maps").exists()
    assert not list((tmp_path / "borrower").glob("work/predictions/*/part-*"))


def test_without_a_section_there_is_nothing_to_score(inputs: Inputs, tmp_path: Path) -> None:
    result = superscene("reliability", inputs.config(tmp_path / "none"))
    assert result.returncode == 2
    assert "RUN.yaml has no section `reliability`" in " ".join(result.stderr.split())
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("one", "found"), [(None, 3 * 19), ("Urban fabric", 19)])
def test_pooled_samples_are_of_the_labels_that_a_classifier_learns(tmp_path: Path, one: str | None, found: int) -> None:
    """19 patches of validation, of three labels; a sample for each of a costly method where there is one."""
    planted = planted_store(tmp_path / "planted", planted_case(19, 10))
    train = {"backbone": "random", **({} if one is None else {"one_against_rest": one})}
    settings = {"reliability": {"pooled": True}, "archive": {"layout": "bigearthnet-v2"}, "train": train}
    config = RunConfig.model_validate(
        {**settings, "store": tmp_path / "s", "sr": ["none"], "classifiers": ["resnet18"]}
    )
    with torch.device("meta"):
        networks = {"resnet18": classifiers.build("resnet18", 1).eval()}
    plan: Any = SimpleNamespace(ingested=lambda split: planted.validation)
    with pytest.raises(ConfigError, match=f"160 in all, found {found}:"):
        check_reliability(config, plan, [planted.branch], networks)


@pytest.mark.parametrize(
    ("section", "words"),
    [
        ({"method": "lime"}, "reliability.method: lime is not among explain.methods, grad_cam"),
        ({"clusters": 1}, "clusters"),
        ({"threshold": 1.5}, "reliability.threshold"),
        ({"sigma": 0.2}, "reliability.sigma: there is no such setting"),
    ],
)
def test_a_section_that_cannot_be_is_refused_by_its_key(
    inputs: Inputs, tmp_path: Path, section: dict[str, Any], words: str
) -> None:
    with pytest.raises(ConfigError, match=re.escape(words)):
        load_config(inputs.config(tmp_path / "store", reliability=section))


def test_the_reference_of_the_section_is_the_defaults() -> None:
    text = (PROJECT / "docs" / "run-yaml.md").read_text(encoding="utf-8")
    (block,) = (
        found
        for found in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
        if "\nreliability:" in found and "kernel_scale" in found
    )
    told = yaml.safe_load(block)["reliability"]
    assert set(told) == set(ReliabilityConfig.model_fields)
    assert ReliabilityConfig(**told) == ReliabilityConfig()
