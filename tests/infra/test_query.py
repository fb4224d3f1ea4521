import re
from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import ConfigError, StoreError
from infra.object_store import ObjectPath
from infra.query import check_expression, connect, query
from infra.storage import write_bytes
from infra.tables import SCHEMA_VERSION, SCHEMAS, VERSION_KEY

OURS = {VERSION_KEY: SCHEMA_VERSION}
"""Metadata of a file that superscene wrote."""


def write(path: Path, **columns: list[object]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(columns, metadata=OURS), path)


@pytest.fixture
def tables(tmp_path: Path) -> Path:
    folder = tmp_path / "store" / "tables"
    for sr, config, value in (("none", "12345678", 1.5), ("hat", "abcdef01", 2.5), ("hat", "00000001", 3.5)):
        write(folder / "predictions" / f"sr={sr}" / f"config={config}" / "data-00000.parquet", value=[value])
    write(folder / "metrics" / "data-00000.parquet", config=["12345678", "abcdef01"], n=[1, 2])
    write(folder / "patches" / "data-00000.parquet", patch_id=["a", "b"])
    write(folder / "patches" / "data-00001.parquet", patch_id=["c"])
    (folder / "empty").mkdir()
    write(tmp_path / "outside.parquet", secret=[42])
    (tmp_path / "outside.csv").write_text("secret\n42\n")
    return folder


