"""CSV against what csv and pandas read, and what all exports refuse."""

import csv
import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import geopandas as gpd
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from infra.errors import ConfigError, StoreError, UnknownNameError
from infra.object_store import ObjectPath
from infra.storage import StorePaths, write_bytes
from infra.tables import PAPER_TABLE_1, PAPER_TABLE_2, RUNS, VERSION_KEY, hive_folder, predictions_schema, publish
from tasks.export import Exported, export_csv, names_of_tables, write_csv
from tasks.export_geopackage import export_geopackage
from tasks.export_stac import export_stac
from tests.tasks.export_store import LABELS, PLACES, make_export_store, patch_rows

SCORED = {"classifier": "resnet50", "config": "abcdef01", "split": "test", "n": 100, "n_seeds": 3}
TABLE_1 = [
    {**SCORED, "sr": "bicubic", "acc": 0.1 + 0.2, "hl": 1 / 3, "acc_minus_bicubic_significant": None},
    {**SCORED, "sr": "hat", "acc": 0.5, "hl": 1e-17, "acc_minus_bicubic_significant": True},
    {**SCORED, "sr": "of another run", "config": "a0000000"},
]
TABLE_2 = [
    {**SCORED, "sr": "hat", "label": 'Beaches, dunes, "sands"', "label_index": 13, "support": 7, "f2": 0.25},
    {**SCORED, "sr": "hat", "label": None, "f2": 0.125},
]


