"""Oracle: scikit-learn on the patches that a plain loop chooses."""

import json
import re
import shutil
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import yaml
from sklearn.metrics import f1_score, hamming_loss
from typer.testing import CliRunner

from flows.cli import app, main
from infra.errors import ConfigError, StoreError
from infra.storage import StorePaths
from infra.tables import COMPARISONS, METRICS, RUNS, publish
from tasks.evaluate_where import SHOWN, evaluate_where
from tasks.metric_rows import Bootstrap
from tests.tasks.scored_case import COUNTRY, Case, publish_case, publish_patches

SEEDS = (0, 1, 2)
FEW = Bootstrap(20)
STAGE = {
    "stage": "predict",
    "done": 1,
    "skipped": 0,
    "failed": 0,
    "patches": 1,
    "seconds": 1.0,
    "patches_per_second": 1,
}


def publish_run(paths: StorePaths, configs: list[str]) -> None:
    now = datetime(2026, 3, 4, tzinfo=UTC)
    row = {
        "run_id": "r",
        "started": now,
        "ended": now,
        "status": "complete",
        "configs": configs,
        "run_yaml": json.dumps({"sr": ["bicubic", "srresnet"], "classifiers": ["resnet18"]}),
        "versions": "{}",
        "startup_seconds": 1.0,
        **dict.fromkeys(("inputs", "patches", "quarantined", "absent"), 60),
        "stages": [STAGE],
    }
    publish(paths.table("runs"), pa.Table.from_pylist([row], RUNS), RUNS, ["run_id"], file_stem="run-r")


@pytest.fixture(scope="module")
def cases() -> dict[str, Case]:
    found = {}
    for i, sr in enumerate(("none", "bicubic", "srresnet")):
        found[sr] = Case(seeds=SEEDS)
        found[sr].guess(0.1 + 0.3 * i, SEEDS, by=i)
    return found


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory, cases: dict[str, Case]) -> StorePaths:
    paths = StorePaths(tmp_path_factory.mktemp("where") / "store")
    publish_patches(paths, cases["none"])
    jobs = [publish_case(paths, case, sr, range(8, 60) if sr == "srresnet" else None) for sr, case in cases.items()]
    publish_run(paths, [job.predictions.config for job in jobs])
    return paths


def austrian(case: Case, split: str = "test") -> np.ndarray:
    return np.array([i for i in case.scored(split) if COUNTRY[case.tile[i]] == "Austria"])


def test_metrics_are_those_of_the_patches_that_meet_the_condition(paths: StorePaths, cases: dict[str, Case]) -> None:
    found = evaluate_where(paths, "country = 'Austria' AND split = 'test' -- a comment", FEW)
    case = cases["none"]
    meant = [i for i in range(60) if COUNTRY[case.tile[i]] == "Austria" and case.split[i] == "test"]
    assert found.n == len(meant)
    assert found.metrics.schema.equals(METRICS)
    rows = {(r["sr"], r["seed"], r["metric"], r["label"]): r for r in found.metrics.to_pylist()}
    assert {r["split"] for r in rows.values()} == {"test"}
    assert {(key[0], key[1]) for key in rows} == {(sr, seed) for sr in cases for seed in SEEDS}
    chosen = austrian(case)
    for sr in ("none", "bicubic"):
        for seed in SEEDS:
            t, p = case.truth[chosen].astype(int), cases[sr].predicted(seed)[chosen].astype(int)
            row = rows[sr, seed, "hl", None]
            assert row["value"] == pytest.approx(hamming_loss(t, p), abs=1e-12)
            assert row["n"] == len(chosen)
            assert row["low"] <= row["value"] <= row["high"]
    mean = found.means["test", "resnet18", "bicubic"]["hl"]
    assert mean.value == pytest.approx(np.mean([rows["bicubic", seed, "hl", None]["value"] for seed in SEEDS]))


