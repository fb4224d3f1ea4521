"""Oracles: groups that are known, and all eigenvectors at once; scikit-learn's own clusters are in test_clusters."""

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.sparse.linalg import ArpackNoConvergence

from classifiers.reliability.spectral import spectral_clusters
from infra.errors import ConfigError

MODULE = "classifiers.reliability.spectral"


def groups(n_each: int, n_groups: int, spread: float) -> NDArray[np.float64]:
    """Points around the corners of a simplex, one group after the other."""
    rng = np.random.default_rng(0)
    return np.repeat(np.eye(n_groups), n_each, axis=0) + spread * rng.normal(size=(n_each * n_groups, n_groups))


def partition(labels: NDArray[np.int32]) -> list[int]:
    """Labels in the order in which they occur."""
    names: dict[int, int] = {}
    return [names.setdefault(label, len(names)) for label in labels.tolist()]


@pytest.mark.parametrize("spread", [1e-3, 0.05])
def test_five_groups_of_many_points(spread: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """Five eigenvalues of 1, equal but for rounding, are found by iterations, and by all at once where these fail."""
    points, known = groups(150, 5, spread), np.repeat(range(5), 150).tolist()
    assert partition(spectral_clusters(points, 5, 0.2, 1e-6, 0)) == known

    def no_convergence(*_arguments: object, **_options: object) -> None:
        raise ArpackNoConvergence("none", np.empty(0), np.empty(0))

    monkeypatch.setattr(f"{MODULE}.eigsh", no_convergence)
    assert partition(spectral_clusters(points, 5, 0.2, 1e-6, 0)) == known


def test_iterations_find_what_a_full_decomposition_finds(monkeypatch: pytest.MonkeyPatch) -> None:
    points = np.random.default_rng(1).random((700, 3)) ** 2
    by_iteration = spectral_clusters(points, 6, 0.2, 1e-6, 0)
    monkeypatch.setattr(f"{MODULE}._SMALL_MATRIX", 10_000)
    assert partition(spectral_clusters(points, 6, 0.2, 1e-6, 0)) == partition(by_iteration)
    assert np.bincount(by_iteration).min() > 5


def test_points_that_are_alike_share_a_cluster() -> None:
    rng = np.random.default_rng(2)
    which = rng.permutation(np.arange(300) % 4)
    points = rng.random((4, 5))[which] + 1e-9 * rng.random((300, 5))
    found = spectral_clusters(points, 8, 0.2, 1e-6, 0)
    assert partition(found) == partition(which.astype(np.int32))


def test_the_unit_of_distances_is_their_own() -> None:
    points = np.random.default_rng(3).random((200, 4))
    plain = spectral_clusters(points, 5, 0.2, 1e-6, 0)
    assert np.array_equal(spectral_clusters(points * 1024, 5, 0.2, 1e-6, 0), plain)


def test_refusals() -> None:
    points = np.random.default_rng(4).random((30, 4))
    with pytest.raises(ConfigError, match="all 30 maps are alike"):
        spectral_clusters(points, 3, 0.2, 10.0, 0)
    with pytest.raises(ConfigError, match=r"at kernel_scale 0\.001, 30 of 30 maps are like no other one: raise it"):
        spectral_clusters(points, 3, 0.001, 1e-6, 0)
    with pytest.raises(ConfigError, match="1 of 30 maps are like no other one"):  # 29 that are alike, and one far away
        spectral_clusters(np.eye(30)[:1] * (np.arange(30) == 7)[:, None], 2, 0.05, 1e-6, 0)
