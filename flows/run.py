"""One run of a flow: what every stage needs, and how a stage is run."""

import logging
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import psutil
from prefect import Task, task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State, TaskRun
from prefect.context import TaskRunContext

from flows.config import RunConfig
from flows.progress import shards_artifact, stage_progress
from infra.errors import PipelineError, TransientError
from infra.node_files import share, share_folder
from infra.parts import StageParts
from infra.ray_cluster import is_elastic, reconnect
from infra.ray_pool import Devices, Resources, Worker
from infra.storage import StorePaths, is_lost
from tasks.run_record import RunRecord
from tasks.shard_outcomes import ShardOutcomes, described
from tasks.stage import Outputs, Progress, Ready, ShardCount, StageReport, at_once, run_fits, run_stage

RETRY_SECONDS = (30.0, 120.0)
"""Pauses before the second and the third attempt at a stage; within the time that a lease outlives its service."""

logger = logging.getLogger(__name__)


@dataclass(slots=True)
class _Attempt:
    """One attempt at a stage."""

    outcomes: ShardOutcomes
    tell: Progress
    report: StageReport | None = None
    """How it went; None until it has ended."""


@dataclass(frozen=True, slots=True)
class Run:
    """What every stage of one run needs."""

    config: RunConfig
    paths: StorePaths
    record: RunRecord
    resources: Resources
    weights: Mapping[str, Path | None]
    """Weight file of each SR model, settled once, so that all workers and all stages use the same."""

    def on_all_nodes(self, file: Path) -> Path:
        """Return where all workers have a file of models: its own place, or on a cluster its copy in the store."""
        return share(file, self.paths) if is_elastic() else file

    def folder_on_all_nodes(self, folder: Path, files: Sequence[Path], sha256: str) -> Path:
        """Return where all workers have a folder of models, likewise; see `infra.node_files.share_folder`."""
        return share_folder(folder, files, sha256, self.paths) if is_elastic() else folder

    def stage(
        self,
        title: str,
        build: Callable[[], Worker[ShardCount]],
        outputs: list[StageParts],
        shards: list[int],
        resources: Resources | None = None,
        ready: Ready = at_once,
    ) -> None:
        """Run one stage's missing shards."""
        self.stage_of(title, build, outputs, shards, dict.fromkeys(outputs, shards), resources, ready)

    def stage_of(
        self,
        title: str,
        build: Callable[[], Worker[ShardCount]],
        outputs: Sequence[Outputs],
        items: list[int],
        filled: Mapping[StageParts, list[int]],
        resources: Resources | None = None,
        ready: Ready = at_once,
    ) -> None:
        """Run the missing items of a stage, which fill parts."""
        with self._attempt(ShardOutcomes(title, len(items)), filled) as attempt:
            held, told = resources or self.resources, attempt.outcomes.heard
            attempt.report = run_stage(title, build, outputs, items, held, attempt.tell, ready, told)

    def stage_of_fits(
        self,
        title: str,
        fit: Callable[..., ShardCount],
        parts: StageParts,
        seeds: Sequence[int],
        epochs: int,
        devices: Devices,
    ) -> None:
        """Fit each missing seed, one after the other, each with all workers."""
        with self._attempt(ShardOutcomes(title, len(seeds), epochs), {parts: list(seeds)}) as attempt:
            told = attempt.outcomes.heard
            attempt.report = run_fits(title, fit, parts, seeds, epochs, attempt.tell, devices, told)

    @contextmanager
    def _attempt(self, outcomes: ShardOutcomes, filled: Mapping[StageParts, list[int]]) -> Iterator["_Attempt"]:
        """Record an attempt at a stage, whole or cut short, and show what became of its shards."""
        self._begin(outcomes.stage, filled)
        began = time.monotonic()
        attempt = _Attempt(outcomes, outcomes.watching(self.record.watching(stage_progress())))
        try:
            yield attempt
        except BaseException:
            self.record.count(outcomes.interrupted(time.monotonic() - began))
            raise
        assert attempt.report is not None
        self.record.add(attempt.report)
        shards_artifact(outcomes.stage, described(attempt.report), outcomes.rows())

    @contextmanager
    def stoppable(self) -> Iterator[None]:
        """Write down that the run was stopped where the block is interrupted: by a person, or by a scheduler."""
        try:
            yield
        except Exception:
            raise
        except BaseException:
            if is_lost(self.paths):  # by its lease: the record is another run's now
                raise
            try:
                self.record.save("stopped")
            except PipelineError as error:  # what stopped the run is to be told, not this
                logger.warning("the record does not say that the run was stopped: %s", error)
            raise

    def _begin(self, title: str, filled: Mapping[StageParts, list[int]]) -> None:
        if not self.record.stages:
            self.record.startup_seconds = time.time() - psutil.Process().create_time()
        for parts, shards in filled.items():
            output = {"title": title, "stage": parts.stage, "config": parts.config, "shards": shards}
            if output not in self.record.outputs:  # a retried task begins its stages again
                self.record.outputs.append(output)
        self.record.save("running")
        self.record.configs += [parts.config for parts in filled if parts.config not in self.record.configs]


def resources_of(config: RunConfig) -> Resources:
    """Return what the stages of a run may use."""
    chosen = config.resources
    return Resources(
        None if chosen.actors == "auto" else chosen.actors,
        None if chosen.gpus_per_actor == "auto" else chosen.gpus_per_actor,
    )


def stage_task[**P, R](function: Callable[P, R]) -> Task[P, R]:
    """Return a function of a run, and of more, as a Prefect task, which errors that may pass make try again.

    It is never cached: the parts say what is done, and a retry does the rest. It connects to Ray anew where that is
    what was lost.
    """

    @wraps(function)
    def attempt(*args: P.args, **kwargs: P.kwargs) -> R:
        run, context = args[0], TaskRunContext.get()
        if not isinstance(run, Run):
            raise TypeError(f"{function.__name__} takes a Run first, not {type(run).__name__}")
        if context is None or context.task_run.run_count <= 1:
            run.record.begin_task()
        else:
            logger.warning("%s is begun again, for the %d. time", function.__name__, context.task_run.run_count)
            reconnect()
        with run.stoppable():
            return function(*args, **kwargs)

    as_task = task(
        cache_policy=NO_CACHE,
        persist_result=False,
        retries=len(RETRY_SECONDS),
        retry_delay_seconds=list(RETRY_SECONDS),
        retry_condition_fn=may_pass,
    )
    return as_task(attempt)


def may_pass(_task: Task[..., object], _run: TaskRun, state: State[object]) -> bool:
    """Return whether what ended a stage may pass by itself: object storage or a Ray node that was lost.

    What a person has to mend (the configuration, the archive, a full store, weights) fails at once, and an incomplete
    run has told of its shards.
    """
    return isinstance(state.data, TransientError)
