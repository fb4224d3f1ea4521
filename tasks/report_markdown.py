"""The paper's tables as Markdown, aligned so that a terminal shows them as well as a repository page."""

from collections.abc import Mapping, Sequence
from typing import Any

from tasks.quality_summary import CONTROL
from tasks.report_cells import NULL, Cell, Column, Row, number, signed, with_best, with_best_of_line
from tasks.report_means import CLAIMS_NEED_SEEDS
from tasks.report_order import CEILING, branch_order, shown_split

COLUMNS = (
    Column("acc", "ACC", "sample accuracy"),
    Column("hl", "HL", "Hamming loss", better=-1),
    Column("oe", "OE", "one-error", better=-1),
    Column("precision", "P", "precision"),
    Column("recall", "R", "recall"),
    Column("f1", "F1", "F1"),
)
"""Columns of table 1."""

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
        lines += [f"## Table 1 minus {CONTROL}", "", *_legend(first), ""]
        for name in names:
            lines += [f"### {name}", "", *_minus_1([row for row in first if row["classifier"] == name]), ""]
    lines += ["## Table 2: F2 of each label", "", *_macro_note(second)]
    for name in names:
        of_name = [row for row in second if row["classifier"] == name]
        if of_name:
            lines += [f"### {name}", "", *_table_2(of_name), ""]
    if compared:
        lines += [f"## Table 2 minus {CONTROL}", "", *_legend(second), ""]
        for name in names:
            of_name = [row for row in second if row["classifier"] == name]
            if any(row["n_seeds_paired"] is not None for row in of_name):
                lines += [f"### {name}", "", *_minus_2(of_name), ""]
    return "\n".join(lines).rstrip() + "\n"


def _head(split: str, rows: Sequence[PaperRow]) -> list[str]:
    seeds = sorted({row["n_seeds"] for row in rows})
    of = "All patches" if split == "all" else f"The {split} split"
    counted = f"{seeds[0]} training seed{'s' if seeds[0] > 1 else ''}" if len(seeds) == 1 else "the training seeds"
    lines = [f"{of}; means over {counted}. The best of each classifier is bold; ↑ higher is better, ↓ lower is better."]
    if any(row["sr"] == CEILING for row in rows):
        lines += [
            "",
            f"{_named(CEILING)} is the untouched high-resolution image: what super-resolution aims at, no rival.",
        ]
    return lines


def _legend(rows: Sequence[PaperRow]) -> list[str]:
    marks = f"{MARKS[True]} significant, for the interval excludes 0; {MARKS[False]} not significant"
    lines = [f"SR model minus {CONTROL} on the same patches and seeds, with the 95 % interval; {marks}."]
    if any(row["n_seeds_paired"] is not None and row["n_seeds_paired"] < CLAIMS_NEED_SEEDS for row in rows):
        lines += ["", f"{NULL} after an interval: fewer than three seeds, so no significance is claimed."]
    return lines


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
            _named(line.sr),
            *(_bold(line.cells[c.name]) for c in COLUMNS),
            str(row["n_seeds"]),
            str(line.n),
        ]
        for row, line in zip(rows, with_best(cells, COLUMNS, lambda line: line.classifier), strict=True)
    ]
    return aligned(["classifier", "SR model", *(c.titled for c in COLUMNS), "seeds", "patches"], body, texts=2)


def _minus_1(rows: Sequence[PaperRow]) -> list[str]:
    others = [row for row in rows if row["sr"] != CONTROL]
    body = [[column.titled, *(_difference(row, column.name) for row in others)] for column in COLUMNS]
    return aligned(["metric", *(_named(row["sr"]) for row in others)], body, texts=1)


def _table_2(rows: Sequence[PaperRow]) -> list[str]:
    branches = list(dict.fromkeys(row["sr"] for row in rows))
    body = []
    for label, of_label in _by_label(rows):
        supports = [row["support"] for row in of_label.values()]
        cells = with_best_of_line({sr: _f2(row) for sr, row in of_label.items()})
        texts = [_bold(cells[sr]) if sr in cells else NULL for sr in branches]
        body.append([_label(label), "" if label is None else str(max(supports)), *texts])
    return aligned(["label", "patches", *map(_named, branches)], body, texts=1)


def _minus_2(rows: Sequence[PaperRow]) -> list[str]:
    branches = [sr for sr in dict.fromkeys(row["sr"] for row in rows) if sr != CONTROL]
    body = []
    for label, of_label in _by_label(rows):
        texts = [_difference(of_label[sr], "f2") if sr in of_label else NULL for sr in branches]
        body.append([_label(label), *texts])
    return aligned(["label", *map(_named, branches)], body, texts=1)


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
    if value is None or row.get("support") == 0:
        return NULL
    interval = "" if low is None or high is None else f" ({signed(low, 3)} to {signed(high, 3)})"
    return f"{signed(value, 3)}{interval} {MARKS[row[f'{name}_significant']]}"


def _label(label: str | None) -> str:
    """Return a label as text of a cell, whatever signs an archive has in it; None is the macro mean."""
    if label is None:
        return "macro mean"
    signs: dict[str, str | int | None] = {"\\": "\\\\", "|": "\\|", "*": "\\*", "`": "\\`", "<": "&lt;", "\n": " "}
    return label.translate(str.maketrans(signs))


def _named(sr: str) -> str:
    return f"{sr} (ceiling)" if sr == CEILING else sr


def _bold(cell: Cell) -> str:
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
