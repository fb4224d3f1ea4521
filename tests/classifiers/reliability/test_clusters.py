"""Oracles: scikit-learn's own steps one after the other, votes counted one by one, maps whose pattern is known."""

import tracemalloc
from collections import Counter

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import SpectralClustering
from sklearn.decomposition import PCA
from sklearn.manifold import spectral_embedding
from sklearn.metrics import adjusted_rand_score, pairwise_distances
from sklearn.neighbors import KNeighborsClassifier

from classifiers.reliability import ClusterSettings, MapClusters, check_enough, choose_landmarks, fit_clusters
from classifiers.reliability.clusters import blocks, reduced_maps, reduced_size, vectors_of
from infra.errors import ConfigError, ShapeError
from tests.classifiers.reliability.map_patterns import spots, varied


def scaled(maps: NDArray[np.float32]) -> NDArray[np.float64]:
    """Maps shifted and scaled to [0, 1], one by one, in double precision."""
    rows = []
    for values in maps.astype(np.float64):
        span = values.max() - values.min()
        rows.append(((values - values.min()) / span if span else values * 0).ravel())
    return np.array(rows)


def similarities_of(points: NDArray[np.float64], how: ClusterSettings) -> NDArray[np.float64]:
    distances = pairwise_distances(points)
    distances /= np.median(distances[distances > 1e-5])  # but for the maps' own, and those of equal maps
    return np.asarray(np.exp(-(distances**2) / (2 * how.kernel_scale**2)))


def by_scikit_learn(
    maps: NDArray[np.float32], new: NDArray[np.float32], how: ClusterSettings
) -> tuple[list[int], list[int], list[bool]]:
    """Clusters of maps and of new ones, and whether the vote on each new one is a tie, step by step."""
    pca = PCA(min(how.components, maps[0].size, len(maps) - 1), random_state=how.seed).fit(scaled(maps))
    points = pca.transform(scaled(maps))
    similarities = similarities_of(points, how)
    spectral = SpectralClustering(how.clusters, affinity="precomputed", random_state=how.seed)
    found = spectral.fit_predict(similarities)
    classifier = KNeighborsClassifier(how.neighbours).fit(points, found)
    at = pca.transform(scaled(new))
    votes = np.sort(found[classifier.kneighbors(at, return_distance=False)], axis=1)
    counts = [sorted(Counter(row.tolist()).values()) for row in votes]
    tied = [len(row) > 1 and row[-1] == row[-2] for row in counts]
    return found.tolist(), classifier.predict(at).tolist(), tied


@pytest.mark.parametrize(("q", "components", "seed"), [(4, 50, 0), (8, 50, 1), (8, 10, 2)])
def test_equal_scikit_learn_step_by_step(q: int, components: int, seed: int) -> None:
    rng = np.random.default_rng(seed)
    maps, new, how = varied(240, rng), varied(500, rng), ClusterSettings(q, components, seed=seed)
    expected, expected_new, tied = by_scikit_learn(maps, new, how)
    clusters = fit_clusters(maps, how)
    found, found_new = clusters.of_landmarks, clusters.assign(new)
    name = dict(zip(expected, found.tolist(), strict=True))
    assert len(name) == q
    assert [name[i] for i in expected] == found.tolist()
    same = np.array([name[i] for i in expected_new]) == found_new
    assert same[~np.array(tied)].all()
    assert same.mean() > 0.9  # of equal votes, scikit-learn takes the lowest number, we the nearest landmark


