import os
import re
import signal
import socket
import sys
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import ray

from infra import ray_cluster, ray_pool
from infra.errors import ConfigError, StoreError
from infra.logs import bound
from infra.ray_cluster import cluster
from infra.ray_pool import Devices, Done, Failed, Resources, Worker, WorkerStartError, run_pool
from tests.infra.log_lines import objects, written
from tests.infra.pool_workers import (
    Environment,
    Freeing,
    Remembering,
    Scripted,
    Sleeping,
    Threads,
    Unbuildable,
    attempts,
)

CORES = 2


@pytest.fixture(scope="module", autouse=True)
def _cluster() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        patch.setattr(ray_cluster, "available_cores", lambda: CORES)
        with cluster():
            yield


def outcomes[R](
    build: Callable[[], Worker[R]], items: Sequence[int], actors: int | None = None
) -> dict[int, Done[R] | Failed]:
    """Run a pool and return its outcomes by item, which are as many as there were items."""
    found = list(run_pool(build, items, Resources(actors=actors)))
    assert sorted(outcome.item for outcome in found) == sorted(items)
    return {outcome.item: outcome for outcome in found}


def squares(items: Sequence[int]) -> dict[int, Done[int] | Failed]:
    return {item: Done(item, item * item) for item in items}


def release_hosts() -> None:
    for _, actor in ray_pool._idle:
        ray.kill(actor)
    ray_pool._idle.clear()


@pytest.mark.parametrize("actors", [1, 2, None, 99])
def test_every_item_has_its_result_whatever_the_number_of_actors(tmp_path: Path, actors: int | None) -> None:
    items = list(range(7))
    assert outcomes(partial(Scripted, tmp_path), items, actors) == squares(items)
    assert [attempts(tmp_path, item) for item in items] == [1] * 7


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have other allocators")
def test_what_a_worker_frees_it_has_again_until_the_next_is_built() -> None:
    for _ in range(2):
        found = [
            outcome.result for outcome in run_pool(Freeing, range(6), Resources(actors=1)) if type(outcome) is Done
        ]
        assert len(found) == 6
        assert max(found[1:]) < found[0] / 20


def test_workers_take_over_settings_and_no_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    release_hosts()
    given = {
        "SUPERSCENE_SCRATCH": "/scratch",
        "AWS_REGION": "there",
        "AWS_ENDPOINT_URL": "http://127.0.0.1:1",
        "AWS_ENDPOINT": "http://127.0.0.1:2",
    }
    for name, value in {**given, "AWS_SECRET_ACCESS_KEY": "secret", "SOMETHING": "else"}.items():
        monkeypatch.setenv(name, value)  # after Ray's own processes were started
    found = outcomes(Environment, [0])[0]
    assert isinstance(found, Done)
    assert {name: found.result.get(name) for name in given} == given
    assert not {"AWS_SECRET_ACCESS_KEY", "SOMETHING"} & found.result.keys()
    monkeypatch.setenv("AWS_REGION", "elsewhere")
    again = outcomes(Environment, [0])[0]
    assert isinstance(again, Done)
    assert again.result["AWS_REGION"] == "there", "what a node has set counts for more"
    release_hosts()


def test_the_order_of_the_items_does_not_matter(tmp_path: Path) -> None:
    items = [5, 0, 3, 9, 1]
    assert outcomes(partial(Scripted, tmp_path), items) == outcomes(partial(Scripted, tmp_path), sorted(items))
    in_turn = [outcome.item for outcome in run_pool(partial(Scripted, tmp_path), items, Resources(actors=1))]
    assert in_turn == items, "one actor takes them as they come"


def test_no_items_need_no_actor() -> None:
    assert list(run_pool(Remembering, [], Resources())) == []  # type: ignore[arg-type]  # it would fail to be built


@pytest.mark.parametrize("how", ["kill", "exit"])
def test_an_item_whose_process_dies_is_tried_again(tmp_path: Path, how: str) -> None:
    items = list(range(5))
    assert outcomes(partial(Scripted, tmp_path, {2: [how]}), items) == squares(items)
    assert [attempts(tmp_path, item) for item in items] == [1, 1, 2, 1, 1]


