"""Clusters of activation maps: principal components, spectral clustering of landmarks, nearest neighbours for the rest.

A map is scaled to [0, 1] and seen as a vector. Spectral clustering costs the square of its samples, so it sees at most
some thousand of them, the landmarks; every other map takes the cluster of the majority of its nearest landmarks.
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.cluster import SpectralClustering
from sklearn.decomposition import PCA
from sklearn.metrics import pairwise_distances
from sklearn.neighbors import NearestNeighbors

from infra.errors import ConfigError, ShapeError

type Floats = NDArray[np.float32]

MIN_PIXELS = 16
"""Pixels that a map must have at least."""

SAMPLES_PER_CLUSTER = 20
"""Validation samples for each cluster, at least; and samples that a cluster needs for a say of its own."""

_MAPS_AT_ONCE = 1 << 15


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """How maps are clustered; the defaults are the paper's, but for the landmarks, of which it has no need."""

    clusters: int = 8
    """q."""
    components: int = 50
    """Principal components, at most."""
    neighbours: int = 5
    """k, landmarks that vote on a map's cluster."""
    kernel_scale: float = 0.2
    """Sigma of the Gaussian similarity, in units of the median distance."""
    landmarks: int = 5000
    """M, samples of the spectral clustering, at most."""
    seed: int = 0
    """Of the choice of landmarks, of the decomposition and of the clustering."""

    def __post_init__(self) -> None:
        if self.clusters < 2:
            raise ConfigError(f"clusters is at least 2, got {self.clusters}")
        if min(self.components, self.neighbours) < 1:
            raise ConfigError(f"components and neighbours are at least 1, got {self.components}, {self.neighbours}")
        if not 0 < self.kernel_scale < np.inf:
            raise ConfigError(f"kernel_scale is a number above 0, got {self.kernel_scale}")
        if self.landmarks < SAMPLES_PER_CLUSTER * self.clusters:
            raise ConfigError(
                f"{self.clusters} clusters need at least {SAMPLES_PER_CLUSTER * self.clusters} landmarks, "
                f"got {self.landmarks}"
            )
        if self.seed < 0:
            raise ConfigError(f"seed is 0 or more, got {self.seed}")


DEFAULTS = ClusterSettings()
"""The paper's own."""


@dataclass(frozen=True)
class MapClusters:
    """Landmarks in the space of principal components, and the cluster of each."""

    size: tuple[int, int]
    """Height and width of the maps."""
    mean: Floats
    """Mean of the landmarks' vectors, (h * w,)."""
    components: Floats
    """Principal components, (P, h * w), rows of length 1."""
    landmarks: Floats
    """(M, P)."""
    of_landmarks: NDArray[np.int32]
    """Cluster of each landmark, (M,), from 0, the largest cluster first."""
    neighbours: int
    """Landmarks that vote."""

    def assign(self, maps: ArrayLike) -> NDArray[np.int32]:
        """Return the cluster of each map: that of most of its nearest landmarks, of the nearest one among equals.

        Args:
            maps: Raw maps, (N, h, w); a constant one counts as 0 everywhere.

        Returns:
            (N,), from 0; -1 for a map that is not finite.

        Raises:
            ShapeError: The maps are not (N, h, w) of the size that was fitted.
        """
        values = np.asarray(maps)
        if values.ndim != 3 or values.shape[1:] != self.size:
            raise ShapeError(f"the clusters are of maps (N, {self.size[0]}, {self.size[1]}), got {values.shape}")
        found = np.full(len(values), -1, np.int32)
        for start in range(0, len(values), _MAPS_AT_ONCE):
            rows = slice(start, start + _MAPS_AT_ONCE)
            vectors = vectors_of(values[rows])
            finite = np.isfinite(vectors).all(axis=1)
            if finite.any():
                found[rows][finite] = self._vote(vectors[finite])
        return found

    def _vote(self, vectors: Floats) -> NDArray[np.int32]:
        nearest = self._index.kneighbors((vectors - self.mean) @ self.components.T, return_distance=False)
        votes = self.of_landmarks[nearest]  # (N, k), the nearest first
        agreeing = (votes[:, :, None] == votes[:, None, :]).sum(axis=2)
        return np.take_along_axis(votes, agreeing.argmax(axis=1)[:, None], axis=1)[:, 0]

    @cached_property
    def _index(self) -> NearestNeighbors:
        n = min(self.neighbours, len(self.landmarks))
        return NearestNeighbors(n_neighbors=n, algorithm="brute").fit(self.landmarks)


