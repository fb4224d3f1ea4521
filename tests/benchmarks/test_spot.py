"""The simulation against runs computed by hand, and against the formula for work that is begun anew after each loss."""

import json
import math
import runpy
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

BENCHMARK = runpy.run_path(str(Path(__file__).parents[2] / "benchmarks" / "spot.py"))
simulate, Cluster, Outcome = BENCHMARK["simulate"], BENCHMARK["Cluster"], BENCHMARK["Outcome"]


def lives(*seconds: float) -> Callable[[], float]:
    """Return lifetimes of nodes in the order in which they appear; later ones live for ever."""
    given: Iterator[float] = iter(seconds)
    return lambda: next(given, math.inf)


def test_without_losses_shards_are_dealt_out_stage_by_stage() -> None:
    """Starts at 4; 5 shards of 10 s on 2 devices are 3 rounds, 2 shards of 3 s one more: 4 + 30 + 3."""
    found = simulate([[10.0] * 5, [3.0] * 2], Cluster(2, 1, 4.0, 99.0), lives())
    assert found == Outcome(37.0, 2 * 37.0, 0.0, 0)


def test_a_lost_shard_goes_to_the_device_that_waits() -> None:
    """Node 0 is lost at 15, 5 s into its second shard, which node 1, idle since 10, does from 15 to 25.

    The replacement is there at 22 and has nothing to do: paid are 15 + 3 of node 0 and 25 of node 1.
    """
    found = simulate([[10.0] * 3], Cluster(2, 1, 0.0, 7.0), lives(15.0))
    assert found == Outcome(25.0, 15.0 + 3.0 + 25.0, 5.0, 1)


def test_a_single_device_waits_for_its_replacement_and_starts_again() -> None:
    """Ready at 2, one shard done at 12, the second lost at 20 after 8 s; back at 50, ready at 52, done at 62."""
    found = simulate([[10.0] * 2], Cluster(1, 1, 2.0, 30.0), lives(20.0))
    assert found == Outcome(62.0, 20.0 + 12.0, 8.0, 1)


def test_a_node_takes_all_its_devices_with_it() -> None:
    """Both devices lose 6 s of work; three shards then take two rounds from 9 on."""
    found = simulate([[10.0] * 3], Cluster(2, 2, 0.0, 3.0), lives(6.0))
    assert found == Outcome(29.0, 2 * (6.0 + 20.0), 12.0, 1)


def test_a_loss_between_stages_loses_no_work() -> None:
    """Of three devices one is lost at 12 with nothing to do, since the stage's last shard of 20 s is still at work."""
    found = simulate([[10.0, 10.0, 20.0], [5.0] * 3], Cluster(3, 1, 0.0, 100.0), lives(12.0))
    assert found == Outcome(30.0, 12.0 + 2 * 30.0, 0.0, 1)  # two rounds of the second stage on two devices


def test_the_mean_of_many_shards_is_that_of_restarts() -> None:
    """A shard of s seconds under losses at rate r, each costing d more: (1 / r + d) (exp(r s) - 1) on average."""
    rate, shard, delay, n = 1 / 50, 30.0, 20.0, 4000
    rng = np.random.default_rng(0)
    found = simulate([[shard] * n], Cluster(1, 1, 0.0, delay), lambda: float(rng.exponential(1 / rate)))
    mean = (1 / rate + delay) * (math.exp(rate * shard) - 1)
    assert found.seconds / n == pytest.approx(mean, rel=0.05)
    assert found.paid_seconds == pytest.approx(found.seconds - delay * found.losses)
    assert found.lost_seconds == pytest.approx(found.paid_seconds - n * shard)


def test_lifetimes_have_the_mean_of_their_rate_and_are_seeded() -> None:
    poisson = BENCHMARK["poisson"]
    lifetime, again = poisson(0.5, 3), poisson(0.5, 3)
    drawn = [lifetime() for _ in range(5000)]
    assert drawn == [again() for _ in range(5000)]
    assert np.mean(drawn) == pytest.approx(7200, rel=0.05)
    assert poisson(0.0, 3)() == math.inf


def test_the_table_of_given_rates(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """1,000 patches in shards of 300 at 1 a second: 1,000 s on one device; 300 s on four, the last one short."""
    out = tmp_path / "spot.json"
    arguments = "--rate work=1 --patches 1000 --shard-size 300 --devices 1 4 --losses-per-hour 0 --start-seconds 0"
    BENCHMARK["main"]([*arguments.split(), "--price-per-hour", "3.6", "--out", str(out)])
    found = json.loads(out.read_text())
    assert (found["source"], found["rates"]) == ("given", {"work": 1.0})
    one, four = found["rows"]
    assert (one["hours"], one["cost"]) == (pytest.approx(1000 / 3600), pytest.approx(1.0))
    assert (four["hours"], four["ideal_hours"]) == (pytest.approx(300 / 3600), pytest.approx(250 / 3600))
    assert four["cost"] == pytest.approx(1.2)
    assert "work 1 patches/s" in capsys.readouterr().out


def test_the_measured_rates_are_those_of_cores(tmp_path: Path) -> None:
    """One device, no loss: a minute's start, then 512 patches at each of the three rates."""
    out = tmp_path / "spot.json"
    BENCHMARK["main"](["--patches", "512", "--devices", "1", "--losses-per-hour", "0", "--out", str(out)])
    found = json.loads(out.read_text())
    assert found["source"] == "measured, a device is one processor core"
    assert set(found["rates"]) == {"ingest", "pixels srresnet float32", "backbone resnet50 480"}
    (row,) = found["rows"]
    assert 3600 * row["hours"] == pytest.approx(60 + sum(512 / rate for rate in found["rates"].values()))


def test_a_store_without_a_run_has_no_rates(tmp_path: Path) -> None:
    with pytest.raises(SystemExit, match="no run"):
        BENCHMARK["main"](["--store", str(tmp_path)])
