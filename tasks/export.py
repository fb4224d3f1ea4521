"""Export: the tables of a store in forms that other tools read; CSV here, and what all exports share."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import IO, Any

import pyarrow as pa
import shapely
from pyarrow import csv

from infra.errors import ConfigError, StoreError, UnknownNameError
from infra.query import views
from infra.storage import StorePaths, write_atomically
from tasks.run_record import scored_configs

PAPER_TABLES: Mapping[str, str] = MappingProxyType({"Table1": "paper_table_1", "Table2": "paper_table_2"})
"""The paper's tables, by the names that it gives them."""

_BATCH = 1 << 15
"""Rows in memory."""


@dataclass(frozen=True, slots=True)
class Exported:
    """What was written."""

    rows: int
    left_out: int = 0
    """Patches that the form cannot hold: without a place or a day."""


def names_of_tables(store: Path) -> list[str]:
    """Return the names that `export_csv` takes: the paper's tables first, then all others of the store by theirs.

    Raises:
        StoreError: There are no tables.
    """
    found = {path.name for path in StorePaths(store).tables.glob("*") if any(path.rglob("*.parquet"))}
    if not found:
        raise StoreError(f"there are no tables in {StorePaths(store).tables}: run the flow first")
    papers = [name for name, table in PAPER_TABLES.items() if table in found]
    return [*papers, *sorted(found - {*PAPER_TABLES.values()})]


def export_csv(store: Path, name: str, out: Path, *, overwrite: bool = False) -> Exported:
    """Write a table as CSV, see `write_csv`.

    Args:
        store: The store.
        name: One of `names_of_tables`.
        out: The file to write; it appears when it is whole.
        overwrite: Whether a file of that name may be replaced.

    Raises:
        ConfigError: The file is there, or lies where it must not.
        UnknownNameError: There is no such table.
        StoreError: A table cannot be read, or the file not be written.
    """
    check_output(store, out, overwrite=overwrite)
    rows = 0

    def write(path: Path) -> None:
        nonlocal rows
        with path.open("wb") as file:
            rows = write_csv(store, name, file)

    write_atomically(out, write)
    return Exported(rows)


def write_csv(store: Path, name: str, file: IO[bytes]) -> int:
    """Write a table as CSV (RFC 4180, UTF-8, a line of names first) and return its number of rows.

    Rows are those that `superscene sql` shows: of tables with a config, those of the last run. A null is an empty cell,
    an empty text is "". Lists are JSON, footprints WKT, instants UTC.

    Args:
        store: The store.
        name: One of `names_of_tables`.
        file: Where to write; memory holds some thousand rows at a time.

    Raises:
        UnknownNameError: There is no such table; the message lists those that are there.
        StoreError: A table cannot be read, or a newer superscene wrote it.
    """
    names = names_of_tables(store)
    if name not in names:
        raise UnknownNameError(f"{store} has no table {name}: it has {', '.join(names)}")
    paths = StorePaths(store)
    table = PAPER_TABLES.get(name, name)
    dataset = views(paths.tables, scored_configs(paths), [table])[table]
    rows = 0
    with csv.CSVWriter(file, pa.schema([(field.name, _cell_type(field)) for field in dataset.schema])) as writer:
        for batch in dataset.to_batches(batch_size=_BATCH, batch_readahead=1, fragment_readahead=1):
            cells = [_cells(column, field) for column, field in zip(batch.columns, batch.schema, strict=True)]
            writer.write_batch(pa.RecordBatch.from_arrays(cells, batch.schema.names))
            rows += batch.num_rows
    return rows


def check_output(store: Path, out: Path, *, overwrite: bool) -> None:
    """Refuse an output that would replace something, or would lie among the store's own tables.

    Raises:
        ConfigError: It would.
    """
    if out.is_dir():
        raise ConfigError(f"the output {out} is a folder: name a file in it")
    if out.exists() and not overwrite:
        raise ConfigError(f"the output {out} is there already: choose another name, or --overwrite")
    if out.resolve().is_relative_to(StorePaths(store).tables.resolve()):
        raise ConfigError(f"the output {out} lies among the store's own tables: choose another folder")


def _cell_type(field: "pa.Field[pa.DataType]") -> pa.DataType:
    return pa.string() if _as_text(field) is not None else field.type


def _cells(column: pa.Array, field: "pa.Field[pa.DataType]") -> pa.Array:
    as_text = _as_text(field)
    if as_text is None:
        return column
    return pa.array([None if value is None else as_text(value) for value in column.to_pylist()], pa.string())


def _as_text(field: "pa.Field[pa.DataType]") -> Callable[[Any], str] | None:
    """Return what makes text of a column's values; None where CSV can hold them."""
    if pa.types.is_nested(field.type):
        return _json
    return _wkt if pa.types.is_binary(field.type) else None


def _json(value: object) -> str:
    return json.dumps(value, ensure_ascii=False)


def _wkt(wkb: bytes) -> str:
    return str(shapely.to_wkt(shapely.from_wkb(wkb), rounding_precision=-1))