def test_differences_are_of_the_patches_that_both_scored(paths: StorePaths, cases: dict[str, Case]) -> None:
    found = evaluate_where(paths, "country = 'Austria' AND split = 'train'", FEW)
    assert found.comparisons.schema.equals(COMPARISONS)
    rows = {(r["sr"], r["reference"], r["metric"], r["label"]): r for r in found.comparisons.to_pylist()}
    chosen = austrian(cases["none"], "train")
    for sr, first in (("bicubic", 0), ("srresnet", 8)):
        both = chosen[chosen >= first]
        values = [
            f1_score(
                case.truth[both].astype(int), case.predicted(seed)[both].astype(int), average="macro", zero_division=0
            )
            for case in (cases[sr], cases["none"])
            for seed in SEEDS
        ]
        row = rows[sr, "none", "f1_macro", None]
        assert row["value"] == pytest.approx(np.mean(values[:3]) - np.mean(values[3:]), abs=1e-12)
        assert row["n"] == len(both)
    assert len(chosen[chosen >= 8]) < len(chosen)
    assert ("srresnet", "bicubic", "f1_macro", None) in rows


def test_a_condition_on_predictions_chooses_rows(paths: StorePaths, cases: dict[str, Case]) -> None:
    found = evaluate_where(paths, "seed = 1 AND sr <> 'srresnet' AND season = 'winter'", FEW)
    assert set(found.metrics["seed"].to_pylist()) == {1}
    assert set(found.metrics["sr"].to_pylist()) == {"none", "bicubic"}
    assert found.comparisons["significant"].null_count == found.comparisons.num_rows > 0
    mixed = evaluate_where(paths, "list_contains(predicted, 'Pastures')", FEW)
    (row, *_) = (
        r
        for r in mixed.metrics.to_pylist()
        if (r["sr"], r["seed"], r["split"], r["metric"]) == ("none", 2, "test", "acc")
    )
    chosen = [i for i in cases["none"].scored("test") if "Pastures" in predicted_names(cases["none"], i, 2)]
    assert row["n"] == len(chosen)


def test_seeds_that_chose_other_patches_are_compared_on_those_of_all(paths: StorePaths, cases: dict[str, Case]) -> None:
    found = evaluate_where(paths, "list_contains(predicted, 'Pastures') AND split = 'test'", FEW)
    chosen = {
        (sr, seed): {i for i in cases[sr].scored("test") if "Pastures" in predicted_names(cases[sr], i, seed)}
        for sr in ("none", "bicubic")
        for seed in SEEDS
    }
    assert len({frozenset(patches) for patches in chosen.values()}) > 1
    both = sorted(set.intersection(*chosen.values()))
    assert both
    values = [
        np.mean([hamming_loss(cases[sr].truth[both], cases[sr].predicted(seed)[both]) for seed in SEEDS])
        for sr in ("bicubic", "none")
    ]
    (row,) = (
        r
        for r in found.comparisons.to_pylist()
        if (r["sr"], r["reference"], r["metric"], r["label"]) == ("bicubic", "none", "hl", None)
    )
    assert row["n"] == len(both)
    assert row["value"] == pytest.approx(values[0] - values[1], abs=1e-12)
    mean = found.means["test", "resnet18", "none"]["hl"]
    of_seeds = [
        hamming_loss(cases["none"].truth[rows], cases["none"].predicted(seed)[rows])
        for seed in SEEDS
        if (rows := sorted(chosen["none", seed]))
    ]
    assert mean.value == pytest.approx(np.mean(of_seeds), abs=1e-12)
    assert np.isnan(mean.low), "tiles of different patches cannot be drawn alike for all seeds"
    assert np.isnan(mean.high)


def test_one_branch_has_no_empty_table_of_differences(paths: StorePaths) -> None:
    tables = evaluate_where(paths, "sr = 'none' AND split = 'test'", FEW).tables()
    assert len(tables) == 1
    assert tables[0].rows


def predicted_names(case: Case, patch: int, seed: int) -> list[str]:
    (row,) = (r for r in case.predictions([patch]).to_pylist() if r["seed"] == seed)
    return list(row["predicted"])


@pytest.mark.parametrize(
    ("condition", "words"),
    [
        ("nation = 'Finland'", 'Referenced column "nation" not found'),
        ("country = ", "syntax error"),
        ("1) ; DROP TABLE patches; --", "syntax error|one SELECT"),
        ("country = 'Austria') OR (country = 'Serbia'", "syntax error"),
        ("true) LIMIT (5", "syntax error"),
        ("", "is empty"),
        ("country = 'Utopia'", "no patch meets the condition country = 'Utopia'"),
        ("has_snow OR labels IS NULL", "none of the .* has labels and neither snow nor cloud"),
        ("country = (SELECT content FROM read_text('/etc/hostname'))", "disabled|Permission"),
    ],
)
def test_a_condition_that_gives_nothing_is_one_sentence(paths: StorePaths, condition: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words) as error:
        evaluate_where(paths, condition, FEW)
    assert "\n" not in str(error.value)
    assert condition in str(error.value)


