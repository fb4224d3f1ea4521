"""Reliability from the command line: on a store whose predictions are made, and what is refused at once."""

import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from inspect import unwrap
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import classifiers
from flows.archive import archive
from flows.config import ReliabilityConfig, RunConfig, load_config
from flows.reliability import check_reliability, score_reliability
from infra.errors import ConfigError
from infra.storage import StorePaths
from tasks.branch import Branch
from tasks.reliability import ReliabilityJob
from tasks.reliability_stage import ReliabilityFitter
from tests.flows.stores import PROJECT, Inputs, superscene
from tests.tasks.planted_maps import Planted, PlantedStore, plan_of, planted_store
from tests.tasks.planted_maps import planted as planted_case

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


class RunHere:
    """A run whose stages are done in this process, and recorded."""

    def __init__(self, config: RunConfig) -> None:
        self.config = config
        self.notes: list[str] = []
        self.done: dict[str, int] = {}
        self.resources = SimpleNamespace(without_gpu=lambda: None)
        self.record = SimpleNamespace(note=self.notes.append)

    def stage(self, title: str, build: Callable[[], Any], outputs: list[Any], shards: list[int], *_: Any) -> None:
        self.stage_of(title, build, outputs, shards)

    def stage_of(self, title: str, build: Callable[[], Any], outputs: list[Any], items: list[int], *_: Any) -> None:
        missing = sorted(set(items) - set.intersection(*(of.done() for of in outputs)))
        if missing:
            worker = build()
            for item in missing:
                worker.run(item)
        self.done[title] = len(missing)


def scored(store: PlantedStore, job: ReliabilityJob, **changes: Any) -> RunHere:
    settings = {
        "archive": {"layout": "bigearthnet-v2"},
        "train": {"backbone": "random"},
        "store": store.branch.paths.root,
    }
    run = RunHere(RunConfig.model_validate({**settings, "reliability": {}, **changes}))
    plan: Any = SimpleNamespace(shards=dict.fromkeys(store.shards), ingested=lambda: list(store.shards))
    here: Any = run
    unwrap(score_reliability.fn)(here, plan, [job])
    return run


def test_a_fit_whose_file_was_lost_is_made_again(tmp_path: Path) -> None:
    """As it was: the same bytes, so no map is assigned again."""
    planted = planted_store(tmp_path)
    job = planted.job(plan_of())
    stages = {"fit reliability": 1, "reliability none resnet18": len(planted.shards), "judge reliability": 1}
    first = scored(planted, job)
    assert first.done == stages
    (note,) = first.notes
    assert note.startswith("resnet18 on none: no reliability of Coniferous forest: none of 120 validation samples is")
    assert not any(scored(planted, job).done.values())
    content = job.file.read_bytes()
    job.file.unlink()
    assert scored(planted, job).done == {**dict.fromkeys(stages, 0), "fit reliability": 1}
    assert job.file.read_bytes() == content


def test_what_another_store_could_not_fit_is_told_here(tmp_path: Path) -> None:
    lender = tmp_path / "lender"
    planted = planted_store(lender)
    scored(planted, planted.job(plan_of()))
    borrower = planted_store(tmp_path / "borrower", planted_case(0, 40))
    run = scored(borrower, borrower.job(plan_of(), StorePaths(lender)), models_from=lender)
    assert list(run.done) == ["reliability none resnet18", "judge reliability"]
    (note,) = run.notes
    assert f"no reliability of Coniferous forest in {lender}: none of 120 validation samples is positive" in note


def test_of_three_exclusive_classes_a_note_says_that_nothing_is_flipped(tmp_path: Path) -> None:
    n = 160
    truth = np.eye(3, dtype=np.bool_)[np.arange(n) % 3]
    odd = np.zeros((n, 3), np.bool_)
    odd[::4] = True
    predicted = np.where(odd, np.roll(truth, 1, axis=1), truth)
    planted = planted_store(tmp_path, Planted(["validation"] * 120 + ["test"] * 40, truth, predicted, odd))
    planted = replace(planted, scored=replace(planted.scored, activation="softmax"))
    (note,) = scored(planted, planted.job(plan_of())).notes
    assert note == (
        "resnet18 on none: its 3 classes exclude each other, and nothing says which one is right instead of another: "
        "no decision is flipped"
    )


def test_a_store_that_lends_no_such_fit_is_refused_before_anything_is_predicted(tmp_path: Path) -> None:
    with torch.device("meta"):
        networks = {"mine": classifiers.build("resnet18", 3).eval()}
    lender = planted_store(tmp_path / "lender", sr="bicubic", padded=15)
    lender = replace(lender, scored=replace(lender.scored, classifier="mine"))
    job = lender.job(plan_of())
    ReliabilityFitter([job]).run(0)
    borrower = planted_store(tmp_path / "borrower", planted_case(0, 40), sr="bicubic", padded=15)
    plan: Any = None  # no validation split is asked for
    settings: dict[str, Any] = {
        "archive": {"layout": "bigearthnet-v2"},
        "store": tmp_path / "borrower",
        "models_from": tmp_path / "lender",
        "classifiers": ["mine"],
        "trained": {"mine": tmp_path / "lender" / "network.safetensors"},
    }

    def check(branch: Branch = borrower.branch, **section: Any) -> None:
        config = RunConfig.model_validate({**settings, "reliability": {"clusters": 2, **section}})
        check_reliability(config, plan, [branch], networks)

    check()
    with pytest.raises(ConfigError, match=r"maps of mine on bicubic \(.* has clusters 2, not 3\)"):
        check(clusters=3)
    with pytest.raises(ConfigError, match=r"has threshold 0\.75, not 0\.5\)"):
        check(threshold=0.5)
    with pytest.raises(ConfigError, match=r"maps of mine on none \(it has none of this classifier on this branch\)"):
        check(planted_store(tmp_path / "other", planted_case(0, 40)).branch)
    job.file.unlink()
    with pytest.raises(ConfigError, match="has no reliability of these settings for grad_cam maps of mine on bicubic"):
        check()


def test_without_a_section_there_is_nothing_to_score(tmp_path: Path) -> None:
    settings = {"archive": {"layout": "bigearthnet-v2"}, "train": {"backbone": "random"}, "store": tmp_path / "none"}
    config = RunConfig.model_validate(settings)
    with pytest.raises(ConfigError, match=r"RUN\.yaml has no section `reliability`"):
        archive.fn(config, "reliability")
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
