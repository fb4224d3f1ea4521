"""Oracle: the rows of each group, picked one by one, and the bootstrap of values that are not summed before."""

from typing import Any

import numpy as np
import pandas as pd
import pytest

from classifiers.metrics import bootstrap_means
from tasks.explanation_means import Column, Rows, mean_rows

SPLITS, LABELS = ("test", "train"), ("forest", "sand", "water")
N = 300


def rows_and_columns(n_clusters: int) -> tuple[Rows, list[Column]]:
    """Rows of which a fifth has no area and some areas are equal; a column without nulls, one with, one of nulls."""
    rng = np.random.default_rng(n_clusters)
    patch = np.sort(rng.integers(0, 120, N))
    area = rng.choice([0.25, 0.5, *rng.random(50)], N)
    area[rng.random(N) < 0.2] = np.nan
    values = rng.normal(size=(N, 3))
    values[rng.random(N) < 0.4, 1] = np.nan
    values[:, 2] = np.nan
    # The label "water" lies in the split "train" alone.
    split = patch % 2
    label = np.where(split == 1, rng.integers(0, 3, N), rng.integers(0, 2, N))
    rows = Rows(patch, patch % n_clusters, split, label, SPLITS, LABELS, area, {})
    return rows, [Column("cam", "a", values[:, 0]), Column("cam", "b", values[:, 1]), Column("flat", "b", values[:, 2])]


@pytest.mark.parametrize("n_clusters", [1, 7, 120])
@pytest.mark.parametrize("by_quartile", [False, True])
def test_means_and_intervals_are_those_of_the_rows_of_each_group(n_clusters: int, by_quartile: bool) -> None:
    rows, columns = rows_and_columns(n_clusters)
    found = list(mean_rows({"sr": "none"}, rows, iter(columns), by_quartile=by_quartile))
    frame = pd.DataFrame({"split": rows.split, "label": rows.label, "area": rows.area})
    expected: dict[tuple[str, str | None, int | None, str], tuple[float, ...]] = {}
    for split, of_split in frame.groupby("split"):
        groups: list[tuple[str | None, int | None, pd.DataFrame]] = [(None, None, of_split)]
        groups += [(LABELS[int(str(label))], None, of_label) for label, of_label in of_split.groupby("label")]
        if by_quartile:
            by_area = of_split[of_split.area.notna()].sort_values("area", kind="stable")
            sizes = [len(by_area) // 4 + (i < len(by_area) % 4) for i in range(4)]
            ends = np.cumsum(sizes)
            groups += [(None, i + 1, by_area.iloc[ends[i] - sizes[i] : ends[i]]) for i in range(4)]
        for label, quarter, chosen in groups:
            for column in columns[:2]:
                values = column.values[chosen.index]
                (interval,) = bootstrap_means(values[:, None], rows.cluster[chosen.index])
                n = float((~np.isnan(values)).sum())
                expected[SPLITS[int(str(split))], label, quarter, column.metric] = (*interval, n)
    keyed: dict[Any, dict[str, Any]] = {
        (row["split"], row["label"], row["area_quartile"], row["metric"]): row for row in found
    }
    assert keyed.keys() == expected.keys()
    assert len(keyed) == len(found)
    for key, row in keyed.items():
        given = [np.nan if row[name] is None else row[name] for name in ("value", "low", "high", "n")]
        np.testing.assert_allclose(given, np.array(expected[key]), rtol=1e-12, atol=1e-15)
        assert row["sr"] == "none"
        assert row["method"] == "cam"
        assert (row["low"] is None) == (n_clusters == 1)


def test_no_rows_have_no_means() -> None:
    rows, columns = rows_and_columns(7)
    none = np.zeros(0, np.intp)
    nothing = [column._replace(values=column.values[none]) for column in columns]
    assert list(mean_rows({}, rows.take(none), nothing, by_quartile=True)) == []