def names_in(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def files(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_every_table_is_a_view_over_all_its_files(tables: Path) -> None:
    assert query(tables, None, "SHOW TABLES").fetchall() == [("metrics",), ("patches",), ("predictions",)]
    assert query(tables, None, "SELECT * FROM patches ORDER BY 1").fetchall() == [("a",), ("b",), ("c",)]
    joined = query(tables, None, "SELECT n, value FROM metrics JOIN predictions USING (config) ORDER BY n")
    assert joined.columns == ["n", "value"]
    assert joined.fetchall() == [(1, 1.5), (2, 2.5)]
    assert joined.fetchall() == [(1, 1.5), (2, 2.5)], "the rows stay"


def test_folders_give_columns_and_a_config_of_digits_is_a_string(tables: Path) -> None:
    rows = query(tables, None, "SELECT value, sr, config, typeof(config) FROM predictions ORDER BY value").fetchall()
    assert rows == [
        (1.5, "none", "12345678", "VARCHAR"),
        (2.5, "hat", "abcdef01", "VARCHAR"),
        (3.5, "hat", "00000001", "VARCHAR"),
    ]


def test_the_views_equal_duckdb_s_own_reading(tables: Path) -> None:
    source = f"read_parquet('{tables}/predictions/**/*.parquet', hive_partitioning=true, hive_types_autocast=0)"
    own = duckdb.sql(f"SELECT value, sr, config FROM {source} ORDER BY 1")
    ours = query(tables, None, "SELECT value, sr, config FROM predictions ORDER BY 1")
    assert own is not None
    assert (ours.columns, ours.types, ours.fetchall()) == (own.columns, own.types, own.fetchall())


@pytest.mark.parametrize(
    ("configs", "expected"),
    [
        (None, [1.5, 2.5, 3.5]),
        (["12345678"], [1.5]),
        ({"abcdef01", "00000001"}, [2.5, 3.5]),
        (["99999999"], []),
        ([], []),
        (["x') OR ('1' = '1"], []),
    ],
)
def test_configs_are_filtered(tables: Path, configs: list[str] | None, expected: list[float]) -> None:
    rows = query(tables, configs, "SELECT value FROM predictions ORDER BY value").fetchall()
    assert [value for (value,) in rows] == expected
    filtered = query(tables, configs, "SELECT count(*), max(value) FROM predictions WHERE value > 2").fetchall()
    kept = [value for value in expected if value > 2]
    assert filtered == [(len(kept), max(kept, default=None))]
    assert query(tables, configs, "SELECT count(*) FROM patches").fetchall() == [(3,)], "patches have no config"
    n_metrics = sum(configs is None or config in configs for config in ("12345678", "abcdef01"))
    assert query(tables, configs, "SELECT count(*) FROM metrics").fetchall() == [(n_metrics,)]


def is_of_configs(name: str) -> bool:
    """Whether rows of a table have a config, by its schema, or by the folders that the page of tables tells."""
    page = (Path(__file__).parents[2] / "docs" / "tables.md").read_text(encoding="utf-8")
    (heading,) = re.findall(rf"^## tables/{name}(?:, .*)?$", page, re.MULTILINE)
    return "config" in SCHEMAS[name].names or "config=" in heading


def test_every_table_with_a_config_is_filtered(tmp_path: Path) -> None:
    """But for tables/configs, which says what the configs of all runs stand for."""
    for name, schema in SCHEMAS.items():
        for config in ("12345678", "abcdef01"):
            folder = tmp_path / name / f"config={config}"
            if "config" in schema.names:
                folder = tmp_path / name / "beside"
                other: dict[str, list[object]] = {}
                if "reference_config" in schema.names:
                    other["reference_config"] = [config]
                write(folder / f"{config}.parquet", config=[config], **other)
            elif is_of_configs(name):
                write(folder / "data-00000.parquet", n=[1])
            else:
                write(tmp_path / name / f"{config}.parquet", n=[1])
    rows = {name: query(tmp_path, ["abcdef01"], f"SELECT * FROM {name}").df() for name in SCHEMAS}
    filtered = {name for name in SCHEMAS if len(rows[name]) == 1}
    assert filtered == {name for name in SCHEMAS if is_of_configs(name)} - {"configs"}
    assert filtered >= {"predictions", "explanation_metrics", "quarantined_maps", "reliability", "risk_coverage"}
    assert all(set(rows[name]["config"]) == {"abcdef01"} for name in filtered)
    assert all(len(rows[name]) == 2 for name in SCHEMAS.keys() - filtered)
    assert all(len(query(tmp_path, None, f"SELECT * FROM {name}").df()) == 2 for name in SCHEMAS)


def test_a_difference_to_what_an_earlier_run_had_is_no_row_of_this_one(tmp_path: Path) -> None:
    pairs = [("12345678", "12345678"), ("12345678", "abcdef01"), ("abcdef01", "12345678")]
    for n, (ours, theirs) in enumerate(pairs, start=1):
        write(tmp_path / "comparisons" / f"{n}.parquet", config=[ours], reference_config=[theirs], n=[n])
    assert query(tmp_path, ["12345678"], "SELECT n FROM comparisons").fetchall() == [(1,)]


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO '{tables}/new.csv'",
        "COPY (SELECT 1) TO '{outside}/new.csv'",
        "COPY patches TO '{tables}/patches/data-00000.parquet'",
        "WITH x AS (COPY (SELECT 1) TO '{tables}/new.csv') SELECT * FROM x",
        "WITH x AS (COPY (SELECT 1 AS patch_id) TO '{tables}/patches/data-00000.parquet') SELECT * FROM x",
        "WITH x AS (COPY (SELECT 1) TO '{outside}/new.csv') SELECT * FROM x",
        "WITH x AS (INSERT INTO patches VALUES ('d') RETURNING *) SELECT * FROM x",
        "EXPORT DATABASE '{tables}/dump'",
        "ATTACH '{tables}/a.db'",
        "ATTACH '{outside}/a.db'",
        "INSTALL httpfs",
        "LOAD httpfs",
        "SET enable_external_access = true",
        "SET threads = 1",
        "RESET lock_configuration",
        "PRAGMA enable_profiling",
        "CREATE TABLE a AS SELECT 1",
        "CREATE OR REPLACE VIEW patches AS SELECT 1",
        "CREATE MACRO f(x) AS x",
        "INSERT INTO patches VALUES ('d')",
        "DELETE FROM patches",
        "DROP VIEW patches",
        "CHECKPOINT",
        "SELECT 1; SELECT 2",
        "SELECT 1; COPY (SELECT 1) TO '{tables}/new.csv'",
        "",
        ";",
        "SELEC 1",
        "SELECT * FROM nowhere",
        "SELECT 'a'::INT",
        "SELECT * FROM read_csv('/etc/passwd')",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM '/etc/passwd'",
        "SELECT * FROM '{outside}/outside.parquet'",
        "SELECT * FROM read_parquet('{outside}/outside.parquet')",
        "SELECT * FROM read_csv('{tables}/../../outside.csv')",
        "SELECT * FROM read_parquet(['{outside}/outside.parquet'])",
        "SELECT * FROM read_csv('outside.csv')",
        "SELECT * FROM glob('{outside}/*')",
        "SELECT * FROM read_blob('/proc/self/environ')",
        "SELECT * FROM read_parquet('https://example.com/a.parquet')",
        "SELECT * FROM query('SELECT * FROM read_csv(''/etc/passwd'')')",
        "SELECT * FROM duckdb_secrets()",
        "SELECT getenv('HOME')",
        "SELECT * FROM relation_of_the_caller",
    ],
)
def test_nothing_is_written_and_nothing_outside_is_read(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, statement: str
) -> None:
    monkeypatch.chdir(tmp_path)
    relation_of_the_caller = pa.table({"a": [1]})
    before = files(tmp_path)
    with pytest.raises(ConfigError, match=r"^sql"):
        query(tables, None, statement.format(tables=tables, outside=tmp_path))
    assert files(tmp_path) == before
    assert names_in(tmp_path) == {"store", "outside.parquet", "outside.csv"}
    assert relation_of_the_caller.num_rows == 1


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT count(*) FROM predictions",
        "WITH x AS (SELECT 3) SELECT * FROM x",
        "FROM predictions SELECT count(*)",
        "VALUES (3)",
        "SELECT 3 -- ; COPY",
        "SELECT 3;",
    ],
)
def test_every_kind_of_select_is_answered(tables: Path, statement: str) -> None:
    assert query(tables, None, statement).fetchall() == [(3,)]


