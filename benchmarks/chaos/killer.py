"""Does to the world what the schedule says, as soon as there is somebody to do it to."""

import time
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil

from benchmarks.chaos.report import Round
from benchmarks.chaos.schedule import Planned, s3_fault, victim
from benchmarks.chaos.world import Driver, World

_REPLACEMENT_SECONDS = 5.0
"""From the loss of a node to the start of another."""

_FULL_SECONDS = (3.0, 6.0)
"""How long the disk stays full: at least, and by chance longer."""

_AT_WORK = 0.75
"""Share of actors and drivers that are killed in the middle of work; others at whatever they are, such as a start."""


class Killer:
    """One round's faults."""

    def __init__(self, world: World, planned: Sequence[Planned], told: Round, log: Path) -> None:
        """Begin the round now.

        Args:
            world: What there is.
            planned: Its faults; the disk is never filled where it has no limit.
            told: Where what was done is counted.
            log: Where it is told, a line each.
        """
        self._world, self._round, self._log = world, told, log
        self._planned = [fault for fault in planned if fault.kind != "disk" or world.disk.limited]
        self._began = time.monotonic()
        self._free_at = 0.0
        self._stopped = False

    def act(self, driver: Driver) -> None:
        """Do what is due, and let come back what was taken long enough."""
        now = time.monotonic()
        for fault in [fault for fault in self._planned if fault.at <= now - self._began]:
            if what := self._do(fault, driver):
                self._planned.remove(fault)
                self._say(what)
        if self._world.disk.full_since is not None and now >= self._free_at:
            self._round.disk_full_seconds += self._world.disk.free()
            self._say("disk freed")
        self._world.nodes.replace_lost(_REPLACEMENT_SECONDS)

    def stop(self) -> None:
        """End all faults, and bring back all nodes: whatever is still to come never does."""
        if self._stopped:
            return
        self._stopped = True
        self._planned.clear()
        if self._world.disk.full_since is not None:
            self._round.disk_full_seconds += self._world.disk.free()
        self._world.nodes.replace_lost(0.0)
        self._world.s3.heal()

    def _do(self, fault: Planned, driver: Driver) -> str | None:
        """Return what was done; None where there is nobody to do it to yet."""
        match fault.kind:
            case "actor":
                return self._kill_actor(fault.choice)
            case "raylet":
                places = self._world.nodes.raylets()
                if not places:
                    return None
                place = victim(places, fault.choice)
                self._world.nodes.kill_raylet(place)
            case "driver":
                if driver.killed or driver.end() is not None or (fault.choice < _AT_WORK and not driver.at_work()):
                    return None
                driver.kill()
                place = driver.process.pid
            case "disk":
                if self._world.disk.full_since is not None or not driver.at_work():
                    return None
                self._world.disk.fill()
                self._round.disk_fills += 1
                self._free_at = time.monotonic() + _FULL_SECONDS[0] + fault.choice * _FULL_SECONDS[1]
                return "disk filled"
            case "s3":
                kind, times, every = s3_fault(fault.choice)
                self._world.s3.inject(kind, times, every)
                return f"S3 server: {kind}, one request of {every}, {times} times"
        self._round.killed[fault.kind] += 1
        return f"{fault.kind} {place} killed"

    def _kill_actor(self, choice: float) -> str | None:
        actors = self._world.nodes.actors(at_work=choice < _AT_WORK)
        if not actors:
            return None
        chosen = victim(actors, choice / _AT_WORK if choice < _AT_WORK else (choice - _AT_WORK) / (1 - _AT_WORK))
        with suppress(psutil.NoSuchProcess):
            chosen.kill()
            self._round.killed["actor"] += 1
            return f"actor {chosen.pid} killed"
        return None

    def _say(self, what: str) -> None:
        with self._log.open("a", encoding="utf-8") as log:
            log.write(f"{time.monotonic() - self._began:8.1f} s  {what}\n")
