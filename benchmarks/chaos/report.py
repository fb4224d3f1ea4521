"""What happened in a round, counted, and how it is printed."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any

from rich.console import Console
from rich.table import Table

_RETRY = re.compile(r"shard (\d+), \d+ of \d+ attempts used: ([^:]+)")
"""How the pool tells of a shard that is begun again."""

_REASONS = ("the process died", "the node was lost")


@dataclass(frozen=True, slots=True)
class End:
    """How one start of the driver ended."""

    seconds: float
    """From its start to its end."""
    code: int
    """Its exit code; below 0: minus the signal that ended it."""
    killed: bool
    """Whether it was killed on purpose."""
    words: str
    """Its last line on standard error."""

    @property
    def why(self) -> str:
        """The end as a line of the report."""
        if self.killed:
            return "killed"
        return "done" if self.code == 0 else f"exit {self.code}: {self.words}"


@dataclass(slots=True)
class Round:
    """One store, from the first start of its driver to the last end."""

    seed: int
    seconds: float = 0.0
    undisturbed_seconds: float = 0.0
    """Of the run that was left alone."""
    killed: Counter[str] = field(default_factory=Counter)
    """Processes by kind: actor, raylet, driver."""
    disk_fills: int = 0
    disk_full_seconds: float = 0.0
    s3_faults: Counter[str] = field(default_factory=Counter)
    """Requests that were made to fail, by how."""
    retries: Counter[str] = field(default_factory=Counter)
    """Shards that were begun again within one run, by reason."""
    ends: list[End] = field(default_factory=list)
    """Of every start of the driver."""
    faults: list[str] = field(default_factory=list)
    """What is wrong with the result; none: it is the undisturbed run's, and nothing was left behind."""

    @property
    def lost_seconds(self) -> float:
        """How much longer the round took than the run that was left alone."""
        return self.seconds - self.undisturbed_seconds

    def as_json(self) -> dict[str, Any]:
        """Return the round for a result's file."""
        own = {item.name: getattr(self, item.name) for item in fields(self)}  # asdict cannot copy a Counter
        return {**own, "lost_seconds": self.lost_seconds, "ends": [asdict(end) for end in self.ends]}


def retries(log: str) -> Counter[str]:
    """Return how many shards a driver's log says were begun again, by reason.

    Args:
        log: What drivers wrote on standard error.
    """
    found: Counter[str] = Counter()
    for _, reason in _RETRY.findall(log):
        found[reason if reason in _REASONS else "object storage or another passing error"] += 1
    return found


def total(rounds: Sequence[Round]) -> dict[str, float]:
    """Return the sums over rounds: what was done to them, and what it cost."""
    return {
        "rounds": len(rounds),
        "kills": sum(sum(item.killed.values()) for item in rounds),
        "disk_fills": sum(item.disk_fills for item in rounds),
        "s3_faults": sum(sum(item.s3_faults.values()) for item in rounds),
        "driver_starts": sum(len(item.ends) for item in rounds),
        "shard_retries": sum(sum(item.retries.values()) for item in rounds),
        "seconds": sum(item.seconds for item in rounds),
        "lost_seconds": sum(item.lost_seconds for item in rounds),
        "faults_of_the_result": sum(len(item.faults) for item in rounds),
    }


def show(rounds: Sequence[Round], console: Console) -> None:
    """Print the report: one column a round."""
    table = Table("what happened", *(f"seed {item.seed}" for item in rounds), box=None)
    for name, cells in _lines(rounds):
        table.add_row(name, *cells)
    console.print(table)
    for item in rounds:
        for number, end in enumerate(item.ends, start=1):
            console.print(
                f"seed {item.seed}, start {number}, {end.seconds:.0f} s: {end.why}",
                markup=False,
                highlight=False,
                soft_wrap=True,
            )
        for fault in item.faults:
            console.print(f"seed {item.seed}: WRONG: {fault}", markup=False, highlight=False, soft_wrap=True)
    console.print("   ".join(f"{name} {value:.0f}" for name, value in total(rounds).items()), highlight=False)


def _lines(rounds: Sequence[Round]) -> Iterable[tuple[str, list[str]]]:
    yield from _counts("killed", [item.killed for item in rounds])
    yield "driver started", [str(len(item.ends)) for item in rounds]
    yield "disk filled", [f"{item.disk_fills} times, {item.disk_full_seconds:.0f} s" for item in rounds]
    yield from _counts("S3 server", [item.s3_faults for item in rounds])
    yield from _counts("shard begun again", [item.retries for item in rounds])
    yield "seconds", [f"{item.seconds:.0f}" for item in rounds]
    yield "undisturbed", [f"{item.undisturbed_seconds:.0f}" for item in rounds]
    yield "lost", [f"{item.lost_seconds:.0f}" for item in rounds]
    yield "wrong at the end", [str(len(item.faults)) for item in rounds]


def _counts(title: str, counts: Sequence[Counter[str]]) -> Iterable[tuple[str, list[str]]]:
    for name in sorted(set().union(*counts)):
        yield f"{title}: {name}", [str(count[name]) for count in counts]
