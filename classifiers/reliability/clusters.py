"""Clusters of activation maps: principal components, spectral clustering of landmarks, nearest neighbours for the rest.

A map is scaled to [0, 1] and seen as a vector. Spectral clustering costs the square of its samples, so it sees at most
some thousand of them, the landmarks; every other map takes the cluster of the majority of its nearest landmarks.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING

import numpy as np
import torch
from numpy.typing import ArrayLike, NDArray
from threadpoolctl import threadpool_limits

from classifiers.cam.grid import on_grid
from classifiers.cluster_settings import SAMPLES_PER_CLUSTER, ClusterSettings
from infra.errors import ConfigError, ShapeError

if TYPE_CHECKING:  # importing scikit-learn takes a quarter of a run's imports, and few runs cluster
    from sklearn.neighbors import NearestNeighbors

type Floats = NDArray[np.float32]

MIN_PIXELS = 16
"""Pixels that a map must have at least."""

MAX_EDGE = 64
"""Pixels of a map's edge, at most: larger maps are reduced to means over areas before anything else."""

_VALUES_AT_ONCE = 1 << 23
"""Bounds the memory of vectors: maps at once times pixels."""

_ROUNDING = 1e-6
"""Root mean square difference, in units of a map's range, up to which two maps count as equal."""


DEFAULTS = ClusterSettings()
"""The paper's own."""


