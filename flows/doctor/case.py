"""What the doctor examines, and how it says what it found."""

import os
import re
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from infra.errors import ConfigError
from infra.object_store import ObjectPath
from infra.storage import location

State = Literal["ok", "warn", "fail"]

_LABEL_TABLE = "labels.csv"  # as flows.config has it, which imports torch


@dataclass(frozen=True, slots=True)
class Finding:
    """What one look found."""

    state: State
    """warn: a run may be slow, or end before it is done; fail: it cannot work."""
    found: str


def ok(found: str) -> Finding:
    """Return that nothing is wrong."""
    return Finding("ok", found)


def warn(found: str) -> Finding:
    """Return that a run may suffer."""
    return Finding("warn", found)


def fail(found: str) -> Finding:
    """Return that a run cannot work."""
    return Finding("fail", found)


@dataclass(frozen=True, slots=True)
class Case:
    """A machine, and what a run is to use of it."""

    run_yaml: Path | None = None
    overrides: tuple[str, ...] = ()
    store: Path | None = None
    layout: str | None = None
    archive: Path | None = None
    """The archive's root."""
    label_table: str = _LABEL_TABLE
    """Of the layout image-table, below the root."""
    sr: tuple[str, ...] = ()
    classifiers: tuple[str, ...] = ()
    """Those whose backbone starts from a weight file."""
    weights: Mapping[str, str] = field(default_factory=dict)
    """Files that RUN.yaml names, by model."""
    sr_options: Mapping[str, Mapping[str, object]] = field(default_factory=dict)
    """Options of SR models that RUN.yaml names, on which it may depend what files they need."""
    actors: int | None = None
    gpus: float | None = None
    """GPUs an actor that RUN.yaml insists on."""
    system: Path = Path("/")
    """Where proc, sys and dev are."""

    @property
    def local_store(self) -> Path | None:
        """The store where it is a folder of this machine."""
        return None if isinstance(self.store, ObjectPath) else self.store

    @property
    def local_archive(self) -> Path | None:
        """The archive's root where it is a folder, or a tar archive, of this machine."""
        return None if isinstance(self.archive, ObjectPath) else self.archive

    @property
    def places(self) -> dict[str, Path]:
        """Every place of this machine that RUN.yaml, or the command, names, by where it is named."""
        named = {"store": self.local_store, "archive.root": self.local_archive}
        found = {name: path for name, path in named.items() if path is not None}
        return {**found, **{f"weights.{name}": Path(file).expanduser() for name, file in self.weights.items()}}

    def text(self, path: str) -> str | None:
        """Return what a file of the system says, `proc/mounts` for example; None where it has none."""
        try:
            return (self.system / path).read_text(encoding="utf-8", errors="replace")
        except OSError:
            return None


@dataclass(frozen=True, slots=True)
class Check:
    """One thing that is looked at."""

    name: str
    looks_at: str
    """What is looked at, and what would be wrong; one sentence of the documentation."""
    advice: str
    """What to do where something is wrong."""
    look: Callable[[Case], Finding | None]
    """None: there is nothing to look at, such as the archive's folder where no archive is named."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """What a check found."""

    name: str
    state: State
    found: str
    advice: str
    """Empty where nothing is wrong."""


def case_of(target: str | None, overrides: list[str] | None = None) -> Case:
    """Return what is to be examined.

    Args:
        target: A RUN.yaml, a store or its URL, or None: the machine alone.
        overrides: `key=value` for RUN.yaml.

    Raises:
        ConfigError: There is no such file, it is not YAML, or the URL is of another kind than a store's.
    """
    place = None if target is None else location(target)
    if place is not None and (isinstance(place, ObjectPath) or place.is_dir() or not _like_yaml(place)):
        if overrides:
            raise ConfigError(f"--set changes settings of a RUN.yaml, and {place} is a store: leave it out")
        return Case(store=place)
    if place is None:
        if overrides:
            raise ConfigError("--set changes settings of a RUN.yaml: say which, `superscene doctor RUN.yaml --set …`")
        return Case()
    return _case_of_settings(place, overrides)


def _like_yaml(path: Path) -> bool:
    return path.is_file() or path.suffix.lower() in {".yaml", ".yml"}


def _case_of_settings(run_yaml: Path, overrides: list[str] | None) -> Case:
    from flows.config import RunConfig, read_settings

    settings = read_settings(run_yaml, overrides)
    default = RunConfig.model_fields
    archive, resources = _section(settings, "archive"), _section(settings, "resources")
    actors, gpus = resources.get("actors"), resources.get("gpus_per_actor")
    options = _section(settings, "sr_options")
    return Case(
        run_yaml=run_yaml,
        overrides=tuple(overrides or ()),
        store=_place(settings.get("store")),
        layout=_text(archive.get("layout")),
        archive=_place(archive.get("root")),
        label_table=_text(archive.get("label_table")) or _LABEL_TABLE,
        sr=_names(settings.get("sr", default["sr"].default)),
        classifiers=_started_from_files(settings, _names(settings.get("classifiers", default["classifiers"].default))),
        weights={str(name): str(file) for name, file in _section(settings, "weights").items()},
        sr_options={name: _section(options, name) for name in options},
        actors=actors if isinstance(actors, int) else None,
        gpus=float(gpus) if isinstance(gpus, int | float) else None,
    )


def _started_from_files(settings: Mapping[str, object], names: Sequence[str]) -> tuple[str, ...]:
    """Return the networks, of classifiers by these names, whose backbone starts from a weight file."""
    if settings.get("models_from") is not None:
        return ()
    start = _section(settings, "train").get("backbone", "weights")
    variants, networks = _section(settings, "variants"), []
    for name in names:
        variant = _section(variants, name)
        if _section(variant, "train").get("backbone", start) == "weights" and name not in _section(settings, "trained"):
            networks.append(str(variant.get("network", name)))
    return tuple(dict.fromkeys(networks))


def _section(settings: Mapping[str, object], name: str) -> dict[str, object]:
    """Return a section of settings; whatever else stands there is for the check `RUN.yaml` to tell."""
    found = settings.get(name)
    return {str(key): value for key, value in found.items()} if isinstance(found, dict) else {}


def _names(value: object) -> tuple[str, ...]:
    return tuple(map(str, value)) if isinstance(value, list | tuple) else ()


def _text(value: object) -> str | None:
    return value if isinstance(value, str) else None


def _place(value: object) -> Path | None:
    try:
        return location(value).expanduser() if isinstance(value, str) else None
    except ConfigError:
        return None


def scratch() -> Path:
    """Return the folder for temporary files."""
    return Path(os.environ.get("SUPERSCENE_SCRATCH") or tempfile.gettempdir())


def nearest(path: Path) -> Path:
    """Return a path, or the innermost folder above it that exists."""
    path = path.absolute()
    return next(place for place in (path, *path.parents) if place.exists())


def gigabytes(n_bytes: float) -> str:
    """Return a size for a person."""
    return f"{n_bytes / 1e9:.1f} GB"


def without_user(url: str) -> str:
    """Return an address without the user and the password that it may hold."""
    return re.sub(r"(^|://)[^/\s]*@", r"\1", url)
