"""How fast training is fed: the streamed shards against LMDB + safetensors and against a folder of TIFFs.

    python benchmarks/training.py [--patches 2048] [--shard-size 256] [--batch-size 256] [--sr-patches 256]
                                  [--seconds 2] [--repeats 3] [--device cpu]
                                  [--train-patches 32] [--train-batch-size 16] [--workdir DIR]
                                  [--out benchmarks/results/training.json]

Every loader gives the same samples as shuffled batches, standardised, float32, on the device; this is checked, bit by
bit. All run in one process, whose numbers of threads are those of the environment, and in each one thread gathers up
to four batches ahead. What differs is where pixels lie and how they are read:

- superscene, from disk: whole shards, of an archive that is too large to be kept, so each epoch reads all of it, two
  shards at a time; as many reading threads as there are cores;
- superscene, kept: an archive that fits the memory, in its second epoch and later;
- LMDB + safetensors: the layout of rico-hdl: key: patch; value: safetensors of its Sentinel-2 bands by name; a random
  single read a patch;
- TIFFs: the archive's own files of the bands that are wanted, by rasterio.

"Gathered" are shuffled batches of 16-bit pixels in host memory, all that a loader's host has to do where a GPU
standardises; "standardised" are float32 tensors on the device. On a CPU the latter's arithmetic, alike for all loaders,
takes longer than the rest. Loaders take turns within each repeat and the fastest repeat counts, by the clock and by
processor time; "cold" is with the files' pages dropped from the page cache before each epoch (the disk may have a cache
of its own). The files are copies of a few synthetic patches under new names. Super-resolved pixels are bicubic, stored
as the stage super_resolve stores them, and LMDB has the very same, in one value a patch.

The last table is ResNet-50 at 120 x 120 pixels, trained by the project's own loop on each loader: in the second of
two epochs, which share of the time the device waited for its next batch. On a GPU this is bfloat16, channels last and
compiled. On a CPU arithmetic takes nearly all the time whatever the loader is, so the last lines say which devices
the loaders would feed: one that could do X patches/s waits 1 - L/X of the time for a loader that gives L < X.
"""

import argparse
import json
import os
import platform
import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import cached_property
from hashlib import blake2b
from importlib.metadata import version
from itertools import count
from pathlib import Path
from typing import Literal, Protocol

import lmdb
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import safetensors.numpy
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

import classifiers
from classifiers.standardise import Standardiser, from_archive_statistics
from classifiers.training import Batches, ClassifierTrainer, TrainingBatch, TrainSettings
from infra.archives.bigearthnet_v2 import METADATA, S2_FOLDER, BigEarthNetV2
from infra.archives.synthetic import write_synthetic_archive
from infra.bigearthnet.bands import BAND_SETS, RGB, S2_GROUPS, stretch_max_dn
from infra.bigearthnet.classes import NAMES
from infra.prefetch import prefetch
from infra.storage import StorePaths
from infra.zarr_store import ShardedStore, create_store
from sr_models.stretch import to_unit
from tasks.branch import Branch, BranchReader, Inputs, make_branch
from tasks.ingest import ShardIngester
from tasks.plan import Plan, make_plan
from tasks.shard_batches import Samples, ShardBatches, samples_of
from tasks.super_resolve import ShardSuperResolver

S2_BANDS = tuple(band for group in S2_GROUPS for band in group.bands)
SYNTHETIC = 48
"""Distinct patches, at most; the others are copies."""
MAX_DN = 3000
AHEAD = 4
"""Batches that are gathered ahead, as the streamed loader does."""
GOAL = 0.02
"""Share of an epoch that may be spent waiting for data."""

DISK, KEPT, LMDB, TIFF = "superscene, from disk", "superscene, kept", "LMDB + safetensors", "TIFFs, rasterio"

type Pixels = NDArray[np.uint16]
type Measured = Literal["gathered, cold", "gathered", "standardised"]
type Timing = tuple[float, float]
"""Patches per second by the clock, and by processor time."""

