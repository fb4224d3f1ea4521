"""How fast metrics are resampled: average precision two ways and by scikit-learn, and a whole evaluation.

    python benchmarks/metrics.py [--patches 120000] [--labels 19] [--tiles 54] [--resamples 1000]
                                 [--peer-resamples 3] [--repeats 3] [--out benchmarks/results/metrics.json]

Random predictions of a test split of BigEarthNet's size, on tiles of unequal size, in 10 countries and 4 seasons.
Average precision of the same resamples by `one_by_one` (cumulative sums of each resample), `by_matrix_product`
(cumulative counts at the thresholds times weights) and scikit-learn's `average_precision_score` in a loop with the
weights of a few resamples; seconds are scaled to all resamples. Results are compared with scikit-learn's.

The whole evaluation is every metric of all patches, of each country and of each season, resampled. Numbers of threads
are those of the environment: OMP_NUM_THREADS=1 gives one core's.
"""

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import average_precision_score

from classifiers.metrics import Sample
from classifiers.metrics.bootstrap import cluster_counts
from classifiers.metrics.ranking import Ranking

COUNTRIES, SEASONS = 10, 4


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    way: str
    seconds: float
    """For all resamples, the median of the repeats."""
    speedup: float | None
    """Over scikit-learn; None where it was not measured."""
    difference: float | None
    """Largest absolute difference to scikit-learn."""


@dataclass(frozen=True, slots=True)
class Case:
    """Predictions, and where the patches lie."""

    probs: NDArray[np.float32]
    truth: NDArray[np.bool_]
    tile: NDArray[np.intp]
    country: NDArray[np.intp]
    season: NDArray[np.intp]


def case(patches: int, labels: int, tiles: int) -> Case:
    """Return random predictions, probabilities of float32 as networks give them; tiles of a country are its own."""
    rng = np.random.default_rng(0)
    truth = rng.random((patches, labels)) < np.linspace(0.02, 0.4, labels)
    logits = rng.normal(-2, 1.5, (patches, labels)) + 2.5 * truth
    probs = (1 / (1 + np.exp(-logits))).astype(np.float32)
    tile = np.minimum(rng.random(patches) ** 1.5 * tiles, tiles - 1).astype(np.intp)
    return Case(probs, truth, tile, tile % COUNTRIES, rng.integers(0, SEASONS, patches))


def seconds(work: Callable[[], object], repeats: int) -> float:
    """Return the median time of some runs."""
    times = []
    for _ in range(repeats):
        started = time.perf_counter()
        work()
        times.append(time.perf_counter() - started)
    return statistics.median(times)


def average_precision_rows(
    what: str, scores: NDArray[np.float32], truth: NDArray[np.bool_], tile: NDArray[np.intp], args: argparse.Namespace
) -> list[Row]:
    """Measure the three ways on one list of scores, (N,) or (N, K)."""
    (counts,) = cluster_counts(int(tile.max()) + 1, args.resamples, 0)
    ranking = Ranking.of(scores, truth).by_cluster(tile)
    weights = np.repeat(counts[: args.peer_resamples][:, tile], scores.size // len(scores), axis=1)

    def peer() -> list[float]:
        return [average_precision_score(truth.ravel(), scores.ravel(), sample_weight=row) for row in weights]

    expected = peer()
    of_peer = seconds(peer, 1) * args.resamples / len(weights)
    rows = [Row(what, "scikit-learn in a loop", of_peer, 1.0, 0.0)]
    for way, work in (("one by one", ranking.one_by_one), ("by matrix product", ranking.by_matrix_product)):
        spent = seconds(partial(work, counts), args.repeats)
        difference = float(np.abs(work(counts)[: len(weights)] - expected).max())
        rows.append(Row(what, way, spent, of_peer / spent, difference))
    return rows


def evaluation_row(data: Case, resamples: int) -> Row:
    """Measure every metric of all patches, of each country and of each season."""

    def work() -> None:
        sample = Sample.of(data.probs, data.truth)
        subsets = [data.country == i for i in range(COUNTRIES)] + [data.season == i for i in range(SEASONS)]
        for rows in [np.ones(len(data.tile), np.bool_), *subsets]:
            sample.resample(data.tile, resamples, rows=rows).intervals()

    return Row("all metrics, 15 subsets", "superscene", seconds(work, 1), None, None)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=120_000)
    parser.add_argument("--labels", type=int, default=19)
    parser.add_argument("--tiles", type=int, default=54)
    parser.add_argument("--resamples", type=int, default=1000)
    parser.add_argument("--peer-resamples", type=int, default=3)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    data = case(args.patches, args.labels, args.tiles)
    middle = args.labels // 2
    rows = [
        *average_precision_rows("AP of one label", data.probs[:, middle], data.truth[:, middle], data.tile, args),
        *average_precision_rows("AP of all labels (micro)", data.probs, data.truth, data.tile, args),
        evaluation_row(data, args.resamples),
    ]
    print(f"{args.patches} patches, {args.labels} labels, {args.resamples} resamples of {args.tiles} tiles")
    print(f"{'what':26}{'way':26}{'seconds':>10}{'speed-up':>10}{'difference':>12}")
    for row in rows:
        speedup = "" if row.speedup is None else f"{row.speedup:.0f}"
        difference = "" if row.difference is None else f"{row.difference:.0e}"
        print(f"{row.what:26}{row.way:26}{row.seconds:10.2f}{speedup:>10}{difference:>12}")
    if args.out:
        about = {
            "processor": platform.processor() or platform.machine(),
            "cores": os.cpu_count(),
            "threads": os.environ.get("OMP_NUM_THREADS", "all"),
            "numpy": np.__version__,
            "patches": args.patches,
            "labels": args.labels,
            "tiles": args.tiles,
            "resamples": args.resamples,
        }
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=2)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
