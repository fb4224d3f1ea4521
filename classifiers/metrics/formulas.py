"""Names of the metrics, and their formulas over weighted sums."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from classifiers.metrics.calibration import BINS

type Floats = NDArray[np.float64]
type Bools = NDArray[np.bool_]

OVERALL: tuple[str, ...] = (
    "acc",
    "hl",
    "oe",
    "precision",
    "recall",
    "f1",
    "f2_macro",
    "f1_macro",
    "f1_micro",
    "ap_macro",
    "ap_micro",
    "coverage_error",
    "ranking_loss",
    "ece",
    "empty_truth_share",
    "empty_predicted_share",
    "prevalence_macro",
    "ap_macro_above_prevalence",
)
"""Names of the overall metrics, in the order of the tables."""

PER_LABEL: tuple[str, ...] = ("f1", "f2", "ap", "precision", "recall", "prevalence", "support")
"""Names of the metrics of one label."""

ABOUT_THE_TRUTH: frozenset[str] = frozenset({"empty_truth_share", "prevalence_macro", "prevalence", "support"})
"""Metrics that two classifiers on the same patches share, whatever they predict."""

PATCH_SUMS: tuple[str, ...] = (
    "n",
    "acc",
    "hl",
    "labelled",
    "oe",
    "precision",
    "recall",
    "f1",
    "coverage_error",
    "ranking_loss",
    "empty_truth",
    "empty_predicted",
)
"""Quantities of a patch that add up; behind them come the gaps of the calibration bins, then TP, FP, FN per label."""


@dataclass(frozen=True, slots=True)
class Metrics:
    """All metrics, of one sample or of every resample; NaN where there is nothing to measure."""

    overall: dict[str, Floats]
    """Metric of `OVERALL` to (...)."""
    per_label: dict[str, Floats]
    """Metric of `PER_LABEL` to (..., L)."""


def metrics_of_sums(sums: Floats, ap: Floats, ap_micro: Floats) -> Metrics:
    """Return all metrics.

    Args:
        sums: Weighted sums of the columns that `PATCH_SUMS` tells of, (..., 12 + B + 3 L).
        ap: Average precision per label, (..., L), NaN without a positive.
        ap_micro: Micro average precision, (...).
    """
    n_labels, first = ap.shape[-1], len(PATCH_SUMS)
    patch = {name: sums[..., i] for i, name in enumerate(PATCH_SUMS)}
    gaps, counts = sums[..., first : first + BINS], sums[..., first + BINS :]
    tp, fp, fn = (counts[..., i * n_labels : (i + 1) * n_labels] for i in range(3))
    n, support = patch["n"], tp + fn
    per_label = {
        "f1": ratio(2 * tp, 2 * tp + fp + fn),
        "f2": ratio(5 * tp, 5 * tp + fp + 4 * fn),
        "ap": ap,
        "precision": ratio(tp, tp + fp),
        "recall": ratio(tp, support),
        "prevalence": support / n[..., None],
        "support": support,
    }
    total_tp, total_fp, total_fn = tp.sum(axis=-1), fp.sum(axis=-1), fn.sum(axis=-1)
    has_positive = support > 0
    ap_macro = _mean_where(ap, has_positive)
    prevalence_macro = _mean_where(per_label["prevalence"], has_positive)
    overall = {
        **{name: patch[name] / n for name in ("acc", "hl", "precision", "recall", "f1")},
        "oe": ratio(patch["oe"], patch["labelled"], otherwise=np.nan),
        "f2_macro": per_label["f2"].mean(axis=-1),
        "f1_macro": per_label["f1"].mean(axis=-1),
        "f1_micro": ratio(2 * total_tp, 2 * total_tp + total_fp + total_fn),
        "ap_macro": ap_macro,
        "ap_micro": ap_micro,
        "coverage_error": patch["coverage_error"] / n,
        "ranking_loss": patch["ranking_loss"] / n,
        "ece": np.abs(gaps).sum(axis=-1) / (n * n_labels),
        "empty_truth_share": patch["empty_truth"] / n,
        "empty_predicted_share": patch["empty_predicted"] / n,
        "prevalence_macro": prevalence_macro,
        "ap_macro_above_prevalence": ap_macro - prevalence_macro,
    }
    return Metrics({name: overall[name] for name in OVERALL}, per_label)


def ratio(numerator: Floats, denominator: Floats, otherwise: float = 0.0) -> Floats:
    """Return numerator / denominator, broadcast, with `otherwise` where the denominator is 0."""
    values = np.full(np.broadcast_shapes(numerator.shape, denominator.shape), otherwise)
    np.divide(numerator, denominator, out=values, where=denominator != 0)
    return values


def _mean_where(values: Floats, mask: Bools) -> Floats:
    """Return the mean over the last axis of the values under the mask, NaN where there are none."""
    return ratio(np.where(mask, values, 0.0).sum(axis=-1), mask.sum(axis=-1).astype(np.float64), otherwise=np.nan)
