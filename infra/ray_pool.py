"""A thin pool of Ray actors: a list of integers in, one outcome each, bounded work in flight.

What Ray does not decide for us is decided here, once: an actor that dies is replaced by a new one, its shard is tried
again up to `MAX_ATTEMPTS` times (the loss of a whole node is nobody's fault and is not counted), a shard that keeps
killing its process is reported and the rest goes on, and a worker that cannot be built stops the run at once. On a
cluster of somebody else's, nodes come and go: the pool grows with those that join, and waits where there are none.
"""

import gc
import logging
import os
import re
import sys
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Protocol

from infra.ray_cluster import (  # before Ray: it has a word to say until then
    is_elastic,
    living_nodes,
    refuse_lost_node,
    settings_for_workers,
    take_over,
    when_left,
)

# isort: split
import ray
from ray.exceptions import ActorDiedError, OutOfMemoryError, RayActorError, RayError, RayTaskError, WorkerCrashedError

from infra import logs, metrics
from infra.allocator import hand_back, keep_freed_memory
from infra.errors import ArchiveError, ConfigError, PipelineError, StoreError, TransientError
from infra.logs import events
from infra.metrics import GpuMemory

MAX_ATTEMPTS = 3
"""Times a shard may be begun before it is called poison."""

_MAX_FAILED_STARTS = 3
"""Actors that may die while starting, one after the other, before the run stops."""

_LOOK_SECONDS = 5.0
"""How often a pool looks for nodes that have joined."""

_PATIENCE_SECONDS = 1800.0
"""How long a pool without one working actor waits for a node: providers take minutes to rent one."""

_ACCELERATOR = "accelerator_type:"
"""How Ray begins the name of the resource that tells a node's GPU."""

_NODE_DIED = "node has died"
_EXIT_DETAIL = re.compile(r"Worker exit detail: (.+?)\.?(?= Some common causes|\n|$)")
"""What Ray says of a death; its first lines are the same for all."""

logger = logging.getLogger(__name__)


class Worker[R](Protocol):
    """A plain class that does one shard; Ray never shows in it."""

    def run(self, item: int) -> R:
        """Do one item of work and return counts and keys, never pixels."""
        ...


@dataclass(frozen=True, slots=True)
class Resources:
    """What one run may use."""

    actors: int | None = None
    """Number of actors; None: one a GPU, else one a CPU core, never more than there is work. A cluster that is
    reached by its address is asked for all of them, room or none: that is what makes an autoscaler rent nodes."""
    gpus_per_actor: float | None = None
    """GPUs an actor holds; None: one where the cluster has any when a stage begins, else none."""

    def without_gpu(self) -> "Resources":
        """Return the same for a stage that has no use for a GPU."""
        return replace(self, gpus_per_actor=0.0)


@dataclass(frozen=True, slots=True)
class Devices:
    """What the actors of a stage hold, all of them together, whether they work or wait."""

    kind: str
    """cpu: cores; gpu, or the name that Ray has for it: GPUs."""
    count: float
    """Cores or GPUs."""
    workers: int
    """Actors, of which each has its equal share."""


@dataclass(frozen=True, slots=True)
class Done[R]:
    """An item that was done."""

    item: int
    result: R
    seconds: float = field(default=0.0, compare=False)
    """From when the actor was given the item to its end, by the driver's clock."""
    devices: Devices | None = field(default=None, compare=False)
    """What the pool holds."""
    attempts: int = field(default=1, compare=False)
    """Times it was begun, this one among them; those that a lost node ended are not counted."""


@dataclass(frozen=True, slots=True)
class Failed:
    """An item that was given up."""

    item: int
    attempts: int
    error: str
    """The exception's last line, or how the process died."""


class WorkerStartError(PipelineError, RuntimeError):
    """The workers cannot be built; nothing was run."""


@dataclass(frozen=True, slots=True)
class _Fault:
    """What a worker raised, as text: not every exception survives pickling."""

    kind: type[PipelineError] | None
    """None: another error than our own."""
    name: str
    message: str

    def __str__(self) -> str:
        return f"{self.name}: {self.message}"


