"""The command line. Exit codes: 0 done; 1 some shards failed; 2 usage, configuration or environment."""

import csv
import logging
import os
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import typer
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

from flows import weights
from infra import logs
from infra.archives.names import is_displayable
from infra.errors import ConfigError, IncompleteRunError, PipelineError

if TYPE_CHECKING:
    from tasks.run_record import LiveStage

# Nothing is reported to the makers of the libraries, and a run's own words are not drowned in theirs.
os.environ.setdefault("PREFECT_SERVER_ANALYTICS_ENABLED", "false")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("DO_NOT_TRACK", "1")
os.environ.setdefault("PREFECT_LOGGING_LEVEL", "CRITICAL")
os.environ.setdefault("PREFECT_SERVER_EPHEMERAL_STARTUP_TIMEOUT_SECONDS", "180")  # a busy machine needs more than 20
for _worker in ("EventsWorker", "APILogWorker"):  # Prefect's own threads, which that level does not reach
    logging.getLogger(_worker).setLevel(logging.CRITICAL)

app = typer.Typer(
    name="superscene",
    help="Turns a satellite archive into tables: super-resolution, land cover, explanations.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)

app.add_typer(weights.app, name="weights")

_FRAMED = 120  # columns of a terminal from which on a table of ten numbers can have frames

RunYaml = Annotated[Path, typer.Argument(help="The run's configuration, RUN.yaml.")]
Overrides = Annotated[list[str] | None, typer.Option("--set", help="Change a setting: --set train.epochs=3.")]

Address = Annotated[
    str | None,
    typer.Option("--address", envvar="RAY_ADDRESS", help="The Ray cluster that does the work; else this machine."),
]


def _store(text: str) -> Path:
    from infra.storage import location

    try:
        return location(text)
    except ConfigError as error:  # a plain ValueError would have the text repeated, a password too
        raise typer.BadParameter(str(error)) from None


Store = Annotated[Path, typer.Argument(help="A store: a folder, or its URL.", parser=_store, metavar="STORE")]


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
        _say(words)  # out here the error and what it holds are gone
    else:
        logs.events.error("%s", words)
    sys.exit(code)


def _say(text: str) -> None:
    Console(stderr=True).print(text, markup=False, highlight=False, soft_wrap=True)


def _join(address: str | None) -> None:
    """Let the run, and whatever it starts, find a Ray cluster."""
    if address:
        os.environ["RAY_ADDRESS"] = address


def _run(
    run_yaml: Path,
    overrides: list[str] | None,
    address: str | None,
    until: Literal["ingest", "train", "predict", "explain", "reliability", "evaluate", "report"],
) -> None:
    from flows.config import load_config

    config = load_config(run_yaml, overrides)
    _join(address)
    from flows.archive import archive
    from flows.orphans import end_orphaned_servers
    from flows.progress import bars

    end_orphaned_servers()
    with bars():
        summary = archive(config, until)
    Console().print(summary, markup=False, highlight=False, soft_wrap=True)


@app.command()
def run(run_yaml: RunYaml, overrides: Overrides = None, address: Address = None) -> None:
    """Run the whole archive flow; finished work is kept and skipped."""
    _run(run_yaml, overrides, address, "report")


@app.command()
def ingest(run_yaml: RunYaml, overrides: Overrides = None, address: Address = None) -> None:
    """Read the archive into the store."""
    _run(run_yaml, overrides, address, "ingest")


@app.command()
def train(run_yaml: RunYaml, overrides: Overrides = None, address: Address = None) -> None:
    """Train the classifiers, after what they need."""
    _run(run_yaml, overrides, address, "train")


@app.command("train-sr")
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
    Console().print(summary, markup=False, highlight=False, soft_wrap=True)


@app.command()
def predict(run_yaml: RunYaml, overrides: Overrides = None, address: Address = None) -> None:
    """Predict every patch and make its maps, after what that needs."""
    _run(run_yaml, overrides, address, "predict")


@app.command()
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
        _run(run_yaml, overrides, address, "explain")
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


@app.command()
def reliability(run_yaml: RunYaml, overrides: Overrides = None, address: Address = None) -> None:
    """Score how far each prediction can be trusted, by the cluster of its map, after what that needs."""
    _run(run_yaml, overrides, address, "reliability")


@app.command()
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
        _run(run_yaml, overrides, address, "evaluate")
        return
    from flows.config import load_config
    from infra.storage import StorePaths
    from tasks.evaluate_where import evaluate_where

    found = evaluate_where(StorePaths(load_config(run_yaml, overrides).store), where)
    console = Console()
    if console.is_terminal:
        for chosen in found.tables():
            # Ten columns: in a narrow terminal, frames would take the place of digits.
            table = Table() if console.width >= _FRAMED else Table(box=SIMPLE_HEAD, show_edge=False, padding=0)
            table.title, table.title_justify = chosen.title, "left"
            for column in chosen.columns:
                table.add_column(column, overflow="fold")
            for row in chosen.rows:
                table.add_row(*map(_plain, row))
            console.print(table)
    else:  # for other programs: rows of tables/metrics, tab-separated
        columns = found.metrics.column_names
        rows = ([_exact(value) for value in row.values()] for row in found.metrics.to_pylist())
        csv.writer(sys.stdout, dialect="excel-tab").writerows([columns, *rows])
    _say(f"{found.n} patches meet the condition")


@app.command()
def report(run_yaml: RunYaml, overrides: Overrides = None) -> None:
    """Write the report anew from the tables, and nothing else."""
    from flows.config import load_config
    from infra.storage import StorePaths
    from tasks.report.page import write_report

    paths = StorePaths(load_config(run_yaml, overrides).store)
    write_report(paths)
    typer.echo(f"report: {paths.report}")


@app.command()
def demo(
    folder: Annotated[Path, typer.Argument(help="Where the archive and the store go.")] = Path("demo"),
    patches: Annotated[int, typer.Option(min=1, help="Patches of the synthetic archive.")] = 160,
    store: Annotated[
        Path | None, typer.Option(help="Another place for the store: a folder, or its URL.", parser=_store)
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
    Console().print(summary, markup=False, highlight=False, soft_wrap=True)


@app.command()
def synth(
    folder: Annotated[Path, typer.Argument(help="Where the archive goes.")],
    patches: Annotated[int, typer.Option(min=1, help="Patches to write.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
) -> None:
    """Write a synthetic archive in BigEarthNet-v2 layout."""
    from flows.demo import write_archive
    from flows.progress import bars

    with bars():
        write_archive(folder, patches, seed)
    typer.echo(f"{patches} patches in {folder}")


@app.command("super-resolve")
def super_resolve(
    source: Annotated[str, typer.Argument(help="The scene: a GeoTIFF, or another raster that GDAL reads.")],
    target: Annotated[Path, typer.Argument(help="The GeoTIFF to write, cloud-optimised.")],
    sr: Annotated[str, typer.Option(help="The model, such as realesrgan_general or bicubic.")],
    weights: Annotated[Path | None, typer.Option(help="The model's weight file.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1, cpu …; a GPU where there is one.")] = None,
    dtype: Annotated[str | None, typer.Option(help="float32, bfloat16 or float16.")] = None,
    bands: Annotated[str | None, typer.Option(help="Red, green, blue: 4,3,2 or B04,B03,B02; else by name.")] = None,
    max_dn: Annotated[float | None, typer.Option(help="Clip above; 3000, 255 (uint8) or 0.3 (float32).")] = None,
    min_dn: Annotated[float, typer.Option(help="Clip below: 1000 for DN that carry that offset.")] = 0.0,
    window: Annotated[int | None, typer.Option(help="Edge of a window, pixels of the input.")] = None,
    margin: Annotated[
        int | None, typer.Option(help="Edge of a window to discard; less is faster, and may show.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,  # noqa: FBT002  # typer
) -> None:
    """Super-resolve a scene of any size: a GeoTIFF in, a georeferenced GeoTIFF out."""
    from flows.progress import bars, terminal_progress
    from sr_models import load
    from tasks.branch import worker_device
    from tasks.super_resolve_scene import SceneOptions, parse_bands, super_resolve_scene

    options = SceneOptions(parse_bands(bands), min_dn, max_dn, window, margin, overwrite)
    resolver = load(sr, weights, device or worker_device(), dtype)
    try:
        with bars("pixels"):
            report = super_resolve_scene(source, target, resolver, options, terminal_progress())
    except KeyboardInterrupt:
        _say("superscene: stopped; nothing was written")
        raise typer.Exit(130) from None
    Console().print(str(report), markup=False, highlight=False, soft_wrap=True)


@app.command()
def plan(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of one GPU, or core: tells what the run costs.")
    ] = None,
) -> None:
    """Tell what a run would do: patches, shards, bytes, costly passes and hours of devices, before anything runs."""
    from flows.config import load_config
    from flows.estimate import estimate

    config = load_config(run_yaml, overrides)
    table = Table("what", "how much", box=None)
    for what, amount in estimate(config, price_per_hour):
        table.add_row(_plain(what), _plain(amount))
    Console().print(table)


@app.command()
def status(store: Store) -> None:
    """Show, per stage of the last run, the shards done, missing and failed, and the inputs in quarantine."""
    from infra.storage import StorePaths
    from tasks.status import store_status

    found = store_status(StorePaths(store))
    console = Console()
    console.print(f"run {found.run_id}: {found.state}; {found.patches} patches, {found.quarantined} in quarantine")
    if found.live is not None:
        console.print(_how_far(found.live), markup=False, highlight=False)
    table = Table("stage", "config", "done", "missing", "failed", box=None)
    for stage in found.stages:
        table.add_row(_plain(stage.title), stage.config, str(stage.done), str(stage.missing), str(len(stage.failures)))
    console.print(table)
    for stage in found.stages:
        for shard, error in stage.failures.items():
            console.print(f"{stage.title}: shard {shard} failed: {error}", markup=False, highlight=False)


@app.command()
def sql(
    store: Store,
    statement: Annotated[str, typer.Argument(help="One SELECT.")],
    all_configs: Annotated[bool, typer.Option("--all-configs", help="Show rows of every run.")] = False,  # noqa: FBT002  # typer
) -> None:
    """Ask the tables in SQL; every table is a view, and nothing can be written."""
    from infra.query import query
    from infra.storage import StorePaths
    from tasks.run_record import scored_configs

    paths = StorePaths(store)
    relation = query(paths.tables, None if all_configs else scored_configs(paths), statement)
    rows = [["" if value is None else _cell(value) for value in row] for row in relation.fetchall()]
    console = Console()
    if console.is_terminal:
        table = Table(box=None)
        for column in relation.columns:
            table.add_column(_plain(column), overflow="fold")
        for row in rows:
            table.add_row(*map(_plain, row))
        console.print(table)
        _say(f"{len(rows)} rows")
    else:  # for other programs: tab-separated, nothing cut
        csv.writer(sys.stdout, dialect="excel-tab").writerows([relation.columns, *rows])


@app.command()
def doctor() -> None:
    """Check the machine: what works, and what to do about what does not."""
    from flows.doctor import checks

    table = Table("check", "", "found", "what to do", box=None)
    results = checks()
    for check in results:
        table.add_row(check.name, "ok" if check.ok else "no", _plain(check.found), _plain(check.advice))
    Console().print(table)
    if not all(check.ok for check in results):
        raise typer.Exit(1)


def _how_far(live: "LiveStage") -> str:
    ago = max(0.0, time.time() - live.written)
    text = f"{live.stage}: {live.done} of {live.total} in {timedelta(seconds=round(live.seconds))}"
    if live.patches:
        text += f", {live.patches_per_second:.1f} patches/s"
    if live.seconds_left is not None:
        text += f", {timedelta(seconds=round(max(0.0, live.seconds_left - ago)))} left"
    return f"{text} (told {ago:.0f} s ago)"


def _plain(text: str) -> Text:
    """Return a text that is no markup, and has no sign that a terminal obeys."""
    return Text("".join(sign if is_displayable(sign) or sign == "\n" else "\ufffd" for sign in text))


def _cell(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _exact(value: object) -> str:
    return "" if value is None else f"{value:.9g}" if isinstance(value, float) else str(value)
