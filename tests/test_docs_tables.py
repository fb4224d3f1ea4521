"""docs/tables-howto.md: every block runs, in its order, on a store made by hand, and answers what is in it."""

import os
import re
import shlex
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import duckdb
import geopandas as gpd
import pandas as pd
import polars as pl
import pyarrow as pa
import pyogrio  # type: ignore[import-untyped]
import pytest

from infra.query import query
from infra.storage import StorePaths
from infra.tables import COMPARISONS, publish, read_table
from tasks.export import export_csv, names_of_tables
from tasks.export_geopackage import export_geopackage
from tasks.export_stac import export_stac
from tasks.run_record import scored_configs
from tests.tasks.export_store import PLACES, make_export_store, patch_rows, publish_patches, publish_results

PAGE = (Path(__file__).parents[1] / "docs" / "tables-howto.md").read_text(encoding="utf-8")
BLOCKS: list[tuple[str, str]] = re.findall(r"^```(\w+)\n(.*?)^```$", PAGE, flags=re.DOTALL | re.MULTILINE)
IDS = ("p0", "p1", "p3")
"""Patches of the store of numbers that get a place; the fourth has a name that is markup."""


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with demo/store: two branches, a classifier, three seeds; a difference in Finland, of two runs."""
    folder = tmp_path_factory.mktemp("howto")
    paths = make_export_store(folder / "demo" / "store")
    publish_results(paths)
    places = zip(patch_rows()[1:4], IDS, strict=True)
    rows = [{**row, "patch_id": name, "labels": ["Inland wetlands"], "shard": 0} for row, name in places]
    publish_patches(paths, [{**row, "row": i} for i, row in enumerate(rows)])
    first, *_ = read_table(paths.table("comparisons")).to_pylist()
    assert (first["sr"], first["classifier"]) == ("bicubic", "resnet18")
    asked = {"metric": "f2", "label": "Inland wetlands", "country": "Finland", "season": None, "split": "test"}
    row = {**first, **asked, "sr": "srresnet", "reference": "bicubic", "value": 0.0625}
    of_another_run = {**row, "config": "a0000000", "value": 0.5}
    for stem, new in (("finland", row), ("other", of_another_run)):
        publish(paths.table("comparisons"), pa.Table.from_pylist([new], COMPARISONS), COMPARISONS, [], file_stem=stem)
    return folder


@pytest.fixture(scope="module")
def _there(folder: Path) -> Iterator[None]:
    before = Path.cwd()
    os.chdir(folder)
    yield
    os.chdir(before)


def superscene(words: list[str]) -> object:
    """What the command does, by its functions: `sql`, and `export` with its options."""
    command, store, *rest = words
    paths = StorePaths(Path(store))
    if command == "sql":
        return query(paths.tables, scored_configs(paths), *rest).fetchall()
    assert command == "export"
    options = dict(zip(rest[::2], rest[1::2], strict=False))
    exports: dict[str, Callable[[], object]] = {
        "--list": lambda: names_of_tables(paths.root),
        "--csv": lambda: export_csv(paths.root, options["--csv"], Path(options["--out"]), overwrite=True).rows,
        "--gpkg": lambda: export_geopackage(paths.root, Path(options["--gpkg"]), overwrite=True).rows,
        "--stac": lambda: export_stac(paths.root, Path(options["--stac"]), overwrite=True).rows,
    }
    return exports[rest[0]]()


def python(text: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    exec(compile(text, "docs/tables-howto.md", "exec"), found)
    return found


@pytest.fixture(scope="module")
def made(_there: None) -> None:
    """The files that other blocks read."""
    for language, text in BLOCKS:
        if language == "bash":
            for line in text.splitlines():
                assert superscene(shlex.split(line)[1:]), line


def block(word: str) -> str:
    (text,) = (text for language, text in BLOCKS if language == "python" and word in text)
    return text


@pytest.mark.usefixtures("made")
@pytest.mark.parametrize("text", [text for language, text in BLOCKS if language == "python"])
def test_every_block_runs_and_says_something(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    python(text)
    said = capsys.readouterr().out
    assert said
    assert "Empty" not in said
    assert "0 rows" not in said


def test_only_known_languages_are_on_the_page() -> None:
    assert {language for language, _ in BLOCKS} == {"bash", "python"}
    for tool in (duckdb, pd, pl, gpd, pyogrio):
        assert any(f"import {tool.__name__}" in text for _, text in BLOCKS), tool


@pytest.mark.usefixtures("made")
def test_the_question_about_finland_is_answered_of_the_last_run_alone() -> None:
    text = block("f2_gain")
    (statement,) = re.findall(r'"""(.*?)"""', text, re.DOTALL)
    assert [row[:4] for row in duckdb.execute(statement).fetchall()] == [
        ("srresnet", "resnet18", "Inland wetlands", 0.0625)
    ]


@pytest.mark.usefixtures("made")
def test_recall_is_of_the_patches_that_have_the_label() -> None:
    """Urban fabric is on the first two patches, and was predicted on all, by three seeds on two branches."""
    (statement,) = re.findall(r'"""(.*?)"""', block("list_contains(predicted"), re.DOTALL)
    assert duckdb.execute(statement).fetchall() == [("bicubic", "Finland", 1.0, 6), ("none", "Finland", 1.0, 6)]


@pytest.mark.usefixtures("made")
def test_the_frames_of_pandas_polars_and_geopandas_are_right(capsys: pytest.CaptureFixture[str]) -> None:
    by_season = python(block("by_season"))["by_season"]["psnr_db"].mean()
    assert by_season["bicubic", "winter"] == 30.0, "of the first patch alone"
    pointing = python(block("import polars"))["pointing"]
    assert pointing["n"].to_list() == [4] * len(pointing)
    frame = python(block("right.gpkg"))["by_patch"]
    assert sorted(frame["patch_id"]) == sorted(IDS)
    assert gpd.read_file("right.gpkg").shape[0] == 3
    assert frame.to_crs(3035).area.tolist() == pytest.approx([1.44e6] * 3, rel=3e-3)


@pytest.mark.usefixtures("made")
def test_the_item_of_the_page_is_a_patch_of_the_archive() -> None:
    found = python(block("open_zarr"))
    assert found["item"]["superscene:country"] == "Finland"
    assert found["pixels"].shape == (4, 120, 120)
    assert {code for _, code, _ in PLACES} >= {int(found["item"]["proj:code"].removeprefix("EPSG:"))}
