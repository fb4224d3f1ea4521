"""Commands that turn a store's tables into something to look at."""

import typer

from flows.commands.arguments import AsJson, Overrides, RunYaml, load
from flows.commands.output import tell_json


def report(run_yaml: RunYaml, overrides: Overrides = None, as_json: AsJson = False) -> None:  # noqa: FBT002  # typer
    """Write the report anew from the tables, and nothing else."""
    from infra.storage import StorePaths
    from tasks.report import write_report

    paths = StorePaths(load(run_yaml, overrides).store)
    write_report(paths)
    if as_json:
        tell_json({"report": paths.report})
    else:
        typer.echo(f"report: {paths.report}")