def rows_of(schema: pa.Schema, rows: list[dict[str, Any]]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> StorePaths:
    paths = make_export_store(tmp_path_factory.mktemp("export") / "store")
    publish(paths.table("paper_table_1"), rows_of(PAPER_TABLE_1, TABLE_1), PAPER_TABLE_1, ["sr"])
    publish(paths.table("paper_table_2"), rows_of(PAPER_TABLE_2, TABLE_2), PAPER_TABLE_2, ["label"])
    schema = predictions_schema(2)
    row = {"patch_id": "p", "split": "test", "seed": 0, "probs": [0.25, None], "predicted": ["é;\n"], "labels": None}
    folder = hive_folder(paths.table("predictions"), sr="hat", classifier="resnet50", config="abcdef01")
    publish(folder, rows_of(schema, [row]), schema, ["patch_id"])
    run = {
        "run_id": "1",
        "started": pd.Timestamp("2026-03-04 05:06", tz="UTC"),
        "status": "complete",
        "configs": ["abcdef01"],
        "run_yaml": "{}",
        "versions": "{}",
        "startup_seconds": 1.5,
        **dict.fromkeys(("inputs", "patches", "quarantined", "absent"), 5),
        "stages": [{"stage": "predict hat", "done": 1}],
    }
    publish(paths.table("runs"), rows_of(RUNS, [run]), RUNS, ["run_id"], file_stem="run-1")
    return paths


def csv_of(paths: StorePaths, name: str) -> list[dict[str, str]]:
    file = io.BytesIO()
    n = write_csv(paths.root, name, file)
    rows = [*csv.DictReader(io.StringIO(file.getvalue().decode(), newline=""))]
    assert n == len(rows)
    return rows


def test_the_papers_tables_come_first_and_the_others_by_their_names(paths: StorePaths) -> None:
    assert names_of_tables(paths.root) == ["Table1", "Table2", "patches", "predictions", "runs"]


def test_table_1_has_every_column_and_digit_of_the_last_run(paths: StorePaths, tmp_path: Path) -> None:
    assert export_csv(paths.root, "Table1", tmp_path / "out" / "1.csv") == Exported(2)
    frame = pd.read_csv(tmp_path / "out" / "1.csv")
    assert frame.columns.tolist() == PAPER_TABLE_1.names
    assert frame["sr"].tolist() == ["bicubic", "hat"]
    assert frame["acc"].tolist() == [0.1 + 0.2, 0.5]
    assert frame["hl"].tolist() == [1 / 3, 1e-17]
    assert frame["acc_minus_bicubic_significant"].astype(object).where(frame["sr"] == "hat").dropna().tolist() == [True]
    assert frame["f1"].isna().all()


def test_table_2_keeps_commas_and_quotes_and_tells_null_from_text(paths: StorePaths) -> None:
    rows = csv_of(paths, "Table2")
    assert [(row["label"], row["support"], row["f2"]) for row in rows] == [
        ('Beaches, dunes, "sands"', "7", "0.25"),
        ("", "", "0.125"),
    ]


def test_lists_are_json_footprints_wkt_and_folders_columns(paths: StorePaths) -> None:
    (row,) = csv_of(paths, "predictions")
    assert (json.loads(row["probs"]), json.loads(row["predicted"]), row["labels"]) == ([0.25, None], ["é;\n"], "")
    assert (row["sr"], row["classifier"], row["config"]) == ("hat", "resnet50", "abcdef01")
    patches = {row["patch_id"]: row for row in csv_of(paths, "patches")}
    for truth in patch_rows():
        row = patches[truth["patch_id"]]
        if truth.get("geometry") is None:
            assert row["geometry"] == ""
        else:
            assert shapely.equals_exact(shapely.from_wkt(row["geometry"]), shapely.from_wkb(truth["geometry"]), 0)
    assert [json.loads(row) if row else None for row in (patches[p]["labels"] for p, _, _ in PLACES)] == [*LABELS]
    (run,) = csv_of(paths, "runs")
    assert pd.Timestamp(run["started"]) == pd.Timestamp("2026-03-04 05:06", tz="UTC")
    assert json.loads(run["stages"])[0]["stage"] == "predict hat"


def test_a_name_that_is_none_lists_those_that_are(paths: StorePaths, tmp_path: Path) -> None:
    for name in ("Table3", "paper_table_1", "../patches", "metrics"):
        with pytest.raises(UnknownNameError, match="it has Table1, Table2, patches"):
            export_csv(paths.root, name, tmp_path / "x.csv")
    assert not (tmp_path / "x.csv").exists()
    with pytest.raises(StoreError, match="no tables"):
        names_of_tables(tmp_path / "none")


type Export = Callable[..., Exported]

EXPORTS: dict[str, Export] = {
    "csv": lambda store, out, **options: export_csv(store, "Table1", out, **options),
    "stac": export_stac,
    "gpkg": export_geopackage,
}


@pytest.mark.parametrize("kind", EXPORTS)
def test_no_export_replaces_a_file_unless_told_or_writes_among_the_tables(
    paths: StorePaths, tmp_path: Path, kind: str
) -> None:
    export, out = EXPORTS[kind], tmp_path / "out"
    out.write_text("kept")
    with pytest.raises(ConfigError, match="is there already: choose another name, or --overwrite"):
        export(paths.root, out)
    assert out.read_text() == "kept"
    export(paths.root, out, overwrite=True)
    assert out.read_bytes()[:4] != b"kept"
    assert [path.name for path in tmp_path.iterdir()] == ["out"], "nothing half made"
    with pytest.raises(ConfigError, match="is a folder"):
        export(paths.root, tmp_path)
    with pytest.raises(ConfigError, match="among the store's own tables"):
        export(paths.root, paths.tables / "patches" / "x.parquet")


@pytest.mark.parametrize("kind", EXPORTS)
def test_a_store_on_object_storage_is_exported_alike_and_to_object_storage(
    paths: StorePaths, s3_folder: ObjectPath, tmp_path: Path, kind: str
) -> None:
    remote = s3_folder / "store"
    for file in paths.root.rglob("*"):
        if file.is_file():
            write_bytes(remote / file.relative_to(paths.root), file.read_bytes())
    n = EXPORTS[kind](paths.root, tmp_path / "here")
    assert EXPORTS[kind](remote, s3_folder / "there") == n
    with pytest.raises(ConfigError, match="already"):
        EXPORTS[kind](remote, s3_folder / "there")
    here, there = ((folder / name).read_bytes() for folder, name in ((tmp_path, "here"), (s3_folder, "there")))
    if kind == "csv":
        assert here == there
    elif kind == "gpkg":
        (tmp_path / "there.gpkg").write_bytes(there)
        (tmp_path / "here").rename(tmp_path / "here.gpkg")
        frames = [gpd.read_file(tmp_path / name) for name in ("here.gpkg", "there.gpkg")]
        pd.testing.assert_frame_equal(*frames)
    else:
        (tmp_path / "there").write_bytes(there)
        frames = [gpd.read_parquet(tmp_path / name) for name in ("here", "there")]
        hrefs = [frame["assets"].iloc[0]["s2_10m"]["href"] for frame in frames]
        assert hrefs == [f"{(paths.root / 'archive.zarr').as_uri()}/s2_10m", f"{remote}/archive.zarr/s2_10m"]
        same = [frame.drop(columns=["assets", "links"]) for frame in frames]
        pd.testing.assert_frame_equal(*same)


def test_a_newer_store_is_not_exported(tmp_path: Path) -> None:
    store = StorePaths(tmp_path / "store")
    store.table("patches").mkdir(parents=True)
    table = pa.table({"patch_id": ["x"]}, metadata={VERSION_KEY: "999"})
    pq.write_table(table, store.table("patches") / "data-00000.parquet")
    for export in (export_stac, export_geopackage, lambda root, out: export_csv(root, "patches", out)):
        with pytest.raises(StoreError, match="newer superscene"):
            export(store.root, tmp_path / "x")
    assert not (tmp_path / "x").exists()
