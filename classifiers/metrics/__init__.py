"""Multi-label metrics, their calibration and their cluster-bootstrap intervals; defined in `docs/metrics.md`.

Every metric is one formula over weighted sums of per-patch quantities, plus a weighted average precision. With weights
of one that is the metric itself; with the multiplicities of a resample it is the metric of the resampled patches.
"""

from classifiers.metrics.bootstrap import Interval, Intervals, bootstrap_means, interval_of, means_of_sums, seed_counts
from classifiers.metrics.calibration import BINS, EDGES, Calibration, calibration_of
from classifiers.metrics.formulas import ABOUT_THE_TRUTH, OVERALL, PER_LABEL, Metrics
from classifiers.metrics.sample import Resampled, Sample, multilabel_metrics, per_label_metrics

__all__ = [
    "ABOUT_THE_TRUTH",
    "BINS",
    "EDGES",
    "OVERALL",
    "PER_LABEL",
    "Calibration",
    "Interval",
    "Intervals",
    "Metrics",
    "Resampled",
    "Sample",
    "bootstrap_means",
    "calibration_of",
    "interval_of",
    "means_of_sums",
    "multilabel_metrics",
    "per_label_metrics",
    "seed_counts",
]
