from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from sklearn.metrics import hamming_loss

from classifiers.metrics import BINS, OVERALL, PER_LABEL
from infra.ray_pool import Done, Resources
from infra.storage import StorePaths
from infra.tables import CALIBRATION, METRICS, read_table
from tasks import stage
from tasks.evaluate import SeedEvaluator, publish_calibration, publish_metrics
from tasks.metric_rows import PLACES
from tasks.stage import ShardCount
from tests.tasks.scored_case import COUNT, Case, publish_case, publish_patches

PER_SUBSET = len(OVERALL) + COUNT * len(PER_LABEL)
SUBSETS = 2 * (1 + 3 + 2)


@pytest.fixture
def paths(tmp_path: Path) -> StorePaths:
    return StorePaths(tmp_path)


def test_every_seed_is_evaluated_from_its_published_predictions_alone(paths: StorePaths) -> None:
    case = Case()
    publish_patches(paths, case)
    job = publish_case(paths, case, "bicubic")
    assert job.seeds == (0, 1)
    worker = SeedEvaluator(job)
    assert worker.run(1).patches == len(case.scored("test")) + len(case.scored("train"))
    assert job.parts.done() == {1}
    publish_metrics(job)
    file = paths.table("metrics") / f"bicubic-resnet18-{job.predictions.config}-00000.parquet"
    assert pa.parquet.read_schema(file).metadata[b"superscene.complete"] == b"false"
    worker.run(0)
    publish_metrics(job)
    publish_calibration(job)
    rows = read_table(paths.table("metrics"))
    assert pa.parquet.read_schema(file).metadata[b"superscene.complete"] == b"true"
    assert rows.schema.equals(METRICS)
    assert rows.num_rows == 2 * SUBSETS * PER_SUBSET
    assert set(rows["config"].to_pylist()) == {job.predictions.config}
    for seed in (0, 1):
        chosen = case.scored("test")
        (row,) = (
            r
            for r in rows.to_pylist()
            if (r["seed"], r["split"], r["metric"]) == (seed, "test", "hl") and not any(r[p] for p in PLACES)
        )
        expected = hamming_loss(case.truth[chosen].astype(int), case.predicted(seed)[chosen].astype(int))
        assert row["value"] == pytest.approx(expected, abs=1e-12)
        assert row["low"] <= row["value"] <= row["high"]
    curve = read_table(paths.table("calibration"))
    assert curve.schema.equals(CALIBRATION)
    assert curve.num_rows == 2 * 2 * BINS
    of_test = [r for r in curve.to_pylist() if (r["seed"], r["split"]) == (0, "test")]
    assert [r["bin"] for r in of_test] == list(range(BINS))
    probs = case.probs[0][case.scored("test")].astype(np.float64)
    for row in of_test:
        inside = (probs >= row["prob_low"]) & (probs < row["prob_high"] + (row["bin"] == BINS - 1))
        assert row["n"] == inside.sum()
        assert row["prob_mean"] == (pytest.approx(probs[inside].mean()) if inside.any() else None)


def test_unchanged_predictions_are_skipped_and_others_evaluated_anew(
    paths: StorePaths, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A run that predicted more shards and was stopped before its metrics; the next run finds them all done."""
    case = Case(seeds=(0,))
    publish_patches(paths, case)
    few = publish_case(paths, case, "none", range(30), resamples=3)
    asked: list[list[int]] = []

    def pool(build: object, items: list[int], resources: object) -> list[Done[ShardCount]]:
        asked.append(items)
        return [Done(item, SeedEvaluator(jobs[-1]).run(item)) for item in items]

    monkeypatch.setattr(stage, "run_pool", pool)
    jobs = [few]
    for expected in ([0], []):
        report = stage.run_stage("evaluate", lambda: SeedEvaluator(few), [few.parts], few.seeds, Resources())
        assert report.complete
        assert asked[-1] == expected
    publish_metrics(few)
    n = {row["n"] for row in read_table(paths.table("metrics")).to_pylist() if not any(row[p] for p in PLACES)}
    jobs.append(publish_case(paths, case, "none", shards=(0, 1), resamples=3))
    assert jobs[1].parts.config != few.parts.config
    assert publish_case(paths, case, "none", resamples=4, shards=(0, 1)).parts.config != jobs[1].parts.config
    stage.run_stage("evaluate", lambda: SeedEvaluator(few), [jobs[1].parts], [0], Resources())
    assert asked[-1] == [0]
    publish_metrics(jobs[1])
    table = read_table(paths.table("metrics")).to_pylist()
    more = {row["n"] for row in table if not any(row[p] for p in PLACES)}
    assert more == {len(case.scored("train")), len(case.scored("test"))}
    assert max(more) > max(n)


def test_an_archive_without_labels_yields_no_rows_and_no_error(paths: StorePaths) -> None:
    case = Case(seeds=(0,))
    case.labelled[:] = False
    publish_patches(paths, case)
    job = publish_case(paths, case, "none")
    assert SeedEvaluator(job).run(0).patches == 0
    publish_metrics(job)
    publish_calibration(job)
    assert read_table(paths.table("metrics")).equals(METRICS.empty_table())
    assert read_table(paths.table("calibration")).equals(CALIBRATION.empty_table())
