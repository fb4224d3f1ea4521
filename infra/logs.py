"""Logs for machines and for people: every line tells its run, stage and shard, in the driver and from its workers.

SUPERSCENE_LOG=json writes JSON lines to standard error, SUPERSCENE_LOG=text lines for people, both from the level of
SUPERSCENE_LOG_LEVEL on. Without it the command line says what it always says, and no more. A worker hands its lines to
the driver together with its shard's outcome, so that one stream has all of them; they are in Ray's own file on its
node too, which is where the last words of a killed worker are.

This is the standard library's logging: what a library for JSON lines would save is one formatter of twenty lines.
"""

import json
import logging
import os
import re
import socket
import sys
import traceback
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from copy import copy
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Lock
from types import TracebackType
from typing import Any, Literal, get_args

from infra.errors import ConfigError, IncompleteRunError

Format = Literal["json", "text"]

_PACKAGES = ("superscene", "flows", "tasks", "infra", "sr_models", "classifiers")
"""Our loggers; of other people's, warnings are written."""

_LEVELS = ("DEBUG", "INFO", "WARNING", "ERROR")

_MOST_LINES = 1000
"""Lines that a worker keeps for the driver at most, of one shard."""

_MASK = "***"
_SECRET_NAME = re.compile(
    r"(SECRET|TOKEN|PASSWORD|PASSWD|PASSPHRASE|CREDENTIAL|(API|ACCESS|PRIVATE)_?KEY|(^|_)KEYS?(?![A-Z])|AUTH_STRING)"
    r"(?!.*_FILE$)",
    re.IGNORECASE,
)
"""Variables whose values no line shows."""
_SHORTEST_SECRET = 6
"""Characters; shorter values, such as "true", would blot out words."""
_USER_IN_URL = re.compile(r"(?<=://)[^/\s\"']*@")  # up to the last @, which a password may hold too
_SIGNED = re.compile(
    r"\b((?:X-(?:Amz|Goog)-(?:Signature|Credential|Security-Token)|AWSAccessKeyId|Signature|sig|access_token)=)[^&\s\"'<]+",
    re.IGNORECASE,
)
_HEADER = re.compile(  # `name: value`, `name=value`, and the pairs and mappings that Python shows
    r"\b(authorization|x-amz-security-token|proxy-authorization)"
    r"([\"']?[ \t]*[:=][^\w\n]{0,3}|[\"'],[^\w\n]{0,2})[^\n]+",
    re.IGNORECASE,
)

events = logging.getLogger("superscene")
"""What happens in a run, for whoever reads logs; silent until they are asked for: a terminal has bars and a summary."""
events.setLevel(logging.CRITICAL + 1)


@dataclass(frozen=True, slots=True)
class Context:
    """Where in its work a process is."""

    run: str | None = None
    stage: str | None = None
    shard: int | None = None


@dataclass(frozen=True, slots=True)
class LogSettings:
    """What the environment asks for."""

    format: Format
    level: int


_context = Context()
"""Of this process, its threads included: a driver has one run and one stage at a time, a worker one shard. A context
variable would be empty in the threads that read ahead."""

_settings: LogSettings | None = None
_buffer: "_Buffer | None" = None


def context() -> Context:
    """Return where this process is in its work."""
    return _context


@contextmanager
def bound(*, run: str | None = None, stage: str | None = None, shard: int | None = None) -> Iterator[None]:
    """Let all lines of the block carry what is given, beside what they carry already."""
    global _context  # noqa: PLW0603  # one place of work a process
    before = _context
    given = {"run": run, "stage": stage, "shard": shard}
    _context = replace(before, **{name: value for name, value in given.items() if value is not None})  # type: ignore[arg-type]  # of fields by name
    try:
        yield
    finally:
        _context = before


def settings() -> LogSettings | None:
    """Return what logs were asked for; None: none."""
    return _settings


def configure(environment: Mapping[str, str] = os.environ) -> None:
    """Write logs to standard error as SUPERSCENE_LOG and SUPERSCENE_LOG_LEVEL say; without the former, change nothing.

    Raises:
        ConfigError: One of them has another value than those there are.
    """
    chosen = environment.get("SUPERSCENE_LOG")
    if not chosen:
        return
    level = environment.get("SUPERSCENE_LOG_LEVEL", "INFO").upper()
    if chosen not in get_args(Format):
        raise ConfigError(f"SUPERSCENE_LOG is {chosen!r}: choose json or text, or leave it out")
    if level not in _LEVELS:
        raise ConfigError(f"SUPERSCENE_LOG_LEVEL is {level!r}: choose one of {', '.join(_LEVELS)}")
    _begin(LogSettings("json" if chosen == "json" else "text", logging.getLevelNamesMapping()[level]), [])
    sys.excepthook = _log_uncaught


def collect(asked: LogSettings) -> None:
    """In a worker: write its lines to its standard error, and keep them until `take`."""
    global _buffer  # noqa: PLW0603  # one a process
    _buffer = _Buffer()
    _begin(asked, [_buffer])


def take() -> tuple[logging.LogRecord, ...]:
    """Return the lines that this worker has kept, which are made to be pickled, and keep them no longer."""
    return () if _buffer is None else _buffer.take()


def replay(records: Sequence[logging.LogRecord]) -> None:
    """In the driver: write a worker's lines as they are, with its context, time and node."""
    for record in records:
        logging.getLogger(record.name).handle(record)


