"""How fast ingest is: the bytes alone, a plain rasterio loop, this project's reader, and reading with Zarr writing.

    python benchmarks/ingest.py [--shards 8] [--shard-size 512] [--processes 2] [--seconds 2] [--repeats 5]
                                [--out benchmarks/results/ingest.json]

Every row reads the twelve Sentinel-2 bands of the same files, in turn within each repeat, from a warm page cache; the
median repeat counts. The files are the real patches of SUPERSCENE_DATA, else of the synthetic archive, copied under new
names into a BigEarthNet-v2 folder. Rows of one process use one thread. "reading" is what ingest does per patch before
it writes; "reading and writing" is ShardIngester, one shard a call, each repeat into a store of its own.
"""

import argparse
import json
import multiprocessing
import os
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from pathlib import Path
from threading import Barrier

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
from zarr.codecs import BloscCodec

from infra.archives.bigearthnet_v2 import METADATA, S2_FOLDER, BigEarthNetV2
from infra.archives.files import Folder
from infra.archives.model import BIGEARTHNET
from infra.archives.patch_folder import read_s2
from infra.archives.synthetic import write_synthetic_archive
from infra.bigearthnet.bands import S2_GROUPS
from infra.bigearthnet.classes import NAMES
from infra.parts import StageParts
from infra.storage import StorePaths
from infra.zarr_store import ShardedStore
from tasks.ingest import ShardIngester
from tasks.plan import Plan, make_plan, shard_inputs

BANDS = tuple(band for group in S2_GROUPS for band in group.bands)
PIXEL_BYTES = sum(2 * len(group.bands) * group.size**2 for group in S2_GROUPS)
PRODUCT = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"

RAW, RASTERIO, READER = "raw bytes (os.read)", "rasterio loop", "superscene reader"
READING, INGEST = "reading", "reading and writing"

