"""What a stage tells while it runs, beside its progress: log lines and metrics."""

import logging
import time
from types import TracebackType
from typing import Self

from infra import metrics
from infra.logs import bound, events, fields
from infra.ray_pool import Devices

_TELL_SECONDS = 60.0
"""How often a line tells how far the stage is."""


class StageWatch:
    """One stage's log lines and metrics; the block that it watches is the stage.

    Shards are whatever the stage counts: of a stage of fits, seeds.
    """

    def __init__(self, stage: str, missing: int, skipped: int, devices: Devices | None = None) -> None:
        """Begin with what there is to do, and with what the stage holds where that is known beforehand."""
        self._stage, self._missing, self._skipped = stage, missing, skipped
        self._devices = devices
        self._done = self._failed = self._patches = 0
        self._context = bound(stage=stage)
        self._began = self._counted = self._told = 0.0

    def __enter__(self) -> Self:
        self._context.__enter__()
        self._began = self._counted = self._told = time.monotonic()
        metrics.count(metrics.SHARDS, self._skipped, outcome="skipped")
        if self._missing:
            metrics.show(metrics.MISSING, self._missing)
            events.info("the stage begins: %d shards to do, %d done before", self._missing, self._skipped)
        else:
            events.info("the stage is skipped: all %d shards were done before", self._skipped)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._count_devices()
        metrics.take_away(metrics.MISSING)
        if error is not None:
            events.error("the stage was stopped by %s: %s", type(error).__name__, error)
        elif self._missing:
            self._tell_end()
        self._context.__exit__(kind, error, trace)

    def done(self, shard: int, patches: int, seconds: float, devices: Devices | None = None, workers: int = 1) -> None:
        """Tell of a shard that was done.

        Args:
            shard: Its number.
            patches: In it.
            seconds: That it took.
            devices: What the stage holds.
            workers: That were at work on it.
        """
        self._devices = devices or self._devices
        self._done += 1
        self._patches += patches
        metrics.count(metrics.SHARDS, outcome="done")
        metrics.count(metrics.PATCHES, patches)
        metrics.observe(metrics.SHARD_SECONDS, seconds)
        if held := self._devices:
            metrics.count(metrics.BUSY_DEVICE_SECONDS, seconds * workers * held.count / held.workers, device=held.kind)
        with bound(shard=shard):
            events.debug("the shard is done", extra=fields(patches=patches, seconds=round(seconds, 3)))
        self._step()

    def failed(self, shard: int, attempts: int, error: str) -> None:
        """Tell of a shard that was given up."""
        self._failed += 1
        metrics.count(metrics.SHARDS, outcome="failed")
        with bound(shard=shard):
            events.error("the shard failed: %s", error, extra=fields(attempts=attempts))
        self._step()

    def tick(self, done: int, total: int, unit: str) -> None:
        """Tell how far a stage is whose shards take long.

        Args:
            done: Units of all shards that are done, such as epochs.
            total: Units of all shards.
            unit: What they are, in the plural.
        """
        self._count_devices()
        if self._is_due():
            events.info("%d of %d %s", done, total, unit, extra=fields(**{unit: done}))

    def _step(self) -> None:
        metrics.show(metrics.MISSING, self._missing - self._done - self._failed)
        self._count_devices()
        if self._is_due():
            rate = self._patches / (self._told - self._began)
            events.info(
                "%d of %d shards, %.1f patches/s",
                self._done + self._failed,
                self._missing,
                rate,
                extra=fields(done=self._done, failed=self._failed, patches=self._patches),
            )

    def _is_due(self) -> bool:
        """Return whether it is time for a line, which is then told."""
        now = time.monotonic()
        if now - self._told <= _TELL_SECONDS:
            return False
        self._told = now
        return True

    def _tell_end(self) -> None:
        seconds = time.monotonic() - self._began
        events.log(
            logging.ERROR if self._failed else logging.INFO,
            "the stage ends: %d shards done, %d skipped, %d failed; %d patches in %.1f s",
            self._done,
            self._skipped,
            self._failed,
            self._patches,
            seconds,
            extra=fields(
                done=self._done,
                skipped=self._skipped,
                failed=self._failed,
                patches=self._patches,
                seconds=round(seconds, 3),
            ),
        )

    def _count_devices(self) -> None:
        now = time.monotonic()
        if self._devices is not None:
            held = self._devices.count * (now - self._counted)
            metrics.count(metrics.DEVICE_SECONDS, held, device=self._devices.kind)
            self._counted = now
