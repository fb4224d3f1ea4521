"""What half a million patches cost before a pixel is read: planning, sharding, status, and the pool's own time a shard.

    python benchmarks/scale.py [--patches 549488] [--shard-size 512] [--most-shards 10000] [--shards 10 100 1000 10000]
                               [--actors 1 2 4 8 16 32 64] [--actors-shards 1000] [--workers 2] [--scratch FOLDER]
                               [--out benchmarks/results/scale.json]

The ids are those of BigEarthNet v2's two metadata files below SUPERSCENE_DATA, else generated ones of the same form.
Every patch named there gets an empty folder, so that planning lists as many folders as those of a whole archive; no
patch has a file. Where pixels would be read, `EmptyPixels` stands in for them: an archive that is scanned as
BigEarthNet v2, and whose patches are one pixel of zeros without a place. All else is the pipeline's own: the ingest
worker and its Zarr shards, tables, plan, pool, parts, run record. The model is none (`NoModel`): a shard's predictions
are its rows of the ingest part with probabilities of 0.5.

Every line is measured in a process of its own. Seconds are by the clock; CPU seconds are this process's own (the
driver's, not the workers'); the peak is of the resident set, imports included (`before`: after the imports).

- plan, plan again, status: `make_plan` on an empty store and on one that has the plan; `store_status` of the whole run.
- superscene plan, superscene status: the commands as a user gives them, Python's start and the imports included; plan
  without a store at first, and again on the one of the whole run. The goal is under GOAL_MB and seconds.
- without pixels, without a model, publish: a run of the whole list.
- growth by shards: one stage on ever more shards of one plan, by actors that wait from a stage before, so that their
  start is not in it; growth by actors: on as many shards, by ever more actors. Actors are logical: they claim more
  cores than the machine has. Exponents are slopes of log seconds over log shards (1: linear), and of log seconds over
  log actors (0: actors cost nothing; the work is the same).
"""

import argparse
import json
import logging
import os
import platform
import re
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from statistics import median

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import ray

from infra.archives.bigearthnet_v2 import FLAGGED_METADATA, METADATA, S2_FOLDER, BigEarthNetV2
from infra.archives.model import Patch, PatchFormat, PatchInput, Scan
from infra.bigearthnet.bands import BandGroup
from infra.bigearthnet.classes import NAMES
from infra.parts import StageParts, stage_parts
from infra.ray_pool import Resources, dismiss_idle
from infra.storage import StorePaths
from infra.tables import hive_folder, predictions_schema, publish
from tasks.ingest import ShardIngester, publish_archive
from tasks.plan import Plan, make_plan
from tasks.run_record import RunRecord
from tasks.stage import ShardCount, run_stage
from tasks.status import store_status

