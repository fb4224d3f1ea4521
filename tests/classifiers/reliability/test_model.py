"""Oracles: sets of maps of which the pattern, and with it the error, is known; counts and means by hand."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from classifiers.metrics.bootstrap import bootstrap_means
from classifiers.reliability import (
    OUTCOMES,
    POOLED,
    ClusterSettings,
    FittedReliability,
    FittingReliability,
    MapClusters,
    Reliability,
    adjusted_decisions,
    check_outcomes,
    fit_clusters,
    outcomes,
    to_bytes,
)
from classifiers.reliability.clusters import vectors_of
from infra.errors import ConfigError, ShapeError
from tests.classifiers.reliability.fits import fit_samples, pooled_fit
from tests.classifiers.reliability.map_patterns import spots, varied

type Bools = NDArray[np.bool_]

GRAD_CAM: Mapping[str, object] = {
    "method": "grad_cam",
    "layer": "layer4",
    "network": "abc",
    "options": {"sizes": [3, 5]},
}


def two_patterns(
    right: int, wrong: int, seed: int, wrong_of_second: float = 1.0
) -> tuple[NDArray[np.float32], Bools, Bools]:
    """Maps of two patterns, shuffled, with decisions that are right for the first, and for the second mostly wrong."""
    rng = np.random.default_rng(seed)
    maps = np.concatenate([spots(right, 1, 1, rng), spots(wrong, 6, 6, rng)])
    truth = rng.random(right + wrong) < 0.4
    errs = np.arange(right + wrong) >= right + round(wrong * (1 - wrong_of_second))
    order = rng.permutation(right + wrong)
    return maps[order], (truth ^ errs)[order], truth[order]


@pytest.mark.parametrize("q", [2, 8])
def test_a_pattern_that_always_errs_is_found_and_flipped(q: int) -> None:
    """Of 4000 decisions on other samples, the 1000 on the second pattern are wrong: accuracy rises by exactly 1/4."""
    fitted = fit_samples(*two_patterns(600, 400, 0), ClusterSettings(q, seed=3))
    assert set(fitted.error_rate.tolist()) == {0.0, 1.0}
    assert fitted.n[fitted.error_rate == 1].sum() == 400
    assert np.array_equal(fitted.flipped, fitted.error_rate == 1)
    maps, decisions, truth = two_patterns(3000, 1000, 1)
    clusters = fitted.assign(maps)
    after = decisions ^ fitted.is_flipped(clusters)
    assert ((decisions == truth).mean(), (after == truth).mean()) == (0.75, 1.0)
    assert np.array_equal(fitted.error_rates(clusters), decisions != truth)


def test_counts_rates_and_prototypes_by_hand() -> None:
    """The second pattern errs in 4 of 5: flipped, the fifth is wrong, so accuracy rises by 3/5 of its share."""
    maps, decisions, truth = two_patterns(150, 100, 2, wrong_of_second=0.8)
    fitted = fit_samples(maps, decisions, truth, ClusterSettings(2))
    second = maps[:, 6, 6] > maps[:, 1, 1]
    for cluster, rows in enumerate((~second, second)):
        by_hand = [
            int((rows & ~truth & ~decisions).sum()),
            int((rows & ~truth & decisions).sum()),
            int((rows & truth & ~decisions).sum()),
            int((rows & truth & decisions).sum()),
        ]
        assert OUTCOMES == ("tn", "fp", "fn", "tp")
        assert fitted.counts[cluster].tolist() == by_hand
        mean = np.mean([(values - values.min()) / (values.max() - values.min()) for values in maps[rows]], axis=0)
        np.testing.assert_allclose(fitted.prototypes[cluster], mean, rtol=0, atol=1e-6)
    assert fitted.error_rate.tolist() == [0.0, 0.8]
    assert fitted.n.tolist() == [150, 100]
    before = (decisions == truth).mean()
    after = ((decisions ^ fitted.is_flipped(fitted.assign(maps))) == truth).mean()
    assert after - before == pytest.approx(100 / 250 * 3 / 5)


@pytest.mark.parametrize("seed", range(3))
def test_shuffled_maps_promise_nothing(seed: int) -> None:
    """Half of all decisions are wrong, whatever the map: clusters are flipped by chance, and to no avail."""
    rng = np.random.default_rng(seed)
    maps, truth = varied(3000, rng), rng.random(3000) < 0.5
    decisions = truth ^ (rng.random(3000) < 0.5)
    fitted = fit_samples(maps[:1000], decisions[:1000], truth[:1000], threshold=0.5)
    assert 0 < fitted.flipped.sum() < 8
    after = decisions[1000:] ^ fitted.is_flipped(fitted.assign(maps[1000:]))
    gain = (after == truth[1000:]).astype(float) - (decisions[1000:] == truth[1000:])
    assert (gain != 0).any()
    (mean,) = bootstrap_means(gain[:, None], rng.integers(0, 40, 2000))
    assert mean.low < 0 < mean.high
    # By the paper's threshold, nothing is flipped at all.
    usual = fit_samples(maps[:1000], decisions[:1000], truth[:1000])
    assert not usual.flipped.any()
    assert np.array_equal((decisions ^ usual.is_flipped(usual.assign(maps))), decisions)


def by_hand(counts: list[list[int]], threshold: float = 0.75) -> Reliability:
    """A fit with these counts of clusters, (q, 4)."""
    q = len(counts)
    eye = np.eye(16, dtype=np.float32)
    clusters = MapClusters((4, 4), np.zeros(16, np.float32), eye, eye[:q], np.arange(q, dtype=np.int32), 1)
    prototypes = eye[:q].reshape(q, 4, 4)
    return Reliability(clusters, np.array(counts), prototypes, threshold)


def test_flips_above_the_threshold_in_clusters_of_twenty() -> None:
    """Rates 0.75, 0.76, 16/20, 1 of 19, none; the third is 20 in all."""
    fitted = by_hand([[10, 45, 30, 15], [9, 46, 30, 15], [2, 16, 0, 2], [0, 10, 9, 0], [0, 0, 0, 0]])
    assert fitted.flipped.tolist() == [False, True, True, False, False]
    np.testing.assert_allclose(fitted.error_rate, [0.75, 0.76, 0.8, 1, np.nan])
    assert by_hand([[0, 20, 0, 0], [20, 0, 0, 0]], threshold=1.0).flipped.tolist() == [False, False]
    assert by_hand([[19, 1, 0, 0], [20, 0, 0, 0]], threshold=0.0).flipped.tolist() == [True, False]


def test_samples_without_a_cluster_have_no_rate_and_are_left_alone() -> None:
    fitted = by_hand([[0, 30, 0, 0], [30, 0, 0, 0], [0, 0, 0, 0]])
    clusters = np.array([0, 1, 2, -1, 0], np.int32)
    np.testing.assert_array_equal(fitted.error_rates(clusters), [1, 0, np.nan, np.nan, 1])
    decisions = np.array([True, True, True, True, False])
    assert (decisions ^ fitted.is_flipped(clusters)).tolist() == [False, True, True, True, True]
    assert decisions.tolist() == [True, True, True, True, False]


def test_maps_of_another_method_are_refused_by_name() -> None:
    item = by_hand([[1, 0, 0, 0], [1, 0, 0, 0]])
    fitted = FittedReliability(ClusterSettings(2), 0.75, False, GRAD_CAM, {"Pastures": item})
    # JSON knows no tuples and no order
    fitted.check_maps({**{name: GRAD_CAM[name] for name in sorted(GRAD_CAM)}, "options": {"sizes": (3, 5)}})
    with pytest.raises(ConfigError, match=r'\(layer "layer4", not "layer3"; method "grad_cam", not "lime"\)'):
        fitted.check_maps({**GRAD_CAM, "method": "lime", "layer": "layer3"})
    with pytest.raises(ConfigError, match=r'\(network "abc", not unknown\)'):
        fitted.check_maps({name: value for name, value in GRAD_CAM.items() if name != "network"})
    with pytest.raises(ConfigError, match=r"\(dtype unknown, not null\)"):
        fitted.check_maps({**GRAD_CAM, "dtype": None})
    with pytest.raises(ConfigError, match=r'\(options {"sizes": \[3, 5\]}, not {"sizes": \[5, 3\]}\)'):
        fitted.check_maps({**GRAD_CAM, "options": {"sizes": [5, 3]}})
    with pytest.raises(ShapeError, match=r"maps \(N, 4, 4\), got \(3, 8, 8\)"):
        item.assign(np.zeros((3, 8, 8)))


def test_how_a_fit_was_made_is_told_even_where_no_label_has_one() -> None:
    nothing = FittedReliability(ClusterSettings(2), 0.75, False, GRAD_CAM, {}, {"Pastures": "no decision is wrong"})
    as_it_was = {"settings": ClusterSettings(2), "threshold": 0.75, "pooled": False, "maps_of": GRAD_CAM}

    def told(**changes: Any) -> list[str]:
        return nothing.differences(**{**as_it_was, **changes})

    assert told() == []
    assert told(settings=ClusterSettings(3, seed=1)) == ["clusters 2, not 3", "seed 0, not 1"]
    assert told(threshold=0.5, pooled=True) == ["pooled false, not true", "threshold 0.75, not 0.5"]
    assert told(maps_of={**GRAD_CAM, "network": "xyz"}) == ['network "abc", not "xyz"']


def test_fits_are_of_each_label_or_of_all() -> None:
    item = by_hand([[1, 0, 0, 0], [1, 0, 0, 0]])
    of_all, of_each = (
        FittedReliability(ClusterSettings(2), 0.75, label == POOLED, GRAD_CAM, {label: item})
        for label in (POOLED, "Pastures")
    )
    assert of_all.of("Pastures") is of_all.of("Arable land") is of_each.of("Pastures") is item
    assert of_each.of("Arable land") is None
    for pooled, label in ((True, "Pastures"), (False, POOLED)):
        with pytest.raises(ConfigError, match="a fit is of all labels or of each"):
            FittedReliability(ClusterSettings(2), 0.75, pooled, GRAD_CAM, {label: item})
        with pytest.raises(ConfigError, match="a fit is of all labels or of each"):
            FittedReliability(ClusterSettings(2), 0.75, pooled, GRAD_CAM, {}, {label: "no decision is wrong"})
    with pytest.raises(ConfigError, match=r"all labels have the threshold 0\.5, got \[0\.75\]"):
        FittedReliability(ClusterSettings(2), 0.5, True, GRAD_CAM, {POOLED: item})
    with pytest.raises(ConfigError, match="threshold is an error rate from 0 to 1"):
        FittedReliability(ClusterSettings(2), 1.5, True, GRAD_CAM, {})


def noisy(n: int, seed: int) -> tuple[NDArray[np.float32], Bools, Bools]:
    """Varied maps, a fifth of the decisions wrong."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.3
    return varied(n, rng), truth ^ (rng.random(n) < 0.2), truth


