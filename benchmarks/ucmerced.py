"""Does super-resolution help classification where the truth is known? UC Merced, reduced by 4 and enlarged again.

    SUPERSCENE_DATA=… python benchmarks/ucmerced.py [--out benchmarks/results/ucmerced.json]

Runs benchmarks/ucmerced.yaml into work/ucmerced, where report/tables.md and report/index.html have all of it: Table 1
and 2 of five branches with one frozen ResNet-50 and three seeds, and their differences to bicubic with intervals. The
peer of every branch is bicubic enlargement, from the same run; the ceiling is the untouched image.
"""

import argparse
import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

from benchmarks.studies import real_data, run_study

SPLIT = "validation"
METRICS = ("acc", "hl", "oe", "precision", "recall", "f1", "f2_macro", "ap_macro")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    out: Path | None = parser.parse_args().out
    real_data()
    study = run_study(Path(__file__).with_name("ucmerced.yaml"), Path("work/ucmerced"))
    print((study.store / "report" / "tables.md").read_text(encoding="utf-8"))
    print(f"{study.seconds:.0f} s, the start-up included; 0 to a few where the store held results already")
    if out is None:
        return
    scored = study.table("metrics")
    whole = scored.label.isna() & scored.country.isna() & scored.season.isna() & (scored.split == SPLIT)
    means = scored[whole & scored.metric.isin(METRICS)].groupby(["sr", "metric"]).value.mean().unstack()
    compared = study.table("comparisons")
    compared = compared[compared.label.isna() & (compared.split == SPLIT) & compared.metric.isin(METRICS)]
    columns = ["sr", "reference", "metric", "value", "low", "high", "significant", "n_seeds", "n"]
    quality = study.table("sr_quality").groupby("sr")[["psnr_db", "ssim", "hallucination_share"]].mean()
    result = {
        "date": datetime.now(UTC).date().isoformat(),
        "device": f"{platform.processor() or platform.machine()}, {os.cpu_count()} cores",
        "versions": {name: version(name) for name in ("superscene", "torch", "timm")},
        "seconds": round(study.seconds),
        "means_over_seeds": means.round(4).to_dict("index"),
        "comparisons": json.loads(compared[columns].round(4).to_json(orient="records")),
        "sr_quality": quality.round(4).to_dict("index"),
    }
    out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
