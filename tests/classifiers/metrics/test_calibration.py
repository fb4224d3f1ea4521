import numpy as np
import pytest
from sklearn.calibration import calibration_curve

from classifiers.metrics import BINS, EDGES, calibration_of, multilabel_metrics
from infra.errors import ShapeError


def test_by_hand() -> None:
    """Bins of 1/15: 0.1 and 0.12 lie in the second, 0.9 in the fourteenth, 1 in the last."""
    found = calibration_of([[0.1, 0.12], [0.9, 1.0]], [[0, 1], [1, 1]])
    assert found.n.tolist() == [0, 2, *[0] * 11, 1, 1]
    assert found.prob_mean[[1, 13, 14]] == pytest.approx([0.11, 0.9, 1.0])
    assert found.positive_share[[1, 13, 14]].tolist() == [0.5, 1.0, 1.0]
    assert np.isnan(found.prob_mean[0])
    assert np.isnan(found.positive_share[0])
    assert found.ece == pytest.approx((2 * 0.39 + 0.1) / 4)


def test_equal_scikit_learn_and_the_metric() -> None:
    rng = np.random.default_rng(0)
    probs = rng.random((500, 4)).astype(np.float32) ** 2
    truth = rng.random((500, 4)) < probs**1.5
    found = calibration_of(probs, truth)
    share, mean = calibration_curve(truth.ravel(), probs.astype(np.float64).ravel(), n_bins=BINS)
    np.testing.assert_allclose(found.positive_share, share, rtol=0, atol=1e-12)
    np.testing.assert_allclose(found.prob_mean, mean, rtol=0, atol=1e-12)
    assert found.ece == pytest.approx(np.abs(share - mean) @ found.n / found.n.sum(), abs=1e-12)
    assert multilabel_metrics(probs, truth)["ece"] == pytest.approx(found.ece, abs=1e-12)


def test_a_lower_end_belongs_to_its_bin() -> None:
    found = calibration_of(EDGES[None], np.zeros((1, BINS + 1)))
    assert found.n.tolist() == [1] * (BINS - 1) + [2]


def test_refuses_two_shapes() -> None:
    with pytest.raises(ShapeError, match="one shape"):
        calibration_of([[0.1, 0.2]], [[1]])
