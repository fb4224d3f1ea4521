"""The report's tables of super-resolution quality."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from classifiers.metrics import Interval
from tasks.quality_summary import ModelQuality, mean_name
from tasks.report.cells import Cell, Column, Row, number, signed, with_best

WALD_COLUMNS = (
    Column("psnr_db", "PSNR, dB", "peak signal-to-noise ratio, at most 100", 2),
    Column("ssim", "SSIM", "structural similarity, at most 1"),
    Column("sam_deg", "Angle, °", "spectral angle", 2, -1),
    Column("ergas", "ERGAS", "relative error over all bands", 2, -1),
    Column("improvement_share", "Improved, %", "share of detail that comes near to the original", 1),
    Column("omission_share", "Omitted, %", "share of detail that stays as in the input", 1, -1),
    Column("hallucination_share", "Made up, %", "share of detail that is far from both", 1, -1),
)
"""Columns of the comparison with the original: Wald's protocol, or against a truth."""

CONSISTENCY_COLUMNS = (
    Column("reflectance_mae", "Error, 10⁻⁴", "absolute error of the reduced output, in 0.0001 reflectance", 2, -1),
    Column("consistency_sam_deg", "Angle, °", "spectral angle of the reduced output", 3, -1),
    Column("shift_px", "Shift, px", "distance of the reduced output from its place, input pixels", 3, -1),
    Column("shift_row_px", "Down, px", "part of the shift, positive where the output lies too low", 3, 0),
    Column("shift_col_px", "Right, px", "part of the shift, positive where it lies too far to the right", 3, 0),
    Column("clipped_share", "Clipped, %", "share of input pixels brighter than the stretch allows", 2, 0),
)
"""Columns of the consistency with the input."""

_UNITS = {
    "improvement_share": 100.0,
    "omission_share": 100.0,
    "hallucination_share": 100.0,
    "clipped_share": 100.0,
    "reflectance_mae": 1e4,
}

type Verdict = Literal["better", "worse", ""]


@dataclass(frozen=True, slots=True)
class QualityCell:
    """A mean, or the mean of a difference."""

    cell: Cell
    interval: str
    """The 95 % interval, empty where there is none."""
    verdict: Verdict
    """Of a difference whose interval leaves out 0."""


@dataclass(frozen=True, slots=True)
class QualityLine:
    """A line of a table: a model's means, or its differences to the control."""

    sr: str
    minus: bool
    """Whether the numbers are model minus control, of the patches that have both."""
    n: int
    """Patches."""
    cells: Mapping[str, QualityCell]
    """By column."""


@dataclass(frozen=True, slots=True)
class QualityTable:
    """One of the tables."""

    name: str
    """Its id in the page."""
    title: str
    text: str
    columns: Sequence[Column]
    lines: Sequence[QualityLine]


def quality_tables(models: Sequence[ModelQuality], degrade: int = 1) -> list[QualityTable]:
    """Return the tables of all models, none without models.

    Args:
        models: The models.
        degrade: Factor by which the archive's pixels were reduced, so that they are the truth; 1: there is none.
    """
    if not models:
        return []
    title = "Wald\N{RIGHT SINGLE QUOTATION MARK}s protocol" if degrade == 1 else "Against the truth"
    shared = (
        " Improved, omitted and made up share out the pixels in which there was detail to gain: near to the original, "
        "as in the input, or far from both (opensr-test)."
    )
    how = "A patch is reduced to a quarter, super-resolved and compared with the original, the truth."
    if degrade > 1:
        how = f"The archive's pixels, the truth, are reduced by {degrade}, super-resolved and compared with themselves."
    consistency = "The super-resolved patch is reduced to the input's grid and compared with the input."
    return [
        QualityTable("quality-table", title, how + shared, WALD_COLUMNS, _lines(models, WALD_COLUMNS)),
        QualityTable(
            "consistency-table", "Consistency", consistency, CONSISTENCY_COLUMNS, _lines(models, CONSISTENCY_COLUMNS)
        ),
    ]


def quality_notes(models: Sequence[ModelQuality]) -> list[str]:
    """Return what the means do not say: how many patches are at PSNR's cap, and how many are null."""
    capped = [f"{model.capped} of {model.n} in {model.sr}" for model in models]
    notes = [f"Patches at the cap of 100 dB: {', '.join(capped)}."] if models else []
    for column in (*WALD_COLUMNS, *CONSISTENCY_COLUMNS):
        nulls = [f"{model.nulls[column.name]} in {model.sr}" for model in models if model.nulls[column.name]]
        if nulls:
            notes.append(f"{column.name} is null, and left out of its mean: {', '.join(nulls)}.")
    return notes


def in_shown_units(column: Column, value: float | None) -> float | None:
    """Return a measure in the unit of its column; None for null."""
    return None if value is None or math.isnan(value) else value * _UNITS.get(column.name, 1.0)


def _lines(models: Sequence[ModelQuality], columns: Sequence[Column]) -> list[QualityLine]:
    rows = [
        Row(model.sr, "", (), model.n, {c.name: _cell(c, model.means[mean_name(c.name)]) for c in columns})
        for model in models
    ]
    lines = []
    for model, row in zip(models, with_best(rows, columns, lambda _: ""), strict=True):
        means = {c.name: QualityCell(row.cells[c.name], _interval(c, row.cells[c.name]), "") for c in columns}
        lines.append(QualityLine(model.sr, minus=False, n=model.n, cells=means))
        if model.differences:
            differences = {c.name: _difference(c, model.differences[mean_name(c.name)]) for c in columns}
            lines.append(QualityLine(model.sr, minus=True, n=model.n_paired, cells=differences))
    return lines


def _cell(column: Column, interval: Interval) -> Cell:
    value, low, high = (in_shown_units(column, v) for v in interval)
    return Cell(value, number(value, column.decimals), low=low, high=high)


def _difference(column: Column, interval: Interval) -> QualityCell:
    cell = _cell(column, interval)
    cell = replace(cell, text=signed(cell.value, column.decimals))
    verdict: Verdict = ""
    if column.better and cell.low is not None and cell.high is not None and not cell.low <= 0 <= cell.high:
        verdict = "better" if (cell.low > 0) == (column.better > 0) else "worse"
    return QualityCell(cell, _interval(column, cell), verdict)


def _interval(column: Column, cell: Cell) -> str:
    if cell.low is None or cell.high is None:
        return ""
    return f"{number(cell.low, column.decimals)} to {number(cell.high, column.decimals)}"