@pytest.mark.parametrize(
    "statement",
    [
        "COPY (SELECT 1) TO '{tables}/new.csv'",
        "ATTACH '{tables}/a.db'",
        "EXPORT DATABASE '{tables}/dump'",
        "SELECT * FROM '{tables}/patches/data-00000.parquet'",
        "SET allowed_directories = ['/']",
        "SET enable_external_access = true",
        "SET lock_configuration = false",
        "SET temp_directory = '{tables}'",
        "LOAD httpfs",
    ],
)
def test_the_fence_holds_without_the_check_of_statements(tables: Path, statement: str) -> None:
    connection = connect(tables, None)
    before = files(tables)
    with pytest.raises(duckdb.Error):
        connection.execute(statement.format(tables=tables))
    assert connection.execute("SELECT current_setting('allowed_directories')").fetchall() == [([],)]
    assert files(tables) == before
    assert connection.execute("SELECT count(*) FROM patches").fetchall() == [(3,)]


@pytest.mark.parametrize(
    "name",
    [
        "x\" AS SELECT 1; CREATE VIEW hacked AS SELECT 'yes'; --",
        "x'; COPY (SELECT 1) TO 'hacked.csv'; --",
        "a b",
        "a.b",
        "sélect",
        "select",
        "Patches2",
        "a[1]*?",
    ],
)
def test_a_folder_s_name_is_never_run(tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.chdir(tmp_path)
    before = names_in(tmp_path)
    write(tables / name / "it's" / "data-00000.parquet", a=[5])
    names = {row[0] for row in query(tables, None, "SHOW TABLES").fetchall()}
    assert names == {"metrics", "patches", "predictions", name}
    quoted = name.replace('"', '""')
    assert query(tables, None, f'SELECT a FROM "{quoted}"').fetchall() == [(5,)]
    assert names_in(tmp_path) == before


@pytest.mark.parametrize("root", ["it's", "run[1]", "ru*n", "sr=hat/config=abcdef01", "naïve ☃", 'double"quote'])
def test_a_store_may_lie_in_any_folder(tables: Path, tmp_path: Path, root: str) -> None:
    moved = tmp_path / root / "tables"
    moved.parent.mkdir(parents=True)
    tables.rename(moved)
    rows = query(moved, ["12345678"], "SELECT * FROM predictions").fetchall()
    assert rows == [(1.5, "none", "12345678")]


def test_a_relative_path_and_a_link_lead_to_the_tables(
    tables: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "link").symlink_to(tables.parent)
    monkeypatch.chdir(tmp_path)
    for path in (Path("store/tables"), Path("link/tables"), tmp_path / "link" / "tables"):
        assert query(path, None, "SELECT count(*) FROM patches").fetchall() == [(3,)]


def test_tables_on_object_storage_are_asked_alike_and_fenced_alike(tables: Path, s3_folder: ObjectPath) -> None:
    for file in tables.rglob("*.parquet"):
        write_bytes(s3_folder / "tables" / file.relative_to(tables), file.read_bytes())
    write_bytes(s3_folder / "outside.parquet", (tables.parent.parent / "outside.parquet").read_bytes())
    remote = s3_folder / "tables"
    for configs in (None, ["12345678"]):
        for statement in ("SELECT * FROM predictions ORDER BY value", "SELECT * FROM metrics ORDER BY n"):
            assert query(remote, configs, statement).fetchall() == query(tables, configs, statement).fetchall()
    for outside in (s3_folder, tables.parent.parent):
        for reader in (f"'{outside}/outside.parquet'", f"read_parquet('{outside}/outside.parquet')"):
            with pytest.raises(ConfigError):
                query(remote, None, f"SELECT * FROM {reader}")
    with pytest.raises(StoreError, match="there are no tables in s3://"):
        connect(s3_folder / "none", None)


def test_columns_of_an_older_schema_are_united_by_name(tables: Path) -> None:
    folder = tables / "runs"
    write(folder / "a.parquet", run=["1"], stages=[["x"]])
    write(folder / "b.parquet", stages=[["y", "z"]], run=["2"], inputs=[7])
    write(folder / "c.parquet", run=["3"], inputs=[None])
    rows = query(tables, None, "SELECT run, stages, inputs FROM runs ORDER BY run").fetchall()
    assert rows == [("1", ["x"], None), ("2", ["y", "z"], 7), ("3", None, None)]


def test_a_partial_file_is_no_row(tables: Path) -> None:
    (tables / "patches" / ".data-00000.parquet.0a1b2c3d.partial").write_bytes(b"PAR1")
    assert query(tables, None, "SELECT count(*) FROM patches").fetchall() == [(3,)]


def test_no_tables_and_damaged_ones_are_told(tables: Path, tmp_path: Path) -> None:
    for folder in (tmp_path / "none", tables / "empty"):
        with pytest.raises(StoreError, match=f"no tables in {folder}"):
            query(folder, None, "SELECT 1")
    (tables / "metrics" / "data-00001.parquet").write_bytes(b"nonsense")
    with pytest.raises(StoreError, match=r"the table .*metrics cannot be read"):
        query(tables, None, "SELECT 1")


@pytest.mark.parametrize("text", ["a = 1", "a IN (1, 2) -- why", "/* ) */ a", "a = ')' OR (b AND (c))", "a\n"])
def test_an_expression_by_itself_is_let_through(text: str) -> None:
    check_expression(text)


@pytest.mark.parametrize(
    "text", ["a) OR (b", "a)\nOR (b", "a) LIMIT (5", ") --", "a) UNION SELECT (b", "a)/*", "", "a = ("]
)
def test_a_text_that_could_close_its_brackets_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match=r"[Pp]arser"):
        check_expression(text)


