"""The benchmark runs, on a small case."""

import json
import runpy
from pathlib import Path

import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "reliability_judge.py"))


def test_every_measurement_runs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    case = {"patches": 300, "labels": 3, "shard_size": 32, "tiles": 7, "folder": str(tmp_path)}
    written = {}
    for what in BENCHMARK["MEASURES"]:
        BENCHMARK["main"](["--one", json.dumps({**case, "what": what})])
        assert json.loads(capsys.readouterr().out)["rows"] == 900
        written[what] = {path: path.stat().st_mtime_ns for path in tmp_path.glob("tables/reliability/**/*.parquet")}
    assert written["publish again"] == written["publish"] != {}
    tables = {path.name for path in (tmp_path / "tables").iterdir()}
    assert {"reliability", "reliability_clusters", "reliability_metrics", "risk_coverage"} <= tables
