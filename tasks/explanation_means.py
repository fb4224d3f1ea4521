"""Means of values over maps, with intervals: of each split, label and quarter by area, from sums over clusters."""

from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from classifiers.metrics import means_of_sums
from classifiers.metrics.formulas import Floats
from tasks.evaluate import interval_columns

QUARTILES = 4

type Values = NDArray[np.float32] | NDArray[np.float64]
type Ranks = NDArray[np.intp]


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a branch as numbers, all (M,), by patch and in it by label; who they are is told by ranks."""

    patch: Ranks
    """Of the name of its patch."""
    cluster: Ranks
    """What intervals resample, its tile or itself."""
    split: Ranks
    label: Ranks
    splits: tuple[str, ...]
    labels: tuple[str, ...]
    area: NDArray[np.float64]
    """Share of the patch that the label covers, NaN where nobody knows."""
    values: Mapping[str, Values]
    """By metric, NaN where null."""

    def take(self, rows: Ranks) -> "Rows":
        """Return some rows."""
        return Rows(
            self.patch[rows],
            self.cluster[rows],
            self.split[rows],
            self.label[rows],
            self.splits,
            self.labels,
            self.area[rows],
            {name: values[rows] for name, values in self.values.items()},
        )

    def without(self, metrics: Collection[str]) -> "Rows":
        """Return the same without some metrics."""
        return replace(self, values={name: v for name, v in self.values.items() if name not in metrics})


class Column(NamedTuple):
    """Values that means are taken of, (M,), NaN where null."""

    method: str
    metric: str
    values: Values


def mean_rows(
    names: Mapping[str, object], rows: Rows, columns: Iterable[Column], *, by_quartile: bool
) -> Iterator[dict[str, object]]:
    """Yield rows of EXPLANATION_METRICS: over all labels, of each label, and of each quarter by area.

    Args:
        names: What all of them have in common.
        rows: Who the values are of.
        columns: The values; each is summed and let go before the next one is asked for.
        by_quartile: Whether quarters are asked for.
    """
    quarter = _quarters(rows) if by_quartile else np.zeros(len(rows.patch), np.intp)
    shape = (len(rows.splits), len(rows.labels), QUARTILES + 1, int(rows.cluster.max(initial=0)) + 1)
    of_row = np.ravel_multi_index((rows.split, rows.label, quarter, rows.cluster), shape) if len(quarter) else quarter
    cells, cell = np.unique(of_row, return_inverse=True)  # only those that have rows: clusters may be many
    keys: list[tuple[str, str]] = []
    summed, counted = [], []
    for column in columns:
        known = ~np.isnan(column.values)
        keys.append((column.method, column.metric))
        summed.append(np.bincount(cell, np.where(known, column.values, 0), minlength=len(cells)))
        counted.append(np.bincount(cell, known, minlength=len(cells)))
    if not len(cells):
        return
    sums, counts = np.stack(summed, axis=1), np.stack(counted, axis=1)
    split, label, quarter, cluster = np.unravel_index(cells, shape)
    everything = np.zeros_like(label)
    levels = {"all": (everything, everything >= 0), "label": (label, label >= 0), "quarter": (quarter, quarter > 0)}
    for level, (group, chosen) in levels.items():
        for (at_split, at_group), of_group in _grouped(split, group, cluster, sums, counts, np.flatnonzero(chosen)):
            of = {
                **names,
                "split": rows.splits[at_split],
                "label": rows.labels[at_group] if level == "label" else None,
                "area_quartile": at_group if level == "quarter" else None,
            }
            n = of_group.counts.sum(axis=0)
            valued = np.flatnonzero(n)
            intervals = means_of_sums(of_group.sums[:, valued], of_group.counts[:, valued])
            for k, interval in zip(valued.tolist(), intervals, strict=True):
                method, metric = keys[k]
                yield {**of, "method": method, "metric": metric, **interval_columns(interval), "n": int(n[k])}


class _OfClusters(NamedTuple):
    """Sums and counts of K columns over C clusters, (C, K)."""

    sums: Floats
    counts: Floats


def _grouped(
    split: Ranks, group: Ranks, cluster: Ranks, sums: Floats, counts: Floats, chosen: Ranks
) -> Iterator[tuple[tuple[int, int], _OfClusters]]:
    """Yield split and group, and their sums over each cluster that has a row in them, in the order of clusters."""
    order = chosen[np.lexsort((cluster[chosen], group[chosen], split[chosen]))]
    who = np.stack([split[order], group[order], cluster[order]], axis=1)
    starts = _starts(who)
    of_cluster = _OfClusters(
        *(np.add.reduceat(table[order], starts, axis=0) if len(order) else table[order] for table in (sums, counts))
    )
    who = who[starts, :2]
    borders = [*_starts(who).tolist(), len(who)]
    for first, last in pairwise(borders):
        yield (
            (int(who[first, 0]), int(who[first, 1])),
            _OfClusters(of_cluster.sums[first:last], of_cluster.counts[first:last]),
        )


def _starts(rows: Ranks) -> Ranks:
    """Return where a row of (M, K) differs from the one before; the first one does."""
    differs = np.ones(len(rows), np.bool_)
    differs[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return np.flatnonzero(differs)


def _quarters(rows: Rows) -> Ranks:
    """Return the quarter by area of each row in its split, 1 the smallest, 0 where nobody knows the area.

    Ties lie in the order of patches and labels.
    """
    found = np.zeros(len(rows.area), np.intp)
    known = np.flatnonzero(~np.isnan(rows.area))
    for split in range(len(rows.splits)):
        of_split = known[rows.split[known] == split]
        order = of_split[np.argsort(rows.area[of_split], kind="stable")]
        for number, quarter in enumerate(np.array_split(order, QUARTILES), start=1):
            found[quarter] = number
    return found