@dataclass(frozen=True, slots=True)
class _Answer:
    """What a host sends back."""

    value: object
    fault: _Fault | None
    memory: GpuMemory | None
    lines: tuple[logging.LogRecord, ...]
    """What the worker had to say."""


class _Host:
    """The one actor class: builds a worker, with its share of the cores, and runs it; then the next stage's."""

    def __init__(self, asked: logs.LogSettings | None, threads: int) -> None:
        # Ray has 1 there for an actor of one core. A torch that is loaded with that, and told more threads afterwards,
        # takes a tenth longer (benchmarks/overhead.py); nothing here has loaded it yet.
        os.environ["OMP_NUM_THREADS"] = str(threads)
        keep_freed_memory()
        self._worker: Worker[object] | None = None
        self._context = logs.Context()
        if asked is not None:
            logs.collect(asked)

    def build(
        self, build: Callable[[], Worker[object]], threads: int, context: logs.Context, settings: Mapping[str, str]
    ) -> _Answer:
        """Build a worker and answer with the id of the node it is on; as of `run`, an error is part of the answer."""
        take_over(settings)
        self._worker = None  # the last stage's models make room first
        gc.collect()
        hand_back()
        self._context = context
        fault = None
        with logs.bound(run=context.run, stage=context.stage):
            try:
                self._worker = build()
            except Exception as error:  # noqa: BLE001  # whatever a worker raises stops the run
                events.warning("the worker cannot be built", exc_info=True)
                fault = _fault(error)
        if torch := sys.modules.get("torch"):  # not every worker needs it
            torch.set_num_threads(threads)
        return _Answer(str(ray.get_runtime_context().get_node_id()), fault, metrics.gpu_memory(), logs.take())

    def run(self, item: int) -> _Answer:
        """Do one item; an error of the worker is part of the answer, so that what it said comes along."""
        assert self._worker is not None
        value, fault = None, None
        with logs.bound(run=self._context.run, stage=self._context.stage, shard=item):
            try:
                value = self._worker.run(item)
            except Exception as error:  # noqa: BLE001  # whatever a worker raises is its item's outcome
                events.warning("the worker raised an error", exc_info=True)
                fault = _fault(error)
        return _Answer(value, fault, metrics.gpu_memory(), logs.take())


def _fault(error: Exception) -> _Fault:
    return _Fault(type(error) if isinstance(error, PipelineError) else None, type(error).__name__, str(error))


_HostActor: Any = ray.remote(max_restarts=0, max_task_retries=0, scheduling_strategy="SPREAD")(_Host)
"""The pool replaces dead actors itself: a restart inside Ray would hide from it which shard an actor died on."""

_idle: list[tuple[float, Any]] = []
"""(GPUs, actor) of hosts that wait for the next stage: importing torch anew costs seconds a stage."""


def dismiss_idle() -> None:
    """End the actors that wait for the next stage: they hold cores and GPUs, which others on the cluster need."""
    for _, actor in _idle:
        ray.kill(actor)
    _idle.clear()


def _let_go(well: bool) -> None:  # noqa: FBT001  # as `when_left` calls it
    """End the idle actors at once where Ray answers: left to end by themselves, they outlive the driver by seconds."""
    if well:
        dismiss_idle()
    _idle.clear()


when_left(_let_go)


@dataclass(slots=True)
class _Slot:
    """One actor, and the item it works on (None: it is starting)."""

    actor: Any  # Ray types actor handles as Any
    reused: bool
    """Whether it served a stage before."""
    item: int | None = None
    node: str | None = None
    since: float = 0.0
    """When it was given the item, monotonic seconds."""

    def show_memory(self, memory: GpuMemory | None) -> None:
        """Show how much of its GPU's memory the actor's process holds."""
        if memory is not None:
            for kind, held in asdict(memory).items():
                metrics.show(metrics.GPU_MEMORY, held, worker=self.worker, kind=kind)

    @property
    def worker(self) -> str:
        """The actor's name in metrics: how Ray's own id of it begins."""
        return str(self.actor._actor_id.hex()[:8])  # noqa: SLF001  # Ray tells it in no other way


