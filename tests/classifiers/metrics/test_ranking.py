"""Both ways to average precision, against scikit-learn on patches weighted as they were drawn."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score

from classifiers.metrics.ranking import Ranking


@pytest.mark.parametrize("decimals", [1, 2, 9])
@pytest.mark.parametrize("labels", [1, 3])
def test_both_ways_equal_scikit_learn_under_weights(decimals: int, labels: int) -> None:
    """From nearly all tied to no ties; more thresholds than a block holds."""
    rng = np.random.default_rng(decimals)
    n, n_clusters = 900, 6
    truth = rng.random((n, labels)) < 0.4
    scores = np.round(0.3 * truth + rng.random((n, labels)), decimals).astype(np.float32)
    clusters = rng.integers(-1, n_clusters, n)  # -1: left out
    counts = np.stack([np.bincount(rng.integers(0, n_clusters, 6), minlength=n_clusters) for _ in range(9)])
    counts[4] = 0
    ranking = Ranking.of(scores, truth).by_cluster(clusters)
    kept = clusters >= 0
    expected = [
        average_precision_score(
            truth[kept].ravel(), scores[kept].ravel(), sample_weight=np.repeat(weights[clusters[kept]], labels)
        )
        if weights.any()
        else np.nan
        for weights in counts
    ]
    weights = counts.astype(np.float64)
    for found in (ranking.one_by_one(weights), ranking.by_matrix_product(weights), ranking.average_precision(weights)):
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert decimals < 9 or len(ranking.ends) > 256


def test_without_a_positive_there_is_nothing_to_average() -> None:
    ranking = Ranking.of(np.array([0.5, 0.1]), np.zeros(2, np.bool_)).by_cluster(np.array([0, 1]))
    assert np.isnan(ranking.average_precision(np.ones((3, 2)))).all()


@pytest.mark.parametrize("way", ["one_by_one", "by_matrix_product"])
@pytest.mark.parametrize("heavy", [2.0**24 + 2, 2.0**30])
def test_heavy_weights_stay_exact(way: str, heavy: float) -> None:
    """Weights are multiplicities; a huge one must neither wrap round nor be rounded to float32."""
    scores, truth = np.array([0.9, 0.8, 0.7]), np.array([False, True, True])
    ranking = Ranking.of(scores, truth).by_cluster(np.array([0, 1, 1]))
    light = heavy + 1
    by_hand = (heavy * heavy / (light + heavy) + heavy * 2 * heavy / (light + 2 * heavy)) / (2 * heavy)
    found = getattr(ranking, way)(np.array([[light, heavy]]))
    np.testing.assert_allclose(found, [by_hand], rtol=0, atol=1e-15)
