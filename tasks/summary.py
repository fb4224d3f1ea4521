"""A run's outcome as Markdown, for the terminal and for Prefect."""

import json
from collections.abc import Mapping
from functools import partial

import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import StorePaths
from infra.tables import COMPARISONS, METRICS, read_table
from tasks.quality_summary import CONTROL
from tasks.report.cells import Cell, Column, Row, number, with_best
from tasks.report.markdown import aligned, bold, difference_text, marks_note, named, verbatim
from tasks.report.means import Difference, Mean, Subject, differences, of_configs, overall, seed_means
from tasks.report.order import branch_order, shown_split
from tasks.run_record import RunRecord

COLUMNS = (
    Column("acc", "ACC", "sample accuracy"),
    Column("hl", "HL", "Hamming loss", better=-1),
    Column("f1", "F1", "F1, mean over patches"),
    Column("f2_macro", "macro F2", "F2, mean over labels"),
    Column("ap_macro", "macro AP", "average precision, mean over labels"),
)
"""Metrics of the summary: of the paper's table 1 the main ones, and those over labels."""

COMPARED = "ap_macro"
"""The metric whose difference to bicubic is in the summary."""


SUMMARY_QUALITY = {
    "psnr_db": ("PSNR, dB", 1.0, 2),
    "ssim": ("SSIM", 1.0, 3),
    "hallucination_share": ("made up, %", 100.0, 1),
    "reflectance_mae": ("consistency, 10⁻⁴", 1e4, 2),
}
"""Measures of super-resolution whose means over patches are in the summary: short title, unit, decimals."""


def markdown_summary(paths: StorePaths, record: RunRecord) -> str:
    """Return a run's outcome as Markdown: inputs, stages, metrics, failures, and where the report is."""
    counts = record.counts
    lines = [
        f"**{counts.inputs} inputs** = {counts.patches} patches + {counts.quarantined} quarantined + "
        f"{counts.absent} absent" + (f" + {counts.pending} pending" if counts.pending else ""),
        "",
        "| stage | shards done | already done | failed | patches/s |",
        "|---|---:|---:|---:|---:|",
    ]
    lines += [
        f"| {s.stage} | {s.done} | {s.skipped} | {len(s.failures)} | {s.patches_per_second:.1f} |"
        for s in record.stages
    ]
    lines += _metric_lines(paths, record)
    lines += _quality_lines(paths, record)
    if record.notes:
        lines += ["", *(f"Note: {note}." for note in record.notes)]
    if record.failures:
        lines += ["", "**Failed shards**, tried again by the next run:", ""]
        lines += [f"- {f.stage}, shard {f.shard}: {verbatim(f.error)}" for f in record.failures]
    if paths.report.exists():
        lines += ["", f"report: {paths.report}"]
    return "\n".join(lines)


def _metric_lines(paths: StorePaths, record: RunRecord) -> list[str]:
    """Return the means over seeds of one split, and their differences to bicubic where there are any."""
    metrics = overall(of_configs(read_table(paths.table("metrics")), METRICS, record.configs))
    split = shown_split(metrics["split"].unique().to_pylist())
    if split is None:
        return []
    means = seed_means(metrics.filter(pc.and_(pc.is_null(metrics["label"]), pc.equal(metrics["split"], split))))
    settings = json.loads(record.run_yaml)
    order = partial(branch_order, classifiers=settings.get("classifiers", ()), models=settings.get("sr", ()))
    subjects = sorted(means, key=lambda subject: order(subject.classifier, subject.sr))
    rows = with_best([_row(subject, means[subject]) for subject in subjects], COLUMNS, lambda row: row.classifier)
    comparisons = overall(of_configs(read_table(paths.table("comparisons")), COMPARISONS, record.configs))
    of_bicubic = differences(comparisons, CONTROL)
    minus = [of_bicubic.get(subject, {}).get(COMPARED) for subject in subjects]
    head = ["classifier", "SR", *(column.titled for column in COLUMNS), "seeds", "patches"]
    body = [
        [row.classifier, named(row.sr), *(bold(row.cells[c.name]) for c in COLUMNS), str(len(row.seeds)), str(row.n)]
        for row in rows
    ]
    if any(minus):
        head.append(f"macro AP minus {CONTROL}")
        body = [[*cells, _difference(difference)] for cells, difference in zip(body, minus, strict=True)]
    lines = ["", f"Split {split}, means over seeds:", "", *aligned(head, body, texts=2)]
    if any(minus):
        lines += [
            "",
            marks_note([(d.n_seeds, d.low is not None) for d in minus if d is not None and d.value is not None]),
        ]
    return lines


def _row(subject: Subject, means: Mapping[str, Mean]) -> Row:
    values = {column.name: means[column.name].value if column.name in means else None for column in COLUMNS}
    cells = {column.name: Cell(values[column.name], number(values[column.name], column.decimals)) for column in COLUMNS}
    seeds = max((mean.seeds for mean in means.values()), key=len)
    return Row(subject.sr, subject.classifier, seeds, min(mean.n for mean in means.values()), cells)


def _difference(difference: Difference | None) -> str:
    if difference is None:
        return ""
    return difference_text(difference.value, difference.low, difference.high, significant=difference.significant)


def _quality_lines(paths: StorePaths, record: RunRecord) -> list[str]:
    """Return the means over patches of tables/sr_quality; intervals and differences are in the report."""
    quality = read_table(paths.table("sr_quality"))
    if not quality.num_rows:
        return []
    quality = quality.filter(pc.is_in(quality["config"], value_set=pa.array(record.configs, pa.string())))
    aggregations = [("patch_id", "count"), *((measure, "mean") for measure in SUMMARY_QUALITY)]
    rows = quality.group_by("sr").aggregate(aggregations).sort_by("sr").to_pylist()
    if not rows:
        return []
    titles = " | ".join(title for title, _, _ in SUMMARY_QUALITY.values())
    header = ["", f"| SR, means over patches | patches | {titles} |", "|---|---:|" + "---:|" * len(SUMMARY_QUALITY)]
    lines = []
    for row in rows:
        means = {measure: row[f"{measure}_mean"] for measure in SUMMARY_QUALITY}
        cells = [
            "" if mean is None else f"{mean * SUMMARY_QUALITY[measure][1]:.{SUMMARY_QUALITY[measure][2]}f}"
            for measure, mean in means.items()
        ]
        lines.append(f"| {row['sr']} | {row['patch_id_count']} | {' | '.join(cells)} |")
    return header + lines
