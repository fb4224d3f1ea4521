"""The benchmark runs, on a small case; its store lies where the names of its patches say, and all ways agree."""

import json
import runpy
from pathlib import Path

import pytest

from benchmarks.explorer_store import corner

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "explorer.py"))


@pytest.mark.parametrize(
    ("tile", "epsg", "left", "top"),
    [
        ("10SEG", 32610, 499_980, 4_200_000),
        ("31TCJ", 32631, 300_000, 4_900_020),
        ("31UDQ", 32631, 399_960, 5_500_020),
        ("33UUP", 32633, 300_000, 5_400_000),
    ],
)
def test_corners_are_those_of_sentinel_2_s_tiles(tile: str, epsg: int, left: float, top: float) -> None:
    """As the tiles' metadata have them: squares of 100 km, up to 40 m larger."""
    code, *place = corner(tile)
    assert code == epsg
    assert place == pytest.approx([left, top], abs=40)


def test_every_way_gives_the_same_and_is_written_down(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SUPERSCENE_DATA", raising=False)
    out = tmp_path / "explorer.json"
    BENCHMARK["main"](["--patches=150", "--requests=2", "--loads=0", f"--scratch={tmp_path}", f"--out={out}"])
    found = json.loads(out.read_text())
    assert found["about"]["patches"] == 150
    assert found["about"]["held_mb"] > 0
    kinds = [row["kind"] for row in found["rows"]]
    assert (kinds.count("endpoint"), kinds.count("peer")) == (20, 4)
    assert all(0 < row["median_ms"] <= row["max_ms"] for row in found["rows"])
    assert "DuckDB, the Parquet file" in capsys.readouterr().out