def test_an_empty_store_says_that_nothing_has_run(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no finished run"):
        evaluate_where(StorePaths(tmp_path), "true")


def test_a_store_without_its_classes_says_so(paths: StorePaths, tmp_path: Path) -> None:
    shutil.copytree(paths.root, tmp_path / "store")
    shutil.rmtree(tmp_path / "store" / "tables" / "classes")
    with pytest.raises(StoreError, match="no tables/classes"):
        evaluate_where(StorePaths(tmp_path / "store"), "true", FEW)


def run_yaml(paths: StorePaths, folder: Path) -> str:
    path = folder / "run.yaml"
    settings = {"archive": {"layout": "bigearthnet-v2"}, "store": str(paths.root), "train": {"backbone": "random"}}
    path.write_text(yaml.safe_dump(settings))
    return str(path)


@pytest.fixture
def few_resamples(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tasks.evaluate_where.evaluate_where", lambda paths, where: evaluate_where(paths, where, FEW))


@pytest.mark.usefixtures("few_resamples")
def test_the_command_writes_long_rows_for_programs(paths: StorePaths, tmp_path: Path) -> None:
    result = CliRunner().invoke(app, ["evaluate", run_yaml(paths, tmp_path), "--where", "split = 'test'"])
    assert result.exit_code == 0, result.output
    header, *lines = [line.split("\t") for line in result.stdout.splitlines()]
    assert header == METRICS.names
    expected = evaluate_where(paths, "split = 'test'", FEW).metrics.to_pylist()
    assert len(lines) == len(expected)
    for line, row in zip(lines, expected, strict=True):
        told = dict(zip(header, line, strict=True))
        assert told["sr"] == row["sr"]
        assert told["label"] == (row["label"] or "")
        assert told["value"] == "" if row["value"] is None else float(told["value"]) == pytest.approx(row["value"])
    assert "patches meet the condition" in result.stderr


@pytest.mark.usefixtures("few_resamples")
def test_the_command_shows_tables_to_people(paths: StorePaths, tmp_path: Path) -> None:
    terminal = {"FORCE_COLOR": "1", "COLUMNS": "200"}
    result = CliRunner().invoke(app, ["evaluate", run_yaml(paths, tmp_path), "--where", "true"], env=terminal)
    assert result.exit_code == 0, result.output
    for words in (
        *" ".join(SHOWN.values()).split(),
        "srresnet - bicubic",
        "bicubic - none",
        "test: ",
        "train: ",
        "significant",
    ):
        assert words in result.stdout
    mean = evaluate_where(paths, "true", FEW).means["test", "resnet18", "srresnet"]["ap_macro"]
    assert f"{mean.value:.3f}" in result.stdout
    assert f"{mean.low:.3f} {mean.high:.3f}" in result.stdout


@pytest.mark.usefixtures("few_resamples")
def test_the_tables_show_every_digit_in_a_narrow_terminal(paths: StorePaths, tmp_path: Path) -> None:
    terminal = {"FORCE_COLOR": "1", "COLUMNS": "80"}
    condition = "split = 'test'"
    result = CliRunner().invoke(app, ["evaluate", run_yaml(paths, tmp_path), "--where", condition], env=terminal)
    assert result.exit_code == 0, result.output
    assert "\N{HORIZONTAL ELLIPSIS}" not in result.stdout
    assert max(map(len, re.sub(r"\x1b\[[0-9;]*m", "", result.stdout).splitlines())) <= 80
    shown = [text for table in evaluate_where(paths, condition, FEW).tables() for row in table.rows for text in row[2:]]
    assert any("*" in text for text in shown)
    for text in shown:
        for part in text.split():
            assert part in result.stdout


def test_a_bad_condition_has_exit_code_2(
    paths: StorePaths, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["superscene", "evaluate", run_yaml(paths, tmp_path), "--where", "country = 'Utopia'"]
    monkeypatch.setattr("sys.argv", arguments)
    with pytest.raises(SystemExit) as exit_:
        main()
    assert exit_.value.code == 2
    assert capsys.readouterr().err == "superscene: no patch meets the condition country = 'Utopia'\n"
