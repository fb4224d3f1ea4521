"""Runs that are killed, starved and poisoned, and what they leave."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pandas as pd
import psutil
import pyarrow.parquet as pq
import pytest

from tests.flows.stores import (
    PROJECT,
    Inputs,
    assert_same_tables,
    environment,
    part_states,
    superscene,
    tables,
)


@contextmanager
def started(config: Path, command: str = "run") -> Iterator["subprocess.Popen[bytes]"]:
    """Start a run, or one stage of it, whose output goes to a file beside its configuration."""
    with config.with_suffix(".log").open("ab") as log:
        words = [str(Path(sys.executable).with_name("superscene")), command, str(config)]
        with subprocess.Popen(words, stdout=log, stderr=log, env=environment(), cwd=PROJECT) as run:
            yield run


def n_parts(store: Path) -> int:
    return len(list((store / "work").rglob("part-*.parquet")))


def wait_until(condition: Callable[[], bool], run: "subprocess.Popen[bytes]", seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition() and run.poll() is None and time.monotonic() < deadline:
        time.sleep(0.02)


def assert_nothing_half_done(store: Path) -> None:
    """Every Parquet file under a final name can be read to its end."""
    for path in store.rglob("*.parquet"):
        if not path.name.startswith("."):
            pq.ParquetFile(path).read()


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 3])
def test_a_driver_killed_at_random_moments(inputs: Inputs, tmp_path: Path, kills: int) -> None:
    store = tmp_path / "store"
    config = inputs.config(store)
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    moments = sorted(random.Random(seed).sample(range(1, n_parts(inputs.reference)), kills))
    finished: dict[Path, tuple[int, bytes]] = {}
    for moment in moments:
        with started(config) as run:
            wait_until(lambda moment=moment: n_parts(store) >= moment, run)  # type: ignore[misc]  # default binds it
            assert run.poll() is None, config.with_suffix(".log").read_text()
            children = psutil.Process(run.pid).children(recursive=True)
            run.kill()
        psutil.wait_procs(children, timeout=30)
        assert_nothing_half_done(store)
        now = part_states(store)
        assert finished.items() <= now.items(), "a finished part was touched"
        finished = now
    result = superscene("run", config)
    assert result.returncode == 0, result.stderr
    assert finished.items() <= part_states(store).items(), "a finished part was touched"
    assert_same_tables(store, inputs.reference)
    assert not list(store.rglob("*.partial"))


@pytest.mark.slow
def test_actors_killed_at_random_moments(inputs: Inputs, tmp_path: Path) -> None:
    store = tmp_path / "store"
    seed = random.SystemRandom().randrange(10**6)
    print("seed", seed)
    chance = random.Random(seed)
    moments = sorted(chance.sample(range(1, n_parts(inputs.reference)), 2))
    config = inputs.config(store)
    killed = 0
    with started(config) as run:
        for moment in moments:
            wait_until(lambda moment=moment: n_parts(store) >= moment, run)  # type: ignore[misc]  # default binds it
            time.sleep(chance.random() * 0.5)
            actors = [p for p in psutil.Process(run.pid).children(recursive=True) if _is_actor(p)]
            if actors:
                chance.choice(actors).send_signal(signal.SIGKILL)
                killed += 1
        code = run.wait(timeout=240)
    assert code == 0, config.with_suffix(".log").read_text()
    assert killed
    assert_same_tables(store, inputs.reference)


def _is_actor(process: psutil.Process) -> bool:
    try:
        return any("ray::_Host" in word for word in process.cmdline())
    except psutil.Error:
        return False


@pytest.mark.slow
def test_a_shard_that_kills_its_process_is_reported_alone(inputs: Inputs, tmp_path: Path) -> None:
    store = tmp_path / "store"
    poison = str(tables(inputs.reference)["patches"]["patch_id"][5])
    result = subprocess.run(
        [sys.executable, "-m", "tests.flows.poisoned", str(inputs.config(store)), poison],
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
        env=environment(),
        cwd=PROJECT,
    )
    assert result.returncode == 1, result.stderr
    assert "the process died" in result.stderr
    status = superscene("status", store)
    failed = [line for line in status.stdout.splitlines() if "failed:" in line]
    assert len(failed) == 1
    patches = pd.read_parquet(inputs.reference / "tables" / "patches")
    shard = int(patches.loc[patches["patch_id"] == poison, "shard"].iloc[0])
    assert f"shard {shard} failed" in failed[0]
    stored = pd.read_parquet(store / "tables" / "patches")
    expected = patches[patches["shard"] != shard]
    assert set(stored["patch_id"]) == set(expected["patch_id"])
    run = pd.read_parquet(store / "tables" / "runs").iloc[-1]
    assert run["status"] == "incomplete"
    (file,) = (store / "tables" / "patches").glob("*.parquet")
    assert (pq.read_metadata(file).metadata or {})[b"superscene.complete"] == b"false"
    # Without the poison, the next run does what is missing and publishes everything.
    mended = superscene("run", inputs.config(store))
    assert mended.returncode == 0, mended.stderr
    assert set(pd.read_parquet(store / "tables" / "patches")["patch_id"]) == set(patches["patch_id"])


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 24 MB."""
    folder = tmp_path / "disk"
    folder.mkdir()
    if os.geteuid() != 0 or _mount("-t", "tmpfs", "-o", "size=24m", "tmpfs", str(folder)):
        pytest.skip("mounting a small file system is not permitted here")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def _mount(*arguments: str) -> int:
    return subprocess.run(["mount", *arguments], capture_output=True, check=False).returncode


@pytest.mark.slow
def test_a_disk_that_fills_loses_nothing(inputs: Inputs, small_disk: Path, tmp_path: Path) -> None:
    store = small_disk / "store"
    config = inputs.config(store, tmp_path / "run.yaml")
    filler = small_disk / "filler"
    filler.write_bytes(bytes(21 * 2**20))
    full = superscene("run", config)
    assert full.returncode == 2, full.stdout + full.stderr
    sentence = full.stderr.strip().splitlines()[-1]
    assert "the disk is full" in sentence
    assert "Traceback" not in full.stderr
    assert_nothing_half_done(store)
    # An actor that was writing pixels when another met the full disk was killed: the next run sweeps up after it.
    assert not [path for path in store.rglob("*.partial") if "c" not in path.relative_to(store).parts]
    finished = part_states(store)
    assert finished, "some shards were done before the disk was full"
    filler.unlink()
    assert _mount("-o", "remount,size=200m", str(small_disk)) == 0
    result = superscene("run", config)
    assert result.returncode == 0, result.stderr
    assert finished.items() <= part_states(store).items()
    assert not list(store.rglob("*.partial"))
    assert_same_tables(store, inputs.reference)
