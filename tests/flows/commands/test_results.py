"""Commands over a finished store: the page, files for other programs, and the server, against the store's own rows."""

import csv
import io
import json
import sqlite3
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

import explorer.server
from flows.cli import app, plain_errors
from infra.errors import PipelineError
from infra.object_store import ObjectPath
from infra.tables import read_table
from tests.tasks.export_store import PLACES, make_export_store
from tests.tasks.report.report_store import STUDY, Made, make_store


@pytest.fixture(scope="module")
def study(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_store(tmp_path_factory.mktemp("study") / "store", STUDY)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_export_store(tmp_path_factory.mktemp("places") / "store").root


def said(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert isinstance(result.exception, PipelineError), result.output
    return str(result.exception)


class TestReport:
    def test_of_a_store_it_is_that_of_its_run_yaml(self, study: Made, tmp_path: Path) -> None:
        config = tmp_path / "RUN.yaml"
        config.write_text(
            f"store: {study.paths.root}\n"
            "archive: {layout: bigearthnet-v2, root: /nowhere}\n"
            "train: {backbone: random}\n"
        )
        pages = [tmp_path / "a.html", tmp_path / "b.html"]
        assert said("report", study.paths.root, "--out", pages[0]) == f"report: {pages[0]}\n"
        assert json.loads(said("report", config, "--out", pages[1], "--json")) == {"report": str(pages[1])}
        assert pages[0].read_bytes() == pages[1].read_bytes()
        assert "<title>" in pages[0].read_text(encoding="utf-8")
        assert not study.paths.report.exists()

    def test_without_out_it_lies_in_the_store(self, study: Made) -> None:
        said("report", study.paths.root)
        assert study.paths.report.stat().st_size > 10_000

    def test_what_is_neither_is_told(self, study: Made, tmp_path: Path) -> None:
        assert "there is no folder" in refused("report", tmp_path / "nowhere")
        assert "there is no file" in refused("report", tmp_path / "nowhere.yaml")
        assert "--set changes a RUN.yaml" in refused("report", study.paths.root, "--set", "shard_size=4")


class TestExport:
    def test_a_table_goes_to_standard_output_and_to_a_file(self, study: Made, tmp_path: Path) -> None:
        names = said("export", study.paths.root, "--list").split()
        assert json.loads(said("export", study.paths.root, "--list", "--json")) == {"tables": names}
        assert {"classes", "metrics"} <= set(names)
        classes = read_table(study.paths.table("classes")).to_pylist()
        text = said("export", study.paths.root, "--csv", "classes")
        rows = list(csv.DictReader(io.StringIO(text)))
        assert [row["label"] for row in rows] == [row["label"] for row in classes]
        out = tmp_path / "classes.csv"
        told = json.loads(said("export", study.paths.root, "--csv", "classes", "--out", out, "--json"))
        assert told == {"file": str(out), "rows": len(classes), "left_out": 0}
        assert out.read_text(encoding="utf-8") == text
        assert "there already" in refused("export", study.paths.root, "--csv", "classes", "--out", out)
        said("export", study.paths.root, "--csv", "classes", "--out", out, "--overwrite")

    def test_patches_go_to_stac_and_to_a_geopackage(self, places: Path, tmp_path: Path) -> None:
        items, package = tmp_path / "items.parquet", tmp_path / "patches.gpkg"
        told = json.loads(said("export", places, "--stac", items, "--json"))
        assert told == {"file": str(items), "rows": len(PLACES), "left_out": 1}  # the picture lies nowhere
        assert pq.read_metadata(items).num_rows == len(PLACES)
        assert f"written: {package}, " in said("export", places, "--gpkg", package)
        with sqlite3.connect(package) as database:
            (n,) = database.execute("SELECT count(*) FROM patches").fetchone()
        database.close()
        assert n == len(PLACES) + 1  # which can hold it all the same

    @pytest.mark.parametrize(
        ("options", "words"),
        [
            ([], "export writes one thing"),
            (["--list", "--csv", "Table1"], "export writes one thing"),
            (["--list", "--out", "a.csv"], "--out is for --csv"),
            (["--csv", "classes", "--json"], "give --out FILE too"),
            (["--csv", "clases"], "has no table clases"),  # codespell:ignore
        ],
    )
    def test_what_makes_no_sense_is_told(self, study: Made, options: list[str], words: str) -> None:
        assert words in refused("export", study.paths.root, *options)

    def test_it_goes_to_object_storage_too(self, places: Path, study: Made, s3_folder: ObjectPath) -> None:
        said("export", places, "--stac", f"{s3_folder}/items.parquet")
        said("export", study.paths.root, "--csv", "classes", "--out", f"{s3_folder}/classes.csv")
        said("report", study.paths.root, "--out", f"{s3_folder}/r.html")
        assert sorted(path.name for path in s3_folder.glob("*")) == ["classes.csv", "items.parquet", "r.html"]


class TestServe:
    def test_it_serves_the_store_that_it_is_given(self, study: Made, monkeypatch: pytest.MonkeyPatch) -> None:
        asked: dict[str, Any] = {}

        def serve(store: Path, *, ready: Callable[[str], None], **options: Any) -> None:
            asked.update(store=store, **options)
            ready("http://127.0.0.1:9/")

        monkeypatch.setattr(explorer.server, "serve", serve)
        result = CliRunner().invoke(app, ["serve", str(study.paths.root), "--port", "0", "--browser"])
        assert result.exit_code == 0, result.output
        assert asked == {"store": study.paths.root, "port": 0, "basemap": None, "open_browser": True}
        assert f"{study.paths.root}: http://127.0.0.1:9/ (Ctrl-C ends it)" in result.stderr

    def test_a_store_of_a_newer_superscene_is_told(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        folder = tmp_path / "store" / "tables" / "classes"
        folder.mkdir(parents=True)
        newer = pa.table({"label": ["Pastures"]}).replace_schema_metadata({"superscene.schema_version": "99"})
        pq.write_table(newer, folder / "data-00000.parquet")
        with pytest.raises(SystemExit, match="2"), plain_errors():
            app(["serve", str(tmp_path / "store"), "--port", "0"])
        assert "newer superscene" in capsys.readouterr().err
