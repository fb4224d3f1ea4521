"""Tables of version 1, kept as its code wrote them, are read by all that reads tables.

tests/infra/tables/v1 is `tables/` of a store of numbers (tests/tasks/report_store.py: one classifier, two branches,
three seeds, judged maps of two methods, and reliability), published by the commit before version 2.
"""

import shutil
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import pytest

from infra.parts import StageParts
from infra.query import query
from infra.storage import StorePaths
from infra.tables import HIVE_COLUMNS, SCHEMAS, check_store, file_version, open_table, predictions_schema
from tasks.evaluate import EvaluateJob
from tasks.evaluate_where import evaluate_where
from tasks.export import export_csv, names_of_tables
from tasks.last_run import last_run
from tasks.metric_rows import Bootstrap
from tasks.paper_tables import publish_paper_tables
from tasks.report.numbers import Numbers
from tasks.report.page import render
from tasks.run_record import scored_configs
from tests.tasks.export_store import V1

FILES = sorted(V1.rglob("*.parquet"))


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> StorePaths:
    """A store that is read only."""
    paths = StorePaths(tmp_path_factory.mktemp("old") / "store")
    shutil.copytree(V1, paths.tables)
    return paths


def test_the_fixture_is_small_whole_and_of_version_1() -> None:
    assert sum(file.stat().st_size for file in FILES) < 250_000
    assert {file_version(pq.read_schema(file)) for file in FILES} == {"1"}
    assert {file.relative_to(V1).parts[0] for file in FILES} == SCHEMAS.keys()
    assert not any(b"unit" in (field.metadata or {}) for file in FILES for field in pq.read_schema(file))


def test_the_store_is_fit_to_be_read(paths: StorePaths) -> None:
    check_store(paths.tables)


@pytest.mark.parametrize("name", SCHEMAS)
def test_sql_and_open_table_read_every_table_as_pandas_does(paths: StorePaths, name: str) -> None:
    expected = pd.read_parquet(paths.table(name), dtype_backend="pyarrow")
    rows = query(paths.tables, None, f'SELECT * FROM "{name}"')
    assert rows.columns == [*SCHEMAS[name].names, *HIVE_COLUMNS.get(name, ())]
    assert len(rows.fetchall()) == len(expected) > 0 or name == "quarantined_maps"
    folders = {file.parent for file in paths.table(name).rglob("*.parquet")}
    assert sum(open_table(folder, SCHEMAS[name]).count_rows() for folder in folders) == len(expected)


def test_sql_answers_with_the_numbers_that_were_written(paths: StorePaths) -> None:
    rows = "FROM metrics WHERE metric = 'ap_macro' AND split = 'test' AND country IS NULL"
    found = dict(query(paths.tables, scored_configs(paths), f"SELECT sr, avg(value) {rows} GROUP BY sr").fetchall())
    assert found == pytest.approx({"none": 0.5, "bicubic": 0.52})


def test_the_report_reads_them(paths: StorePaths) -> None:
    """Numbers of a table each, rounded as the page shows them."""
    assert last_run(paths).classifiers == ("resnet18",)
    text = render(Numbers(paths))
    of_tables = {
        "metrics": "0.444",
        "explanation_metrics": "0.812",
        "reliability_metrics": "0.906",
        "sr_quality": "31.50",
        "training": "0.562",
        "quarantine": "the file 1 ends early",
    }
    assert {table: shown in text for table, shown in of_tables.items()} == dict.fromkeys(of_tables, True)


def test_evaluate_reads_them(paths: StorePaths) -> None:
    rows = query(paths.tables, None, "SELECT DISTINCT config FROM predictions WHERE sr = 'bicubic'").fetchall()
    ((config,),) = rows
    parts = StageParts(paths, "predictions", config)
    labels = tuple(label for (label,) in query(paths.tables, None, "SELECT label FROM classes ORDER BY 1").fetchall())
    job = EvaluateJob("bicubic", "resnet18", labels, (7, 8, 9), parts, Bootstrap(), parts)
    scored = job.read(8)
    assert len(scored) == 4
    assert open_table(job.folder, predictions_schema(19)).count_rows() == 12
    selection = evaluate_where(paths, "country = 'Austria' AND split = 'test'", Bootstrap(n_resamples=10))
    assert selection.n == 4


def test_the_paper_s_tables_are_made_and_exported_from_them(paths: StorePaths, tmp_path: Path) -> None:
    assert names_of_tables(paths.root)[:2] == ["Table1", "Table2"]
    export_csv(paths.root, "Table1", tmp_path / "before.csv")
    copy = StorePaths(tmp_path / "store")
    shutil.copytree(paths.tables, copy.tables)
    publish_paper_tables(copy, scored_configs(copy) or set(), ("none", "bicubic"), ("resnet18",))
    export_csv(copy.root, "Table1", tmp_path / "after.csv")
    assert (tmp_path / "after.csv").read_bytes() == (tmp_path / "before.csv").read_bytes()
    (new,) = copy.table("paper_table_1").glob("*.parquet")
    assert file_version(pq.read_schema(new)) != "1"
    check_store(copy.tables)
