"""How fast ingest from BigEarthNet-S2.tar.zst is, beside `zstd -d | tar t` alone and writing Zarr alone.

    python benchmarks/tar_ingest.py [--shards 16] [--shard-size 512] [--processes 2] [--repeats 5]
                                    [--out benchmarks/results/tar_ingest.json]

The archive is packed by tar and zstd at their defaults from patches of the synthetic archive, each copied many times
with noise of its own in the lowest four bits: equal copies would compress to nothing. All rows take turns within a
repeat, page cache warm; the median repeat counts. "tar ingest" is what the flow does, planning apart: one pass that
fills the buckets, on the pool's driver, and ShardIngester on the pool's actors, each repeat into an emptied store. "one
pass" is the first half of it alone. "Zarr write" are the same actors writing arrays that they hold already.

Processor time is that of this process, of what it ran and of Ray's workers. What both peers take of it together is work
that ingest has to do as well: the machine's cores, all busy with that alone, would have the rate that is printed last.
"""

import argparse
import io
import json
import os
import platform
import resource
import shutil
import statistics
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from infra.archives.bigearthnet_v2 import METADATA, S2_FOLDER
from infra.archives.layouts import open_archive
from infra.archives.streamed import StreamedArchive
from infra.archives.synthetic import write_synthetic_archive
from infra.archives.tiff import decode
from infra.bigearthnet.bands import S2_BANDS
from infra.bigearthnet.classes import NAMES
from infra.parts import StageParts
from infra.ray_cluster import cluster
from infra.ray_pool import Done, Resources, run_pool
from infra.storage import StorePaths
from infra.zarr_store import ShardedStore
from tasks.bucket_ingest import BucketFeed
from tasks.plan import Plan, make_plan
from tasks.stage import ShardCount, run_stage

LAYOUT = "bigearthnet-v2"
PRODUCT = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
SYNTHETIC = 12
"""Patches of which all others are noisy copies."""
NOISE = 16
"""Values of the noise, DN."""
ARRAYS = ("s2_10m", "s2_20m", "s2_60m", "labels", "valid")

TAR, ZARR, PASS, INGEST = "zstd -d | tar t", "Zarr write", "one pass", "tar ingest"


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    name: str
    patches_per_second: float
    """By the clock; the median of the repeats."""
    slowest: float
    fastest: float
    megabytes_per_second: float
    """Of the tar archive, uncompressed, by the clock: 1e6 bytes."""
    cpu_microseconds: float
    """Of processors, a patch; the median of the repeats."""


@dataclass(frozen=True, slots=True)
class Result:
    """The table and what it was measured on."""

    patches: int
    shards: int
    shard_size: int
    processes: int
    tar_bytes: int
    archive_bytes: int
    """Of the .tar.zst."""
    machine: str
    rows: tuple[Row, ...]
    slower_peer: str
    share_of_slower_peer: float
    """The rate of "tar ingest" over that of the slower peer, medians."""
    share_of_slower_peer_fastest: float
    """The same of the fastest repeats: the least disturbed, where others use the machine too."""
    both_peers_patches_per_second: float
    """Of all cores, if they did the work of both peers and nothing else."""


class ZarrWriter:
    """Writes the arrays of one store's first shard to whichever shard of another is asked for."""

    def __init__(self, source: Path, target: Path) -> None:
        self._store = ShardedStore(target, writable=True)
        ready = ShardedStore(source)
        self._values = {name: ready.read(0, name) for name in ARRAYS}

    def run(self, shard: int) -> ShardCount:
        """Write one shard."""
        for name, values in self._values.items():
            self._store.write(shard, name, values)
        return ShardCount(self._store.shard_size)


