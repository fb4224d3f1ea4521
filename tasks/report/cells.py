"""Cells of a table that people read: how a number looks, and which of a column is the best."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

from sr_models.registry import CEILING

NULL = "\N{EN DASH}"
"""What stands for null."""


@dataclass(frozen=True, slots=True)
class Column:
    """One number of a table, and how it is read."""

    name: str
    """Column or metric of the tables."""
    title: str
    hint: str
    """What it means, one sentence."""
    decimals: int = 3
    better: int = 1
    """1: higher is better, -1: lower is better, 0: neither."""

    @property
    def titled(self) -> str:
        """The title with an arrow that says which way is better."""
        return f"{self.title}{ {1: ' ↑', -1: ' ↓', 0: ''}[self.better] }"


@dataclass(frozen=True, slots=True)
class Cell:
    """A number in a table."""

    value: float | None
    text: str
    best: bool = False
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class Row:
    """A line of a table: what it is about, and its numbers."""

    sr: str
    classifier: str
    seeds: Sequence[int]
    """Training seeds that the numbers are means over."""
    n: int
    """Patches that the numbers are of."""
    cells: Mapping[str, Cell]
    """By column."""


def number(value: float | None, decimals: int) -> str:
    """Return a number as people see it, with a real minus sign, 0 without any; a dash for null."""
    return NULL if value is None else f"{value:z.{decimals}f}".replace("-", "\N{MINUS SIGN}")  # z: no -0.00


def signed(value: float | None, decimals: int) -> str:
    """Return a difference as people see it, with its sign; 0 has none, null is a dash."""
    text = number(value, decimals)
    return f"+{text}" if value is not None and float(f"{value:.{decimals}f}") > 0 else text


def with_best(rows: Sequence[Row], columns: Sequence[Column], group: Callable[[Row], str]) -> list[Row]:
    """Return rows with the best cell of every column marked in each group; the ceiling takes no part.

    Cells that look alike at the column's decimals are equally good; where all do, none is best.
    """
    best: dict[tuple[str, str], str] = {}
    for column in columns:
        for name in dict.fromkeys(map(group, rows)):
            cells = [r.cells[column.name] for r in rows if _competes(r, name, group) and column.name in r.cells]
            text = _best_text(cells, column.better)
            if text is not None:
                best[column.name, name] = text
    return [
        replace(
            row,
            cells={
                name: replace(cell, best=row.sr != CEILING and best.get((name, group(row))) == cell.text)
                for name, cell in row.cells.items()
            },
        )
        for row in rows
    ]


def with_best_of_line(cells: Mapping[str, Cell]) -> dict[str, Cell]:
    """Return cells of one line by SR model with the best, the highest, marked, as `with_best` does with columns."""
    top = _best_text([cell for sr, cell in cells.items() if sr != CEILING], 1)
    return {sr: replace(cell, best=sr != CEILING and cell.text == top) for sr, cell in cells.items()}


def _best_text(cells: Sequence[Cell], better: int) -> str | None:
    """Return the text of the best cells; None where all look alike, and where neither way is better."""
    known = [cell for cell in cells if cell.value is not None]
    if not better or len({cell.text for cell in known}) < 2:
        return None
    return max(known, key=lambda cell: better * (cell.value or 0.0)).text


def _competes(row: Row, name: str, group: Callable[[Row], str]) -> bool:
    return row.sr != CEILING and group(row) == name
