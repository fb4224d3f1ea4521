import json
from pathlib import Path
from typing import Any

import duckdb
import geopandas as gpd
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from infra import tables
from infra.parts import write_parquet
from infra.query import query
from infra.tables import METRICS, PATCHES, SCHEMAS, hive_folder, predictions_schema, publish, publish_parts, read_table

SMALL = pa.schema(
    [
        tables._required("name", pa.string(), "Name"),
        tables._field("value", pa.float32(), "Value"),
    ]
)


def small(*rows: tuple[str, float | None]) -> pa.Table:
    return pa.table({"name": [name for name, _ in rows], "value": pa.array([v for _, v in rows], pa.float64())})


def example(type_: pa.DataType, i: int) -> Any:
    """A value of a type; the larger i, the larger the value."""
    if pa.types.is_fixed_size_list(type_):
        return [example(type_.value_type, i)] * type_.list_size
    if pa.types.is_list(type_):
        return [example(type_.value_type, j) for j in range(i)]
    if pa.types.is_struct(type_):
        return {field.name: example(field.type, i) for field in type_}
    if pa.types.is_boolean(type_):
        return i % 2 == 1
    if pa.types.is_string(type_):
        return f"text {i}"
    if pa.types.is_binary(type_):
        return shapely.to_wkb(shapely.box(i, 40, i + 1, 41))
    if pa.types.is_timestamp(type_):
        return pd.Timestamp("2026-01-01", tz="UTC") + pd.Timedelta(i, "D")
    return i


def examples(schema: pa.Schema, n: int = 3) -> list[dict[str, Any]]:
    return [{field.name: example(field.type, i) for field in schema} for i in range(n)]


def plain(value: Any) -> Any:
    """Lists for arrays of any kind, None for what stands for it in pandas."""
    if isinstance(value, list | np.ndarray):
        return [plain(item) for item in value]
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    return value.item() if isinstance(value, np.generic) else value


def test_rows_are_sorted_and_cast_and_replace_what_was_there(tmp_path: Path) -> None:
    publish(tmp_path, small(("old", 1), ("older", 2)), SMALL, ["name"])
    publish(tmp_path, small(("b", 0.1), ("a", None), ("c", 2)), SMALL, ["name"])
    (path,) = tmp_path.iterdir()
    table = pq.ParquetFile(path).read()
    assert table.schema.types == [pa.string(), pa.float32()]
    assert table.to_pylist() == [
        {"name": "a", "value": None},
        {"name": "b", "value": float(np.float32(0.1))},
        {"name": "c", "value": 2.0},
    ]
    assert not table.schema.field("name").nullable


def test_the_order_of_the_rows_changes_no_byte(tmp_path: Path) -> None:
    rows = [(f"{i:03d}", i / 3) for i in range(500)]
    publish(tmp_path / "a", small(*rows), SMALL, ["name"])
    shuffled = [rows[i] for i in np.random.default_rng(0).permutation(500)]
    pieces = [small(*shuffled[:123]), small(*shuffled[123:])]
    publish(tmp_path / "b", pa.concat_tables(pieces), SMALL, ["name"])
    assert (tmp_path / "a" / "data-00000.parquet").read_bytes() == (tmp_path / "b" / "data-00000.parquet").read_bytes()


def test_several_keys_sort_in_their_order(tmp_path: Path) -> None:
    rows = [("b", 1.0), ("a", 2.0), ("b", 0.0), ("a", 1.0)]
    publish(tmp_path, small(*rows), SMALL, ["name", "value"])
    assert [tuple(row.values()) for row in read_table(tmp_path).to_pylist()] == sorted(rows)


@pytest.mark.parametrize("complete", [True, False])
def test_the_files_say_whether_a_shard_is_missing(tmp_path: Path, complete: bool) -> None:
    publish(tmp_path, small(("a", 1)), SMALL, ["name"], complete=complete)
    metadata = pq.read_metadata(tmp_path / "data-00000.parquet").metadata or {}
    assert metadata[b"superscene.complete"] == (b"true" if complete else b"false")
    assert metadata[b"superscene.schema_version"] == b"1"
    assert b"geo" not in metadata


