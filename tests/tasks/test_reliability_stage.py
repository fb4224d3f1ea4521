"""Reliability on planted maps: the cluster that errs is found, flipped, and accuracy rises by what is known."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logit

from classifiers.reliability import from_bytes
from infra.errors import ConfigError
from infra.storage import StorePaths
from infra.tables import read_table
from tasks.reliability import POOLED, ReliabilityJob, check_samples
from tasks.reliability_judge import ReliabilityJudge, publish_reliability
from tasks.reliability_stage import ReliabilityAssigner, ReliabilityFitter
from tests.tasks.planted_maps import LABELS, SEED, PlantedStore, plan_of, planted, planted_store


def through(store: PlantedStore, job: ReliabilityJob) -> None:
    """Run all stages of a job and publish its tables."""
    if job.fit is not None:
        ReliabilityFitter([job]).run(0)
    worker = ReliabilityAssigner(job)
    for shard in store.shards:
        worker.run(shard)
    ReliabilityJudge([job]).run(0)
    publish_reliability(job, store.shards)


def rows_of(store: PlantedStore, table: str) -> list[dict[str, Any]]:
    folders = sorted({file.parent for file in store.branch.paths.table(table).rglob("*.parquet")})
    rows: list[dict[str, Any]] = pa.concat_tables(map(read_table, folders)).to_pylist()
    return rows


def metric(rows: list[dict[str, Any]], name: str, score: str, **more: Any) -> dict[str, Any]:
    wanted = {"metric": name, "score": score, "reference": None, "label": None, "split": "test", **more}
    (row,) = [row for row in rows if all(row[key] == value for key, value in wanted.items())]
    return row


@pytest.mark.parametrize("pooled", [False, True])
def test_the_pattern_that_errs_is_flipped_and_accuracy_rises_by_exactly_its_share(
    tmp_path: Path, *, pooled: bool
) -> None:
    store = planted_store(tmp_path)
    job = store.job(plan_of(pooled=pooled))
    through(store, job)
    case = store.case
    place = {name: i for i, name in enumerate(store.names)}
    rows = rows_of(store, "reliability")
    assert len(rows) == 3 * len(case.split)
    learnt = (0, 1, 2) if pooled else (0, 1)
    for row in rows:
        i, k = place[row["patch_id"]], LABELS.index(row["label"])
        assert (row["predicted"], row["truth"], row["split"]) == (case.predicted[i, k], case.truth[i, k], case.split[i])
        assert row["seed"] == SEED
        if k in learnt and not pooled:
            assert row["cluster_error_rate"] == (1.0 if case.odd[i, k] else 0.0)
            assert row["reliability"] == 1 - row["cluster_error_rate"]
            assert row["adjusted"] == row["truth"]
        elif not pooled:
            assert row["cluster"] is row["reliability"] is None
            assert row["adjusted"] == row["predicted"]
    metrics = rows_of(store, "reliability_metrics")
    test = np.array([split == "test" for split in case.split])
    if not pooled:
        wrong = (case.truth != case.predicted)[test].mean()
        assert metric(metrics, "accuracy", "predicted")["value"] == pytest.approx(1 - wrong)
        assert metric(metrics, "accuracy", "adjusted")["value"] == pytest.approx(1.0)
        change = metric(metrics, "accuracy", "adjusted", reference="predicted")
        assert change["value"] == pytest.approx(wrong)
        assert 0 < change["low"] <= change["value"] <= change["high"]
        assert set(job.why_not()) == {LABELS[2]}
        assert "none of 120 validation samples is positive" in job.why_not()[LABELS[2]]
    else:
        assert job.why_not() == {}
        # The third label is right whatever its map: pooled, the odd cluster errs in two thirds, below the threshold.
        assert metric(metrics, "accuracy", "adjusted", reference="predicted")["value"] == 0


def test_clusters_of_both_splits_are_counted_and_their_prototypes_are_the_means_of_their_maps(tmp_path: Path) -> None:
    store = planted_store(tmp_path)
    job = store.job(plan_of())
    through(store, job)
    case = store.case
    rows = rows_of(store, "reliability_clusters")
    for k in (0, 1):
        for split in ("fit", "validation", "test"):
            here = np.array([name == ("validation" if split == "fit" else split) for name in case.split])
            of_label = [row for row in rows if (row["label"], row["split"]) == (LABELS[k], split)]
            assert len(of_label) == 2
            for row in of_label:
                odd = row["flipped"]
                chosen = here & (case.odd[:, k] == odd)
                truth = case.truth[chosen, k]
                counts = (0, 0, (~truth).sum(), truth.sum()) if odd else (truth.sum(), (~truth).sum(), 0, 0)
                assert (row["tp"], row["tn"], row["fp"], row["fn"]) == counts
                assert (row["n"], row["error_rate"]) == (chosen.sum(), float(odd))
                if split != "fit":
                    assert row["prototype"] is row["height"] is row["width"] is None
                    continue
                prototype = np.array(row["prototype"]).reshape(row["height"], row["width"])
                bright = prototype[3:, 3:] if odd else prototype[:3, :3]
                assert bright.min() > 0.7
                assert prototype.mean() == pytest.approx(
                    (bright.mean() * 9 + 27 * np.sort(prototype.ravel())[:27].mean()) / 36
                )
    assert not [row for row in rows if row["label"] == LABELS[2]]


def test_maps_dealt_out_at_random_are_no_improvement(tmp_path: Path) -> None:
    """Half of all decisions are wrong, whatever the map: clusters are flipped by chance, and to no avail."""
    case = planted(120, 400)
    odd = np.random.default_rng(8).random((520, 3)) < 0.5
    case = replace(case, odd=odd, predicted=case.truth ^ (odd & [True, True, False]))
    store = planted_store(tmp_path, case, shuffled=True)
    job = store.job(plan_of(threshold=0.5))
    through(store, job)
    flipped = [row["flipped"] for row in rows_of(store, "reliability_clusters") if row["split"] == "fit"]
    assert 0 < sum(flipped) < len(flipped)
    rows = [row for row in rows_of(store, "reliability") if row["split"] == "test"]
    changed = np.mean([row["adjusted"] != row["predicted"] for row in rows])
    assert changed > 1 / 12
    metrics = rows_of(store, "reliability_metrics")
    change = metric(metrics, "accuracy", "adjusted", reference="predicted")
    right = {name: np.mean([row[name] == row["truth"] for row in rows]) for name in ("adjusted", "predicted")}
    assert change["value"] == pytest.approx(right["adjusted"] - right["predicted"])
    assert change["low"] < 0 < change["high"]
    area = metric(metrics, "aurc", "reliability", reference="probability")
    assert area["low"] <= 0 <= area["high"]


def test_the_same_tables_whatever_the_shards_and_their_order(tmp_path: Path) -> None:
    tables = {}
    for name, size in (("small", 8), ("large", 64)):
        store = planted_store(tmp_path / name, shard_size=size)
        through(store, store.job(plan_of()))
        keys = {"reliability": ("patch_id", "label"), "reliability_clusters": ("split", "label", "cluster")}
        tables[name] = {
            table: sorted(rows_of(store, table), key=lambda row: tuple(row[key] for key in key_names))
            for table, key_names in keys.items()
        }
    assert tables["small"]["reliability"] == tables["large"]["reliability"]
    for mine, theirs in zip(*(tables[name]["reliability_clusters"] for name in ("small", "large")), strict=True):
        assert mine.pop("prototype") == pytest.approx(theirs.pop("prototype"), abs=1e-6)
        assert mine == theirs


def test_maps_that_are_not_finite_and_patches_that_do_not_count(tmp_path: Path) -> None:
    broken, flagged, unlabelled = [(2, 0), (130, 1)], [5, 135], [7, 137]
    store = planted_store(tmp_path, broken=broken, flagged=flagged, unlabelled=unlabelled)
    job = store.job(plan_of())
    through(store, job)
    rows = {(row["patch_id"], row["label"]): row for row in rows_of(store, "reliability")}
    for i, k in broken:
        row = rows[store.names[i], LABELS[k]]
        assert row["cluster"] is row["reliability"] is row["cluster_error_rate"] is None
        assert row["adjusted"] == row["predicted"]
    for i in flagged:  # they have a score, and count nowhere
        assert rows[store.names[i], LABELS[0]]["cluster"] is not None
    assert rows[store.names[7], LABELS[0]]["truth"] is None
    clusters = rows_of(store, "reliability_clusters")
    counted = {
        (label, split): sum(row["n"] for row in clusters if (row["label"], row["split"]) == (label, split))
        for label in LABELS[:2]
        for split in ("validation", "test")
    }
    assert counted == {
        (LABELS[0], "validation"): 120 - 3,
        (LABELS[0], "test"): 80 - 2,
        (LABELS[1], "validation"): 120 - 2,
        (LABELS[1], "test"): 80 - 3,
    }


def test_risk_by_coverage_and_temperature_by_their_definitions(tmp_path: Path) -> None:
    store = planted_store(tmp_path, planted(seed=2))
    job = store.job(plan_of())
    through(store, job)
    metrics, curves = rows_of(store, "reliability_metrics"), rows_of(store, "risk_coverage")
    case = store.case
    test = np.array([split == "test" for split in case.split])
    wrong = np.sort((case.truth != case.predicted)[test, :2].ravel())
    perfect = np.mean(np.cumsum(wrong) / np.arange(1, len(wrong) + 1))
    assert metric(metrics, "aurc", "reliability")["value"] == pytest.approx(perfect)
    assert metric(metrics, "aurc", "probability")["value"] == pytest.approx(wrong.mean())  # all equally sure
    by_coverage = {
        row["coverage"]: row["risk"] for row in curves if (row["score"], row["split"]) == ("reliability", "test")
    }
    assert len(by_coverage) == 20
    assert by_coverage[0.5] == 0
    assert by_coverage[1.0] == pytest.approx(wrong.mean())
    # One temperature a label: where all say 7/8 or 1/8, the best makes that the share of right ones of validation.
    right = (case.truth == case.predicted)[~test].mean(axis=0)
    assert right[0] != right[1]
    temperature = logit(0.875) / logit(right[:2])
    scaled = expit(logit(0.875) / temperature)
    order = np.repeat(scaled[None], test.sum(), axis=0).ravel()
    best_first = np.argsort(-order, kind="stable")
    of_two = (case.truth != case.predicted)[test, :2].ravel()[best_first]
    expected = np.concatenate(
        [
            np.full((order[best_first] == v).sum(), of_two[order[best_first] == v].mean())
            for v in sorted(set(order), reverse=True)
        ]
    )
    area = np.mean(np.cumsum(expected) / np.arange(1, len(expected) + 1))
    assert metric(metrics, "aurc", "temperature")["value"] == pytest.approx(area, abs=1e-9)


def test_another_store_lends_its_clusters_and_refuses_other_settings(tmp_path: Path) -> None:
    first = planted_store(tmp_path / "first")
    lender = first.job(plan_of())
    through(first, lender)
    second = planted_store(tmp_path / "second", planted(0, 50, seed=4))
    source = StorePaths(tmp_path / "first")
    borrowed = second.job(plan_of(), source)
    assert borrowed.file == lender.file
    through(second, borrowed)
    rows = rows_of(second, "reliability")
    assert {row["cluster"] for row in rows if row["label"] == LABELS[0]} == {0, 1}
    assert all(row["adjusted"] == row["truth"] for row in rows if row["label"] != LABELS[2])
    with pytest.raises(ConfigError, match="has no reliability of these settings for grad_cam maps"):
        second.job(plan_of(pooled=True), source)
    with pytest.raises(ConfigError, match="has no reliability"):
        second.job(plan_of(threshold=0.5), source)


def test_maps_of_another_network_are_refused(tmp_path: Path) -> None:
    store = planted_store(tmp_path)
    job = store.job(plan_of())
    ReliabilityFitter([job]).run(0)
    (fitted,) = [item for label, item in from_bytes(job.file.read_bytes()).items() if label == LABELS[0]]
    with pytest.raises(ConfigError, match=r"fitted on other maps than these .network"):
        fitted.assign(np.zeros((1, 6, 6)), {**job.maps_of, "network": "another"})
    with pytest.raises(ConfigError, match='method "grad_cam", not "lime"'):
        fitted.assign(np.zeros((1, 6, 6)), {**job.maps_of, "method": "lime"})


def test_too_few_patches_are_refused_before_anything_runs_with_their_number(tmp_path: Path) -> None:
    store = planted_store(tmp_path, planted(39, 10), flagged=[0], unlabelled=[1])
    with pytest.raises(ConfigError, match="40 in all, found 37"):
        check_samples(store.branch.inputs, store.validation, plan_of())
    check_samples(store.branch.inputs, store.validation, plan_of(pooled=True))
    assert POOLED == ""


def test_a_fit_that_is_repeated_has_the_same_bytes(tmp_path: Path) -> None:
    store = planted_store(tmp_path)
    job = store.job(plan_of())
    ReliabilityFitter([job]).run(0)
    before = job.file.read_bytes()
    ReliabilityFitter([job]).run(0)
    assert job.file.read_bytes() == before
