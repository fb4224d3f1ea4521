"""The benchmark runs, on a small case, and its clusters agree with scikit-learn's."""

import json
import runpy
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "reliability.py"))


@pytest.fixture
def case(tmp_path: Path) -> dict[str, object]:
    return {"maps": 900, "landmarks": 200, "chunk": 256, "size": 9, "file": str(tmp_path / "fit.safetensors")}


def test_every_measurement_runs_and_the_peer_agrees(
    case: dict[str, object], capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for what in BENCHMARK["MEASURES"]:
        BENCHMARK["main"](["--one", json.dumps({**case, "what": what})])
        found[what] = json.loads(capsys.readouterr().out)
    assert [row["maps"] for row in found.values()] == [400, 900, 900, 900, 900]
    assert all(row["seconds"] > 0 for what, row in found.items() if what != "fit for assign")
    assert all(row["peak_mb"] > 50 for row in found.values())
    assert found["peer"]["agreement"] > 0.95  # all but ties


def test_maps_come_in_chunks_a_third_of_them_0(case: dict[str, object]) -> None:
    maps = list(BENCHMARK["chunks"](BENCHMARK["Case"](what="assign", **case)))
    assert [len(part) for part in maps] == [256, 256, 256, 132]
    zero = ~np.concatenate(maps).any(axis=(1, 2))
    assert abs(zero.mean() - 1 / 3) < 0.08  # five deviations
