"""The last run of a store, as its row of tables/runs tells it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any

import yaml

from infra.errors import StoreError
from infra.storage import StorePaths
from infra.tables import read_file
from tasks.run_record import last_scored_run


@dataclass(frozen=True, slots=True)
class StageRow:
    """One stage of the run; shards, patches and seconds."""

    stage: str
    done: int
    skipped: int
    failed: int
    patches: int
    seconds: float
    patches_per_second: float
    device: str | None = None
    """cpu or the kind of GPU; None where nothing was done, and in runs of earlier versions, here and below."""
    devices: float | None = None
    """Cores or GPUs that the stage held."""
    workers: int | None = None
    device_hours: float | None = None
    """Hours of those, from the stage's start to its end."""
    busy_device_hours: float | None = None
    """Those that went into the shards that were done."""


@dataclass(frozen=True, slots=True)
class LastRun:
    """The last row of tables/runs."""

    run_id: str
    started: datetime
    ended: datetime | None
    status: str
    configs: frozenset[str]
    settings: Mapping[str, Any]
    """RUN.yaml."""
    versions: Mapping[str, str]
    git_commit: str | None
    startup_seconds: float
    inputs: int
    patches: int
    quarantined: int
    absent: int
    stages: tuple[StageRow, ...]

    @property
    def sr(self) -> tuple[str, ...]:
        """SR models, in the order of RUN.yaml."""
        return tuple(self.settings.get("sr", ()))

    @property
    def classifiers(self) -> tuple[str, ...]:
        """Classifiers, in the order of RUN.yaml."""
        return tuple(self.settings.get("classifiers", ()))

    @property
    def max_dn(self) -> int:
        """DN of 1 in the stretch."""
        return int(self.settings.get("sr_input_max_dn", 3000))

    @property
    def pending(self) -> int:
        """Inputs that are in no table yet, because their shard failed."""
        return self.inputs - self.patches - self.quarantined - self.absent

    @property
    def settings_yaml(self) -> str:
        """RUN.yaml as text."""
        return yaml.safe_dump(dict(self.settings), sort_keys=False, allow_unicode=True)


def last_run(paths: StorePaths) -> LastRun:
    """Return the last run of a store that predicted something, else the last.

    Raises:
        StoreError: No run has ended there, or a newer superscene wrote its row.
    """
    path = last_scored_run(paths)
    if path is None:
        raise StoreError(f"{paths.root} holds no finished run: there is nothing to report; run the flow first")
    row = read_file(path).to_pylist()[0]
    settings = json.loads(row.pop("run_yaml"))
    versions = json.loads(row.pop("versions"))
    stages = tuple(StageRow(**stage) for stage in row.pop("stages"))
    row["configs"] = frozenset(row["configs"])
    return LastRun(**row, settings=settings, versions=versions, stages=stages)
