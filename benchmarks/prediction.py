"""How fast prediction is: the fused pass over a shard against a pass per classifier and against a plain loop.

    python benchmarks/prediction.py [--patches 4] [--seed-patches 64] [--sr srresnet] [--batch-size 16]
                                    [--networks resnet18 resnet50 …] [--seeds 3] [--repeats 3]
                                    [--out benchmarks/results/prediction.json]

Three cases, each in several ways that must give the same probabilities, to within 1e-5:

- one classifier on super-resolved pixels: the fused pass (`tasks.score.ShardScorer` on one shard, from the stored
  archive to the written part) and a plain loop: patch by patch, rasterio, the SR network, its pixels rounded to DN,
  the timm network, probabilities gathered in a list;
- several classifiers: one fused pass, in which the SR model runs once; a fused pass for each classifier; and the plain
  loop, which runs the SR network once a patch and then one network after the other;
- several seeds of one frozen backbone with heads of their own on the archive's own pixels: one pass, in which the
  backbone runs once; and a pass for each seed.

The SR model has its shipped weights, classifiers random ones; nothing is explained. Models are loaded and every way
has run once before the clock starts, and the quality of the super-resolved pixels, which is measured once a branch,
is written by then. Ways take turns within each repeat; the fastest repeat counts, by the clock and by processor time.
Stages are the parts of the fused pass, each timed alone by the clock. The device is the one a worker takes: the GPU, if
there is one (CUDA_VISIBLE_DEVICES= hides it); numbers of threads are those of the environment.
"""

import argparse
import json
import os
import platform
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import torch
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Column, Table

import classifiers
import sr_models
from classifiers.checkpoint import TrainedClassifier
from classifiers.network import Classifier, pool
from classifiers.standardise import from_archive_statistics
from infra.archives.bigearthnet_v2 import METADATA, S2_FOLDER, BigEarthNetV2
from infra.archives.synthetic import write_synthetic_archive
from infra.bigearthnet.bands import RGB, stretch_max_dn
from infra.bigearthnet.classes import NAMES
from infra.storage import StorePaths
from tasks.branch import Branch, BranchReader, Inputs, make_branch, worker_device
from tasks.explain import ExplainPlan
from tasks.ingest import ShardIngester
from tasks.plan import make_plan
from tasks.score import ScoredClassifier, ShardScorer, scored_classifier
from tasks.trained import load_trained

MAX_DN = 3000
TOLERANCE = 1e-5
PATCHES, SEED_PATCHES = {"cpu": 4, "cuda": 256}, {"cpu": 64, "cuda": 1024}
NETWORKS = ("resnet18", "resnet50", "resnet101", "inception_v4")
FUSED, EACH, LOOP = "one fused pass", "a pass for each", "plain loop"

type Timing = tuple[float, float]
"""Seconds by the clock, seconds of processor time."""

type Probabilities = dict[tuple[str, int], NDArray[np.float32]]
"""By classifier and seed, (N, L), in the order of patch ids."""


@dataclass(frozen=True, slots=True)
class Row:
    """One way of one case."""

    case: str
    way: str
    patches: int
    seconds: float
    """The fastest repeat."""
    slowest: float
    """Seconds of the slowest repeat."""
    patches_per_second: float
    """Of the fastest: patches that have all their predictions."""
    fused_over: float
    """Rate of the fused pass over this one's."""
    cpu_seconds: float
    """Processor time of all threads, the least of the repeats; less disturbed where others use the machine too."""
    fused_over_by_cpu: float
    """This one's processor time over the fused pass's."""
    difference: float
    """Largest absolute difference of a probability to the fused pass's."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One stage of a fused pass, timed alone."""

    case: str
    stage: str
    seconds: float
    share: float
    """Of the fused pass."""


@dataclass(frozen=True, slots=True)
class Case:
    """An archive of one shard, a branch over it, and classifiers."""

    name: str
    root: Path
    branch: Branch
    shard: int
    scored: tuple[ScoredClassifier, ...]
    """One a classifier, with all its seeds."""


@dataclass(frozen=True, slots=True)
class Way:
    """One way to predict."""

    run: Callable[[], object]
    result: Callable[[], Probabilities]
    """What the last run gave."""