MEASURED: tuple[Measured, ...] = ("gathered, cold", "gathered", "standardised")


@dataclass(frozen=True, slots=True)
class Rate:
    """One loader on one kind of pixels."""

    pixels: str
    loader: str
    patches: int
    batch_size: int
    patches_per_second: float
    """Standardised, on the device; from a warm page cache, the fastest repeat."""
    slowest: float
    """Likewise, the slowest repeat."""
    patches_per_cpu_second: float
    """Likewise, by the processor time of all threads: the best repeat."""
    gathered_per_second: float
    """Shuffled batches of DN in host memory, the arithmetic left out; warm, the fastest repeat."""
    gathered_cold: float
    """Likewise, with the files' pages dropped before each epoch."""
    gathered_per_cpu_second: float
    """Likewise, warm, by the processor time of all threads: the best repeat."""
    file_bytes_per_patch: float
    """Of the files that the loader reads."""


@dataclass(frozen=True, slots=True)
class Ratio:
    """Our loader from disk over another one of the same pixels."""

    pixels: str
    over: str
    standardised: float
    standardised_by_cpu: float
    gathered: float
    gathered_cold: float
    gathered_by_cpu: float


@dataclass(frozen=True, slots=True)
class Wait:
    """One epoch of training on one loader."""

    loader: str
    patches: int
    batch_size: int
    dtype: str
    patches_per_second: float
    """Trained, waiting included."""
    wait_share: float
    device_patches_per_second: float
    """What the device would do if it never waited."""


class Source(Protocol):
    """Where single patches come from."""

    def read(self, patch_id: str) -> Pixels:
        """Return a patch's bands, DN, (C, H, W)."""

    def forget(self) -> None:
        """Have its files dropped from the page cache."""


class Database:
    """An LMDB file, open for reading; once in a process."""

    def __init__(self, path: Path) -> None:
        self.file = path / "data.mdb"
        self.open()

    def open(self) -> None:
        """Open the file."""
        self._environment = lmdb.open(str(self.file.parent), readonly=True, lock=False)

    def read(self, patch_id: str) -> dict[str, Pixels]:
        """Return a patch's bands by name."""
        with self._environment.begin() as transaction:
            value = transaction.get(patch_id.encode())
        if value is None:
            raise KeyError(f"{self.file} has no patch {patch_id}")
        bands: dict[str, Pixels] = safetensors.numpy.load(value)
        return bands

    def close(self) -> None:
        """Unmap the file."""
        self._environment.close()

    def forget(self) -> None:
        """Drop the file from the page cache; pages would stay as long as they are mapped."""
        self.close()
        drop_pages([self.file])
        self.open()


class LmdbPatches:
    """One value a patch: safetensors of its bands by name, uint16 (H, W) each."""

    def __init__(self, database: Database, bands: Sequence[str]) -> None:
        self._database, self._bands = database, bands

    def read(self, patch_id: str) -> Pixels:
        """Return a patch's bands, DN, (C, H, W)."""
        value = self._database.read(patch_id)
        return np.stack([value[band] for band in self._bands])

    def forget(self) -> None:
        """Have the file dropped from the page cache."""
        self._database.forget()


class TiffPatches:
    """The folder of an archive in BigEarthNet-v2 layout."""

    def __init__(self, root: Path, bands: Sequence[str], ids: Sequence[str]) -> None:
        self._root, self._bands, self._ids = root, bands, ids

    def read(self, patch_id: str) -> Pixels:
        """Return a patch's bands, DN, (C, H, W)."""
        return np.stack([read_tiff(file) for file in self._files(patch_id)])

    def forget(self) -> None:
        """Drop the files from the page cache."""
        drop_pages(file for patch_id in self._ids for file in self._files(patch_id))

    def _files(self, patch_id: str) -> list[Path]:
        return [tiff(self._root, patch_id, band) for band in self._bands]


