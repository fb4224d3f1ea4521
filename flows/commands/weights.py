"""`superscene weights`: the official weight files of the models, listed, fetched, added by hand and checked."""

import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.console import Console
from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn, TransferSpeedColumn

from flows.commands.arguments import AsJson
from flows.commands.completion import CLASSIFIERS, PUBLISHED, SR_MODELS, one_of
from flows.commands.output import say, show_rows, tell_json
from infra.download import Progress as Told
from infra.errors import UnknownNameError, WeightsError, did_you_mean
from infra.weights_store import OfficialFile, WeightsStore, hash_anew, shown

if TYPE_CHECKING:
    from flows.weights import Folder, Model
    from sr_models import ShippedWeights

app = typer.Typer(help="The official weight files: list, fetch, add by hand, verify.", no_args_is_help=True)

_SHORT = 12  # hex digits of a hash in a table
_SAID_EVERY_S = 10.0  # where no bar can be drawn

State = Literal["not needed", "absent", "incomplete", "stored", "shipped"]
"""incomplete: of a model with several files, some are missing in its folder."""


@dataclass(frozen=True, slots=True)
class Listed:
    """A model's weight file, as it is listed; nothing is None."""

    model: str
    file: str | None
    bytes: int | None
    state: State
    sha256: str | None
    """The whole hash, or as much of it as is known."""
    hash_is: str | None
    licence: str
    address: str | None

    def cells(self) -> tuple[str, ...]:
        """Return it as a row of a table."""
        size = "" if self.bytes is None else _megabytes(self.bytes)
        digest = (self.sha256 or "")[:_SHORT]
        return (
            *(self.model, self.file or "", size, self.state, digest),
            *(self.hash_is or "", self.licence, self.address or ""),
        )


@dataclass(frozen=True, slots=True)
class Stored:
    """A weight file that is in the store now."""

    model: str
    path: Path
    bytes: int
    sha256: str | None
    hash_is: Literal["official", "recorded"]
    official_begins: str | None
    """First digits of the official hash, where only those are known."""

    def __str__(self) -> str:
        whose = "the official one" if self.hash_is == "official" else "recorded; no official one is known"
        if self.official_begins:
            whose = f"recorded; of the official one only {self.official_begins} is known"
        return f"{self.model}: {self.path} ({_megabytes(self.bytes)} MB, SHA-256 {self.sha256}, {whose})"


_named = one_of((*SR_MODELS, *CLASSIFIERS, *PUBLISHED))

Name = Annotated[str, typer.Argument(help="A model; `superscene weights list` shows them.", autocompletion=_named)]


@app.command("list")
def list_(as_json: AsJson = False) -> None:  # noqa: FBT002  # typer
    """Show every model's weight file: where it is, its hash, its licence and its address."""
    from flows.weights import models

    store = WeightsStore.default()
    rows = [_listed(store, model) for model in models().values()]
    if as_json:
        tell_json({"folder": store.folder, "models": [asdict(row) for row in rows]})
        return
    columns = ("model", "file", "MB", "state", "sha256", "hash is", "licence", "address")
    show_rows(columns, [row.cells() for row in rows], right=["MB"])
    say(f"stored in {store.folder}")