def archive_of(folder: Path, patches: int, shard_size: int | None = None) -> Inputs:
    """Write a synthetic archive, all patches in one split, and ingest it; as one shard, unless told their size."""
    root = folder / "files"
    write_synthetic_archive(root, patches)
    tables = [pq.read_table(path) for path in sorted(root.glob("metadata*.parquet"))]
    rows = pa.concat_tables(tables).select(["patch_id", "labels"])
    for path in root.glob("metadata*.parquet"):
        path.unlink()
    pq.write_table(rows.append_column("split", pa.array(["test"] * rows.num_rows)), root / METADATA)
    archive = BigEarthNetV2(str(root))
    plan = make_plan(archive, StorePaths(folder / "store"), "bigearthnet-v2", shard_size or patches)
    worker = ShardIngester(archive, plan.format, plan.parts)
    for shard in plan.shards:
        worker.run(shard)
    return Inputs(plan.parts, plan.format, RGB, stretch_max_dn(RGB, MAX_DN))


def with_spread_logits(network: Classifier, seed: int) -> Classifier:
    """Give a random network a head whose logits are about normal, whatever the scale of its features."""
    generator = torch.Generator().manual_seed(seed)
    with torch.inference_mode():
        pooled = pool(network.eval().features(torch.randn(1, 3, 120, 120, generator=generator)))
    weight = network.head.get_parameter("weight")
    with torch.no_grad():
        weight.copy_(torch.randn(weight.shape, generator=generator) / float(pooled.norm()))
    return network


def checkpoint_of(branch: Branch, network: str, seed: int, path: Path) -> Path:
    """Write the checkpoint of a random network; the backbone is the same for all seeds."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        built = with_spread_logits(classifiers.build(network, len(NAMES), len(branch.bands)), seed)
    moments = from_archive_statistics(branch.bands, branch.max_dn)
    sr = dict(branch.identity)
    TrainedClassifier(network, "linear", NAMES, branch.bands, moments.mean, moments.std, seed, built, sr).save(path)
    return path


def case_of(
    name: str, folder: Path, inputs: Inputs, sr: str, batch_size: int, networks: Sequence[str], seeds: int
) -> Case:
    """Return a case; the quality of its pixels is written."""
    branch = make_branch(inputs, sr, None, batch_size=batch_size)
    scored = []
    for network in networks:
        files = {s: checkpoint_of(branch, network, s, folder / f"{network}-{s}.safetensors") for s in range(seeds)}
        scored.append(scored_classifier(branch, network, files, ExplainPlan(())))
    (shard,) = inputs.ingest.done()
    ShardScorer(branch, []).run(shard)
    return Case(name, inputs.ingest.paths.root.parent / "files", branch, shard, tuple(scored))


def split_seeds(case: Case) -> list[ScoredClassifier]:
    """Return each seed of each classifier as a classifier of its own."""
    return [
        scored_classifier(case.branch, item.classifier, {seed: path}, ExplainPlan(()))
        for item in case.scored
        for seed, path in item.checkpoints.items()
    ]


def passes(case: Case, groups: Sequence[Sequence[ScoredClassifier]]) -> Way:
    """Return a fused pass for each group of classifiers; models are loaded here."""
    scorers = [ShardScorer(case.branch, group) for group in groups]

    def run() -> None:
        for group in groups:
            for item in group:
                item.predictions.path(case.shard).unlink(missing_ok=True)
        for scorer in scorers:
            scorer.run(case.shard)

    def result() -> Probabilities:
        found = {}
        for item in (item for group in groups for item in group):
            table = item.predictions.read(case.shard).sort_by("patch_id")
            of_all = np.array(table["probs"].to_pylist(), np.float32)
            for seed in item.checkpoints:
                found[item.classifier, seed] = of_all[table["seed"].to_numpy() == seed]
        return found

    return Way(run, result)


def plain_loop(case: Case, device: torch.device) -> Way:
    """Return what one would write in a notebook: one patch at a time, one network after the other."""
    trained = {
        (item.classifier, seed): load_trained(path, case.branch)
        for item in case.scored
        for seed, path in item.checkpoints.items()
    }
    for entry in trained.values():
        entry.network.to(device)
    resolver = sr_models.load(case.branch.sr, case.branch.weights, device)
    ids = sorted(case.branch.inputs.patches(case.shard)["patch_id"].to_pylist())
    gathered: Probabilities = {}

    def run() -> None:
        found: dict[tuple[str, int], list[NDArray[np.float32]]] = {key: [] for key in trained}
        with torch.inference_mode():
            for patch_id in ids:
                x = resolver(read_rgb(case.root, patch_id).to(device).clamp(max=MAX_DN) / MAX_DN)
                x = (x * MAX_DN).round() / MAX_DN  # as a 16-bit image has it
                for key, entry in trained.items():
                    mean, std = (torch.tensor(v, device=device).view(1, 3, 1, 1) for v in (entry.mean, entry.std))
                    found[key].append(entry.network((x - mean) / std).sigmoid().cpu().numpy())
        gathered.update({key: np.concatenate(values) for key, values in found.items()})

    return Way(run, lambda: gathered)


def read_rgb(root: Path, patch_id: str) -> torch.Tensor:
    """Return a patch's DN by rasterio, (1, 3, 120, 120) float32."""
    bands = []
    for band in RGB:
        file = root / S2_FOLDER / patch_id.rsplit("_", 2)[0] / patch_id / f"{patch_id}_{band}.tif"
        with rasterio.open(file) as dataset:
            bands.append(dataset.read(1).astype(np.float32))
    return torch.from_numpy(np.stack(bands))[None]