def test_samples_may_be_added_in_parts() -> None:
    maps, decisions, truth = noisy(500, 4)
    maps[[3, 250, 251, 252]] = np.nan
    outcome = outcomes(decisions, truth)
    settings = ClusterSettings(landmarks=300)
    clusters = fit_clusters(maps[300:], replace(settings, clusters=4))
    whole, parts = (FittingReliability(clusters, 0.75) for _ in range(2))
    whole.add(maps, outcome)
    for start, stop in ((250, 253), (253, 500), (0, 100), (100, 100), (100, 250)):  # nothing finite, nothing at all
        parts.add(maps[start:stop], outcome[start:stop])
    assert np.array_equal(whole.result().counts, parts.result().counts)
    np.testing.assert_allclose(whole.result().prototypes, parts.result().prototypes, rtol=0, atol=1e-6)
    assert whole.result().n.sum() == 496
    found = clusters.assign(maps)
    for cluster in range(4):
        assert whole.result().counts[cluster].tolist() == np.bincount(outcome[found == cluster], minlength=4).tolist()
        mean = vectors_of(maps[found == cluster]).mean(axis=0)
        np.testing.assert_allclose(whole.result().prototypes[cluster].ravel(), mean, rtol=0, atol=1e-6)


def test_a_cluster_without_samples_has_no_prototype() -> None:
    clusters = by_hand([[1, 0, 0, 0], [1, 0, 0, 0]]).clusters
    fitting = FittingReliability(clusters, 0.75)
    fitting.add(np.eye(16)[1:2].reshape(1, 4, 4), np.array([3], np.int8))
    found = fitting.result()
    assert found.counts.tolist() == [[0, 0, 0, 0], [0, 0, 0, 1]]
    assert np.isnan(found.prototypes[0]).all()
    assert found.prototypes[1].ravel().tolist() == np.eye(16)[1].tolist()


