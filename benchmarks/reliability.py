"""How fast maps get their reliability: a million of them assigned to clusters, and what fitting costs.

    python benchmarks/reliability.py [--maps 1000000] [--chunk 19456] [--landmarks 5000] [--size 15]
                                     [--peer-maps 50000] [--fit-landmarks 500 1000 2000 5000]
                                     [--fit-samples 50000 100000 200000] [--out benchmarks/results/reliability.json]

Synthetic maps from a seeded generator: a spot somewhere under noise, a third of them 0 everywhere, as those of absent
labels are. Every measurement runs in a process of its own, so that its peak memory (resident set, imports of torch and
scikit-learn included) is its own.

- assign: maps come in chunks, as a stage sees them (1,024 patches of 19 labels), and get cluster, error rate and
  adjusted decision. The time of making maps is not counted, their memory is. Goal: 60 s and 4 GB on two cores.
- peer: scikit-learn's `PCA.transform` and `KNeighborsClassifier.predict` on the same landmarks, with fewer maps, all at
  once, already scaled to vectors; seconds are scaled up to as many maps. `agreement` is the share of those maps that
  both give the same cluster; the rest are ties, which go to the nearest landmark's here, to the lowest number there.
- fit_clusters: by landmarks. fit: by samples, with 1,000 landmarks; the samples are in memory, and counted.

Numbers of threads are those of the environment: OMP_NUM_THREADS=1 gives one core's.
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
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import sklearn
from numpy.typing import NDArray
from sklearn.decomposition import PCA
from sklearn.neighbors import KNeighborsClassifier

from classifiers.reliability import (
    POOLED,
    ClusterSettings,
    FittedReliability,
    FittingReliability,
    Reliability,
    adjusted_decisions,
    choose_landmarks,
    fit_clusters,
    from_bytes,
    outcomes,
    to_bytes,
)
from classifiers.reliability.clusters import vectors_of

ABSENT = 1 / 3
"""Share of maps that are 0."""

FIT_LANDMARKS = 1000
"""Landmarks where fitting is measured by samples."""

Maps = NDArray[np.float32]
Bools = NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Case:
    """What is measured, in a process of its own."""

    what: str
    maps: int
    landmarks: int
    chunk: int
    size: int
    file: str
    """Where the fit lies that maps are assigned by."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    maps: int
    landmarks: int
    seconds: float
    scaled_to: int | None
    """Maps that `seconds` are scaled to; None where they are measured."""
    peak_mb: float
    agreement: float | None
    """Share of maps with the cluster that superscene gives; None where not compared."""


def synthetic_maps(n: int, size: int, rng: np.random.Generator) -> Maps:
    """Return maps, (N, size, size)."""
    axis = np.arange(size, dtype=np.float32)
    y, x = (rng.uniform(0, size - 1, (2, n, 1)).astype(np.float32) - axis) ** 2
    width = rng.uniform(size / 10, size / 3, (n, 1)).astype(np.float32) ** 2
    maps: Maps = np.exp(-y / width)[:, :, None] * np.exp(-x / width)[:, None]  # a spot is a product of two
    maps += 0.3 * rng.random((n, size, size), dtype=np.float32)
    maps *= (rng.random(n) >= ABSENT)[:, None, None]
    return maps


def samples(n: int, size: int, seed: int) -> tuple[Maps, Bools, Bools]:
    """Return maps, decisions and truth; decisions on spots in the upper left are mostly wrong."""
    rng = np.random.default_rng(seed)
    maps = synthetic_maps(n, size, rng)
    truth = rng.random(n) < 0.3
    quarter = size // 2
    corner = maps[:, :quarter, :quarter].sum(axis=(1, 2)) > 0.5 * maps.sum(axis=(1, 2))
    return maps, truth ^ (rng.random(n) < np.where(corner, 0.9, 0.1)), truth


def chunks(case: Case) -> Iterator[Maps]:
    """Yield the maps of a case."""
    rng = np.random.default_rng(1)
    for start in range(0, case.maps, case.chunk):
        yield synthetic_maps(min(case.chunk, case.maps - start), case.size, rng)


def fit(maps: Maps, decisions: Bools, truth: Bools, settings: ClusterSettings, threshold: float = 0.75) -> Reliability:
    """Fit on samples in memory, by the steps that the stage takes."""
    outcome = outcomes(decisions, truth)
    chosen = choose_landmarks(outcome, settings.landmarks, settings.seed)
    fitting = FittingReliability(fit_clusters(maps[chosen], settings), threshold)
    fitting.add(maps, outcome)
    return fitting.result()


def fit_file(case: Case) -> Row:
    """Fit on twice as many samples as landmarks, and store it for the cases that assign."""
    settings, threshold = ClusterSettings(landmarks=case.landmarks), 0.5
    fitted = fit(*samples(2 * case.landmarks, case.size, 0), settings, threshold)
    content = to_bytes(FittedReliability(settings, threshold, True, {}, {POOLED: fitted}))  # noqa: FBT003  # pooled
    Path(case.file).write_bytes(content)
    return Row(case.what, 2 * case.landmarks, case.landmarks, 0.0, None, peak_mb(), None)


def stored(case: Case) -> Reliability:
    """Return the fit that maps are assigned by."""
    return from_bytes(Path(case.file).read_bytes()).by_label[POOLED]


