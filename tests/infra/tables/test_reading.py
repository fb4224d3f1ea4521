"""Files of other versions, other programs and other hands."""

import re
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.errors import ConfigError, PipelineError, StoreError
from infra.object_store import ObjectPath
from infra.query import query
from infra.storage import write_bytes
from infra.tables import (
    CHANGES,
    METRICS,
    SCHEMA_VERSION,
    VERSION_KEY,
    check_store,
    file_version,
    open_table,
    optional,
    publish,
    read_file,
    read_table,
    required,
)

ROWS = pa.schema(
    [required("name", pa.string(), "Name", "by hand"), optional("value", pa.int64(), "Value", "by hand", "count")]
)
NEWER = str(int(SCHEMA_VERSION) + 1)


def write(path: Path, version: str | None, **columns: list[object]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    metadata = None if version is None else {VERSION_KEY: version}
    pq.write_table(pa.table(columns or {"name": ["a"], "value": [1]}, metadata=metadata), path)
    return path


def test_versions_count_up_and_the_last_is_written(tmp_path: Path) -> None:
    assert [*CHANGES] == [str(i + 1) for i in range(len(CHANGES))]
    assert [*CHANGES][-1] == SCHEMA_VERSION
    publish(tmp_path, ROWS.empty_table(), ROWS, [])
    assert file_version(pq.read_schema(tmp_path / "data-00000.parquet")) == SCHEMA_VERSION


@pytest.mark.parametrize("version", CHANGES)
def test_every_version_so_far_is_read(tmp_path: Path, version: str) -> None:
    path = write(tmp_path / "metrics" / "a.parquet", version)
    assert read_file(path, ["value"]).to_pylist() == [{"value": 1}]
    assert read_table(path.parent).to_pylist() == [{"name": "a", "value": 1}]
    assert open_table(path.parent, ROWS).to_table().to_pylist() == [{"name": "a", "value": 1}]
    assert query(tmp_path, None, "SELECT value FROM metrics").fetchall() == [(1,)]
    check_store(tmp_path)


REFUSED = {NEWER: "newer superscene.*Update", None: "was not written by superscene.*Move it", "x\n": r"version 'x\\n'"}


@pytest.mark.parametrize("version", REFUSED)
def test_a_newer_file_and_one_of_another_program_is_refused_and_named(tmp_path: Path, version: str | None) -> None:
    write(tmp_path / "metrics" / "a.parquet", SCHEMA_VERSION)
    path = write(tmp_path / "metrics" / "b.parquet", version)
    message = f"{re.escape(str(path))} .*{REFUSED[version]}"
    for read in (
        lambda: read_file(path),
        lambda: read_table(path.parent),
        lambda: open_table(path.parent, ROWS),
        lambda: check_store(tmp_path),
        lambda: query(tmp_path, None, "SELECT 1"),
    ):
        with pytest.raises(StoreError, match=message):
            read()
    assert issubclass(StoreError, PipelineError)  # one sentence on the command line
    with pytest.raises(StoreError):
        check_store(tmp_path)


def test_somebody_s_own_table_is_let_alone_unless_it_tells_a_newer_version(tmp_path: Path) -> None:
    path = write(tmp_path / "my notes" / "a.parquet", None)
    check_store(tmp_path)
    assert query(tmp_path, None, 'SELECT value FROM "my notes"').fetchall() == [(1,)]
    write(path, NEWER)
    with pytest.raises(StoreError, match="newer"):
        check_store(tmp_path)
    with pytest.raises(StoreError, match="newer"):
        query(tmp_path, None, "SELECT 1")


def test_a_store_without_tables_has_nothing_that_cannot_be_read(tmp_path: Path) -> None:
    check_store(tmp_path / "none")
    (tmp_path / "empty").mkdir()
    check_store(tmp_path)


def test_a_column_that_an_earlier_version_lacks_is_null_in_its_rows(tmp_path: Path) -> None:
    publish(tmp_path, pa.table({"name": ["new"], "value": [7]}), ROWS, ["name"])
    write(tmp_path / "old.parquet", "1", name=["old"])
    found = open_table(tmp_path, ROWS).to_table().to_pylist()
    assert found == [{"name": "new", "value": 7}, {"name": "old", "value": None}]
    assert sorted(row["name"] for row in read_table(tmp_path).to_pylist()) == ["new", "old"]


def test_a_column_that_is_lost_from_a_file_of_this_version_is_told(tmp_path: Path) -> None:
    path = write(tmp_path / "a.parquet", SCHEMA_VERSION, name=["a"])
    with pytest.raises(StoreError, match=rf"{path} lacks the columns value: another program"):
        open_table(tmp_path, ROWS)


def test_an_absent_table_is_told_by_the_one_and_empty_for_the_other(tmp_path: Path) -> None:
    assert read_table(tmp_path / "none").num_columns == 0
    with pytest.raises(StoreError, match=r"no table in .*none: run the flow"):
        open_table(tmp_path / "none", ROWS)


def test_files_of_two_versions_are_one_table_whichever_comes_first(tmp_path: Path) -> None:
    """Descriptions, units and sources differ between them; names and types do not."""
    row = {field.name: "x" if field.type == pa.string() else 1 for field in METRICS}
    plain = pa.schema([pa.field(field.name, field.type, field.nullable) for field in METRICS])
    for stem, version in (("a", "1"), ("c", "1"), ("b", SCHEMA_VERSION)):
        file = tmp_path / "metrics" / f"{stem}-00000.parquet"
        if version == SCHEMA_VERSION:
            publish(file.parent, pa.Table.from_pylist([row], METRICS), METRICS, [], file_stem=stem)
        else:
            file.parent.mkdir(exist_ok=True)
            pq.write_table(pa.Table.from_pylist([row], plain).replace_schema_metadata({VERSION_KEY: version}), file)
    assert read_table(tmp_path / "metrics").to_pylist() == [row] * 3
    assert open_table(tmp_path / "metrics", METRICS).to_table().to_pylist() == [row] * 3
    assert query(tmp_path, None, "SELECT count(*) FROM metrics").fetchall() == [(3,)]


def test_a_store_on_object_storage_is_checked_alike(s3_folder: ObjectPath, tmp_path: Path) -> None:
    good, newer = (write(tmp_path / v, v).read_bytes() for v in (SCHEMA_VERSION, NEWER))
    write_bytes(s3_folder / "tables" / "metrics" / "a.parquet", good)
    check_store(s3_folder / "tables")
    assert read_table(s3_folder / "tables" / "metrics").num_rows == 1
    write_bytes(s3_folder / "tables" / "metrics" / "sr=none" / "b.parquet", newer)
    with pytest.raises(StoreError, match=r"s3://.*/sr=none/b.parquet .*newer"):
        check_store(s3_folder / "tables")
    with pytest.raises((StoreError, ConfigError), match="newer"):
        query(s3_folder / "tables", None, "SELECT 1")