def largest_difference(found: Probabilities, expected: Probabilities) -> float:
    """Return the largest absolute difference of a probability.

    Raises:
        SystemExit: It is beyond the tolerance, or the probabilities hardly differ from patch to patch.
    """
    assert found.keys() == expected.keys()
    difference = max(float(np.abs(found[key] - expected[key]).max()) for key in expected)
    spread = min(float(np.ptp(values, axis=0).max()) for values in expected.values())
    if difference > TOLERANCE or spread < 100 * TOLERANCE:
        raise SystemExit(f"probabilities differ by {difference:.1e} between ways, and by {spread:.1e} between patches")
    return difference


def measure(case: Case, ways: Mapping[str, Way], repeats: int, device: torch.device) -> list[Row]:
    """Run every way once, compare, then time them in turn."""
    print(f"{case.name} …", flush=True)
    results = {}
    for name, way in ways.items():
        way.run()
        results[name] = way.result()
    timings: dict[str, list[Timing]] = {name: [] for name in ways}
    for _ in range(repeats):
        for name, way in ways.items():
            timings[name].append(timed(way.run, device))
    patches = case.branch.inputs.patches(case.shard).num_rows
    clock = {name: min(seconds for seconds, _ in found) for name, found in timings.items()}
    cpu = {name: min(seconds for _, seconds in found) for name, found in timings.items()}
    return [
        Row(
            case.name,
            name,
            patches,
            clock[name],
            max(seconds for seconds, _ in timings[name]),
            patches / clock[name],
            clock[name] / clock[FUSED],
            cpu[name],
            cpu[name] / cpu[FUSED],
            largest_difference(results[name], results[FUSED]),
        )
        for name in ways
    ]


def timed(work: Callable[[], object], device: torch.device) -> Timing:
    """Return the seconds of one run, by the clock and of processor time."""
    start, cpu = time.perf_counter(), time.process_time()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize()
    return time.perf_counter() - start, time.process_time() - cpu


def stages(case: Case, fused: float, repeats: int, device: torch.device) -> list[Stage]:
    """Time the stages of a case's fused pass one by one; the rest is what is left of it."""
    branch = case.branch
    reader = BranchReader(branch, device)
    patches = branch.inputs.patches(case.shard)

    def best(work: Callable[[], object]) -> float:
        work()
        return min(timed(work, device)[0] for _ in range(repeats))

    seconds = {"read": best(lambda: reader.read(case.shard, 0, reader.shard_size))}
    with torch.inference_mode():
        pixels = [batch.x for batch in reader.batches(case.shard, patches)]
        of_pixels = best(lambda: [batch.x for batch in reader.batches(case.shard, patches)])
        seconds[f"pixels ({branch.sr})"] = max(0.0, of_pixels - seconds["read"])
        for item in case.scored:
            trained = load_trained(next(iter(item.checkpoints.values())), branch)
            trained.network.to(device).to(memory_format=torch.channels_last)
            forward = partial(_forward, trained, pixels)
            seconds[f"backbone of {item.classifier}"] = best(forward)
    seconds["heads, tables, rest"] = max(0.0, fused - sum(seconds.values()))
    return [Stage(case.name, name, value, value / fused) for name, value in seconds.items()]


