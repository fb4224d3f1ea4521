"""How long a run takes, and what it costs, on 1, 8, 64 and 512 devices that may be taken away: a simulation.

    python benchmarks/spot.py [--store STORE | --rate STAGE=PATCHES_PER_SECOND ...] [--patches 549488]
                              [--shard-size 512] [--devices 1 8 64 512] [--losses-per-hour 0 0.05 0.5]
                              [--replacement-seconds 300] [--start-seconds 60] [--devices-per-node 1]
                              [--price-per-hour 1] [--seeds 20] [--out benchmarks/results/spot.json]

The rates are a device's: those of the last runs of a store (tables/runs), given ones, or the measured ones that come
with the package (`tasks/rates.py`), of one processor core each, and then a device is a core. Losses, delays and the
price are given, not measured.

Stages follow one another, as in the flow: the next begins when the last shard of one is done. A device works on one
shard at a time. Nodes are lost at a constant rate (Poisson); the shards that their devices were at go to the end of
the queue and are begun anew, as in `infra/ray_pool.py`; a node comes back after the delay and needs its start again. A
node is paid for from the moment that it is there until it is lost, or the run has ended. `ideal` is the work divided
by the devices.
"""

import argparse
import heapq
import json
import math
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import fmean

import numpy as np

from infra.storage import StorePaths
from tasks.rates import SHIPPED, stored_rates

DEFAULT_STAGES = ("ingest", "pixels srresnet float32", "backbone resnet50 480")
"""What is simulated of the measured rates: ingest, then enlargement and classification of every patch."""


@dataclass(frozen=True, slots=True)
class Cluster:
    """What a run is on."""

    devices: int
    devices_per_node: int
    start_seconds: float
    """From when a node is there to its first shard: start of an actor, weights, models."""
    replacement_seconds: float
    """From a loss to when its replacement is there."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a run went."""

    seconds: float
    """Makespan."""
    paid_seconds: float
    """Of devices."""
    lost_seconds: float
    """Device-seconds of shards that were begun and lost."""
    losses: int
    """Nodes lost."""


def simulate(stages: Sequence[Sequence[float]], cluster: Cluster, lifetime: Callable[[], float]) -> Outcome:
    """Return how a run goes.

    Args:
        stages: Seconds that every shard takes on a device, stage by stage.
        cluster: What it is on.
        lifetime: Called for every node that appears; returns the seconds until it is lost, may be infinite.
    """
    run = _Run(cluster, lifetime)
    for shards in stages:
        run.stage(shards)
    return run.outcome()


