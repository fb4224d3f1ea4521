"""Oracles: every order of equal confidences in turn, rows that are repeated in memory as they are drawn."""

from itertools import pairwise, permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from classifiers.reliability import confidence, resampled_areas, risk_coverage
from infra.errors import ConfigError, ShapeError

decisions = st.lists(st.tuples(st.sampled_from([0.1, 0.5, 0.5000001, 0.9, np.inf]), st.booleans()), min_size=1)


@given(decisions.map(lambda rows: rows[:6]))
@settings(deadline=None, max_examples=60)
def test_equal_confidences_come_in_any_order(rows: list[tuple[float, bool]]) -> None:
    """The mean of the curves of all orders in which confidence falls, each made by counting."""
    curves = []
    for order in permutations(rows):
        if all(first[0] >= second[0] for first, second in pairwise(order)):
            errs = [row[1] for row in order]
            curves.append([sum(errs[:k]) / k for k in range(1, len(errs) + 1)])
    sure, wrong = zip(*rows, strict=True)
    found = risk_coverage(sure, wrong)
    np.testing.assert_allclose(found.risk, np.mean(curves, axis=0), rtol=0, atol=1e-12)
    assert found.area == pytest.approx(np.mean(curves), abs=1e-12)


def test_by_hand() -> None:
    """The two wrong ones of five come fourth and last: risks 0, 0, 0, 1/4, 2/5."""
    found = risk_coverage([0.9, 0.2, 0.8, 0.6, 0.1], [0, 1, 0, 0, 1])
    assert found.risk.tolist() == [0, 0, 0, 0.25, 0.4]
    assert found.area == pytest.approx(0.13)
    assert (found.at(1.0), found.at(0.8), found.at(0.6), found.at(0.0)) == (0.4, 0.25, 0.0, 0.0)


def test_any_order_keeps_the_error_rate_and_the_best_has_the_least_area() -> None:
    """Errors kept last have 0 before them, so the area is the mean of (k - right)+ / k; at random, it is the rate."""
    rng = np.random.default_rng(0)
    wrong = rng.random(400) < 0.3
    right = int((~wrong).sum())
    best = np.mean([max(0, k - right) / k for k in range(1, 401)])
    at_random = risk_coverage(np.zeros(400), wrong)
    assert at_random.risk == pytest.approx(wrong.mean())
    assert risk_coverage(~wrong, wrong).area == pytest.approx(best)
    for seed in range(1, 6):
        found = risk_coverage(np.random.default_rng(seed).random(400), wrong)
        assert found.risk[-1] == pytest.approx(wrong.mean())
        assert best < found.area < 1 - best


def test_what_is_decided_is_what_one_is_sure_of() -> None:
    found = confidence([[0.9, 0.9], [0.3, 0.3]], [[True, False], [True, False]])
    np.testing.assert_allclose(found, [[0.9, 0.1], [0.3, 0.7]])
    assert found.dtype == np.float64


def resampled_by_hand(
    sure: np.ndarray, wrong: np.ndarray, clusters: np.ndarray, n_resamples: int, seed: int
) -> list[float]:
    """Areas of resamples of which every row is repeated in memory."""
    names, draws = np.unique(clusters), np.random.default_rng(seed)
    areas = []
    for _ in range(n_resamples):
        drawn = names[draws.integers(len(names), size=len(names))]
        rows = np.concatenate([np.flatnonzero(clusters == name) for name in drawn])
        areas.append(risk_coverage(sure[rows], wrong[rows]).area)
    return areas


@given(st.integers(0, 1 << 16), st.integers(1, 500), st.integers(2, 9), st.booleans())
@settings(deadline=None, max_examples=40)
def test_areas_are_those_of_resampled_rows(seed: int, n: int, n_levels: int, of_strings: bool) -> None:
    rng = np.random.default_rng(seed)
    sure, wrong = rng.integers(0, n_levels, n) / 7, rng.random(n) < 0.3
    clusters = rng.integers(0, 6, n)
    named = np.array([f"T{i}" for i in clusters]) if of_strings else clusters
    expected = resampled_by_hand(sure, wrong, clusters, 20, seed) if len(np.unique(clusters)) > 1 else []
    np.testing.assert_allclose(resampled_areas(sure, wrong, named, 20, seed), expected, rtol=0, atol=1e-12)