def _forward(trained: TrainedClassifier, pixels: Sequence[torch.Tensor]) -> None:
    for x in pixels:
        trained.network.features(trained.standardiser(x).contiguous(memory_format=torch.channels_last))


def show(rows: Sequence[Row], parts: Sequence[Stage], console: Console) -> None:
    """Print the tables."""
    heads = ("patches", "patches/s", "seconds", "slowest", "CPU s", "fused over", "by CPU", "difference")
    table = Table(
        Column("case", no_wrap=True), Column("way", no_wrap=True), *(Column(h, justify="right") for h in heads)
    )
    for row in rows:
        table.add_row(
            row.case,
            row.way,
            str(row.patches),
            f"{row.patches_per_second:.3g}",
            f"{row.seconds:.2f}",
            f"{row.slowest:.2f}",
            f"{row.cpu_seconds:.2f}",
            "" if row.way == FUSED else f"{row.fused_over:.2f}",
            "" if row.way == FUSED else f"{row.fused_over_by_cpu:.2f}",
            "" if row.way == FUSED else f"{row.difference:.0e}",
        )
    console.print(table)
    table = Table(
        Column("case", no_wrap=True),
        Column("stage of the fused pass", no_wrap=True),
        *(Column(head, justify="right") for head in ("seconds", "share")),
    )
    for part in parts:
        table.add_row(part.case, part.stage, f"{part.seconds:.3f}", f"{part.share:.0%}")
    console.print(table)


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(0)
    return f"{platform.processor() or platform.machine()}, {torch.get_num_threads()} threads"


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=None, help="super-resolved; 4 on a CPU, 256 on a GPU")
    parser.add_argument("--seed-patches", type=int, default=None, help="of the seeds' case; 64 and 1,024")
    parser.add_argument("--sr", choices=sr_models.names(), default="srresnet")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--networks", nargs="+", choices=classifiers.names(), default=list(NETWORKS))
    parser.add_argument("--one", choices=classifiers.names(), default="resnet50", help="network of one classifier")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path, default=None)
    options = parser.parse_args(arguments)
    device = worker_device()
    rows: list[Row] = []
    parts: list[Stage] = []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        inputs = archive_of(folder / "sr", options.patches or PATCHES[device.type])
        arguments_of = (options.sr, options.batch_size)
        one = case_of("one classifier", folder / "one", inputs, *arguments_of, [options.one], 1)
        rows += measure(one, {FUSED: passes(one, [one.scored]), LOOP: plain_loop(one, device)}, options.repeats, device)
        many = case_of(
            f"{len(options.networks)} classifiers", folder / "many", inputs, *arguments_of, options.networks, 1
        )
        ways = {
            FUSED: passes(many, [many.scored]),
            EACH: passes(many, [[item] for item in many.scored]),
            LOOP: plain_loop(many, device),
        }
        rows += measure(many, ways, options.repeats, device)
        inputs = archive_of(folder / "seeds", options.seed_patches or SEED_PATCHES[device.type])
        seeds = case_of(
            f"{options.seeds} seeds, no SR",
            folder / "heads",
            inputs,
            "none",
            options.batch_size,
            [options.one],
            options.seeds,
        )
        ways = {
            FUSED: passes(seeds, [seeds.scored]),
            EACH: passes(seeds, [[item] for item in split_seeds(seeds)]),
        }
        rows += measure(seeds, ways, options.repeats, device)
        fused = {row.case: row.seconds for row in rows if row.way == FUSED}
        for case in (one, many, seeds):
            parts += stages(case, fused[case.name], options.repeats, device)
    console = Console(width=120)
    console.print(f"{device_name(device)}, {os.cpu_count()} cores, PyTorch {torch.__version__}, {options.sr}")
    show(rows, parts, console)
    if options.out:
        record = {
            "benchmark": "prediction",
            "device": device_name(device),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "timm", "numpy", "zarr", "rasterio", "superscene")},
            },
            "sr": options.sr,
            "networks": options.networks,
            "network_of_one": options.one,
            "batch_size": options.batch_size,
            "rows": [asdict(row) for row in rows],
            "stages": [asdict(part) for part in parts],
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