def test_a_large_table_has_several_files_and_a_smaller_one_leaves_none_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "ROWS_PER_FILE", 3)
    (tmp_path / "data-of-another-00000.parquet").touch()
    (tmp_path / "notes.txt").touch()
    rows = [(f"{i}", float(i)) for i in range(8)]

    def files() -> dict[str, int]:
        return {path.name: pq.read_metadata(path).num_rows for path in sorted(tmp_path.glob("data-0*"))}

    publish(tmp_path, small(*reversed(rows)), SMALL, ["name"])
    assert files() == {"data-00000.parquet": 3, "data-00001.parquet": 3, "data-00002.parquet": 2}
    frame = pd.concat(pd.read_parquet(path) for path in sorted(tmp_path.glob("data-0*")))
    assert frame["name"].tolist() == [name for name, _ in rows]
    publish(tmp_path, small(*rows[:6]), SMALL, ["name"])
    assert files() == {"data-00000.parquet": 3, "data-00001.parquet": 3}
    publish(tmp_path, small(), SMALL, ["name"])
    assert files() == {"data-00000.parquet": 0}
    assert {path.name for path in tmp_path.iterdir()} == {
        "data-00000.parquet",
        "data-of-another-00000.parquet",
        "notes.txt",
    }


def test_stems_of_one_folder_do_not_touch_one_another(tmp_path: Path) -> None:
    for stem in ("hat-abcdef01", "hat", "hat-abcdef02", "[hat]", "hat"):
        publish(tmp_path, small((stem, 1)), SMALL, ["name"], file_stem=stem)
    assert sorted(map(str, read_table(tmp_path)["name"].to_pylist())) == [
        "[hat]",
        "hat",
        "hat-abcdef01",
        "hat-abcdef02",
    ]


LONG = pa.schema(
    [
        tables._required("name", pa.string(), "Name"),
        tables._field("label", pa.string(), "Label, null for none"),
        tables._required("number", pa.int32(), "Number"),
        tables._field("value", pa.float64(), "Value"),
    ]
)


def write_long_parts(folder: Path, cuts: tuple[int, ...]) -> list[Path]:
    """120 rows in any order, names beyond ASCII, nulls; a part ends at each cut."""
    rng = np.random.default_rng(0)
    rows = [
        {"name": f"{'Aäz'[i % 3]}{i:03d}", "label": label, "number": i, "value": None if i % 7 == 0 else i / 4}
        for i in range(40)
        for label in ("b", None, "a")
    ]
    table = pa.Table.from_pylist([rows[i] for i in rng.permutation(len(rows))], LONG)
    paths = []
    for i, (start, stop) in enumerate(zip((0, *cuts), (*cuts, len(rows)), strict=True)):
        paths.append(folder / f"part-{i:05d}.parquet")
        write_parquet(paths[-1], table.slice(start, stop - start))
    return paths


@pytest.mark.parametrize("rows_per_file", [2_000_000, 50, 40])
@pytest.mark.parametrize("cuts", [(), (1, 1, 60, 119)])
def test_parts_are_published_as_all_their_rows_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cuts: tuple[int, ...], rows_per_file: int
) -> None:
    monkeypatch.setattr(tables, "ROWS_PER_FILE", rows_per_file)
    monkeypatch.setattr(tables, "_ROWS_PER_GROUP", 16)
    parts = write_long_parts(tmp_path / "parts", cuts)
    everything = pa.concat_tables(pq.ParquetFile(path).read() for path in parts)
    publish(tmp_path / "expected", everything, LONG, ["name", "label"], complete=False)
    publish(tmp_path / "found", everything, LONG, [], file_stem="other")
    for _ in range(2):
        publish_parts(tmp_path / "found", parts, LONG, ["name", "label"], complete=False)
        names = {path.name for path in (tmp_path / "expected").iterdir()}
        assert {path.name for path in (tmp_path / "found").iterdir()} - names == {
            path.name.replace("data", "other") for path in (tmp_path / "expected").iterdir()
        }
        for name in names:
            expected, found = (pq.ParquetFile(tmp_path / folder / name) for folder in ("expected", "found"))
            assert found.read().equals(expected.read())
            assert found.schema_arrow.equals(expected.schema_arrow)
            metadata = found.schema_arrow.metadata
            assert {**expected.schema_arrow.metadata, b"superscene.parts": metadata[b"superscene.parts"]} == metadata


