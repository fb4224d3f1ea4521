"""What a store tells of its last run while that lives: the record as it stands, and how far a stage is."""

import json
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from infra.errors import StoreError
from infra.storage import StorePaths


@dataclass(frozen=True, slots=True)
class LiveStage:
    """How far a run's stage is, when that was last written down."""

    run_id: str
    stage: str
    done: int
    """Shards with an outcome, or epochs, of those that this run has to do."""
    total: int
    patches: int
    seconds: float
    """Since the stage began."""
    written: float
    """Seconds since 1970, by the driver's clock."""

    @property
    def patches_per_second(self) -> float:
        """Patches a second since the stage began."""
        return self.patches / self.seconds if self.seconds else 0.0

    @property
    def seconds_left(self) -> float | None:
        """Time left if the rest goes as fast; None as long as nothing is done."""
        return self.seconds / self.done * (self.total - self.done) if self.done else None


def live_record(paths: StorePaths) -> dict[str, Any] | None:
    """Return the record of the last run, finished or not; None where there was none.

    Raises:
        StoreError: It is damaged.
    """
    return _read(live_path(paths))


def live_stage(paths: StorePaths, run_id: str) -> LiveStage | None:
    """Return how far the stage is that a run is at; None where it has not begun one, or another version runs it.

    Raises:
        StoreError: What tells it is damaged.
    """
    live = _read(progress_path(paths))
    if live is None or live.get("run_id") != run_id or live.keys() != {known.name for known in fields(LiveStage)}:
        return None
    return LiveStage(**live)


def _read(path: Path) -> dict[str, Any] | None:
    if not path.exists():
        return None
    try:
        found: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(found, dict):
            return found
    except ValueError:
        pass
    raise StoreError(f"{path} is damaged: remove it, the next run writes it anew")


def live_path(paths: StorePaths) -> Path:
    """Return where the record of the last run lies, JSON."""
    return paths.work / "run.json"


def progress_path(paths: StorePaths) -> Path:
    """Return where the progress of its stage lies, JSON."""
    return paths.work / "progress.json"
