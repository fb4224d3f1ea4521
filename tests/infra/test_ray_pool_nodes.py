import logging
import re
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from infra import ray_pool
from infra.ray_cluster import cluster
from infra.ray_pool import Done, Resources, WorkerStartError, run_pool
from tests.infra.pool_workers import Scripted, Slow

MEMORY = 100 * 2**20
"""Of a node's object store."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore::ResourceWarning"),
]  # Ray's test cluster leaves pipes


@pytest.fixture
def two_nodes() -> Iterator[Any]:
    """A head and a second node of one core each; a node is called lost after 4 seconds of silence."""
    from ray.cluster_utils import Cluster

    options: dict[str, Any] = {"num_cpus": 1, "object_store_memory": MEMORY}
    health = {
        "health_check_initial_delay_ms": 0,
        "health_check_period_ms": 1000,
        "health_check_failure_threshold": 4,
    }
    head = {**options, "include_dashboard": False, "_system_config": health}
    nodes: Any = Cluster(initialize_head=True, head_node_args=head)
    try:
        yield nodes, nodes.add_node(**options)
    finally:
        nodes.shutdown()


def wait_until(condition: Callable[[], bool], seconds: float = 120) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def nodes_at_work(folder: Path) -> set[str]:
    return {path.name.split("-")[2] for path in folder.glob("begun-*")}


def test_a_node_that_joins_is_put_to_work(two_nodes: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, second = two_nodes
    monkeypatch.setattr(ray_pool, "_LOOK_SECONDS", 0.5)
    with cluster(address=nodes.address), ThreadPoolExecutor(1) as thread:  # Ray starts nodes in the main thread alone
        found = thread.submit(lambda: list(run_pool(partial(Slow, tmp_path), range(6), Resources())))
        wait_until(lambda: len(nodes_at_work(tmp_path)) == 2)
        third = nodes.add_node(num_cpus=1, object_store_memory=MEMORY)
        wait_until(lambda: len(nodes_at_work(tmp_path)) == 3)  # the first two have not ended an item yet
        for node in (nodes.head_node, second, third):
            (tmp_path / f"go-{node.node_id}").touch()
        outcomes = found.result()
    assert sorted(outcome.item for outcome in outcomes) == list(range(6))
    assert len({outcome.result for outcome in outcomes if isinstance(outcome, Done)}) == 3


def test_a_cluster_without_room_is_waited_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from ray.cluster_utils import Cluster

    head = {"num_cpus": 0, "object_store_memory": MEMORY, "include_dashboard": False}
    nodes: Any = Cluster(initialize_head=True, head_node_args=head)
    monkeypatch.setattr(ray_pool, "_LOOK_SECONDS", 0.5)
    try:
        with cluster(address=nodes.address), ThreadPoolExecutor(1) as thread:
            found = thread.submit(lambda: list(run_pool(partial(Scripted, tmp_path), [3], Resources(actors=1))))
            time.sleep(3)
            assert not found.done()
            nodes.add_node(num_cpus=1, object_store_memory=MEMORY)
            assert [outcome.result for outcome in found.result() if isinstance(outcome, Done)] == [9]
            monkeypatch.setattr(ray_pool, "_PATIENCE_SECONDS", 2.0)
            with pytest.raises(WorkerStartError, match="no node of the cluster had room for an actor of 1 CPU and 2 G"):
                list(run_pool(partial(Scripted, tmp_path), [4], Resources(gpus_per_actor=2)))
    finally:
        nodes.shutdown()


def test_a_lost_node_costs_no_item_and_no_attempt(
    two_nodes: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capfd: pytest.CaptureFixture[str],
) -> None:
    nodes, second = two_nodes
    other_stage = tmp_path / "other"
    other_stage.mkdir()
    monkeypatch.setattr(ray_pool, "MAX_ATTEMPTS", 1)  # one counted loss would make an item fail

    def kill_the_second_node_while_both_work() -> None:
        while len(nodes_at_work(tmp_path)) < 2:
            time.sleep(0.05)
        nodes.remove_node(second, allow_graceful=False)
        (tmp_path / f"go-{nodes.head_node.node_id}").touch()  # a process may outlive its node by a second

    with cluster(address=nodes.address), caplog.at_level(logging.WARNING, "infra.ray_pool"):
        killer = threading.Thread(target=kill_the_second_node_while_both_work, daemon=True)
        killer.start()
        found = list(run_pool(partial(Slow, tmp_path), range(6), Resources()))
        killer.join()
        # The next stage has room for one actor: it must not wait for the one that had no room in this.
        after = list(run_pool(partial(Scripted, other_stage), [3], Resources()))
    assert sorted(outcome.item for outcome in found) == list(range(6))
    assert len({outcome.result for outcome in found if isinstance(outcome, Done)}) == 1, "the first node did them all"
    assert all(isinstance(outcome, Done) for outcome in found)
    assert len(list(tmp_path.glob("begun-*"))) == 7, "one item was begun on both nodes"
    assert after == [Done(3, 9)]
    (warning,) = [record.getMessage() for record in caplog.records]
    assert re.match(r"shard \d, 0 of 1 attempts used: the node was lost: ", warning)
    assert "(raylet)" not in "".join(capfd.readouterr()), "Ray tells in many lines what the pool tells in one"
