"""Where a run shows how far it is: bars in a terminal, progress artifacts in Prefect, both or neither."""

import logging
import re
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote
from uuid import UUID

from prefect.artifacts import (
    create_link_artifact,
    create_markdown_artifact,
    create_progress_artifact,
    create_table_artifact,
    update_progress_artifact,
)
from prefect.context import FlowRunContext
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

from infra import logs
from infra.object_store import ObjectPath
from infra.storage import StorePaths
from tasks.shard_outcomes import Cell
from tasks.stage import Progress as StageProgress
from tasks.stage import silent

if TYPE_CHECKING:
    from tasks.train_sr import SrProgress  # imports Ray Train, which the other commands have no use for

_ARTIFACT_SECONDS = 5.0
"""Artifacts are calls to a server: this often at most."""

logger = logging.getLogger(__name__)

_terminal: ContextVar[StageProgress] = ContextVar("terminal", default=silent)


@contextmanager
def bars(unit: str = "patches") -> Iterator[None]:
    """Show a bar for every stage on standard error while the block runs; plain lines where that is no terminal.

    Args:
        unit: What a stage counts beside its shards.
    """
    console = Console(stderr=True)
    progress = Progress(
        TextColumn("{task.description:<32}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    lines = silent if logs.settings() else partial(_lines, unit)  # the log has lines of its own
    tell = _Bars(progress, unit) if console.is_terminal else lines
    token = _terminal.set(tell)
    try:
        with progress:
            yield
    finally:
        _terminal.reset(token)


class _Bars:
    def __init__(self, progress: Progress, unit: str) -> None:
        self._progress = progress
        self._unit = unit
        self._tasks: dict[str, tuple[TaskID, float]] = {}

    def __call__(self, stage: str, done: int, total: int, patches: int) -> None:
        if stage not in self._tasks:
            self._tasks[stage] = (self._progress.add_task(stage, total=total, rate=""), time.monotonic())
        task, started = self._tasks[stage]
        seconds = time.monotonic() - started
        rate = f"{patches / seconds:8.1f} {self._unit}/s" if patches and seconds else ""
        self._progress.update(task, completed=done, total=max(total, 1) if total else 1, rate=rate)
        if not total:
            self._progress.update(task, completed=1, rate="done before")


@contextmanager
def training_progress(title: str, steps: int) -> Iterator["Callable[[SrProgress], None]"]:
    """Show the steps, the loss, the validation and the time left of a fit; a line a validation without a terminal.

    Args:
        title: What is fitted.
        steps: Steps of the whole run.

    Yields:
        What to call with how far the run is.
    """
    bar = Progress(
        TextColumn("{task.description:<24}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[found]}"),
        TimeRemainingColumn(),
        console=_console(),
        disable=not _console().is_terminal,
    )
    task = bar.add_task(title, total=steps, found="")
    shown: list[SrProgress] = []

    def tell(now: "SrProgress") -> None:
        found = (
            "" if now.gain_db is None else f"loss {now.loss:.4f}, {now.psnr_db:.2f} dB ({now.gain_db:+.2f} on bicubic)"
        )
        bar.update(task, completed=now.step, found=found)
        fresh = not shown or shown[-1].gain_db != now.gain_db
        if bar.disable and _terminal.get() is not silent and fresh:
            shown[:] = [now]
            print(f"{title}: step {now.step} of {steps} {found}", file=sys.stderr, flush=True)  # noqa: T201  # as `_lines`

    with bar:
        yield tell


def _console() -> Console:
    return Console(stderr=True)


def _lines(unit: str, stage: str, done: int, total: int, patches: int) -> None:
    if total and done in {0, total}:
        what = f"{total} to do" if not done else f"{total} done, {patches} {unit}"
        print(f"{stage}: {what}", file=sys.stderr, flush=True)  # noqa: T201  # the terminal is this function's purpose


def terminal_progress() -> StageProgress:
    """Return the terminal, if the CLI set one, for work outside the flow."""
    return _terminal.get()


def stage_progress() -> StageProgress:
    """Return who is told: the terminal, if the CLI set one, and Prefect, inside a flow run."""
    terminal = _terminal.get()
    if FlowRunContext.get() is None:
        return terminal
    artifact = _Artifact()

    def both(stage: str, done: int, total: int, patches: int) -> None:
        terminal(stage, done, total, patches)
        artifact.tell(stage, done, total)

    return both


class _Artifact:
    """A progress artifact a stage, updated now and then and at its end."""

    def __init__(self) -> None:
        self._ids: dict[str, UUID] = {}
        self._last = 0.0
        self._broken = False

    def tell(self, stage: str, done: int, total: int) -> None:
        """Update the stage's artifact; a server that does not answer costs the artifacts, never the run."""
        if not self._broken:
            try:
                self._tell(stage, done, total)
            except Exception as error:  # noqa: BLE001  # whatever the server's client raises
                self._broken = True
                logger.warning("no more progress artifacts: %s: %s", type(error).__name__, error)

    def _tell(self, stage: str, done: int, total: int) -> None:
        percent = 100.0 * done / total if total else 100.0
        if stage not in self._ids:
            self._ids[stage] = _created(create_progress_artifact(progress=percent, description=stage))
        elif done == total or time.monotonic() - self._last > _ARTIFACT_SECONDS:
            update_progress_artifact(self._ids[stage], progress=percent)
        else:
            return
        self._last = time.monotonic()


def shards_artifact(stage: str, description: str, rows: list[dict[str, Cell]]) -> None:
    """Leave the table of a stage's shards in Prefect, under a key of the stage's own; outside a flow run, do nothing.

    Args:
        stage: The stage's title.
        description: What all shards came to.
        rows: Some shards, a page at most.
    """
    if FlowRunContext.get() is None:
        return
    key = "shards-" + re.sub(r"[^a-z0-9]+", "-", stage.lower()).strip("-")
    with _artifacts(f"the table of {stage}"):
        create_table_artifact(table=rows, key=key, description=description)


def run_artifacts(markdown: str, paths: StorePaths, *, report: bool) -> None:
    """Leave a run's summary in Prefect, and links to its store and its report.

    Args:
        markdown: The summary.
        paths: The store.
        report: Whether the run wrote the report.
    """
    with _artifacts("the summary"):
        create_markdown_artifact(markdown=markdown, key="archive-summary", description=f"superscene, {paths.root}")
        create_link_artifact(link=link_to(paths.root), link_text=str(paths.root), key="archive-store")
        if report:
            create_link_artifact(link=link_to(paths.report), link_text=str(paths.report), key="archive-report")


def link_to(path: Path) -> str:
    """Return the URL of a file or folder: file://, s3:// or gs://, which never holds credentials."""
    if not isinstance(path, ObjectPath):
        return path.resolve().as_uri()
    scheme, _, rest = str(path).partition("://")
    return f"{scheme}://{quote(rest, safe='/=+')}"


@contextmanager
def _artifacts(what: str) -> Iterator[None]:
    """Let a server that does not answer cost the artifacts, never the run."""
    try:
        yield
    except Exception as error:  # noqa: BLE001  # whatever the server's client raises
        logger.warning("no artifact of %s: %s: %s", what, type(error).__name__, error)


def _created(artifact: object) -> UUID:
    if not isinstance(artifact, UUID):
        raise TypeError(f"Prefect returned {type(artifact).__name__}, not an artifact's id")
    return artifact
