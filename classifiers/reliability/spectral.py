"""Spectral clustering of points of which many may be equal, and some far from all others."""

import warnings
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray
from scipy.linalg import eigh
from scipy.sparse.linalg import ArpackError, eigsh
from scipy.spatial.distance import pdist, squareform
from sklearn.cluster import KMeans
from sklearn.exceptions import ConvergenceWarning
from sklearn.utils import check_random_state

from infra.errors import ConfigError

type Floats = NDArray[np.float64]

_SMALL_MATRIX = 500
"""Rows up to which all eigenvectors take no longer than some."""

_LEAST_DEGREE = 1e-20
"""Share of all similarities that a point needs, so that eigenvectors say something of it in double precision."""


def spectral_clusters(
    points: Floats, n_clusters: int, kernel_scale: float, alike: float, seed: int
) -> NDArray[np.int32]:
    """Return the cluster of each point, as scikit-learn's `SpectralClustering` finds it where that is well-defined.

    The matrix has one row for all equal points together, which leaves the eigenvectors what they are, and takes out the
    many that tell equal points apart and on which iterations founder.

    Args:
        points: (M, P).
        n_clusters: Clusters wanted; each different point is one, where there are fewer.
        kernel_scale: Sigma of similarities exp(-d^2 / (2 sigma^2)); distances in units of their median, > 0.
        alike: Distance up to which points count as equal: they share a cluster, and the median leaves their pairs out.
        seed: Of the start of the iterations and of k-means.

    Returns:
        (M,), from 0.

    Raises:
        ConfigError: All points are equal, or most are like no other one, as `kernel_scale` is too small.

    Source: Ng, Jordan and Weiss 2001; Shi and Malik 2000 for the eigenvectors' division by the roots of the degrees.
    """
    apart = squareform(pdist(points))
    first, group, size = np.unique((apart <= alike).argmax(axis=1), return_inverse=True, return_counts=True)
    if len(first) < 2:
        raise ConfigError(f"all {len(points)} maps are alike, there is nothing to cluster: choose another method")
    unit = np.median(apart[apart > alike])
    apart = apart[np.ix_(first, first)]  # (G, G) from here on
    root = np.sqrt(size)
    similar = np.exp(-((apart / unit) ** 2) / (2 * kernel_scale**2)) * (root[:, None] * root)
    similar[np.diag_indices(len(first))] = size - 1.0  # a point is not similar to itself
    degree = similar @ root / root
    # Eigenvectors are divided by the roots of degrees: at lonely points they would be noise, however large.
    lonely = degree <= _LEAST_DEGREE * (degree @ size)
    if 2 * lonely.sum() > len(points) or lonely.sum() > len(first) - 2:
        raise ConfigError(
            f"at kernel_scale {kernel_scale}, {lonely.sum()} of {len(points)} maps are like no other one: raise it"
        )
    labels = np.empty(len(first), np.int32)
    if lonely.any():
        similar, root, degree = similar[np.ix_(~lonely, ~lonely)], root[~lonely], degree[~lonely]
    similar /= np.sqrt(degree[:, None] * degree)
    random = check_random_state(seed)
    q = min(n_clusters, len(similar))
    embedded = _leading(similar, q, random.uniform(-1, 1, len(similar))) / (root * np.sqrt(degree))[:, None]
    with warnings.catch_warnings():  # of clusters without members, where maps differ by next to nothing
        warnings.simplefilter("ignore", ConvergenceWarning)
        labels[~lonely] = KMeans(q, n_init=10, random_state=random).fit_predict(embedded, sample_weight=root**2)
    labels[lonely] = labels[~lonely][apart[np.ix_(lonely, ~lonely)].argmin(axis=1)]
    return labels[group]


def _leading(matrix: Floats, count: int, start: Floats) -> Floats:
    """Return the eigenvectors of the largest eigenvalues of a symmetric matrix, (G, G) to (G, count)."""
    n = len(matrix)
    if n > _SMALL_MATRIX:
        with suppress(ArpackError):  # of eigenvalues that are nearly equal; then all at once, which takes longer
            return np.asarray(eigsh(matrix, count, which="LA", v0=start)[1])
    return np.asarray(eigh(matrix, subset_by_index=[n - count, n - 1])[1])
