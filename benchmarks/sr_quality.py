"""How well super-resolution models restore Sentinel-2, by Wald's protocol, on images that none of ours was trained on.

    python benchmarks/sr_quality.py [--data $SUPERSCENE_DATA] [--figure docs/figures/sr_quality.webp]
                                    [--out benchmarks/results/sr_quality.json]

Three sets: the lower right quarter of a real Sentinel-2 L2A cell, and the test pictures (10 %, by the hash of their
names) of a EuroSAT and of a UC Merced folder; the latter are aerial, of 0.3 m, and of a kind that ours has never seen.
Each image is reduced to a quarter of its edge by means over 4 x 4 pixels, enlarged by each model, and compared with
itself, its detail by the shares of opensr-test; `consistency` enlarges the image itself and reduces that.
"""

import argparse
import json
import os
import platform
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from rich.console import Console
from rich.table import Column, Table
from torch import Tensor

import sr_models
from sr_models.quality import WALD_COLUMNS, consistency, wald
from sr_models.stretch import to_dn, to_unit
from sr_models.super_resolver import SuperResolver
from sr_models.wald_pairs import ImageSet
from tasks.sr_images import ImageFolder, ImageSource, Scene

MAX_DN = 3000
QUARTER = "Sentinel-2 quarter"
SHIPPED = Path(sr_models.__file__).parent / "shipped" / "srresnet_sentinel2.safetensors"
RESULTS = Path(__file__).parent / "results" / "sr_quality.json"


@dataclass(frozen=True, slots=True)
class Row:
    """One model on one set; means over its images."""

    set: str
    model: str
    weights_sha256: str | None
    images: int
    psnr_db: float
    ssim: float
    sam_deg: float
    ergas: float
    improvement_share: float
    """Of the pixels with detail, as the two that follow; see `sr_models.opensr`."""
    omission_share: float
    hallucination_share: float
    reflectance_mae: float | None
    """Consistency, of the scene only: pictures are no reflectance."""
    seconds: float


def models(data: Path) -> dict[str, SuperResolver]:
    """Return the models whose weights are at hand."""
    found = {"bicubic": sr_models.load("bicubic"), "srresnet (ours)": sr_models.load("srresnet", SHIPPED)}
    real = data / "weights" / "realesr-general-x4v3-fp16.pth"
    if real.is_file():
        found["realesrgan_general"] = sr_models.load("realesrgan_general", real)
    return found


def test_sets(data: Path) -> dict[str, ImageSet]:
    """Return the images that nothing was trained or chosen on, each cut to a multiple of four pixels."""
    (cell,) = (path for path in (data / "sentinel2_l2a_cell").iterdir() if path.is_dir())
    sets: dict[str, ImageSource] = {
        QUARTER: Scene(cell, max_dn=MAX_DN),
        "EuroSAT, held out": ImageFolder(data / "eurosat_rgb"),
        "UC Merced": ImageFolder(data / "ucmerced_multilabel" / "images"),
    }
    return {name: _cut(source.read("test")) for name, source in sets.items()}


def measure(name: str, images: ImageSet, title: str, resolver: SuperResolver) -> Row:
    """Return one model's row on one set."""
    started = time.perf_counter()
    rows, errors = [], []
    for dn in images.images:
        found = wald(resolver, to_unit(dn[None], images.max_dn))
        rows.append(torch.stack([found[key][0] for key in WALD_COLUMNS]))
        if images.max_dn == MAX_DN:
            tiles = _tiles(dn)
            enlarged = to_dn(resolver(to_unit(tiles, MAX_DN)), MAX_DN)
            errors.append(consistency(enlarged, tiles, MAX_DN)["reflectance_mae"].mean())
    means = torch.stack(rows).double().nanmean(dim=0).tolist()
    mae = float(torch.stack(errors).mean()) if errors else None
    seconds = time.perf_counter() - started
    return Row(
        set=name,
        model=title,
        weights_sha256=resolver.weights_sha256,
        images=len(rows),
        reflectance_mae=mae,
        seconds=seconds,
        **dict(zip(WALD_COLUMNS, means, strict=True)),
    )