def test_parts_that_do_not_fit_are_refused() -> None:
    fitting = FittingReliability(by_hand([[1, 0, 0, 0]] * 2).clusters, 0.75)
    with pytest.raises(ShapeError, match="2 maps need as many outcomes"):
        fitting.add(np.zeros((2, 4, 4)), np.zeros(3, np.int8))
    with pytest.raises(ShapeError, match=r"maps \(N, 4, 4\)"):
        fitting.add(np.zeros((2, 4, 5)), np.zeros(2, np.int8))


def test_landmarks_are_a_sample_and_error_rates_of_all() -> None:
    maps, decisions, truth = two_patterns(1500, 900, 5)
    fitted = fit_samples(maps, decisions, truth, ClusterSettings(2, landmarks=100))
    assert fitted.clusters.landmarks.shape == (100, 50)
    assert fitted.n.tolist() == [1500, 900]
    assert fitted.error_rate.tolist() == [0.0, 1.0]


def test_equal_samples_in_equal_order_give_equal_fits() -> None:
    maps, decisions, truth = noisy(500, 7)
    settings = ClusterSettings(landmarks=250, seed=11)
    first = to_bytes(pooled_fit(fit_samples(maps, decisions, truth, settings)))
    again = fit_samples(maps.copy(), decisions.tolist(), truth.astype(int), settings)
    assert to_bytes(pooled_fit(again)) == first
    assert to_bytes(pooled_fit(fit_samples(maps, decisions, truth, replace(settings, seed=12)))) != first