@dataclass(frozen=True, eq=False)
class MapClusters:
    """Landmarks in the space of principal components, and the cluster of each."""

    size: tuple[int, int]
    """Height and width of the maps, reduced."""
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
            maps: Raw maps, (N, h, w), reduced or not; a constant one counts as 0 everywhere.

        Returns:
            (N,), from 0; -1 for a map that is not finite.

        Raises:
            ShapeError: The maps are not (N, h, w) of the size that was fitted.
        """
        values = np.asarray(maps)
        self.check_size(values)
        found = np.empty(len(values), np.int32)
        for rows in blocks(values):
            found[rows] = self.assign_vectors(vectors_of(values[rows]))
        return found

    def check_size(self, maps: NDArray[np.generic]) -> None:
        """Refuse maps of another size.

        Raises:
            ShapeError: The maps are not (N, h, w) of the size that was fitted.
        """
        if maps.ndim != 3 or reduced_size(maps.shape[1], maps.shape[2]) != self.size:
            raise ShapeError(f"the clusters are of maps (N, {self.size[0]}, {self.size[1]}), got {maps.shape}")

    def assign_vectors(self, vectors: Floats) -> NDArray[np.int32]:
        """Return the cluster of each map as `assign` does, of their `vectors_of`, (N, h * w) to (N,)."""
        found = np.full(len(vectors), -1, np.int32)
        finite = np.isfinite(vectors).all(axis=1)
        if finite.any():
            known = vectors if finite.all() else vectors[finite]
            found[finite] = self._vote(_projected(known, self.mean, self.components))
        return found

    def _vote(self, points: Floats) -> NDArray[np.int32]:
        votes = self.of_landmarks[self._index.kneighbors(points, return_distance=False)]  # (N, k), the nearest first
        n, q = len(votes), int(self.of_landmarks.max()) + 1
        first = np.arange(n)[:, None]
        count = np.bincount((votes + q * first).ravel(), minlength=n * q).reshape(n, q)
        return np.asarray(votes[first[:, 0], count[first, votes].argmax(axis=1)])

    @cached_property
    def _index(self) -> "NearestNeighbors":
        from sklearn.neighbors import NearestNeighbors

        n = min(self.neighbours, len(self.landmarks))
        return NearestNeighbors(n_neighbors=n, algorithm="brute").fit(self.landmarks)


@contextmanager
def one_thread() -> Iterator[None]:
    """Let linear algebra use one thread: more of them round otherwise, and equal samples would give unequal fits."""
    with threadpool_limits(1):
        yield


def blocks(maps: NDArray[np.generic]) -> Iterator[slice]:
    """Yield the rows of maps, (N, h, w), so many at a time that their vectors take some tens of megabytes."""
    step = max(1, _VALUES_AT_ONCE // max(1, math.prod(maps.shape[1:])))
    yield from (slice(start, start + step) for start in range(0, len(maps), step))


def reduced_size(height: int, width: int) -> tuple[int, int]:
    """Return the size that maps are reduced to: 64 pixels an edge, or as many as there are where there are fewer."""
    return min(height, MAX_EDGE), min(width, MAX_EDGE)


def reduced_maps(maps: NDArray[np.floating]) -> NDArray[np.floating]:
    """Return maps of at most 64 pixels an edge, (..., h, w), of the same dtype, float32 or float64.

    Larger ones are reduced to means over the area of each pixel, parts of pixels included: clusters of 600 x 600 pixels
    would cost gigabytes, and say no more. A map comes out the same whatever others it is reduced with; one that is not
    finite stays so, in part at least.
    """
    height, width = maps.shape[-2:]
    size = reduced_size(height, width)
    if size == (height, width):
        return maps
    return np.asarray(on_grid(torch.from_numpy(np.ascontiguousarray(maps)), size).numpy())


def vectors_of(maps: ArrayLike) -> Floats:
    """Return maps reduced, and shifted and scaled to [0, 1], as vectors, (N, h, w) to (N, pixels).

    A constant map, in which the network finds nothing, becomes 0; one that is not finite becomes NaN, in part at least.
    """
    values = np.asarray(maps)
    flat = reduced_maps(values.astype(np.result_type(values, np.float32)))
    flat = flat.reshape(len(values), math.prod(flat.shape[1:]))
    flat *= 0.5  # so that the range of the largest numbers does not overflow
    with np.errstate(invalid="ignore"):  # infinity less infinity is NaN, as it should be
        flat -= flat.min(axis=1, keepdims=True)
        span = flat.max(axis=1, keepdims=True)
        span[span == 0] = 1
        flat /= span
    return flat.astype(np.float32, copy=False)


def check_enough(n_pixels: int, n_samples: int, settings: ClusterSettings, *, poolable: bool = False) -> None:
    """Refuse maps too small, or samples too few, for clusters that mean anything.

    Args:
        n_pixels: Of a map.
        n_samples: On validation.
        settings: How maps are clustered.
        poolable: Whether the samples are of one label of several, which could be pooled.

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
        possible = n_samples // SAMPLES_PER_CLUSTER
        advice = [f"ask for at most {possible} clusters"] * (possible > 1) + ["pool the labels"] * poolable
        raise ConfigError(
            f"reliability needs {SAMPLES_PER_CLUSTER} validation samples for each of {settings.clusters} clusters, "
            f"{needed} in all, found {n_samples}: {', or '.join([*advice, 'label more validation patches'])}"
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
    """Cluster landmarks, in one thread.

    Principal components, at most `settings.components` of them; similarities exp(-d^2 / (2 sigma^2)) of distances in
    units of their median; spectral clustering. Maps that are equal but for rounding count as one where distances are
    averaged, and share a cluster; with fewer different maps than clusters wanted, each is a cluster. A landmark so far
    from all others that double precision says nothing of its place among them takes the cluster of the nearest one.

    Args:
        maps: Raw maps of the landmarks, (M, h, w), finite; larger ones than 64 x 64 are reduced. The result depends
            on their order.
        settings: How.

    Raises:
        ShapeError: The maps are not (M, h, w).
        ConfigError: The maps are too small or too few, not finite, or all alike; or `kernel_scale` is too small.

    Source: Kierdorf and Roscher 2023, arXiv:2305.15149, section 2.5; Ng, Jordan and Weiss 2001.
    """
    from sklearn.decomposition import PCA  # before its threads are limited

    from classifiers.reliability.spectral import spectral_clusters

    values = np.asarray(maps)
    if values.ndim != 3:
        raise ShapeError(f"clusters are of maps (M, h, w), got {values.shape}")
    size = reduced_size(values.shape[1], values.shape[2])
    n, pixels = len(values), math.prod(size)
    check_enough(pixels, n, settings)
    vectors = np.empty((n, pixels), np.float32)
    for rows in blocks(values):
        vectors[rows] = vectors_of(values[rows])
    if not np.isfinite(vectors).all():
        raise ConfigError("clusters are of finite maps: leave out those that are not")
    mean = vectors.mean(axis=0, dtype=np.float64).astype(np.float32)
    vectors -= mean  # before the components, which would otherwise lose digits to it
    alike = _ROUNDING * math.sqrt(pixels)
    with one_thread():
        with np.errstate(invalid="ignore"):  # shares of no variance, where all maps are alike
            pca = PCA(min(settings.components, pixels, n - 1), random_state=settings.seed).fit(vectors)
        components = pca.components_.astype(np.float32)
        landmarks = vectors @ components.T
        found = spectral_clusters(
            landmarks.astype(np.float64), settings.clusters, settings.kernel_scale, alike, settings.seed
        )
    return MapClusters(size, mean, components, landmarks, _largest_first(found), settings.neighbours)


def _projected(vectors: Floats, mean: Floats, components: Floats) -> Floats:
    """Return maps in the space of principal components, (N, h * w) to (N, P)."""
    return np.asarray((vectors - mean) @ components.T)


def _largest_first(labels: NDArray[np.int32]) -> NDArray[np.int32]:
    """Return clusters numbered by falling size, and among equals by their first member."""
    names, first, sizes = np.unique(labels, return_index=True, return_counts=True)
    rank = np.empty(names.max() + 1, np.int32)
    rank[names[np.lexsort((first, -sizes))]] = np.arange(len(names))
    return rank[labels]
