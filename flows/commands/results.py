"""Commands that turn a store's tables into something to look at, or to take along."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from flows.commands.arguments import AsJson, Overrides, Store, load, store_place
from flows.commands.completion import run_yamls
from flows.commands.output import say, tell_json
from flows.commands.places import refuse_no_store
from infra.errors import ConfigError

if TYPE_CHECKING:
    from infra.storage import StorePaths
    from tasks.export import Exported


def report(
    target: Annotated[
        str, typer.Argument(help="A RUN.yaml, or a store.", metavar="RUN.yaml|STORE", autocompletion=run_yamls)
    ],
    overrides: Overrides = None,
    out: Annotated[
        Path | None, typer.Option(help="The page; else report/index.html of the store.", parser=store_place)
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Write the report anew from the tables, and nothing else."""
    paths = _paths_of(target, overrides)
    from tasks.report.page import write_report

    page = write_report(paths, out)
    if as_json:
        tell_json({"report": page})
    else:
        typer.echo(f"report: {page}")


def _paths_of(target: str, overrides: list[str] | None) -> "StorePaths":
    """Return the store that is meant: itself, or that of a RUN.yaml."""
    if Path(target).suffix.lower() in {".yaml", ".yml"}:
        store = load(Path(target), overrides).store
    elif overrides:
        raise ConfigError(f"--set changes a RUN.yaml, and {target} is a store")
    else:
        store = store_place(target)
        refuse_no_store(store)
    from infra.storage import StorePaths

    return StorePaths(store)


def export(
    store: Store,
    csv: Annotated[
        str | None, typer.Option(metavar="TABLE", help="A table as CSV: Table1, Table2, or any of --list.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The file of --csv; else standard output.", parser=store_place)
    ] = None,
    stac: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The patches as STAC items, GeoParquet.", parser=store_place)
    ] = None,
    gpkg: Annotated[
        Path | None, typer.Option(metavar="FILE", help="The patches as a GeoPackage, for QGIS.", parser=store_place)
    ] = None,
    list_: Annotated[bool, typer.Option("--list", help="List the tables that --csv takes.")] = False,  # noqa: FBT002
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the file.")] = False,  # noqa: FBT002
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Write tables as CSV, STAC items or a GeoPackage, for other programs."""
    if sum([csv is not None, stac is not None, gpkg is not None, list_]) != 1:
        raise ConfigError("export writes one thing: say --csv TABLE, --stac FILE, --gpkg FILE, or --list")
    if out is not None and csv is None:
        raise ConfigError("--out is for --csv; --stac and --gpkg name their file themselves")
    if as_json and csv is not None and out is None:
        raise ConfigError("standard output is either the CSV or the JSON document: give --out FILE too")
    refuse_no_store(store)
    if list_:
        _list(store, as_json=as_json)
    elif csv is not None and out is None:
        from tasks.export import write_csv

        say(f"{write_csv(store, csv, sys.stdout.buffer):,} rows")
    elif csv is not None and out is not None:
        from tasks.export import export_csv

        _written(out, export_csv(store, csv, out, overwrite=overwrite), as_json=as_json)
    elif stac is not None:
        from tasks.export_stac import export_stac

        _written(stac, export_stac(store, stac, overwrite=overwrite), as_json=as_json)
    elif gpkg is not None:
        from tasks.export_geopackage import export_geopackage

        _written(gpkg, export_geopackage(store, gpkg, overwrite=overwrite), as_json=as_json)


def _list(store: Path, *, as_json: bool) -> None:
    from tasks.export import names_of_tables

    names = names_of_tables(store)
    if as_json:
        tell_json({"tables": names})
    else:
        typer.echo("\n".join(names))


def _written(path: Path, found: "Exported", *, as_json: bool) -> None:
    if as_json:
        tell_json({"file": path, "rows": found.rows, "left_out": found.left_out})
        return
    left = f"; {found.left_out:,} patches left out: they have no place or no day" if found.left_out else ""
    typer.echo(f"written: {path}, {found.rows:,} rows{left}")


def serve(
    store: Store,
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port of 127.0.0.1; 0: any free one.")] = 8000,
    basemap: Annotated[
        str | None, typer.Option(metavar="URL", help="Map tiles with {z}, {x} and {y}; else none are fetched.")
    ] = None,
    browser: Annotated[bool, typer.Option("--browser", help="Open the page in the browser.")] = False,  # noqa: FBT002
) -> None:
    """Show a store in the browser of this machine: a map, filters, and each patch; Ctrl-C ends it."""
    refuse_no_store(store)
    from explorer.server import serve as serve_pages

    def ready(address: str) -> None:
        say(f"{store}: {address} (Ctrl-C ends it)")

    serve_pages(store, port=port, basemap=basemap, open_browser=browser, ready=ready)
