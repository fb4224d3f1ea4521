"""A run as an operator sees it: its log, and its status while it lives."""

import json
import os
from collections import Counter
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from infra.errors import StoreError
from infra.storage import StorePaths
from tasks.status import StoreStatus, store_status
from tests.flows.stores import Inputs
from tests.flows.test_resilience import started, wait_until


@pytest.fixture(scope="module")
def watched(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[str], list[StoreStatus], Path]:
    """The output of an ingest with logs as JSON, what status said again and again meanwhile, and the store."""
    store = tmp_path_factory.mktemp("watched") / "store"
    config = inputs.config(store, resources={"actors": 1})
    seen: list[StoreStatus] = []

    def look() -> bool:
        try:
            seen.append(store_status(StorePaths(store)))
        except StoreError:  # not begun
            return False
        return False

    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERSCENE_LOG", "json")
        patch.setenv("SUPERSCENE_LOG_LEVEL", "debug")
        with started(config, "ingest") as run:
            wait_until(look, run)
    output = config.with_suffix(".log").read_text(encoding="utf-8")
    assert run.returncode == 0, output
    seen.append(store_status(StorePaths(store)))
    return output.splitlines(), seen, store


def test_the_log_tells_the_run_from_its_begin_to_its_end(
    inputs: Inputs, watched: tuple[list[str], list[StoreStatus], Path]
) -> None:
    output, seen, store = watched
    lines: list[dict[str, Any]] = [json.loads(line) for line in output if line.startswith("{")]
    rest = [line for line in output if not line.startswith("{")]
    assert all(not line or line.startswith(("|", "#", "**", "-")) or "superscene" in line for line in rest), rest
    assert {line["run"] for line in lines} == {seen[-1].run_id}
    assert [line["message"] for line in (lines[0], lines[-1])] == ["the run begins", "the run ends, complete"]
    patches = pd.read_parquet(store / "tables" / "patches")
    per_shard = patches.groupby("shard").size()
    done = {line["shard"]: line["patches"] for line in lines if line["message"] == "the shard is done"}
    assert done == per_shard.to_dict()
    (end,) = [line for line in lines if line["message"].startswith("the stage ends")]
    assert (end["stage"], end["done"], end["failed"], end["patches"]) == ("ingest", len(per_shard), 0, len(patches))
    (ingested,) = [line for line in lines if line["message"].startswith("ingested")]
    assert (ingested["patches"], ingested["quarantined"]) == (len(patches), 0)
    assert Counter(line["level"] for line in lines) == {"info": 5, "debug": len(per_shard)}
    assert {line["pid"] for line in lines} != {os.getpid()}


def test_status_is_right_while_the_run_lives(watched: tuple[list[str], list[StoreStatus], Path]) -> None:
    _, seen, store = watched
    shards = pd.read_parquet(store / "tables" / "patches")["shard"].nunique()
    at_work = [status for status in seen if status.state == "running" and status.stages]
    assert at_work
    done = [status.stages[0].done for status in at_work]
    assert done == sorted(done)
    assert all(status.stages[0].done + status.stages[0].missing == shards for status in at_work)
    lives = [(status.live, status.stages[0].done) for status in at_work if status.live is not None]
    assert lives
    for live, parts in lives:
        assert (live.stage, live.total) == ("ingest", shards)
        assert live.done <= parts
    assert (seen[-1].state, seen[-1].live, seen[-1].stages[0].missing) == ("complete", None, 0)
