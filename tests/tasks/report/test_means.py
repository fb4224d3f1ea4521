from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from infra.tables import COMPARISONS, METRICS
from tasks.report.means import Difference, Mean, Subject, differences, n_seeds, of_configs, overall, seed_means

SUBJECT = Subject("hat", "resnet50", "test")


def metric(value: float | None, seed: int, **changes: object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "sr": "hat",
        "classifier": "resnet50",
        "config": "c",
        "seed": seed,
        "split": "test",
        "metric": "acc",
    }
    return {**row, "value": value, "n": 10, "n_labels": 3, **changes}


def comparison(sr: str, reference: str, value: float | None, **changes: object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "sr": sr,
        "reference": reference,
        "classifier": "resnet50",
        "config": f"c-{sr}",
        "split": "test",
    }
    row |= {"reference_config": f"c-{reference}", "metric": "acc", "value": value, "n_seeds": 3, "n": 9, "n_labels": 3}
    return {**row, **changes}


def test_means_are_over_the_seeds_in_which_a_metric_is_defined() -> None:
    values = np.random.default_rng(3).random(5).tolist()
    rows = [metric(value, seed, n=10 + seed) for seed, value in enumerate(values)]
    rows += [
        metric(None, 9),
        metric(None, 7, label="sea"),
        metric(0.5, 1, country="Finland"),
        metric(0.25, 1, metric="hl"),
    ]
    means = seed_means(pa.Table.from_pylist(rows, METRICS))
    acc = means[SUBJECT]["acc"]
    assert acc.value == pytest.approx(np.mean(values))
    assert (acc.seeds, acc.n, acc.config) == ((0, 1, 2, 3, 4, 9), 10, "c")
    assert means[SUBJECT]["hl"] == Mean(0.25, (1,), 10, "c")
    assert means[SUBJECT._replace(label="sea")]["acc"] == Mean(None, (7,), 10, "c")
    assert means[SUBJECT._replace(country="Finland")]["acc"].value == 0.5
    assert n_seeds(means[SUBJECT]) == 6


def test_overall_rows_have_neither_country_nor_season() -> None:
    rows = [metric(0.1, 0), metric(0.2, 0, country="Finland"), metric(0.3, 0, season="winter")]
    rows.append(metric(0.4, 0, country="Finland", season="winter"))
    assert overall(pa.Table.from_pylist(rows, METRICS))["value"].to_pylist() == [0.1]


def test_differences_are_the_rows_against_the_reference() -> None:
    rows = [
        comparison("hat", "bicubic", 0.25, low=0.125, high=0.5, significant=True),
        comparison("hat", "none", 0.75, low=0.5, high=0.875, significant=True),
        comparison("hat", "bicubic", None, label="sea", n_seeds=1, n=2),
    ]
    found = differences(pa.Table.from_pylist(rows, COMPARISONS), "bicubic")
    assert found == {
        SUBJECT: {"acc": Difference(0.25, 0.125, 0.5, significant=True, n_seeds=3, n=9)},
        SUBJECT._replace(label="sea"): {"acc": Difference(None, None, None, significant=None, n_seeds=1, n=2)},
    }


def test_a_comparison_is_read_from_either_end() -> None:
    """bicubic - none = 0.25 in 0.125..0.5 says that none - bicubic is -0.25 in -0.5..-0.125."""
    rows = [comparison("bicubic", "none", 0.25, low=0.125, high=0.5, significant=True)]
    none = SUBJECT._replace(sr="none")
    turned = {none: {"acc": Difference(-0.25, -0.5, -0.125, significant=True, n_seeds=3, n=9)}}
    assert differences(pa.Table.from_pylist(rows, COMPARISONS), "bicubic") == turned
    rows.append(comparison("none", "bicubic", -0.3125, low=None, high=None, significant=None))
    own = {none: {"acc": Difference(-0.3125, None, None, significant=None, n_seeds=3, n=9)}}
    assert differences(pa.Table.from_pylist(rows, COMPARISONS), "bicubic") == own  # the table's own row counts


def test_rows_of_other_configs_and_references_stay_out() -> None:
    rows = [comparison("hat", "bicubic", 0.5), comparison("hat", "none", 0.5), comparison("gan", "bicubic", 0.5)]
    kept = of_configs(pa.Table.from_pylist(rows, COMPARISONS), COMPARISONS, {"c-hat", "c-bicubic"})
    assert [(row["sr"], row["reference"]) for row in kept.to_pylist()] == [("hat", "bicubic")]


def test_columns_that_an_earlier_version_lacks_are_null() -> None:
    old = pa.Table.from_pylist([metric(0.5, 0)], METRICS).drop_columns(["country", "season"])
    assert overall(of_configs(old, METRICS, {"c"})).to_pylist() == [
        {**dict.fromkeys(METRICS.names), **metric(0.5, 0)},
    ]
    assert of_configs(pa.table({}), METRICS, {"c"}).schema.names == METRICS.names
