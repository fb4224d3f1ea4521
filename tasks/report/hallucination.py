"""Which super-resolved patches are not to be believed: the rule, for one patch, for means, and counted over patches."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from tasks.quality_summary import CONTROL, ModelQuality, mean_name
from tasks.report.cells import number

MAE_LIMIT = 0.0025
"""Reflectance. The mean of red, green and blue over BigEarthNet is 0.055 and Sentinel-2's radiometry is specified to
5 %: an output that is further from its input than that no longer says what was measured."""

TIMES_CONTROL = 2.0
"""Bicubic enlargement, reduced again, is not its input either: an error counts from twice that of the same patch."""

MADE_UP_FROM = 0.1
"""Share of the pixels with detail to gain below which what is made up is too little to matter."""

INCONSISTENT = "is inconsistent with its input"
MADE_UP = "makes up more than it recovers"

_MEASURES = ("reflectance_mae", "hallucination_share", "improvement_share")


@dataclass(frozen=True, slots=True)
class ModelFaults:
    """What the rule says of one SR model."""

    sr: str
    n: int
    """Patches measured."""
    inconsistent: int
    """Patches whose output is inconsistent with its input."""
    made_up: int
    """Patches with more detail made up than recovered."""
    either: int
    """Patches with a fault of either kind."""
    of_means: Sequence[str]
    """Faults of the means over patches, in words."""

    @property
    def share(self) -> float:
        """Share of the patches with a fault."""
        return self.either / self.n if self.n else 0.0


def faults(sr: str, values: Mapping[str, float | None], control: Mapping[str, float | None] | None) -> list[str]:
    """Return what is wrong with one output, in words; nothing for the control, which adds no detail.

    Args:
        sr: The SR model.
        values: Measures of tables/sr_quality of one patch, or their means; null and absent ones judge nothing.
        control: The same of bicubic on the same patches; None where it was not run.
    """
    known = {name: np.array([_float(values.get(name))]) for name in _MEASURES}
    mae = None if control is None else np.array([_float(control.get("reflectance_mae"))])
    inconsistent, made_up = _judge(sr, known, mae)
    words = []
    if inconsistent[0]:
        words.append(f"{INCONSISTENT} (off by {number(known['reflectance_mae'][0], 4)} of reflectance)")
    if made_up[0]:
        shares = (number(100 * known[name][0], 0) for name in _MEASURES[1:])
        words.append("{} ({} % of the detail against {} %)".format(MADE_UP, *shares))
    return words


def model_faults(quality: pa.Table, models: Sequence[ModelQuality]) -> list[ModelFaults]:
    """Return the rule's verdict on every SR model but the control.

    Args:
        quality: Rows of `tables/sr_quality`, one config for each SR model.
        models: Their summaries; the order is kept.
    """
    names = quality["sr"].to_numpy()
    ids = quality["patch_id"].to_numpy()
    columns = {name: quality[name].cast(pa.float64()).to_numpy(zero_copy_only=False) for name in _MEASURES}
    of_control = names == CONTROL
    means = {model.sr: {name: model.means[mean_name(name)].value for name in _MEASURES} for model in models}
    found = []
    for model in (model for model in models if model.sr != CONTROL):
        of_sr = names == model.sr
        mae = None
        if of_control.any():
            mae = np.full(of_sr.sum(), np.nan)
            _, ours, theirs = np.intersect1d(ids[of_sr], ids[of_control], assume_unique=True, return_indices=True)
            mae[ours] = columns["reflectance_mae"][of_control][theirs]
        inconsistent, made_up = _judge(model.sr, {name: column[of_sr] for name, column in columns.items()}, mae)
        found.append(
            ModelFaults(
                model.sr,
                int(of_sr.sum()),
                int(inconsistent.sum()),
                int(made_up.sum()),
                int((inconsistent | made_up).sum()),
                faults(model.sr, means[model.sr], means.get(CONTROL)),
            )
        )
    return found


def _judge(
    sr: str, values: Mapping[str, NDArray[np.float64]], control_mae: NDArray[np.float64] | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which outputs are inconsistent, and which make up too much, (N,) each; NaN, unknown, judges nothing.

    An unknown error of the control does not excuse one beyond the limit.
    """
    mae, made, gained = (values[name] for name in _MEASURES)
    if sr == CONTROL:
        return np.zeros(len(mae), np.bool_), np.zeros(len(mae), np.bool_)
    bound = np.full(len(mae), MAE_LIMIT)
    if control_mae is not None:
        bound = np.fmax(bound, TIMES_CONTROL * control_mae)
    return mae > bound, (made >= MADE_UP_FROM) & (made > gained)


def _float(value: float | None) -> float:
    return float("nan") if value is None else value