class _Run:
    """The events of a run in the order of time."""

    def __init__(self, cluster: Cluster, lifetime: Callable[[], float]) -> None:
        self._cluster, self._lifetime = cluster, lifetime
        self._now = self._paid = self._lost = 0.0
        self._losses = 0
        self._events: list[tuple[float, int, str, int, int]] = []
        self._order = 0
        self._nodes = math.ceil(cluster.devices / cluster.devices_per_node)
        self._since: dict[int, float] = {}  # nodes that are there, and since when
        self._life = [0] * self._nodes  # how often a node was lost: events of an earlier life do not count
        self._idle: deque[int] = deque()
        self._working: dict[int, tuple[float, float]] = {}  # device: shard's seconds, begun
        self._todo: deque[float] = deque()
        for node in range(self._nodes):
            self._appear(node)

    def stage(self, shards: Sequence[float]) -> None:
        """Do all shards of a stage."""
        self._todo.extend(shards)
        self._feed()
        while self._todo or self._working:
            self._now, _, what, who, life = heapq.heappop(self._events)
            if what == "done":
                if who in self._working and life == self._life[who // self._cluster.devices_per_node]:
                    del self._working[who]
                    self._idle.append(who)
            elif what == "appear":
                self._appear(who)
            elif life == self._life[who]:
                if what == "ready":
                    self._idle.extend(self._devices(who))
                else:
                    self._lose(who)
            self._feed()

    def outcome(self) -> Outcome:
        """Return how it went."""
        held = sum((self._now - since) * len(self._devices(node)) for node, since in self._since.items())
        return Outcome(self._now, self._paid + held, self._lost, self._losses)

    def _devices(self, node: int) -> range:
        size = self._cluster.devices_per_node
        return range(node * size, min((node + 1) * size, self._cluster.devices))

    def _at(self, when: float, what: str, who: int, life: int) -> None:
        if math.isfinite(when):
            heapq.heappush(self._events, (when, self._order, what, who, life))
            self._order += 1

    def _appear(self, node: int) -> None:
        self._since[node] = self._now
        self._at(self._now + self._cluster.start_seconds, "ready", node, self._life[node])
        self._at(self._now + self._lifetime(), "lost", node, self._life[node])

    def _lose(self, node: int) -> None:
        devices = self._devices(node)
        self._paid += (self._now - self._since.pop(node)) * len(devices)
        self._losses += 1
        self._life[node] += 1
        for device in devices:
            if device in self._working:
                shard, begun = self._working.pop(device)
                self._lost += self._now - begun
                self._todo.append(shard)
        self._idle = deque(device for device in self._idle if device not in devices)
        self._at(self._now + self._cluster.replacement_seconds, "appear", node, self._life[node])

    def _feed(self) -> None:
        while self._todo and self._idle:
            device, shard = self._idle.popleft(), self._todo.popleft()
            self._working[device] = (shard, self._now)
            life = self._life[device // self._cluster.devices_per_node]
            self._at(self._now + shard, "done", device, life)


def poisson(losses_per_hour: float, seed: int) -> Callable[[], float]:
    """Return lifetimes of nodes that are lost at a constant rate; seeded."""
    rng = np.random.default_rng(seed)
    return lambda: float(rng.exponential(3600 / losses_per_hour)) if losses_per_hour else math.inf


def shard_seconds(patches: int, shard_size: int, rate: float) -> list[float]:
    """Return the seconds of every shard of a stage; the last one may be short."""
    full, rest = divmod(patches, shard_size)
    return [shard_size / rate] * full + ([rest / rate] if rest else [])


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table: means over the seeds."""

    devices: int
    losses_per_hour: float
    hours: float
    ideal_hours: float
    slowest_hours: float
    device_hours: float
    cost: float
    losses: float
    lost_share: float
    """Of the device-seconds that were paid for, those of work that was lost."""


def rates_of(args: argparse.Namespace) -> tuple[dict[str, float], str]:
    """Return the rate of every stage, patches a second and device, and where they come from.

    Raises:
        SystemExit: There is none.
    """
    if args.store:
        found = stored_rates(StorePaths(args.store))
        if not found:
            raise SystemExit(f"{args.store} has no run that recorded what its devices did")
        return {stage: rate.per_second for stage, rate in found.items()}, f"last runs of {args.store}"
    if args.rate:
        return {name: float(rate) for name, _, rate in (text.rpartition("=") for text in args.rate)}, "given"
    return {stage: SHIPPED[stage].per_second for stage in DEFAULT_STAGES}, "measured, a device is one processor core"


def table(args: argparse.Namespace, rates: dict[str, float]) -> list[Row]:
    """Simulate everything."""
    stages = [shard_seconds(args.patches, args.shard_size, rate) for rate in rates.values()]
    work = sum(sum(stage) for stage in stages)
    rows = []
    for devices in args.devices:
        cluster = Cluster(devices, args.devices_per_node, args.start_seconds, args.replacement_seconds)
        for losses in args.losses_per_hour:
            runs = [simulate(stages, cluster, poisson(losses, seed)) for seed in range(args.seeds if losses else 1)]
            paid = fmean(run.paid_seconds for run in runs)
            rows.append(
                Row(
                    devices,
                    losses,
                    fmean(run.seconds for run in runs) / 3600,
                    work / devices / 3600,
                    max(run.seconds for run in runs) / 3600,
                    paid / 3600,
                    paid / 3600 * args.price_per_hour,
                    fmean(run.losses for run in runs),
                    fmean(run.lost_seconds for run in runs) / paid,
                )
            )
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--store", type=Path, help="whose last runs give the rates")
    parser.add_argument("--rate", nargs="+", help="STAGE=PATCHES_PER_SECOND of one device")
    parser.add_argument("--patches", type=int, default=549_488)
    parser.add_argument("--shard-size", type=int, default=512)
    parser.add_argument("--devices", type=int, nargs="+", default=[1, 8, 64, 512])
    parser.add_argument("--losses-per-hour", type=float, nargs="+", default=[0.0, 0.05, 0.5], help="of each node")
    parser.add_argument("--replacement-seconds", type=float, default=300.0)
    parser.add_argument("--start-seconds", type=float, default=60.0)
    parser.add_argument("--devices-per-node", type=int, default=1)
    parser.add_argument("--price-per-hour", type=float, default=1.0, help="of a device")
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    rates, source = rates_of(args)
    rows = table(args, rates)
    print(f"{args.patches:,} patches in shards of {args.shard_size}; rates: {source}")
    print("; ".join(f"{stage} {rate:,.4g} patches/s" for stage, rate in rates.items()))
    heads = ("devices", "losses/h", "hours", "ideal", "slowest", "device-h", "cost", "lost", "work lost %")
    print("".join(f"{head:>12}" for head in heads))
    for row in rows:
        print(
            f"{row.devices:12}{row.losses_per_hour:12g}{row.hours:12.2f}{row.ideal_hours:12.2f}{row.slowest_hours:12.2f}"
            f"{row.device_hours:12.1f}{row.cost:12.2f}{row.losses:12.1f}{100 * row.lost_share:12.2f}"
        )
    if args.out:
        about = {name: value for name, value in vars(args).items() if name not in {"out", "store", "rate"}}
        found = {"about": {**about, "date": time.strftime("%Y-%m-%d")}, "source": source, "rates": rates}
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({**found, "rows": [asdict(row) for row in rows]}, indent=2)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
