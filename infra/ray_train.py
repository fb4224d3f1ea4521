"""Ray Train behind three words: workers run one loop, save its state now and then, and begin again from the last one.

The state is bytes, kept in a folder that all nodes see. Where a worker dies, all are replaced and go on from the last
state; a run whose driver dies goes on when it is called again on the same folder.
"""

import os
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

os.environ.setdefault("RAY_TRAIN_V2_ENABLED", "1")  # read when ray.train is imported

import ray
import ray.train
from ray.train.torch import TorchConfig, TorchTrainer, get_device
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, RunConfig, ScalingConfig

from infra.errors import ConfigError, PipelineError, TrainingError
from infra.logs import events
from infra.ray_cluster import (
    is_elastic,
    living_nodes,
    own_node_lives,
    refuse_lost_node,
    settings_for_workers,
    take_over,
)
from infra.ray_pool import Devices, Resources, devices_of, dismiss_idle
from infra.temporary import temporary_folder

MAX_FAILURES = 3
"""Times the workers may die in one call before it gives up."""

_STATE_FILE = "state.pt"
_POLL_SECONDS = 1.0

_ABORT_SECONDS = 75.0
"""How long a run that is to end may take: while Ray Train waits for room, a minute at a time, it hears nothing."""

_STOP_SECONDS = 10.0
"""The same where the process is to end, and with it, for Ray, all that it began."""

_CONTROLLER = "TrainController"
"""Ray Train's name for the actor that leads a run."""


@dataclass(frozen=True, slots=True)
class TrainWorker:
    """What the loop knows of its place among the workers."""

    rank: int
    workers: int
    device: torch.device

    def saved(self) -> bytes | None:
        """Return the state to go on from; None at the first start."""
        checkpoint = ray.train.get_checkpoint()
        if checkpoint is None:
            return None
        with checkpoint.as_directory() as folder:
            return (Path(folder) / _STATE_FILE).read_bytes()

    def save(self, state: Callable[[], bytes]) -> None:
        """Keep the state, which only the first worker makes; all workers meet here."""
        if self.rank:
            ray.train.report({})
            return
        with temporary_folder() as folder:
            (folder / _STATE_FILE).write_bytes(state())
            ray.train.report({}, checkpoint=ray.train.Checkpoint.from_directory(folder))


def train_on_workers(
    loop: Callable[[TrainWorker], None], folder: Path, resources: Resources, shares: int, tell: Callable[[], None]
) -> bytes:
    """Run a loop on the cluster that this process is connected to, and return the last state it saved.

    Args:
        loop: Run by every worker; must end on all of them alike. Pickled.
        folder: Where the states lie, seen by all nodes; of one run only.
        resources: `actors` workers; None: one a GPU, or one a node without GPUs.
        shares: What the workers share evenly, such as the samples of a step: their number is a divisor of it.
        tell: Called about once a second while the workers run. What it raises ends the run, the states stay, and no
            worker lives on.

    Raises:
        PipelineError: What the loop raised; a TrainingError, which all workers raise alike, at once.
        TrainingError: Workers kept dying.
        ConfigError: The cluster has nothing to train on.
        TransientError: The node that this process is attached to died.
    """
    refuse_lost_node()
    dismiss_idle()
    workers, per_worker = share(resources, shares)
    trainer = TorchTrainer(
        _work,  # type: ignore[arg-type]  # Ray's annotation forgets the returned value, which its result carries
        train_loop_config={"loop": loop, "threads": int(per_worker["CPU"]), "settings": settings_for_workers()},
        scaling_config=ScalingConfig(num_workers=workers, use_gpu="GPU" in per_worker, resources_per_worker=per_worker),
        torch_config=TorchConfig(backend="nccl" if "GPU" in per_worker else "gloo"),
        run_config=RunConfig(  # type: ignore[arg-type]  # the class of version 2, which is the one in use
            name="ray",
            storage_path=str(folder.resolve()),
            failure_config=FailureConfig(max_failures=MAX_FAILURES),
            checkpoint_config=CheckpointConfig(num_to_keep=2),
            logging_config=LoggingConfig(log_level="ERROR"),
        ),
    )
    outcome = _in_thread(trainer, tell)
    if isinstance(outcome, BaseException):
        refuse_lost_node()  # which takes the run's controller along
        events.warning("the training workers raised an error", exc_info=outcome)
        raise plain_error(outcome) from outcome
    if outcome.return_value is not None:
        raise TrainingError(str(outcome.return_value))
    with outcome.checkpoint.as_directory() as place:
        return (Path(place) / _STATE_FILE).read_bytes()


