"""Write docs/cli.md from the command line's own help: python docs/make_cli.py."""

import inspect
from pathlib import Path

import typer
import typer.main
from typer.core import TyperCommand, TyperGroup

from flows.cli import app


def cli_page() -> str:
    """Return the page: every command, what it does, its arguments and options."""
    root = typer.main.get_group(app)
    context = typer.Context(root, info_name="superscene")
    lines = [
        "# Command line",
        "",
        "Made from the commands' own help by `docs/make_cli.py`.",
        "",
        "Exit codes: 0 done; 1 some shards failed, their reasons are listed; 2 usage, configuration or environment;",
        "130 stopped, and the same command goes on. What is wrong is told in one sentence.",
        "",
    ]
    for command, of in _commands(root, context):
        lines += _section(command, of)
    return "\n".join(lines)


def _commands(group: TyperGroup, context: typer.Context) -> list[tuple[TyperCommand, typer.Context]]:
    """Return every command below a group, in the order of its help, those of its groups after them."""
    found: list[tuple[TyperCommand, typer.Context]] = []
    groups: list[tuple[TyperGroup, typer.Context]] = []
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if command is None or command.hidden:
            continue
        below = typer.Context(command, info_name=name, parent=context)
        if isinstance(command, TyperGroup):
            groups.append((command, below))
        elif isinstance(command, TyperCommand):
            found.append((command, below))
    for subgroup, below in groups:
        found += _commands(subgroup, below)
    return found


def _section(command: TyperCommand, context: typer.Context) -> list[str]:
    usage = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    lines = [f"## {context.command_path}", "", f"`{usage}`", "", inspect.cleandoc(command.help or ""), ""]
    records = [parameter.get_help_record(context) for parameter in command.params if parameter.name != "help"]
    if rows := [record for record in records if record is not None]:
        lines += [
            "| argument, option | |",
            "|---|---|",
            *(f"| `{_cell(name)}` | {_shown(text)} |" for name, text in rows),
            "",
        ]
    return lines


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")


def _shown(text: str) -> str:
    return _cell(text).replace("[", "\\[").replace("<", "&lt;")


if __name__ == "__main__":
    Path(__file__).with_name("cli.md").write_text(cli_page(), encoding="utf-8")
