"""Oracles: scikit-learn, hand numbers, and the metric of physically repeated patches."""

import warnings
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from sklearn import metrics as sk

from classifiers.metrics import (
    OVERALL,
    PER_LABEL,
    Interval,
    Intervals,
    Metrics,
    Sample,
    multilabel_metrics,
    per_label_metrics,
)
from infra.errors import ConfigError, ShapeError


def bootstrap(probs: ArrayLike, truth: ArrayLike, clusters: Any, n_resamples: int = 1000, seed: int = 0) -> Intervals:
    return Sample.of(probs, truth).resample(clusters, n_resamples, seed).intervals()


def resample(probs: ArrayLike, truth: ArrayLike, clusters: Any, n_resamples: int = 1000, seed: int = 0) -> Metrics:
    return Sample.of(probs, truth).resample(clusters, n_resamples, seed).draws


def close(found: ArrayLike, expected: ArrayLike, name: str = "") -> None:
    np.testing.assert_allclose(np.asarray(found), np.asarray(expected), rtol=0, atol=1e-12, err_msg=name)


def random_case(seed: int, n: int = 200, labels: int = 7) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
    """Probabilities with many ties, empty sets of both kinds, full sets, and a label without positives."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, labels)) < np.linspace(0.0, 0.6, labels)
    probs = np.round(np.clip(0.45 * truth + rng.normal(0.3, 0.3, (n, labels)), 0, 1), int(rng.integers(1, 3)))
    truth[:5], truth[5:8], probs[8:12] = False, True, 0.1
    truth[:, 0] = False
    return probs, truth


def ece_by_hand(probs: NDArray[np.float64], truth: NDArray[np.bool_], bins: int = 15) -> float:
    """|mean probability - share of positives| of each bin, weighted by its decisions."""
    edges = np.linspace(0, 1, bins + 1)
    p, t = probs.astype(np.float64).ravel(), truth.ravel()
    total = 0.0
    for b in range(bins):
        inside = (p >= edges[b]) & ((p < edges[b + 1]) if b < bins - 1 else (p <= 1))
        if inside.any():
            total += inside.sum() / p.size * abs(p[inside].mean() - t[inside].mean())
    return total


def sklearn_metrics(
    probs: NDArray[np.float64], truth: NDArray[np.bool_], decisions: NDArray[np.bool_] | None = None
) -> dict[str, float]:
    t, p = truth.astype(int), ((probs >= 0.5) if decisions is None else decisions).astype(int)
    precision, recall, f1, _ = sk.precision_recall_fscore_support(t, p, average="samples", zero_division=0)
    some = t.any(axis=0)
    oe = [not t[i, list(row).index(max(row))] for i, row in enumerate(probs) if t[i].any()]
    prevalence = t[:, some].mean()
    ap = float(sk.average_precision_score(t[:, some], probs[:, some], average="macro"))
    return {
        "acc": sk.jaccard_score(t, p, average="samples", zero_division=0),
        "hl": sk.hamming_loss(t, p),
        "oe": float(np.mean(oe)),
        "precision": precision,
        "recall": recall,
        "f1": f1,
        "f2_macro": sk.fbeta_score(t, p, beta=2, average="macro", zero_division=0),
        "f1_macro": sk.f1_score(t, p, average="macro", zero_division=0),
        "f1_micro": sk.f1_score(t, p, average="micro", zero_division=0),
        "ap_macro": ap,
        "ap_micro": sk.average_precision_score(t, probs, average="micro"),
        "coverage_error": sk.coverage_error(t, probs),
        "ranking_loss": sk.label_ranking_loss(t, probs),
        "ece": ece_by_hand(probs, truth),
        "empty_truth_share": float(np.mean(t.sum(axis=1) == 0)),
        "empty_predicted_share": float(np.mean(p.sum(axis=1) == 0)),
        "prevalence_macro": prevalence,
        "ap_macro_above_prevalence": ap - prevalence,
        "n_labels": float(some.sum()),
    }


@pytest.mark.parametrize("seed", range(6))
def test_equal_scikit_learn(seed: int) -> None:
    probs, truth = random_case(seed)
    found, expected = multilabel_metrics(probs, truth), sklearn_metrics(probs, truth)
    assert found.keys() == expected.keys() == {*OVERALL, "n_labels"}
    for name in expected:
        close(found[name], expected[name], name)


@pytest.mark.parametrize("seed", range(3))
def test_decisions_take_the_place_of_a_threshold(seed: int) -> None:
    """The one most probable label, as a softmax classifier decides: no threshold gives that."""
    probs, truth = random_case(seed)
    one = np.eye(probs.shape[1], dtype=bool)[probs.argmax(axis=1)]
    assert not any(np.array_equal(one, probs >= limit) for limit in np.unique(probs))
    found = multilabel_metrics(probs, truth, decisions=one)
    for name, value in sklearn_metrics(probs, truth, one).items():
        close(found[name], value, name)
    f1 = per_label_metrics(probs, truth, decisions=one)["f1"]
    close(f1, sk.f1_score(truth.astype(int), one.astype(int), average=None, zero_division=0))


def test_metrics_of_some_rows_are_those_of_a_sample_of_them_alone() -> None:
    probs, truth = random_case(4)
    clusters = np.random.default_rng(0).integers(0, 12, len(probs))
    rows = (clusters < 7) & (np.arange(len(probs)) % 3 > 0)
    found = Sample.of(probs, truth).resample(clusters, 40, 3, rows=rows)
    alone = Sample.of(probs[rows], truth[rows]).resample(clusters[rows], 40, 3)
    for name in OVERALL:
        close(found.values.overall[name], alone.values.overall[name], name)
        close(found.draws.overall[name], alone.draws.overall[name], name)
    for name in PER_LABEL:
        close(found.draws.per_label[name], alone.draws.per_label[name], name)
    with pytest.raises(ConfigError, match="none is chosen"):
        Sample.of(probs, truth).resample(clusters, rows=rows & False)


@settings(deadline=None, max_examples=60)
@given(st.data())
def test_equal_scikit_learn_on_tiny_cases(data: st.DataObject) -> None:
    """Few samples and few distinct scores: ties, empty sets and single rows are the rule."""
    n, labels = data.draw(st.integers(1, 6)), data.draw(st.integers(2, 4))
    cells = st.lists(st.tuples(st.sampled_from([0.0, 0.3, 0.5, 0.8]), st.booleans()), min_size=n * labels)
    drawn = data.draw(cells)[: n * labels]
    probs = np.array([p for p, _ in drawn]).reshape(n, labels)
    truth = np.array([t for _, t in drawn]).reshape(n, labels)
    found = multilabel_metrics(probs, truth)
    if not truth.any():
        assert np.isnan([found["oe"], found["ap_macro"], found["ap_micro"], found["prevalence_macro"]]).all()
        return
    for name, value in sklearn_metrics(probs, truth).items():
        close(found[name], value, name)


def test_per_label_equals_scikit_learn() -> None:
    probs, truth = random_case(3)
    t, p = truth.astype(int), (probs >= 0.5).astype(int)
    found = per_label_metrics(probs, truth)
    precision, recall, f1, support = sk.precision_recall_fscore_support(t, p, average=None, zero_division=0)
    f2 = sk.fbeta_score(t, p, beta=2, average=None, zero_division=0)
    ap = [np.nan] + [sk.average_precision_score(t[:, i], probs[:, i]) for i in range(1, 7)]
    expected = {"precision": precision, "recall": recall, "f1": f1, "f2": f2, "ap": ap, "support": support}
    for name, values in {**expected, "prevalence": t.mean(axis=0)}.items():
        close(found[name], values, name)
    assert found.keys() == set(PER_LABEL)


def test_by_hand() -> None:
    """Two patches: T = {0, 1}, P = {0}; T = {}, P = {}. AP of label 1: its positive is ranked second of two."""
    found = multilabel_metrics([[0.9, 0.2, 0.1], [0.4, 0.3, 0.1]], [[1, 1, 0], [0, 0, 0]])
    assert found["acc"] == 0.25  # 1/2 and 0, over two patches
    assert found["hl"] == 1 / 6
    assert found["oe"] == 0  # the patch without a label is left out
    assert found["precision"] == 0.5
    assert found["recall"] == 0.25
    assert found["f1"] == pytest.approx(1 / 3)
    assert found["ap_macro"] == 0.75  # 1 and 1/2; label 2 has no positive
    assert found["n_labels"] == 2
    assert found["prevalence_macro"] == 0.5
    assert found["ap_macro_above_prevalence"] == 0.25
    assert found["coverage_error"] == 1.0  # 2 and 0
    assert found["empty_truth_share"] == found["empty_predicted_share"] == 0.5
    assert found["f2_macro"] == pytest.approx(1 / 3)


def test_one_error_takes_the_first_label_on_ties() -> None:
    assert multilabel_metrics([[0.7, 0.7]], [[0, 1]])["oe"] == 1
    assert multilabel_metrics([[0.7, 0.7]], [[1, 0]])["oe"] == 0


def test_threshold_is_compared_in_the_dtype_of_probs() -> None:
    """float32(0.7) < 0.7 in float64; a patch exactly on the threshold is predicted all the same."""
    probs = np.full((1, 2), 0.7, np.float32)
    assert multilabel_metrics(probs, [[1, 1]], threshold=0.7)["recall"] == 1
    assert multilabel_metrics(probs, [[1, 1]], threshold=[0.7, 0.8])["recall"] == 0.5


def repeated_draws(
    probs: NDArray[np.float64], truth: NDArray[np.bool_], clusters: NDArray[np.int64], resamples: int, seed: int
) -> list[tuple[dict[str, float], dict[str, NDArray[np.float64]]]]:
    """The metrics of patches that are repeated in memory as often as their cluster was drawn."""
    rng, names = np.random.default_rng(seed), np.unique(clusters)
    results = []
    for _ in range(resamples):
        drawn = names[rng.integers(len(names), size=len(names))]
        times = (clusters[:, None] == drawn).sum(axis=1)
        p, t = np.repeat(probs, times, axis=0), np.repeat(truth, times, axis=0)
        results.append((multilabel_metrics(p, t), per_label_metrics(p, t)))
    return results


@pytest.mark.parametrize("n_clusters", [4, 150])
def test_weighted_metrics_equal_those_of_repeated_patches(n_clusters: int) -> None:
    probs, truth = random_case(1, n=150)
    truth[:, 1] = False
    truth[40, 1] = True  # absent from many resamples
    clusters = np.random.default_rng(5).permutation(np.arange(150) % n_clusters) * 10 + 3
    expected = repeated_draws(probs, truth, clusters, resamples=12, seed=9)
    found = resample(probs, truth, clusters, n_resamples=12, seed=9)
    for name in OVERALL:
        close(found.overall[name], [o[name] for o, _ in expected], name)
    for name in PER_LABEL:
        close(found.per_label[name], [p[name] for _, p in expected], name)
    assert np.isnan(found.per_label["ap"][:, 1]).any()
    assert np.array_equal(found.per_label["support"], [p["support"] for _, p in expected])


def test_bootstrap_gives_percentiles_of_the_draws_and_the_plain_value() -> None:
    probs, truth = random_case(2)
    clusters = np.array([f"T{i % 9:02d}" for i in range(len(probs))])
    found = bootstrap(probs, truth, clusters, n_resamples=200, seed=4)
    draws = resample(probs, truth, clusters, n_resamples=200, seed=4)
    plain = multilabel_metrics(probs, truth)
    for name in OVERALL:
        close(found.overall[name].value, plain[name], name)
        np.testing.assert_allclose(found.overall[name][1:], np.percentile(draws.overall[name], [2.5, 97.5]))
    assert found.per_label["ap"][0] == pytest.approx((np.nan, np.nan, np.nan), nan_ok=True)
    assert len(found.per_label["f1"]) == 7


def test_bootstrap_does_not_depend_on_the_order_of_patches() -> None:
    probs, truth = random_case(6)
    clusters = np.arange(len(probs)) % 11
    order = np.random.default_rng(0).permutation(len(probs))
    one = resample(probs, truth, clusters, n_resamples=50)
    other = resample(probs[order], truth[order], clusters[order], n_resamples=50)
    for name in OVERALL:
        close(one.overall[name], other.overall[name], name)


def test_bootstrap_does_not_depend_on_its_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    probs, truth = random_case(6, n=60)
    whole = resample(probs, truth, None, n_resamples=20)
    monkeypatch.setattr("classifiers.metrics.bootstrap.COUNTS_AT_ONCE", 150)  # two resamples of 60 clusters at a time
    monkeypatch.setattr("classifiers.metrics.sample._ROWS_AT_ONCE", 7)
    for name, values in resample(probs, truth, None, n_resamples=20).overall.items():
        close(values, whole.overall[name], name)


def test_interval_covers_the_spread_between_clusters() -> None:
    """Ten clusters, all right in k of them: the accuracy's interval is the binomial one of 10 draws, 7 in 10."""
    clusters = np.repeat(np.arange(10), 20)
    truth = np.ones((200, 2), bool)
    probs = np.where(clusters[:, None] < 7, 0.9, 0.1) * np.ones((1, 2))
    found = bootstrap(probs, truth, clusters, n_resamples=4000).overall["acc"]
    assert found == pytest.approx((0.7, 0.4, 0.9 + 0.1 * (found.high > 0.95)))  # quantiles of Binomial(10, 0.7) / 10


