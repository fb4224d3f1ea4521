"""Every table's columns: what they say of themselves, and that other tools read them."""

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

from infra.errors import UnknownNameError
from infra.query import query
from infra.tables import (
    MEANING,
    METRICS,
    PATCHES,
    SCHEMAS,
    SOURCE,
    UNIT,
    UNITS,
    optional,
    predictions_schema,
    publish,
    required,
    said,
)


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


def parts(schema: pa.Schema) -> list["pa.Field[pa.DataType]"]:
    """All columns, and the fields of structs within them."""
    found = []
    for field in schema:
        inner = field.type.value_type if pa.types.is_list(field.type) else field.type
        found += [field, *(inner if pa.types.is_struct(inner) else [])]
    return found


def is_number(type_: pa.DataType) -> bool:
    """Whether a column holds numbers or instants, one a row or lists of them."""
    if pa.types.is_list(type_) or pa.types.is_fixed_size_list(type_):
        return is_number(type_.value_type)
    return bool(pa.types.is_integer(type_) or pa.types.is_floating(type_) or pa.types.is_timestamp(type_))


@pytest.mark.parametrize("name", SCHEMAS)
def test_every_column_says_what_it_means_its_unit_and_its_source_in_the_files_too(tmp_path: Path, name: str) -> None:
    schema = SCHEMAS[name]
    publish(tmp_path, schema.empty_table(), schema, [])
    stored = pq.read_schema(tmp_path / "data-00000.parquet")
    assert stored.names == schema.names
    for field in parts(stored):
        for key in (MEANING, SOURCE):
            assert len(said(field, key)) >= 3, (field, key)
            assert not said(field, key).endswith("."), (field, key)
        if is_number(field.type):
            assert said(field, UNIT) in UNITS, field
        else:
            assert said(field, UNIT) == "", field


@pytest.mark.parametrize(
    ("unit", "ending"), [("dB", "_db"), ("degree", "_deg"), ("px 10 m", "_px"), ("share", "_share"), ("s", "seconds")]
)
def test_a_unit_in_a_name_is_the_unit_of_the_column(unit: str, ending: str) -> None:
    named = [field for schema in SCHEMAS.values() for field in parts(schema) if field.name.endswith(ending)]
    assert named
    assert {said(field, UNIT) for field in named} == {unit}


def test_every_unit_is_of_some_column() -> None:
    used = {said(field, UNIT) for schema in SCHEMAS.values() for field in parts(schema)}
    assert used - {""} == UNITS.keys()


def test_a_unit_that_is_none_of_them_is_refused() -> None:
    for make in (required, optional):
        with pytest.raises(UnknownNameError, match=r"'metres'.*share"):
            make("a", pa.int32(), "Meaning", "Source", "metres")


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
