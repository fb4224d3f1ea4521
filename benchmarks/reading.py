"""How fast a patch's twelve bands are read: this project's reader, a plain rasterio loop, and the bytes alone.

    python benchmarks/reading.py [--copies 50] [--seconds 3] [--repeats 3] [--out benchmarks/results/reading.json]

One process, one thread, files in the page cache, the same files for every row, the readers in turn within each repeat;
the median repeat counts. The files are copies of the real BigEarthNet patches in SUPERSCENE_DATA, else written by
rasterio in the same format.
"""

import argparse
import json
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import rasterio
from rasterio.transform import from_origin

from infra.archives.files import Folder
from infra.archives.patch_folder import nodata_share, read_s2
from infra.bigearthnet.bands import S2_GROUPS

BANDS = [(band, group.size) for group in S2_GROUPS for band in group.bands]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    reader: str
    patches_per_second: float
    """By the clock, one thread; the median of the repeats."""
    slowest: float
    fastest: float
    patches_per_cpu_second: float
    """By the processor time used, median: what a core gives when nobody else wants it."""
    times_rasterio: float
    """`patches_per_cpu_second` over that of the rasterio loop."""
    share_of_raw: float
    """`patches_per_cpu_second` over that of reading the bytes alone."""


@dataclass(frozen=True, slots=True)
class Result:
    """The table and what it was measured on."""

    files: str
    patches: int
    bytes_per_patch: int
    machine: str
    rows: tuple[Row, ...]


def superscene(root: str, name: str) -> None:
    """Read, check type, size and grid of every band, find the footprint and the share of nodata."""
    folder = Folder.open(root, f"patches/{name}")
    assert folder is not None
    with folder:
        nodata_share(read_s2(folder, name).s2_10m)


def rasterio_loop(root: str, name: str) -> None:
    """The usual loop; it checks nothing."""
    for group in S2_GROUPS:
        array = np.empty((len(group.bands), group.size, group.size), np.uint16)
        for i, band in enumerate(group.bands):
            with rasterio.open(f"{root}/patches/{name}/{name}_{band}.tif") as dataset:
                dataset.read(1, out=array[i])


def raw_bytes(root: str, name: str) -> None:
    """Open, read and close each file: the least that any reader of single files has to do."""
    for band, _ in BANDS:
        fd = os.open(f"{root}/patches/{name}/{name}_{band}.tif", os.O_RDONLY)
        os.read(fd, 1 << 16)
        os.close(fd)


READERS: Sequence[tuple[str, Callable[[str, str], None]]] = (
    ("raw bytes (os.read)", raw_bytes),
    ("superscene", superscene),
    ("rasterio loop", rasterio_loop),
)


def prepare(root: Path, copies: int) -> tuple[str, list[str]]:
    """Fill `root/patches` and return what the files are, and the patches' names.

    Args:
        root: An empty folder.
        copies: How often each patch is copied.
    """
    data = os.environ.get("SUPERSCENE_DATA")
    sources: list[Path] = []
    if data:
        sources = sorted((Path(data) / "bigearthnet_v1" / "BigEarthNet-v1.0").iterdir())
        sources += sorted((Path(data) / "bigearthnet_v2" / "BigEarthNet-S2").glob("*/*"))
        kind = f"{len(sources)} real BigEarthNet v1 and v2 patches, each copied {copies} times"
    else:
        sources = [write_patch(root / "written" / f"S2A_MSIL2A_20170613T101031_0_{i}", i) for i in range(20)]
        kind = f"{len(sources)} patches written by rasterio, each copied {copies} times"
    names = []
    for copy in range(copies):
        for source in sources:
            name = f"{source.name}_{copy}"
            folder = root / "patches" / name
            folder.mkdir(parents=True)
            names.append(name)
            for band, _ in BANDS:
                shutil.copyfile(source / f"{source.name}_{band}.tif", folder / f"{name}_{band}.tif")
    return kind, names


def write_patch(folder: Path, seed: int) -> Path:
    """Write twelve bands as BigEarthNet has them: uncompressed strips, EPSG:32633."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    for group in S2_GROUPS:
        for band in group.bands:
            pixels = random.integers(1, 10000, (group.size, group.size)).astype(np.uint16)
            with rasterio.open(
                folder / f"{folder.name}_{band}.tif",
                "w",
                driver="GTiff",
                height=group.size,
                width=group.size,
                count=1,
                dtype=pixels.dtype,
                crs="EPSG:32633",
                transform=from_origin(399960.0 + 1200 * seed, 5300040.0, group.gsd, group.gsd),
            ) as dataset:
                dataset.write(pixels, 1)
    return folder


def rate(reader: Callable[[str, str], None], root: str, names: Sequence[str], seconds: float) -> tuple[float, float]:
    """Return patches per second, by the clock and by processor time, over about `seconds`."""
    done = 0
    start, cpu = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        for name in names:
            reader(root, name)
            done += 1
            if done % 64 == 0 and time.perf_counter() - start >= seconds:
                break
    return done / elapsed, done / (time.process_time() - cpu)


def measure(copies: int, seconds: float, repeats: int) -> Result:
    """Return the table.

    Args:
        copies: How often each source patch is copied.
        seconds: Time of each reader in each repeat.
        repeats: Turns of all readers.
    """
    rates: dict[str, list[tuple[float, float]]] = {label: [] for label, _ in READERS}
    with tempfile.TemporaryDirectory() as folder:
        kind, names = prepare(Path(folder), copies)
        for name in names:
            raw_bytes(folder, name)  # into the page cache
        size = sum((Path(folder) / "patches" / names[0] / f"{names[0]}_{band}.tif").stat().st_size for band, _ in BANDS)
        for _ in range(repeats):
            for label, reader in READERS:
                rates[label].append(rate(reader, folder, names, seconds))
    clock = {label: [by_clock for by_clock, _ in values] for label, values in rates.items()}
    cpu = {label: statistics.median(by_cpu for _, by_cpu in values) for label, values in rates.items()}
    rows = tuple(
        Row(
            reader=label,
            patches_per_second=statistics.median(clock[label]),
            slowest=min(clock[label]),
            fastest=max(clock[label]),
            patches_per_cpu_second=cpu[label],
            times_rasterio=cpu[label] / cpu["rasterio loop"],
            share_of_raw=cpu[label] / cpu["raw bytes (os.read)"],
        )
        for label in rates
    )
    return Result(kind, len(names), size, f"{platform.machine()}, {platform.system()}, 1 thread", rows)


def show(result: Result) -> str:
    """Return the table as text."""
    lines = [
        f"12 bands of {result.patches} patches, {result.bytes_per_patch:,} B each, page cache warm, {result.machine}",
        f"files: {result.files}",
    ]
    heads = {"patches/s": 11, "slowest": 10, "fastest": 10, "per CPU s": 11, "x rasterio": 12, "of raw": 8}
    lines.append(f"{'reader':<22}" + "".join(f"{head:>{width}}" for head, width in heads.items()))
    lines += [
        f"{r.reader:<22}{r.patches_per_second:>11,.0f}{r.slowest:>10,.0f}{r.fastest:>10,.0f}{r.patches_per_cpu_second:>11,.0f}"
        f"{r.times_rasterio:>12.1f}{r.share_of_raw:>8.0%}"
        for r in result.rows
    ]
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description="Patches read per second and core.")
    parser.add_argument("--copies", type=int, default=50)
    parser.add_argument("--seconds", type=float, default=3.0)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args()
    result = measure(options.copies, options.seconds, options.repeats)
    print(show(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(asdict(result), indent=2) + "\n")


if __name__ == "__main__":
    main()