@pytest.mark.parametrize("statement", ["UPDATE EXTENSIONS", "SELECT '\udcff'", "\ud800"])
def test_what_python_has_no_word_for_is_one_sentence_too(tables: Path, statement: str) -> None:
    with pytest.raises(ConfigError):
        query(tables, None, statement)


def test_half_a_character_is_no_expression() -> None:
    with pytest.raises(ConfigError):
        check_expression("country = '\udcff'")


def test_a_file_that_is_a_link_out_of_its_table_is_not_read(tables: Path) -> None:
    (tables / "metrics" / "data-00001.parquet").symlink_to(tables.parent.parent / "outside.parquet")
    with pytest.raises(StoreError, match="leads out of"):
        query(tables, None, "SELECT * FROM metrics")


def test_damaged_texts_and_columns_are_told(tables: Path) -> None:
    odd = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    rows = {"config": pa.array(["12345678"]), "n": pa.array([1]), "label": odd}
    pq.write_table(pa.table(rows, metadata=OURS), tables / "metrics" / "b.parquet")
    with pytest.raises(StoreError, match="damaged"):
        query(tables, None, "SELECT * FROM metrics")
    assert query(tables, None, "SELECT count(*) FROM metrics").fetchall() == [(3,)]
    odd_name = tables / "metrics" / "b.parquet"
    pq.write_table(pa.table({"n": [1], "xyzzy": [1]}, metadata=OURS), odd_name, store_schema=False)
    odd_name.write_bytes(odd_name.read_bytes().replace(b"xyzzy", b"\xff\xfezzy"))
    with pytest.raises(StoreError, match="cannot be read"):
        query(tables, None, "SELECT * FROM metrics")
    twice = pa.Table.from_arrays([pa.array([1]), pa.array([2])], ["n", "n"], metadata=OURS)
    pq.write_table(twice, tables / "metrics" / "b.parquet")
    with pytest.raises(StoreError, match="cannot be read"):
        query(tables, None, "SELECT * FROM metrics")


