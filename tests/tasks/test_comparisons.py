from pathlib import Path
from typing import Any

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, f1_score

from classifiers.metrics import ABOUT_THE_TRUTH
from infra.bigearthnet.classes import NAMES
from infra.storage import StorePaths
from infra.tables import COMPARISONS, read_table
from tasks.comparisons import Key, Resampled, comparison_rows, is_compared, publish_comparisons
from tasks.evaluate import EvaluateJob, SeedEvaluator
from tasks.metric_rows import Bootstrap
from tests.tasks.scored_case import Case, publish_case, publish_patches

RESAMPLES = 20
SEEDS = (3, 5, 8)


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path)


def evaluated(paths: StorePaths, case: Case, sr: str, of: Any = None, **options: Any) -> EvaluateJob:
    job = publish_case(paths, case, sr, of, **options)
    for seed in job.seeds:
        SeedEvaluator(job).run(seed)
    return job


def branches(seeds: tuple[int, ...] = SEEDS) -> dict[str, Case]:
    """The same patches seen by three branches, of growing skill."""
    cases = {}
    for i, sr in enumerate(("none", "bicubic", "srresnet")):
        cases[sr] = Case(seeds=seeds)
        cases[sr].guess(0.1 + 0.3 * i, seeds, by=i)
    return cases


def compared(paths: StorePaths) -> dict[tuple[Any, ...], dict[str, Any]]:
    names = ("sr", "reference", "split", "country", "season", "metric", "label")
    table = read_table(paths.table("comparisons"))
    rows = {tuple(row[name] for name in names): row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    assert table.schema.equals(COMPARISONS)
    return rows


def physical(ours: Case, theirs: Case, chosen: np.ndarray[Any, Any], seeds: tuple[int, ...]) -> list[float]:
    """Differences of macro F1 over patches repeated in memory as their tiles are drawn, then over seeds drawn."""
    tiles = ours.tile[chosen]
    names = np.unique(tiles)
    of_tiles, of_seeds = np.random.default_rng(0), np.random.default_rng([0, 1])
    differences = []
    drawn_seeds = of_seeds.integers(len(seeds), size=(RESAMPLES, len(seeds)))
    for r in range(RESAMPLES):
        drawn = names[of_tiles.integers(len(names), size=len(names))]
        rows = np.concatenate([chosen[tiles == name] for name in drawn])
        of_seed = [_f1(ours, rows, seeds[s]) - _f1(theirs, rows, seeds[s]) for s in drawn_seeds[r]]
        differences.append(float(np.mean(of_seed)))
    return differences


def _f1(case: Case, rows: np.ndarray[Any, Any], seed: int) -> float:
    truth, predicted = case.truth[rows].astype(int), case.predicted(seed)[rows].astype(int)
    return float(f1_score(truth, predicted, average="macro", zero_division=0))


@pytest.mark.parametrize("seeds", [SEEDS, (4,)])
def test_differences_are_those_of_patches_and_seeds_resampled_in_memory(
    paths: StorePaths, seeds: tuple[int, ...]
) -> None:
    cases = branches(seeds)
    publish_patches(paths, cases["none"])
    jobs = [evaluated(paths, case, sr) for sr, case in cases.items()]
    publish_comparisons(jobs)
    rows = compared(paths)
    pairs = {("bicubic", "none"), ("srresnet", "none"), ("srresnet", "bicubic")}
    assert {key[:2] for key in rows} == pairs
    assert not {key[5] for key in rows} & ABOUT_THE_TRUTH
    assert {key[3] for key in rows} == {None, "Austria", "Ireland", "Serbia"}
    chosen = cases["none"].scored("test")
    for sr, reference in pairs:
        ours, theirs = cases[sr], cases[reference]
        row = rows[sr, reference, "test", None, None, "f1_macro", None]
        expected = np.mean([_f1(ours, chosen, seed) - _f1(theirs, chosen, seed) for seed in seeds])
        assert row["value"] == pytest.approx(expected, abs=1e-12)
        draws = physical(ours, theirs, chosen, seeds)
        assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=1e-6)
        assert (row["n_seeds"], row["n"]) == (len(seeds), len(chosen))
        excludes_0 = row["low"] > 0 or row["high"] < 0
        assert row["significant"] is (excludes_0 if len(seeds) == 3 else None)
        ap = rows[sr, reference, "test", None, None, "ap", NAMES[3]]
        of_label = [
            average_precision_score(a.truth[chosen, 3], a.probs[s][chosen, 3]) for a in (ours, theirs) for s in seeds
        ]
        expected = np.mean(of_label[: len(seeds)]) - np.mean(of_label[len(seeds) :])
        assert ap["value"] == pytest.approx(expected, abs=1e-12)
        assert rows[sr, reference, "test", None, None, "ap", NAMES[5]]["value"] is None  # a label that never occurs
    one_tile = rows["srresnet", "none", "test", "Serbia", None, "f1_macro", None]
    assert (one_tile["low"], one_tile["significant"]) == (None, None)
    if len(seeds) == 3:
        assert rows["srresnet", "none", "test", None, None, "ap_macro", None]["significant"] is True


