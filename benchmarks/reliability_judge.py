"""What judging and publishing reliability costs on the rows of a large archive: seconds and memory of one job.

    python benchmarks/reliability_judge.py [--patches 5000] [--labels 19] [--shard-size 512] [--tiles 115]
                                           [--out benchmarks/results/reliability_judge.json]

Synthetic parts of tables/reliability, as the stage before writes them: random clusters of 8 a label, a tenth of the
decisions wrong, half of the patches in train, a quarter each in validation and test. BigEarthNet v2 has 549,488
patches, and so 10.4 million rows a job. Every measurement runs in a process of its own, so that its peak memory
(resident set, imports of torch included) is its own: judge, publish, and publish again when nothing has changed;
`imports` is a process that does nothing.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa

from classifiers.reliability import ClusterSettings, FittedReliability, MapClusters, Reliability, to_bytes
from infra.archives.model import BIGEARTHNET
from infra.bigearthnet.bands import RGB
from infra.bigearthnet.classes import NAMES
from infra.parts import stage_parts
from infra.storage import StorePaths, write_bytes
from infra.tables import PATCHES, RELIABILITY, publish
from tasks.branch import Inputs, make_branch
from tasks.explain import Explained
from tasks.map_store import create_map_store
from tasks.reliability import ReliabilityJob, ReliabilityPlan, reliability_job
from tasks.reliability_judge import ReliabilityJudge, publish_reliability
from tasks.score import ScoredClassifier

CLUSTERS, SIDE, THRESHOLD = 8, 15, 0.75
SPLITS = ("train", "train", "validation", "test")


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured, in a process of its own."""

    what: str
    patches: int
    labels: int
    shard_size: int
    tiles: int
    folder: str

    @property
    def shards(self) -> list[int]:
        """All shards."""
        return list(range(-(-self.patches // self.shard_size)))


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    rows: int
    seconds: float
    peak_mb: float


def job_of(case: Case) -> ReliabilityJob:
    """Return the job; its fit's file is there once the store is made."""
    paths = StorePaths(Path(case.folder))
    labels = NAMES[: case.labels]
    ingest = stage_parts(paths, "ingest", {"layout": "synthetic"})
    branch = make_branch(Inputs(ingest, replace(BIGEARTHNET, labels=labels), RGB, (3000,) * 3), "none", None)
    predictions = stage_parts(paths, "predictions", {"classifier": "resnet18"})
    maps = Explained("grad_cam", {}, "predicted", sampled=False, parts=stage_parts(paths, "explanations", {}))
    network = paths.root / "network.safetensors"
    write_bytes(network, b"weights")
    create_map_store(paths.maps("grad_cam", maps.parts.config), labels, (SIDE, SIDE), case.shard_size, 1, {})
    scored = ScoredClassifier("resnet18", "resnet18", labels, "sigmoid", {0: network}, predictions, {"grad_cam": maps})
    return reliability_job(branch, scored, ReliabilityPlan("grad_cam", ClusterSettings(), THRESHOLD, pooled=False), [])


def make_store(case: Case) -> None:
    """Write the fit, tables/patches and the parts."""
    job, rng = job_of(case), np.random.default_rng(0)
    write_bytes(job.file, to_bytes(fits(job, rng)))
    fitted = job.fitted()
    names = np.array([f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{i:07d}" for i in range(case.patches)])
    rng.shuffle(names)
    assigned, rows = job.assignment(), []
    for shard in case.shards:
        of_shard = names[shard * case.shard_size : (shard + 1) * case.shard_size]
        split = SPLITS[shard % len(SPLITS)]
        assigned.write(shard, part(of_shard, split, fitted, rng))
        tiles = [f"33U{i:03d}" for i in rng.integers(0, case.tiles, len(of_shard))]
        rows.append(patch_rows(of_shard, split, shard, tiles))
    table = job.predictions.paths.table("patches")
    publish(table, pa.concat_tables(rows), PATCHES, ["patch_id"])


def fits(job: ReliabilityJob, rng: np.random.Generator) -> FittedReliability:
    """Return fits of which nothing is used but the counts."""
    by_label = {label: reliability(rng) for label in job.known}
    return FittedReliability(job.plan.settings, THRESHOLD, pooled=False, maps_of={}, by_label=by_label)


def reliability(rng: np.random.Generator) -> Reliability:
    """Return the fit of one label."""
    n = SIDE * SIDE
    clusters = MapClusters(
        (SIDE, SIDE),
        np.zeros(n, np.float32),
        np.eye(n, dtype=np.float32)[:CLUSTERS],
        np.eye(CLUSTERS, dtype=np.float32),
        np.arange(CLUSTERS, dtype=np.int32),
        1,
    )
    prototypes = rng.random((CLUSTERS, SIDE, SIDE), dtype=np.float32)
    return Reliability(clusters, rng.integers(1, 5000, (CLUSTERS, 4)), prototypes, THRESHOLD)


def part(
    names: np.ndarray[tuple[int], np.dtype[np.str_]],
    split: str,
    fitted: dict[str, Reliability],
    rng: np.random.Generator,
) -> pa.Table:
    """Return the rows of one shard."""
    shape = (len(names), len(fitted))
    probs = rng.random(shape, dtype=np.float32)
    cluster = rng.integers(0, CLUSTERS, shape, dtype=np.int32)
    predicted = probs >= 0.5
    rate = np.stack([item.error_rates(cluster[:, i]) for i, item in enumerate(fitted.values())], axis=1)
    flipped = np.stack([item.flipped[cluster[:, i]] for i, item in enumerate(fitted.values())], axis=1)
    patch, label = (pa.array(index.ravel()) for index in np.indices(shape))
    columns = {
        "patch_id": pa.array(names).take(patch),
        "split": pa.array([split] * len(names)).take(patch),
        "label": pa.array(list(fitted)).take(label),
        "seed": np.zeros(probs.size, np.int32),
        "prob": probs.ravel(),
        "predicted": predicted.ravel(),
        "truth": (predicted ^ (rng.random(shape) < 0.1)).ravel(),
        "cluster": cluster.ravel(),
        "cluster_error_rate": rate.ravel(),
        "reliability": 1 - rate.ravel(),
        "adjusted": (predicted ^ flipped).ravel(),
    }
    return pa.table(columns).cast(RELIABILITY)


def patch_rows(
    names: np.ndarray[tuple[int], np.dtype[np.str_]], split: str, shard: int, tiles: Sequence[str]
) -> pa.Table:
    """Return rows of tables/patches."""
    common: dict[str, object] = {"shard": shard, "split": split, "labels": [], "has_snow": False, "has_cloud": False}
    common |= {"country": "Austria", "season": "summer", "has_s1": False, "has_map": False, "nodata_share": 0.0}
    common |= {"geometry": bytes(93), "source_version": "synthetic"}
    rows = [{"patch_id": str(name), "row": i, "tile": tiles[i], **common} for i, name in enumerate(names)]
    return pa.Table.from_pylist(rows, PATCHES)


def judge(case: Case) -> None:
    """Judge the job."""
    ReliabilityJudge([job_of(case)]).run(0)


def publish_job(case: Case) -> None:
    """Publish its tables."""
    publish_reliability(job_of(case), case.shards)


def nothing(case: Case) -> None:
    """Do nothing, for the memory of imports."""


MEASURES: dict[str, Callable[[Case], None]] = {
    "imports": nothing,
    "make": make_store,
    "judge": judge,
    "publish": publish_job,
    "publish again": publish_job,
}


def measured(case: Case) -> Row:
    """Measure in this process."""
    started = time.perf_counter()
    MEASURES[case.what](case)
    seconds = time.perf_counter() - started
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6
    return Row(case.what, case.patches * case.labels, seconds, peak)


def in_a_process(case: Case) -> Row:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(case))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=5000)
    parser.add_argument("--labels", type=int, default=19)
    parser.add_argument("--shard-size", type=int, default=512)
    parser.add_argument("--tiles", type=int, default=115)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        print(json.dumps(asdict(measured(Case(**json.loads(args.one))))))
        return
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        for what in MEASURES:
            row = in_a_process(Case(what, args.patches, args.labels, args.shard_size, args.tiles, folder))
            print(f"{row.what:16}{row.rows:10} rows {row.seconds:8.2f} s {row.peak_mb:7.0f} MB")
            if what != "make":
                rows.append(row)
    if args.out:
        about = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "numpy": np.__version__,
            "pyarrow": pa.__version__,
            "shard_size": args.shard_size,
            "tiles": args.tiles,
            "date": time.strftime("%Y-%m-%d"),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=2)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
