"""Oracles: scikit-learn's accuracies of rows that are repeated in memory as they are drawn."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import accuracy_score, balanced_accuracy_score

from classifiers.reliability import adjustment
from infra.errors import ShapeError

type Bools = NDArray[np.bool_]


def case(n: int, seed: int) -> tuple[Bools, Bools, Bools, NDArray[np.int64]]:
    """Truth, decisions before and after, clusters of unequal size; the third label is nowhere."""
    rng = np.random.default_rng(seed)
    truth = rng.random((n, 3)) < (0.5, 0.2, 0.0)
    before = truth ^ (rng.random((n, 3)) < 0.3)
    return truth, before, before ^ (rng.random((n, 3)) < 0.2), rng.integers(0, 7, n) ** 2


def by_sklearn(truth: Bools, decided: Bools) -> tuple[list[float], list[float]]:
    """Accuracy and class accuracy: of everything, then of each label."""
    accuracy = [accuracy_score(truth[:, i], decided[:, i]) for i in range(3)]
    balanced = [
        balanced_accuracy_score(truth[:, i], decided[:, i]) if len(set(truth[:, i])) == 2 else np.nan for i in range(3)
    ]
    overall = float(np.nanmean(balanced)) if not np.isnan(balanced).all() else np.nan
    return [accuracy_score(truth.ravel(), decided.ravel()), *accuracy], [overall, *balanced]


@pytest.mark.parametrize("of_patches", [False, True])
def test_accuracies_are_those_of_rows_repeated_as_they_are_drawn(*, of_patches: bool) -> None:
    truth, before, after, tiles = case(120, 0)
    clusters = np.arange(120) if of_patches else tiles
    found = adjustment(truth, before, after, None if of_patches else tiles, n_resamples=25, seed=3)
    draws, names = np.random.default_rng(3), np.unique(clusters)
    rows = [np.arange(120)]
    for _ in range(25):
        drawn = names[draws.integers(len(names), size=len(names))]
        rows.append(np.concatenate([np.flatnonzero(clusters == name) for name in drawn]))
    for decided, now, drawn_ones in (
        (before, found.before, found.before_draws),
        (after, found.after, found.after_draws),
    ):
        accuracy, class_accuracy = (
            np.array(values) for values in zip(*(by_sklearn(truth[of], decided[of]) for of in rows), strict=True)
        )
        np.testing.assert_allclose(np.concatenate([now.accuracy, drawn_ones.accuracy]), accuracy, atol=1e-12)
        by_class = np.concatenate([now.class_accuracy, drawn_ones.class_accuracy])
        np.testing.assert_allclose(by_class, class_accuracy, atol=1e-12)
    assert np.isnan(found.before.class_accuracy[0, 3])


def test_one_cluster_has_nothing_to_draw() -> None:
    truth, before, after, _ = case(10, 1)
    assert adjustment(truth, before, after, ["a"] * 10).after_draws.accuracy.shape == (0, 4)


def test_refusals() -> None:
    truth, before, after, tiles = case(10, 2)
    with pytest.raises(ShapeError, match=r"need decisions \(N, L\), got \(10,\)"):
        adjustment(truth[:, 0], before[:, 0], after[:, 0])
    with pytest.raises(ShapeError, match="one shape"):
        adjustment(truth, before[:9], after)
    with pytest.raises(ShapeError, match="as many cluster names"):
        adjustment(truth, before, after, tiles[:9])
    with pytest.raises(ShapeError, match="got"):
        adjustment(truth[:0], before[:0], after[:0])
