"""One stage over its missing shards: the pool does them, the parts say what is done, the report says how it went."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from functools import partial
from itertools import chain
from typing import Protocol

from infra.errors import ArchiveError, ConfigError, PipelineError, StoreError
from infra.parts import StageParts
from infra.ray_pool import Devices, Done, Resources, Worker, run_pool


@dataclass(frozen=True, slots=True)
class ShardCount:
    """What a worker returns for one shard."""

    patches: int
    """Patches processed."""


@dataclass(frozen=True, slots=True)
class ShardFailure:
    """A shard that was given up."""

    stage: str
    shard: int
    error: str


@dataclass(frozen=True, slots=True)
class StageReport:
    """How a stage went. Done, skipped and failed shards are three outcomes, counted apart."""

    stage: str
    done: int = 0
    skipped: int = 0
    """Shards whose part was there before."""
    patches: int = 0
    seconds: float = 0.0
    """Wall time, the start of the actors included."""
    failures: tuple[ShardFailure, ...] = field(default=())
    devices: Devices | None = None
    """What the stage held; None where no shard was done."""
    busy_seconds: float = 0.0
    """Seconds at work on the shards that were done, of all workers together."""

    @property
    def complete(self) -> bool:
        """Whether every shard of the stage has its part."""
        return not self.failures

    @property
    def patches_per_second(self) -> float:
        """Patches a second, 0 where nothing was done."""
        return self.patches / self.seconds if self.seconds else 0.0

    @property
    def device_hours(self) -> float:
        """Hours of all devices from the stage's start to its end, at work or not: what is paid for."""
        return self.devices.count * self.seconds / 3600 if self.devices else 0.0

    @property
    def busy_device_hours(self) -> float:
        """Those that went into the shards that were done."""
        return self.busy_seconds * self.devices.count / self.devices.workers / 3600 if self.devices else 0.0


class Progress(Protocol):
    """Where a stage tells how far it is: a bar, an artifact, a log."""

    def __call__(self, stage: str, done: int, total: int, patches: int) -> None:
        """Shards done of total, and patches in them."""
        ...


class Outputs(Protocol):
    """What tells which shards of a stage are done: its parts."""

    def done(self) -> set[int]:
        """Shards that are done."""
        ...

    def write_failure(self, shard: int, attempts: int, error: str) -> None:
        """Leave the reason why a shard failed."""
        ...


class PartsOfItems:
    """The parts of a list of work whose items lie in several folders: an item is a place in the list."""

    def __init__(self, places: Sequence[tuple[StageParts, int]]) -> None:
        """Say in which parts, and under which number, each item writes."""
        self._places = list(places)

    def done(self) -> set[int]:
        """Items whose part exists."""
        return {i for i, (parts, number) in enumerate(self._places) if parts.is_done(number)}

    def write_failure(self, shard: int, attempts: int, error: str) -> None:
        """Leave the reason why an item failed."""
        parts, number = self._places[shard]
        parts.write_failure(number, attempts, error)


def silent(stage: str, done: int, total: int, patches: int) -> None:
    """Tell nobody."""


type Ready = Callable[[list[int]], Generator[Sequence[int]]]
"""Yields the shards it is given, each once, in groups that can be worked on; closed when the stage ends."""


def at_once(shards: list[int]) -> Generator[Sequence[int]]:
    """Yield all shards: nothing has to be waited for."""
    yield shards


def run_stage(
    stage: str,
    build: Callable[[], Worker[ShardCount]],
    outputs: Sequence[Outputs],
    shards: Sequence[int],
    resources: Resources,
    progress: Progress = silent,
    ready: Ready = at_once,
) -> StageReport:
    """Run a stage's missing shards on the pool.

    Args:
        stage: Name for people.
        build: Makes a worker, in every actor.
        outputs: The parts that a shard's call writes; a shard is done when all of them exist.
        shards: The stage's shards.
        resources: What the pool may use.
        progress: Told after every shard.
        ready: Deals out the missing shards as they can be worked on.

    Raises:
        WorkerStartError, StoreError, ConfigError: As `run_pool` does: nothing more can be done.
    """
    done_everywhere = _done_everywhere(outputs)
    missing = [shard for shard in shards if shard not in done_everywhere]
    started, patches, done = time.monotonic(), 0, 0
    failures: list[ShardFailure] = []
    devices, busy = None, 0.0
    progress(stage, 0, len(missing), 0)
    with closing(ready(missing)) as batches:
        for outcome in chain.from_iterable(run_pool(build, batch, resources) for batch in batches):
            if isinstance(outcome, Done):
                done += 1
                devices, busy = outcome.devices, busy + outcome.seconds
                patches += outcome.result.patches
            elif outcome.item in _done_everywhere(outputs):
                done += 1  # by another attempt: one on a node that was called lost went on to its end
            else:
                failures.append(ShardFailure(stage, outcome.item, outcome.error))
                outputs[-1].write_failure(outcome.item, outcome.attempts, outcome.error)
            progress(stage, done + len(failures), len(missing), patches)
    seconds = time.monotonic() - started if missing else 0.0
    return StageReport(stage, done, len(shards) - len(missing), patches, seconds, tuple(failures), devices, busy)


def _done_everywhere(outputs: Sequence[Outputs]) -> set[int]:
    return set.intersection(*(parts.done() for parts in outputs))


class Fit(Protocol):
    """A fit of one seed that all workers share."""

    def __call__(self, seed: int, *, tell: Callable[[int], None]) -> ShardCount:
        """Fit a seed and return the samples seen; `tell` is called with the epochs done."""
        ...


def run_fits(
    stage: str,
    fit: Fit,
    parts: StageParts,
    seeds: Sequence[int],
    epochs: int,
    progress: Progress = silent,
    devices: Devices | None = None,
) -> StageReport:
    """Run the missing fits of a stage one after the other, each on all workers.

    Args:
        stage: Name for people.
        fit: Fits one seed and writes its part.
        parts: The parts; a seed is done when its part exists.
        seeds: The stage's seeds.
        epochs: Epochs of a fit, at most.
        progress: Told of epochs, over all missing seeds.
        devices: What a fit holds.

    Raises:
        StoreError, ArchiveError, ConfigError: Nothing more can be done.
    """
    missing = [seed for seed in seeds if not parts.is_done(seed)]
    started, samples = time.monotonic(), 0
    failures: list[ShardFailure] = []
    total, busy = len(missing) * epochs, 0.0
    progress(stage, 0, total, 0)
    for place, seed in enumerate(missing):
        begun = time.monotonic()
        try:
            samples += fit(seed, tell=partial(_tell_epochs, progress, stage, place * epochs, total, samples)).patches
        except (StoreError, ArchiveError, ConfigError):
            raise
        except PipelineError as error:
            failures.append(ShardFailure(stage, seed, str(error)))
            parts.write_failure(seed, 1, str(error))
        else:
            busy += time.monotonic() - begun
        progress(stage, (place + 1) * epochs, total, samples)
    seconds = time.monotonic() - started if missing else 0.0
    done = len(missing) - len(failures)
    held = devices if done else None
    workers = held.workers if held else 0
    return StageReport(stage, done, len(seeds) - len(missing), samples, seconds, tuple(failures), held, busy * workers)


def _tell_epochs(progress: Progress, stage: str, before: int, total: int, samples: int, done: int) -> None:
    progress(stage, before + done, total, samples)
