"""Oracle: scikit-learn's F1 at every threshold there is."""

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn.metrics import f1_score

from classifiers.training.thresholds import best_f1_thresholds
from infra.errors import ShapeError


def f1(probs: NDArray[np.float64], truth: NDArray[np.int64], threshold: float) -> float:
    return float(f1_score(truth, probs >= threshold, zero_division=0))


@pytest.mark.parametrize("seed", range(8))
def test_no_threshold_gives_a_higher_f1(seed: int) -> None:
    """Coarse probabilities, so that there are ties; every distinct one and what lies between is tried."""
    rng = np.random.default_rng(seed)
    probs = rng.beta(2, 4, (60, 4)).round(1 if seed % 2 else 3)
    truth = (rng.random((60, 4)) < probs**2 + 0.05).astype(np.int64)
    found = best_f1_thresholds(probs, truth)
    for label, threshold in enumerate(found):
        scores = {t: f1(probs[:, label], truth[:, label], t) for t in [*np.unique(probs[:, label]), 0.5]}
        assert f1(probs[:, label], truth[:, label], threshold) == max(scores.values())
        if scores[0.5] == max(scores.values()):
            assert threshold == 0.5
    assert (found != 0.5).any()


def test_thresholds_by_hand() -> None:
    """Half-way between the last probability predicted and the first that is not; 0.5 where nothing is better."""
    one = np.array([0.9, 0.8, 0.4, 0.3, 0.1])
    probs = np.stack([one, one, one, one], axis=1)
    truth = np.array([[1, 1, 0, 1], [1, 0, 0, 1], [1, 0, 0, 0], [0, 0, 0, 0], [0, 0, 0, 0]])
    assert best_f1_thresholds(probs, truth).tolist() == pytest.approx([0.35, 0.85, 0.5, 0.5])


def test_of_equally_good_thresholds_the_one_near_a_half_is_taken() -> None:
    """F1 is 2/3 for {0.95} and for {0.95, 0.9, 0.8, 0.2}: thresholds 0.925 and 0.19; 0.5 gives 2/5."""
    probs = np.array([[0.95], [0.9], [0.8], [0.2], [0.18]])
    truth = np.array([[1], [0], [0], [1], [0]])
    assert f1(probs[:, 0], truth[:, 0], 0.925) == f1(probs[:, 0], truth[:, 0], 0.19) == pytest.approx(2 / 3)
    assert best_f1_thresholds(probs, truth).tolist() == pytest.approx([0.19])


def test_neighbouring_floats_have_no_middle() -> None:
    high = np.float64(0.7)
    low = np.nextafter(high, 0)
    probs = np.array([[high], [low]])
    (threshold,) = best_f1_thresholds(probs, np.array([[1], [0]]))
    assert low < threshold <= high


def test_refuses() -> None:
    with pytest.raises(ShapeError, match="one shape"):
        best_f1_thresholds(np.zeros((3, 2)), np.zeros((3, 1)))
    with pytest.raises(ShapeError, match="one shape"):
        best_f1_thresholds(np.zeros((0, 2)), np.zeros((0, 2)))
