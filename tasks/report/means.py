"""Means over training seeds, and differences to a reference branch, from the rows of the tables."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from statistics import fmean
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.compute as pc

CLAIMS_NEED_SEEDS = 3
"""Training seeds from which a difference may be called significant."""


class Subject(NamedTuple):
    """What a number is of."""

    sr: str
    classifier: str
    split: str
    label: str | None = None
    """None: over all labels."""
    country: str | None = None
    """None: all patches, if season is None too."""
    season: str | None = None


@dataclass(frozen=True, slots=True)
class Mean:
    """A metric's mean over the seeds in which it is defined."""

    value: float | None
    """None where it is defined in no seed."""
    seeds: tuple[int, ...]
    """All seeds, sorted."""
    n: int
    """Patches, of the seed that has the fewest."""
    config: str
    """Config of the predictions."""


@dataclass(frozen=True, slots=True)
class Difference:
    """A row of tables/comparisons: a branch minus its reference."""

    value: float | None
    low: float | None
    high: float | None
    significant: bool | None
    """None with fewer than three seeds, or without an interval: nothing is claimed."""
    n_seeds: int
    """Seeds that both have."""
    n: int
    """Patches that both scored."""


def overall(rows: pa.Table) -> pa.Table:
    """Return the rows that are over all patches: neither of one country nor of one season."""
    return rows.filter(pc.and_(pc.is_null(rows["country"]), pc.is_null(rows["season"])))


def seed_means(metrics: pa.Table) -> dict[Subject, dict[str, Mean]]:
    """Return the means over seeds of rows of tables/metrics, by subject and metric.

    Args:
        metrics: Rows, any order, of one config for each SR model and classifier.
    """
    groups: dict[tuple[Subject, str], list[dict[str, Any]]] = defaultdict(list)
    for row in metrics.to_pylist():
        groups[_subject(row), row["metric"]].append(row)
    means: dict[Subject, dict[str, Mean]] = defaultdict(dict)
    for (subject, metric), rows in groups.items():
        values = [row["value"] for row in rows if row["value"] is not None]
        seeds = tuple(sorted(row["seed"] for row in rows))
        value = fmean(values) if values else None
        means[subject][metric] = Mean(value, seeds, min(row["n"] for row in rows), rows[0]["config"])
    return dict(means)


def differences(comparisons: pa.Table, reference: str) -> dict[Subject, dict[str, Difference]]:
    """Return the rows of tables/comparisons against one reference, by subject and metric.

    "none" minus "bicubic" is also read from "bicubic" minus "none", where the table has that alone: the same resamples
    with their signs turned round.

    Args:
        comparisons: Rows, any order, of one config for each SR model and classifier.
        reference: "none" or "bicubic".
    """
    found: dict[Subject, dict[str, Difference]] = defaultdict(dict)
    turned: dict[Subject, dict[str, Difference]] = defaultdict(dict)
    either = pc.or_(pc.equal(comparisons["reference"], reference), pc.equal(comparisons["sr"], reference))
    for row in comparisons.filter(either).to_pylist():
        ends = row["value"], row["low"], row["high"]
        rest = row["significant"], row["n_seeds"], row["n"]
        subject, metric = _subject(row), row["metric"]
        if row["reference"] == reference:
            found[subject][metric] = Difference(*ends, *rest)
        else:
            value, high, low = (None if end is None else -end for end in ends)
            turned[subject._replace(sr=row["reference"])][metric] = Difference(value, low, high, *rest)
    return {subject: {**turned.get(subject, {}), **found.get(subject, {})} for subject in found | turned}


def of_configs(rows: pa.Table, schema: pa.Schema, configs: Iterable[str]) -> pa.Table:
    """Return rows of some configs with the schema's columns; one that an earlier version did not write is null.

    Args:
        rows: A table as it was read; without columns where its folder is absent.
        schema: Its schema of today.
        configs: Configs to keep, in `reference_config` too where the table has one.
    """
    columns = pa.schema([pa.field(field.name, field.type) for field in schema])  # old rows lack required ones
    rows = pa.concat_tables([columns.empty_table(), rows], promote_options="default").select(columns.names)
    wanted = pa.array(sorted(configs), pa.string())
    for name in ("config", "reference_config"):
        if name in rows.column_names:
            rows = rows.filter(pc.is_in(rows[name], value_set=wanted))
    return rows


def n_seeds(means: Mapping[str, Mean]) -> int:
    """Return the number of seeds of one subject's metrics."""
    return max((len(mean.seeds) for mean in means.values()), default=0)


def _subject(row: Mapping[str, Any]) -> Subject:
    return Subject(*(row[name] for name in Subject._fields))
