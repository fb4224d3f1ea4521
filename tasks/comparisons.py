"""Comparisons: what an SR model adds to a classifier, against no enlargement and against bicubic, in pairs."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from classifiers.metrics import ABOUT_THE_TRUTH, Interval, interval_of, seed_counts
from infra.errors import ConfigError
from infra.parts import StageParts, stage_parts
from infra.tables import COMPARISONS, publish
from tasks.evaluate import EvaluateJob, interval_columns, resamples_table
from tasks.metric_rows import Bootstrap, known_labels, metric_rows

REFERENCES = ("none", "bicubic")
"""Branches that others are compared with: the patches as they are, and larger inputs without a network's help."""

SEEDS_TO_JUDGE = 3
"""Seeds from which on a difference can be called significant: two seeds of one network differ by themselves."""

type Key = tuple[str, str | None, str | None, str, str | None]
"""split, country, season, metric, label."""


@dataclass(frozen=True, slots=True)
class Resampled:
    """One metric of one classifier and seed."""

    value: float
    draws: NDArray[np.float32]
    """(R,), R = 0 where there is nothing to resample."""
    n: int
    n_labels: int


def publish_comparisons(jobs: Sequence[EvaluateJob]) -> None:
    """Write tables/comparisons: each branch but "none" against "none" and "bicubic", classifier by classifier.

    What was compared before is not computed again.

    Args:
        jobs: All evaluations of a run.

    Raises:
        ConfigError: Two of them were resampled differently.
    """
    for job in jobs:
        for reference in jobs:
            if reference.classifier == job.classifier and is_compared(job.sr, reference.sr):
                _publish(job, reference)


def is_compared(sr: str, reference: str) -> bool:
    """Return whether a branch is compared with another."""
    return reference in REFERENCES and sr not in {reference, "none"}


def over_seeds(of_seeds: Sequence[Resampled], bootstrap: Bootstrap) -> Interval:
    """Return the mean over training seeds; its interval has both resampled, the clusters and the seeds.

    Args:
        of_seeds: One metric of each seed, on the same patches.
        bootstrap: What the metrics were resampled with.
    """
    value = float(np.mean([seed.value for seed in of_seeds]))
    n = min(len(seed.draws) for seed in of_seeds)  # 0 where one of them has nothing to resample
    draws = np.stack([seed.draws[:n] for seed in of_seeds], axis=1).astype(np.float64)  # (R, S)
    times = seed_counts(len(of_seeds), bootstrap.n_resamples, bootstrap.seed)[:n]
    return interval_of(value, (draws * times).sum(axis=1) / len(of_seeds))


def comparison_rows(
    names: Mapping[str, str],
    ours: Sequence[Mapping[Key, Resampled]],
    theirs: Sequence[Mapping[Key, Resampled]],
    bootstrap: Bootstrap,
) -> pa.Table:
    """Return rows of COMPARISONS.

    Args:
        names: sr, reference, classifier, config and reference_config.
        ours: The metrics of each seed, resampled.
        theirs: Those of the reference, on the same patches, of the same seeds.
        bootstrap: What both were resampled with.
    """
    rows: list[dict[str, object]] = []
    for key in ours[0] if ours else ():
        split, country, season, metric, label = key
        if metric in ABOUT_THE_TRUTH or not all(key in seed for seed in (*ours, *theirs)):
            continue
        differences = [
            Resampled(a[key].value - b[key].value, a[key].draws - b[key].draws, a[key].n, a[key].n_labels)
            for a, b in zip(ours, theirs, strict=True)
        ]
        interval = over_seeds(differences, bootstrap)
        significant = None
        if len(ours) >= SEEDS_TO_JUDGE and not np.isnan(interval.low):
            # Draws are float32: differences of seeds that cancel out leave a little, of either sign.
            scale = max(1.0, *(abs(seed[key].value) for seed in (*ours, *theirs)))
            nothing = 2 * float(np.finfo(np.float32).eps) * scale
            significant = interval.low > nothing or interval.high < -nothing
        rows.append(
            {
                **names,
                "split": split,
                "country": country,
                "season": season,
                "metric": metric,
                "label": label,
                **interval_columns(interval),
                "significant": significant,
                "n_seeds": len(ours),
                "n": differences[0].n,
                "n_labels": differences[0].n_labels,
            }
        )
    return pa.Table.from_pylist(rows, schema=COMPARISONS)