@pytest.mark.parametrize("seed", range(4))
def test_equal_scikit_learn_where_maps_are_repeated(seed: int) -> None:
    """Which has a row for each of them; here equal ones are one row with a weight.

    K-means starts and may end elsewhere: in scikit-learn's eigenvectors, our clusters are as tight as its own.
    """
    rng = np.random.default_rng(seed)
    maps = np.repeat(varied(150, rng), rng.choice([1, 1, 2, 5, 12], 150), axis=0)
    how = ClusterSettings(6, seed=seed)
    similarities = similarities_of(PCA(50, random_state=seed).fit_transform(scaled(maps)), how)
    embedded = spectral_embedding(similarities, n_components=6, drop_first=False)

    def spread(labels: ArrayLike) -> float:
        groups = [embedded[np.asarray(labels) == i] for i in range(6)]
        return sum(float(((group - group.mean(axis=0)) ** 2).sum()) for group in groups)

    expected, found = by_scikit_learn(maps, maps[:1], how)[0], fit_clusters(maps, how).of_landmarks
    assert adjusted_rand_score(expected, found) > 0.95
    assert spread(found) == pytest.approx(spread(expected), rel=1e-3)


@given(st.integers(0, 1 << 16), st.integers(1, 7), st.integers(2, 5))
@settings(deadline=None, max_examples=30)
def test_votes_are_counted_one_by_one(seed: int, neighbours: int, q: int) -> None:
    rng = np.random.default_rng(seed)
    landmarks = rng.random((30, 16), dtype=np.float32)
    of_landmarks = rng.integers(0, q, 30).astype(np.int32)
    components, mean = np.eye(16, dtype=np.float32), rng.random(16, dtype=np.float32)
    maps = rng.random((20, 4, 4), dtype=np.float32)
    found = MapClusters((4, 4), mean, components, landmarks, of_landmarks, neighbours).assign(maps)
    for values, cluster in zip(scaled(maps), found.tolist(), strict=True):
        order = np.argsort([np.linalg.norm(values - mean - landmark) for landmark in landmarks])[:neighbours]
        votes = [int(of_landmarks[i]) for i in order]
        most = max(votes.count(vote) for vote in votes)
        assert cluster == next(vote for vote in votes if votes.count(vote) == most)


def test_more_neighbours_than_landmarks_are_all_of_them() -> None:
    of_landmarks = np.array([0, 1, 1], np.int32)
    eye = np.eye(16, dtype=np.float32)
    clusters = MapClusters((4, 4), np.zeros(16, np.float32), eye, eye[:3], of_landmarks, 1000)
    assert clusters.assign(eye[:3].reshape(3, 4, 4)).tolist() == [1, 1, 1]


def test_patterns_are_clusters_the_largest_first() -> None:
    rng = np.random.default_rng(0)
    maps = np.concatenate([spots(50, 1, 1, rng), spots(100, 6, 6, rng), spots(30, 1, 6, rng)])
    clusters = fit_clusters(maps, ClusterSettings(3))
    assert clusters.of_landmarks.tolist() == [1] * 50 + [0] * 100 + [2] * 30
    assert clusters.assign(np.concatenate([spots(9, 1, 6, rng), spots(9, 6, 6, rng)])).tolist() == [2] * 9 + [0] * 9


def test_a_map_counts_for_its_pattern_whatever_its_unit() -> None:
    """Powers of two change no digit, so clusters and votes are the same ones."""
    rng = np.random.default_rng(1)
    maps, new = varied(200, rng), varied(50, rng)
    plain = fit_clusters(maps).assign(new)
    assert len(np.unique(plain)) > 3
    for factor in (2.0**-90, 2.0**120):
        other = np.float32(factor)
        assert np.array_equal(fit_clusters(maps * other).assign(new * other), plain)
    assert np.array_equal(fit_clusters(maps.astype(np.float64) * 2.0**900).assign(new.astype(np.float64)), plain)


