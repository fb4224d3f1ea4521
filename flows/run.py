"""One run of a flow: what every stage needs, and how a stage is run."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from prefect import task
from prefect.cache_policies import NO_CACHE

from flows.config import RunConfig
from flows.progress import stage_progress
from infra.node_files import share
from infra.parts import StageParts
from infra.ray_pool import Devices, Resources, Worker, is_elastic
from infra.storage import StorePaths
from tasks.run_record import RunRecord
from tasks.stage import Outputs, Ready, ShardCount, at_once, run_fits, run_stage


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
        self._begin(title, filled)
        tell = self.record.watching(stage_progress())
        self.record.add(run_stage(title, build, outputs, items, resources or self.resources, tell, ready))

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
        self._begin(title, {parts: list(seeds)})
        tell = self.record.watching(stage_progress())
        self.record.add(run_fits(title, fit, parts, seeds, epochs, tell, devices))

    def _begin(self, title: str, filled: Mapping[StageParts, list[int]]) -> None:
        if not self.record.stages:
            self.record.startup_seconds = time.time() - psutil.Process().create_time()
        self.record.outputs += [
            {"title": title, "stage": parts.stage, "config": parts.config, "shards": shards}
            for parts, shards in filled.items()
        ]
        self.record.save("running")
        self.record.configs += [parts.config for parts in filled]


def resources_of(config: RunConfig) -> Resources:
    """Return what the stages of a run may use."""
    chosen = config.resources
    return Resources(
        None if chosen.actors == "auto" else chosen.actors,
        None if chosen.gpus_per_actor == "auto" else chosen.gpus_per_actor,
    )


stage_task = task(cache_policy=NO_CACHE, persist_result=False)
"""A Prefect task that is never cached: the parts say what is done."""
