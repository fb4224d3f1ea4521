"""Write docs/tables.md from the schemas: python docs/make_tables.py."""

from pathlib import Path

from infra.tables import SCHEMA_VERSION, SCHEMAS

_HIVE = {
    "predictions": "`sr=…/classifier=…/config=…/`",
    "reliability": "`sr=…/classifier=…/config=…/`",
    "explanations": "`sr=…/classifier=…/method=…/config=…/`",
    "quarantined_maps": "`sr=…/classifier=…/method=…/config=…/`",
}


def tables_page() -> str:
    """Return the page: every table, its columns, types and meanings."""
    lines = [
        "# Tables",
        "",
        f"Schema version {SCHEMA_VERSION}. Made from `infra/tables.py` by `docs/make_tables.py`. Files are Parquet,",
        "zstd; descriptions and the version are in them too, and `superscene.complete` says whether every shard is in.",
        "",
    ]
    for name, schema in SCHEMAS.items():
        where = f", Hive folders {_HIVE[name]}" if name in _HIVE else ""
        lines += [f"## tables/{name}{where}", "", "| column | type | null | meaning |", "|---|---|---|---|"]
        lines += [
            f"| {field.name} | {field.type if len(str(field.type)) < 60 else 'list<struct>'} | "
            f"{'yes' if field.nullable else ''} | {(field.metadata or {})[b'description'].decode()} |"
            for field in schema
        ]
        lines.append("")
    return "\n".join(lines)


if __name__ == "__main__":
    Path(__file__).with_name("tables.md").write_text(tables_page(), encoding="utf-8")
