"""Fits of samples in memory, by the steps that the stage takes."""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from classifiers.reliability import (
    ClusterSettings,
    FittedReliability,
    FittingReliability,
    Reliability,
    choose_landmarks,
    fit_clusters,
    outcomes,
)
from classifiers.reliability.clusters import DEFAULTS


def fit_samples(
    maps: NDArray[np.float32],
    decisions: ArrayLike,
    truth: ArrayLike,
    settings: ClusterSettings = DEFAULTS,
    threshold: float = 0.75,
) -> Reliability:
    """The reliability of finite maps, (N, h, w)."""
    outcome = outcomes(decisions, truth)
    chosen = choose_landmarks(outcome, settings.landmarks, settings.seed)
    fitting = FittingReliability(fit_clusters(maps[chosen], settings), threshold)
    fitting.add(maps, outcome)
    return fitting.result()


def pooled_fit(
    item: Reliability, settings: ClusterSettings = DEFAULTS, maps_of: dict[str, object] | None = None
) -> FittedReliability:
    """What a file holds where all labels have one fit between them."""
    return FittedReliability(settings, item.threshold, True, {} if maps_of is None else maps_of, {"": item})