@dataclass(slots=True)
class _State[R]:
    """What the pool knows while it runs."""

    build: Callable[[], Worker[R]]
    gpus: float
    threads: int
    devices: Devices
    todo: deque[int]
    most: int | None
    """Actors at most; None: as many as there is room for."""
    running: "dict[ray.ObjectRef[Any], _Slot]" = field(default_factory=dict)
    attempts: Counter[int] = field(default_factory=Counter)
    failed_starts: int = 0

    def start(self) -> None:
        """Build a worker in an idle host, or in a new one."""
        reused = bool(_idle)
        host = _HostActor.options(num_cpus=1, num_gpus=self.gpus)
        actor = _idle.pop()[1] if reused else host.remote(logs.settings(), self.threads)
        answer = actor.build.remote(self.build, self.threads, logs.context(), settings_for_workers())
        self.running[answer] = _Slot(actor, reused)

    def grow(self) -> None:
        """Start an actor wherever a node that has joined has room for one, as long as there is work for it."""
        room = _room([node["Resources"] for node in living_nodes()], self.gpus)
        wanted = (room if self.most is None else min(room, self.most)) - len(self.running)
        for _ in range(min(wanted, len(self.todo))):
            self.start()
        if wanted > 0:
            self.devices = devices_of(len(self.running), self.gpus, self.threads)

    def show(self) -> None:
        """Show how many actors there are and what they are at work on."""
        metrics.show(metrics.ACTORS, len(self.running))
        metrics.show(metrics.IN_FLIGHT, sum(slot.item is not None for slot in self.running.values()))

    def is_working(self) -> bool:
        """Whether any actor has an item."""
        return any(slot.item is not None for slot in self.running.values())

    def unfinished(self) -> bool:
        """Whether there is work left; an actor that is still starting, or waits for a free GPU, holds nobody up."""
        return bool(self.todo) or self.is_working()

    def feed(self, slot: _Slot) -> None:
        """Give an idle actor the next item, or let it wait for the next stage."""
        slot.item = self.todo.popleft() if self.todo else None
        if slot.item is None:
            _idle.append((self.gpus, slot.actor))
        else:
            self.attempts[slot.item] += 1
            slot.since = time.monotonic()
            self.running[slot.actor.run.remote(slot.item)] = slot


def run_pool[R](
    build: Callable[[], Worker[R]], items: Sequence[int], resources: Resources
) -> Iterator[Done[R] | Failed]:
    """Run every item on a pool of actors and yield each one's outcome as it comes.

    Args:
        build: Makes a worker; pickled and called once in every actor.
        items: The work, dispatched in this order.
        resources: What the pool may use.

    Yields:
        One Done or Failed an item, in the order of completion.

    Raises:
        WorkerStartError: A worker's constructor raised, actors keep dying before they are ready, or no node of a
            cluster had room for one in half an hour.
        StoreError: A worker met a full or read-only store: nothing more can be done, what is finished stays.
        ArchiveError: The archive as a whole went away under the workers: likewise.
        ConfigError: The cluster has nothing to run an actor on.
        TransientError: The node that this process is attached to died.
    """
    if not items:
        return
    refuse_lost_node()
    n_actors, gpus, threads = _plan(len(items), resources)
    held = devices_of(n_actors, gpus, threads)
    for its_gpus, actor in _idle:
        if its_gpus != gpus:
            ray.kill(actor)
    _idle[:] = [(its_gpus, actor) for its_gpus, actor in _idle if its_gpus == gpus]
    state: _State[R] = _State(build, gpus, threads, held, deque(items), resources.actors)
    looked = worked = time.monotonic()
    try:
        for _ in range(n_actors):
            state.start()
        while state.unfinished():
            ready = _first_ready(list(state.running))
            now = time.monotonic()
            if is_elastic() and now - looked >= _LOOK_SECONDS:
                looked = now
                state.grow()
            if ready or state.is_working():
                worked = now
            elif is_elastic() and now - worked > _PATIENCE_SECONDS:
                raise WorkerStartError(
                    f"no node of the cluster had room for an actor of 1 CPU and {gpus:g} GPUs for "
                    f"{_PATIENCE_SECONDS / 60:.0f} minutes; what is done stays: start again once there are nodes"
                )
            if not ready:
                refuse_lost_node()
                continue
            (ref,) = ready
            slot = state.running.pop(ref)
            outcome = None
            if slot.item is None:
                _started(state, slot, ref)
            else:
                outcome = _worked(state, slot, slot.item, ref)
            state.show()
            if outcome is not None:
                yield outcome
        # Those still starting wait too, to be taken last: a lost node's may never find room beside the others.
        _idle[:0] = [(gpus, slot.actor) for slot in state.running.values()]
        state.running.clear()
    finally:
        for slot in state.running.values():
            ray.kill(slot.actor)
        metrics.take_away(metrics.ACTORS, metrics.IN_FLIGHT, metrics.GPU_MEMORY)


