"""Oracles: rows that are repeated in memory as they are drawn, and what is known of random draws."""

import numpy as np
import pytest

from classifiers.metrics import Sample, bootstrap, bootstrap_means, interval_of, means_of_sums, seed_counts
from classifiers.metrics.bootstrap import cluster_counts
from infra.errors import ConfigError, ShapeError


def test_means_are_those_of_physically_resampled_clusters() -> None:
    """The draws of the bootstrap's own generator, but every resample is built and averaged row by row."""
    rng = np.random.default_rng(3)
    values = rng.normal(size=(60, 3))
    values[rng.random((60, 3)) < 0.3] = np.nan
    values[:, 2] = np.nan
    clusters = np.array([f"T{i}" for i in rng.integers(0, 7, 60)])
    names = np.unique(clusters)
    draws = np.random.default_rng(5)
    means = []
    for _ in range(300):
        chosen = names[draws.integers(len(names), size=len(names))]
        rows = np.concatenate([values[clusters == name] for name in chosen])
        means.append([np.nanmean(rows[:, k]) for k in range(2)])
    found = bootstrap_means(values, clusters, n_resamples=300, seed=5)
    for k in range(2):
        assert found[k].value == pytest.approx(np.nanmean(values[:, k]))
        np.testing.assert_allclose(found[k][1:], np.percentile(np.array(means)[:, k], [2.5, 97.5]))
    assert found[2] == pytest.approx((np.nan, np.nan, np.nan), nan_ok=True)


def test_means_resample_as_the_metrics_do() -> None:
    """The mean of a share that is 1 where all labels are right equals the sample accuracy of the same draws."""
    clusters = np.repeat(np.arange(10), 20)
    truth = np.ones((200, 2), bool)
    probs = np.where(clusters[:, None] < 7, 0.9, 0.1) * np.ones((1, 2))
    (mean,) = bootstrap_means((clusters < 7).astype(float)[:, None], clusters, n_resamples=200, seed=1)
    assert mean == pytest.approx(Sample.of(probs, truth).resample(clusters, 200, 1).intervals().overall["acc"])
    assert mean.low < mean.value < mean.high


def test_means_of_one_cluster_and_of_none() -> None:
    (mean,) = bootstrap_means([[1.0], [3.0]], ["a", "a"])
    assert mean == pytest.approx((2.0, np.nan, np.nan), nan_ok=True)
    (alone,) = bootstrap_means([[1.0], [3.0]], None, n_resamples=500)  # every patch its own: means 1, 2, 2, 3
    assert alone == (2.0, 1.0, 3.0)
    with pytest.raises(ShapeError, match="values"):
        bootstrap_means(np.empty((0, 2)), None)
    with pytest.raises(ShapeError, match="as many cluster names"):
        bootstrap_means([[1.0], [3.0]], ["a"])
    with pytest.raises(ConfigError, match="at least one resample"):
        bootstrap_means([[1.0]], None, n_resamples=0)


def test_means_of_sums_are_those_of_the_values_behind_them() -> None:
    """Of columns that every resample knows, that some do not, and that none does; a cluster may have no value."""
    rng = np.random.default_rng(4)
    clusters = np.repeat(np.arange(6), 20)
    values = rng.normal(size=(120, 3))
    values[clusters > 0, 1] = np.nan
    values[:, 2] = np.nan
    of_clusters = [values[clusters == cluster] for cluster in range(6)]
    sums, counts = (np.stack([of(rows) for rows in of_clusters]) for of in (lambda v: np.nansum(v, axis=0), known))
    found = means_of_sums(sums, counts, n_resamples=200, seed=2)
    assert found[0].low < found[0].value < found[0].high
    names = np.random.default_rng(2).integers(6, size=(200, 6))
    draws = [np.concatenate([values[clusters == i, 0] for i in drawn]).mean() for drawn in names]
    assert found[0] == pytest.approx((values[:, 0].mean(), *np.percentile(draws, [2.5, 97.5])), rel=1e-12)
    assert found[1] == pytest.approx((values[:20, 1].mean(),) * 3, rel=1e-12)
    assert found[2] == pytest.approx((np.nan,) * 3, nan_ok=True)


def known(values: np.ndarray) -> np.ndarray:
    return (~np.isnan(values)).sum(axis=0).astype(float)


def test_counts_that_are_kept_are_those_drawn_anew_and_nobody_changes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    (kept,) = cluster_counts(5, 40, seed=3)
    (again,) = cluster_counts(5, 40, seed=3)
    assert again is kept
    with pytest.raises(ValueError, match="read-only"):
        kept[0, 0] = 7
    monkeypatch.setattr(bootstrap, "COUNTS_AT_ONCE", 60)
    pieces = list(cluster_counts(5, 40, seed=3))
    assert [len(piece) for piece in pieces] == [12, 12, 12, 4]
    assert np.array_equal(np.concatenate(pieces), kept)


def test_an_interval_leaves_out_resamples_without_a_value() -> None:
    draws = np.append(np.arange(201.0), [np.nan] * 5)
    assert interval_of(100.0, draws) == (100.0, 5.0, 195.0)
    assert interval_of(np.nan, draws) == pytest.approx((np.nan,) * 3, nan_ok=True)


def test_seeds_are_drawn_with_replacement_and_alike_each_time() -> None:
    """Each resample holds as many as there are; of three, a seed is missing in (2/3)^3 of them."""
    counts = seed_counts(3, 20_000, seed=0)
    assert (counts.sum(axis=1) == 3).all()
    np.testing.assert_allclose((counts == 0).mean(axis=0), (2 / 3) ** 3, atol=0.01)
    assert np.array_equal(counts, seed_counts(3, 20_000, seed=0))
    assert np.array_equal(seed_counts(1, 5, seed=0), np.ones((5, 1)))
