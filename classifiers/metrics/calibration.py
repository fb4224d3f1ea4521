"""Calibration: whether a label that is given a probability of 0.8 is there in 80 % of the cases."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from infra.errors import ShapeError

BINS = 15
"""Bins of equal width from 0 to 1; a bin holds its lower end, the last one both."""

EDGES: NDArray[np.float64] = np.linspace(0.0, 1.0, BINS + 1)
"""Ends of the bins, (BINS + 1,)."""


@dataclass(frozen=True, slots=True)
class Calibration:
    """The decisions of each bin; all arrays are (BINS,)."""

    n: NDArray[np.int64]
    """Decisions, each one label of one patch."""
    prob_mean: NDArray[np.float64]
    """Mean probability; NaN for an empty bin."""
    positive_share: NDArray[np.float64]
    """Share of them where the label is true; NaN for an empty bin."""

    @property
    def ece(self) -> float:
        """Expected calibration error: |prob_mean - positive_share|, averaged over all decisions."""
        some = self.n > 0
        gaps = np.abs(self.prob_mean[some] - self.positive_share[some])
        return float(gaps @ self.n[some] / self.n.sum())


def calibration_of(probs: ArrayLike, truth: ArrayLike) -> Calibration:
    """Return the calibration of all label decisions.

    Args:
        probs: Probabilities, (N, L), N >= 1.
        truth: Multi-hot labels, (N, L).

    Raises:
        ShapeError: The two are not of one shape, or empty.

    Source: Guo et al. 2017, arXiv:1706.04599, eq. 3, of each label's probability instead of the top one's.
    """
    p, t = np.asarray(probs), np.asarray(truth, np.bool_)
    if p.shape != t.shape or not p.size:
        raise ShapeError(f"calibration needs probs and truth of one shape (N, L), got {p.shape} and {t.shape}")
    index = bin_index(p).ravel()
    n = np.bincount(index, minlength=BINS)
    prob_sum = np.bincount(index, p.ravel(), minlength=BINS)
    positives = np.bincount(index, t.ravel(), minlength=BINS)
    known = np.where(n > 0, n, np.nan)
    return Calibration(n, prob_sum / known, positives / known)


def bin_index(probs: NDArray[np.floating]) -> NDArray[np.intp]:
    """Return the bin of each probability, same shape."""
    return np.searchsorted(EDGES[1:-1], probs.astype(np.float64), side="right")


def bin_gaps(probs: NDArray[np.floating], truth: NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the sum of probability minus truth of each patch's decisions in each bin, (N, BINS).

    Args:
        probs: (N, L).
        truth: (N, L).
    """
    n = len(probs)
    place = bin_index(probs) + BINS * np.arange(n)[:, None]
    gaps = probs.astype(np.float64) - truth
    return np.bincount(place.ravel(), gaps.ravel(), minlength=n * BINS).reshape(n, BINS)
