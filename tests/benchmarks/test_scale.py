"""The benchmark runs, on a small case, and counts what it says that it counts."""

import os
import runpy
from dataclasses import asdict
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[2] / "benchmarks" / "scale.py"
BENCHMARK = runpy.run_path(str(SCRIPT))


def test_exponents_are_slopes() -> None:
    assert BENCHMARK["exponent"]([10, 100, 1000], [0.3, 3.0, 30.0]) == pytest.approx(1.0)
    assert BENCHMARK["exponent"]([1, 2, 4], [7.0, 28.0, 112.0]) == pytest.approx(2.0)


def test_growths_are_told_apart() -> None:
    row = BENCHMARK["Row"]
    rows = [row("growth by shards", 0, n, 2, 0.01 * n, 0.1 * n**2, 0, 0) for n in (10, 100)]
    rows += [row("growth by actors", 0, 100, n, 5.0, float(n), 0, 0) for n in (1, 4)]
    assert BENCHMARK["growth_of"](rows) == {
        "growth by shards, by the clock": pytest.approx(1.0),
        "growth by shards, CPU of the driver": pytest.approx(2.0),
        "growth by shards, last over first, ms a shard": pytest.approx(1.0),
        "growth by actors, by the clock": pytest.approx(0.0),
        "growth by actors, CPU of the driver": pytest.approx(1.0),
        "growth by actors, last over first, ms a shard": pytest.approx(1.0),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("scale")
    given = os.environ.pop("SUPERSCENE_DATA", None)
    try:
        assert BENCHMARK["prepare"](root / "archive", 90) == "generated ids"
    finally:
        if given is not None:
            os.environ["SUPERSCENE_DATA"] = given
    return root


def measured(folder: Path, what: str, shards: int = 0) -> list[dict[str, float]]:
    case = {"what": what, "folder": str(folder), "shard_size": 20, "shards": shards, "actors": 1}
    rows = BENCHMARK["in_a_process"](BENCHMARK["Case"](**case))
    return [asdict(row) for row in rows]


def test_every_patch_goes_through_every_stage(folder: Path) -> None:
    """90 patches: 46 for training, 22 and 22 for the others: 3 + 2 + 2 shards of 20."""
    (plan,) = measured(folder, "plan")
    assert (plan["patches"], plan["shards"]) == (90, 7)
    rows = measured(folder, "the whole list")
    assert [(row["patches"], row["shards"]) for row in rows] == [(90, 7)] * 4
    (status,) = measured(folder, "status")
    assert (status["patches"], status["shards"]) == (90, 7)
    (grown,) = measured(folder, "growth by shards", shards=3)
    assert (grown["patches"], grown["shards"]) == (46, 3)
    for row in (plan, *rows, status, grown):
        assert row["seconds"] > 0
        assert 50 < row["before_mb"] <= row["peak_mb"] < 1000