def test_parts_that_are_published_are_not_published_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "ROWS_PER_FILE", 50)
    parts, folder = write_long_parts(tmp_path / "parts", (30, 60)), tmp_path / "table"

    def written(n_parts: int, *, complete: bool = True) -> bool:
        before = {path: path.stat().st_ino for path in folder.glob("*")}
        said = publish_parts(folder, parts[:n_parts], LONG, ["name", "label"], complete=complete)
        kept = {path: path.stat().st_ino for path in folder.glob("*")} == before
        assert read_table(folder).num_rows == (0, 30, 60, 120)[n_parts]
        assert said != kept
        return said

    assert [written(3), written(3)] == [True, False]
    assert [written(2), written(2), written(3)] == [True, False, True]
    assert [written(3, complete=False), written(3, complete=False), written(3)] == [True, False, True]
    (folder / "data-00001.parquet").unlink()
    assert [written(3), written(3)] == [True, False]
    pq.write_table(LONG.empty_table(), folder / "data-00000.parquet")
    pq.write_table(LONG.empty_table(), folder / "data-00003.parquet")
    assert [written(3), written(3)] == [True, False]
    write_parquet(parts[0], pq.ParquetFile(parts[0]).read().slice(0, 30).sort_by("number"))
    assert written(3), "the part is another"
    assert [written(0), written(0)] == [True, False]


def test_a_null_in_a_required_column_is_refused(tmp_path: Path) -> None:
    publish(tmp_path, small(("a", 1)), SMALL, ["name"])
    rows = pa.table({"name": pa.array([None], pa.string()), "value": [1.0]})
    with pytest.raises(ValueError, match="null"):
        publish(tmp_path, rows, SMALL, ["name"])
    assert read_table(tmp_path)["name"].to_pylist() == ["a"]


def test_an_absent_table_has_no_rows(tmp_path: Path) -> None:
    assert (read_table(tmp_path / "none").num_rows, read_table(tmp_path / "none").num_columns) == (0, 0)


def test_hive_columns_are_in_the_path_and_not_in_the_rows(tmp_path: Path) -> None:
    folder = hive_folder(tmp_path / "predictions", sr="hat", config="abcdef01")
    assert folder == tmp_path / "predictions" / "sr=hat" / "config=abcdef01"
    publish(folder, small(("a", 1)), SMALL, ["name"])
    assert read_table(folder).column_names == ["name", "value"]
    assert pd.read_parquet(tmp_path / "predictions").astype(object).to_dict("records") == [
        {"name": "a", "value": 1.0, "sr": "hat", "config": "abcdef01"}
    ]


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_says_what_it_means(tmp_path: Path, name: str) -> None:
    schema = SCHEMAS[name]
    publish(tmp_path, schema.empty_table(), schema, [])
    stored = pq.read_schema(tmp_path / "data-00000.parquet")
    assert stored.names == schema.names
    for field in stored:
        description = (field.metadata or {})[b"description"].decode()
        assert len(description) >= 3, field
        assert not description.endswith("."), field