def _first_ready(refs: "list[ray.ObjectRef[Any]]") -> "list[ray.ObjectRef[Any]]":
    """Return the first answer, or none after a while."""
    try:
        return ray.wait(refs, num_returns=1, timeout=_LOOK_SECONDS)[0]
    except SystemError as error:  # what Ray makes of an interruption that a handler of signals raised
        if isinstance(error.__cause__, Exception | None):
            raise
        raise error.__cause__ from None


def _room(nodes: Sequence[Mapping[str, float]], gpus: float) -> int:
    """Return the number of actors of one core and some GPUs that fit on nodes, each whole on one of them."""
    return sum(
        min(int(node.get("CPU", 0)), int(node.get("GPU", 0) / gpus)) if gpus else int(node.get("CPU", 0))
        for node in nodes
    )


def _plan(n_items: int, resources: Resources) -> tuple[int, float, int]:
    """Return the number of actors to begin with, and the GPUs and threads of each."""
    nodes = [node["Resources"] for node in living_nodes()]
    cores = [int(node.get("CPU", 0)) for node in nodes]
    most_gpus = max((node.get("GPU", 0.0) for node in nodes), default=0.0)
    gpus = resources.gpus_per_actor
    if gpus is None:
        gpus = 1.0 if most_gpus else 0.0
    room = _room(nodes, gpus)
    if not (room or is_elastic()):
        if sum(cores) < 1:
            raise ConfigError("the Ray cluster has no CPU to run an actor on")
        raise ConfigError(
            f"resources.gpus_per_actor is {gpus:g}, no node of the cluster has more than {most_gpus:g} GPUs"
        )
    if not room:
        logger.warning("no node has room for an actor of 1 CPU and %g GPUs: waiting for one", gpus)
    wanted = resources.actors or room
    n_actors = max(1, min(wanted if is_elastic() else min(wanted, room), n_items))
    at_once = max(1, min(n_actors, room))
    return n_actors, gpus, max(1, min(sum(cores) // at_once, max(cores, default=1)))


def devices_of(workers: int, gpus: float, cores: float) -> Devices:
    """Return what workers hold; GPUs where they have any, since these are what is waited for.

    Args:
        workers: How many.
        gpus: GPUs of each.
        cores: Cores of each.
    """
    return Devices(_gpu_kind(), workers * gpus, workers) if gpus else Devices("cpu", workers * cores, workers)


def _gpu_kind() -> str:
    """Return Ray's name for the cluster's GPUs, where it has one, and they are of one kind; else gpu."""
    names = {
        name.removeprefix(_ACCELERATOR)
        for node in living_nodes()
        for name in node["Resources"]
        if name.startswith(_ACCELERATOR)
    }
    return names.pop() if len(names) == 1 else "gpu"


def _started[R](state: _State[R], slot: _Slot, ref: "ray.ObjectRef[_Answer]") -> None:
    """Note that an actor is ready, or why it is not."""
    try:
        answer = ray.get(ref)
    except RayError as error:
        if isinstance(error, RayTaskError):
            raise WorkerStartError(f"a worker cannot start: {_reason(error)}") from error
        _lost_actor("while it started", error, its_node=_NODE_DIED in str(error))
        if not (slot.reused or _NODE_DIED in str(error)):
            state.failed_starts += 1
        if state.failed_starts >= _MAX_FAILED_STARTS:
            raise WorkerStartError(f"{state.failed_starts} workers died while starting: {_reason(error)}") from error
        state.start()
    else:
        logs.replay(answer.lines)
        if answer.fault is not None:
            raise WorkerStartError(f"a worker cannot start: {answer.fault}")
        state.failed_starts = 0
        slot.node = str(answer.value)
        slot.show_memory(answer.memory)
        state.feed(slot)


def _worked[R](state: _State[R], slot: _Slot, item: int, ref: "ray.ObjectRef[_Answer]") -> Done[R] | Failed | None:
    """Return an item's outcome, or None when it will be tried again."""
    try:
        answer = ray.get(ref)
    except (RayActorError, WorkerCrashedError, OutOfMemoryError) as error:
        lost = _node_was_lost(slot.node, error)
        _lost_actor(f"at work on shard {item}", error, its_node=lost)
        if lost:
            state.attempts[item] -= 1
        ray.kill(slot.actor)
        metrics.take_away(metrics.GPU_MEMORY, worker=slot.worker)
        failed = _again(state, item, f"the {'node was lost' if lost else 'process died'}: {_reason(error)}")
        if state.todo:
            state.start()
        return failed
    except RayTaskError as error:  # such as a result that cannot be pickled
        state.feed(slot)
        return Failed(item, state.attempts[item], _reason(error))
    seconds = time.monotonic() - slot.since
    logs.replay(answer.lines)
    slot.show_memory(answer.memory)
    if (fault := answer.fault) is None:
        state.feed(slot)
        result: Any = answer.value  # R, by what the worker is
        return Done(item, result, seconds, state.devices, state.attempts[item])
    if fault.kind is not None and issubclass(fault.kind, StoreError | ArchiveError):
        raise fault.kind(fault.message)
    outcome: Failed | None = Failed(item, state.attempts[item], str(fault))
    if fault.kind is not None and issubclass(fault.kind, TransientError):
        outcome = _again(state, item, str(fault))
    state.feed(slot)
    return outcome


def _again[R](state: _State[R], item: int, error: str) -> Failed | None:
    """Put an item back, or give it up once its attempts are spent."""
    if state.attempts[item] >= MAX_ATTEMPTS:
        return Failed(item, state.attempts[item], error)
    with logs.bound(shard=item):
        logger.warning("shard %d, %d of %d attempts used: %s", item, state.attempts[item], MAX_ATTEMPTS, error)
    metrics.count(metrics.RETRIES)
    state.todo.append(item)
    return None


def _lost_actor(when: str, error: BaseException, *, its_node: bool) -> None:
    """Tell that an actor died, by itself or with its node."""
    metrics.count(metrics.LOSSES, what="node" if its_node else "actor")
    reason = _reason(error)
    events.warning("%s was lost %s: %s", "an actor with its node" if its_node else "an actor", when, reason)


def _node_was_lost(node: str | None, error: BaseException) -> bool:
    if _NODE_DIED in str(error):
        return True
    return not any(living["NodeID"] == node for living in living_nodes())


def _reason(error: BaseException) -> str:
    """Return the line of a Ray error that names the cause."""
    if isinstance(error, RayTaskError) and error.cause is not None:
        return f"{type(error.cause).__name__}: {error.cause}"
    if exit_detail := _EXIT_DETAIL.search(str(error)):
        return exit_detail[1]
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    if not lines:
        return type(error).__name__
    return lines[-1 if isinstance(error, ActorDiedError) else 0]
