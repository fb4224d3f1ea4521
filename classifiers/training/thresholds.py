"""Decision thresholds of labels, from the validation samples."""

import numpy as np
from numpy.typing import NDArray

from infra.errors import ShapeError

HALF = 0.5
"""The threshold of a label for which there is no better one."""


def best_f1_thresholds(probs: NDArray[np.floating], truth: NDArray[np.generic]) -> NDArray[np.float64]:
    """Return the threshold of each label at which its F1 is highest; a label is predicted from its threshold on.

    A threshold lies half-way between two neighbouring probabilities, so that rounding moves no sample across it. 0.5 is
    kept where nothing is better, and for a label without a positive. Among equally good thresholds the one nearest to
    0.5 is taken, and of two as near the higher.

    Args:
        probs: (N, L), 0 to 1, N >= 1.
        truth: Multi-hot, (N, L).

    Returns:
        (L,), 0 to 1.

    Raises:
        ShapeError: The inputs are not two (N, L) arrays of one shape.
    """
    if probs.ndim != 2 or probs.shape != truth.shape or not len(probs):
        raise ShapeError(f"thresholds need probs and truth of one shape (N, L), got {probs.shape} and {truth.shape}")
    columns = zip(probs.T, truth.T.astype(np.bool_), strict=True)
    return np.array([_threshold(column, present) for column, present in columns])


def _threshold(probs: NDArray[np.floating], present: NDArray[np.bool_]) -> float:
    positives = int(present.sum())
    if not positives:
        return HALF
    order = np.argsort(-probs, kind="stable")
    ranked = probs[order].astype(np.float64)
    last = np.flatnonzero(np.append(ranked[1:] != ranked[:-1], True))  # of each group of equal probabilities
    hits = np.cumsum(present[order])[last]
    f1 = 2 * hits / (last + 1 + positives)
    predicted = probs >= HALF
    at_half = 2 * int((predicted & present).sum()) / (int(predicted.sum()) + positives)
    if at_half >= f1.max():
        return HALF
    values = ranked[last]
    below = np.append(values[1:], 0.0)
    middles = (values + below) / 2
    candidates = np.where(middles > below, middles, values)[f1 == f1.max()]  # neighbouring floats have no middle
    return float(min(candidates, key=lambda value: (abs(value - HALF), -value)))
