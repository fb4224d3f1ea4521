"""`--json`: one document on standard output, whose numbers are those of the tables and of what a person is shown."""

import json
import math
import re
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from pathlib import Path
from typing import Any
from uuid import UUID

import pandas as pd
import pytest
from typer.testing import CliRunner

from flows.cli import app, main
from flows.commands.documents import run_document
from flows.commands.output import jsonable
from flows.config import RunConfig
from flows.doctor import checks
from flows.doctor.case import Check, fail, ok, warn
from infra.errors import IncompleteRunError
from tests.flows.stores import PROJECT, Inputs, superscene

PAGE = (PROJECT / "docs" / "json.md").read_text(encoding="utf-8")


def asked(*arguments: str | Path, code: int = 0) -> Any:
    """The one document that a command prints, which has to be all that it prints."""
    result = CliRunner().invoke(app, [*map(str, arguments), "--json"])
    assert result.exit_code == code, result.output
    assert result.stdout.count("\n") == 1
    assert result.stdout.isascii()
    return json.loads(result.stdout, parse_constant=pytest.fail)


def shown(*arguments: str | Path) -> str:
    result = CliRunner().invoke(app, [*map(str, arguments)])
    assert result.exit_code == 0, result.output
    return result.stdout


def documented(heading: str) -> set[str]:
    """Every key that a section of the page names."""
    (section,) = re.findall(rf"^## {heading}\n(.*?)(?=^## |\Z)", PAGE, re.MULTILINE | re.DOTALL)
    return set(re.findall(r"`([a-z_0-9]+)`", section))


def test_values_that_json_has_no_words_for() -> None:
    day = datetime(2026, 3, 1, 12, 30, tzinfo=UTC)
    assert jsonable([math.nan, math.inf, 0.1, True, None]) == [None, None, 0.1, True, None]
    assert jsonable({1: b"\x00\xff", "at": day, "took": timedelta(minutes=2)}) == {
        "1": "00ff",
        "at": "2026-03-01T12:30:00+00:00",
        "took": 120.0,
    }
    assert jsonable((Decimal("1.5"), Path("/a"), day.date())) == [1.5, "/a", "2026-03-01"]
    assert jsonable(UUID(int=1)) == "00000000-0000-0000-0000-000000000001"
    with pytest.raises(TypeError, match="a object cannot be written"):
        jsonable(object())


def test_a_run_is_told_as_its_row_has_it(inputs: Inputs) -> None:
    told = json.loads(json.dumps(jsonable(run_document(inputs.reference))))
    runs = pd.read_parquet(inputs.reference / "tables" / "runs")
    row = runs.sort_values("started").iloc[-1]
    for key in ("run_id", "inputs", "patches", "quarantined", "absent", "git_commit"):
        assert told[key] == row[key]
    assert (told["status"], told["configs"], told["failures"]) == ("complete", list(row["configs"]), [])
    assert told["versions"] == json.loads(row["versions"])
    assert told["started"][10] == "T"
    assert abs(row["started"] - datetime.fromisoformat(told["started"])) < timedelta(milliseconds=1)
    assert [stage["stage"] for stage in told["stages"]] == [stage["stage"] for stage in row["stages"]]
    assert sum(stage["patches"] for stage in told["stages"]) == sum(stage["patches"] for stage in row["stages"])
    assert told["report"] == str(inputs.reference / "report" / "index.html")
    assert {*told, *told["stages"][0]} <= documented(r"run, ingest, [^\n]*")


def test_status(inputs: Inputs) -> None:
    told = asked("status", inputs.reference)
    lines = shown("status", inputs.reference).splitlines()
    counts = f"{told['patches']} patches, {told['quarantined']} in quarantine"
    assert lines[0] == f"run {told['run_id']}: {told['state']}; {counts}"
    rows = [line.split() for line in lines[2:] if line.strip()]
    numbers = [[str(stage[key]) for key in ("done", "missing", "failed")] for stage in told["stages"]]
    assert [row[-3:] for row in rows] == numbers
    assert [row[-4] for row in rows] == [stage["config"] for stage in told["stages"]]
    assert {*told, *told["stages"][0]} <= documented("status")


def test_sql(inputs: Inputs) -> None:
    statement = "SELECT split, count(*) AS n, 0.5::FLOAT AS half, NULL AS x, 1 AS y FROM patches GROUP BY 1 ORDER BY 1"
    told = asked("sql", inputs.reference, statement)
    assert [column["name"] for column in told["columns"]] == ["split", "n", "half", "x", "y"]
    assert [column["type"] for column in told["columns"]][:3] == ["VARCHAR", "BIGINT", "FLOAT"]
    counts = pd.read_parquet(inputs.reference / "tables" / "patches")["split"].astype(str).value_counts().sort_index()
    assert told["rows"] == [[split, n, 0.5, None, 1] for split, n in counts.items()]
    text = [line.split("\t") for line in shown("sql", inputs.reference, statement).splitlines()[1:]]
    assert [[row[0], int(row[1]), float(row[2])] for row in text] == [row[:3] for row in told["rows"]]


def test_geometry_and_lists(inputs: Inputs) -> None:
    told = asked("sql", inputs.reference, "SELECT patch_id, labels, geometry FROM patches ORDER BY patch_id LIMIT 1")
    row = pd.read_parquet(inputs.reference / "tables" / "patches").sort_values("patch_id").iloc[0]
    ((patch_id, labels, geometry),) = told["rows"]
    assert (patch_id, labels) == (row["patch_id"], list(row["labels"]))
    assert bytes.fromhex(geometry) == row["geometry"]


