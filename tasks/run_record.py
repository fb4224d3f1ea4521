"""The record of a run: what it was asked, what it did, how fast; one row of tables/runs."""

import json
import platform
import shutil
import subprocess
import time
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any, Literal

import pyarrow as pa

from infra.storage import StorePaths, write_text
from infra.tables import RUNS, publish, read_file
from tasks.ingest import IngestCounts
from tasks.live_run import LiveStage, live_path, progress_path
from tasks.stage import Progress, ShardFailure, StageReport, both_attempts

_LIBRARIES = ("superscene", "torch", "ray", "prefect", "zarr", "pyarrow", "timm", "rasterio", "numpy")

RUN_ID = "%Y%m%dT%H%M%S%fZ"
"""How a run's id is made of its beginning, UTC."""

_LIVE_SECONDS = 5.0
"""How often a stage's progress is written at most, for `status`."""


@dataclass(slots=True)
class RunRecord:
    """One run as it goes; `status` reads its file while the run lives, analysts its row afterwards."""

    paths: StorePaths
    run_yaml: str
    """The configuration, JSON."""
    started: datetime
    run_id: str = ""
    startup_seconds: float = 0.0
    """Seconds from the command to the beginning of the first stage."""
    counts: IngestCounts = field(default_factory=lambda: IngestCounts(0, 0, 0, 0))
    stages: list[StageReport] = field(default_factory=list)
    configs: list[str] = field(default_factory=list)
    """Configs of the tables that the run published."""
    outputs: list[dict[str, Any]] = field(default_factory=list)
    """Title, stage, config and wanted shards of every parts folder that the run fills, for `status`."""
    notes: list[str] = field(default_factory=list)
    """What a person should know of the run that is no failure."""

    task_began: int = 0
    """Number of stages when the task began that now runs: a retry of it goes through its stages again."""

    def __post_init__(self) -> None:
        self.run_id = self.run_id or self.started.strftime(RUN_ID)

    @property
    def failures(self) -> list[ShardFailure]:
        """Shards that failed in any stage."""
        return [failure for stage in self.stages for failure in stage.failures]

    @property
    def complete(self) -> bool:
        """Whether no shard failed."""
        return not self.failures

    def add(self, report: StageReport) -> None:
        """Note a finished stage, and write the record down."""
        self.count(report)
        self.save("running")

    def watching(self, tell: Progress) -> Progress:
        """Return a progress that tells another, and writes down how far the stage is, for `status`."""
        began = told = time.monotonic()

        def both(stage: str, done: int, total: int, patches: int) -> None:
            nonlocal told
            tell(stage, done, total, patches)
            now = time.monotonic()
            if done == 0 or done == total or now - told > _LIVE_SECONDS:
                told = now
                live = LiveStage(self.run_id, stage, done, total, patches, now - began, time.time())
                write_text(progress_path(self.paths), json.dumps(asdict(live)))

        return both

    def begin_task(self) -> None:
        """Note that a task begins, which may be retried: its stages are of one title each."""
        self.task_began = len(self.stages)

    def count(self, report: StageReport) -> None:
        """Note how a stage went, whole or not; one that a retried task went through before is one stage, not two."""
        for place in range(self.task_began, len(self.stages)):
            if self.stages[place].stage == report.stage:
                self.stages[place] = both_attempts(self.stages[place], report)
                return
        self.stages.append(report)

    def note(self, text: str) -> None:
        """Keep a note, once."""
        if text not in self.notes:
            self.notes.append(text)

    def save(self, status: Literal["running", "complete", "incomplete", "stopped"]) -> None:
        """Write the live record."""
        write_text(live_path(self.paths), json.dumps({"status": status, **self._row(None)}, default=str))

    def publish(self) -> None:
        """Write the run's row to tables/runs."""
        status: Literal["complete", "incomplete"] = "complete" if self.complete else "incomplete"
        row = {**self._row(datetime.now(UTC)), "status": status}
        row.pop("outputs")
        rows = pa.Table.from_pylist([row], schema=RUNS)
        publish(self.paths.table("runs"), rows, RUNS, ["run_id"], file_stem=f"run-{self.run_id}")
        self.save(status)

    def _row(self, ended: datetime | None) -> dict[str, Any]:
        return {
            "run_id": self.run_id,
            "started": self.started,
            "ended": ended,
            "configs": self.configs,
            "outputs": self.outputs,
            "run_yaml": self.run_yaml,
            "versions": json.dumps(
                {"python": platform.python_version(), **{name: version(name) for name in _LIBRARIES}}
            ),
            "git_commit": git_commit(),
            "startup_seconds": self.startup_seconds,
            "inputs": self.counts.inputs,
            "patches": self.counts.patches,
            "quarantined": self.counts.quarantined,
            "absent": self.counts.absent,
            "stages": [
                {
                    "stage": s.stage,
                    "done": s.done,
                    "skipped": s.skipped,
                    "failed": len(s.failures),
                    "patches": s.patches,
                    "seconds": s.seconds,
                    "patches_per_second": s.patches_per_second,
                    "device": None if s.devices is None else s.devices.kind,
                    "devices": 0.0 if s.devices is None else s.devices.count,
                    "workers": 0 if s.devices is None else s.devices.workers,
                    "device_hours": s.device_hours,
                    "busy_device_hours": s.busy_device_hours,
                }
                for s in self.stages
            ],
        }


def published_configs(paths: StorePaths) -> list[set[str]]:
    """Return the configs that each run published, the last run first."""
    files = sorted(paths.table("runs").glob("run-*.parquet"), reverse=True)
    return [set(read_file(path, ["configs"])["configs"].to_pylist()[0]) for path in files]


def last_scored_run(paths: StorePaths) -> Path | None:
    """Return the file of the newest run that predicted something: what analysts see; else the newest of all."""
    files = sorted(paths.table("runs").glob("run-*.parquet"), reverse=True)
    for path in files:
        (stages,) = read_file(path, ["stages"])["stages"].to_pylist()
        if any(stage["stage"].startswith("predict") for stage in stages):
            return path
    return files[0] if files else None


def scored_configs(paths: StorePaths) -> set[str] | None:
    """Return the configs of that run; None where no run has ended."""
    path = last_scored_run(paths)
    return None if path is None else set(read_file(path, ["configs"])["configs"].to_pylist()[0])


def git_commit() -> str | None:
    """Return the commit of the checkout that this code lies in, None outside one."""
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    git = shutil.which("git")
    if git is None:
        return None
    result = subprocess.run([git, "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, check=False)  # noqa: S603
    return result.stdout.strip() or None
