"""Strips of super-resolved detail: a few patches, magnified, one branch beside the other, with what was measured there.

Source: figure 2 of Mudraje et al., Multi-label scene classification in remote sensing benefits from image
super-resolution; the choice of patches, their figures and the warnings are this project's.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.errors import StoreError
from sr_models.registry import CEILING
from tasks.gallery_pixels import GalleryPixels, SeenPatch
from tasks.gallery_rows import patch_rows
from tasks.pictures import Picture, encode, outlined, thumbnail
from tasks.quality_summary import CONTROL
from tasks.report.cells import Column, number
from tasks.report.hallucination import faults
from tasks.report.numbers import HiveFolder, Numbers
from tasks.report.quality import CONSISTENCY_COLUMNS, WALD_COLUMNS, in_shown_units

RANKS = ("worst", "median", "best")
"""Patches that are shown, in this order."""

WINDOW = 3
"""The detail shown is this part of the patch's edge: a third."""

DRAWN_FROM = 0.1
"""Share of the detail that is made up or recovered below which there is nothing to see."""

FIGURES = ("psnr_db", "ssim", "improvement_share", "hallucination_share", "reflectance_mae")
"""Measures under a picture."""

_CONTEXT_SIZE = 120
_DETAIL_SIZE = 240  # no larger than it is shown


@dataclass(frozen=True, slots=True)
class StripCell:
    """The detail on one branch."""

    sr: str
    picture: Picture | None
    why_not: str
    figures: Sequence[tuple[Column, str]]
    """What was measured on the whole patch, as people see it; nothing on a branch that does not enlarge."""
    faults: Sequence[str]
    """Why not to believe it, in words."""


@dataclass(frozen=True, slots=True)
class Strip:
    """One patch."""

    patch_id: str
    place: str
    """Country, season, day."""
    rank: str
    """Why it is shown: worst, median or best."""
    context: Picture
    """The patch with a line around the detail."""
    cells: Sequence[StripCell]


def make_strips(numbers: Numbers) -> list[Strip]:
    """Return the strips of the run's first classifier's branches; none without measures, predictions or pixels."""
    folders = numbers.hive("predictions")
    quality = numbers.quality_rows
    if not folders or not quality.num_rows or not numbers.patches.num_rows:
        return []
    folders = [folder for folder in folders if folder.keys["classifier"] == folders[0].keys["classifier"]]
    try:
        pixels = GalleryPixels(numbers)
    except StoreError:  # the tables were copied without the pixels
        return []
    chosen = choose_patches(_of_split(quality, numbers))
    rows = patch_rows(numbers, list(chosen))
    measured: dict[tuple[str, str], Mapping[str, Any]] = {
        (row["patch_id"], row["sr"]): row
        for row in quality.filter(pc.is_in(quality["patch_id"], value_set=pa.array(chosen, pa.string()))).to_pylist()
    }
    return [_strip(rows[patch], rank, folders, pixels, measured) for patch, rank in chosen.items() if patch in rows]


