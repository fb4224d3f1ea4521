"""How commands speak: results on standard output, everything else on standard error."""

import csv
import json
import math
import sys
from collections.abc import Mapping, Sequence
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

from rich.console import Console
from rich.table import Table
from rich.text import Text

from infra.archives.names import is_displayable


def say(text: str) -> None:
    """Write to standard error."""
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def tell(text: str) -> None:
    """Write to standard output, as it is."""
    Console().print(text, markup=False, highlight=False, soft_wrap=True)


def tell_json(document: Mapping[str, object]) -> None:
    """Write the one JSON document of a command that was asked for it, one line of ASCII."""
    sys.stdout.write(json.dumps(jsonable(document), allow_nan=False) + "\n")
    sys.stdout.flush()


def jsonable(value: object) -> object:
    """Return a value as JSON can hold it; docs/json.md says how each kind is written.

    Raises:
        TypeError: JSON has no such value, and no way is written down for it.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, bytes | bytearray | memoryview):
        return bytes(value).hex()
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    if isinstance(value, timedelta):
        return value.total_seconds()
    if isinstance(value, Sequence | set | frozenset):
        return [jsonable(item) for item in value]
    if isinstance(value, Decimal):
        return float(value) if value.is_finite() else None
    if isinstance(value, Path | UUID):
        return str(value)
    raise TypeError(f"a {type(value).__name__} cannot be written as JSON")


def show_rows(columns: Sequence[str], rows: Sequence[Sequence[str]], right: Sequence[str] = ()) -> bool:
    """Show a table to a person; tab-separated, with nothing cut, where another program reads it.

    Args:
        columns: Their names.
        rows: Their texts.
        right: Columns of numbers.

    Returns:
        Whether it was shown to a person.
    """
    console = Console()
    if not console.is_terminal:
        csv.writer(sys.stdout, dialect="excel-tab").writerows([columns, *rows])
        return False
    table = Table(box=None)
    for column in columns:
        table.add_column(plain(column), overflow="fold", justify="right" if column in right else "left")
    for row in rows:
        table.add_row(*map(plain, row))
    console.print(table)
    return True


def plain(text: str) -> Text:
    """Return a text that is no markup, and has no sign that a terminal obeys."""
    return Text("".join(sign if is_displayable(sign) or sign == "\n" else "\ufffd" for sign in text))


def cell(value: object) -> str:
    """Return a value as a person reads it; nothing is empty."""
    return "" if value is None else f"{value:.4g}" if isinstance(value, float) else str(value)


def exact(value: object) -> str:
    """Return a value as another program reads it; nothing is empty."""
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
