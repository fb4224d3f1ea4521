"""The account of a run's time against one made by hand; the run itself is the slow test."""

import json
import runpy
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from infra.parts import stage_parts
from infra.storage import StorePaths

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "overhead.py"))


def test_where_the_time_of_a_run_goes() -> None:
    """Four shards of 10 s, the first part at 130: the shards began at 120, 20 s after the command; the end took 7."""
    found = BENCHMARK["costs_of"](100.0, [150.0, 130.0, 160.0, 140.0], 167.0, 44.0)
    assert (found.total, found.start_up, found.shards, found.end, found.bare) == (67.0, 20.0, 40.0, 7.0, 44.0)
    assert found.overhead == pytest.approx((47 - 44) / 44)
    text = BENCHMARK["show"](found, [44.0, 45.0], 50.0, 88)
    assert "plain loop, memory handed back          50.0        1.76" in text
    assert "bare loop (of 44, 45)                   44.0        2.00" in text
    assert "overhead: 6.8% of the bare loop (goal: 5% at most), its shards alone -9.1%" in text
    assert "of the plain loop: -6.0%" in text
    assert "take more --patches" in text


@pytest.mark.parametrize("fault", ["", "differ by 2.0e-05", "the run has 1 patches, the loop 2"])
def test_another_result_is_no_measurement(tmp_path: Path, fault: str) -> None:
    parts = stage_parts(StorePaths(tmp_path), "predictions", {})
    moved = 2e-5 if fault.startswith("differ") else 1e-6
    for shard, name in enumerate(["a"] if fault.startswith("the run") else ["a", "b"]):
        parts.write(shard, pa.table({"patch_id": [name], "probs": [[0.5 + moved * shard, 0.25]]}))
    expected = {name: np.array([0.5, 0.25], np.float32) for name in ("a", "b")}
    if fault:
        with pytest.raises(SystemExit, match=fault):
            BENCHMARK["check_probabilities"](parts, expected)
    else:
        BENCHMARK["check_probabilities"](parts, expected)


def test_one_shard_is_no_measurement(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        BENCHMARK["main"](["--patches", "16", "--shard-size", "16"])
    assert "takes two of them" in capsys.readouterr().err


@pytest.mark.slow
def test_a_run_is_measured(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "overhead.json"
    small = ["--patches", "8", "--shard-size", "2", "--sr", "bicubic", "--network", "resnet18", "--repeats", "1"]
    BENCHMARK["main"]([*small, "--out", str(out)])
    record = json.loads(out.read_text())
    assert record["total"] == pytest.approx(record["start_up"] + record["shards"] + record["end"])
    assert min(record["start_up"], record["shards"], record["end"], record["bare"]) > 0
    assert "take more --patches" in capsys.readouterr().out
