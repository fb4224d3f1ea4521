"""`superscene weights`: the official weight files of the models, listed, fetched, added by hand and checked."""

import csv
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn
from rich.table import Table

from infra.download import Progress as Told
from infra.errors import UnknownNameError, WeightsError
from infra.weights_store import OfficialFile, WeightsStore, hash_anew, shown

if TYPE_CHECKING:
    from sr_models import ShippedWeights

app = typer.Typer(help="The official weight files: list, fetch, add by hand, verify.", no_args_is_help=True)

_SHORT = 12  # hex digits of a hash in a table
_SAID_EVERY_S = 10.0  # where no bar can be drawn


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its weight files are concerned."""

    name: str
    licence: str
    """Terms of the official weights."""
    official: OfficialFile | None
    shipped: "ShippedWeights | None"
    check: Callable[[Path], None]
    """Raises WeightsError for a file of another network; builds the network."""


def models() -> dict[str, Model]:
    """Return every model by name: super-resolution (those without weights too), classifiers, published classifiers."""
    return _sr_models() | _classifiers() | _published_classifiers()


def _sr_models() -> dict[str, Model]:
    import sr_models
    from sr_models.weights import load_into

    def check(name: str) -> Callable[[Path], None]:
        return lambda path: load_into(sr_models.spec(name).build(), path, name)

    specs = {name: sr_models.spec(name) for name in sr_models.names()}
    return {
        name: Model(name, spec.licence, spec.official_file, spec.shipped, check(name)) for name, spec in specs.items()
    }


def _classifiers() -> dict[str, Model]:
    from classifiers.registry import build, names, spec

    def check(name: str) -> Callable[[Path], None]:
        def fits(path: Path) -> None:
            build(name, num_labels=1, weights=path)

        return fits

    return {
        name: Model(name, spec(name).weights_licence, spec(name).official_file, None, check(name)) for name in names()
    }


def _published_classifiers() -> dict[str, Model]:
    from classifiers.published import LICENCE, PUBLISHED, PublishedSpec, load_published

    def check(spec: PublishedSpec) -> Callable[[Path], None]:
        def fits(path: Path) -> None:
            load_published(path, spec.bands, max_dn=1, name=spec.network)

        return fits

    return {name: Model(name, LICENCE, spec.official_file, None, check(spec)) for name, spec in PUBLISHED.items()}


Name = Annotated[str, typer.Argument(help="A model; `superscene weights list` shows them.")]


@app.command("list")
def list_() -> None:
    """Show every model's weight file: where it is, its hash, its licence and its address."""
    store = WeightsStore.default()
    rows = [_listed(store, model) for model in models().values()]
    _show(("model", "file", "MB", "state", "sha256", "hash is", "licence", "address"), rows)
    _say(f"stored in {store.folder}")


@app.command()
def fetch(
    names: Annotated[list[str], typer.Argument(help="Models; `superscene weights list` shows them.")],
    mirror: Annotated[
        list[str] | None,
        typer.Option("--mirror", help="A folder on another server that holds the file; tried first. May be repeated."),
    ] = None,
    offline: Annotated[  # noqa: FBT002  # typer
        bool, typer.Option("--offline", envvar="SUPERSCENE_OFFLINE", help="Never touch the network.")
    ] = False,
) -> None:
    """Download official weight files; what was cut off is gone on with, what is stored is kept."""
    from infra.weights_fetch import fetch as fetch_file

    store, chosen = WeightsStore.default(), [(name, *_official(name)) for name in names]
    failed = False
    for name, model, official in chosen:
        try:
            with _bar(official.file_name) as told:
                path = fetch_file(
                    store,
                    name,
                    official,
                    model.check,
                    mirrors=mirror or (),
                    offline=offline,
                    progress=told,
                    waiting=lambda: _say("another process is at it: waiting"),
                )
        except WeightsError as error:
            _say(f"superscene: {name}: {error}")
            failed = True
        else:
            _say_stored(name, path, official, store)
    if failed:
        raise typer.Exit(1)


@app.command()
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The model's official file, downloaded by hand.")],
    replace: Annotated[  # noqa: FBT002  # typer
        bool, typer.Option("--replace", help="Take the place of another file that is stored.")
    ] = False,
) -> None:
    """Copy a local file into the store, after checking that it is the model's."""
    model, official = _official(name)
    store = WeightsStore.default()
    _say_stored(name, store.add(name, official, file, model.check, replace=replace), official, store)


