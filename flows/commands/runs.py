"""Commands that run the flows: everything, or up to a stage, and figures of what they made."""

import gc
import os
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.arguments import Address, AsJson, Overrides, RunYaml, load, store_place
from flows.commands.completion import CLASSIFIERS, SPLITS, SR_MODELS, one_of
from flows.commands.documents import run_document
from flows.commands.output import tell, tell_json
from flows.commands.stores import show_scores
from infra.errors import ConfigError, IncompleteRunError


def run_until(
    run_yaml: Path,
    overrides: list[str] | None,
    address: str | None,
    until: Literal["ingest", "train", "predict", "explain", "reliability", "evaluate", "report"],
    *,
    as_json: bool,
) -> None:
    """Run the archive flow up to a stage, and tell what came of it."""
    config = load(run_yaml, overrides)
    _join(address)
    from flows.archive import archive
    from flows.orphans import end_orphaned_servers
    from flows.progress import bars

    _pass_over_libraries()
    end_orphaned_servers()
    with bars():
        _tell_run(config.store, partial(archive, config, until), as_json=as_json)


def _pass_over_libraries() -> None:
    """Let Python look for no garbage in what the libraries have made: at a process's end that alone takes 2 s.

    Call it when they are imported and no sooner than that; what comes later is looked at. To freeze all at the very end
    would save another second, and have a library of torch's tell on standard error that its objects were not freed.
    """
    gc.freeze()


def _tell_run(store: Path, flow: Callable[[], str], *, as_json: bool) -> None:
    """Run a flow and tell its summary, or its record, which is told where shards failed too."""
    try:
        summary = flow()
    except IncompleteRunError:
        if as_json:
            tell_json(run_document(store))
        raise
    if as_json:
        tell_json(run_document(store))
    else:
        tell(summary)


def run(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    address: Address = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Run the whole archive flow; finished work is kept and skipped."""
    run_until(run_yaml, overrides, address, "report", as_json=as_json)


def ingest(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    address: Address = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Read the archive into the store."""
    run_until(run_yaml, overrides, address, "ingest", as_json=as_json)


def train(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    address: Address = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Train the classifiers, after what they need."""
    run_until(run_yaml, overrides, address, "train", as_json=as_json)


def train_sr(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    address: Address = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Fit or fine-tune a super-resolution model on the archive's own images; a stopped run goes on."""
    config = load(run_yaml, overrides)
    _join(address)
    from flows.orphans import end_orphaned_servers
    from flows.progress import bars
    from flows.train_sr import train_sr as fit

    end_orphaned_servers()
    with bars():
        fitted = fit(config)
    if as_json:
        tell_json(asdict(fitted))
    else:
        tell(str(fitted))


def predict(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    address: Address = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Predict every patch and make its maps, after what that needs."""
    run_until(run_yaml, overrides, address, "predict", as_json=as_json)


def explain(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    address: Address = None,
    patch: Annotated[str | None, typer.Option(help="Draw this patch: methods by SR models.")] = None,
    label: Annotated[str | None, typer.Option(help="Label to explain; else the likeliest true one.")] = None,
    sheet: Annotated[int | None, typer.Option(min=1, help="Draw that many patches at random, and a CSV.")] = None,
    split: Annotated[
        str | None, typer.Option(help="Split of the sheet's patches; else validation.", autocompletion=one_of(SPLITS))
    ] = None,
    classifier: Annotated[
        str | None, typer.Option(help="Whose maps; else the first of RUN.yaml.", autocompletion=one_of(CLASSIFIERS))
    ] = None,
    out: Annotated[Path | None, typer.Option(help="The figure: .png, .webp, .pdf or .svg; else explained.png.")] = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Make the maps of every patch, after what that needs; or, with --patch or --sheet, draw some and run nothing."""
    if patch is not None and sheet is not None:
        raise ConfigError("--patch draws one patch and --sheet many: choose one of them")
    if patch is None and label is not None:
        raise ConfigError("--label is for --patch: say which patch to draw")
    if sheet is None and split is not None:
        raise ConfigError("--split is for --sheet: say how many patches to draw")
    if patch is None and sheet is None:
        if out is not None or classifier is not None:
            raise ConfigError("--out and --classifier are for figures: give --patch or --sheet too")
        run_until(run_yaml, overrides, address, "explain", as_json=as_json)
        return
    config = load(run_yaml, overrides)
    from flows.explain import draw_patch, draw_sheet

    figure = Path("explained.png") if out is None else out
    if patch is not None:
        written = draw_patch(config, patch, figure, label, classifier)
    else:
        written = draw_sheet(config, sheet or 1, split or "validation", figure, classifier)
    if as_json:
        tell_json({"written": written})
    else:
        typer.echo("written: " + ", ".join(str(path) for path in written))


def reliability(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    address: Address = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Score how far each prediction can be trusted, by the cluster of its map, after what that needs."""
    run_until(run_yaml, overrides, address, "reliability", as_json=as_json)


def evaluate(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    address: Address = None,
    where: Annotated[
        str | None,
        typer.Option(help="Only patches that meet a condition, from the predictions there are: country = 'Finland'."),
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Score the predictions, after what that needs; or, with --where, those of some patches, and run nothing."""
    if where is None:
        run_until(run_yaml, overrides, address, "evaluate", as_json=as_json)
        return
    config = load(run_yaml, overrides)
    from infra.storage import StorePaths
    from tasks.evaluate_where import evaluate_where

    show_scores(evaluate_where(StorePaths(config.store), where), as_json=as_json)


def demo(
    folder: Annotated[Path, typer.Argument(help="Where the archive and the store go.")] = Path("demo"),
    patches: Annotated[int, typer.Option(min=1, help="Patches of the synthetic archive.")] = 160,
    store: Annotated[
        Path | None, typer.Option(help="Another place for the store: a folder, or its URL.", parser=store_place)
    ] = None,
    sr: Annotated[
        list[str] | None,
        typer.Option(help="A further SR model, such as seesr_tiny. May be repeated.", autocompletion=one_of(SR_MODELS)),
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Write a small synthetic archive, run the whole flow on it, and show where the report is."""
    from infra.storage import writing

    with writing(folder):
        (folder / "prefect").mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("PREFECT_HOME", str((folder / "prefect").resolve()))  # read when Prefect is imported
    from flows.archive import archive
    from flows.demo import demo_config, write_demo_archive
    from flows.orphans import end_orphaned_servers
    from flows.progress import bars

    end_orphaned_servers()
    with bars():
        write_demo_archive(folder, patches)
        config = demo_config(folder, store, sr or ())
        _tell_run(config.store, partial(archive, config), as_json=as_json)


def _join(address: str | None) -> None:
    """Let the run, and whatever it starts, find a Ray cluster."""
    if address:
        os.environ["RAY_ADDRESS"] = address
