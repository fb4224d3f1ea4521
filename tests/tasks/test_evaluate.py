from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from sklearn import metrics as sk

from classifiers.metrics import OVERALL, PER_LABEL
from infra.bigearthnet.bands import RGB
from infra.bigearthnet.classes import NAMES
from infra.parts import StageParts
from infra.storage import StorePaths
from infra.tables import METRICS, PATCHES, predictions_schema, publish, read_table
from tasks.branch import Branch, make_branch
from tasks.evaluate import metric_rows, publish_metrics
from tasks.score import ScoredClassifier

COMMON = {"sr": "bicubic", "classifier": "resnet18", "config": "a1b2c3d4"}


class Case:
    """Random predictions of two seeds on 60 patches of two splits, some of them flagged or without labels."""

    def __init__(self, seed: int = 0, n: int = 60) -> None:
        rng = np.random.default_rng(seed)
        self.ids = [f"patch_{i:02d}" for i in range(n)]
        self.split = np.where(rng.random(n) < 0.4, "test", "train")
        self.truth = rng.random((n, 19)) < 0.3
        self.truth[:, 5] = False
        self.flag = rng.choice(np.array(["", "has_snow", "has_cloud"]), n, p=[0.8, 0.1, 0.1])
        self.labelled = rng.random(n) < 0.9
        self.tile = rng.choice(np.array(["33UUP", "34TCR", "29UPU", "31UGR"]), n)
        self.probs = {s: np.clip(0.2 * self.truth + rng.random((n, 19)), 0, 1).astype(np.float32) for s in (0, 1)}
        self.thresholds = np.linspace(0.4, 0.9, 19).astype(np.float32)

    def predictions(self) -> pa.Table:
        rows = [
            {
                "patch_id": name,
                "split": self.split[i],
                "seed": seed,
                "probs": probs[i].tolist(),
                "predicted": [NAMES[k] for k in np.flatnonzero(probs[i] >= self.thresholds)],
                "labels": [NAMES[k] for k in np.flatnonzero(self.truth[i])] if self.labelled[i] else None,
            }
            for seed, probs in self.probs.items()
            for i, name in enumerate(self.ids)
        ]
        return pa.Table.from_pylist(rows, predictions_schema(19))

    def patches(self, *, tiles: bool = True) -> pa.Table:
        unused = {
            "has_s1": False,
            "has_map": False,
            "nodata_share": 0.0,
            "crs": "",
            "geometry": b"",
            "source_version": "",
        }
        rows = [
            {
                "patch_id": name,
                "shard": 0,
                "row": i,
                "split": self.split[i],
                "tile": self.tile[i] if tiles or i else None,
                "has_snow": self.flag[i] == "has_snow" or None,
                "has_cloud": self.flag[i] == "has_cloud",
                **unused,
            }
            for i, name in enumerate(self.ids)
        ]
        return pa.Table.from_pylist(rows, PATCHES)

    def scored(self, split: str) -> np.ndarray[Any, Any]:
        return np.flatnonzero((self.split == split) & (self.flag == "") & self.labelled)


def rows_of(table: pa.Table) -> dict[tuple[str, int, str, str | None], dict[str, Any]]:
    rows = {(row["split"], row["seed"], row["metric"], row["label"]): row for row in table.to_pylist()}
    assert len(rows) == table.num_rows
    return rows


def test_rows_are_scikit_learn_s_on_clean_labelled_patches() -> None:
    case = Case()
    table = metric_rows(COMMON, case.predictions(), case.patches(), resamples=3)
    assert table.schema.equals(METRICS)
    rows = rows_of(table)
    assert {key[:2] for key in rows} == {(split, seed) for split in ("train", "test") for seed in (0, 1)}
    assert len(rows) == 4 * (len(OVERALL) + 19 * len(PER_LABEL))
    for split, seed in {key[:2] for key in rows}:
        chosen = case.scored(split)
        assert 0 < len(chosen) < np.count_nonzero(case.split == split)
        t, probs = case.truth[chosen].astype(int), case.probs[seed][chosen]
        p = (probs >= case.thresholds).astype(int)
        some = t.any(axis=0)
        assert not some[5]
        overall = {
            "acc": sk.jaccard_score(t, p, average="samples", zero_division=0),
            "hl": sk.hamming_loss(t, p),
            "f1_macro": sk.f1_score(t, p, average="macro", zero_division=0),
            "f2_macro": sk.fbeta_score(t, p, beta=2, average="macro", zero_division=0),
            "ap_macro": sk.average_precision_score(t[:, some], probs[:, some], average="macro"),
            "ap_micro": sk.average_precision_score(t, probs, average="micro"),
            "ranking_loss": sk.label_ranking_loss(t, probs),
            "prevalence_macro": t[:, some].mean(),
        }
        for metric, expected in overall.items():
            row = rows[split, seed, metric, None]
            assert row["value"] == pytest.approx(expected, abs=1e-12), metric
            averaged = len(NAMES) if metric in {"f1_macro", "f2_macro"} else some.sum()
            assert (row["n"], row["n_labels"]) == (len(chosen), averaged)
            assert {key: row[key] for key in COMMON} == COMMON
        f1 = sk.f1_score(t, p, average=None, zero_division=0)
        for i, name in enumerate(NAMES):
            assert rows[split, seed, "f1", name]["value"] == pytest.approx(f1[i], abs=1e-12)
            assert rows[split, seed, "support", name]["value"] == t[:, i].sum()
            ap = sk.average_precision_score(t[:, i], probs[:, i]) if some[i] else None
            assert rows[split, seed, "ap", name]["value"] == (None if ap is None else pytest.approx(ap, abs=1e-12))
            assert rows[split, seed, "ap", name]["n_labels"] == 1