@app.command()
def verify() -> None:
    """Read every stored file anew and compare it with its hash; exit code 1 where one is changed or missing."""
    store, known = WeightsStore.default(), models()
    officials = {name: model.official for name, model in known.items() if model.official}
    found: list[tuple[str, ...]] = [(v.model, v.path.name, v.state, v.detail) for v in store.verify(officials)]
    for name, model in known.items():
        if model.shipped is not None:
            found.append(_verified_shipped(name, model.shipped))
    _show(("model", "file", "state", "sha256"), found)
    _say(f"{len(found)} files, stored in {store.folder}")
    if any(row[2] in {"changed", "missing"} for row in found):
        _say("superscene: delete what is changed, and `superscene weights fetch NAME` gets it anew")
        raise typer.Exit(1)


def _official(name: str) -> tuple[Model, OfficialFile]:
    known = models()
    with_files = [other for other, model in known.items() if model.official]
    if name not in known:
        raise UnknownNameError(f"no model is called {name!r}: those with weights are {', '.join(with_files)}")
    model = known[name]
    if model.official is None:
        raise UnknownNameError(f"{name} has no weight file: those with weights are {', '.join(with_files)}")
    return model, model.official


def _listed(store: WeightsStore, model: Model) -> tuple[str, ...]:
    if model.official is None:
        return (model.name, "", "", "not needed", "", "", model.licence, "")
    path, official, shipped = store.path(model.name, model.official), model.official, model.shipped
    file, state, licence, source = official.file_name, "absent", model.licence, official.url
    digest, whose, size = official.sha256, "official" if official.sha256 else "", ""
    if digest and not official.pinned:
        whose = f"official, first {len(digest)} digits"
    if path.is_file():
        state, size = "stored", _megabytes(path)
        if not official.pinned:
            digest = store.recorded(path)
            whose = "recorded" if digest else "not recorded"
    elif shipped is not None:
        file, state, size, licence = shipped.path.name, "shipped", _megabytes(shipped.path), shipped.licence
        digest, whose, source = shipped.sha256, "shipped", shipped.provenance
    return (model.name, file, size, state, (digest or "")[:_SHORT], whose, licence, source)


def _verified_shipped(name: str, shipped: "ShippedWeights") -> tuple[str, str, str, str]:
    if not shipped.path.is_file():
        return name, shipped.path.name, "missing", f"{shipped.sha256} is shipped: install superscene again"
    digest = hash_anew(shipped.path)
    if digest != shipped.sha256:
        return name, shipped.path.name, "changed", f"{digest} now, {shipped.sha256} shipped: install superscene again"
    return name, shipped.path.name, "ok", digest


def _megabytes(path: Path) -> str:
    return f"{path.stat().st_size / 1e6:.1f}" if path.is_file() else ""


def _say_stored(name: str, path: Path, official: OfficialFile, store: WeightsStore) -> None:
    digest, whose = store.recorded(path), "recorded; no official one is known"
    if official.pinned:
        digest, whose = official.sha256, "the official one"
    elif official.sha256:
        whose = f"recorded; of the official one only {shown(official.sha256)} is known"
    typer.echo(f"{name}: {path} ({_megabytes(path)} MB, SHA-256 {digest}, {whose})")


def _show(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Show a table; tab-separated, with nothing cut, where another program reads it."""
    console = Console()
    if not console.is_terminal:
        csv.writer(sys.stdout, dialect="excel-tab").writerows([columns, *rows])
        return
    table = Table(box=None)
    for column in columns:
        table.add_column(column, overflow="fold", justify="right" if column == "MB" else "left")
    for row in rows:
        table.add_row(*row)
    console.print(table, markup=False)


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def _bar(file: str) -> Iterator[Told]:
    """Show a download on standard error: a bar, or a line now and then where that is no terminal."""
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines(file)
        return
    columns = (BarColumn(), DownloadColumn(), TransferSpeedColumn(), TimeRemainingColumn())
    with Progress(TextColumn("{task.description}"), *columns, console=console) as progress:
        task = progress.add_task(file, total=None, visible=False)

        def tell(done: int, total: int | None) -> None:
            progress.update(task, completed=done, total=total, visible=True)

        yield tell


class _Lines:
    """A download told in lines."""

    def __init__(self, file: str) -> None:
        self._file, self._next = file, time.monotonic()

    def __call__(self, done: int, total: int | None) -> None:
        if done == total or time.monotonic() >= self._next:
            self._next = time.monotonic() + _SAID_EVERY_S
            of = f" of {total / 1e6:.1f}" if total is not None else ""
            _say(f"{self._file}: {done / 1e6:.1f}{of} MB")
