"""What is wrong with a file or a store that a command is given, and which one may have been meant."""

import re
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import islice
from pathlib import Path

from flows.commands.completion import is_store
from infra.errors import ConfigError

_MOST = 200
"""Entries of a folder that are looked at."""

_SHOWN = 5
"""Names that a message lists."""


def refuse_missing(run_yaml: Path) -> None:
    """Refuse a RUN.yaml that is not there, or is a folder.

    Raises:
        ConfigError: So it is; the message says which may have been meant.
    """
    if run_yaml.exists() and not run_yaml.is_dir():  # a pipe is no file, and can be read all the same
        return
    folder = run_yaml if run_yaml.is_dir() else run_yaml.parent
    near = [path for path in _entries(folder) if path.suffix in {".yaml", ".yml"} and path.is_file()]
    hint = _nearest(run_yaml, near) or "; docs/run-yaml.md says how to write one"
    if run_yaml.is_dir():
        raise ConfigError(f"{run_yaml} is a folder, where a RUN.yaml is needed{hint}")
    raise ConfigError(f"there is no file {run_yaml}{hint}")


def refuse_no_store(store: Path) -> None:
    """Refuse a place of this machine that holds no store; what lies on object storage is asked by what reads it.

    Raises:
        ConfigError: So it is; the message says which may have been meant.
    """
    from infra.object_store import ObjectPath  # takes a third of the time of `superscene --help`

    if isinstance(store, ObjectPath) or is_store(store):
        return
    if slash := re.match(r"(s3|gs|file):/(?!/)", str(store), re.IGNORECASE):
        scheme = slash[1].lower()
        raise ConfigError(f"there is no folder {store}: did you mean {scheme}://{str(store)[slash.end() :]}?")
    if store.is_file():
        raise ConfigError(f"{store} is a file, where a store's folder is needed{_store_of(store)}")
    if not store.exists():
        folders = [path for path in _entries(store.parent) if path.is_dir()]
        near = [path for path in folders if is_store(path)] or folders
        raise ConfigError(f"there is no folder {store}{_nearest(store, near) or _how()}")
    within = [path for path in _entries(store) if is_store(path)]
    above = [path for path in list(store.absolute().parents)[:2] if is_store(path)]
    hint = _nearest(store, [*within, *above]) or _how()
    raise ConfigError(f"{store} holds no run, and no tables{hint}")


def _how() -> str:
    return ": `superscene run RUN.yaml` makes a store, where its `store:` says"


def _store_of(file: Path) -> str:
    """Return the store that a RUN.yaml names, as a hint."""
    if file.suffix not in {".yaml", ".yml"}:
        return ""
    named = re.search(r"^store:[ \t]*([^\s#]+)", file.read_text(encoding="utf-8", errors="replace"), re.MULTILINE)
    return f": {file} names {named[1]}" if named else ""


def _nearest(asked: Path, near: Sequence[Path]) -> str:
    """Return a hint: the one of a like name, else the only one, else some."""
    names = {path.name.casefold(): path for path in near}
    close = get_close_matches(asked.name.casefold(), names, n=1, cutoff=0.75)
    if close:
        return f": did you mean {names[close[0]]}?"
    if len(near) == 1:
        return f": did you mean {near[0]}?"
    return f"; there are {', '.join(map(str, near[:_SHOWN]))}" if near else ""


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(islice(folder.iterdir(), _MOST))
    except OSError:
        return []