def share(resources: Resources, shares: int) -> tuple[int, dict[str, float]]:
    """Return the number of workers, a divisor of the shares, and what each gets.

    Where GPUs are asked for by number, workers hold one each, and wait until nodes with GPUs join.

    Raises:
        ConfigError: The cluster has no CPU, or none of the GPUs asked for and is this machine alone.
    """
    nodes = [node["Resources"] for node in living_nodes()]
    cores = [int(node.get("CPU", 0)) for node in nodes if node.get("CPU", 0) >= 1]
    gpus = int(sum(node.get("GPU", 0) for node in nodes))
    if resources.gpus_per_actor and not gpus:
        if not is_elastic():
            raise ConfigError(f"resources.gpus_per_actor is {resources.gpus_per_actor:g}, and the cluster has no GPU")
        gpus = resources.actors or 1  # which Ray Train waits for
    if not (cores or gpus):
        raise ConfigError("the Ray cluster has no CPU to train on")
    most = min(resources.actors or gpus or len(cores), gpus or sum(cores), shares)
    workers = max(n for n in range(1, most + 1) if shares % n == 0)
    if gpus:
        return workers, {"CPU": 1.0, "GPU": 1.0}
    per_node = -(-workers // len(cores))
    return workers, {"CPU": float(max(1, min(cores) // per_node))}


def devices(resources: Resources, shares: int) -> Devices:
    """Return what the workers of a call hold; arguments and errors are those of `share`."""
    workers, each = share(resources, shares)
    return devices_of(workers, each.get("GPU", 0.0), each["CPU"])


def plain_error(error: BaseException) -> BaseException:
    """Return the project's own error that a worker raised, or one that tells of Ray's in a sentence."""
    failures: Mapping[int, BaseException] = getattr(error, "worker_failures", {})
    for failure in (*failures.values(), error):
        cause: BaseException | None = failure
        while cause is not None:
            if isinstance(cause, PipelineError):
                return cause
            cause = getattr(cause, "_base_exc", None) or cause.__cause__
    if not isinstance(error, Exception):
        return error
    lines = [line for line in str(next(iter(failures.values()), error)).splitlines() if line.strip()]
    why = lines[-1] if lines else type(error).__name__
    times = f"workers died more than {MAX_FAILURES} times" if failures else "Ray Train failed"
    return TrainingError(f"training stopped, {times}: {why}; the same command goes on from the last validation")


def _work(config: dict[str, Any]) -> str | None:
    """Run the loop on one worker; return why the run failed where another attempt would fail too."""
    take_over(config["settings"])
    torch.set_num_threads(config["threads"])
    context = ray.train.get_context()
    try:
        config["loop"](TrainWorker(context.get_world_rank(), context.get_world_size(), get_device()))
    except TrainingError as error:  # such as a loss that is not finite: so on all workers, gradients are averaged
        return str(error)
    return None


def _in_thread(trainer: TorchTrainer, tell: Callable[[], None]) -> Any:  # noqa: ANN401  # Ray's
    """Run the trainer in a thread, so that an interrupt reaches this one and not Ray; return its result or error.

    What is raised here meanwhile ends the run before it goes on its way: workers that lived on would keep their GPUs
    from the next run, or write beside it.
    """
    outcome: list[Any] = []

    def fit() -> None:
        try:
            outcome.append(trainer.fit())
        except BaseException as error:  # noqa: BLE001  # raised again in the caller's thread
            outcome.append(error)

    thread = threading.Thread(target=fit, name="ray-train", daemon=True)
    thread.start()
    try:
        while thread.is_alive():
            thread.join(_POLL_SECONDS)
            refuse_lost_node()
            tell()
    except BaseException as error:
        _abort(thread, _ABORT_SECONDS if isinstance(error, Exception) else _STOP_SECONDS)
        raise
    return outcome[0]


def _abort(thread: threading.Thread, seconds: float) -> None:
    """End the run that a thread waits for: its controller lets its workers go, and then itself; the thread follows.

    On a node that has died there is no controller any more, and the thread may wait for ever.

    Args:
        thread: Calls the trainer's `fit`; may not have come to start its controller.
        seconds: Until the controller is killed, at most. Its workers die with it; what it reserved for them may stay
            so until this process leaves the cluster.
    """
    asked: dict[str, Any] = {}
    deadline = time.monotonic() + seconds
    while thread.is_alive() and own_node_lives():
        late = time.monotonic() > deadline
        for name, controller in _controllers().items():
            if late:
                events.warning("the training run did not end within %.0f s: its controller is killed", seconds)
                ray.kill(controller)
            elif name not in asked:
                asked[name] = controller.abort.remote()
        thread.join(_POLL_SECONDS)
        if late:
            return


def _controllers() -> dict[str, Any]:
    """Return the handles of the living controllers that this process has started, by their ids.

    Ray Train keeps them to itself; the cluster's list of actors has them, asked of no dashboard.
    """
    worker: Any = ray._private.worker.global_worker  # noqa: SLF001
    job = worker.current_job_id
    actors: dict[str, dict[str, Any]] = ray._private.state.actors(job_id=job)  # noqa: SLF001
    return {
        name: worker.core_worker.get_actor_handle(ray.ActorID.from_hex(name))
        for name, actor in actors.items()
        if actor["ActorClassName"] == _CONTROLLER and actor["State"] != "DEAD"
    }