@pytest.mark.parametrize("n_zeros", [140, 900])
def test_hundreds_of_maps_that_are_0_are_one_cluster(n_zeros: int) -> None:
    rng = np.random.default_rng(2)
    maps = np.concatenate([np.zeros((n_zeros, 8, 8), np.float32), spots(60, 1, 1, rng), spots(40, 6, 6, rng)])
    clusters = fit_clusters(maps, ClusterSettings(3))
    assert clusters.of_landmarks.tolist() == [0] * n_zeros + [1] * 60 + [2] * 40
    of_eight = fit_clusters(maps)  # more clusters than patterns: those of equal maps are not split
    assert set(of_eight.of_landmarks[:n_zeros].tolist()) == {0}
    constant = np.concatenate([np.zeros((3, 8, 8)), np.full((3, 8, 8), -2.5), np.full((3, 8, 8), 1e30)])
    assert set(of_eight.assign(constant).tolist()) == {0}


@pytest.mark.parametrize("rounding", [0.0, 1e-7])
@pytest.mark.parametrize("different", [2, 3, 8, 9])
def test_of_few_different_maps_each_is_a_cluster(different: int, rounding: float) -> None:
    rng = np.random.default_rng(different)
    one_each = rng.random((different, 8, 8), dtype=np.float32)
    which = rng.permutation(np.arange(400) % different)
    maps = one_each[which] * (1 + rounding * rng.standard_normal((400, 8, 8)).astype(np.float32))
    found = fit_clusters(maps).of_landmarks
    together = {(i, c) for i, c in zip(which.tolist(), found.tolist(), strict=True)}
    assert len(together) == different  # equal maps, one cluster
    assert len(set(found.tolist())) == min(different, 8)


@pytest.mark.parametrize("seed", [98, 192, 276, 300, 876, *range(5)])
def test_maps_that_are_nearly_equal_upset_nothing(seed: int) -> None:
    """Scikit-learn's spectral clustering does not converge on some of these, its k-means finds too few on others."""
    rng = np.random.default_rng(seed)
    kinds, alike, difference = rng.integers(1, 5), rng.integers(1, 5), 10 ** rng.uniform(-5.7, -2)
    one_each = np.repeat(rng.random((kinds, 6, 6)), alike, axis=0)
    one_each = one_each + difference * rng.random(one_each.shape)
    sizes = rng.choice([1, 1, 2, 20, 200], len(one_each))
    sizes[0] += max(0, 160 - sizes.sum())
    found = fit_clusters(np.repeat(one_each, sizes, axis=0)).of_landmarks
    of_each = np.split(found, np.cumsum(sizes)[:-1])
    assert all(len(set(part.tolist())) == 1 for part in of_each)
    of_kinds = [{part[0] for part in of_each[i * alike : (i + 1) * alike]} for i in range(kinds)]
    assert len(set.union(*of_kinds)) == sum(len(names) for names in of_kinds)  # no two kinds share one


@pytest.mark.parametrize("noise", [0.01, 0.05, 0.1, 0.2])
def test_maps_far_from_all_others_join_the_nearest_and_leave_the_rest_alone(noise: float) -> None:
    """Their eigenvectors would be rounding over next to nothing: a cluster of one map, and one of all the rest."""
    rng = np.random.default_rng(3)
    a, b = spots(100, 1, 1, rng, noise=noise), spots(60, 6, 6, rng, noise=noise)
    far = np.concatenate([spots(1, 1, 1, rng, noise=0.5), spots(2, 6, 6, rng, noise=0.5), spots(1, 3, 2, rng)])
    maps = np.concatenate([a, far, b])
    assert fit_clusters(maps, ClusterSettings(2)).of_landmarks.tolist() == [0] * 100 + [0, 1, 1, 0] + [1] * 60
    if noise > 0.05:
        assert sorted(Counter(by_scikit_learn(maps, maps[:5], ClusterSettings(2))[0]).values()) == [1, 163]


