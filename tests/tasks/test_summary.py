from datetime import UTC, datetime
from pathlib import Path

import pyarrow as pa
import pytest

from infra.storage import StorePaths
from infra.tables import COMPARISONS, METRICS, SR_QUALITY, publish
from tasks.ingest import IngestCounts
from tasks.run_record import RunRecord
from tasks.stage import ShardFailure, StageReport
from tasks.summary import markdown_summary


def metric(name: str, value: float | None, **changes: object) -> dict[str, object]:
    row = {"sr": "none", "classifier": "resnet18", "config": "a1b2c3d4", "seed": 0, "split": "test", "metric": name}
    return {**row, "value": value, "n": 12, "n_labels": 19, **changes}


def compared(value: float, **changes: object) -> dict[str, object]:
    row = {"sr": "hat", "reference": "bicubic", "classifier": "resnet18", "config": "b1b2c3d4", "split": "test"}
    row |= {"reference_config": "a1b2c3d4", "metric": "ap_macro"}
    numbers = {"value": value, "low": value - 0.01, "high": value + 0.01, "n_seeds": 3, "n": 12, "n_labels": 19}
    return {**row, **numbers, "significant": True, **changes}


BICUBIC = {"sr": "bicubic", "config": "a1b2c3d4"}
HAT = {"sr": "hat", "config": "b1b2c3d4", "n": 7}
ROWS = [
    metric("ap_macro", 0.70312, **BICUBIC),
    metric("ap_macro", 0.75, seed=1, **BICUBIC),
    metric("f1", 0.4, **BICUBIC),
    metric("f2_macro", None, **BICUBIC),
    metric("hl", 0.125, **BICUBIC),
    metric("ap_micro", 0.1, **BICUBIC),  # not in the summary
    metric("f1", 0.9, label="Pastures", **BICUBIC),
    metric("f1", 0.9, country="Finland", **BICUBIC),
    metric("f1", 0.9, season="winter", **BICUBIC),
    metric("f1", 0.9, split="train", **BICUBIC),
    metric("f1", 0.9, config="of another run"),
    metric("f1", 0.25, **HAT),
    metric("hl", 0.0625, **HAT),
    metric("hl", 0.03, sr="hr", config="c1b2c3d4"),
]


def test_notes_stand_before_failures_and_once(tmp_path: Path) -> None:
    record = RunRecord(StorePaths(tmp_path), "{}", datetime(2026, 11, 5, tzinfo=UTC))
    for _ in range(2):
        record.note("resnet18: no training patch has the label Pastures")
    record.add(StageReport("ingest", failures=(ShardFailure("ingest", 3, "lost"),)))
    text = markdown_summary(record.paths, record)
    assert text.count("Note: resnet18: no training patch has the label Pastures.") == 1
    assert text.index("Note:") < text.index("Failed shards")


@pytest.fixture
def record(tmp_path: Path) -> RunRecord:
    record = RunRecord(
        StorePaths(tmp_path),
        '{"sr": ["hr", "bicubic", "hat"], "classifiers": ["resnet18"]}',
        datetime(2026, 11, 5, tzinfo=UTC),
    )
    record.counts = IngestCounts(patches=20, quarantined=3, absent=2, pending=0)
    record.configs = ["a1b2c3d4", "b1b2c3d4", "c1b2c3d4"]
    record.add(StageReport("ingest", done=2, skipped=1, patches=20, seconds=4.0))
    return record


HEAD = """\
**25 inputs** = 20 patches + 3 quarantined + 2 absent

| stage | shards done | already done | failed | patches/s |
|---|---:|---:|---:|---:|
| ingest | 2 | 1 | 0 | 5.0 |"""


def test_without_metrics(record: RunRecord) -> None:
    assert markdown_summary(record.paths, record) == HEAD


def publish_metrics(paths: StorePaths, rows: list[dict[str, object]]) -> None:
    for config in {str(row["config"]) for row in rows}:
        of_config = [row for row in rows if row["config"] == config]
        publish(paths.table("metrics"), pa.Table.from_pylist(of_config, METRICS), METRICS, ["metric"], file_stem=config)


def test_means_over_seeds_of_the_run_alone(record: RunRecord) -> None:
    """0.70312 and 0.75 are 0.727 in the mean; the ceiling is last, and not best."""
    publish_metrics(record.paths, ROWS)
    record.paths.report.parent.mkdir()
    record.paths.report.write_text("")
    text = markdown_summary(record.paths, record)
    assert (
        text.replace("\N{EN DASH}", "-")
        == f"""{HEAD}

Split test, means over seeds:

| classifier | SR           | ACC ↑ |      HL ↓ |      F1 ↑ | macro F2 ↑ | macro AP ↑ | seeds | patches |
|------------|--------------|------:|----------:|----------:|-----------:|-----------:|------:|--------:|
| resnet18   | bicubic      |     - |     0.125 | **0.400** |          - |      0.727 |     2 |      12 |
| resnet18   | hat          |     - | **0.062** |     0.250 |          - |          - |     1 |       7 |
| resnet18   | hr (ceiling) |     - |     0.030 |         - |          - |          - |     1 |      12 |

report: {record.paths.report}"""
    )
    record.configs = []  # a run that published nothing, in a store that has metrics
    assert "macro" not in markdown_summary(record.paths, record)


@pytest.mark.parametrize(
    ("changes", "cell", "note"),
    [
        ({}, "+0.025 (+0.015 to +0.035) ✓", "✓ significant: the interval excludes 0; ✗ not significant."),
        (
            {"n_seeds": 2, "significant": None},
            "+0.025 (+0.015 to +0.035) -",
            "- fewer than three seeds: no significance is claimed.",
        ),
    ],
)
def test_differences_to_bicubic(record: RunRecord, changes: dict[str, object], cell: str, note: str) -> None:
    publish_metrics(record.paths, ROWS)
    rows = [compared(0.025, **changes), compared(0.5, country="Finland"), compared(0.5, metric="acc")]
    rows += [compared(0.5, reference="none"), compared(0.5, reference_config="of another run")]
    table = pa.Table.from_pylist(rows, COMPARISONS)
    publish(record.paths.table("comparisons"), table, COMPARISONS, ["metric"])
    lines = markdown_summary(record.paths, record).replace("\N{EN DASH}", "-").splitlines()
    cells = {line.split("|")[2].strip(): line.split("|")[-2].strip() for line in lines if line.startswith("| resnet18")}
    assert cells == {"bicubic": "", "hat": cell, "hr (ceiling)": ""}
    assert lines[-1] == note


def test_the_split_that_there_is(record: RunRecord) -> None:
    publish_metrics(
        record.paths, [metric("hl", 0.5, split=split, config="a1b2c3d4") for split in ("train", "validation")]
    )
    assert "Split validation, means over seeds:" in markdown_summary(record.paths, record)


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
    assert text.endswith("\n**Failed shards**, tried again by the next run:\n\n- train, shard 1: `ValueError: why`")