def test_equal_predictions_differ_by_nothing(paths: StorePaths) -> None:
    cases = branches()
    publish_patches(paths, cases["none"])
    publish_comparisons([evaluated(paths, cases["none"], sr) for sr in ("none", "bicubic")])
    rows = compared(paths)
    defined = [row for row in rows.values() if row["low"] is not None]
    assert {(row["value"], row["low"], row["high"], row["significant"]) for row in defined} == {(0, 0, 0, False)}


def test_branches_that_scored_different_patches_are_compared_on_the_common_ones(paths: StorePaths) -> None:
    cases = branches()
    publish_patches(paths, cases["none"])
    jobs = [
        evaluated(paths, cases["none"], "none", range(50)),
        evaluated(paths, cases["bicubic"], "bicubic", range(9, 60)),
    ]
    publish_comparisons(jobs)
    rows = compared(paths)
    chosen = np.array([i for i in cases["none"].scored("train") if 9 <= i < 50])
    row = rows["bicubic", "none", "train", None, None, "f1_macro", None]
    assert row["n"] == len(chosen) < len(cases["none"].scored("train"))
    expected = [_f1(cases["bicubic"], chosen, s) - _f1(cases["none"], chosen, s) for s in SEEDS]
    assert row["value"] == pytest.approx(np.mean(expected), abs=1e-12)


def test_seeds_that_only_one_branch_has_are_left_out(paths: StorePaths) -> None:
    cases = branches()
    cases["bicubic"].guess(0.4, (5, 8, 9))
    publish_patches(paths, cases["none"])
    publish_comparisons([evaluated(paths, cases[sr], sr) for sr in ("none", "bicubic")])
    row = compared(paths)["bicubic", "none", "test", None, None, "f1_macro", None]
    chosen = cases["none"].scored("test")
    expected = [_f1(cases["bicubic"], chosen, s) - _f1(cases["none"], chosen, s) for s in (5, 8)]
    assert row["value"] == pytest.approx(np.mean(expected), abs=1e-12)
    assert (row["n_seeds"], row["significant"]) == (2, None)
    assert row["low"] < row["high"]


def test_comparisons_are_not_computed_twice(paths: StorePaths, monkeypatch: pytest.MonkeyPatch) -> None:
    cases = branches((0,))
    publish_patches(paths, cases["none"])
    jobs = [evaluated(paths, cases[sr], sr) for sr in ("none", "bicubic")]
    publish_comparisons(jobs)
    before = compared(paths)
    monkeypatch.setattr("tasks.comparisons.comparison_rows", None)  # calling it would fail
    publish_comparisons(jobs)
    assert compared(paths) == before


def test_an_archive_without_labels_yields_no_rows_and_no_error(paths: StorePaths) -> None:
    cases = branches((0,))
    for case in cases.values():
        case.labelled[:] = False
    publish_patches(paths, cases["none"])
    publish_comparisons([evaluated(paths, case, sr) for sr, case in cases.items()])
    assert compared(paths) == {}


def test_what_is_compared_with_what() -> None:
    branches = ("none", "bicubic", "srresnet", "hr")
    assert [(sr, r) for sr in branches for r in branches if is_compared(sr, r)] == [
        ("bicubic", "none"),
        ("srresnet", "none"),
        ("srresnet", "bicubic"),
        ("hr", "none"),
        ("hr", "bicubic"),
    ]


def test_seeds_that_cancel_out_are_no_difference_whatever_float32_leaves_of_them() -> None:
    """Two seeds are 2/57 above, one is 1/57 above or, in every other resample, below: 2.5 % of the draws end at 0."""
    key: Key = ("test", None, None, "hl", None)
    other = np.arange(1000) % 2 == 0

    def drawn(usual: int, changed: int) -> dict[Key, Resampled]:
        return {key: Resampled(usual / 57, (np.where(other, changed, usual) / 57).astype(np.float32), 57, 1)}

    ours, theirs = [drawn(2, 2), drawn(8, 8), drawn(2, 2)], [drawn(0, 0), drawn(7, 9), drawn(0, 0)]
    names = dict.fromkeys(("sr", "reference", "classifier", "config", "reference_config"), "x")
    (row,) = comparison_rows(names, ours, theirs, Bootstrap(1000)).to_pylist()
    assert row["value"] == pytest.approx(5 / 3 / 57)
    assert row["low"] == pytest.approx(0, abs=1e-7)
    assert row["significant"] is False
    (turned,) = comparison_rows(names, theirs, ours, Bootstrap(1000)).to_pylist()
    assert turned["high"] == pytest.approx(0, abs=1e-7)
    assert turned["significant"] is False