def test_equal_samples_give_equal_bytes_whatever_the_threads() -> None:
    """Of so many maps, linear algebra in two threads rounds otherwise than in one."""
    rng = np.random.default_rng(10)
    maps, truth = varied(1200, rng, size=15), rng.random(1200) < 0.4
    decisions = truth ^ (rng.random(1200) < 0.3)
    found = set()
    for threads in (1, 2):
        with threadpool_limits(threads):
            found.add(to_bytes(pooled_fit(fit_samples(maps, decisions, truth))))
    assert len(found) == 1


def test_what_decisions_turn_out_to_be() -> None:
    found = outcomes([[False, True], [False, True]], [[False, False], [True, True]])
    assert [[OUTCOMES[i] for i in row] for row in found] == [["tn", "fp"], ["fn", "tp"]]
    with pytest.raises(ShapeError, match="one shape"):
        outcomes([True], [True, False])


def test_refusals_tell_the_numbers() -> None:
    clusters = by_hand([[1, 0, 0, 0]] * 2).clusters
    with pytest.raises(ConfigError, match="none of 2 validation samples is positive"):
        check_outcomes(np.array([0, 1], np.int8))
    with pytest.raises(ConfigError, match="no decision on 3 validation samples is wrong"):
        check_outcomes(np.array([0, 3, 3], np.int8))
    check_outcomes(np.array([1, 3], np.int8))  # one that is wrong, one that is positive
    for threshold in (-0.1, 1.1, float("nan")):
        with pytest.raises(ConfigError, match="threshold is an error rate from 0 to 1"):
            FittingReliability(clusters, threshold)
        with pytest.raises(ConfigError, match="threshold is an error rate from 0 to 1"):
            by_hand([[1, 0, 0, 0]] * 2, threshold)


def test_labels_that_exclude_each_other_stay_one_a_patch() -> None:
    """By hand: flipped label by label, the first patch would have no class, and the second two."""
    decisions = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [0, 0]], np.bool_)
    in_flipped = np.array([[1, 0], [0, 1], [1, 1], [0, 0], [1, 1]], np.bool_)
    by_label = [[0, 0], [1, 1], [1, 0], [0, 1], [1, 1]]
    assert adjusted_decisions(decisions, in_flipped, "sigmoid").tolist() == np.array(by_label, np.bool_).tolist()
    swapped = [[0, 1], [1, 0], [1, 0], [0, 1], [0, 0]]
    assert adjusted_decisions(decisions, in_flipped, "softmax").tolist() == np.array(swapped, np.bool_).tolist()
    three = np.eye(3, dtype=np.bool_)
    found = adjusted_decisions(three, np.ones((3, 3), np.bool_), "softmax")
    assert np.array_equal(found, three)
    assert not np.shares_memory(found, three)


def test_samples_that_share_a_map_count_each() -> None:
    """As if every one of them had a map of its own."""
    maps, decisions, truth = noisy(120, 9)
    outcome = outcomes(np.stack([decisions, ~decisions, decisions], axis=1), np.stack([truth] * 3, axis=1))
    maps[5] = np.nan
    clusters = fit_clusters(np.delete(maps, 5, axis=0), ClusterSettings(4))
    shared, each = (FittingReliability(clusters, 0.75) for _ in range(2))
    shared.add(maps, outcome)
    each.add(np.repeat(maps, 3, axis=0), outcome.ravel())
    assert np.array_equal(shared.result().counts, each.result().counts)
    assert shared.result().n.sum() == 3 * 119
    np.testing.assert_allclose(shared.result().prototypes, each.result().prototypes, rtol=0, atol=1e-6)