class SinglePatches:
    """Batches of patches that are read one by one in random order; `classifiers.training.batches.Batches`."""

    def __init__(
        self, source: Source, samples: Samples, batch_size: int, standardiser: Standardiser, device: torch.device
    ) -> None:
        self._source, self._samples, self._batch_size = source, samples, batch_size
        self._standardiser, self._device = standardiser, device
        self._ids: list[str] = samples.ids.to_pylist()
        self._max_dn = stretch_max_dn(standardiser.bands, MAX_DN)

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return len(self._ids)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        return -(-len(self._ids) // self._batch_size)

    def patch_ids(self, epoch: int, step: int) -> list[str]:
        """Return the ids of a batch, by place."""
        return [self._ids[i] for i in self._order(epoch)[step]]

    def batches(self, epoch: int) -> Iterator[TrainingBatch]:
        """Yield the batches of an epoch."""
        for dn, truth in self.gathered(epoch):
            x = self._standardiser(to_unit(dn.to(self._device, non_blocking=True), self._max_dn))
            yield TrainingBatch(x, truth.to(self._device, non_blocking=True), np.arange(len(dn)), len(dn))

    def gathered(self, epoch: int) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield each batch's pixels, DN, and truth in host memory."""
        return prefetch(map(self._gather, self._order(epoch)), AHEAD)

    def forget(self) -> None:
        """Drop the pixels' files from the page cache."""
        self._source.forget()

    def _order(self, epoch: int) -> list[NDArray[np.int64]]:
        order = np.random.default_rng([0, epoch]).permutation(len(self._ids))
        return np.array_split(order, self.steps_per_epoch)

    def _gather(self, chosen: NDArray[np.int64]) -> tuple[torch.Tensor, torch.Tensor]:
        dn = torch.from_numpy(np.stack([self._source.read(self._ids[i]) for i in chosen]))
        truth = torch.from_numpy(self._samples.truth[chosen])
        return (dn.pin_memory(), truth.pin_memory()) if self._device.type == "cuda" else (dn, truth)


class Streamed(ShardBatches):
    """The stream, and what it has before the device's part."""

    def gathered(self, epoch: int) -> Iterator[object]:
        """Yield each batch's pixels, DN, and truth in host memory."""
        return prefetch(self._gathered(epoch), AHEAD)


class FromDisk(Streamed):
    """The stream as it is with an archive that is too large to be kept."""

    @cached_property
    def _room(self) -> int:
        return 2 * self._reader.shard_size


class Watched:
    """Batches that know how long the last epoch took to be used."""

    def __init__(self, batches: Batches) -> None:
        self._batches = batches
        self.seconds = 0.0

    @property
    def samples(self) -> int:
        """Samples of an epoch."""
        return self._batches.samples

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        return self._batches.steps_per_epoch

    def patch_ids(self, epoch: int, step: int) -> Sequence[str]:
        """Return the ids of a batch, by place."""
        return self._batches.patch_ids(epoch, step)

    def batches(self, epoch: int) -> Iterator[TrainingBatch]:
        """Yield the batches of an epoch."""
        start = time.perf_counter()
        yield from self._batches.batches(epoch)
        self.seconds = time.perf_counter() - start


@dataclass(frozen=True, slots=True)
class Loader:
    """What is measured."""

    name: str
    batches: Batches
    gathered: Callable[[int], Iterable[object]]
    """The batches of an epoch before the device's part."""
    forget: Callable[[], None]
    """Drops its files from the page cache."""
    file_bytes: int
    """Of all of them."""


@dataclass(frozen=True, slots=True)
class Archive:
    """Copies of synthetic patches as files, and the same ingested."""

    root: Path
    plan: Plan

    def branch(self, bands: tuple[str, ...], sr: str = "none") -> Branch:
        """Return a branch over it."""
        inputs = Inputs(self.plan.parts, self.plan.format, bands, stretch_max_dn(bands, MAX_DN))
        return make_branch(inputs, sr, None)


def tiff(root: Path, patch_id: str, band: str) -> Path:
    """Return where a band of a patch lies."""
    return root / S2_FOLDER / patch_id.rsplit("_", 2)[0] / patch_id / f"{patch_id}_{band}.tif"


def read_tiff(path: Path) -> Pixels:
    """Return a file's only band."""
    with rasterio.open(path) as dataset:
        values: Pixels = dataset.read(1)
    return values


def drop_pages(paths: Iterable[Path]) -> None:
    """Have the kernel drop files, already written back, from its page cache."""
    for path in paths:
        handle = os.open(path, os.O_RDONLY)
        os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        os.close(handle)


def files_below(*folders: Path) -> list[Path]:
    """Return all files."""
    return [path for folder in folders for path in folder.rglob("*") if path.is_file()]


def prepare(folder: Path, patches: int, shard_size: int, sources: Sequence[Path]) -> Archive:
    """Write an archive of copies of `sources`, Sentinel-2 folders of patches, all for training, and ingest it."""
    ids = []
    for i in range(patches):
        day, place = divmod(i, 10_000)
        product = f"S2A_MSIL2A_201706{day + 1:02d}T101031_N9999_R022_T33UUP"
        ids.append(f"{product}_{place // 100:02d}_{place % 100:02d}")
        source = sources[i % len(sources)]
        tiff(folder / "files", ids[-1], "B02").parent.mkdir(parents=True)
        for band in S2_BANDS:
            shutil.copyfile(source / f"{source.name}_{band}.tif", tiff(folder / "files", ids[-1], band))
    columns = {"patch_id": ids, "split": ["train"] * patches, "labels": [[NAMES[i % 19]] for i in range(patches)]}
    pq.write_table(pa.table(columns), folder / "files" / METADATA)
    archive = BigEarthNetV2(str(folder / "files"))
    plan = make_plan(archive, StorePaths(folder / "store"), "bigearthnet-v2", shard_size)
    worker = ShardIngester(archive, plan.format, plan.parts)
    for shard in sorted(plan.shards):
        worker.run(shard)
    return Archive(folder / "files", plan)


def write_lmdb(path: Path, patches: Iterable[tuple[str, dict[str, Pixels]]]) -> Database:
    """Write one value a patch, safetensors of its bands, and open the file for reading."""
    with lmdb.open(str(path), map_size=1 << 40) as environment:
        for patch_id, bands in patches:
            with environment.begin(write=True) as transaction:
                transaction.put(patch_id.encode(), safetensors.numpy.save(bands))
    return Database(path)


def store_super_resolved(archive: Archive, branch: Branch) -> Iterator[tuple[str, dict[str, Pixels]]]:
    """Store a branch's pixels as the stage does; yield what is stored, patch by patch."""
    plan = archive.plan
    create_store(branch.store, branch.arrays(), plan.shard_size, max(plan.shards) + 1, dict(branch.identity))
    worker = ShardSuperResolver(branch)
    for shard in sorted(plan.shards):
        worker.run(shard)
        pixels = ShardedStore(branch.store).read(shard, "sr").astype(np.uint16, copy=False)
        for row in branch.inputs.patches(shard).to_pylist():
            yield row["patch_id"], dict(zip(branch.bands, np.ascontiguousarray(pixels[row["row"]]), strict=True))


def loaders(
    archive: Archive,
    branch: Branch,
    batch_size: int,
    device: torch.device,
    database: Database,
    samples: Samples,
) -> list[Loader]:
    """Return all loaders of a branch's pixels: ours, LMDB, and the files where they hold these pixels."""
    standardiser = from_archive_statistics(branch.bands, branch.max_dn)
    store = branch.paths.archive / "s2_10m" if branch.scale == 1 else branch.store
    stored = files_below(store)

    def bytes_of(files: Iterable[Path]) -> int:
        return sum(file.stat().st_size for file in files)

    def ours(kind: type[Streamed], name: str) -> Loader:
        batches = kind(BranchReader(branch, device), samples, batch_size, standardiser, 0)
        return Loader(name, batches, batches.gathered, lambda: drop_pages(stored), bytes_of(stored))

    def single(name: str, source: Source, files: Iterable[Path]) -> Loader:
        batches = SinglePatches(source, samples, batch_size, standardiser, device)
        return Loader(name, batches, batches.gathered, source.forget, bytes_of(files))

    found = [
        ours(FromDisk, DISK),
        ours(Streamed, KEPT),
        single(LMDB, LmdbPatches(database, branch.bands), [database.file]),
    ]
    if branch.scale == 1:
        ids = samples.ids.to_pylist()
        files = [tiff(archive.root, patch_id, band) for patch_id in ids for band in branch.bands]
        found.append(single(TIFF, TiffPatches(archive.root, branch.bands, ids), files))
    return found


def digests(batches: Batches) -> dict[str, bytes]:
    """Return a digest of the tensor and the truth of each sample of an epoch."""
    found = {}
    for step, batch in enumerate(batches.batches(0)):
        ids = batches.patch_ids(0, step)
        for place, x, y in zip(batch.places.tolist(), batch.x.cpu(), batch.y.cpu(), strict=True):
            found[ids[place]] = blake2b(x.numpy().tobytes() + y.numpy().tobytes()).digest()
    return found


def check_equal(found: Sequence[Loader]) -> None:
    """Check that all loaders give the same samples, bit by bit, up to their order.

    Raises:
        SystemExit: One of them gives others.
    """
    expected = digests(found[0].batches)
    for loader in found[1:]:
        if digests(loader.batches) != expected:
            raise SystemExit(f"{loader.name} does not give the samples of {found[0].name}")


def timed(loader: Loader, seconds: float, device: torch.device, epochs: Iterator[int], what: Measured) -> Timing:
    """Go through whole epochs for about some seconds; return patches per second, by the clock and by processor time."""
    done, clock, cpu = 0, 0.0, 0.0
    while clock < seconds:
        if what == "gathered, cold":
            loader.forget()
        go_through = loader.batches.batches if what == "standardised" else loader.gathered
        start, start_cpu = time.perf_counter(), time.process_time()
        for _ in go_through(next(epochs)):
            pass
        if device.type == "cuda":
            torch.cuda.synchronize()
        clock, cpu = clock + time.perf_counter() - start, cpu + time.process_time() - start_cpu
        done += loader.batches.samples
    return done / clock, done / cpu


def rates(
    pixels: str, found: Sequence[Loader], batch_size: int, device: torch.device, seconds: float, repeats: int
) -> list[Rate]:
    """Check the loaders against one another, then measure them in turn."""
    print(f"{pixels} …", flush=True)
    check_equal(found)
    os.sync()  # only pages that are written back can be dropped
    epochs = count(1)
    timings: dict[tuple[str, Measured], list[Timing]] = defaultdict(list)
    for _ in range(repeats):
        for loader in found:
            for what in MEASURED:
                timings[loader.name, what].append(timed(loader, seconds, device, epochs, what))

    def best(loader: Loader, what: Measured) -> Timing:
        clock, cpu = zip(*timings[loader.name, what], strict=True)
        return max(clock), max(cpu)

    return [
        Rate(
            pixels,
            loader.name,
            loader.batches.samples,
            batch_size,
            best(loader, "standardised")[0],
            min(clock for clock, _ in timings[loader.name, "standardised"]),
            best(loader, "standardised")[1],
            best(loader, "gathered")[0],
            best(loader, "gathered, cold")[0],
            best(loader, "gathered")[1],
            loader.file_bytes / loader.batches.samples,
        )
        for loader in found
    ]


def ratios(rows: Sequence[Rate]) -> list[Ratio]:
    """Return ours from disk over each other loader of the same pixels."""
    ours = {row.pixels: row for row in rows if row.loader == DISK}
    return [
        Ratio(
            row.pixels,
            row.loader,
            ours[row.pixels].patches_per_second / row.patches_per_second,
            ours[row.pixels].patches_per_cpu_second / row.patches_per_cpu_second,
            ours[row.pixels].gathered_per_second / row.gathered_per_second,
            ours[row.pixels].gathered_cold / row.gathered_cold,
            ours[row.pixels].gathered_per_cpu_second / row.gathered_per_cpu_second,
        )
        for row in rows
        if row.loader != DISK
    ]


def part_of(samples: Samples, first: int, stop: int) -> Samples:
    """Return some of the samples."""
    rows = slice(first, stop)
    ids = samples.ids.slice(first, stop - first)
    return Samples(ids, samples.shards[rows], samples.rows[rows], samples.truth[rows])


def wait(train: Loader, validation: Loader, batch_size: int, device: torch.device, network: str) -> Wait:
    """Train for two epochs; return the second one's wait."""
    print(f"training on {train.name} …", flush=True)
    torch.manual_seed(0)
    watched = Watched(train.batches)
    on_gpu = device.type == "cuda"
    trainer = ClassifierTrainer(
        classifiers.build(network, len(NAMES)),
        watched,
        validation.batches,
        TrainSettings(epochs=2, batch_size=batch_size, lr=1e-4),
        device,
        compiled=on_gpu,
    )
    trainer.advance()  # warms up, and compiles
    share = trainer.advance().wait_share
    rate = train.batches.samples / watched.seconds
    return Wait(
        train.name,
        train.batches.samples,
        batch_size,
        "bfloat16" if on_gpu else "float32",
        rate,
        share,
        rate / (1 - share),
    )


def show(rows: Sequence[Rate], waits: Sequence[Wait], network: str, console: Console) -> None:
    """Print the tables."""
    table = Table(Column("pixels", no_wrap=True), Column("loader", no_wrap=True), title="patches/s")
    for head in ("gathered", "cold", "per CPU s", "standardised", "slowest", "per CPU s", "kB in files"):
        table.add_column(head, justify="right")
    for row in rows:
        gathered = (row.gathered_per_second, row.gathered_cold, row.gathered_per_cpu_second)
        standardised = (row.patches_per_second, row.slowest, row.patches_per_cpu_second)
        values = (*gathered, *standardised, row.file_bytes_per_patch / 1000)
        table.add_row(row.pixels, row.loader, *(f"{value:,.0f}" for value in values))
    console.print(table)
    table = Table(Column("pixels", no_wrap=True), Column(f"{DISK}, over", no_wrap=True))
    for head in ("gathered", "cold", "by CPU", "standardised", "by CPU"):
        table.add_column(head, justify="right")
    for ratio in ratios(rows):
        of_gathered = (ratio.gathered, ratio.gathered_cold, ratio.gathered_by_cpu)
        shares = (*of_gathered, ratio.standardised, ratio.standardised_by_cpu)
        table.add_row(ratio.pixels, ratio.over, *(f"{value:.2f}" for value in shares))
    console.print(table)
    table = Table(
        Column(f"{network} at 120 x 120, trained on", no_wrap=True),
        *(Column(head, justify="right") for head in ("patches", "batch", "dtype", "patches/s", "wait", "of device")),
    )
    for item in waits:
        table.add_row(
            item.loader,
            f"{item.patches:,}",
            str(item.batch_size),
            item.dtype,
            f"{item.patches_per_second:,.1f}",
            f"{item.wait_share:.2%}",
            f"{item.device_patches_per_second:,.1f}",
        )
    console.print(table)
    for row in rows:
        if row.pixels == rows[0].pixels:
            gpu, cpu = (rate / (1 - GOAL) for rate in (row.gathered_per_second, row.patches_per_second))
            console.print(
                f"{row.loader}: at most {GOAL:.0%} of wait up to {gpu:,.0f} patches/s of a GPU, which standardises by "
                f"itself, and {cpu:,.0f} where the processor does"
            )
    device = max(item.device_patches_per_second for item in waits)
    console.print(f"this device does {device:,.1f} patches/s and needs a loader of {device * (1 - GOAL):,.1f}")


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(0)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=None, help="2,048 on a CPU, 16,384 on a GPU")
    parser.add_argument("--shard-size", type=int, default=256)
    parser.add_argument("--batch-size", type=int, default=256)
    parser.add_argument("--sr-patches", type=int, default=256, help="patches whose SR pixels are stored")
    parser.add_argument("--sr-batch-size", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=2.0, help="of each measurement; whole epochs")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--network", choices=classifiers.names(), default="resnet50")
    parser.add_argument("--train-patches", type=int, default=None, help="32 on a CPU, all on a GPU")
    parser.add_argument("--train-batch-size", type=int, default=None, help="16 on a CPU, 256 on a GPU")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--workdir", type=Path, default=None, help="on the disk to be measured; a temporary folder")
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    device = torch.device(options.device)
    on_gpu = device.type == "cuda"
    options.patches = options.patches or (16_384 if on_gpu else 2_048)
    options.train_batch_size = options.train_batch_size or (256 if on_gpu else 16)
    held_out = options.train_batch_size
    options.train_patches = options.train_patches or (options.patches - held_out if on_gpu else 32)
    needed = options.train_patches + held_out
    if needed > options.patches:
        parser.error(f"--train-patches {options.train_patches} and a batch to validate are more than --patches")
    rows: list[Rate] = []
    waits: list[Wait] = []
    with tempfile.TemporaryDirectory(dir=options.workdir) as name, ExitStack() as stack:
        folder = Path(name)
        write_synthetic_archive(folder / "synthetic", min(SYNTHETIC, options.patches))
        sources = sorted((folder / "synthetic" / S2_FOLDER).glob("*/*"))
        archive = prepare(folder / "archive", options.patches, options.shard_size, sources)
        rgb = archive.branch(RGB)
        samples = samples_of(rgb.inputs, sorted(archive.plan.shards), NAMES)
        all_bands = (
            (patch_id, {band: read_tiff(tiff(archive.root, patch_id, band)) for band in S2_BANDS})
            for patch_id in samples.ids.to_pylist()
        )
        database = write_lmdb(folder / "lmdb", all_bands)
        stack.callback(database.close)
        for pixels, branch in (
            ("RGB, 120 x 120", rgb),
            ("10m bands, 120 x 120", archive.branch(BAND_SETS["10m"])),
        ):
            found = loaders(archive, branch, options.batch_size, device, database, samples)
            rows += rates(pixels, found, options.batch_size, device, options.seconds, options.repeats)
        parts = (part_of(samples, 0, options.train_patches), part_of(samples, options.train_patches, needed))
        sets = [loaders(archive, rgb, held_out, device, database, part) for part in parts]
        for train, validation in zip(*sets, strict=True):
            waits.append(wait(train, validation, held_out, device, options.network))
        small = prepare(folder / "small", options.sr_patches, options.sr_batch_size, sources)
        branch = small.branch(RGB, "bicubic")
        database = write_lmdb(folder / "lmdb-sr", store_super_resolved(small, branch))
        stack.callback(database.close)
        samples = samples_of(branch.inputs, sorted(small.plan.shards), NAMES)
        found = loaders(small, branch, options.sr_batch_size, device, database, samples)
        pixels = f"stored SR, {branch.size} x {branch.size}"
        rows += rates(pixels, found, options.sr_batch_size, device, options.seconds, options.repeats)
    console = Console(width=150)
    console.print(f"{device_name(device)}, {os.cpu_count()} cores, PyTorch {torch.__version__}")
    show(rows, waits, options.network, console)
    if options.out:
        record = {
            "benchmark": "training",
            "device": device_name(device),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {
                "python": platform.python_version(),
                **{
                    name: version(name)
                    for name in ("torch", "numpy", "zarr", "numcodecs", "lmdb", "safetensors", "rasterio", "superscene")
                },
            },
            "shard_size": options.shard_size,
            "network": options.network,
            "rates": [asdict(row) for row in rows],
            "ratios": [asdict(ratio) for ratio in ratios(rows)],
            "waits": [asdict(item) for item in waits],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
