"""Commands beside the flows: what a run would do, whether the machine can, archives and scenes by themselves."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Column, Table
from rich.text import Text

from flows.commands.arguments import AsJson, Overrides, RunYaml, load
from flows.commands.completion import DTYPES, SCENE_MODELS, one_of, run_yamls
from flows.commands.documents import plan_document
from flows.commands.output import plain, say, tell, tell_json
from flows.commands.places import refuse_missing

_COLOURS = {"ok": "green", "warn": "yellow", "fail": "bold red"}


def plan(
    run_yaml: RunYaml,
    overrides: Overrides = None,
    price_per_hour: Annotated[
        float | None, typer.Option(min=0, help="Of one GPU, or core: tells what the run costs.")
    ] = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Tell what a run would do: patches, shards, bytes, costly passes and hours of devices, before anything runs."""
    config = load(run_yaml, overrides)
    from flows.estimate import estimate

    rows = estimate(config, price_per_hour)
    if as_json:
        tell_json(plan_document(config, rows))
        return
    table = Table("what", "how much", box=None)
    for row in rows:
        table.add_row(plain(row.title), plain(row.text))
    Console().print(table)


def doctor(
    target: Annotated[
        str | None,
        typer.Argument(
            help="A RUN.yaml, or a store: what they need is looked at too.",
            metavar="[RUN.yaml|STORE]",
            autocompletion=run_yamls,
        ),
    ] = None,
    overrides: Overrides = None,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Check the machine, and what a RUN.yaml or a store needs of it, and say what to do; exit code 2 if it cannot."""
    if target is not None and Path(target).suffix.lower() in {".yaml", ".yml"}:
        refuse_missing(Path(target))
    from flows.doctor.case import case_of
    from flows.doctor.checks import examine

    found = examine(case_of(target, overrides))
    failed = sum(each.state == "fail" for each in found)
    if as_json:
        tell_json({"ok": not failed, "checks": [asdict(each) for each in found]})
    else:
        table = Table("check", "", Column("found; and what to do", overflow="fold"), box=None)
        for each in found:
            words = plain(each.found)
            if each.advice:
                words.append("; ").append(f"what to do: {each.advice}", style="bold")
            table.add_row(each.name, Text(each.state, _COLOURS[each.state]), words)
        Console().print(table)
        warned = sum(each.state == "warn" for each in found)
        say(f"{len(found)} checks: {failed} failed, {warned} warnings")
    if failed:
        raise typer.Exit(2)


def synth(
    folder: Annotated[Path, typer.Argument(help="Where the archive goes.")],
    patches: Annotated[int, typer.Option(min=1, help="Patches to write.")] = 256,
    seed: Annotated[int, typer.Option(help="The same seed gives the same bytes.")] = 0,
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Write a synthetic archive in BigEarthNet-v2 layout."""
    from flows.demo import write_archive
    from flows.progress import bars

    with bars():
        write_archive(folder, patches, seed)
    if as_json:
        tell_json({"folder": folder, "patches": patches})
    else:
        typer.echo(f"{patches} patches in {folder}")


def super_resolve(
    source: Annotated[str, typer.Argument(help="The scene: a GeoTIFF, or another raster that GDAL reads.")],
    target: Annotated[Path, typer.Argument(help="The GeoTIFF to write, cloud-optimised.")],
    sr: Annotated[
        str, typer.Option(help="The model, such as realesrgan_general or bicubic.", autocompletion=one_of(SCENE_MODELS))
    ],
    weights: Annotated[Path | None, typer.Option(help="The model's weight file.")] = None,
    device: Annotated[str | None, typer.Option(help="cuda, cuda:1, cpu …; a GPU where there is one.")] = None,
    dtype: Annotated[
        str | None, typer.Option(help="float32, bfloat16 or float16.", autocompletion=one_of(DTYPES))
    ] = None,
    bands: Annotated[str | None, typer.Option(help="Red, green, blue: 4,3,2 or B04,B03,B02; else by name.")] = None,
    max_dn: Annotated[float | None, typer.Option(help="Clip above; 3000, 255 (uint8) or 0.3 (float32).")] = None,
    min_dn: Annotated[float, typer.Option(help="Clip below: 1000 for DN that carry that offset.")] = 0.0,
    window: Annotated[int | None, typer.Option(help="Edge of a window, pixels of the input.")] = None,
    margin: Annotated[
        int | None, typer.Option(help="Edge of a window to discard; less is faster, and may show.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace the output.")] = False,  # noqa: FBT002  # typer
    as_json: AsJson = False,  # noqa: FBT002  # typer
) -> None:
    """Super-resolve a scene of any size: a GeoTIFF in, a georeferenced GeoTIFF out."""
    from infra.allocator import keep_freed_memory

    keep_freed_memory()
    from flows.progress import bars, terminal_progress
    from sr_models import load
    from tasks.branch import worker_device
    from tasks.super_resolve_scene import SceneOptions, check_for_scenes, parse_bands, super_resolve_scene

    options = SceneOptions(parse_bands(bands), min_dn, max_dn, window, margin, overwrite)
    check_for_scenes(sr)
    resolver = load(sr, weights, device or worker_device(), dtype)
    try:
        with bars("pixels"):
            report = super_resolve_scene(source, target, resolver, options, terminal_progress())
    except KeyboardInterrupt:
        say("superscene: stopped; nothing was written")
        raise typer.Exit(130) from None
    if as_json:
        tell_json(asdict(report))
    else:
        tell(str(report))