def test_maps_that_are_not_finite_have_no_cluster() -> None:
    rng = np.random.default_rng(4)
    clusters = fit_clusters(varied(200, rng))
    maps = varied(12, rng)
    expected = clusters.assign(maps)
    maps[2, 0, 0], maps[5, 3, 3], maps[7], maps[9, 7, 7] = np.nan, np.inf, np.nan, -np.inf
    expected[[2, 5, 7, 9]] = -1
    assert np.array_equal(clusters.assign(maps), expected)
    assert clusters.assign(maps[7:8]).tolist() == [-1]
    assert clusters.assign(maps[:0]).shape == (0,)


def test_clusters_do_not_depend_on_what_is_assigned_together(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(5)
    clusters, maps = fit_clusters(varied(200, rng)), varied(150, rng)
    maps[70] = np.nan
    whole = clusters.assign(maps)
    assert np.array_equal(np.concatenate([clusters.assign(values[None]) for values in maps]), whole)
    monkeypatch.setattr("classifiers.reliability.clusters._VALUES_AT_ONCE", 64 * 7)
    assert [rows.stop - rows.start for rows in blocks(maps)] == [7] * 22
    assert np.array_equal(clusters.assign(maps), whole)


def test_blocks_hold_every_row_once_and_few_large_maps() -> None:
    maps = np.broadcast_to(np.float32(0), (5000, 120, 120))
    rows = list(blocks(maps))
    assert np.array_equal(np.concatenate([np.arange(5000)[part] for part in rows]), np.arange(5000))
    assert max(maps[part].nbytes for part in rows) <= 1 << 25
    assert [maps[part].shape[0] for part in blocks(np.broadcast_to(np.float32(0), (2, 9000, 9000)))] == [1, 1]


def test_equal_maps_and_seeds_give_equal_clusters() -> None:
    maps = varied(300, np.random.default_rng(6))
    first, again, other = (fit_clusters(maps, ClusterSettings(seed=seed)) for seed in (0, 0, 1))
    assert np.array_equal(first.landmarks, again.landmarks)
    assert np.array_equal(first.of_landmarks, again.of_landmarks)
    assert adjusted_rand_score(first.of_landmarks, other.of_landmarks) > 0.5


def test_a_half_precision_map_has_the_cluster_of_the_single_precision_one() -> None:
    rng = np.random.default_rng(7)
    clusters, maps = fit_clusters(varied(300, rng)), varied(500, rng)
    same = clusters.assign(maps.astype(np.float16)) == clusters.assign(maps)
    assert same.mean() > 0.98  # but for those between two clusters


def test_vectors_by_hand() -> None:
    maps = [[[1, 3], [2, 1]], [[-4, 0], [0, 4]], [[7, 7], [7, 7]]]
    expected = [[0, 1, 0.5, 0], [0, 0.5, 0.5, 1], [0, 0, 0, 0]]
    for kind in (np.float16, np.float32, np.float64, np.int64, np.int8):
        found = vectors_of(np.array(maps, kind))
        assert found.dtype == np.float32
        assert found.tolist() == expected
    assert vectors_of(np.empty((0, 4, 4))).shape == (0, 16)


@pytest.mark.parametrize("kind", [np.float32, np.float64])
def test_vectors_of_the_largest_and_smallest_numbers(kind: type[np.floating]) -> None:
    """Ranges beyond the largest number, and those of which only the last bits are left."""
    most, least = np.finfo(kind).max, np.finfo(kind).smallest_subnormal
    maps = np.array([[[-most, most], [0, most / 2]], [[0, 8 * least], [2 * least, 4 * least]]], kind)
    assert vectors_of(maps).tolist() == [[0, 1, 0.5, 0.75], [0, 1, 0.25, 0.5]]


def test_large_maps_are_reduced_to_means_over_areas() -> None:
    """128 x 192 pixels to 64 x 64: means of 2 x 3; of 96, each is 1.5, one and a half of the next."""
    maps = np.random.default_rng(11).random((5, 128, 192), dtype=np.float32)
    by_hand = maps.reshape(5, 64, 2, 64, 3).mean(axis=(2, 4))
    found = reduced_maps(maps)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, by_hand, rtol=0, atol=1e-6)
    ramp = np.tile(np.arange(96.0), (20, 1))[None]
    expected = np.tile(np.array([[3 * i + (2 / 3) * 0.5, 3 * i + 5 / 3] for i in range(32)]).ravel(), (20, 1))
    np.testing.assert_allclose(reduced_maps(ramp)[0], expected, rtol=0, atol=1e-9)
    for size in ((64, 64), (15, 15), (4, 60)):
        small = maps[:, : size[0], : size[1]]
        assert reduced_maps(small) is small
    assert [reduced_size(*size) for size in ((600, 480), (64, 65), (15, 120))] == [(64, 64), (64, 64), (15, 64)]