def choose_patches(quality: pa.Table) -> dict[str, str]:
    """Return the worst, the median and the best patch, and which each is.

    Patches are ordered by the share of detail that is made up less the share that is recovered, mean over the networks
    (over bicubic where there are none); where no patch has these, by falling PSNR; the name decides between equals.
    Those whose detail was left nearly as it is, such as open water, are chosen only where all are like that.

    Args:
        quality: Rows of `tables/sr_quality`.
    """
    networks = pc.invert(pc.is_in(quality["sr"], value_set=pa.array([CONTROL, CEILING])))
    rows = quality.filter(networks)
    rows = rows if rows.num_rows else quality
    harm = pc.subtract(rows["hallucination_share"], rows["improvement_share"])
    if harm.null_count == len(harm):
        harm = pc.negate(rows["psnr_db"])
    drawn = pc.fill_null(pc.add(rows["hallucination_share"], rows["improvement_share"]), 0.0)
    scored = pa.table({"patch_id": rows["patch_id"], "harm": harm, "drawn": drawn}).drop_null()
    means = scored.group_by("patch_id").aggregate([("harm", "mean"), ("drawn", "mean")])
    vivid = means.filter(pc.greater_equal(means["drawn_mean"], DRAWN_FROM))
    means = vivid if vivid.num_rows else means
    means = means.sort_by([("harm_mean", "descending"), ("patch_id", "ascending")])
    ordered = means["patch_id"].to_pylist()
    chosen: dict[str, str] = {}
    places = (0, (len(ordered) - 1) // 2, len(ordered) - 1) if ordered else ()
    for place, rank in sorted(zip(places, RANKS, strict=False), key=lambda pair: RANKS.index(pair[1]) == 1):
        chosen.setdefault(ordered[place], rank)  # of two patches one is the worst and one the best
    return {patch: rank for rank in RANKS for patch, of_patch in chosen.items() if of_patch == rank}


def _of_split(quality: pa.Table, numbers: Numbers) -> pa.Table:
    """Return the rows of the shown split's patches; all where it has none."""
    patches = numbers.patches.filter(pc.equal(numbers.patches["split"], pa.scalar(numbers.split, pa.string())))
    found = quality.filter(pc.is_in(quality["patch_id"], value_set=patches["patch_id"].combine_chunks()))
    return found if found.num_rows else quality


def _strip(
    patch: Mapping[str, Any],
    rank: str,
    folders: Sequence[HiveFolder],
    pixels: GalleryPixels,
    measured: Mapping[tuple[str, str], Mapping[str, Any]],
) -> Strip:
    seen = [pixels.seen(patch, folder.keys["sr"], folder.keys["config"]) for folder in folders]
    name = patch["patch_id"]
    base = next((view.rgb for view in seen if view.sr == "none" and view.rgb is not None), seen[0].base)
    top, left = busiest(base)
    control = measured.get((name, CONTROL))
    cells = []
    for view in seen:
        row = measured.get((name, view.sr))
        figures = [] if row is None else [(c, _figure(c, row[c.name])) for c in _columns()]
        wrong = [] if row is None else faults(view.sr, row, control)
        cells.append(StripCell(view.sr, _detail(name, view, top, left), view.why_not, figures, wrong))
    place = ", ".join(str(patch[key]) for key in ("country", "season", "acquired") if patch[key])
    window = np.zeros(base.shape[:2], np.bool_)
    edge = len(base) // WINDOW
    rows, columns = round(top * len(base)), round(left * len(base))
    window[rows : rows + edge, columns : columns + edge] = True
    context = outlined(thumbnail(base, _CONTEXT_SIZE), window)
    return Strip(name, place, rank, encode(context, f"Where the detail of {name} lies"), cells)


def busiest(rgb: NDArray[np.uint8]) -> tuple[float, float]:
    """Return the top and the left, shares of the edge, of the window of a third whose brightness varies most.

    Args:
        rgb: (H, H, 3); windows are tried at every twelfth of the edge, and the first of equals is taken.
    """
    grey = rgb.mean(axis=2)
    edge = len(grey)
    starts = [round(i * edge / 12) for i in range(12 - 12 // WINDOW + 1)]
    size = edge // WINDOW
    spread = {(y, x): float(grey[y : y + size, x : x + size].std()) for y in starts for x in starts}
    top, left = max(spread, key=lambda place: spread[place])
    return top / edge, left / edge


def _detail(name: str, view: SeenPatch, top: float, left: float) -> Picture | None:
    if view.rgb is None:
        return None
    edge = len(view.rgb)
    size = edge // WINDOW
    y, x = round(top * edge), round(left * edge)
    part = view.rgb[y : y + size, x : x + size]
    times = max(1, _DETAIL_SIZE // size) if view.sr == "none" else 1  # its pixels stay squares on paper too
    part = part.repeat(times, axis=0).repeat(times, axis=1)
    return encode(part, f"Detail of {name} on {view.sr}", lossless=view.sr == "none")


def _columns() -> list[Column]:
    by_name = {column.name: column for column in (*WALD_COLUMNS, *CONSISTENCY_COLUMNS)}
    return [by_name[name] for name in FIGURES]


def _figure(column: Column, value: float | None) -> str:
    return number(in_shown_units(column, value), column.decimals)
