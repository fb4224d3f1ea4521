"""Commands that run the flows: everything, or up to a stage, and figures of what they made."""

import os
from pathlib import Path
from typing import Annotated, Literal

import typer

from flows.commands.arguments import Address, Overrides, RunYaml, store_place
from flows.commands.output import tell
from flows.commands.stores import show_scores
from infra.errors import ConfigError


def run_until(
    run_yaml: Path,
    overrides: list[str] | None,
    address: str | None,
    until: Literal["ingest", "train", "predict", "explain", "reliability", "evaluate", "report"],
) -> None:
    """Run the archive flow up to a stage, and tell what came of it."""
    from flows.config import load_config

    config = load_config(run_yaml, overrides)
    _join(address)
    from flows.archive import archive
    from flows.orphans import end_orphaned_servers
    from flows.progress import bars

    end_orphaned_servers()
    with bars():
        summary = archive(config, until)
    tell(summary)


def run(run_yaml: RunYaml, overrides: Overrides = None, address: Address = None) -> None:
    """Run the whole archive flow; finished work is kept and skipped."""
    run_until(run_yaml, overrides, address, "report")


def ingest(run_yaml: RunYaml, overrides: Overrides = None, address: Address = None) -> None:
    """Read the archive into the store."""
    run_until(run_yaml, overrides, address, "ingest")


def train(run_yaml: RunYaml, overrides: Overrides = None, address: Address = None) -> None:
    """Train the classifiers, after what they need."""
    run_until(run_yaml, overrides, address, "train")


def train_sr(run_yaml: RunYaml, overrides: Overrides = None, address: Address = None) -> None:
    """Fit or fine-tune a super-resolution model on the archive's own images; a stopped run goes on."""
    from flows.config import load_config

    config = load_config(run_yaml, overrides)
    _join(address)
    from flows.orphans import end_orphaned_servers
    from flows.progress import bars
    from flows.train_sr import train_sr as fit

    end_orphaned_servers()
    with bars():
        summary = fit(config)
    tell(summary)


def predict(run_yaml: RunYaml, overrides: Overrides = None, address: Address = None) -> None:
    """Predict every patch and make its maps, after what that needs."""
    run_until(run_yaml, overrides, address, "predict")


def explain(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    address: Address = None,
    patch: Annotated[str | None, typer.Option(help="Draw this patch: methods by SR models.")] = None,
    label: Annotated[str | None, typer.Option(help="Label to explain; else the likeliest true one.")] = None,
    sheet: Annotated[int | None, typer.Option(min=1, help="Draw that many patches at random, and a CSV.")] = None,
    split: Annotated[str | None, typer.Option(help="Split of the sheet's patches; else validation.")] = None,
    classifier: Annotated[str | None, typer.Option(help="Whose maps; else the first of RUN.yaml.")] = None,
    out: Annotated[Path | None, typer.Option(help="The figure: .png, .webp, .pdf or .svg; else explained.png.")] = None,
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
        run_until(run_yaml, overrides, address, "explain")
        return
    from flows.config import load_config
    from flows.explain import draw_patch, draw_sheet

    config = load_config(run_yaml, overrides)
    figure = Path("explained.png") if out is None else out
    if patch is not None:
        written = draw_patch(config, patch, figure, label, classifier)
    else:
        written = draw_sheet(config, sheet or 1, split or "validation", figure, classifier)
    typer.echo("written: " + ", ".join(str(path) for path in written))


def reliability(run_yaml: RunYaml, overrides: Overrides = None, address: Address = None) -> None:
    """Score how far each prediction can be trusted, by the cluster of its map, after what that needs."""
    run_until(run_yaml, overrides, address, "reliability")


def evaluate(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    address: Address = None,
    where: Annotated[
        str | None,
        typer.Option(help="Only patches that meet a condition, from the predictions there are: country = 'Finland'."),
    ] = None,
) -> None:
    """Score the predictions, after what that needs; or, with --where, those of some patches, and run nothing."""
    if where is None:
        run_until(run_yaml, overrides, address, "evaluate")
        return
    from flows.config import load_config
    from infra.storage import StorePaths
    from tasks.evaluate_where import evaluate_where

    show_scores(evaluate_where(StorePaths(load_config(run_yaml, overrides).store), where))


def demo(
    folder: Annotated[Path, typer.Argument(help="Where the archive and the store go.")] = Path("demo"),
    patches: Annotated[int, typer.Option(min=1, help="Patches of the synthetic archive.")] = 160,
    store: Annotated[
        Path | None, typer.Option(help="Another place for the store: a folder, or its URL.", parser=store_place)
    ] = None,
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
        summary = archive(demo_config(folder, store))
    tell(summary)


def _join(address: str | None) -> None:
    """Let the run, and whatever it starts, find a Ray cluster."""
    if address:
        os.environ["RAY_ADDRESS"] = address
