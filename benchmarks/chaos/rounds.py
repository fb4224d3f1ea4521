"""A run from its first start to its end: left alone, or with faults, started again until it is done."""

import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml

from benchmarks.chaos.comparison import differences
from benchmarks.chaos.killer import Killer
from benchmarks.chaos.report import End, Round, retries
from benchmarks.chaos.schedule import Planned
from benchmarks.chaos.world import Driver, World, start_driver
from infra.object_store import ObjectPath, object_path
from infra.storage import remove_folder
from tests.infra.s3_server import BUCKET

MOST_STARTS = 60
"""Starts of one round's driver, at most: a run that gets nowhere ends here."""

_PATIENCE_SECONDS = 1800.0
"""How long a start may go on once faults are over: a run that hangs ends here."""


@dataclass(frozen=True, slots=True)
class Inputs:
    """What all runs of one call share."""

    archive: Path
    """The tar archive of Sentinel-2 patches."""
    backbone: Path
    """Weight file of the classifier's backbone."""
    shard_size: int

    def write(self, path: Path, store: ObjectPath) -> Path:
        """Write a RUN.yaml for a store, and return where."""
        settings = {
            "archive": {"layout": "bigearthnet-v2", "root": str(self.archive)},
            "store": str(store),
            "shard_size": self.shard_size,
            "degrade": 4,
            "sr": ["bicubic", "hr"],
            "keep_sr": "always",
            "classifiers": ["resnet18"],
            "weights": {"resnet18": str(self.backbone)},
            "train": {"freeze_backbone": True, "epochs": 4},
            "explain": {"methods": ["grad_cam"]},
            "reliability": {"pooled": True, "clusters": 3, "landmarks": 500},
            "resources": {"batch_size": 32},
        }
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path


@dataclass(slots=True)
class Rounds:
    """All runs of one call, each in a store of its own."""

    world: World
    inputs: Inputs
    logs: Path
    """Folder of what drivers wrote and of what was done to them."""
    undisturbed_seconds: float = 0.0
    done: list[Round] = field(default_factory=list)

    @property
    def reference(self) -> ObjectPath:
        """The undisturbed run's store."""
        return object_path(f"s3://{BUCKET}/reference")

    def undisturbed(self) -> list[str]:
        """Run without a fault, and return what is wrong with that."""
        told = Round(seed=-1)
        self._run(self.reference, told, [], 0.0)
        self.undisturbed_seconds = told.seconds
        return [f"the undisturbed run: {fault}" for fault in told.faults] + self._left_behind()

    def disturbed(self, seed: int, planned: Sequence[Planned], seconds: float) -> Round:
        """Run with faults, and return what happened.

        Args:
            seed: Of the round, for its names.
            planned: The faults.
            seconds: After this time nothing more is done to the run.
        """
        told = Round(seed, undisturbed_seconds=self.undisturbed_seconds)
        store = object_path(f"s3://{BUCKET}/round-{len(self.done)}")
        self._run(store, told, planned, seconds)
        if told.ends[-1].code == 0:
            told.faults += differences(store, self.reference)
        told.faults += self._left_behind()
        if not told.faults:
            remove_folder(store)  # a soak of hours would fill the server's memory
        self.done.append(told)
        return told

    def _run(self, store: ObjectPath, told: Round, planned: Sequence[Planned], seconds: float) -> None:
        """Start drivers until one is done, while the killer is at work for so many seconds."""
        killer = Killer(self.world, planned, told, self.logs / f"{store.name}-faults.log")
        before = Counter(self.world.s3.heal())
        began = time.monotonic()
        driver = self._start(store, told)
        try:
            while True:
                if time.monotonic() - began > seconds:
                    killer.stop()
                else:
                    killer.act(driver)
                end = driver.end() or self._hung(driver, began + seconds)
                if end is None:
                    time.sleep(0.1)
                    continue
                told.ends.append(end)
                told.retries += retries(driver.log.read_text(errors="replace"))
                told.faults += _unclear(end, driver.log)
                if end.code == 0:
                    break
                if len(told.ends) == (MOST_STARTS if planned else 1):
                    told.faults.append(f"not done after {len(told.ends)} starts: {end.why}")
                    break
                while self.world.disk.full_since is not None:  # nobody starts a run on a disk that is full
                    killer.act(driver)
                    time.sleep(0.1)
                driver = self._start(store, told)
        finally:
            driver.process.kill()
            driver.process.wait()
            told.seconds = time.monotonic() - began
            killer.stop()
        told.s3_faults = Counter(self.world.s3.heal()) - before

    def _start(self, store: ObjectPath, told: Round) -> Driver:
        run_yaml = self.inputs.write(self.world.folder / f"{store.name}.yaml", store)
        return start_driver(run_yaml, self.logs / f"{store.name}-{len(told.ends) + 1:03d}.log", self.world.environment)

    def _hung(self, driver: Driver, quiet_since: float) -> End | None:
        """End a driver that is at work for all too long after the last fault, and say so."""
        seconds = time.monotonic() - max(driver.started, quiet_since)
        if seconds < _PATIENCE_SECONDS:
            return None
        driver.process.kill()
        return End(seconds, driver.process.wait(), killed=False, words="it hung")

    def _left_behind(self) -> list[str]:
        """Return what a finished run left where only temporary files are."""
        disk = self.world.disk.folder
        found = [f"left on the disk: {path.relative_to(disk)}" for path in sorted(disk.rglob("*")) if path.is_file()]
        if uploads := self.world.s3.unfinished_uploads(BUCKET):
            found.append(f"left on the S3 server: {uploads} unfinished uploads")
        names = [str(path) for path in object_path(f"s3://{BUCKET}").rglob("*")]
        return found + [f"left in the store: {name}" for name in names if name.endswith((".partial", ".tmp"))]


def _unclear(end: End, log: Path) -> list[str]:
    """Return what is wrong with how a driver ended: unless it was killed, it says in one sentence why."""
    if end.killed or end.code == 0:
        return []
    if end.code not in {1, 2} or "Traceback (most recent call last)" in log.read_text(errors="replace"):
        return [f"an end without a clear word, {log.name}: {end.why}"]
    return []
