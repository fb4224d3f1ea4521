"""Maps of which the pattern is known."""

import numpy as np
from numpy.typing import NDArray

type Floats = NDArray[np.float32]


def spots(n: int, y: float, x: float, rng: np.random.Generator, size: int = 8, noise: float = 0.1) -> Floats:
    """Return maps of a bright spot at (y, x) under uniform noise, (n, size, size)."""
    rows, columns = np.mgrid[:size, :size]
    spot = np.exp(-((rows - y) ** 2 + (columns - x) ** 2) / (2 * (size / 6) ** 2))
    return np.asarray(spot + noise * rng.random((n, size, size)), np.float32)


def varied(n: int, rng: np.random.Generator, size: int = 8) -> Floats:
    """Return maps of a spot each, anywhere, (n, size, size)."""
    return np.concatenate([spots(1, y, x, rng, size) for y, x in rng.uniform(0, size - 1, (n, 2)).tolist()])