@pytest.mark.parametrize("name", SCHEMAS)
def test_pandas_and_duckdb_read_every_table(tmp_path: Path, name: str) -> None:
    schema = SCHEMAS[name]
    expected = examples(schema)
    last = example(schema.field(0).type, 3)
    nulls = {**expected[0], **{field.name: None for field in schema if field.nullable}, schema.names[0]: last}
    rows = pa.Table.from_pylist([*reversed(expected), nulls], schema=schema)
    publish(tmp_path / name, rows, schema, [schema.names[0]])
    expected.append(nulls)

    with_pandas = pd.read_parquet(tmp_path / name, dtype_backend="pyarrow")
    for column in schema.names:
        found = [None if value is pd.NA else plain(value) for value in with_pandas[column]]
        assert found == [row[column] for row in expected], column

    columns = ", ".join(f'"{field.name}"' for field in schema if field.name != "geometry")
    with_duckdb = duckdb.sql(f"SELECT {columns} FROM read_parquet('{tmp_path / name}/**/*.parquet')")
    assert with_duckdb is not None
    with_sql = query(tmp_path, None, f"SELECT {columns} FROM {name}")
    for found_rows in (with_duckdb.to_arrow_table().to_pylist(), with_sql.to_arrow_table().to_pylist()):
        assert found_rows == [{k: v for k, v in row.items() if k != "geometry"} for row in expected]


def test_predictions_hold_one_probability_for_each_label(tmp_path: Path) -> None:
    schema = predictions_schema(2)
    assert schema.field("probs").type == pa.list_(pa.float32(), 2)
    row = {"patch_id": "p", "split": "test", "seed": 0, "probs": [0.25, 0.75], "predicted": ["b"], "labels": None}
    publish(tmp_path, pa.Table.from_pylist([row], schema=schema), schema, ["patch_id", "seed"])
    assert duckdb.execute(f"SELECT probs[2], predicted FROM '{tmp_path}/*.parquet'").fetchall() == [(0.75, ["b"])]
    assert SCHEMAS["predictions"].field("probs").type.list_size == 19


def test_geopandas_places_the_patches(tmp_path: Path) -> None:
    boxes = [shapely.box(10, 50, 10.1, 50.2), shapely.box(-8.5, 40, -8.4, 40.1)]  # longitude, latitude
    rows = examples(PATCHES, 2)
    for row, polygon in zip(rows, boxes, strict=True):
        row["geometry"] = shapely.to_wkb(polygon)
    publish(tmp_path, pa.Table.from_pylist(rows, schema=PATCHES), PATCHES, ["patch_id"])
    frame = gpd.read_parquet(tmp_path / "data-00000.parquet")
    assert frame.crs.equals("OGC:CRS84")
    assert frame.total_bounds.tolist() == [-8.5, 40, 10.1, 50.2]
    assert [shapely.equals(a, b) for a, b in zip(frame.geometry, boxes, strict=True)] == [True, True]
    metres = frame.to_crs(3035).area  # an equal-area projection: one degree is 111 km north, 111 km * cos(lat) east
    assert metres[0] == pytest.approx(111_200**2 * 0.1 * 0.2 * np.cos(np.radians(50.1)), rel=0.01)


def test_geo_metadata_is_that_of_geoparquet_1_1(tmp_path: Path) -> None:
    publish(tmp_path, PATCHES.empty_table(), PATCHES, ["patch_id"])
    geo = json.loads((pq.read_metadata(tmp_path / "data-00000.parquet").metadata or {})[b"geo"])
    assert geo["version"] == "1.1.0"
    assert geo["primary_column"] in PATCHES.names
    assert geo["columns"]["geometry"]["encoding"] == "WKB"
    assert "crs" not in geo["columns"]["geometry"]


def test_metrics_answer_in_plain_sql(tmp_path: Path) -> None:
    rows = examples(METRICS, 4)
    for i, row in enumerate(rows):
        row |= {"metric": "f1_macro", "label": None, "value": i / 4, "sr": ("none", "hat")[i % 2]}
    publish(tmp_path / "metrics", pa.Table.from_pylist(rows, schema=METRICS), METRICS, ["config"])
    found = query(tmp_path, None, "SELECT sr, avg(value) FROM metrics WHERE label IS NULL GROUP BY sr ORDER BY sr")
    assert found.fetchall() == [("hat", (1 / 4 + 3 / 4) / 2), ("none", (0 + 2 / 4) / 2)]
