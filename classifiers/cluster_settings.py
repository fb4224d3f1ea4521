"""How maps are clustered; no import of torch."""

from dataclasses import dataclass
from math import inf

from infra.errors import ConfigError

SAMPLES_PER_CLUSTER = 20
"""Validation samples for each cluster, at least; and samples that a cluster needs for a say of its own."""


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
        if not 0 < self.kernel_scale < inf:
            raise ConfigError(f"kernel_scale is a number above 0, got {self.kernel_scale}")
        if self.landmarks < SAMPLES_PER_CLUSTER * self.clusters:
            raise ConfigError(
                f"{self.clusters} clusters need at least {SAMPLES_PER_CLUSTER * self.clusters} landmarks, "
                f"got {self.landmarks}"
            )
        if not 0 <= self.seed < 1 << 32:
            raise ConfigError(f"seed is from 0 to {(1 << 32) - 1}, got {self.seed}")
