"""Arguments and options that several commands take."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import completion
from flows.commands.places import refuse_missing
from infra.errors import ConfigError

if TYPE_CHECKING:
    from flows.config import RunConfig

RunYaml = Annotated[
    Path, typer.Argument(help="The run's configuration.", metavar="RUN.yaml", autocompletion=completion.run_yamls)
]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: --set train.epochs=3.")]

Address = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_ADDRESS", help="The Ray cluster that does the work; else this machine."),
]

AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON document; docs/json.md describes it.")]


def load(run_yaml: Path, overrides: list[str] | None) -> "RunConfig":
    """Read a RUN.yaml; a file that is not there is told before the libraries are loaded.

    Raises:
        ConfigError: It is not there, or as `flows.config.load_config` says.
    """
    refuse_missing(run_yaml)
    from flows.config import load_config

    return load_config(run_yaml, overrides)


def store_place(text: str) -> Path:
    """Return where a store lies.

    Raises:
        BadParameter: The text is a URL of something else than object storage.
    """
    from infra.storage import location

    try:
        return location(text)
    except ConfigError as error:  # a plain ValueError would have the text repeated, a password too
        raise typer.BadParameter(str(error)) from None


Store = Annotated[
    Path,
    typer.Argument(
        help="A store: a folder, or its URL.", parser=store_place, metavar="STORE", autocompletion=completion.stores
    ),
]