def test_one_cluster_has_no_interval() -> None:
    probs, truth = random_case(0)
    found = bootstrap(probs, truth, ["T32"] * len(probs), n_resamples=10)
    assert found.overall["f1"] == pytest.approx((multilabel_metrics(probs, truth)["f1"], np.nan, np.nan), nan_ok=True)
    assert isinstance(found.per_label["f1"][2], Interval)
    assert np.isnan(found.per_label["f1"][2].low)


def test_truth_without_any_label_warns_of_nothing() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = bootstrap(np.full((6, 3), 0.2), np.zeros((6, 3)), [0, 0, 1, 1, 2, 2], n_resamples=5)
    assert np.isnan(found.overall["ap_macro"].value)
    assert found.overall["empty_truth_share"] == (1, 1, 1)


@pytest.mark.parametrize(
    ("probs", "truth", "error"),
    [
        ([[0.1, 0.2]], [[1, 0, 1]], ShapeError),
        ([0.1], [1], ShapeError),
        (np.empty((0, 2)), np.empty((0, 2)), ShapeError),
        ([[0.1, np.nan]], [[1, 0]], ConfigError),
        ([[0.1, 0.2]], [[2, 0]], ConfigError),
    ],
)
def test_refuses(probs: object, truth: object, error: type[Exception]) -> None:
    with pytest.raises(error):
        multilabel_metrics(probs, truth)  # type: ignore[arg-type]


def test_refuses_clusters_and_thresholds_of_another_length() -> None:
    probs, truth = random_case(0, n=20)
    with pytest.raises(ShapeError, match="20 patches need as many cluster names"):
        bootstrap(probs, truth, [1, 2, 3])
    with pytest.raises(ShapeError, match="a decision for each"):
        multilabel_metrics(probs, truth, decisions=truth[:, :-1])
    with pytest.raises(ConfigError, match="decisions of 0 and 1"):
        multilabel_metrics(probs, truth, decisions=probs)
    with pytest.raises(ConfigError, match="at least one resample"):
        bootstrap(probs, truth, None, n_resamples=0)
    with pytest.raises(ShapeError, match="threshold"):
        multilabel_metrics(probs, truth, threshold=[0.5, 0.5])