def keyed(resamples: pa.Table) -> dict[Key, Resampled]:
    """Return rows of RESAMPLES by what they are of."""
    table = resamples.combine_chunks()
    draws = table["draws"].combine_chunks() if table.num_rows else pa.array([], pa.list_(pa.float32()))
    values, offsets = draws.values.to_numpy(), draws.offsets.to_numpy()
    columns = [table[name].to_pylist() for name in ("split", "country", "season", "metric", "label")]
    value, n, n_labels = (table[name].to_pylist() for name in ("value", "n", "n_labels"))
    return {
        key: Resampled(value[i], values[offsets[i] : offsets[i + 1]], n[i], n_labels[i])
        for i, key in enumerate(zip(*columns, strict=True))
    }


def paired(
    ours: pa.Table, theirs: pa.Table, labels: Sequence[str], bootstrap: Bootstrap, *, by_place: bool = True
) -> tuple[dict[Key, Resampled], dict[Key, Resampled]]:
    """Return the metrics of two classifiers of one seed on the patches that both scored, and the labels both know.

    Args:
        ours: Predictions of one seed, from `scored_patches`.
        theirs: Those of the reference.
        labels: Labels of the archive.
        bootstrap: How to resample.
        by_place: Whether countries and seasons are scored too.
    """
    known = set(known_labels(theirs, labels))
    both = [label for label in known_labels(ours, labels) if label in known]
    rows = (
        resamples_table(list(metric_rows(_of(table, other), labels, bootstrap, of=both, by_place=by_place)))
        for table, other in ((ours, theirs), (theirs, ours))
    )
    first, second = (keyed(table) for table in rows)
    return first, second


def _publish(job: EvaluateJob, reference: EvaluateJob) -> None:
    if job.bootstrap != reference.bootstrap:
        raise ConfigError(
            f"{job.sr} was resampled by {job.bootstrap}, {reference.sr} by {reference.bootstrap}: evaluate both alike"
        )
    seeds = [seed for seed in job.seeds if seed in reference.seeds]
    done = [seed for seed in seeds if job.parts.is_done(seed) and reference.parts.is_done(seed)]
    parts = stage_parts(
        job.parts.paths,
        "comparisons",
        {"evaluate": job.parts.config, "reference": reference.parts.config, "seeds": [*done], "schema": 2},
    )
    if not parts.is_done(0):
        _compare(job, reference, done, parts)
    publish(
        job.parts.paths.table("comparisons"),
        parts.read(0),
        COMPARISONS,
        ["split", "country", "season", "metric", "label"],
        complete=done == seeds,
        file_stem=f"{job.sr}-{reference.sr}-{job.classifier}-{job.predictions.config}",
    )


def _compare(job: EvaluateJob, reference: EvaluateJob, seeds: Sequence[int], parts: StageParts) -> None:
    names = {
        "sr": job.sr,
        "reference": reference.sr,
        "classifier": job.classifier,
        "config": job.predictions.config,
        "reference_config": reference.predictions.config,
    }
    pairs = [_pair(job, reference, seed) for seed in seeds]
    ours, theirs = [a for a, _ in pairs], [b for _, b in pairs]
    parts.write(0, comparison_rows(names, ours, theirs, job.bootstrap))


def _pair(job: EvaluateJob, reference: EvaluateJob, seed: int) -> tuple[dict[Key, Resampled], dict[Key, Resampled]]:
    ours, theirs = (j.parts.read_side("resamples", seed) for j in (job, reference))
    if set(_digests(ours)) == set(_digests(theirs)):
        return keyed(ours), keyed(theirs)
    return paired(job.read(seed), reference.read(seed), job.labels, job.bootstrap)


def _digests(resamples: pa.Table) -> Iterator[tuple[str, str]]:
    """Yield each split with the digest of its patches."""
    for row in resamples.select(["split", "digest"]).group_by(["split", "digest"]).aggregate([]).to_pylist():
        yield row["split"], row["digest"]


def _of(table: pa.Table, other: pa.Table) -> pa.Table:
    """Return the rows whose patches the other has too."""
    return table.filter(pc.is_in(table["patch_id"], value_set=other["patch_id"].combine_chunks()))
