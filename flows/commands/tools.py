"""Commands beside the flows: what a run would do, whether the machine can, archives and scenes by themselves."""

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from flows.commands.arguments import Overrides, RunYaml
from flows.commands.output import plain, say, tell


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
        table.add_row(plain(what), plain(amount))
    Console().print(table)


def doctor() -> None:
    """Check the machine: what works, and what to do about what does not."""
    from flows.doctor import checks

    table = Table("check", "", "found", "what to do", box=None)
    results = checks()
    for check in results:
        table.add_row(check.name, "ok" if check.ok else "no", plain(check.found), plain(check.advice))
    Console().print(table)
    if not all(check.ok for check in results):
        raise typer.Exit(1)


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
        say("superscene: stopped; nothing was written")
        raise typer.Exit(130) from None
    tell(str(report))