type Timing = tuple[float, float, float]
"""Patches, seconds by the clock, seconds of processor time."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    processes: int
    patches_per_second: float
    """By the clock, all processes together; the median of the repeats."""
    slowest: float
    fastest: float
    patches_per_cpu_second: float
    """By the processor time used, median: what a core gives when nobody else wants it."""
    megabytes_per_second: float
    """Pixels, uncompressed, by the clock: 1e6 bytes."""


@dataclass(frozen=True, slots=True)
class Share:
    """One row's rate over another's."""

    of: str
    over: str
    by_clock: float
    by_fastest: float
    """The fastest repeat over the fastest: the least disturbed, where others use the machine too."""
    by_cpu: float


@dataclass(frozen=True, slots=True)
class Result:
    """The table and what it was measured on."""

    files: str
    patches: int
    file_bytes_per_patch: int
    pixel_bytes_per_patch: int
    shard_size: int
    shards: int
    codec: str
    stored_bytes_per_patch: float
    """All of archive.zarr, its empty Sentinel-1 and map shards included."""
    machine: str
    rows: tuple[Row, ...]
    shares: tuple[Share, ...]


def superscene(folder: str, name: str) -> None:
    """Read, check type, size and grid of every band, find the footprint and the share of nodata."""
    root, _, relative = folder.rpartition(f"/{S2_FOLDER}/")
    opened = Folder.open(root, f"{S2_FOLDER}/{relative}")
    assert opened is not None
    with opened:
        read_s2(opened, name)


def rasterio_loop(folder: str, name: str) -> None:
    """The usual loop; it checks nothing."""
    for group in S2_GROUPS:
        array = np.empty((len(group.bands), group.size, group.size), np.uint16)
        for i, band in enumerate(group.bands):
            with rasterio.open(f"{folder}/{name}_{band}.tif") as dataset:
                dataset.read(1, out=array[i])


def raw_bytes(folder: str, name: str) -> None:
    """Open, read and close each file: the least that any reader of single files has to do."""
    for band in BANDS:
        fd = os.open(f"{folder}/{name}_{band}.tif", os.O_RDONLY)
        os.read(fd, 1 << 16)
        os.close(fd)


READERS: Sequence[tuple[str, Callable[[str, str], None]]] = (
    (RAW, raw_bytes),
    (RASTERIO, rasterio_loop),
    (READER, superscene),
)


def prepare(root: Path, patches: int) -> tuple[str, list[str]]:
    """Fill `root` with a BigEarthNet-v2 archive without Sentinel-1 and maps.

    Args:
        root: An empty folder.
        patches: How many to write, at most 10,000: copies of whatever patches are at hand.

    Returns:
        What the files are, and the patches' ids.
    """
    data = os.environ.get("SUPERSCENE_DATA")
    if data:
        sources = sorted((Path(data) / "bigearthnet_v1" / "BigEarthNet-v1.0").iterdir())
        sources += sorted((Path(data) / "bigearthnet_v2" / S2_FOLDER).glob("*/*"))
        kind = f"copies of {len(sources)} real BigEarthNet v1 and v2 patches"
    else:
        write_synthetic_archive(root / "synthetic", 12)
        sources = sorted((root / "synthetic" / S2_FOLDER).glob("*/*"))
        kind = f"copies of {len(sources)} synthetic patches"
    ids = [f"{PRODUCT}_{i // 100:02d}_{i % 100:02d}" for i in range(patches)]
    for i, patch_id in enumerate(ids):
        source = sources[i % len(sources)]
        folder = root / S2_FOLDER / PRODUCT / patch_id
        folder.mkdir(parents=True)
        for band in BANDS:
            shutil.copyfile(source / f"{source.name}_{band}.tif", folder / f"{patch_id}_{band}.tif")
    columns = {"patch_id": ids, "split": ["train"] * patches, "labels": [[NAMES[i % 19]] for i in range(patches)]}
    pq.write_table(pa.table(columns), root / METADATA)
    return kind, ids


def timed(reader: Callable[[str, str], None], root: Path, ids: Sequence[str], seconds: float) -> Timing:
    """Read patches in one process for about `seconds`."""
    done = 0
    folder = f"{root}/{S2_FOLDER}/{PRODUCT}"
    start, cpu = time.perf_counter(), time.process_time()
    while (elapsed := time.perf_counter() - start) < seconds:
        for patch_id in ids:
            reader(f"{folder}/{patch_id}", patch_id)
            done += 1
            if done % 64 == 0 and time.perf_counter() - start >= seconds:
                break
    return done, elapsed, time.process_time() - cpu


class Worker:
    """What one process does, again and again: it keeps its ingester, as a Ray actor does."""

    def __init__(self, root: str, parts: StageParts, start: Barrier) -> None:
        self._archive, self._parts, self._start = BigEarthNetV2(root), parts, start
        self._ingester = ShardIngester(self._archive, BIGEARTHNET, parts)

    def read(self, shards: Sequence[int]) -> Timing:
        """Read the shards' patches in ingest's order, from when every process is ready; return start, end, CPU time."""
        inputs = [place for shard in shards for place in shard_inputs(self._parts, shard)]
        inputs.sort(key=lambda place: place[1].source)
        start, cpu = self._go()
        for _, source in inputs:
            self._archive.read(source)
        return start, time.perf_counter(), time.process_time() - cpu

    def ingest(self, shards: Sequence[int]) -> Timing:
        """Read and write the shards; returns as `read`."""
        start, cpu = self._go()
        for shard in shards:
            self._ingester.run(shard)
        return start, time.perf_counter(), time.process_time() - cpu

    def _go(self) -> tuple[float, float]:
        self._start.wait()
        return time.perf_counter(), time.process_time()


_worker: Worker


def _begin(root: str, parts: StageParts, start: Barrier) -> None:
    global _worker  # noqa: PLW0603 - a barrier reaches a process only as it starts
    _worker = Worker(root, parts, start)


def _read(shards: Sequence[int]) -> Timing:
    return _worker.read(shards)


def _ingest(shards: Sequence[int]) -> Timing:
    return _worker.ingest(shards)


def together(pool: ProcessPoolExecutor, work: Callable[[Sequence[int]], Timing], plan: Plan, processes: int) -> Timing:
    """Let all processes share the shards; from the first start to the last end."""
    shards = sorted(plan.shards)
    futures = [pool.submit(work, shards[i::processes]) for i in range(processes)]
    starts, ends, cpu = zip(*(future.result() for future in futures), strict=True)
    return len(shards) * plan.shard_size, max(ends) - min(starts), sum(cpu)


def forget(plan: Plan) -> None:
    """Remove what was ingested, but not the plan and the empty store."""
    for chunks in plan.paths.archive.glob("*/c"):
        if chunks.parent.name in {"s2_10m", "s2_20m", "s2_60m", "s1", "reference_map", "labels", "valid"}:
            shutil.rmtree(chunks)
    shutil.rmtree(plan.parts.folder, ignore_errors=True)


def measure(shards: int, shard_size: int, processes: int, seconds: float, repeats: int) -> Result:
    """Return the table.

    Args:
        shards: Shards of the archive, a multiple of `processes`.
        shard_size: Patches in a shard.
        processes: How many read, or read and write, at the same time.
        seconds: Time of each row of one process in each repeat.
        repeats: Turns of all rows.
    """
    timings: dict[str, list[Timing]] = {name: [] for name in (*dict(READERS), READING, INGEST)}
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "archive"
        kind, ids = prepare(root, shards * shard_size)
        plan = make_plan(BigEarthNetV2(str(root)), StorePaths(Path(folder) / "store"), "bigearthnet-v2", shard_size)
        context = multiprocessing.get_context("spawn")
        arguments = (str(root), plan.parts, context.Barrier(processes))
        with ProcessPoolExecutor(processes, context, _begin, arguments) as pool:
            for repeat in range(-1, repeats):  # the first turn warms the page cache and the processes
                turn = {name: timed(reader, root, ids, seconds) for name, reader in READERS}
                turn[READING] = together(pool, _read, plan, processes)
                forget(plan)  # not before: a guest may have to ask its host for memory that it has left unused
                turn[INGEST] = together(pool, _ingest, plan, processes)
                if repeat >= 0:
                    for name, timing in turn.items():
                        timings[name].append(timing)
        first = root / S2_FOLDER / PRODUCT / ids[0]
        (codec,) = ShardedStore(plan.paths.archive).array("s2_10m").compressors
        assert isinstance(codec, BloscCodec)
        stored = sum(path.stat().st_size for path in plan.paths.archive.rglob("*") if path.is_file())
        rows = {name: _row(name, processes if name in {READING, INGEST} else 1, timings[name]) for name in timings}
        return Result(
            files=kind,
            patches=len(ids),
            file_bytes_per_patch=sum(path.stat().st_size for path in first.iterdir()),
            pixel_bytes_per_patch=PIXEL_BYTES,
            shard_size=shard_size,
            shards=shards,
            codec=f"blosc {codec.cname}, level {codec.clevel}, {codec.shuffle}",
            stored_bytes_per_patch=stored / len(ids),
            machine=f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
            rows=tuple(rows.values()),
            shares=tuple(
                _share(rows[of], rows[over]) for of, over in ((READER, RASTERIO), (READER, RAW), (INGEST, READING))
            ),
        )


def _row(name: str, processes: int, timings: Sequence[Timing]) -> Row:
    clock = [patches / elapsed for patches, elapsed, _ in timings]
    median = statistics.median(clock)
    cpu = statistics.median(patches / seconds for patches, _, seconds in timings)
    return Row(name, processes, median, min(clock), max(clock), cpu, median * PIXEL_BYTES / 1e6)


def _share(of: Row, over: Row) -> Share:
    return Share(
        of.name,
        over.name,
        of.patches_per_second / over.patches_per_second,
        of.fastest / over.fastest,
        of.patches_per_cpu_second / over.patches_per_cpu_second,
    )


def show(result: Result) -> str:
    """Return the table as text."""
    heads = {"processes": 10, "patches/s": 11, "slowest": 9, "fastest": 9, "per CPU s": 11, "MB/s": 9}
    return "\n".join(
        [
            f"12 bands of {result.patches} patches: {result.files}; {result.machine}; page cache warm",
            f"a patch: {result.file_bytes_per_patch:,} B in files, {result.pixel_bytes_per_patch:,} B of pixels",
            f"stored: {result.stored_bytes_per_patch:,.0f} B a patch in archive.zarr; codec {result.codec}",
            f"{result.shards} shards of {result.shard_size} patches, {PIXEL_BYTES * result.shard_size:,} B of pixels",
            f"{'':<22}" + "".join(f"{head:>{width}}" for head, width in heads.items()),
            *(
                f"{r.name:<22}{r.processes:>10}{r.patches_per_second:>11,.0f}{r.slowest:>9,.0f}{r.fastest:>9,.0f}"
                f"{r.patches_per_cpu_second:>11,.0f}{r.megabytes_per_second:>9,.0f}"
                for r in result.rows
            ),
            *(
                f"{s.of} / {s.over}: {s.by_clock:.2f} by the clock, {s.by_fastest:.2f} fastest, {s.by_cpu:.2f} by CPU"
                for s in result.shares
            ),
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Patches read, and read and written, per second.")
    parser.add_argument("--shards", type=int, default=8, help="a multiple of --processes")
    parser.add_argument("--shard-size", type=int, default=512)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each row of one process in each repeat")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args()
    if options.shards % options.processes:
        parser.error(f"--shards {options.shards} is no multiple of --processes {options.processes}")
    result = measure(options.shards, options.shard_size, options.processes, options.seconds, options.repeats)
    print(show(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(asdict(result), indent=2) + "\n")


if __name__ == "__main__":
    main()
