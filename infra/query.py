"""SQL over a store's tables: DuckDB in memory, one view a table, and no way to a file."""

from collections.abc import Collection
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds

from infra.errors import ConfigError, StoreError
from infra.object_store import ObjectPath
from infra.parquet_files import parquet_dataset, read_schemas
from infra.tables import SCHEMAS, check_versions

_OF_EVERY_RUN = "configs"
"""What each config stands for; the only table with a column `config` whose rows are not of a run."""


def connect(tables: Path, configs: Collection[str] | None) -> duckdb.DuckDBPyConnection:
    """Return a connection that sees the tables and nothing else: no file to read or write, no change of settings.

    DuckDB is not let near the files, pyarrow reads them: of a folder that it may read, DuckDB says that it may write
    there too, and a SELECT can hold a COPY (`WITH x AS (COPY … TO …) SELECT …`).

    Args:
        tables: The store's `tables` folder.
        configs: Configs of the rows to show, wherever a table has a column or a folder `config` (and
            `reference_config`), but for tables/configs; None shows all.

    Raises:
        StoreError: There are no tables, one cannot be read, or a newer superscene wrote it.
    """
    connection = duckdb.connect(":memory:")
    for name, dataset in views(tables, configs).items():
        connection.register(name, dataset)
    for setting in (
        "python_enable_replacements = false",  # a variable of ours is no table
        "temp_directory = ''",  # else a folder .tmp of the working directory may be read and written
        "autoinstall_known_extensions = false",
        "autoload_known_extensions = false",
        "enable_external_access = false",
        "lock_configuration = true",
    ):
        connection.execute(f"SET {setting}")
    return connection


def views(tables: Path, configs: Collection[str] | None, names: Collection[str] | None = None) -> dict[str, ds.Dataset]:
    """Return the tables as they are shown, by name.

    Args:
        tables: The store's `tables` folder.
        configs: As `connect` has it.
        names: Tables wanted, those of them that are there; None: all.

    Raises:
        StoreError: There are no tables, one cannot be read, or a newer superscene wrote it.
    """
    folders = sorted(folder for folder in tables.glob("*") if names is None or folder.name in names)
    found = {folder.name: files for folder in folders if (files := sorted(folder.rglob("*.parquet")))}
    if not found:
        raise StoreError(f"there are no tables in {tables}: run the flow first")
    return {name: _view(tables / name, files, configs) for name, files in found.items()}


def _view(folder: Path, files: list[Path], configs: Collection[str] | None) -> ds.Dataset:
    try:
        dataset = _dataset(folder, files)
    except StoreError:
        raise
    except (pa.ArrowException, OSError, KeyError, ValueError) as error:  # a column twice, a name not in UTF-8
        raise StoreError(f"the table {folder} cannot be read: {error}") from error
    if configs is not None and folder.name != _OF_EVERY_RUN:
        wanted = pa.array(sorted(configs), pa.string())
        for column in {"config", "reference_config"} & {*dataset.schema.names}:
            dataset = dataset.filter(pc.field(column).isin(wanted))
    return dataset


def _dataset(folder: Path, files: list[Path]) -> ds.Dataset:
    """Return a table's files, columns united by name; folders `key=value` give further columns, of strings.

    Raises:
        StoreError: A file is a link to one outside of the table's folder, which may be anybody's; or a newer superscene
            wrote it, or none.
    """
    if not isinstance(folder, ObjectPath):
        inside = folder.resolve()
        for file in files:
            if not file.resolve().is_relative_to(inside):
                raise StoreError(f"{file} is a link that leads out of {folder}: put the file there")
    keys = dict.fromkeys(
        part.partition("=")[0] for file in files for part in file.relative_to(folder).parent.parts if "=" in part
    )
    hive = pa.schema([(key, pa.string()) for key in keys])
    schemas = read_schemas(files)
    check_versions(files, schemas, ours=folder.name in SCHEMAS)
    schema = pa.unify_schemas([*schemas, hive], promote_options="default")
    return parquet_dataset(files, schema.remove_metadata(), folder, hive)


def query(tables: Path, configs: Collection[str] | None, sql: str) -> duckdb.DuckDBPyRelation:
    """Return the rows of one SELECT, already computed.

    Raises:
        ConfigError: The statement is not a SELECT, or DuckDB refuses it; its message says why.
        StoreError: There are no tables, or one cannot be read.
    """
    connection = connect(tables, configs)
    try:
        statements = _statements(connection, sql)
        if len(statements) != 1 or not _is_select(statements[0]):
            raise ConfigError("sql takes one SELECT statement: the tables are read-only")
        rows = connection.sql(sql).materialize()
        rows.to_arrow_table().validate(full=True)
    except pa.ArrowInvalid as error:
        raise StoreError(f"a table in {tables} is damaged: {error}") from error
    except duckdb.Error as error:
        raise ConfigError(f"sql: {error}") from error
    return rows


def _statements(connection: duckdb.DuckDBPyConnection, sql: str) -> list[duckdb.Statement]:
    """Return the statements of a text, parsed and nothing more.

    Raises:
        ConfigError: It is none of DuckDB's SQL.
    """
    try:
        return connection.extract_statements(sql)
    except (duckdb.Error, TypeError) as error:  # TypeError: half a character, as a terminal may pass it on
        raise ConfigError(f"sql: {error}") from error


def _is_select(statement: duckdb.Statement) -> bool:
    try:
        return bool(statement.type == duckdb.StatementType.SELECT)
    except ValueError:  # a type without a name in Python, such as that of UPDATE EXTENSIONS
        return False


def check_expression(text: str) -> None:
    """Refuse a text that is no expression by itself: one that could close the brackets it is put into.

    Raises:
        ConfigError: DuckDB cannot read it as such; its message says where.
    """
    _statements(duckdb.connect(":memory:"), f"SELECT\n{text}\n")
