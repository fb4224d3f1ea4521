from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from infra.object_store import ObjectPath
from infra.parquet_files import (
    count_rows,
    parquet_dataset,
    read_coded,
    read_each,
    read_parquet,
    read_rows,
    read_schemas,
)
from infra.parts import write_parquet
from tests.infra.s3_server import Fault, S3Server

ROWS = pa.table({"a": pa.array(range(1000), pa.int64()), "b": [f"row {i}" for i in range(1000)], "c": [0.5] * 1000})


@pytest.fixture(params=["local", "s3"])
def folder(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    return tmp_path if request.param == "local" else request.getfixturevalue("s3_folder")


def test_rows_and_columns_come_back_wherever_the_file_lies(folder: Path) -> None:
    path = folder / "sr=none" / "x.parquet"  # the folder's name is no column
    write_parquet(path, ROWS, row_group_size=100)
    assert read_parquet(path).equals(ROWS)
    assert read_parquet(path, ["b"]).equals(ROWS.select(["b"]))
    assert read_rows(path, "a", 345).to_pylist() == [{"a": 345, "b": "row 345", "c": 0.5}]
    assert read_schemas([path, path]) == [ROWS.schema, ROWS.schema]
    for missing in (read_parquet, lambda path: read_parquet(path, ["a"]), lambda path: read_schemas([path])):
        with pytest.raises(FileNotFoundError):
            missing(folder / "none.parquet")


def test_strings_are_read_as_codes(folder: Path) -> None:
    path = folder / "x.parquet"
    rows = ROWS.append_column("d", pa.array(["one", None, "zwei", "one"] * 250))
    write_parquet(path, rows, row_group_size=300)
    coded = read_coded(path, ["d", "a"])
    assert coded.schema.types == [pa.dictionary(pa.int32(), pa.string()), pa.int64()]
    assert coded.cast(rows.select(["d", "a"]).schema).equals(rows.select(["d", "a"]))
    assert coded["d"].chunk(0).dictionary.to_pylist() == ["one", "zwei"]
    with pytest.raises(FileNotFoundError):
        read_coded(folder / "none.parquet", ["a"])


def test_what_is_read_of_many_files_has_their_order(folder: Path) -> None:
    paths = [folder / f"{i}.parquet" for i in range(40)]
    for i, path in enumerate(paths):
        write_parquet(path, ROWS.slice(0, i))
    assert count_rows(paths) == read_each(paths, lambda path: int(path.stem)) == list(range(40))
    assert count_rows([]) == []
    with pytest.raises(FileNotFoundError):
        count_rows([*paths, folder / "none.parquet"])


def test_a_dataset_reads_what_is_asked_of_it(folder: Path) -> None:
    for key in ("x", "y"):
        for i in range(3):
            write_parquet(folder / f"k={key}" / f"{i}.parquet", ROWS.slice(i * 300, 300))
    files = sorted(folder.rglob("*.parquet"))
    hive = pa.schema([("k", pa.string())])
    dataset = parquet_dataset(files, pa.schema([*ROWS.schema, *hive]), folder, hive)
    found = dataset.to_table(columns=["a", "k"], filter=(pc.field("a") > 890) & (pc.field("k") == "y"))
    assert found.to_pylist() == [{"a": i, "k": "y"} for i in range(891, 900)]
    plain = parquet_dataset(files[:3])
    assert plain.schema.names == ["a", "b", "c"]
    assert plain.to_table().equals(ROWS.slice(0, 900))


def test_all_columns_are_one_request_and_some_are_not_the_whole_file(s3: S3Server, s3_folder: ObjectPath) -> None:
    path = s3_folder / "x.parquet"
    wide = pa.table({f"c{i}": pa.array(range(i, i + 50_000)) for i in range(20)})
    write_parquet(path, wide)
    s3.requests.clear()
    s3.faults.append(Fault("half", method="GET"))
    assert read_parquet(path).equals(wide)
    assert {line.split()[0] for line in s3.requests} == {"GET"}
    s3.requests.clear()
    s3.sent = 0
    s3.faults.append(Fault("cut", method="GET", times=2))
    assert read_parquet(path, ["c7"]).equals(wide.select(["c7"]))
    sent = s3.sent
    whole = pq.ParquetFile(pa.BufferReader(path.read_bytes())).metadata
    column = whole.row_group(0).column(7).total_compressed_size
    assert 0 < sent < 2**17 + column < len(path.read_bytes())
