"""Arguments and options that several commands take."""

from pathlib import Path
from typing import Annotated

import typer

from infra.errors import ConfigError

RunYaml = Annotated[Path, typer.Argument(help="The run's configuration, RUN.yaml.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: --set train.epochs=3.")]

Address = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_ADDRESS", help="The Ray cluster that does the work; else this machine."),
]


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


Store = Annotated[Path, typer.Argument(help="A store: a folder, or its URL.", parser=store_place, metavar="STORE")]
