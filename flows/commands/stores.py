"""Commands that ask a store."""

import csv
import sys
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Annotated

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table

from flows.commands.arguments import AsJson, Store
from flows.commands.documents import scores_document, sql_document, status_document
from flows.commands.output import cell, exact, plain, say, show_rows, tell_json
from flows.commands.places import refuse_no_store

if TYPE_CHECKING:
    from tasks.evaluate_where import Selection
    from tasks.live_run import LiveStage

_FRAMED = 120  # columns of a terminal from which on a table of ten numbers can have frames


def status(store: Store, as_json: AsJson = False) -> None:  # noqa: FBT002  # typer
    """Show, per stage of the last run, the shards done, missing and failed, and the inputs in quarantine."""
    refuse_no_store(store)
    from infra.storage import StorePaths
    from tasks.status import store_status

    found = store_status(StorePaths(store))
    if as_json:
        tell_json(status_document(found))
        return
    console = Console()
    console.print(f"run {found.run_id}: {found.state}; {found.patches} patches, {found.quarantined} in quarantine")
    if found.live is not None:
        console.print(_how_far(found.live), markup=False, highlight=False)
    table = Table("stage", "config", "done", "missing", "failed", box=None)
    for stage in found.stages:
        table.add_row(plain(stage.title), stage.config, str(stage.done), str(stage.missing), str(len(stage.failures)))
    console.print(table)
    for stage in found.stages:
        for shard, error in stage.failures.items():
            console.print(f"{stage.title}: shard {shard} failed: {error}", markup=False, highlight=False)


def show_scores(found: "Selection", *, as_json: bool) -> None:
    """Show the scores of some patches: tables for a person, rows of tables/metrics for a program, or JSON."""
    if as_json:
        tell_json(scores_document(found))
        return
    console = Console()
    if console.is_terminal:
        for chosen in found.tables():
            # Ten columns: in a narrow terminal, frames would take the place of digits.
            table = Table() if console.width >= _FRAMED else Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
            table.title, table.title_justify = chosen.title, "left"
            for column in chosen.columns:
                table.add_column(column, overflow="fold")
            for row in chosen.rows:
                table.add_row(*map(plain, row))
            console.print(table)
    else:  # for other programs: rows of tables/metrics, tab-separated
        columns = found.metrics.column_names
        rows = ([exact(value) for value in row.values()] for row in found.metrics.to_pylist())
        csv.writer(sys.stdout, dialect="excel-tab").writerows([columns, *rows])
    say(f"{found.n} patches meet the condition")


def _how_far(live: "LiveStage") -> str:
    ago = max(0.0, time.time() - live.written)
    text = f"{live.stage}: {live.done} of {live.total} in {timedelta(seconds=round(live.seconds))}"
    if live.patches:
        text += f", {live.patches_per_second:.1f} patches/s"
    if live.seconds_left is not None:
        text += f", {timedelta(seconds=round(max(0.0, live.seconds_left - ago)))} left"
    return f"{text} (told {ago:.0f} s ago)"


def sql(
    store: Store,
    statement: Annotated[str, typer.Argument(help="One SELECT.")],
    all_configs: Annotated[bool, typer.Option("--all-configs", help="Show rows of every run.")] = False,  # noqa: FBT002  # typer
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Ask the tables in SQL; every table is a view, and nothing can be written."""
    refuse_no_store(store)
    from infra.query import query
    from infra.storage import StorePaths
    from tasks.run_record import scored_configs

    paths = StorePaths(store)
    relation = query(paths.tables, None if all_configs else scored_configs(paths), statement)
    if as_json:
        tell_json(sql_document(relation))
        return
    rows = [[cell(value) for value in row] for row in relation.fetchall()]
    if show_rows(relation.columns, rows):
        say(f"{len(rows)} rows")