def test_scores_of_some_patches(inputs: Inputs, tmp_path: Path) -> None:
    run_yaml = inputs.config(inputs.reference, tmp_path / "RUN.yaml")
    where = "split = 'test' OR split = 'validation'"
    told = asked("evaluate", run_yaml, "--where", where)
    lines = [line.split("\t") for line in shown("evaluate", run_yaml, "--where", where).splitlines()]
    patches = pd.read_parquet(inputs.reference / "tables" / "patches")
    assert told["patches"] == int(patches["split"].isin(["test", "validation"]).sum())
    assert list(told["metrics"][0]) == lines[0]
    value = lines[0].index("value")
    assert [bool(line[value]) for line in lines[1:]] == [row["value"] is not None for row in told["metrics"]]
    exact = [float(line[value]) for line in lines[1:] if line[value]]
    assert exact == pytest.approx([row["value"] for row in told["metrics"] if row["value"] is not None], rel=1e-8)
    assert {*told} <= documented(r"run, ingest, [^\n]*")


def test_plan(inputs: Inputs, tmp_path: Path) -> None:
    run_yaml = inputs.config(tmp_path / "store")
    told = asked("plan", run_yaml, "--price-per-hour", "2")
    text = shown("plan", run_yaml, "--price-per-hour", "2")
    patches = pd.read_parquet(inputs.reference / "tables" / "patches")
    assert told["patches"] == sum(told["splits"].values()) == len(patches)
    assert told["splits"] == patches["split"].astype(str).value_counts().to_dict()
    assert told["shards"] == sum(-(-n // told["shard_size"]) for n in told["splits"].values())
    assert f"{told['bytes']['archive'] / 1e6:.3g} MB" in text
    assert {hours is None for hours in told["hours"].values()} <= {True, False}
    assert told["cost"] == pytest.approx(2 * sum(told["device_hours"].values()))
    assert f"{told['cost']:,.2f}" in text
    assert {*told} <= documented("plan")


def test_doctor(monkeypatch: pytest.MonkeyPatch) -> None:
    table = (Check("a", "", "mend", lambda _: warn("odd")), Check("b", "", "mend", lambda _: ok("well")))
    monkeypatch.setattr(checks, "CHECKS", {"all": table})
    first = {"name": "a", "state": "warn", "found": "odd", "advice": "mend"}
    second = {"name": "b", "state": "ok", "found": "well", "advice": ""}
    assert asked("doctor") == {"ok": True, "checks": [first, second]}
    assert shown("doctor").split("\n")[1].split() == ["a", "warn", "odd;", "what", "to", "do:", "mend"]
    monkeypatch.setattr(checks, "CHECKS", {"all": (*table, Check("c", "", "mend", lambda _: fail("ill")))})
    told = asked("doctor", code=2)
    assert told["ok"] is False
    assert {*told, *told["checks"][0]} <= documented("doctor")


def test_synth(tmp_path: Path) -> None:
    folder = tmp_path / "archive"
    assert asked("synth", folder, "--patches", "2") == {"folder": str(folder), "patches": 2}


def test_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERSCENE_WEIGHTS", str(tmp_path))
    told = asked("weights", "list")
    lines = [line.split("\t") for line in shown("weights", "list").splitlines()]
    assert [row["model"] for row in told["models"]] == [line[0] for line in lines[1:]]
    assert [row["state"] for row in told["models"]] == [line[lines[0].index("state")] for line in lines[1:]]
    shipped = next(row for row in told["models"] if row["model"] == "srresnet")
    assert shipped["bytes"] == next((PROJECT / "sr_models" / "shipped").glob("srresnet*.safetensors")).stat().st_size
    verified = asked("weights", "verify")
    assert (verified["ok"], [row["state"] for row in verified["files"]]) == (True, ["ok"])
    names = {*told, *told["models"][0], *verified, *verified["files"][0]}
    assert names <= documented("weights")


def test_an_error_leaves_standard_output_empty(tmp_path: Path) -> None:
    result = superscene("status", tmp_path, "--json")
    assert (result.returncode, result.stdout) == (2, "")
    assert result.stderr.startswith("superscene: ")


@pytest.mark.parametrize("fault", [None, IncompleteRunError("predict bicubic: shard 3 failed")])
def test_a_run_that_ends_whole_or_in_part(
    inputs: Inputs, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], fault: Exception | None
) -> None:
    """The flow is another here, the store the reference's: what is printed is that store's last run."""

    def archive(config: RunConfig, until: str = "report") -> str:
        if fault is not None:
            raise fault
        return f"until {until}"

    monkeypatch.setattr("flows.archive.archive", archive)
    monkeypatch.setattr("flows.orphans.end_orphaned_servers", lambda: 0)
    run_yaml = str(inputs.config(inputs.reference, inputs.folder / "again.yaml"))
    monkeypatch.setattr("sys.argv", ["superscene", "predict", run_yaml, "--json"])
    with pytest.raises(SystemExit) as exit_:
        main()
    told = capsys.readouterr()
    assert exit_.value.code == (0 if fault is None else 1)
    assert told.err == ("" if fault is None else f"{fault}\n")
    document = json.loads(told.out)
    assert document == json.loads(json.dumps(jsonable(run_document(inputs.reference))))
    if fault is None:
        assert shown("predict", run_yaml) == "until predict\n"
