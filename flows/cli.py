"""The command line. Exit codes: 0 done; 1 some shards failed; 2 usage, configuration or environment."""

import logging
import os
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from types import MappingProxyType

import typer

from flows.commands import results, runs, stores, tools, weights
from flows.commands.output import say
from infra import logs
from infra.errors import IncompleteRunError, PipelineError

# Nothing is reported to the makers of the libraries, and a run's own words are not drowned in theirs.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # a busy machine needs more than 20
for _worker in ("EventsWorker", "APILogWorker"):  # Prefect's own threads, which that level does not reach
    logging.getLogger(_worker).setLevel(logging.CRITICAL)

COMMANDS: Mapping[str, Callable[..., None]] = MappingProxyType(
    {
        "run": runs.run,
        "ingest": runs.ingest,
        "train": runs.train,
        "train-sr": runs.train_sr,
        "predict": runs.predict,
        "explain": runs.explain,
        "reliability": runs.reliability,
        "evaluate": runs.evaluate,
        "report": results.report,
        "export": results.export,
        "serve": results.serve,
        "demo": runs.demo,
        "synth": tools.synth,
        "super-resolve": tools.super_resolve,
        "plan": tools.plan,
        "status": stores.status,
        "sql": stores.sql,
        "doctor": tools.doctor,
    }
)
"""Every command by name, in the order of `superscene --help`."""

app = typer.Typer(
    name="superscene",
    help="Turns a satellite archive into tables: super-resolution, land cover, explanations.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
for _name, _command in COMMANDS.items():
    app.command(_name)(_command)
app.add_typer(weights.app, name="weights")


def main() -> None:
    """Run the command line; the entry point of `superscene`."""
    with plain_errors():
        logs.configure()
        app()


@contextmanager
def plain_errors() -> Iterator[None]:
    """Turn the project's errors into one sentence and an exit code, never a traceback."""
    try:
        yield
    except IncompleteRunError as error:
        words, code = str(error), 1
    except PipelineError as error:
        words, code = f"superscene: {error}", 2
    except KeyboardInterrupt:
        words, code = "superscene: stopped; finished shards are kept, the same command goes on from here", 130
    else:
        return
    if logs.settings() is None:
        say(words)  # out here the error and what it holds are gone
    else:
        logs.events.error("%s", words)
    sys.exit(code)