@app.command()
def fetch(
    names: Annotated[
        list[str],
        typer.Argument(help="Models; `superscene weights list` shows them.", autocompletion=_named),
    ],
    mirror: Annotated[
        list[str] | None,
        typer.Option("--mirror", help="A folder on another server that holds the file; tried first. May be repeated."),
    ] = None,
    offline: Annotated[  # noqa: FBT002  # typer
        bool, typer.Option("--offline", envvar="SUPERSCENE_OFFLINE", help="Never touch the network.")
    ] = False,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Download official weight files; what was cut off is gone on with, what is stored is kept."""
    from infra.weights_fetch import fetch as fetch_file

    store, chosen = WeightsStore.default(), [(name, *_official(name)) for name in names]
    done: list[Stored] = []
    failed: list[dict[str, str]] = []
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
                    waiting=lambda: say("another process is at it: waiting"),
                )
        except WeightsError as error:
            say(f"superscene: {name}: {error}")
            failed.append({"model": name, "error": str(error)})
        else:
            done.append(_stored(name, path, official, store))
            if not as_json:
                typer.echo(str(done[-1]))
    if as_json:
        tell_json({"stored": [asdict(file) for file in done], "failed": failed})
    if failed:
        raise typer.Exit(1)


@app.command()
def add(
    name: Name,
    file: Annotated[Path, typer.Argument(help="The model's official file, downloaded by hand.")],
    replace: Annotated[  # noqa: FBT002  # typer
        bool, typer.Option("--replace", help="Take the place of another file that is stored.")
    ] = False,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Copy a local file into the store, after checking that it is the model's."""
    model, official = _official(name)
    store = WeightsStore.default()
    stored = _stored(name, store.add(name, official, file, model.check, replace=replace), official, store)
    if as_json:
        tell_json({"stored": [asdict(stored)], "failed": []})
    else:
        typer.echo(str(stored))


@app.command()
def verify(as_json: AsJson = False) -> None:  # noqa: FBT002  # typer
    """Read every stored file anew and compare it with its hash; exit code 1 where one is changed or missing.

    A model's folder of several files is left out: no hash of them is recorded.
    """
    from flows.weights import models

    store, known = WeightsStore.default(), models()
    officials = {name: model.official for name, model in known.items() if model.official}
    folders = [name for name, model in known.items() if model.folder is not None]
    verified = store.verify(officials, without=folders)
    found: list[tuple[str, ...]] = [(v.model, v.path.name, v.state, v.detail) for v in verified]
    for name, model in known.items():
        if model.shipped is not None:
            found.append(_verified_shipped(name, model.shipped))
    bad = any(row[2] in {"changed", "missing"} for row in found)
    if as_json:
        keys = ("model", "file", "state", "detail")
        files = [dict(zip(keys, row, strict=True)) for row in found]
        tell_json({"ok": not bad, "folder": store.folder, "files": files})
    else:
        show_rows(("model", "file", "state", "sha256"), found)
        say(f"{len(found)} files, stored in {store.folder}")
    if bad:
        say("superscene: delete what is changed, and `superscene weights fetch NAME` gets it anew")
        raise typer.Exit(1)


def _official(name: str) -> "tuple[Model, OfficialFile]":
    from flows.weights import models

    known = models()
    with_files = [other for other, model in known.items() if model.official]
    if name not in known:
        hint = did_you_mean(name, with_files)
        raise UnknownNameError(f"no model is called {name!r}: {hint}those with weights are {', '.join(with_files)}")
    model = known[name]
    if model.folder is not None:
        raise UnknownNameError(
            f"{name} has several weight files, which no command brings. {model.folder.about} Put them into "
            f"{WeightsStore.default().folder / name}"
        )
    if model.official is None:
        raise UnknownNameError(f"{name} has no weight file: those with weights are {', '.join(with_files)}")
    return model, model.official


def _listed(store: WeightsStore, model: "Model") -> Listed:
    if model.folder is not None:
        state = _folder_state(store.folder / model.name, model.folder)
        return Listed(model.name, f"{model.name}/", None, state, None, None, model.licence, model.folder.about)
    if model.official is None:
        return Listed(model.name, None, None, "not needed", None, None, model.licence, None)
    path, official, shipped = store.path(model.name, model.official), model.official, model.shipped
    digest, whose = official.sha256, "official" if official.sha256 else None
    if digest and not official.pinned:
        whose = f"official, first {len(digest)} digits"
    if path.is_file():
        if not official.pinned:
            digest = store.recorded(path)
            whose = "recorded" if digest else "not recorded"
        n_bytes = path.stat().st_size
        return Listed(model.name, official.file_name, n_bytes, "stored", digest, whose, model.licence, official.url)
    if shipped is not None:
        size = shipped.path.stat().st_size if shipped.path.is_file() else None
        return Listed(
            *(model.name, shipped.path.name, size, "shipped", shipped.sha256, "shipped"),
            *(shipped.licence, shipped.provenance),
        )
    return Listed(model.name, official.file_name, None, "absent", digest, whose, model.licence, official.url)


def _folder_state(path: Path, folder: "Folder") -> State:
    if not path.is_dir():
        return "absent"
    try:
        folder.files(path)
    except WeightsError:
        return "incomplete"
    return "stored"


def _verified_shipped(name: str, shipped: "ShippedWeights") -> tuple[str, str, str, str]:
    if not shipped.path.is_file():
        return name, shipped.path.name, "missing", f"{shipped.sha256} is shipped: install superscene again"
    digest = hash_anew(shipped.path)
    if digest != shipped.sha256:
        return name, shipped.path.name, "changed", f"{digest} now, {shipped.sha256} shipped: install superscene again"
    return name, shipped.path.name, "ok", digest


def _megabytes(n_bytes: int) -> str:
    return f"{n_bytes / 1e6:.1f}"


def _stored(name: str, path: Path, official: OfficialFile, store: WeightsStore) -> Stored:
    size = path.stat().st_size
    if official.pinned:
        return Stored(name, path, size, official.sha256, "official", None)
    begins = shown(official.sha256) if official.sha256 else None
    return Stored(name, path, size, store.recorded(path), "recorded", begins)


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
            say(f"{self._file}: {done / 1e6:.1f}{of} MB")
