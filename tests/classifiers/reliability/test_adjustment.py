"""Oracles: scikit-learn on decisions, and on resamples of which every row is repeated in memory."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from classifiers.reliability import Accuracies, adjustment
from infra.errors import ConfigError, ShapeError

L = 4

type Bools = NDArray[np.bool_]
type Indices = NDArray[np.intp]


def decisions(n: int, seed: int) -> tuple[Indices, Bools, Bools, Bools]:
    """Labels of uneven number, truth, and decisions before and after, each right more often than not."""
    rng = np.random.default_rng(seed)
    labels = rng.choice(L, n, p=[0.4, 0.3, 0.2, 0.1])
    truth = rng.random(n) < np.array([0.5, 0.2, 0.7, 0.4])[labels]
    return labels, truth, truth ^ (rng.random(n) < 0.3), truth ^ (rng.random(n) < 0.2)


def by_scikit_learn(labels: Indices, truth: Bools, decided: Bools) -> tuple[list[float], list[float]]:
    """Both accuracies, over everything and then of each label; NaN where the label has one class alone."""
    of_label = [(truth[labels == k], decided[labels == k]) for k in range(L)]
    accuracy = [accuracy_score(t, d) if len(t) else np.nan for t, d in of_label]
    balanced = [balanced_accuracy_score(t, d) if len(set(t.tolist())) == 2 else np.nan for t, d in of_label]
    known = [value for value in balanced if not np.isnan(value)]
    return [accuracy_score(truth, decided), *accuracy], [sum(known) / len(known) if known else np.nan, *balanced]


def assert_row(found: Accuracies, row: int, labels: Indices, truth: Bools, decided: Bools) -> None:
    accuracy, class_accuracy = by_scikit_learn(labels, truth, decided)
    np.testing.assert_allclose(found.accuracy[row], accuracy, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.class_accuracy[row], class_accuracy, rtol=0, atol=1e-12)


@pytest.mark.parametrize("seed", range(5))
def test_accuracies_are_those_of_scikit_learn(seed: int) -> None:
    labels, truth, before, after = decisions(300, seed)
    found = adjustment(labels, truth, before, after, L, n_resamples=1)
    for values, decided in ((found.before, before), (found.after, after)):
        assert values.accuracy.shape == values.class_accuracy.shape == (1, 1 + L)
        assert_row(values, 0, labels, truth, decided)


@pytest.mark.parametrize("named", [False, True])
def test_draws_are_those_of_physically_resampled_clusters(named: bool) -> None:
    """Six uneven clusters; in some resamples the rarest label has no positive, or is not there at all."""
    labels, truth, before, after = decisions(60, 7)
    rng = np.random.default_rng(8)
    which = rng.choice(6, 60, p=[0.4, 0.2, 0.2, 0.1, 0.05, 0.05])
    clusters = np.array([f"T{i}" for i in which]) if named else which
    names, draws = np.unique(clusters), np.random.default_rng(9)
    found = adjustment(labels, truth, before, after, L, clusters, n_resamples=100, seed=9)
    assert len(names) == 6
    for row in range(100):
        drawn = names[draws.integers(len(names), size=len(names))]
        rows = np.concatenate([np.flatnonzero(clusters == name) for name in drawn])
        assert_row(found.before_draws, row, labels[rows], truth[rows], before[rows])
        assert_row(found.after_draws, row, labels[rows], truth[rows], after[rows])
    for values in (found.before_draws, found.after_draws):
        assert values.accuracy.shape == values.class_accuracy.shape == (100, 1 + L)
    undefined = np.isnan(found.before_draws.class_accuracy[:, 1:]).sum(axis=1)
    assert ((undefined > 0) & (undefined < L)).any()  # or no mean would leave a label out


def test_every_decision_is_its_own_cluster_where_none_are_given() -> None:
    labels, truth, before, after = decisions(50, 1)
    found = adjustment(labels, truth, before, after, L, None, 20, 3)
    drawn = np.random.default_rng(3)
    for row in range(20):
        rows = drawn.integers(50, size=50)
        assert_row(found.before_draws, row, labels[rows], truth[rows], before[rows])
        assert_row(found.after_draws, row, labels[rows], truth[rows], after[rows])


def test_pairs_are_of_the_same_draws() -> None:
    """Of ten clusters of ten decisions one is flipped from all wrong to all right: a tenth for each time it is drawn.

    Drawn apart, before and after would differ by more than that, and without it.
    """
    rng = np.random.default_rng(2)
    clusters, labels = np.repeat(np.arange(10), 10), np.tile(np.arange(10) % L, 10)
    truth = rng.random(100) < 0.5
    before = truth ^ (rng.random(100) < 0.4)
    before[clusters == 3] = ~truth[clusters == 3]
    after = np.where(clusters == 3, truth, before)
    found = adjustment(labels, truth, before, after, L, clusters, 100, 4)
    drawn = np.random.default_rng(4).integers(10, size=(100, 10))
    rise = found.after_draws.accuracy[:, 0] - found.before_draws.accuracy[:, 0]
    np.testing.assert_allclose(rise, (drawn == 3).sum(axis=1) / 10, rtol=0, atol=1e-12)
    assert found.after.accuracy[0, 0] - found.before.accuracy[0, 0] == pytest.approx(0.1)


def test_nothing_changed_changes_nothing() -> None:
    labels, truth, before, _ = decisions(80, 3)
    found = adjustment(labels, truth, before, before, L, np.arange(80) % 9, 50, 0)
    for name in ("accuracy", "class_accuracy"):
        assert np.array_equal(getattr(found.before, name), getattr(found.after, name))
        ours, theirs = getattr(found.before_draws, name), getattr(found.after_draws, name)
        assert np.array_equal(ours, theirs, equal_nan=True)


def test_a_label_of_one_class_has_no_class_accuracy_and_no_say_in_the_mean() -> None:
    """By hand: label 0 has shares 1/2 and 2/3; label 1 no positive, label 2 no negative, label 3 no decision."""
    labels = [0, 0, 0, 0, 0, 1, 1, 2]
    truth = [1, 1, 0, 0, 0, 0, 0, 1]
    before = [1, 0, 0, 0, 1, 1, 0, 1]
    after = [1, 1, 0, 0, 1, 0, 0, 0]
    found = adjustment(labels, truth, before, after, L, n_resamples=1)
    np.testing.assert_allclose(found.before.class_accuracy, [[7 / 12, 7 / 12, np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(found.after.class_accuracy, [[5 / 6, 5 / 6, np.nan, np.nan, np.nan]])
    np.testing.assert_allclose(found.before.accuracy, [[5 / 8, 3 / 5, 1 / 2, 1, np.nan]])
    np.testing.assert_allclose(found.after.accuracy, [[6 / 8, 4 / 5, 1, 0, np.nan]])
    alone = adjustment([1, 1], [0, 0], [0, 1], [0, 0], L, n_resamples=1)
    assert np.isnan(alone.before.class_accuracy).all()
    np.testing.assert_allclose(alone.after.accuracy, [[1, np.nan, 1, np.nan, np.nan]])


def test_the_order_of_decisions_does_not_matter() -> None:
    labels, truth, before, after = decisions(120, 5)
    clusters = np.random.default_rng(6).integers(0, 8, 120)
    order = np.random.default_rng(7).permutation(120)
    found = adjustment(labels, truth, before, after, L, clusters, 30, 1)
    again = adjustment(labels[order], truth[order], before[order], after[order], L, clusters[order], 30, 1)
    for part in ("before", "after", "before_draws", "after_draws"):
        for name in ("accuracy", "class_accuracy"):
            assert np.array_equal(getattr(getattr(found, part), name), getattr(getattr(again, part), name), True)


def test_of_one_cluster_there_is_nothing_to_draw() -> None:
    labels, truth, before, after = decisions(30, 8)
    found = adjustment(labels, truth, before, after, L, ["a"] * 30, 25, 0)
    assert found.before_draws.accuracy.shape == found.after_draws.class_accuracy.shape == (0, 1 + L)
    assert_row(found.before, 0, labels, truth, before)


def test_refusals() -> None:
    right: dict[str, Any] = {"labels": [0, 1], "truth": [1, 0], "before": [1, 1], "after": [0, 0], "n_labels": 2}
    adjustment(**right, clusters=["a", "b"], n_resamples=1)
    for name, other in (
        ("labels", [0]),
        ("labels", [[0, 1]]),
        ("truth", [1]),
        ("before", [1] * 3),
        ("after", [[0, 0]]),
    ):
        with pytest.raises(ShapeError, match=r"one shape|as many decisions"):
            adjustment(**right | {name: other})
    with pytest.raises(ShapeError, match=r"\(0,\) labels need as many decisions"):
        adjustment([], [], [], [], 2)
    with pytest.raises(ShapeError, match="2 patches need as many cluster names"):
        adjustment(**right, clusters=["a", "b", "c"])
    with pytest.raises(ConfigError, match="at least one resample"):
        adjustment(**right, clusters=["a", "b"], n_resamples=0)
    for labels in ([-1, 0], [0, 2]):  # of which the counts would be another label's, or another cluster's
        with pytest.raises(ShapeError, match=f"labels are indices from 0 to 1, got {labels[0]} to {labels[1]}"):
            adjustment(**right | {"labels": labels})
