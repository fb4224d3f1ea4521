"""Reading published tables, of this version and of earlier ones."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.dataset as ds

from infra.errors import StoreError
from infra.parquet_files import parquet_dataset, read_parquet, read_schemas
from infra.tables.schemas import SCHEMAS
from infra.tables.versions import SCHEMA_VERSION, check_version, check_versions


def hive_folder(table: Path, **keys: str) -> Path:
    """Return table/key=value/…; values are names and hex digits of our own, never text of an archive."""
    return table.joinpath(*(f"{key}={value}" for key, value in keys.items()))


def read_file(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return the rows of one published file, all columns or some.

    Raises:
        FileNotFoundError: There is none.
        StoreError: A newer superscene wrote it, or none did.
    """
    rows = read_parquet(path, columns)
    check_version(rows.schema, path)
    return rows


def read_table(folder: Path) -> pa.Table:
    """Read a published table's files, without Hive columns; an absent folder has no rows and no columns.

    Raises:
        StoreError: A newer superscene wrote one of the files, or none did.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        return pa.table({})
    return pa.concat_tables([read_file(path) for path in files], promote_options="default")


def open_table(folder: Path, schema: pa.Schema) -> ds.Dataset:
    """Return a published table's files, without Hive columns, to be read in part.

    Args:
        folder: `tables/<name>` or a Hive folder below it.
        schema: Columns of today; one that an earlier version did not have is null in its rows.

    Raises:
        StoreError: There are no files, a newer superscene wrote one of them, or one lacks a column of its version.
    """
    files = sorted(folder.glob("*.parquet"))
    if not files:
        raise StoreError(f"there is no table in {folder}: run the flow first")
    for file, found in zip(files, read_schemas(files), strict=True):
        lost = sorted({*schema.names} - {*found.names})
        if check_version(found, file) == SCHEMA_VERSION and lost:
            raise StoreError(f"{file} lacks the columns {', '.join(lost)}: another program has changed it")
    return parquet_dataset(files, schema)


def check_store(tables: Path) -> None:
    """Check that this superscene can read every table of a store; of a store without tables there is nothing to say.

    Tables of other names than superscene's own are somebody else's, unless their files tell a version.

    Args:
        tables: The store's `tables` folder.

    Raises:
        StoreError: A newer superscene wrote one of the files, or none wrote one that lies among its own; the message
            says which, and what to do.
    """
    for folder in sorted(tables.glob("*")):
        files = sorted(folder.rglob("*.parquet"))
        check_versions(files, read_schemas(files), ours=folder.name in SCHEMAS)