@contextmanager
def logged_run(run: str) -> Iterator[None]:
    """Bind a run's id, and tell of its beginning and of how it ended.

    Raises:
        ConfigError: As `configure` does, before the run begins.
    """
    configure()
    with bound(run=run):
        events.info("the run begins")
        outcome, level, why = "complete", logging.INFO, ""
        try:
            yield
        except IncompleteRunError:  # its words are the whole summary
            outcome, level, why = "incomplete", logging.ERROR, ": some shards failed"
            raise
        except Exception as error:
            outcome, level, why = "failed", logging.ERROR, f": {type(error).__name__}: {error}"
            raise
        except BaseException as error:
            outcome, level, why = "stopped", logging.WARNING, f": {type(error).__name__}"
            raise
        finally:
            events.log(level, "the run ends, %s%s", outcome, why, extra=fields(outcome=outcome))


def fields(**values: str | float | None) -> dict[str, dict[str, str | float | None]]:
    """Return the `extra` of a line that has numbers or words of its own, each a field of the JSON."""
    return {"fields": values}


def without_secrets(text: str, environment: Mapping[str, str] = os.environ) -> str:
    """Return text without the values of secret variables, users in URLs, signatures and authorization headers."""
    for name, value in environment.items():
        if len(value) >= _SHORTEST_SECRET and value in text and _SECRET_NAME.search(name):
            text = text.replace(value, _MASK)
    text = _USER_IN_URL.sub(f"{_MASK}@", text)
    text = _SIGNED.sub(rf"\1{_MASK}", text)
    return _HEADER.sub(rf"\1\2{_MASK}", text)


def _begin(asked: LogSettings, handlers: list[logging.Handler]) -> None:
    """Give our loggers, and the root for everybody else's warnings, a stream and some handlers."""
    global _settings  # noqa: PLW0603  # one a process
    _settings = asked
    stream = logging.StreamHandler(sys.stderr)
    stream.setFormatter(_Json() if asked.format == "json" else _Text())
    root = logging.getLogger()
    for name in (None, *_PACKAGES):
        logger = logging.getLogger(name)
        for old in [handler for handler in logger.handlers if handler.get_name() == __name__]:
            logger.removeHandler(old)
        for handler in (stream, *handlers):
            handler.set_name(__name__)
            handler.addFilter(_add_context)
            logger.addHandler(handler)
        if logger is root:
            logger.setLevel(logging.WARNING)
        else:
            logger.setLevel(asked.level)
            logger.propagate = False  # Prefect puts its own console upon the root


def _add_context(record: logging.LogRecord) -> bool:
    """Note where the process is, unless the line comes from a worker that did."""
    if not hasattr(record, "context"):
        record.context = _context
        record.node = socket.gethostname()
    return True


def _exception(record: logging.LogRecord) -> str | None:
    if record.exc_info and record.exc_info[1] is not None:
        return without_secrets("".join(traceback.format_exception(record.exc_info[1])).rstrip())
    return record.exc_text


def _time(record: logging.LogRecord) -> str:
    return datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds").replace("+00:00", "Z")


class _Buffer(logging.Handler):
    """Keeps lines that can be pickled."""

    def __init__(self) -> None:
        super().__init__()
        self._records: list[logging.LogRecord] = []
        self._more = 0
        self._lines_lock = Lock()

    def emit(self, record: logging.LogRecord) -> None:
        kept = copy(record)  # the arguments and the traceback hold whatever they like
        kept.msg, kept.args = without_secrets(record.getMessage()), None
        kept.exc_text, kept.exc_info = _exception(record), None
        with self._lines_lock:
            if len(self._records) < _MOST_LINES:
                self._records.append(kept)
            else:
                self._more += 1

    def take(self) -> tuple[logging.LogRecord, ...]:
        with self._lines_lock:
            if self._more:
                last = copy(self._records[-1])
                last.msg = f"{self._more} further lines of this shard are in Ray's file of the worker"
                last.exc_text = None
                self._records.append(last)
            taken = tuple(self._records)
            self._records, self._more = [], 0
        return taken


class _Json(logging.Formatter):
    """One JSON object a line; what a line has nothing to say of is left out."""

    def format(self, record: logging.LogRecord) -> str:
        where: Context = record.context  # type: ignore[attr-defined]  # by _add_context
        line: dict[str, Any] = {
            "time": _time(record),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": without_secrets(record.getMessage()),
            "run": where.run,
            "stage": where.stage,
            "shard": where.shard,
            "node": record.node,  # type: ignore[attr-defined]
            "pid": record.process,
            **getattr(record, "fields", {}),
            "exception": _exception(record),
        }
        return json.dumps({name: value for name, value in line.items() if value is not None}, ensure_ascii=False)


class _Text(logging.Formatter):
    """One line, the context before the message; a traceback is indented below it."""

    def format(self, record: logging.LogRecord) -> str:
        where: Context = record.context  # type: ignore[attr-defined]  # by _add_context
        shard = None if where.shard is None else f"shard {where.shard}"
        told = " / ".join(part for part in (where.run, where.stage, shard) if part is not None)
        text = without_secrets(record.getMessage())
        if exception := _exception(record):
            text += f"\n{exception}"
        head = f"{_time(record)} {record.levelname:<7} {told or record.name}: "
        return head + text.replace("\n", "\n    ")


def _log_uncaught(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
    events.critical("an error that nobody caught", exc_info=(kind, error, trace))
