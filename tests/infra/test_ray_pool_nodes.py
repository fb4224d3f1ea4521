import logging
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra import ray_pool
from infra.ray_pool import Done, Resources, cluster, run_pool
from tests.infra.pool_workers import Scripted, Slow

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]  # Ray's test cluster leaves pipes


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A head and a second node of one core each; a node is called lost after 4 seconds of silence."""
    from ray.cluster_utils import Cluster

    options = {"num_cpus": 1, "object_store_memory": 100 * 2**20}
    health = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 4,
    }
    head = {**options, "include_dashboard": False, "_system_config": health}
    nodes = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield nodes, nodes.add_node(**options)
    finally:
        nodes.shutdown()


def test_a_lost_node_costs_no_item_and_no_attempt(
    two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    nodes, second = two_nodes
    (tmp_path / "go").touch()
    monkeypatch.setattr(ray_pool, "MAX_ATTEMPTS", 1)  # one counted loss would make an item fail
    with cluster(address=nodes.address), caplog.at_level(logging.WARNING, "infra.ray_pool"):
        pool = run_pool(partial(Slow, tmp_path), range(10), Resources())
        found = [next(pool), next(pool)]
        while len({outcome.result for outcome in found if isinstance(outcome, Done)}) < 2:
            found.append(next(pool))
        (tmp_path / "go").unlink()
        wait_for_both(tmp_path, len(found))
        nodes.remove_node(second, allow_graceful=False)
        (tmp_path / "go").touch()
        found.extend(pool)
        assert sorted(outcome.item for outcome in found) == list(range(10))
        assert all(isinstance(outcome, Done) for outcome in found)
        # The next stage has room for one actor: it must not wait for the one that had no room in this.
        after = list(run_pool(partial(Scripted, tmp_path), [3], Resources()))
    assert after == [Done(3, 9)]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert re.match(r"shard \d, 0 of 1 attempts used: the node was lost: ", warning)
    begun = [path.name.split("-")[1] for path in tmp_path.glob("begun-*") if len(path.name) > 50]
    assert len(begun) == 11, "one item was begun on both nodes"


def wait_for_both(folder: Path, done: int) -> None:
    """Wait until both nodes work on an item that is not done yet."""
    import time

    deadline = time.monotonic() + 30
    while len(list(folder.glob("begun-*"))) < done + 2:
        assert time.monotonic() < deadline
        time.sleep(0.05)