def prepare(folder: Path, patches: int) -> tuple[Path, int]:
    """Write a BigEarthNet-S2.tar.zst and its metadata.

    Args:
        folder: An empty folder.
        patches: How many the archive has, at most 10,000.

    Returns:
        The archive, and its bytes uncompressed.
    """
    write_synthetic_archive(folder / "synthetic", SYNTHETIC)
    sources = sorted((folder / "synthetic" / S2_FOLDER).glob("*/*"))
    files = [{band: (source / f"{source.name}_{band}.tif").read_bytes() for band in S2_BANDS} for source in sources]
    random = np.random.default_rng(0)
    ids = [f"{PRODUCT}_{i // 100:02d}_{i % 100:02d}" for i in range(patches)]
    plain = folder / f"{S2_FOLDER}.tar"
    with tarfile.open(plain, "w", format=tarfile.GNU_FORMAT) as tar:
        for i, patch_id in enumerate(ids):
            for band, data in files[i % len(files)].items():
                noisy = _with_noise(data, random)
                info = tarfile.TarInfo(f"{S2_FOLDER}/{PRODUCT}/{patch_id}/{patch_id}_{band}.tif")
                info.size = len(noisy)
                tar.addfile(info, io.BytesIO(noisy))
    n_bytes = plain.stat().st_size
    subprocess.run(["zstd", "--quiet", "--rm", str(plain)], check=True)
    columns = {"patch_id": ids, "split": ["train"] * patches, "labels": [[NAMES[i % 19]] for i in range(patches)]}
    pq.write_table(pa.table(columns), folder / METADATA)
    return plain.with_name(f"{plain.name}.zst"), n_bytes


def _with_noise(data: bytes, random: np.random.Generator) -> bytes:
    """Return a TIFF of one run of strips with noise in its pixels."""
    pixels = decode(data, "synthetic").pixels
    start = data.index(pixels.tobytes())
    noisy = pixels ^ random.integers(0, NOISE, pixels.shape, pixels.dtype)
    return data[:start] + noisy.tobytes() + data[start + pixels.nbytes :]


def list_archive(archive: Path) -> None:
    """Decompress the archive and list its members, with the usual tools."""
    with subprocess.Popen(["zstd", "-dcq", str(archive)], stdout=subprocess.PIPE) as zstd:
        subprocess.run(["tar", "t"], stdin=zstd.stdout, stdout=subprocess.DEVNULL, check=True)
    if zstd.returncode:
        raise subprocess.CalledProcessError(zstd.returncode, "zstd")


def write_zarr(source: Path, plan: Plan, resources: Resources) -> None:
    """Write every shard, by the pool."""
    outcomes = list(run_pool(partial(ZarrWriter, source, plan.paths.archive), sorted(plan.shards), resources))
    assert all(isinstance(outcome, Done) for outcome in outcomes), outcomes


def pass_over(archive: StreamedArchive, plan: Plan) -> None:
    """Fill the buckets and throw them away."""
    sealed = [shard for group in BucketFeed(archive, plan)(sorted(plan.shards)) for shard in group]
    assert len(sealed) == len(plan.shards)


def ingest(archive: StreamedArchive, plan: Plan, resources: Resources) -> None:
    """Ingest every shard, as the flow does."""
    feed = BucketFeed(archive, plan)
    shards = sorted(plan.shards)
    report = run_stage("ingest", feed.worker, [plan.parts], shards, resources, ready=feed)
    assert report.complete, report.failures
    assert report.patches == len(plan.shards) * plan.shard_size


def forget(parts: StageParts) -> None:
    """Remove what was ingested, but not the plan and the empty store."""
    for array in ARRAYS:
        shutil.rmtree(parts.paths.archive / array / "c", ignore_errors=True)
    shutil.rmtree(parts.folder, ignore_errors=True)
    shutil.rmtree(parts.paths.inventories, ignore_errors=True)


def processor_seconds() -> dict[int, float]:
    """Return the processor time of each process below this one by its id, and under 0 of this one and its dead."""
    usages = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    seconds = {0: sum(usage.ru_utime + usage.ru_stime for usage in usages)}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.NoSuchProcess):
            times = process.cpu_times()
            seconds[process.pid] = times.user + times.system
    return seconds


def spent_since(before: Mapping[int, float]) -> float:
    """Return the processor time since then; a worker of Ray's that ended meanwhile takes its own along."""
    return sum(seconds - before.get(process, 0.0) for process, seconds in processor_seconds().items())


