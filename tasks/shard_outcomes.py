"""What became of each shard of a stage: a table for people, and what is kept of a stage that was interrupted."""

from dataclasses import dataclass, field
from heapq import nlargest

from infra.ray_pool import Done, Failed
from tasks.stage import Progress, ShardCount, ShardFailure, StageReport

FAILED_ROWS = 50
"""Failed shards that a table tells of, at most."""

SLOWEST_ROWS = 20
"""Done shards that a table tells of, at most: those that took longest."""

_ERROR_LENGTH = 300

type Cell = str | int | float | None


@dataclass(slots=True)
class ShardOutcomes:
    """Collects the outcomes of one attempt at a stage."""

    stage: str
    shards: int
    """All of the stage, done before or not."""
    steps: int = 1
    """What progress counts in a shard, such as the epochs of a seed."""
    done: list[Done[ShardCount]] = field(default_factory=list)
    failed: list[Failed] = field(default_factory=list)
    missing: int | None = None
    """Shards that were to do when the attempt began; None: it ended before that was known."""

    def heard(self, outcome: Done[ShardCount] | Failed) -> None:
        """Take one shard's outcome."""
        if isinstance(outcome, Done):
            self.done.append(outcome)
        else:
            self.failed.append(outcome)

    def watching(self, tell: Progress) -> Progress:
        """Return a progress that tells another, and keeps how much there was to do."""

        def both(stage: str, done: int, total: int, patches: int) -> None:
            self.missing = total // self.steps
            tell(stage, done, total, patches)

        return both

    def interrupted(self, seconds: float) -> StageReport:
        """Return the report of an attempt that an error ended: what was done until then.

        Args:
            seconds: Wall time since it began.
        """
        devices = self.done[-1].devices if self.done else None
        failures = tuple(ShardFailure(self.stage, item.item, item.error) for item in self.failed)
        patches, busy = sum(item.result.patches for item in self.done), sum(item.seconds for item in self.done)
        skipped = 0 if self.missing is None else self.shards - self.missing
        return StageReport(self.stage, len(self.done), skipped, patches, seconds, failures, devices, busy)

    def rows(self) -> list[dict[str, Cell]]:
        """Return the table: shards that failed, then those that took longest; never more than a page of them."""
        slowest = nlargest(SLOWEST_ROWS, self.done, key=lambda item: item.seconds)
        failed = sorted(self.failed, key=lambda item: item.item)[:FAILED_ROWS]
        return [
            *(_row(item.item, "failed", None, None, item.attempts, _short(item.error)) for item in failed),
            *(
                _row(item.item, "done", item.result.patches, round(item.seconds, 3), item.attempts, "")
                for item in slowest
            ),
        ]


def described(report: StageReport) -> str:
    """Return what a table of a stage's shards is headed with: the counts of all."""
    counts = f"{report.done} done, {report.skipped} done before, {len(report.failures)} failed"
    return f"{report.stage}: {counts}; {report.patches} patches in {report.seconds:.1f} s"


def _row(
    shard: int, outcome: str, patches: int | None, seconds: float | None, attempts: int, error: str
) -> dict[str, Cell]:
    return {
        "shard": shard,
        "outcome": outcome,
        "patches": patches,
        "seconds": seconds,
        "attempts": attempts,
        "error": error,
    }


def _short(error: str) -> str:
    return error if len(error) <= _ERROR_LENGTH else error[: _ERROR_LENGTH - 1] + "…"