LAYOUT = "bigearthnet-v2"
PIXEL = PatchFormat(NAMES, (BandGroup("s2_10m", ("B04",), gsd=10, size=1),), has_maps=False)
SCHEMA = predictions_schema(len(NAMES))
ALL = 549_488
"""Patches of BigEarthNet v2, those with snow, cloud or shadow among them."""
GOAL_MB = 1000.0
"""Of memory, for whatever plans or looks at the whole archive."""
REPEATS = 3
"""Of every step of the growth up to REPEATED_SHARDS shards; the median counts."""
REPEATED_SHARDS = 1000


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured, in a process of its own."""

    what: str
    folder: str
    """Where the archive and the stores lie."""
    shard_size: int
    shards: int = 0
    """Shards of a step of the growth; 0: all."""
    actors: int = 2


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    patches: int
    shards: int
    actors: int
    seconds: float
    cpu_seconds: float
    before_mb: float
    peak_mb: float

    @property
    def per_shard_ms(self) -> float:
        """Milliseconds by the clock for each shard."""
        return 1000 * self.seconds / self.shards


@dataclass(frozen=True, slots=True)
class EmptyPixels:
    """BigEarthNet v2 without its pixels: every patch is one pixel of zeros, and lies nowhere."""

    archive: BigEarthNetV2

    @property
    def version(self) -> str:
        """Source version for the tables."""
        return "bigearthnet-v2-no-pixels"

    def scan(self) -> Scan:
        """Return the inputs of the archive, as patches of one pixel."""
        return replace(self.archive.scan(), format=PIXEL)

    def read(self, patch: PatchInput) -> Patch:
        """Return a pixel."""
        arrays = {"s2_10m": np.zeros((1, 1, 1), np.uint16)}
        return Patch(arrays, None, patch.labels, None, None, None, None, 0.0)


class NoModel:
    """Predicts a shard without looking: its rows, and 0.5 for every label."""

    def __init__(self, ingest: StageParts, predictions: StageParts) -> None:
        self._ingest, self._predictions = ingest, predictions

    def run(self, shard: int) -> ShardCount:
        """Write the part of one shard."""
        rows = self._ingest.read(shard)
        n = rows.num_rows
        probs = pa.FixedSizeListArray.from_arrays(pa.array(np.full(n * len(NAMES), 0.5, np.float32)), len(NAMES))
        columns = {
            "patch_id": rows["patch_id"],
            "split": rows["split"],
            "seed": pa.array(np.zeros(n, np.int32)),
            "probs": probs,
            "predicted": rows["labels"],
            "labels": rows["labels"],
        }
        self._predictions.write(shard, pa.table(columns).cast(SCHEMA))
        return ShardCount(n)


def prepare(root: Path, patches: int | None) -> str:
    """Write the metadata and the empty folders of an archive, and return what its ids are.

    Args:
        root: The archive's folder, to be made.
        patches: How many; None: as many as BigEarthNet v2 has.
    """
    data = os.environ.get("SUPERSCENE_DATA")
    root.mkdir(parents=True)
    if data:
        source = Path(data) / "bigearthnet_v2"
        tables = {name: pq.read_table(source / name) for name in (METADATA, FLAGGED_METADATA)}
        kind = "ids of BigEarthNet v2's metadata"
    else:
        tables = {METADATA: generated(ALL if patches is None else patches)}
        kind = "generated ids"
    left = sum(table.num_rows for table in tables.values()) if patches is None else patches
    for name, table in tables.items():
        some = table.slice(0, left)
        left -= some.num_rows
        pq.write_table(some, root / name)
        products = pc.replace_substring_regex(some["patch_id"], "_[^_]*_[^_]*$", "").to_pylist()
        for product in set(products):
            (root / S2_FOLDER / product).mkdir(parents=True, exist_ok=True)
        for product, patch_id in zip(products, some["patch_id"].to_pylist(), strict=True):
            os.mkdir(f"{root}/{S2_FOLDER}/{product}/{patch_id}")  # noqa: PTH102  # half a million of them
    return kind


def generated(patches: int) -> pa.Table:
    """Return metadata of patches that are nowhere, a hundred to a product."""
    ids = [
        f"S2A_MSIL2A_2017{i // 5000:04d}T101031_N9999_R{i // 100 % 50:03d}_T33UUP_{i % 100:02d}_00"
        for i in range(patches)
    ]
    splits = [("train", "train", "validation", "test")[i % 4] for i in range(patches)]
    return pa.table({"patch_id": ids, "split": splits, "labels": [[NAMES[i % 19]] for i in range(patches)]})


def archive_of(case: Case) -> EmptyPixels:
    return EmptyPixels(BigEarthNetV2(f"{case.folder}/archive", include_flagged=True))


def store_of(case: Case) -> StorePaths:
    return StorePaths(Path(case.folder) / f"store-{case.shard_size}")


def planned(case: Case, *, scanned: bool) -> Plan:
    return make_plan(archive_of(case) if scanned else None, store_of(case), LAYOUT, case.shard_size)


def predictions_of(case: Case, name: str) -> StageParts:
    return stage_parts(store_of(case), "predictions", {"benchmark": name})


class Clock:
    """Seconds by the clock and of this process, and its memory before."""

    def __init__(self) -> None:
        self.before = peak_mb()
        self.started, self.cpu = time.perf_counter(), time.process_time()

    def row(self, case: Case, patches: int, shards: int, what: str | None = None) -> Row:
        """Return the line of what was done since."""
        seconds, cpu = time.perf_counter() - self.started, time.process_time() - self.cpu
        return Row(what or case.what, patches, shards, case.actors, seconds, cpu, self.before, peak_mb())


def plan_rows(case: Case) -> list[Row]:
    """Measure planning; on an empty store the first time, then on one that holds the plan."""
    clock = Clock()
    plan = planned(case, scanned=True)
    assert plan.scan is not None
    return [clock.row(case, plan.scan.inputs.num_rows, len(plan.shards))]


def start_ray(case: Case) -> None:
    """Start a local cluster that has a core for each actor, be they there or not."""
    ray.init(
        address="local",
        num_cpus=case.actors,
        include_dashboard=False,
        log_to_driver=False,
        logging_level=logging.ERROR,
        object_store_memory=100 * 2**20,
    )


def whole_rows(case: Case) -> list[Row]:
    """Measure ingest, prediction and publishing of the whole list, and leave the record of that run."""
    paths = store_of(case)
    config = {"archive": {"layout": LAYOUT, "root": f"{case.folder}/archive"}, "store": str(paths.root)}
    record = RunRecord(paths, json.dumps(config), datetime.now(UTC))
    plan = planned(case, scanned=True)
    shards = sorted(plan.shards)
    start_ray(case)
    resources = Resources(case.actors)
    rows = []
    predictions = predictions_of(case, "whole list")
    for title, build, parts in (
        ("ingest without pixels", partial(ShardIngester, archive_of(case), PIXEL, plan.parts), plan.parts),
        ("predict without a model", partial(NoModel, plan.parts, predictions), predictions),
    ):
        filled = {"title": title, "stage": parts.stage, "config": parts.config, "shards": shards}
        record.outputs.append(filled)
        record.save("running")
        clock = Clock()
        report = run_stage(title, build, [parts], shards, resources)
        rows.append(clock.row(case, report.patches, len(shards), title))
        assert report.complete
        record.add(report)
    clock = Clock()
    record.counts = publish_archive(plan)
    rows.append(clock.row(case, record.counts.patches, len(shards), "publish tables/patches"))
    clock = Clock()
    table = pa.concat_tables([predictions.read(shard) for shard in shards])
    folder = hive_folder(paths.table("predictions"), sr="none", classifier="none", config=predictions.config)
    publish(folder, table, SCHEMA, ["patch_id", "seed"])
    rows.append(clock.row(case, table.num_rows, len(shards), "publish tables/predictions"))
    record.publish()
    return rows


def status_rows(case: Case) -> list[Row]:
    """Measure the status of the finished run."""
    clock = Clock()
    status = store_status(store_of(case))
    (_, stage) = status.stages
    assert stage.missing == 0
    return [clock.row(case, status.patches, stage.done)]


def ingest_rows(case: Case) -> list[Row]:
    """Ingest everything for the growth that follows; a line of it too, at many small shards."""
    plan = planned(case, scanned=False)
    shards = sorted(plan.shards)
    start_ray(case)
    clock = Clock()
    build = partial(ShardIngester, archive_of(case), PIXEL, plan.parts)
    report = run_stage("ingest", build, [plan.parts], shards, Resources(case.actors))
    assert report.complete
    return [clock.row(case, report.patches, len(shards))]


def growth_rows(case: Case) -> list[Row]:
    """Measure one stage of so many shards on so many actors, which are there already."""
    plan = planned(case, scanned=False)
    shards = sorted(plan.shards)
    start_ray(case)
    resources = Resources(case.actors)

    def stage(name: str, some: Sequence[int]) -> Row:
        parts = predictions_of(case, f"{case.what} {case.shards} {case.actors} {name}")
        clock = Clock()
        report = run_stage(name, partial(NoModel, plan.parts, parts), [parts], some, resources)
        assert report.complete
        return clock.row(case, report.patches, len(some))

    stage("warm", shards[-2 * case.actors :])  # starts the actors, which then wait for the next
    repeats = REPEATS if case.shards <= REPEATED_SHARDS else 1
    rows = [stage(str(repeat), shards[: case.shards]) for repeat in range(repeats)]
    dismiss_idle()
    middle = median(row.seconds for row in rows)
    return [next(row for row in rows if row.seconds == middle)]


def command_rows(case: Case) -> list[Row]:
    """Measure a command of the command line."""
    run_yaml = Path(case.folder) / "RUN.yaml"
    run_yaml.write_text(
        f"archive: {{layout: {LAYOUT}, root: {case.folder}/archive, include_flagged: true}}\n"
        f"store: {store_of(case).root}\nshard_size: {case.shard_size}\nsr: [none, bicubic]\nclassifiers: [resnet18]\n"
        "train: {backbone: random}\n"
    )
    verb = case.what.split()[1]
    target = run_yaml if verb == "plan" else store_of(case).root
    started = time.perf_counter()
    subprocess.run(
        [sys.executable, "-c", "from flows.cli import main; main()", verb, str(target)],
        check=True,
        stdout=subprocess.PIPE,
    )
    seconds, used = time.perf_counter() - started, resource.getrusage(resource.RUSAGE_CHILDREN)
    patches = store_status(store_of(case)).patches if verb == "status" else 0
    cpu, peak = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6
    return [Row(case.what, patches, case.shards, 1, seconds, cpu, 0.0, peak)]


MEASURES: dict[str, Callable[[Case], list[Row]]] = {
    "plan": plan_rows,
    "plan again": plan_rows,
    "the whole list": whole_rows,
    "status": status_rows,
    "superscene plan": command_rows,
    "superscene plan again": command_rows,
    "superscene status": command_rows,
    "plan, many shards": plan_rows,
    "ingest, many shards": ingest_rows,
    "growth by shards": growth_rows,
    "growth by actors": growth_rows,
}


def peak_mb() -> float:
    """Return the most memory that this process had so far: getrusage counts what its parent held at the fork, too."""
    (found,) = re.findall(r"VmHWM:\s+(\d+) kB", Path("/proc/self/status").read_text(encoding="ascii"))
    return int(found) * 1024 / 1e6


def in_a_process(case: Case) -> list[Row]:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(case))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    (found,) = [line for line in done.stdout.splitlines() if line.startswith("[{")]  # Ray may print around it
    rows = [Row(**row) for row in json.loads(found)]
    for row in rows:
        print(line(row), file=sys.stderr, flush=True)
    return rows


def exponent(sizes: Sequence[float], values: Sequence[float]) -> float:
    """Return the slope of log values over log sizes: 1 where they grow linearly, 0 where they do not."""
    return float(np.polyfit(np.log(sizes), np.log(values), 1)[0])


def growth_of(rows: Sequence[Row]) -> dict[str, float]:
    """Return the exponents of clock and driver, of the two growths."""
    found = {}
    for what, size in (("growth by shards", "shards"), ("growth by actors", "actors")):
        of = [row for row in rows if row.what == what]
        sizes = [float(getattr(row, size)) for row in of]
        if len(set(sizes)) > 1:
            found[f"{what}, by the clock"] = exponent(sizes, [row.seconds for row in of])
            found[f"{what}, CPU of the driver"] = exponent(sizes, [row.cpu_seconds for row in of])
            first, last = of[0], of[-1]
            found[f"{what}, last over first, ms a shard"] = last.per_shard_ms / first.per_shard_ms
    return found


def goal_of(rows: Sequence[Row]) -> str:
    """Return how far what plans and looks is from its goal, as a sentence."""
    looked = [row for row in rows if row.what.startswith(("plan", "status", "superscene"))]
    worst, slowest = max(looked, key=lambda row: row.peak_mb), max(looked, key=lambda row: row.seconds)
    met = "met" if worst.peak_mb < GOAL_MB else "missed"
    return (
        f"planning and status: at most {worst.peak_mb:.0f} MB ({worst.what}), the goal of {GOAL_MB:.0f} MB is {met}; "
        f"at most {slowest.seconds:.1f} s ({slowest.what})"
    )


def line(row: Row) -> str:
    """Return a line of the table."""
    return (
        f"{row.what:28}{row.patches:9,}{row.shards:8,}{row.actors:8}{row.seconds:9.2f}{row.cpu_seconds:9.2f}"
        f"{row.per_shard_ms:12.2f}{1000 * row.cpu_seconds / row.shards:14.2f}{row.before_mb:9.0f}{row.peak_mb:9.0f}"
    )


def measure(args: argparse.Namespace, folder: str) -> tuple[str, list[Row]]:
    """Measure everything, and return what the ids are, and the lines."""
    kind = prepare(Path(folder) / "archive", args.patches)
    case = partial(Case, folder=folder, actors=args.workers)
    rows = in_a_process(case("superscene plan", shard_size=args.shard_size, shards=1))
    for what in ("plan", "plan again", "the whole list", "status"):
        rows += in_a_process(case(what, shard_size=args.shard_size))
    shards = rows[1].shards
    rows[0] = replace(rows[0], shards=shards)
    rows += in_a_process(case("superscene plan again", shard_size=args.shard_size, shards=shards))
    rows += in_a_process(case("superscene status", shard_size=args.shard_size, shards=shards))
    small = max(1, rows[1].patches // args.most_shards)
    many = in_a_process(case("plan, many shards", shard_size=small))
    many += in_a_process(case("ingest, many shards", shard_size=small))
    most = many[0].shards
    rows += many
    for n in sorted({min(n, most) for n in args.shards}):
        rows += in_a_process(case("growth by shards", shard_size=small, shards=n))
    for actors in args.actors:
        n = min(args.actors_shards, most)
        rows += in_a_process(Case("growth by actors", folder, small, n, actors))
    return kind, rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, help="only so many")
    parser.add_argument("--shard-size", type=int, default=512)
    parser.add_argument("--most-shards", type=int, default=10_000, help="of the plan that the growth is measured on")
    parser.add_argument("--shards", type=int, nargs="+", default=[10, 100, 1000, 10_000])
    parser.add_argument("--actors", type=int, nargs="+", default=[1, 2, 4, 8, 16, 32, 64])
    parser.add_argument("--actors-shards", type=int, default=1000)
    parser.add_argument("--workers", type=int, default=2, help="actors of all other runs")
    parser.add_argument("--scratch", type=Path, help="where the folders and stores go for a while: 4 GB")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        case = Case(**json.loads(args.one))
        print(json.dumps([asdict(row) for row in MEASURES[case.what](case)]))
        return
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        kind, rows = measure(args, folder)
        tell(kind, rows, args.out)  # before half a million folders are removed


def tell(kind: str, rows: Sequence[Row], out: Path | None) -> None:
    """Print the table, and write it down if asked to."""
    growth = growth_of(rows)
    print(f"{kind}; clock and CPU (of the driver) in s, a shard in ms, memory in MB")
    print(f"{'what':28}{'patches':>9}{'shards':>8}{'actors':>8}{'clock':>9}{'CPU':>9}{'clock/shard':>12}"
          f"{'CPU/shard':>14}{'before':>9}{'peak':>9}")  # fmt: skip
    print("\n".join([line(row) for row in rows] + [f"{name}: {value:.2f}" for name, value in growth.items()]))
    print(goal_of(rows))
    if out:
        about = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "ray": ray.__version__,
            "pyarrow": pa.__version__,
            "ids": kind,
            "date": time.strftime("%Y-%m-%d"),
        }
        out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"about": about, "rows": [asdict(row) for row in rows], "growth": growth}, indent=2)
        out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
