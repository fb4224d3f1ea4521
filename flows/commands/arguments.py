"""Arguments and options that several commands take."""

from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands import completion
from infra.errors import ConfigError

if TYPE_CHECKING:
    from flows.config import RunConfig

RunYaml = Annotated[
    Path, typer.Argument(help="The run's configuration, RUN.yaml.", autocompletion=completion.run_yamls)
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


def refuse_missing(run_yaml: Path) -> None:
    """Refuse a RUN.yaml that is not there, or is a folder, and say which may have been meant.

    Raises:
        ConfigError: So it is.
    """
    if run_yaml.exists() and not run_yaml.is_dir():  # a pipe is none, and can be read all the same
        return
    there = run_yaml if run_yaml.is_dir() else run_yaml.parent
    near = sorted(path for path in there.glob("*.y*ml") if path.is_file()) if there.is_dir() else []
    close = get_close_matches(run_yaml.name, [path.name for path in near], n=1, cutoff=0.5)
    hint = "; docs/run-yaml.md says how to write one"
    if close:
        hint = f": did you mean {there / close[0]}?"
    elif near:
        hint = f": did you mean {near[0]}?" if len(near) == 1 else f"; there are {', '.join(map(str, near[:5]))}"
    if run_yaml.is_dir():
        raise ConfigError(f"{run_yaml} is a folder, where a RUN.yaml is needed{hint}")
    raise ConfigError(f"there is no file {run_yaml}{hint}")


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