def test_a_few_levels_of_unequal_size_are_told_apart() -> None:
    """The confidences of clusters of maps: some are of a handful of decisions among thousands."""
    rng = np.random.default_rng(1)
    level = np.repeat([0, 1, 2, 3], [4990, 3, 4, 3])
    sure, wrong = np.array([0.9, 0.5, 0.4, 0.1])[level], rng.random(5000) < np.array([0.05, 0.9, 0.1, 0.9])[level]
    clusters = rng.integers(0, 12, 5000)
    expected = resampled_by_hand(sure, wrong, clusters, 30, 7)
    np.testing.assert_allclose(resampled_areas(sure, wrong, clusters, 30, 7), expected, rtol=0, atol=1e-12)


def test_many_levels_are_told_apart_well_enough() -> None:
    """Steps of 1/512 move an area by a hundredth of what it varies between resamples."""
    rng = np.random.default_rng(2)
    sure = rng.random(20_000)
    wrong = rng.random(20_000) < 0.5 * (1 - sure) ** 2
    clusters = rng.integers(0, 30, 20_000)
    expected = np.array(resampled_by_hand(sure, wrong, clusters, 50, 3))
    found = resampled_areas(sure, wrong, clusters, 50, 3)
    assert np.abs(found - expected).max() < 0.02 * expected.std()
    exact = resampled_areas(np.round(sure, 2), wrong, clusters, 50, 3)
    np.testing.assert_allclose(exact, resampled_by_hand(np.round(sure, 2), wrong, clusters, 50, 3), rtol=0, atol=1e-12)


@pytest.mark.parametrize("n", [300, 200_000])
def test_every_decision_may_be_a_cluster_of_its_own(n: int) -> None:
    """200,000 of them in 512 steps would be a gigabyte and a half, were they not sparse."""
    rng = np.random.default_rng(4)
    sure = rng.random(n)
    wrong = rng.random(n) < 0.2
    found = resampled_areas(sure, wrong, None, 6, 5)
    assert np.array_equal(found, resampled_areas(sure, wrong, np.arange(n), 6, 5))
    if n <= 500:
        np.testing.assert_allclose(found, resampled_by_hand(sure, wrong, np.arange(n), 6, 5), rtol=0, atol=1e-12)
    assert abs(found.mean() - 0.2) < 10 / np.sqrt(n)


def test_pairs_are_of_the_same_draws() -> None:
    """One order is better than another in each resample by as much as it is in the rows that were drawn."""
    rng = np.random.default_rng(6)
    wrong, clusters = rng.random(400) < 0.3, rng.integers(0, 5, 400)
    good, bad = wrong * -0.5 + rng.integers(0, 9, 400), rng.integers(0, 9, 400)
    difference = resampled_areas(good, wrong, clusters, 25, 8) - resampled_areas(bad, wrong, clusters, 25, 8)
    by_hand = [
        a - b
        for a, b in zip(
            resampled_by_hand(good, wrong, clusters, 25, 8), resampled_by_hand(bad, wrong, clusters, 25, 8), strict=True
        )
    ]
    np.testing.assert_allclose(difference, by_hand, rtol=0, atol=1e-12)


def test_refusals() -> None:
    for sure, wrong in (([], []), ([0.1], [0, 1]), ([[0.1]], [[0]])):
        with pytest.raises(ShapeError, match=r"confidence and errors \(N,\)"):
            risk_coverage(sure, wrong)
    with pytest.raises(ConfigError, match="2 of 3 decisions have no confidence"):
        risk_coverage([np.nan, 0.5, np.nan], [0, 0, 1])
    with pytest.raises(ConfigError, match="1 of 3 decisions"):
        resampled_areas([np.nan, 0.5, 0.2], [0, 0, 1], [0, 1, 2])
    with pytest.raises(ShapeError, match="as many cluster names"):
        resampled_areas([0.1, 0.5], [0, 1], [0, 1, 2])
    with pytest.raises(ConfigError, match="at least one resample"):
        resampled_areas([0.1, 0.5], [0, 1], [0, 1], 0)
    assert resampled_areas([0.1, 0.5], [0, 1], ["a", "a"]).shape == (0,)
