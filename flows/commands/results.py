"""Commands that turn a store's tables into something to look at."""

import typer

from flows.commands.arguments import Overrides, RunYaml


def report(run_yaml: RunYaml, overrides: Overrides = None) -> None:
    """Write the report anew from the tables, and nothing else."""
    from flows.config import load_config
    from infra.storage import StorePaths
    from tasks.report import write_report

    paths = StorePaths(load_config(run_yaml, overrides).store)
    write_report(paths)
    typer.echo(f"report: {paths.report}")