def test_rows_do_not_depend_on_the_order_of_the_predictions() -> None:
    case = Case()
    predictions, patches = case.predictions(), case.patches()
    rng = np.random.default_rng(1)
    shuffled = predictions.take(rng.permutation(len(predictions))), patches.take(rng.permutation(len(patches)))
    assert metric_rows(COMMON, *shuffled, 5).equals(metric_rows(COMMON, predictions, patches, 5))


@pytest.mark.parametrize("tiles", [True, False])
def test_intervals_resample_tiles_where_every_patch_has_one_and_patches_otherwise(tiles: bool) -> None:
    """The Hamming loss of patches that are repeated in memory as they are drawn."""
    case = Case()
    case.flag[0], case.labelled[0] = "", True  # the patch that loses its tile is scored
    rows = rows_of(metric_rows(COMMON, case.predictions(), case.patches(tiles=tiles), resamples=50))
    split = str(case.split[0])
    chosen = case.scored(split)
    wrong = (case.probs[0][chosen] >= case.thresholds) != case.truth[chosen]
    clusters = case.tile[chosen] if tiles else np.arange(len(chosen))
    members = [np.flatnonzero(clusters == name) for name in np.unique(clusters)]
    assert len(members) == (4 if tiles else len(chosen))
    rng = np.random.default_rng(0)
    draws = []
    for _ in range(50):
        drawn = rng.integers(len(members), size=len(members))
        draws.append(wrong[np.concatenate([members[i] for i in drawn])].mean())
    row = rows[split, 0, "hl", None]
    assert (row["low"], row["high"]) == pytest.approx(tuple(np.percentile(draws, [2.5, 97.5])), abs=1e-12)


def test_one_tile_leaves_nothing_to_resample() -> None:
    case = one_tile()
    table = metric_rows(COMMON, case.predictions(), case.patches(), resamples=5)
    assert table["low"].null_count == table["high"].null_count == table.num_rows
    assert rows_of(table)["test", 0, "hl", None]["value"] > 0


def test_an_archive_without_labels_has_no_metrics() -> None:
    case = Case()
    case.labelled[:] = False
    table = metric_rows(COMMON, case.predictions(), case.patches())
    assert table.equals(METRICS.empty_table())
    assert metric_rows(COMMON, case.predictions().slice(0, 0), case.patches()).num_rows == 0


def test_labels_that_are_never_predicted_or_always() -> None:
    case = Case()
    case.thresholds[3], case.thresholds[4] = 2.0, 0.0
    rows = rows_of(metric_rows(COMMON, case.predictions(), case.patches(), resamples=2))
    truth = case.truth[case.scored("test")]
    assert rows["test", 0, "recall", NAMES[3]]["value"] == 0.0
    assert rows["test", 0, "recall", NAMES[4]]["value"] == 1.0
    assert rows["test", 0, "precision", NAMES[4]]["value"] == pytest.approx(truth[:, 4].mean())


def one_tile() -> Case:
    """Nothing to resample, which is what takes the time."""
    case = Case()
    case.tile[:] = "33UUP"
    return case


@pytest.fixture
def target(tmp_path: Path) -> tuple[Branch, ScoredClassifier]:
    paths = StorePaths(tmp_path)
    branch = make_branch(StageParts(paths, "ingest", "a1b2c3d4"), "none", None, RGB, (3000,) * 3)
    publish(paths.table("patches"), one_tile().patches(), PATCHES, ["patch_id"])
    return branch, ScoredClassifier("resnet18", {}, StageParts(paths, "predictions", "b1b2c3d4"), {}, "true")


def test_metrics_are_published_under_their_config_and_not_computed_twice(
    target: tuple[Branch, ScoredClassifier],
) -> None:
    branch, scored = target
    predictions = one_tile().predictions()
    scored.predictions.write(0, predictions)
    publish_metrics(branch, scored, predictions, fresh=True)
    (file,) = branch.paths.table("metrics").iterdir()
    assert file.name == "none-resnet18-b1b2c3d4-00000.parquet"
    names = {"sr": "none", "classifier": "resnet18", "config": "b1b2c3d4"}
    expected = metric_rows(names, predictions, one_tile().patches())
    assert rows_of(read_table(branch.paths.table("metrics"))) == rows_of(expected)
    before = file.stat().st_mtime_ns
    publish_metrics(branch, scored, predictions, fresh=False)
    assert file.stat().st_mtime_ns == before
    publish_metrics(branch, scored, predictions, fresh=True)
    assert file.stat().st_mtime_ns > before
    file.unlink()
    publish_metrics(branch, scored, predictions, fresh=False)
    assert file.exists()


def test_metrics_of_fewer_shards_are_replaced_though_nothing_is_fresh(target: tuple[Branch, ScoredClassifier]) -> None:
    """A run that predicted more shards and was stopped before its metrics; the next run finds them all done."""
    branch, scored = target
    predictions = one_tile().predictions()
    few = predictions.filter(pc.less(predictions["patch_id"], "patch_30"))
    scored.predictions.write(0, few)
    publish_metrics(branch, scored, few, fresh=True)
    scored.predictions.write(1, predictions)
    publish_metrics(branch, scored, predictions, fresh=False)
    found = rows_of(read_table(branch.paths.table("metrics")))
    assert found["train", 0, "hl", None]["n"] == len(one_tile().scored("train"))