@pytest.mark.parametrize("size", [65, 100, 120, 128, 480])
def test_a_map_is_reduced_the_same_whatever_others_it_comes_with(size: int) -> None:
    maps = np.random.default_rng(size).random((9, size, size), dtype=np.float32)
    maps[4, size // 2, 7] = np.nan
    whole = reduced_maps(maps)
    assert np.isfinite(whole).all(axis=(1, 2)).tolist() == [i != 4 for i in range(9)]
    for step in (1, 2, 4, 5):
        parts = [reduced_maps(maps[i : i + step]) for i in range(0, 9, step)]
        assert np.array_equal(np.concatenate(parts), whole, equal_nan=True)


def test_clusters_of_large_maps_are_those_of_their_reduced_ones() -> None:
    rng = np.random.default_rng(12)
    small = np.concatenate([spots(120, 1, 1, rng), spots(80, 6, 6, rng)])
    large = small.repeat(16, axis=1).repeat(16, axis=2)  # 8 pixels to 128, of which two each are one of 64
    clusters, of_reduced = fit_clusters(large), fit_clusters(reduced_maps(large))
    assert clusters.size == (64, 64)
    assert np.array_equal(clusters.of_landmarks, of_reduced.of_landmarks)
    assert np.array_equal(clusters.assign(large), of_reduced.assign(reduced_maps(large)))
    with pytest.raises(ShapeError, match=r"maps \(N, 64, 64\), got \(2, 63, 128\)"):
        clusters.assign(np.zeros((2, 63, 128)))


def test_maps_of_large_images_take_no_memory_of_their_size() -> None:
    """400 maps of 480 x 480 pixels are 369 MB; here they are windows of one stripe, which takes none."""
    rng = np.random.default_rng(13)
    stripe = rng.random((480 + 400) * 480, dtype=np.float32)
    maps = np.lib.stride_tricks.as_strided(stripe, (400, 480, 480), (480 * 4, 480 * 4, 4), writeable=False)
    tracemalloc.start()
    found = fit_clusters(maps).assign(maps)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert len(np.unique(found)) > 1
    assert peak < 150e6


def test_the_input_is_left_as_it_was() -> None:
    maps = varied(200, np.random.default_rng(8))
    before = maps.copy()
    fit_clusters(maps).assign(maps)
    assert np.array_equal(maps, before)


@given(st.lists(st.integers(0, 3), min_size=1, max_size=300), st.integers(1, 200), st.integers(0, 99))
@settings(deadline=None)
def test_landmarks_hold_strata_in_proportion(strata: list[int], count: int, seed: int) -> None:
    chosen = choose_landmarks(strata, count, seed)
    n = len(strata)
    assert np.array_equal(chosen, np.unique(chosen))  # sorted, each once
    assert len(chosen) == min(count, n)
    assert np.array_equal(chosen, choose_landmarks(strata, count, seed))
    for stratum in set(strata):
        share = strata.count(stratum) / n * len(chosen)
        assert abs(sum(strata[i] == stratum for i in chosen) - share) <= 1


def test_landmarks_of_a_stratum_are_drawn_evenly() -> None:
    """Of 2000 seeds, each of 40 samples is among the 10 of its stratum in a quarter: 500, deviation 19."""
    strata = np.repeat([0, 1], 20)
    times = np.zeros(40)
    for seed in range(2000):
        times[choose_landmarks(strata, 10, seed)] += 1
    assert np.abs(times - 500).max() < 5 * 19.4


def test_refusals_tell_the_numbers() -> None:
    rng = np.random.default_rng(9)
    with pytest.raises(ConfigError, match=r"at least 16 pixels, these have 15"):
        fit_clusters(rng.random((200, 3, 5)))
    with pytest.raises(ConfigError, match=r"20 validation samples for each of 8 clusters, 160 in all, found 159: ask "):
        fit_clusters(rng.random((159, 4, 4)))
    with pytest.raises(ConfigError, match=r"found 79: ask for at most 3 clusters, or label more"):
        fit_clusters(rng.random((79, 4, 4)))
    with pytest.raises(ConfigError, match=r"found 39: label more validation patches"):
        fit_clusters(rng.random((39, 4, 4)))
    with pytest.raises(ConfigError, match="all 160 maps are alike"):
        fit_clusters(np.full((160, 4, 4), 3.0))
    with pytest.raises(ConfigError, match="all 200 maps are alike"):
        fit_clusters(np.tile(rng.random((1, 40, 40)), (200, 1, 1)))
    with pytest.raises(ConfigError, match="all 160 maps are alike"):
        fit_clusters(rng.random((4, 4)) * (1 + 1e-7 * rng.standard_normal((160, 4, 4))))
    with pytest.raises(ConfigError, match="finite maps"):
        fit_clusters(np.where(np.arange(16).reshape(4, 4) == 3, np.nan, rng.random((160, 4, 4))))
    with pytest.raises(ConfigError, match=r"kernel_scale 0\.001, 160 of 160 maps are like no other one"):
        fit_clusters(rng.random((160, 4, 4)), ClusterSettings(kernel_scale=0.001))
    with pytest.raises(ShapeError, match=r"\(M, h, w\), got \(160, 16\)"):
        fit_clusters(rng.random((160, 16)))
    clusters = fit_clusters(rng.random((160, 4, 4)))
    for shape in ((2, 4, 5), (4, 4), (2, 16)):
        with pytest.raises(ShapeError, match=r"maps \(N, 4, 4\)"):
            clusters.assign(np.zeros(shape))


@pytest.mark.parametrize(
    ("n", "poolable", "advice"),
    [
        (159, False, "ask for at most 7 clusters, or label more validation patches"),
        (159, True, "ask for at most 7 clusters, or pool the labels, or label more validation patches"),
        (39, True, "pool the labels, or label more validation patches"),
        (0, False, "label more validation patches"),
    ],
)
def test_advice_is_what_can_be_followed(n: int, poolable: bool, advice: str) -> None:
    with pytest.raises(ConfigError, match=f"160 in all, found {n}: {advice}$"):
        check_enough(16, n, ClusterSettings(), poolable=poolable)
    check_enough(16, 160, ClusterSettings(), poolable=poolable)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"clusters": 1}, "clusters is at least 2, got 1"),
        ({"components": 0}, "at least 1, got 0, 5"),
        ({"neighbours": 0}, "at least 1, got 50, 0"),
        ({"kernel_scale": 0.0}, "above 0, got 0.0"),
        ({"kernel_scale": float("nan")}, "above 0, got nan"),
        ({"kernel_scale": float("inf")}, "above 0, got inf"),
        ({"landmarks": 159}, "8 clusters need at least 160 landmarks, got 159"),
        ({"seed": -1}, "from 0 to 4294967295, got -1"),
        ({"seed": 1 << 32}, "from 0 to 4294967295, got 4294967296"),
    ],
)
def test_settings_refuse(wrong: dict[str, int | float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        ClusterSettings(**wrong)  # type: ignore[arg-type]  # some are floats
