"""Figures of maps: one patch by methods and SR models, and a contact sheet for people to judge."""

import csv
import io
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from infra.errors import ConfigError
from infra.storage import write_atomically, write_text
from tasks.explained_patch import PatchView
from tasks.pictures import overlay, why_not_drawn

FORMATS = (".png", ".pdf", ".svg", ".webp")
"""Endings of figures."""

_CELL_INCHES = 1.9
_SHEET_COLUMNS = 15  # pictures and maps side by side, so that a sheet of many methods is no ribbon
_TOLD = ("number", "patch_id", "label", "prob", "truth")  # columns of a sheet's CSV, before the verdicts
_VERDICT = "verdict_"


@dataclass(frozen=True, slots=True)
class SheetRow:
    """One image of a contact sheet."""

    patch_id: str
    view: PatchView
    label: str
    """The label whose maps are shown."""
    truth: str
    """True labels, `;` between."""


def check_format(path: Path) -> None:
    """Refuse a file name that no figure can have.

    Raises:
        ConfigError: Its ending is none of `FORMATS`.
    """
    if path.suffix.lower() not in FORMATS:
        raise ConfigError(f"{path}: figures end in {', '.join(FORMATS)}")


def patch_figure(
    path: Path, patch_id: str, views: Sequence[PatchView], label: str, mask: NDArray[np.bool_] | None
) -> None:
    """Write a figure of one patch: a row for each SR model, a column for each method.

    Each map is drawn over the picture in grey, from 0 to its own maximum, in a colour map that is even to the eye; a
    line bounds the land cover that the label names. A map that is not finite, or nowhere above 0, says so.

    Args:
        path: The file.
        patch_id: Name of the patch.
        views: The patch on each branch, of the same methods.
        label: The label explained.
        mask: Where the land cover is the label, (S, S); None: unknown.

    Raises:
        ConfigError: The file's ending is none of `FORMATS`.
    """
    check_format(path)
    methods = list(views[0].maps)
    rows, cols = len(views), 1 + len(methods)
    figure = Figure(figsize=(_CELL_INCHES * cols + 0.4, _CELL_INCHES * rows + 0.9), layout="constrained")
    axes = figure.subplots(rows, cols, squeeze=False)
    for view, line in zip(views, axes, strict=True):
        line[0].imshow(view.rgb, interpolation="nearest")
        line[0].set_ylabel(f"{view.sr}\np = {view.prob_of(label):.2f}", fontsize=8)
        for method, axis in zip(methods, line[1:], strict=True):
            _draw_map(axis, view.rgb, view.map_of(method, label), mask)
    for axis, title in zip(axes[0], ["picture", *methods], strict=True):
        axis.set_title(title, fontsize=8)
    for axis in axes.flat:
        axis.set_xticks([])
        axis.set_yticks([])
    known = "" if mask is None else f", {100 * mask.mean():.0f} % of the patch"
    figure.suptitle(f"{patch_id}\n{label}{known}", fontsize=9)
    _save(figure, path)


def contact_sheet(path: Path, rows: Sequence[SheetRow]) -> Path:
    """Write a sheet of images with their maps beside them, and a CSV in which a person marks pass or fail.

    Args:
        path: The figure's file.
        rows: The images, in the order of their numbers.

    Returns:
        The CSV: number, patch_id, label, prob, truth, and an empty column `verdict_<method>` for each method.

    Raises:
        ConfigError: The file's ending is none of `FORMATS`, there is nothing to show, or the CSV that lies there is no
            sheet's, or somebody has marked it.
    """
    check_sheet(path)
    if not rows:
        raise ConfigError("a contact sheet needs at least one image")
    methods = list(rows[0].view.maps)
    block = 1 + len(methods)
    across = min(len(rows), max(1, _SHEET_COLUMNS // block))
    tall, wide = -(-len(rows) // across), across * block
    figure = Figure(figsize=(0.8 * wide, 0.95 * tall + 0.1), layout="constrained")
    axes = figure.subplots(tall, wide, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    for number, row in enumerate(rows):
        line, first = number // across, (number % across) * block
        axes[line, first].imshow(row.view.rgb, interpolation="nearest")
        title = f"{number + 1} {row.label[:14]} {row.view.prob_of(row.label):.2f}"
        axes[line, first].set_title(title, fontsize=4, pad=1, loc="left")
        for column, method in enumerate(methods, start=1):
            cam = row.view.map_of(method, row.label)
            _draw_map(axes[line, first + column], row.view.rgb, cam, None, small=True)
            axes[line, first + column].set_title(method, fontsize=4, pad=1)
    _save(figure, path)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow([*_TOLD, *(f"{_VERDICT}{method}" for method in methods)])
    for number, row in enumerate(rows, start=1):
        writer.writerow(
            [number, row.patch_id, row.label, f"{row.view.prob_of(row.label):.4f}", row.truth, *("" for _ in methods)]
        )
    table = _table_of(path)
    write_text(table, text.getvalue())
    return table


def check_sheet(path: Path) -> None:
    """Refuse a file name that no sheet can have, or whose CSV may hold a person's work.

    Only a CSV just as `contact_sheet` writes it, with no verdict in it, may be written anew: a spreadsheet may have
    saved it with other separators or in another encoding, or the file may be none of ours at all.

    Raises:
        ConfigError: Its ending is none of `FORMATS`, or the CSV beside it has another head than a sheet's or is marked.
    """
    check_format(path)
    table = _table_of(path)
    if not table.exists():
        return
    with table.open(encoding="utf-8", errors="replace", newline="") as file:
        reader = csv.reader(file)
        head = next(reader, [])
        verdicts = len(_TOLD)
        ours = tuple(head[:verdicts]) == _TOLD and all(m.startswith(_VERDICT) for m in head[verdicts:])
        if not ours:
            raise ConfigError(
                f"{table} is no sheet as it was written, its first line is {','.join(head)[:80]!r}: a spreadsheet may "
                "have saved it its own way, with verdicts that a new sheet would erase; move it, or choose another name"
            )
        if any(value for row in reader for value in row[verdicts:]):
            raise ConfigError(f"{table} holds verdicts, which a new sheet would erase: move it, or choose another name")


def _table_of(path: Path) -> Path:
    return path.with_suffix(".csv")


def _draw_map(
    axis: Axes,
    rgb: NDArray[np.uint8],
    cam: NDArray[np.float32],
    mask: NDArray[np.bool_] | None,
    *,
    small: bool = False,
) -> None:
    if why := why_not_drawn(cam):
        axis.imshow(np.full((1, 1, 3), 235, np.uint8))
        axis.text(0.5, 0.5, why, transform=axis.transAxes, ha="center", va="center", fontsize=4 if small else 8)
        return
    axis.imshow(overlay(rgb, cam), extent=(0, 1, 1, 0))
    if mask is not None and 0 < mask.mean() < 1:
        at = (np.arange(len(mask)) + 0.5) / len(mask)
        axis.contour(at, at, mask.astype(np.float32), levels=[0.5], colors="white", linewidths=0.8)


def _save(figure: Figure, path: Path) -> None:
    FigureCanvasAgg(figure)
    kind = path.suffix.lower().removeprefix(".")
    # No date and no random names inside, so that the same maps give the same bytes.
    dated = {"svg": "Date", "pdf": "CreationDate"}
    metadata = {dated[kind]: None} if kind in dated else None
    with rc_context({"svg.hashsalt": "superscene"}):
        write_atomically(path, lambda to: figure.savefig(to, format=kind, dpi=200, metadata=metadata))
