"""What is judged where the archive is not the one that was fitted on, and where truth or probabilities are missing."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from classifiers.reliability import OUTCOMES
from infra.parts import recorded_configs
from infra.storage import StorePaths
from infra.tables import predictions_schema
from tasks.reliability import ReliabilityJob
from tasks.reliability_judge import ReliabilityJudge, judged, publish_reliability
from tasks.reliability_stage import ReliabilityFitter
from tests.tasks.planted_maps import LABELS, SEED, Planted, PlantedStore, plan_of, planted, planted_store
from tests.tasks.test_reliability_stage import metric, rows_of, through


def borrowing(folder: Path, case: Planted, unlabelled: Sequence[int] = ()) -> tuple[PlantedStore, ReliabilityJob]:
    """A store whose clusters another one fitted, judged."""
    lender = planted_store(folder / "lender")
    ReliabilityFitter([lender.job(plan_of())]).run(0)
    store = planted_store(folder / "store", case, unlabelled=unlabelled)
    job = store.job(plan_of(), StorePaths(folder / "lender"))
    through(store, job)
    return store, job


def check_fit_rows(store: PlantedStore, job: ReliabilityJob) -> None:
    """The rows of the fit are those of its file."""
    rows = [row for row in rows_of(store, "reliability_clusters") if row["split"] == "fit"]
    fitted = job.fitted()
    assert [(row["label"], row["cluster"]) for row in rows] == [(label, i) for label in LABELS[1::-1] for i in (0, 1)]
    for row in rows:
        item, i = fitted[row["label"]], row["cluster"]
        assert [row[name] for name in OUTCOMES] == item.counts[i].tolist()
        assert (row["n"], row["error_rate"]) == (item.counts[i].sum(), item.error_rate[i])
        assert row["flipped"] == item.flipped[i]
        assert row["prototype"] == item.prototypes[i].ravel().tolist()
        assert (row["height"], row["width"]) == item.prototypes[i].shape


def test_borrowed_clusters_are_shown_as_they_were_fitted(tmp_path: Path) -> None:
    """This archive's decisions are all right, so that its own counts would call every cluster reliable."""
    case = planted(30, 50, seed=4)
    store, job = borrowing(tmp_path, replace(case, predicted=case.truth.copy()))
    check_fit_rows(store, job)
    rows = rows_of(store, "reliability_clusters")
    of_split = {split: [row for row in rows if row["split"] == split] for split in ("validation", "test")}
    for split, n in (("validation", 30), ("test", 50)):
        assert {row["error_rate"] for row in of_split[split]} == {0.0}
        assert sum(row["n"] for row in of_split[split]) == 2 * n
        assert sum(row["flipped"] for row in of_split[split]) == 2
        assert {row["prototype"] for row in of_split[split]} == {None}


def test_clusters_are_told_where_nobody_knows_the_truth(tmp_path: Path) -> None:
    store, job = borrowing(tmp_path, planted(0, 50), unlabelled=range(50))
    check_fit_rows(store, job)
    assert {row["split"] for row in rows_of(store, "reliability_clusters")} == {"fit"}
    assert rows_of(store, "reliability_metrics") == rows_of(store, "risk_coverage") == []
    assert len(rows_of(store, "reliability")) == 150


def test_an_archive_without_validation_has_no_temperature(tmp_path: Path) -> None:
    store, _ = borrowing(tmp_path, planted(0, 50))
    metrics, curves = rows_of(store, "reliability_metrics"), rows_of(store, "risk_coverage")
    assert {row["score"] for row in curves} == {"reliability", "probability"}
    assert "temperature" not in {name for row in metrics for name in (row["score"], row["reference"])}
    assert metric(metrics, "aurc", "reliability", reference="probability")["value"] < 0


def without_probabilities(store: PlantedStore, shard: int, places: Sequence[int]) -> list[str]:
    """Take the first label's probability from some patches of a shard; return their names."""
    rows = store.scored.predictions.read(shard).to_pylist()
    of_seed = [row for row in rows if row["seed"] == SEED]
    for place in places:
        of_seed[place]["probs"] = [None, *of_seed[place]["probs"][1:]]
    store.scored.predictions.write(shard, pa.Table.from_pylist(rows, predictions_schema(3)))
    return [of_seed[place]["patch_id"] for place in places]


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_decisions_without_a_probability_are_in_no_order(tmp_path: Path, activation: str) -> None:
    """With a softmax the other labels of the patch are left out too; accuracies are of decisions, and count them."""
    store = planted_store(tmp_path)
    store = replace(store, scored=replace(store.scored, activation=activation))  # type: ignore[arg-type]
    without_probabilities(store, store.validation[0], [3])
    without_probabilities(store, store.shards[-1], [0, 1])
    through(store, store.job(plan_of()))
    metrics = rows_of(store, "reliability_metrics")
    lost = {"sigmoid": (2, 0), "softmax": (2, 2)}[activation]
    for label, fewer in ((LABELS[0], lost[0]), (LABELS[1], lost[1]), (None, sum(lost))):
        n = 80 * (1 if label else 2)
        for score in ("reliability", "probability"):
            assert metric(metrics, "aurc", score, label=label)["n"] == n - fewer
    assert metric(metrics, "accuracy", "predicted")["n"] == 240


def test_softmax_on_patches_with_several_labels_or_none(tmp_path: Path) -> None:
    """A third of the patches has exactly one label, enough for a temperature; where no patch has, there is none."""
    scores = {}
    for name, case in (("some", planted()), ("none", planted())):
        if name == "none":
            both = np.repeat(case.truth[:, :1], 3, axis=1) & [True, True, False]
            case = replace(case, truth=both, predicted=both ^ (case.odd & [True, True, False]))  # noqa: PLW2901
        store = planted_store(tmp_path / name, case)
        store = replace(store, scored=replace(store.scored, activation="softmax"))
        through(store, store.job(plan_of()))
        metrics = rows_of(store, "reliability_metrics")
        scores[name] = {row["score"] for row in metrics if row["metric"] == "aurc"}
        assert metric(metrics, "aurc", "probability")["n"] == 160
    assert scores == {
        "some": {"reliability", "probability", "temperature"},
        "none": {"reliability", "probability"},
    }


def test_what_is_published_is_not_published_again(tmp_path: Path) -> None:
    store = planted_store(tmp_path)
    job = store.job(plan_of())
    through(store, job)
    files = sorted(store.branch.paths.table("reliability").rglob("*.parquet"))
    before = [path.stat().st_ino for path in files]
    publish_reliability(job, store.shards)
    assert [path.stat().st_ino for path in files] == before
    publish_reliability(job, [*store.shards, 99])  # one that failed
    assert [path.stat().st_ino for path in files] != before


def test_what_determines_a_judgement_is_written_down(tmp_path: Path) -> None:
    store = planted_store(tmp_path)
    job = store.job(plan_of())
    ReliabilityFitter([job]).run(0)
    ReliabilityJudge([job]).run(0)
    (record,) = [row for row in recorded_configs(store.branch.paths) if row["config"] == judged(job).config]
    assert '"schema":1' in record["json"].replace(" ", "")
    assert job.assignment().config in record["json"]
