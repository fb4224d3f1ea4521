"""Write docs/tables.md from the schemas: python docs/make_tables.py."""

from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa

from infra.tables import CHANGES, HIVE_COLUMNS, MEANING, SCHEMA_VERSION, SCHEMAS, SOURCE, UNIT, UNITS, said

_INTRODUCTION = f"""# Tables

Schema version {SCHEMA_VERSION}. Made from `infra/tables` by `docs/make_tables.py`. How to read them with DuckDB,
pandas, Polars, GeoPandas and QGIS: [recipes](tables-howto.md).

Files are Parquet, zstd. Their metadata hold what is here too: `description`, `unit` and `source` of every column,
`superscene.schema_version`, and `superscene.complete`, which says whether every shard is in. *metrics.md* is
[the page of metrics](metrics.md), *RUN.yaml* is [the configuration](run-yaml.md)."""


def columns(schema: pa.Schema) -> Iterator[tuple[str, "pa.Field[pa.DataType]"]]:
    """Yield every column with its name, and those of structs behind theirs, as stages.seconds."""
    for field in schema:
        yield field.name, field
        inner = field.type.value_type if pa.types.is_list(field.type) else field.type
        if pa.types.is_struct(inner):
            yield from ((f"{field.name}.{part.name}", part) for part in inner)


def tables_page() -> str:
    """Return the page: every table, its columns, their types, units, meanings and sources."""
    lines = [*_INTRODUCTION.splitlines(), "", "## Versions", "", "| version | what changed |", "|---|---|"]
    lines += [f"| {version} | {change} |" for version, change in CHANGES.items()]
    lines += [
        "",
        "Stores of every version here are read; a column that a version lacks is null in its rows. Tables of a newer",
        "version, and files that superscene did not write, are refused: the message says which.",
        "",
        "## Units",
        "",
        "| unit | says |",
        "|---|---|",
        *(f"| {unit} | {meaning} |" for unit, meaning in UNITS.items()),
        "",
    ]
    for name, schema in SCHEMAS.items():
        folders = "/".join(f"{key}=…" for key in HIVE_COLUMNS.get(name, ()))
        where = f", Hive folders `{folders}/`" if folders else ""
        lines += [f"## tables/{name}{where}", "", "| column | type | null | unit | meaning | source |"]
        lines += ["|---|---|---|---|---|---|"]
        lines += [
            f"| {column} | {_type(field.type)} | {'yes' if field.nullable else ''} | {said(field, UNIT)} | "
            f"{_cell(said(field, MEANING))} | {_cell(said(field, SOURCE))} |"
            for column, field in columns(schema)
        ]
        lines.append("")
    return "\n".join(lines)


def _type(type_: pa.DataType) -> str:
    of_structs = pa.types.is_list(type_) and pa.types.is_struct(type_.value_type)
    return "`list<struct>`" if of_structs else f"`{type_}`"


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


if __name__ == "__main__":
    Path(__file__).with_name("tables.md").write_text(tables_page(), encoding="utf-8")
