"""The benchmark runs, on a small case, and its ways agree with scikit-learn."""

import json
import runpy
from pathlib import Path

import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "metrics.py"))


def test_every_way_gives_the_same_and_is_written_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "metrics.json"
    small = {"patches": 600, "labels": 4, "tiles": 12, "resamples": 10, "repeats": 1, "out": out}
    BENCHMARK["main"]([f"--{name}={value}" for name, value in small.items()])
    found = json.loads(out.read_text())
    assert found["about"]["patches"] == 600
    ways = [row["way"] for row in found["rows"]]
    assert ways == [*["scikit-learn in a loop", "one by one", "by matrix product"] * 2, "superscene"]
    assert all(row["seconds"] > 0 for row in found["rows"])
    assert all(row["difference"] < 1e-12 for row in found["rows"][:-1])
    assert "AP of all labels (micro)" in capsys.readouterr().out