def figure(images: ImageSet, resolvers: Mapping[str, SuperResolver], path: Path, edge: int = 120) -> None:
    """Draw crops of the scene: the input, bicubic, ours and the truth, side by side."""
    (dn,) = images.images
    x = to_unit(dn[None], MAX_DN)
    reduced = sr_models.quality.reduce_mean(x)
    columns = {
        "input, 40 m": torch.nn.functional.interpolate(reduced, scale_factor=4, mode="nearest"),
        "bicubic": resolvers["bicubic"](reduced),
        "srresnet, ours": resolvers["srresnet (ours)"](reduced),
        "truth, 10 m": x,
    }
    places = _busiest(x[0], edge, 3)
    zoom, gap, head = 2, 6, 24
    cell = edge * zoom
    sheet = Image.new("RGB", (len(columns) * (cell + gap) - gap, head + len(places) * (cell + gap) - gap), "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default(15)
    for i, (title, values) in enumerate(columns.items()):
        draw.text((i * (cell + gap) + cell / 2, head / 2), title, "black", font, anchor="mm")
        for j, (top, left) in enumerate(places):
            reference = x[0, :, top : top + edge, left : left + edge]
            low, high = np.quantile(reference.numpy(), [0.01, 0.99])  # one stretch a row, for the eye only
            crop = values[0, :, top : top + edge, left : left + edge]
            pixels = ((crop - low) / (high - low)).clamp(0, 1).pow(0.7).mul(255).byte().permute(1, 2, 0).numpy()
            picture = Image.fromarray(pixels).resize((cell, cell), Image.Resampling.NEAREST)
            sheet.paste(picture, (i * (cell + gap), head + j * (cell + gap)))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path, quality=82, method=6)


def _busiest(x: Tensor, edge: int, n: int) -> list[tuple[int, int]]:
    """Return n places apart where the picture changes most, so that there is something to see."""
    grey = x.mean(dim=0)
    change = (grey[1:, :-1] - grey[:-1, :-1]).abs() + (grey[:-1, 1:] - grey[:-1, :-1]).abs()
    blocks = torch.nn.functional.avg_pool2d(change[None, None], edge, stride=edge // 2)[0, 0]
    chosen: list[tuple[int, int]] = []
    for flat in blocks.flatten().argsort(descending=True).tolist():
        row, column = divmod(flat, blocks.shape[1])
        if all(max(abs(row - r), abs(column - c)) >= 2 for r, c in chosen):
            chosen.append((row, column))
        if len(chosen) == n:
            break
    return [(row * edge // 2, column * edge // 2) for row, column in chosen]


def _cut(images: ImageSet) -> ImageSet:
    pieces = tuple(image[:, : image.shape[1] // 4 * 4, : image.shape[2] // 4 * 4] for image in images.images)
    return ImageSet(images.name, pieces, images.max_dn)


def _tiles(dn: Tensor, edge: int = 120) -> Tensor:
    """Return the whole patches of an image, (N, 3, 120, 120): what the pipeline enlarges."""
    rows, columns = dn.shape[1] // edge, dn.shape[2] // edge
    whole = dn[:, : rows * edge, : columns * edge].reshape(3, rows, edge, columns, edge)
    return whole.permute(1, 3, 0, 2, 4).reshape(-1, 3, edge, edge).contiguous()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--data", type=Path, default=os.environ.get("SUPERSCENE_DATA"), help="see its parts in `test_sets`"
    )
    parser.add_argument("--figure", type=Path, help="where to draw crops of the scene")
    parser.add_argument("--out", type=Path, default=RESULTS)
    chosen = parser.parse_args()
    if chosen.data is None:
        parser.error("real data is needed: set SUPERSCENE_DATA, or give --data FOLDER")
    resolvers, sets = models(chosen.data), test_sets(chosen.data)
    rows = [measure(name, images, title, r) for name, images in sets.items() for title, r in resolvers.items()]
    table = Table(
        Column("set", no_wrap=True),
        Column("model", no_wrap=True),
        "images",
        "PSNR dB",
        "SSIM",
        "SAM deg",
        "ERGAS",
        "improved",
        "left out",
        "made up",
        "consistency",
        box=None,
    )
    for row in rows:
        mae = "" if row.reflectance_mae is None else f"{row.reflectance_mae:.5f}"
        numbers = f"{row.psnr_db:.2f}", f"{row.ssim:.4f}", f"{row.sam_deg:.3f}", f"{row.ergas:.3f}"
        shares = (f"{share:.1%}" for share in (row.improvement_share, row.omission_share, row.hallucination_share))
        table.add_row(row.set, row.model, str(row.images), *numbers, *shares, mae)
    Console(width=130).print(table)
    result = {
        "benchmark": "sr_quality",
        "max_dn": MAX_DN,
        "versions": {
            "python": platform.python_version(),
            "torch": version("torch"),
            "superscene": version("superscene"),
        },
        "rows": [asdict(row) for row in rows],
    }
    chosen.out.parent.mkdir(parents=True, exist_ok=True)
    chosen.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    if chosen.figure:
        figure(sets[QUARTER], resolvers, chosen.figure)


if __name__ == "__main__":
    main()