def measure(shards: int, shard_size: int, processes: int, repeats: int) -> Result:
    """Return the table.

    Args:
        shards: Shards of the archive.
        shard_size: Patches in a shard.
        processes: Actors of the pool.
        repeats: Turns of all rows.
    """
    patches = shards * shard_size
    resources = Resources(actors=processes).without_gpu()
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in (TAR, ZARR, PASS, INGEST)}
    with tempfile.TemporaryDirectory() as name, cluster():
        folder = Path(name)
        path, tar_bytes = prepare(folder, patches)
        paths = StorePaths(folder / "store")
        archive = open_archive(LAYOUT, path, kept=paths.inventories)
        assert isinstance(archive, StreamedArchive)
        plan = make_plan(archive, paths, LAYOUT, shard_size)
        work: dict[str, Callable[[], None]] = {
            TAR: partial(list_archive, path),
            PASS: partial(pass_over, archive, plan),
            INGEST: partial(ingest, archive, plan, resources),
            ZARR: partial(write_zarr, folder / "ready.zarr", plan, resources),
        }
        for repeat in range(-1, repeats):  # the first turn warms the page cache and starts the actors
            for row, run in work.items():
                if row == ZARR and repeat < 0:
                    shutil.copytree(paths.archive, folder / "ready.zarr")
                if row != TAR:
                    forget(plan.parts)
                before, start = processor_seconds(), time.perf_counter()
                run()
                took = time.perf_counter() - start
                if repeat >= 0:
                    seconds[row].append((took, spent_since(before)))
        archive_bytes = path.stat().st_size
    rows = {name: _row(name, patches, tar_bytes, times) for name, times in seconds.items()}
    slower = min((rows[TAR], rows[ZARR]), key=lambda row: row.patches_per_second)
    return Result(
        patches=patches,
        shards=shards,
        shard_size=shard_size,
        processes=processes,
        tar_bytes=tar_bytes,
        archive_bytes=archive_bytes,
        machine=f"{platform.machine()}, {platform.system()}, {os.cpu_count()} cores",
        rows=tuple(rows.values()),
        slower_peer=slower.name,
        share_of_slower_peer=rows[INGEST].patches_per_second / slower.patches_per_second,
        share_of_slower_peer_fastest=rows[INGEST].fastest / min(rows[TAR].fastest, rows[ZARR].fastest),
        both_peers_patches_per_second=(os.cpu_count() or 1)
        / (rows[TAR].cpu_microseconds + rows[ZARR].cpu_microseconds)
        * 1e6,
    )


def _row(name: str, patches: int, tar_bytes: int, seconds: Sequence[tuple[float, float]]) -> Row:
    """Return a row of the seconds by the clock and of processors of each repeat."""
    clock = [took for took, _ in seconds]
    median = statistics.median(clock)
    return Row(
        name,
        patches / median,
        patches / max(clock),
        patches / min(clock),
        tar_bytes / 1e6 / median,
        statistics.median(cpu for _, cpu in seconds) / patches * 1e6,
    )


def show(result: Result) -> str:
    """Return the table as text."""
    heads = {"patches/s": 11, "slowest": 9, "fastest": 9, "MB/s": 9, "CPU us": 9}
    both = result.both_peers_patches_per_second
    slower = min(row.patches_per_second for row in result.rows if row.name in {TAR, ZARR})
    return "\n".join(
        [
            f"12 bands of {result.patches} patches; {result.machine}; page cache warm",
            f"a .tar of {result.tar_bytes:,} B, as .tar.zst {result.archive_bytes:,} B",
            f"{result.shards} shards of {result.shard_size} patches, {result.processes} actors",
            f"{'':<22}" + "".join(f"{head:>{width}}" for head, width in heads.items()),
            *(
                f"{r.name:<22}{r.patches_per_second:>11,.0f}{r.slowest:>9,.0f}{r.fastest:>9,.0f}"
                f"{r.megabytes_per_second:>9,.0f}{r.cpu_microseconds:>9,.0f}"
                for r in result.rows
            ),
            f"{INGEST} / {result.slower_peer}, the slower peer: {result.share_of_slower_peer:.2f} by the clock",
            f"fastest over fastest: {result.share_of_slower_peer_fastest:.2f}",
            f"the work of both peers and nothing else, on all cores: {both:,.0f} patches/s, {both / slower:.2f}",
        ]
    )


def main() -> None:
    parser = argparse.ArgumentParser(description="Patches ingested from a tar archive per second.")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--shard-size", type=int, default=512)
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args()
    result = measure(options.shards, options.shard_size, options.processes, options.repeats)
    print(show(result))
    if options.out:
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(asdict(result), indent=2) + "\n")


if __name__ == "__main__":
    main()
