"""SQL over a store's tables: DuckDB in memory, one view a table, read-only and fenced in."""

from collections.abc import Collection
from pathlib import Path

import duckdb

from infra.errors import ConfigError, StoreError

_CONFIG_TABLES = ("predictions", "explanations", "reliability", "metrics", "sr_quality", "training")


def connect(tables: Path, configs: Collection[str] | None) -> duckdb.DuckDBPyConnection:
    """Return a connection that sees the tables and nothing else: no file outside, no write, no change of settings.

    Args:
        tables: The store's `tables` folder.
        configs: Configs of the rows to show, in tables that have a config; None shows all.

    Raises:
        StoreError: There are no tables.
    """
    names = sorted(path.name for path in tables.glob("*") if any(path.rglob("*.parquet")))
    if not names:
        raise StoreError(f"there are no tables in {tables}: run the flow first")
    connection = duckdb.connect(":memory:")
    for name in names:
        files = f"{tables / name}/**/*.parquet".replace("'", "''")
        where = ""
        if configs is not None and name in _CONFIG_TABLES:
            allowed = ", ".join(f"'{config}'" for config in sorted(configs))
            where = f" WHERE config IN ({allowed or 'NULL'})"
        connection.execute(
            f'CREATE VIEW "{name}" AS SELECT * FROM '  # noqa: S608  # names are folders of our own
            f"read_parquet('{files}', hive_partitioning=true, hive_types_autocast=0, union_by_name=true){where}"
        )
    # A list parameter cannot be bound in SET, so the path is quoted by hand.
    folder = str(tables.resolve()).replace("'", "''")
    connection.execute(f"SET allowed_directories = ['{folder}/']")
    connection.execute("SET enable_external_access = false")
    connection.execute("SET lock_configuration = true")
    return connection


def query(tables: Path, configs: Collection[str] | None, sql: str) -> duckdb.DuckDBPyRelation:
    """Return the rows of one SELECT.

    Raises:
        ConfigError: The statement is not a SELECT, or DuckDB refuses it; its message says why.
        StoreError: There are no tables.
    """
    connection = connect(tables, configs)
    try:
        statements = connection.extract_statements(sql)
        if len(statements) != 1 or statements[0].type != duckdb.StatementType.SELECT:
            raise ConfigError("sql takes one SELECT statement: the tables are read-only")
        return connection.sql(sql)
    except duckdb.Error as error:
        raise ConfigError(f"sql: {error}") from error
