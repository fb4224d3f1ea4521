"""The report's tables of activation maps as Markdown."""

from collections.abc import Sequence

from tasks.quality_summary import CONTROL
from tasks.report.cells import NULL
from tasks.report.map_tables import (
    AREA,
    METHOD_NAMES,
    AreaLine,
    MapCell,
    MapLine,
    MapMinusTable,
    Maps,
    MapTable,
)
from tasks.report.markdown import aligned, bold, named


def maps_markdown(maps: Maps) -> str:
    """Return all tables of a run's maps, and what a reader of them has to know."""
    of = "All patches" if maps.split == "all" else f"The {maps.split} split"
    how = "means over maps with their 95 % intervals, tiles resampled, or patches where there are none."
    lines = ["## Where the network looks", "", f"{of}; {how}"]
    lines += ["", *(f"- {note}" for note in (*maps.notes, maps.faults)), ""]
    for of_one in maps.classifiers:
        lines += [f"### Maps of {of_one.classifier}, seed {of_one.seed}", ""]
        for table in of_one.tables:
            lines += [f"#### {named(table.sr)}{_of(table)}", "", *_methods(table), ""]
        for place, minus in enumerate(of_one.minus):
            note = [] if place else [maps.minus_note, ""]
            lines += [f"#### Maps minus {CONTROL}{_of(minus)}", "", *note, *_minus(minus), ""]
        if of_one.areas:
            lines += ["#### IoU at 75 % of the energy, by area of the label", "", maps.area_note, ""]
            lines += [*_areas(of_one.areas), ""]
    return "\n".join(lines).rstrip() + "\n"


def _of(table: MapTable | MapMinusTable) -> str:
    return " on the sample alone" if table.sampled else ""


def _methods(table: MapTable) -> list[str]:
    body = [
        [
            line.name,
            *(_rank(rank, line in table.floors) for rank in (line.rank, line.pointing_rank)),
            *(cell_text(line.cells.get(column.name)) for column in table.columns),
            *_counts(line),
        ]
        for line in (*table.lines, *table.floors)
    ]
    titles = [column.titled for column in table.columns]
    return aligned(["method", "by AUC", "by pointing", *titles, "maps", "zero maps", "with land cover"], body, texts=1)


def _rank(rank: int | None, is_floor: bool) -> str:  # noqa: FBT001
    return "floor" if is_floor else NULL if rank is None else str(rank)


def _counts(line: MapLine) -> list[str]:
    return [NULL if count is None else str(count) for count in (line.n, line.zeros, line.n_located)]


def _minus(table: MapMinusTable) -> list[str]:
    body = [
        [named(minus.sr), minus.line.name, *(cell_text(minus.line.cells.get(column.name)) for column in table.columns)]
        for minus in table.lines
    ]
    return aligned(["SR model", "method", *(column.title for column in table.columns)], body, texts=2)


def _areas(lines: Sequence[AreaLine]) -> list[str]:
    body = [
        [
            named(line.sr),
            "area share" if line.method == AREA else METHOD_NAMES[line.method],
            *map(cell_text, line.cells),
        ]
        for line in lines
    ]
    quarters = ["smallest", "second", "third", "largest"]
    return aligned(["SR model", "method", *quarters[: len(lines[0].cells)]], body, texts=2)


def cell_text(cell: MapCell | None) -> str:
    """Return a value and its interval as one text; a dash where there is none."""
    if cell is None:
        return NULL
    return f"{bold(cell.cell)} ({cell.interval})" if cell.interval else bold(cell.cell)