def vectors_of(maps: ArrayLike) -> Floats:
    """Return maps shifted and scaled to [0, 1] as vectors, (N, h, w) to (N, h * w).

    A constant map, in which the network finds nothing, becomes 0; one that is not finite stays so.
    """
    values = np.asarray(maps, np.float32)
    flat = values.reshape(len(values), -1)
    low, high = flat.min(axis=1, keepdims=True), flat.max(axis=1, keepdims=True)
    span = high - low
    span[span == 0] = 1
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, as it should be
        return (flat - low) / span


def check_enough(n_pixels: int, n_samples: int, settings: ClusterSettings) -> None:
    """Refuse maps too small, or samples too few, for clusters that mean anything.

    Raises:
        ConfigError: Fewer than 16 pixels a map, or than 20 samples a cluster.
    """
    if n_pixels < MIN_PIXELS:
        raise ConfigError(
            f"reliability needs maps of at least {MIN_PIXELS} pixels, these have {n_pixels}: enlarge the images, or "
            "choose a method with finer maps, such as occlusion"
        )
    needed = SAMPLES_PER_CLUSTER * settings.clusters
    if n_samples < needed:
        raise ConfigError(
            f"reliability needs {SAMPLES_PER_CLUSTER} validation samples for each of {settings.clusters} clusters, "
            f"{needed} in all, found {n_samples}: ask for at most {n_samples // SAMPLES_PER_CLUSTER} clusters, or pool "
            "the labels"
        )


def choose_landmarks(strata: ArrayLike, count: int, seed: int) -> NDArray[np.intp]:
    """Return samples that hold the strata in their own proportions, sorted.

    Samples are put in order by stratum, and at random within it; evenly spaced ones of that order are taken.

    Args:
        strata: Stratum of each sample, (N,), of any sortable type.
        count: Samples wanted; all, where there are no more.
        seed: Of the order.
    """
    values = np.asarray(strata)
    n = len(values)
    if n <= count:
        return np.arange(n)
    order = np.lexsort((np.random.default_rng(seed).random(n), values))
    return np.sort(order[((np.arange(count) + 0.5) * n / count).astype(np.intp)])


def fit_clusters(maps: ArrayLike, settings: ClusterSettings = DEFAULTS) -> MapClusters:
    """Cluster landmarks.

    Principal components, at most `settings.components` of them; similarities exp(-d^2 / (2 sigma^2)) of distances in
    units of their median, equal maps left out of it; spectral clustering. Where there are fewer different maps than
    clusters wanted, each is a cluster.

    Args:
        maps: Raw maps of the landmarks, (M, h, w), finite.
        settings: How.

    Raises:
        ShapeError: The maps are not (M, h, w).
        ConfigError: The maps are too small or too few, not finite, or all alike.

    Source: Kierdorf and Roscher 2023, arXiv:2305.15149, section 2.5; Ng, Jordan and Weiss 2001.
    """
    values = np.asarray(maps)
    if values.ndim != 3:
        raise ShapeError(f"clusters are of maps (M, h, w), got {values.shape}")
    vectors = vectors_of(values)
    n, pixels = vectors.shape
    check_enough(pixels, n, settings)
    if not np.isfinite(vectors).all():
        raise ConfigError("clusters are of finite maps: leave out those that are not")
    different = len(np.unique(vectors, axis=0))
    if different < 2:
        raise ConfigError(f"all {n} maps are alike, there is nothing to cluster: choose another method")
    pca = PCA(min(settings.components, pixels, n - 1), random_state=settings.seed).fit(vectors)
    landmarks = pca.transform(vectors)
    distances = pairwise_distances(landmarks)
    distances /= np.median(distances[distances > 0])
    # Rounding to 0 would cut the graph; the smallest number does the same to the eigenvectors, and does not.
    similarities = np.maximum(np.exp(-(distances**2) / (2 * settings.kernel_scale**2)), np.finfo(np.float64).tiny)
    spectral = SpectralClustering(min(settings.clusters, different), affinity="precomputed", random_state=settings.seed)
    return MapClusters(
        (values.shape[1], values.shape[2]),
        pca.mean_.astype(np.float32),
        pca.components_.astype(np.float32),
        landmarks.astype(np.float32),
        _largest_first(spectral.fit_predict(similarities)),
        settings.neighbours,
    )


def _largest_first(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return clusters numbered by falling size, and among equals by their first member."""
    names, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    rank = np.empty(names.max() + 1, np.int32)
    rank[names[np.lexsort((first, -sizes))]] = np.arange(len(names))
    return rank[labels]
