"""The paper's tables as Markdown, aligned so that a terminal shows them as well as a repository page."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from sr_models.registry import CEILING
from tasks.quality_summary import CONTROL
from tasks.report.cells import NULL, Cell, Column, Row, number, signed, with_best, with_best_of_line
from tasks.report.means import CLAIMS_NEED_SEEDS
from tasks.report.order import branch_order, shown_split

COLUMNS = (
    Column("acc", "ACC", "sample accuracy"),
    Column("hl", "HL", "Hamming loss", better=-1),
    Column("oe", "OE", "one-error", better=-1),
    Column("precision", "P", "precision"),
    Column("recall", "R", "recall"),
    Column("f1", "F1", "F1"),
)
"""Columns of table 1."""

PAPER = (
    "Tables 1 and 2 as in Mudraje et al., *Multi-label scene classification in remote sensing benefits from image "
    "super-resolution*; where bicubic enlargement, the control, was run, also both minus it."
)
"""What the tables are."""

MARKS = {True: "✓", False: "✗", None: NULL}
"""Whether a difference is significant."""

_WIDEST = 44  # a longer label pushes its own row out, not all of them

type PaperRow = Mapping[str, Any]
"""A row of tables/paper_table_1 or tables/paper_table_2."""


def paper_tables_markdown(
    first: Sequence[PaperRow], second: Sequence[PaperRow], sr: Sequence[str], classifiers: Sequence[str]
) -> str:
    """Return the paper's tables 1 and 2 of one split, and both as differences to bicubic.

    Args:
        first: Rows of tables/paper_table_1, any order.
        second: Rows of tables/paper_table_2, any order.
        sr: SR models in the order to show; others follow, and the ceiling is last.
        classifiers: Classifiers in the order to show; others follow.
    """
    split = shown_split({row["split"] for row in first})
    if split is None:
        return "# The paper's tables\n\nNothing was scored: there are no metrics of labelled patches.\n"

    def order(row: PaperRow) -> tuple[object, ...]:
        return branch_order(row["classifier"], row["sr"], classifiers, sr)

    first, second = (sorted((row for row in rows if row["split"] == split), key=order) for rows in (first, second))
    lines = ["# The paper's tables", "", *_head(split, first), "", "## Table 1", "", *_table_1(first), ""]
    names = list(dict.fromkeys(row["classifier"] for row in first))
    compared = any(row["n_seeds_paired"] is not None for row in first)
    if compared:
        lines += [f"## Table 1 minus {CONTROL}", "", *_legend(first, [column.name for column in COLUMNS]), ""]
        lines += _sections(names, first, _minus_1, compared=True)
    lines += ["## Table 2: F2 of each label", "", *_macro_note(second)]
    lines += _sections(names, second, _table_2, compared=False)
    if compared:
        lines += [f"## Table 2 minus {CONTROL}", "", *_legend(second, ["f2"]), ""]
        lines += _sections(names, second, _minus_2, compared=True)
    return "\n".join(lines).rstrip() + "\n"


def _sections(
    names: Sequence[str], rows: Sequence[PaperRow], table: Callable[[Sequence[PaperRow]], list[str]], *, compared: bool
) -> list[str]:
    """Return a table of each classifier under its name; where compared, only of those that bicubic was run with."""
    lines = []
    for name in names:
        of_name = [row for row in rows if row["classifier"] == name]
        if any(not compared or row["n_seeds_paired"] is not None for row in of_name):
            lines += [f"### {name}", "", *table(of_name), ""]
    return lines


def _head(split: str, rows: Sequence[PaperRow]) -> list[str]:
    seeds = sorted({row["n_seeds"] for row in rows})
    of = "All patches" if split == "all" else f"The {split} split"
    counted = f"{seeds[0]} training seed{'s' if seeds[0] > 1 else ''}" if len(seeds) == 1 else "the training seeds"
    lines = [
        PAPER,
        "",
        f"{of}; means over {counted}. The best of each classifier is bold; ↑ higher is better, ↓ lower is better.",
        "ACC is sample accuracy, HL Hamming loss, OE one-error; P, R and F1 are means over patches.",
    ]
    if any(row["sr"] == CEILING for row in rows):
        lines += [
            "",
            f"{named(CEILING)} is the untouched high-resolution image: what super-resolution aims at, no rival.",
        ]
    return lines


def _legend(rows: Sequence[PaperRow], metrics: Sequence[str]) -> list[str]:
    names = [f"{metric}_minus_{CONTROL}" for metric in metrics]
    shown = [
        (row["n_seeds_paired"], row[f"{name}_low"] is not None)
        for row in rows
        for name in names
        if row[name] is not None and row.get("support") != 0
    ]
    return [f"SR model minus {CONTROL} on the same patches and seeds, with the 95 % interval. {marks_note(shown)}"]


def marks_note(differences: Sequence[tuple[int, bool]]) -> str:
    """Return what the signs after differences mean.

    Args:
        differences: Seeds of each, and whether it has an interval.
    """
    of_enough = [has_interval for n, has_interval in differences if n >= CLAIMS_NEED_SEEDS]
    notes = []
    if any(of_enough):
        notes.append(f"{MARKS[True]} significant: the interval excludes 0; {MARKS[False]} not significant")
    if len(of_enough) < len(differences):
        notes.append(f"{MARKS[None]} fewer than three seeds: no significance is claimed")
    if not all(of_enough):
        notes.append(f"{MARKS[None]} no interval, as of a single tile: no significance is claimed")
    return f"{'; '.join(notes)}." if notes else ""


def _macro_note(rows: Sequence[PaperRow]) -> list[str]:
    if any(row["support"] == 0 for row in rows):
        return [f"A label that no patch has is {NULL}; in the macro mean it counts as 0.", ""]
    return []


def _table_1(rows: Sequence[PaperRow]) -> list[str]:
    cells = [
        Row(
            row["sr"],
            row["classifier"],
            (),
            row["n"],
            {c.name: Cell(row[c.name], number(row[c.name], c.decimals)) for c in COLUMNS},
        )
        for row in rows
    ]
    body = [
        [
            line.classifier,
            named(line.sr),
            *(bold(line.cells[c.name]) for c in COLUMNS),
            str(row["n_seeds"]),
            str(line.n),
        ]
        for row, line in zip(rows, with_best(cells, COLUMNS, lambda line: line.classifier), strict=True)
    ]
    return aligned(["classifier", "SR model", *(c.titled for c in COLUMNS), "seeds", "patches"], body, texts=2)


def _minus_1(rows: Sequence[PaperRow]) -> list[str]:
    others = [row for row in rows if row["sr"] != CONTROL]
    body = [[column.titled, *(_difference(row, column.name) for row in others)] for column in COLUMNS]
    return aligned(["metric", *(named(row["sr"]) for row in others)], body, texts=1)


def _table_2(rows: Sequence[PaperRow]) -> list[str]:
    branches = list(dict.fromkeys(row["sr"] for row in rows))
    body = []
    for label, of_label in _by_label(rows):
        supports = [row["support"] for row in of_label.values() if row["support"] is not None]
        cells = with_best_of_line({sr: _f2(row) for sr, row in of_label.items()})
        texts = [bold(cells[sr]) if sr in cells else NULL for sr in branches]
        body.append([_label(label), str(max(supports, default="")), *texts])
    return aligned(["label", "patches", *map(named, branches)], body, texts=1)


def _minus_2(rows: Sequence[PaperRow]) -> list[str]:
    branches = [sr for sr in dict.fromkeys(row["sr"] for row in rows) if sr != CONTROL]
    body = []
    for label, of_label in _by_label(rows):
        texts = [_difference(of_label[sr], "f2") if sr in of_label else NULL for sr in branches]
        body.append([_label(label), *texts])
    return aligned(["label", *map(named, branches)], body, texts=1)


def _by_label(rows: Sequence[PaperRow]) -> list[tuple[str | None, dict[str, PaperRow]]]:
    """Return the rows of each label by SR model, labels in their order, the macro mean last."""
    found: dict[tuple[bool, bool, int, str], dict[str, PaperRow]] = {}
    names: dict[tuple[bool, bool, int, str], str | None] = {}
    for row in rows:
        index, label = row["label_index"], row["label"]
        key = (label is None, index is None, index or 0, label or "")
        names[key] = label
        found.setdefault(key, {})[row["sr"]] = row
    return [(names[key], found[key]) for key in sorted(found)]


def _f2(row: PaperRow) -> Cell:
    value = None if row["support"] == 0 else row["f2"]  # of a label without a patch F2 is 0 by convention alone
    return Cell(value, number(value, 3))


def _difference(row: PaperRow, metric: str) -> str:
    name = f"{metric}_minus_{CONTROL}"
    value, low, high = (row[f"{name}{end}"] for end in ("", "_low", "_high"))
    if row.get("support") == 0:
        return NULL
    return difference_text(value, low, high, significant=row[f"{name}_significant"])


def difference_text(value: float | None, low: float | None, high: float | None, *, significant: bool | None) -> str:
    """Return a difference, its interval and whether it is significant, as one cell; a dash for null."""
    if value is None:
        return NULL
    interval = "" if low is None or high is None else f" ({signed(low, 3)} to {signed(high, 3)})"
    return f"{signed(value, 3)}{interval} {MARKS[significant]}"


def _label(label: str | None) -> str:
    """Return a label as text of a cell, whatever signs an archive has in it; None is the macro mean."""
    if label is None:
        return "macro mean"
    escaped: dict[str, str | int | None] = {sign: f"\\{sign}" for sign in "\\|*`[]"}
    signs = {**escaped, "<": "&lt;", "\n": " "}
    return label.translate(str.maketrans(signs))


def named(sr: str) -> str:
    """Return an SR model's name; the ceiling is told."""
    return f"{sr} (ceiling)" if sr == CEILING else sr


def verbatim(text: str) -> str:
    """Return a text, such as an error's, as a code span of one line: nothing in it is Markdown."""
    return f"`{' '.join(text.replace('`', chr(39)).split())}`"


def bold(cell: Cell) -> str:
    """Return a cell's text, bold if it is the best."""
    return f"**{cell.text}**" if cell.best else cell.text


def aligned(head: Sequence[str], body: Sequence[Sequence[str]], texts: int) -> list[str]:
    """Return the lines of a Markdown table whose columns are padded to one width.

    Args:
        head: Titles.
        body: Cells of each row, as many as titles.
        texts: The first so many columns are texts and start on the left; the others are numbers and end on the right.
    """
    table = [head, *body]
    widths = [max(3, *(len(row[i]) for row in table if len(row[i]) <= _WIDEST)) for i in range(len(head))]
    rule = [f"{'-' * width}{'-' if i < texts else ':'}" for i, width in enumerate(widths)]
    lines = [
        "| "
        + " | ".join(c.ljust(w) if i < texts else c.rjust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True)))
        + " |"
        for row in table
    ]
    return [lines[0], "|" + "|".join(f"-{dashes}" for dashes in rule) + "|", *lines[1:]]