@pytest.mark.parametrize(
    "statement",
    [
        "SELECT getenv('HOME')",
        "SELECT * FROM read_text('/etc/hostname')",
        "SELECT * FROM read_blob('/proc/self/environ')",
        "SELECT * FROM read_csv('/dev/stdin')",
        "SELECT * FROM glob('/*')",
        "SELECT * FROM sniff_csv('/etc/hostname')",
        "SELECT * FROM read_parquet('http://127.0.0.1:1/x.parquet')",
        "SELECT * FROM 's3://bucket/x.parquet'",
        "SELECT * FROM duckdb_secrets()",
        "SELECT * FROM duckdb_extensions()",
        "SELECT * FROM query('SELECT * FROM read_text(''/etc/hostname'')')",
        "SELECT * FROM query('COPY patches TO ''x.csv''')",
        "SELECT * FROM query_table('/etc/hostname')",
        "SELECT * FROM json_execute_serialized_sql(json_serialize_sql('SELECT * FROM read_text(''/etc/hostname'')'))",
        "SELECT * FROM sqlite_scan('/x', 'y')",
        "SELECT * FROM iceberg_scan('/x')",
        "SELECT * FROM enable_logging()",
        "SELECT * FROM enable_profiling()",
        "SELECT * FROM pandas_scan(1::POINTER)",
        "SELECT * FROM python_arrow_scan(1::POINTER, 1::POINTER, 1::POINTER)",
        "WITH x AS (COPY patches TO 'x.csv') SELECT 1",
        "WITH x AS (COPY patches TO '/dev/stdout') SELECT 1",
        "WITH x AS (INSERT INTO patches VALUES ('z') RETURNING *) SELECT * FROM x",
        "SELECT 1 -- a comment\n; SET threads = 1",
        "PREPARE x AS SELECT 1",
        "EXECUTE x",
        "CREATE SECRET x (TYPE s3)",
        "UPDATE EXTENSIONS",
        "LOAD httpfs",
        "INSTALL httpfs",
        "CALL pragma_version()",
        "USE temp",
        "DETACH memory",
    ],
)
def test_no_way_leads_out_of_the_tables(tables: Path, statement: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tables.parent)
    before = files(tables.parent.parent)
    with pytest.raises(ConfigError):
        query(tables, None, statement)
    assert files(tables.parent.parent) == before
