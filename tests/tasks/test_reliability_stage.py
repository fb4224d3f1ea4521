"""Reliability on planted maps: the cluster that errs is found, flipped, and accuracy rises by what is known."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from scipy.special import expit, logit

from infra.errors import ConfigError
from infra.parts import read_parts
from infra.storage import StorePaths
from infra.tables import EXPLANATIONS, read_table
from infra.zarr_store import ShardedStore
from tasks.map_store import MapWriter, create_map_store
from tasks.reliability import ReliabilityJob, check_samples
from tasks.reliability_judge import ReliabilityJudge, publish_reliability
from tasks.reliability_stage import ReliabilityAssigner, ReliabilityFitter
from tests.tasks.planted_maps import LABELS, SEED, Planted, PlantedStore, plan_of, planted, planted_store


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
    ReliabilityAssigner(job)
    with pytest.raises(ConfigError, match=r"fitted on other maps than these .network"):
        ReliabilityAssigner(replace(job, maps_of={**job.maps_of, "network": "another"}))
    with pytest.raises(ConfigError, match='method "grad_cam", not "lime"'):
        ReliabilityAssigner(replace(job, maps_of={**job.maps_of, "method": "lime"}))


def test_too_few_patches_are_refused_before_anything_runs_with_their_number(tmp_path: Path) -> None:
    store = planted_store(tmp_path, planted(39, 10), flagged=[0], unlabelled=[1])
    with pytest.raises(ConfigError, match="40 in all, found 37"):
        check_samples(store.branch.inputs, store.validation, plan_of(), 3)
    check_samples(store.branch.inputs, store.validation, plan_of(pooled=True), 3)


def test_a_fit_that_is_repeated_has_the_same_bytes(tmp_path: Path) -> None:
    store = planted_store(tmp_path)
    job = store.job(plan_of())
    ReliabilityFitter([job]).run(0)
    before = job.file.read_bytes()
    ReliabilityFitter([job]).run(0)
    assert job.file.read_bytes() == before


def of_maps(store: PlantedStore, labels: Sequence[str], columns: Sequence[int]) -> PlantedStore:
    """The store with other maps: under these names, the present ones of these columns."""
    item = store.scored.explanations["grad_cam"]
    parts = replace(item.parts, config=f"{item.parts.config}{len(labels)}")
    before, path = (store.branch.paths.maps("grad_cam", of.config) for of in (item.parts, parts))
    old = ShardedStore(before)
    size = old.array("maps").shape[2:]
    create_map_store(path, labels, (size[0], size[1]), old.shard_size, len(store.shards), {})
    for shard in store.shards:
        rows = np.flatnonzero(old.read(shard, "valid"))
        scale = old.read(shard, "scale")[rows].astype(np.float32)
        maps = old.read(shard, "maps")[rows].astype(np.float32) * scale[:, :, None, None]
        writer = MapWriter(path, shard)
        writer.add(rows, maps[:, columns])
        writer.close()
        parts.write(shard, EXPLANATIONS.empty_table())
    return replace(store, scored=replace(store.scored, explanations={"grad_cam": replace(item, parts=parts)}))


@pytest.mark.parametrize("pooled", [False, True])
def test_a_map_of_all_labels_counts_as_one_for_each(tmp_path: Path, *, pooled: bool) -> None:
    """As in a store that repeats it for every label."""
    store = planted_store(tmp_path, broken=[(2, 0), (130, 0)])
    found = []
    for labels, columns in ((("patch",), [0]), (LABELS, [0, 0, 0])):
        of_labels = of_maps(store, labels, columns)
        job = of_labels.job(plan_of(pooled=pooled))
        ReliabilityFitter([job]).run(0)
        worker = ReliabilityAssigner(job)
        for shard in store.shards:
            worker.run(shard)
        rows = read_parts(job.assignment(), store.shards).to_pylist()
        found.append((rows, {label: item.counts.tolist() for label, item in job.fitted().items()}))
    assert found[0] == found[1]
    (rows, counts) = found[0]
    assert sum(row["cluster"] is None for row in rows) == (6 if pooled else 2 + 2 + len(store.names))
    total = np.sum([np.sum(of_label) for of_label in counts.values()])
    assert total == 119 * (3 if pooled else 2)


def test_large_maps_are_clustered_as_small_ones(tmp_path: Path) -> None:
    """Reduced from 72 pixels an edge to 64, the two patterns are the same ones."""
    store = planted_store(tmp_path, enlarged=12)
    job = store.job(plan_of())
    through(store, job)
    (item,) = [item for label, item in job.fitted().items() if label == LABELS[0]]
    assert item.prototypes.shape == (2, 64, 64)
    assert job.maps_of["size"] == [72, 72]
    learnt = [row for row in rows_of(store, "reliability") if row["label"] != LABELS[2]]
    assert all(row["adjusted"] == row["truth"] for row in learnt)


def of_softmax(store: PlantedStore, labels: Sequence[str]) -> PlantedStore:
    return replace(store, scored=replace(store.scored, activation="softmax", labels=tuple(labels)))


def test_of_two_exclusive_classes_the_pair_is_swapped_where_the_predicted_map_says_so(tmp_path: Path) -> None:
    """Wrong where the predicted label's map is odd; the other label's map is odd at random, and says nothing."""
    rng = np.random.default_rng(2)
    n = 300
    first = rng.random(n) < 0.5
    truth = np.stack([first, ~first, np.zeros(n, np.bool_)], axis=1)
    wrong = rng.random(n) < 0.4
    predicted = truth ^ wrong[:, None]
    predicted[:, 2] = False
    odd = np.where(predicted, wrong[:, None], rng.random((n, 3)) < 0.1)
    case = Planted(["validation"] * 200 + ["test"] * 100, truth, predicted, odd)
    store = of_softmax(of_maps(planted_store(tmp_path, case), LABELS[:2], [0, 1]), LABELS[:2])
    job = store.job(plan_of(threshold=0.55))
    assert job.flips
    through(store, job)
    by_patch: dict[str, dict[str, bool]] = {}
    for row in rows_of(store, "reliability"):
        by_patch.setdefault(row["patch_id"], {})[row["label"]] = row["adjusted"]
    assert all(sum(classes.values()) == 1 for classes in by_patch.values())
    is_flipped = {label: item.flipped.any() for label, item in job.fitted().items()}
    assert is_flipped == dict.fromkeys(LABELS[:2], True)
    for i, name in enumerate(store.names):
        assert by_patch[name] == dict(zip(LABELS, truth[i, :2].tolist(), strict=False))


def test_of_three_exclusive_classes_none_is_flipped(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    n = 300
    truth = np.eye(3, dtype=np.bool_)[rng.integers(0, 3, n)]
    wrong = rng.random(n) < 0.4
    predicted = np.where(wrong[:, None], np.roll(truth, 1, axis=1), truth)
    odd = predicted & wrong[:, None]
    case = Planted(["validation"] * 200 + ["test"] * 100, truth, predicted, odd)
    store = of_softmax(planted_store(tmp_path, case), LABELS)
    job = store.job(plan_of())
    assert not job.flips
    through(store, job)
    assert any(item.flipped.any() for item in job.fitted().values())
    rows = rows_of(store, "reliability")
    assert all(row["adjusted"] == row["predicted"] for row in rows)
    metrics = rows_of(store, "reliability_metrics")
    assert metric(metrics, "accuracy", "adjusted", reference="predicted")["value"] == 0
    assert not any(row["flipped"] for row in rows_of(store, "reliability_clusters"))
