"""One stage over its missing shards: the pool does them, the parts say what is done, the report says how it went."""

import time
from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from itertools import chain
from typing import Protocol

from infra.errors import ArchiveError, ConfigError, PipelineError, StoreError, TransientError
from infra.parts import StageParts
from infra.ray_pool import Devices, Done, Failed, Resources, Worker, run_pool
from tasks.stage_watch import StageWatch


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


def both_attempts(first: StageReport, second: StageReport) -> StageReport:
    """Return how a stage went that was begun again: what either attempt did, and what the second one left undone.

    What the second one found done is the first one's work, as far as that says that it did any, or was there before.
    """
    if not (second.done or second.skipped or second.failures):  # it ended before it looked, or found as little as that
        return replace(first, seconds=first.seconds + second.seconds)
    by_first = min(first.done, second.skipped)
    return StageReport(
        first.stage,
        by_first + second.done,
        second.skipped - by_first,
        first.patches + second.patches,
        first.seconds + second.seconds,
        second.failures,
        second.devices or first.devices,
        first.busy_seconds + second.busy_seconds,
    )


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


def unheard(outcome: Done[ShardCount] | Failed) -> None:
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
    heard: Callable[[Done[ShardCount] | Failed], None] = unheard,
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
        heard: Told of every outcome.

    Raises:
        WorkerStartError, StoreError, ConfigError: As `run_pool` does: nothing more can be done.
        TransientError: Likewise; another attempt may succeed.
    """
    done_everywhere = _done_everywhere(outputs)
    missing = [shard for shard in shards if shard not in done_everywhere]
    started, patches, done = time.monotonic(), 0, 0
    failures: list[ShardFailure] = []
    devices, busy = None, 0.0
    progress(stage, 0, len(missing), 0)
    with StageWatch(stage, len(missing), len(shards) - len(missing)) as watch, closing(ready(missing)) as batches:
        for outcome in chain.from_iterable(run_pool(build, batch, resources) for batch in batches):
            if isinstance(outcome, Failed) and outcome.item in _done_everywhere(outputs):
                # By another attempt: one on a node that was called lost went on to its end.
                outcome = Done(outcome.item, ShardCount(0), 0.0, devices, outcome.attempts)  # noqa: PLW2901
            heard(outcome)
            if isinstance(outcome, Done):
                done += 1
                devices, busy = outcome.devices, busy + outcome.seconds
                patches += outcome.result.patches
                watch.done(outcome.item, outcome.result.patches, outcome.seconds, devices)
            else:
                failures.append(ShardFailure(stage, outcome.item, outcome.error))
                outputs[-1].write_failure(outcome.item, outcome.attempts, outcome.error)
                watch.failed(outcome.item, outcome.attempts, outcome.error)
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
    heard: Callable[[Done[ShardCount] | Failed], None] = unheard,
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
        heard: Told of every outcome; its seconds are those of all workers together.

    Raises:
        StoreError, ArchiveError, ConfigError: Nothing more can be done.
        TransientError: Likewise; another attempt may succeed.
    """
    missing = [seed for seed in seeds if not parts.is_done(seed)]
    started, samples = time.monotonic(), 0
    failures: list[ShardFailure] = []
    total, busy = len(missing) * epochs, 0.0
    progress(stage, 0, total, 0)
    with StageWatch(stage, len(missing), len(seeds) - len(missing), devices) as watch:
        for place, seed in enumerate(missing):
            begun = time.monotonic()
            tell = partial(_tell_epochs, progress, watch, stage, place * epochs, total, samples)
            try:
                seen = fit(seed, tell=tell).patches
            except (StoreError, ArchiveError, ConfigError, TransientError):
                raise
            except PipelineError as error:
                failures.append(ShardFailure(stage, seed, str(error)))
                parts.write_failure(seed, 1, str(error))
                watch.failed(seed, 1, str(error))
                heard(Failed(seed, 1, str(error)))
            else:
                samples += seen
                its_seconds = time.monotonic() - begun
                busy += its_seconds
                workers = devices.workers if devices else 1
                watch.done(seed, seen, its_seconds, devices, workers)
                heard(Done(seed, ShardCount(seen), its_seconds * workers, devices))
            progress(stage, (place + 1) * epochs, total, samples)
    seconds = time.monotonic() - started if missing else 0.0
    done = len(missing) - len(failures)
    held = devices if done else None
    busy *= held.workers if held else 0
    return StageReport(stage, done, len(seeds) - len(missing), samples, seconds, tuple(failures), held, busy)


def _tell_epochs(
    progress: Progress, watch: StageWatch, stage: str, before: int, total: int, samples: int, done: int
) -> None:
    watch.tick(before + done, total, "epochs")
    progress(stage, before + done, total, samples)
