"""Reliability scores from clusters of activation maps, and the confidences that they are compared with."""

from classifiers.cluster_settings import ClusterSettings
from classifiers.reliability.adjustment import Accuracies, Adjustment, adjustment
from classifiers.reliability.clusters import (
    MapClusters,
    check_enough,
    choose_landmarks,
    fit_clusters,
    reduced_maps,
    reduced_size,
)
from classifiers.reliability.file_format import from_bytes, to_bytes
from classifiers.reliability.model import (
    EXCLUSIVE_FLIPPED,
    OUTCOMES,
    POOLED,
    FittedReliability,
    FittingReliability,
    Reliability,
    adjusted_decisions,
    check_outcomes,
    outcomes,
)
from classifiers.reliability.selective import RiskCoverage, confidence, resampled_areas, risk_coverage
from classifiers.reliability.temperature import fit_temperatures, scale_by_temperature

__all__ = [
    "EXCLUSIVE_FLIPPED",
    "OUTCOMES",
    "POOLED",
    "Accuracies",
    "Adjustment",
    "ClusterSettings",
    "FittedReliability",
    "FittingReliability",
    "MapClusters",
    "Reliability",
    "RiskCoverage",
    "adjusted_decisions",
    "adjustment",
    "check_enough",
    "check_outcomes",
    "choose_landmarks",
    "confidence",
    "fit_clusters",
    "fit_temperatures",
    "from_bytes",
    "outcomes",
    "reduced_maps",
    "reduced_size",
    "resampled_areas",
    "risk_coverage",
    "scale_by_temperature",
    "to_bytes",
]
