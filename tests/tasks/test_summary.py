from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from infra.storage import StorePaths
from infra.tables import METRICS, SR_QUALITY, publish
from tasks.ingest import IngestCounts
from tasks.run_record import RunRecord
from tasks.stage import ShardFailure, StageReport
from tasks.summary import markdown_summary


def metric(name: str, value: float | None, **changes: object) -> dict[str, object]:
    row = {"sr": "none", "classifier": "resnet18", "config": "a1b2c3d4", "seed": 0, "split": "test", "metric": name}
    return {**row, "value": value, "n": 12, "n_labels": 19, **changes}


ROWS = [
    metric("ap_macro", 0.70312, low=0.65, high=0.7499),
    metric("ap_macro_above_prevalence", 0.5),
    metric("f1_macro", 0.4),
    metric("f2_macro", None),
    metric("hl", 0.1),  # not in the summary
    metric("f1_macro", 0.9, label="Pastures"),
    metric("f1_macro", 0.9, split="train"),
    metric("f1_macro", 0.9, config="of another run"),
    metric("f1_macro", 0.25, sr="bicubic", config="b1b2c3d4", n=7),
]


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    record = RunRecord(StorePaths(tmp_path), "{}", datetime(2026, 11, 5, tzinfo=UTC))
    record.counts = IngestCounts(patches=20, quarantined=3, absent=2, pending=0)
    record.configs = ["a1b2c3d4", "b1b2c3d4"]
    record.add(StageReport("ingest", done=2, skipped=1, patches=20, seconds=4.0))
    return record


HEAD = """\
**25 inputs** = 20 patches + 3 quarantined + 2 absent

| stage | shards done | already done | failed | patches/s |
|---|---:|---:|---:|---:|
| ingest | 2 | 1 | 0 | 5.0 |"""


def test_without_metrics(record: RunRecord) -> None:
    assert markdown_summary(record.paths, record) == HEAD


def test_metrics_of_the_run_alone(record: RunRecord) -> None:
    folder = record.paths.table("metrics")
    for config in ("a1b2c3d4", "b1b2c3d4", "of another run"):
        rows = [row for row in ROWS if row["config"] == config]
        publish(folder, pa.Table.from_pylist(rows, METRICS), METRICS, ["metric"], file_stem=config)
    record.paths.report.parent.mkdir()
    record.paths.report.write_text("")
    assert (
        markdown_summary(record.paths, record)
        == f"""{HEAD}

| SR | classifier | split | seed | patches | macro AP | above prevalence | macro F1 | macro F2 |
|---|---|---|---:|---:|---:|---:|---:|---:|
| none | resnet18 | test | 0 | 12 | 0.703 (0.650 to 0.750) | 0.500 | 0.400 |  |
| bicubic | resnet18 | test | 0 | 7 |  |  | 0.250 |  |

report: {record.paths.report}"""
    )
    record.configs = []  # a run that published nothing, in a store that has metrics
    assert "macro" not in markdown_summary(record.paths, record)


def test_means_of_super_resolution(record: RunRecord) -> None:
    def row(patch: str, sr: str, config: str, psnr: float | None, mae: float) -> dict[str, object]:
        shares = {"hallucination_share": 0.25, "reflectance_mae": mae, "ssim": 0.75}
        return {"patch_id": patch, "sr": sr, "config": config, "psnr_db": psnr, "clipped_share": 0.0, **shares}

    rows = [
        row("p0", "bicubic", "a1b2c3d4", 30.0, 0.001),
        row("p1", "bicubic", "a1b2c3d4", 33.0, 0.002),
        row("p0", "hat", "b1b2c3d4", None, 0.0005),
        row("p0", "hat", "of another run", 90.0, 0.5),
    ]
    for config in ("a1b2c3d4", "b1b2c3d4", "of another run"):
        table = pa.Table.from_pylist([r for r in rows if r["config"] == config], SR_QUALITY)
        publish(record.paths.table("sr_quality"), table, SR_QUALITY, ["patch_id"], file_stem=config)
    assert markdown_summary(record.paths, record) == (
        f"""{HEAD}

| SR, means over patches | patches | PSNR, dB | SSIM | made up, % | consistency, 10⁻⁴ |
|---|---:|---:|---:|---:|---:|
| bicubic | 2 | 31.50 | 0.750 | 25.0 | 15.00 |
| hat | 1 |  | 0.750 | 25.0 | 5.00 |"""
    )
    record.configs = []
    assert markdown_summary(record.paths, record) == HEAD


def test_failures_and_what_is_pending(record: RunRecord) -> None:
    record.counts = IngestCounts(patches=20, quarantined=3, absent=2, pending=4)
    record.add(StageReport("train", failures=(ShardFailure("train", 1, "ValueError: why"),)))
    text = markdown_summary(record.paths, record)
    assert text.startswith("**29 inputs** = 20 patches + 3 quarantined + 2 absent + 4 pending\n")
    assert "| train | 0 | 0 | 1 | 0.0 |\n" in text
    assert text.endswith("\n**Failed shards**, tried again by the next run:\n\n- train, shard 1: ValueError: why")
