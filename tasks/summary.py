"""A run's outcome as Markdown, for the terminal and for Prefect."""

from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from infra.storage import StorePaths
from infra.tables import read_table
from tasks.run_record import RunRecord

SUMMARY_METRICS = {
    "ap_macro": "macro AP",
    "ap_macro_above_prevalence": "above prevalence",
    "f1_macro": "macro F1",
    "f2_macro": "macro F2",
}
"""Metrics of the summary, and their short titles."""


SUMMARY_QUALITY = {
    "psnr_db": ("PSNR, dB", 1.0, 2),
    "ssim": ("SSIM", 1.0, 3),
    "hallucination_share": ("made up, %", 100.0, 1),
    "reflectance_mae": ("consistency, 10⁻⁴", 1e4, 2),
}
"""Measures of super-resolution whose means over patches are in the summary: short title, unit, decimals."""


def markdown_summary(paths: StorePaths, record: RunRecord) -> str:
    """Return a run's outcome as Markdown: inputs, stages, test metrics, failures, and where the report is."""
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
    if record.failures:
        lines += ["", "**Failed shards**, tried again by the next run:", ""]
        lines += [f"- {f.stage}, shard {f.shard}: {f.error}" for f in record.failures]
    if paths.report.exists():
        lines += ["", f"report: {paths.report}"]
    return "\n".join(lines)


def _metric_lines(paths: StorePaths, record: RunRecord) -> list[str]:
    metrics = read_table(paths.table("metrics"))
    if not metrics.num_rows:
        return []
    configs = pa.array(record.configs, pa.string())
    of_run = pc.and_(pc.is_null(metrics["label"]), pc.is_in(metrics["config"], value_set=configs))
    rows = [row for row in metrics.filter(of_run).to_pylist() if row["split"] in {"test", "all"}]
    lines: dict[tuple[str, str, str, int], dict[str, str]] = {}
    for row in rows:
        if row["value"] is not None:
            key = (row["sr"], row["classifier"], row["split"], row["seed"])
            lines.setdefault(key, {"n": str(row["n"])})[row["metric"]] = _number(row)
    if not lines:
        return []
    header = ["", "| SR | classifier | split | seed | patches | " + " | ".join(SUMMARY_METRICS.values()) + " |"]
    header.append("|---|---|---|---:|---:|" + "---:|" * len(SUMMARY_METRICS))
    return header + [
        f"| {sr} | {classifier} | {split} | {seed} | {values['n']} | "
        + " | ".join(values.get(metric, "") for metric in SUMMARY_METRICS)
        + " |"
        for (sr, classifier, split, seed), values in lines.items()
    ]


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


def _number(row: dict[str, Any]) -> str:
    interval = "" if row["low"] is None else f" ({row['low']:.3f} to {row['high']:.3f})"
    return f"{row['value']:.3f}{interval}"