def assign(case: Case) -> Row:
    """Measure assigning maps in chunks."""
    fitted = stored(case)
    fitted.assign(np.zeros((1, case.size, case.size)))  # the first call chooses algorithms
    seconds = 0.0
    for maps in chunks(case):
        decisions = np.ones(len(maps), np.bool_)
        started = time.perf_counter()
        clusters = fitted.assign(maps)
        fitted.error_rates(clusters)
        adjusted_decisions(decisions[:, None], fitted.is_flipped(clusters)[:, None], "sigmoid")
        seconds += time.perf_counter() - started
    return Row(case.what, case.maps, case.landmarks, seconds, None, peak_mb(), None)


def peer(case: Case) -> Row:
    """Measure scikit-learn's steps on some of the same maps, and compare clusters."""
    fitted = stored(case)
    maps = np.concatenate(list(chunks(case)))
    vectors = vectors_of(maps)
    of = fitted.clusters
    pca = PCA(len(of.components)).fit(vectors[: max(len(of.components) + 1, 1000)])
    pca.mean_, pca.components_ = of.mean, of.components  # the same landmarks
    classifier = KNeighborsClassifier(of.neighbours).fit(of.landmarks, of.of_landmarks)
    classifier.predict(pca.transform(vectors[:1]))
    started = time.perf_counter()
    found = classifier.predict(pca.transform(vectors))
    seconds = time.perf_counter() - started
    agreement = float((found == fitted.assign(maps)).mean())
    return Row(case.what, case.maps, case.landmarks, seconds, None, peak_mb(), agreement)


def fit_by_landmarks(case: Case) -> Row:
    """Measure the clustering of landmarks."""
    maps, settings = samples(case.landmarks, case.size, 0)[0], ClusterSettings(landmarks=case.landmarks)
    fit_clusters(maps[:160])  # the first call loads libraries
    started = time.perf_counter()
    fit_clusters(maps, settings)
    return Row(case.what, case.maps, case.landmarks, time.perf_counter() - started, None, peak_mb(), None)


def fit_by_samples(case: Case) -> Row:
    """Measure a fit on all samples."""
    drawn, settings = samples(case.maps, case.size, 0), ClusterSettings(landmarks=case.landmarks)
    fit_clusters(drawn[0][:160])
    started = time.perf_counter()
    fit(*drawn, settings)
    return Row(case.what, case.maps, case.landmarks, time.perf_counter() - started, None, peak_mb(), None)


MEASURES = {
    "fit for assign": fit_file,
    "assign": assign,
    "peer": peer,
    "fit_clusters": fit_by_landmarks,
    "fit": fit_by_samples,
}


def peak_mb() -> float:
    """Return the most memory that this process had so far."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def in_a_process(case: Case) -> Row:
    """Measure in a process of its own."""
    command = [sys.executable, __file__, "--one", json.dumps(asdict(case))]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return Row(**json.loads(done.stdout.splitlines()[-1]))


def rows_of(args: argparse.Namespace) -> list[Row]:
    """Measure everything, the goal first."""
    with tempfile.TemporaryDirectory() as folder:

        def measure(what: str, maps: int, landmarks: int) -> Row:
            row = in_a_process(Case(what, maps, landmarks, args.chunk, args.size, f"{folder}/fit.safetensors"))
            print(f"{what:16} {maps:9} maps {landmarks:6} landmarks {row.seconds:8.2f} s", file=sys.stderr)
            return row

        measure("fit for assign", 2 * args.landmarks, args.landmarks)
        rows = [measure("assign", args.maps, args.landmarks)]
        found = measure("peer", args.peer_maps, args.landmarks)
        scaled = found.seconds * args.maps / args.peer_maps
        rows.append(Row("peer", found.maps, found.landmarks, scaled, args.maps, found.peak_mb, found.agreement))
        rows += [measure("fit_clusters", landmarks, landmarks) for landmarks in args.fit_landmarks]
        rows += [measure("fit", maps, min(FIT_LANDMARKS, maps)) for maps in args.fit_samples]
    return rows


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--maps", type=int, default=1_000_000)
    parser.add_argument("--chunk", type=int, default=1024 * 19)
    parser.add_argument("--landmarks", type=int, default=5000)
    parser.add_argument("--size", type=int, default=15)
    parser.add_argument("--peer-maps", type=int, default=50_000)
    parser.add_argument("--fit-landmarks", type=int, nargs="+", default=[500, 1000, 2000, 5000])
    parser.add_argument("--fit-samples", type=int, nargs="+", default=[50_000, 100_000, 200_000])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args(arguments)
    if args.one:
        case = Case(**json.loads(args.one))
        print(json.dumps(asdict(MEASURES[case.what](case))))
        return
    rows = rows_of(args)
    print(f"{'what':18}{'maps':>10}{'landmarks':>11}{'seconds':>10}{'maps/s':>10}{'peak MB':>9}{'agreement':>11}")
    for row in rows:
        agreement = "" if row.agreement is None else f"{row.agreement:.4f}"
        speed = (row.scaled_to or row.maps) / row.seconds
        print(
            f"{row.what:18}{row.maps:10}{row.landmarks:11}{row.seconds:10.2f}{speed:10.0f}{row.peak_mb:9.0f}"
            f"{agreement:>11}"
        )
    if args.out:
        about = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "numpy": np.__version__,
            "scikit-learn": sklearn.__version__,
            "size": args.size,
            "chunk": args.chunk,
            "date": time.strftime("%Y-%m-%d"),
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=2)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
