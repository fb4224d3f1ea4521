"""The command line as a user meets it: exit codes, sentences, tables."""

import gc
import json
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import rasterio
from rasterio.transform import Affine
from typer.testing import CliRunner

from flows.cli import app, main
from flows.commands import runs
from tests.flows.stores import PATCHES, Inputs, superscene

GRID = Affine(10.0, 0.0, 600_000.0, 0.0, -10.0, 5_300_000.0)
STORED = PATCHES - PATCHES // 24


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"archive": {"layout": "bigearthnet-v2", "root": "/nowhere/BigEarthNet"}}, "/nowhere/BigEarthNet"),
        ({"sr": ["magic"]}, "no SR model called 'magic'"),
        ({"store": "/proc/superscene"}, "cannot write /proc/superscene"),
    ],
    ids=["missing archive", "wrong RUN.yaml", "a store that cannot be written"],
)
def test_what_cannot_be_done_is_one_sentence_and_exit_code_2(
    inputs: Inputs, tmp_path: Path, change: dict[str, object], words: str
) -> None:
    config = inputs.config(tmp_path / "store", None, **change)
    result = superscene("run", config, alone="archive" in change)  # that one starts Ray, and ends it, unheard
    assert result.returncode == 2, result.stderr
    (sentence,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert words in sentence
    assert sentence.startswith("superscene: ")


def test_a_cluster_that_does_not_answer_is_one_sentence(inputs: Inputs, tmp_path: Path) -> None:
    result = superscene("ingest", inputs.config(tmp_path / "store"), "--address", "127.0.0.1:9")
    assert result.returncode == 2, result.stderr
    (sentence,) = [line for line in result.stderr.splitlines() if line.strip()]
    assert sentence.startswith("superscene: no Ray cluster answers at 127.0.0.1:9")


def test_usage_errors_have_exit_code_2() -> None:
    assert superscene("run").returncode == 2
    assert superscene("fly").returncode == 2


def test_status_shows_every_stage_done(inputs: Inputs) -> None:
    result = superscene("status", inputs.reference)
    assert result.returncode == 0
    lines = result.stdout.splitlines()
    assert "complete" in lines[0]
    assert f"{STORED} patches, 0 in quarantine" in lines[0]
    ingest = next(line.split() for line in lines if line.strip().startswith("ingest"))
    splits = pd.read_parquet(inputs.reference / "tables" / "patches")["split"].value_counts()
    shards = sum(-(-n // 4) for n in splits)
    assert ingest[2:] == [str(shards), "0", "0"]


def test_status_of_an_empty_folder_says_how_to_start(tmp_path: Path) -> None:
    result = superscene("status", tmp_path)
    assert result.returncode == 2
    assert "superscene run RUN.yaml" in result.stderr


def test_sql_answers_and_refuses(inputs: Inputs) -> None:
    answer = superscene("sql", inputs.reference, "SELECT count(*) AS n FROM predictions WHERE sr = 'bicubic'")
    assert answer.returncode == 0
    assert str(STORED) in answer.stdout
    refused = superscene("sql", inputs.reference, "COPY patches TO '/tmp/stolen.csv'")
    assert refused.returncode == 2
    assert "SELECT" in refused.stderr


def test_a_terminal_shows_what_tables_hold_and_does_nothing_of_it(inputs: Inputs) -> None:
    """A value that looks like markup of rich or a command to the terminal; the table itself has colours."""
    statement = "SELECT '[/x]' AS \"[red]name\", '[link=http://there]a[/link]' AS link, chr(27) || ']0;title' AS title"
    statement += ", 'a' || chr(8239) || 'b' || chr(8205) || 'c' AS spaced, 'a' || chr(8238) || 'b' AS turned"
    terminal = CliRunner(env={"FORCE_COLOR": "1", "COLUMNS": "200"})
    answer = terminal.invoke(app, ["sql", str(inputs.reference), statement])
    assert answer.exit_code == 0, answer.output
    for text in ("[/x]", "[red]name", "[link=http://there]a[/link]", "\ufffd]0;title", "a\u202fb\u200dc", "a\ufffdb"):
        assert text in answer.stdout
    assert "\x1b]" not in answer.stdout


def test_plan_counts_before_anything_runs(inputs: Inputs, tmp_path: Path) -> None:
    result = superscene("plan", inputs.config(tmp_path / "store"))
    assert result.returncode == 0, result.stderr
    assert f"{STORED}" in result.stdout
    assert " of 4" in result.stdout
    assert not (tmp_path / "store").exists()


def test_synth_writes_an_archive(tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["synth", str(tmp_path / "archive"), "--patches", "2"])
    assert result.exit_code == 0, result.output
    assert json.loads((tmp_path / "archive" / "synthetic.json").read_text())["patches"] == 2
    assert len(list((tmp_path / "archive" / "BigEarthNet-S2").glob("*/*"))) == 2


def test_doctor_finds_nothing_wrong_here(inputs: Inputs, tmp_path: Path) -> None:
    """What fails would fail a run, and runs go through here; a warning may be true of a busy machine."""
    config = inputs.config(tmp_path / "store")
    result = superscene("doctor", config, alone=True)
    assert result.returncode == 0, result.stdout
    assert all(name in result.stdout for name in ("Python", "Ray", "Prefect", "disk", "weights", "GPU", "archive"))


def scene(path: Path) -> Path:
    values = np.random.default_rng(0).integers(0, 3500, (3, 40, 50)).astype(np.uint16)
    with rasterio.open(
        path, "w", driver="GTiff", count=3, height=40, width=50, dtype="uint16", crs="EPSG:32633", transform=GRID
    ) as dataset:
        dataset.write(values)
    return path


def test_super_resolve_writes_a_georeferenced_scene(tmp_path: Path) -> None:
    source, target = scene(tmp_path / "in.tif"), tmp_path / "out.tif"
    arguments = ["super-resolve", str(source), str(target), "--sr", "bicubic", "--max-dn", "3500", "--window", "30"]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    assert "200 x 160 pixels in 4 windows" in result.output
    assert "0.00% clipped at 3500" in result.output
    with rasterio.open(source) as lr, rasterio.open(target) as sr:
        assert sr.shape == (160, 200)
        assert (sr.crs, sr.bounds) == (lr.crs, lr.bounds)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--sr", "bicubic"], "is there already: choose another name, or --overwrite"),
        (["--sr", "bicubix", "--overwrite"], "did you mean 'bicubic'"),
        (["--sr", "none", "--overwrite"], "enlarges nothing"),
        (["--sr", "realesrgan_general", "--overwrite"], "needs weights"),
        (["--sr", "bicubic", "--overwrite", "--bands", "1,2,9"], "no band '9'"),
    ],
)
def test_super_resolve_says_in_one_sentence_what_is_wrong(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    options: list[str],
    words: str,
) -> None:
    (tmp_path / "out.tif").write_bytes(b"mine")
    source = scene(tmp_path / "in.tif")
    monkeypatch.setattr("sys.argv", ["superscene", "super-resolve", str(source), str(tmp_path / "out.tif"), *options])
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    (sentence,) = [line for line in capsys.readouterr().err.splitlines() if line.strip()]
    assert words in sentence
    assert (tmp_path / "out.tif").read_bytes() == b"mine"


def test_a_run_s_end_looks_for_no_garbage_among_the_libraries(monkeypatch: pytest.MonkeyPatch) -> None:
    gc.unfreeze()
    monkeypatch.setattr(runs, "load", lambda *_: SimpleNamespace(store=Path()))
    monkeypatch.setattr(runs, "_tell_run", lambda *_, **__: None)
    runs.run_until(Path(), None, None, "predict", as_json=False)
    try:
        assert len(gc.get_objects()) < 10_000 < 100_000 < gc.get_freeze_count()
    finally:
        gc.unfreeze()