def test_a_poison_item_is_given_up_and_all_others_are_done(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    items = list(range(6))
    found = outcomes(partial(Scripted, tmp_path, {0: ["kill"] * 99, 3: ["exit"] * 99}), items)
    poison = {item: found.pop(item) for item in (0, 3)}
    assert found == squares([1, 2, 4, 5])
    for outcome in poison.values():
        assert isinstance(outcome, Failed)
        assert outcome.attempts == 3
        assert re.fullmatch("the process died: Worker (unexpectedly exits|exits unexpectedly).*", outcome.error)
    assert [attempts(tmp_path, item) for item in items] == [3, 1, 1, 3, 1, 1]
    warned = Counter(record.getMessage().partition(":")[0] for record in caplog.records)
    assert warned == {f"shard {item}, {used} of 3 attempts used": 1 for item in (0, 3) for used in (1, 2)}


def test_a_last_item_that_dies_is_tried_again_in_another_host(tmp_path: Path) -> None:
    """The other hosts have gone idle by then."""
    items = list(range(4))
    assert outcomes(partial(Scripted, tmp_path, {3: ["kill", "kill"]}), items) == squares(items)
    assert attempts(tmp_path, 3) == 3


@pytest.mark.parametrize(
    ("how", "error"),
    [
        ("error", "ValueError: line one\nline two"),
        ("odd", "OddError: cannot be unpickled"),
        ("bad patch", "BadPatchError: S2A/x_B02.tif: unreadable: the file is cut short"),
    ],
)
def test_an_error_of_the_worker_fails_its_item_at_once(tmp_path: Path, how: str, error: str) -> None:
    items = list(range(4))
    found = outcomes(partial(Scripted, tmp_path, {1: [how] * 9}), items)
    assert found == {**squares(items), 1: Failed(1, 1, error)}
    assert attempts(tmp_path, 1) == 1


def test_a_transient_error_is_tried_again_but_not_for_ever(tmp_path: Path) -> None:
    items = list(range(4))
    ends = {0: ["transient"], 1: ["transient"] * 9, 2: ["transient", "kill"]}
    found = outcomes(partial(Scripted, tmp_path, ends), items)
    assert found == {**squares(items), 1: Failed(1, 3, "TransientError: the request timed out")}
    assert [attempts(tmp_path, item) for item in items] == [2, 3, 3, 1]


def test_a_full_store_stops_the_run(tmp_path: Path) -> None:
    done: list[Done[int] | Failed] = []
    with pytest.raises(StoreError, match=r"^cannot write /store: the disk is full$"):
        done.extend(run_pool(partial(Scripted, tmp_path, {1: ["full"]}), range(1000), Resources(actors=1)))
    assert [attempts(tmp_path, item) for item in range(3)] == [1, 1, 0]
    assert outcomes(partial(Scripted, tmp_path), [7]) == squares([7]), "the next stage finds a pool that works"


def test_a_consumer_may_stop_early(tmp_path: Path) -> None:
    pool = run_pool(partial(Scripted, tmp_path), range(1000), Resources())
    next(pool)
    pool.close()  # type: ignore[attr-defined]  # it is a generator
    assert sum(attempts(tmp_path, item) for item in range(1000)) < 10
    assert outcomes(partial(Scripted, tmp_path), [7]) == squares([7])


@pytest.mark.parametrize(
    ("how", "text"),
    [
        ("error", "ValueError: line one"),
        ("odd", "OddError: cannot be unpickled"),
        ("full", "StoreError: cannot write /store"),
    ],
)
def test_a_worker_that_cannot_be_built_stops_the_run(tmp_path: Path, how: str, text: str) -> None:
    with pytest.raises(WorkerStartError, match=f"a worker cannot start: {text}"):
        list(run_pool(partial(Unbuildable, tmp_path, how, 99), range(10), Resources(actors=1)))
    assert attempts(tmp_path, 0) == 1


def test_the_log_has_why_a_worker_cannot_be_built(tmp_path: Path) -> None:
    release_hosts()
    with written() as stream, bound(run="r1", stage="predict"), pytest.raises(WorkerStartError):
        list(run_pool(partial(Unbuildable, tmp_path, "error", 99), range(10), Resources(actors=1)))
    (line,) = [line for line in objects(stream) if line["pid"] != os.getpid()]
    assert (line["run"], line["stage"], line["message"]) == ("r1", "predict", "the worker cannot be built")
    assert "pool_workers.py" in line["exception"]
    assert line["exception"].endswith("ValueError: line one\nline two")
    release_hosts()


def test_workers_that_die_while_starting_stop_the_run_after_three(tmp_path: Path) -> None:
    release_hosts()
    with pytest.raises(WorkerStartError, match=r"3 workers died while starting: Worker .*exit"):
        list(run_pool(partial(Unbuildable, tmp_path, "exit", 99), range(10), Resources(actors=1)))
    assert attempts(tmp_path, 0) == 3


def test_a_worker_that_dies_twice_while_starting_is_forgiven(tmp_path: Path) -> None:
    release_hosts()
    found = outcomes(partial(Unbuildable, tmp_path, "kill", 2), [4, 5], actors=1)
    assert found == {4: Done(4, 4), 5: Done(5, 5)}
    assert attempts(tmp_path, 0) == 3


def test_the_next_stage_reuses_the_hosts_but_not_the_workers() -> None:
    release_hosts()
    first = list(run_pool(partial(Remembering, "first"), [1, 2], Resources(actors=1)))
    second = list(run_pool(partial(Remembering, "second"), [3, 4], Resources(actors=1)))
    seen = [outcome.result[1:] for outcome in first + second if isinstance(outcome, Done)]
    assert seen == [("first", [1]), ("first", [1, 2]), ("second", [3]), ("second", [3, 4])]
    pids = {outcome.result[0] for outcome in first + second if isinstance(outcome, Done)}
    assert len(pids) == 1
    assert os.getpid() not in pids


def test_hosts_that_died_while_idle_are_replaced(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = outcomes(partial(Remembering, "a"), range(20), actors=2)
    pids = {outcome.result[0] for outcome in found.values() if isinstance(outcome, Done)}
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
    monkeypatch.setattr(ray_pool, "_MAX_FAILED_STARTS", 1)  # none of these deaths is a failed start
    assert outcomes(partial(Scripted, tmp_path), [1, 2, 3]) == squares([1, 2, 3])


def test_torch_is_loaded_with_the_threads_that_it_will_have() -> None:
    """Not with Ray's one for an actor of one core: told more afterwards, torch is slower."""
    release_hosts()
    (outcome,) = run_pool(Environment, [0], Resources(actors=1))
    assert isinstance(outcome, Done)
    assert outcome.result["OMP_NUM_THREADS"] == str(CORES)


@pytest.mark.parametrize(("actors", "threads"), [(1, CORES), (2, 1)])
def test_actors_share_the_cores(actors: int, threads: int) -> None:
    found = outcomes(Threads, range(4), actors)
    assert found == {item: Done(item, threads) for item in range(4)}


def test_an_outcome_tells_how_long_it_took_and_what_the_pool_holds() -> None:
    found = [
        outcome
        for outcome in run_pool(partial(Sleeping, 0.2), [0, 1, 2], Resources(actors=1))
        if isinstance(outcome, Done)
    ]
    assert [outcome.devices for outcome in found] == [Devices("cpu", count=CORES, workers=1)] * 3
    assert all(0.2 <= outcome.seconds < 5 for outcome in found)


@pytest.mark.parametrize(
    ("names", "kind"), [([], "gpu"), (["A10G"], "A10G"), (["A10G", "A10G"], "A10G"), (["A10G", "H200"], "gpu")]
)
def test_gpus_are_called_what_ray_calls_them(monkeypatch: pytest.MonkeyPatch, names: list[str], kind: str) -> None:
    nodes = [node(8), *(node(8, 1) for _ in range(2))]
    for name, of in zip(names, nodes[1:], strict=False):
        of["Resources"][f"accelerator_type:{name}"] = 1.0
    nodes.append(node(8, 1, alive=False))
    nodes[-1]["Resources"]["accelerator_type:gone"] = 1.0
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert ray_pool.devices_of(3, 0.5, 4) == Devices(kind, count=1.5, workers=3)


def test_an_actor_that_waits_for_a_core_holds_nobody_up(tmp_path: Path) -> None:
    release_hosts()
    other_job: Any = ray.remote(num_cpus=1)(Remembering)
    other_job = other_job.remote("of somebody else")
    ray.get(other_job.run.remote(0))
    for _ in range(2):  # the host that still waits must not be taken for an idle one
        assert outcomes(partial(Scripted, tmp_path), [1, 2, 3], actors=2) == squares([1, 2, 3])
        assert outcomes(partial(Scripted, tmp_path), [4], actors=1) == squares([4])
    ray.kill(other_job)
    assert outcomes(partial(Scripted, tmp_path), range(5), actors=2) == squares(range(5))


def node(cores: float, gpus: float = 0.0, *, alive: bool = True) -> dict[str, Any]:
    return {"Alive": alive, "Resources": {"CPU": cores, **({"GPU": gpus} if gpus else {})}}


@pytest.mark.parametrize(
    ("nodes", "resources", "n_items", "expected"),
    [
        ([node(8)], Resources(), 100, (8, 0.0, 1)),
        ([node(8)], Resources(), 3, (3, 0.0, 2)),
        ([node(8)], Resources(actors=2), 100, (2, 0.0, 4)),
        ([node(8)], Resources(actors=99), 100, (8, 0.0, 1)),
        ([node(4), node(4)], Resources(actors=1), 100, (1, 0.0, 4)),  # threads of one node
        ([node(8), node(8, alive=False)], Resources(), 100, (8, 0.0, 1)),
        ([node(16, 4)], Resources(), 100, (4, 1.0, 4)),
        ([node(16, 4)], Resources(gpus_per_actor=0.5), 100, (8, 0.5, 2)),
        ([node(16, 4)], Resources().without_gpu(), 100, (16, 0.0, 1)),
        ([node(2), node(8, 2)], Resources(), 100, (2, 1.0, 5)),  # the head has no GPU
        ([node(8, 1), node(8, 1)], Resources(gpus_per_actor=0.6), 100, (2, 0.6, 8)),  # one a node, though 2 / 0.6 = 3
        ([node(2, 8)], Resources(), 100, (2, 1.0, 1)),  # each actor needs a core as well
    ],
)
def test_the_plan_has_room_for_every_actor(
    monkeypatch: pytest.MonkeyPatch,
    nodes: list[dict[str, Any]],
    resources: Resources,
    n_items: int,
    expected: tuple[int, float, int],
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert ray_pool._plan(n_items, resources) == expected


@pytest.mark.parametrize(
    ("nodes", "sentence"),
    [
        ([node(0)], "no CPU to run an actor on"),
        ([node(8, alive=False)], "no CPU to run an actor on"),
        ([node(8, 1), node(8, 1)], "gpus_per_actor is 2, no node of the cluster has more than 1 GPUs"),
    ],
)
def test_a_cluster_without_room_is_told(
    monkeypatch: pytest.MonkeyPatch, nodes: list[dict[str, Any]], sentence: str
) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    with pytest.raises(ConfigError, match=sentence):
        list(run_pool(Threads, [1], Resources(gpus_per_actor=2)))


def test_logs_have_what_workers_say_and_on_which_shard(tmp_path: Path) -> None:
    """A transient error, an error for good, and a death; on hosts of their own, which know that logs are asked for."""
    release_hosts()
    with written(level="debug") as stream, bound(run="r1", stage="predict"):
        outcomes(partial(Scripted, tmp_path, {1: ["transient"], 2: ["error"], 3: ["kill"]}), range(5))
        release_hosts()
    lines = objects(stream)
    assert all((line["run"], line["stage"]) == ("r1", "predict") for line in lines)
    of_workers = [line for line in lines if line["pid"] != os.getpid()]
    raised = {line["shard"]: line["exception"].splitlines()[-1] for line in of_workers if "exception" in line}
    assert raised == {1: "infra.errors.TransientError: the request timed out", 2: "line two"}
    assert all(line["level"] == "warning" and line["node"] == socket.gethostname() for line in of_workers)
    told = [(line["shard"], line["message"]) for line in lines if line["logger"] == "infra.ray_pool"]
    assert sorted(text.partition(":")[0] for _, text in told) == [
        "shard 1, 1 of 3 attempts used",
        "shard 3, 1 of 3 attempts used",
    ]
    assert {shard for shard, _ in told} == {1, 3}
    (lost,) = [line["message"] for line in lines if "was lost" in line["message"]]
    assert re.match("an actor was lost at work on shard 3: Worker (unexpectedly exits|exits unexpectedly)", lost)
