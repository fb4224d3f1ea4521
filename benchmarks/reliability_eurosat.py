"""Reliability scores in their authors' setting, on EuroSAT in two classes: what flipping and withholding are worth.

    SUPERSCENE_DATA=… python benchmarks/reliability_eurosat.py [--kernel-scales 0.2 0.5 1.0]
                                                              [--out benchmarks/results/reliability_eurosat.json]

Two classes, built (Highway, Industrial, Residential) and open (the other seven), 40 pictures of each of EuroSAT's ten
classes: 12 train, 16 validate, 12 test. Runs benchmarks/reliability_eurosat.yaml into work/reliability_eurosat once for
each width of the similarity; all but the clusters is done by the first run.
"""

import argparse
import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path

import pandas as pd

from benchmarks.studies import run_study

BUILT = frozenset({"Highway", "Industrial", "Residential"})
SPLITS = ("train",) * 12 + ("validation",) * 16 + ("test",) * 12


def write_table(source: Path, root: Path) -> None:
    """Copy the pictures below a root, and write the table of their labels and splits."""
    rows = []
    for folder in sorted(path for path in source.iterdir() if path.is_dir()):
        for picture, split in zip(sorted(folder.iterdir()), SPLITS, strict=True):
            shutil.copyfile(picture, root / picture.name)
            rows.append((picture.name, split, "built" if folder.name in BUILT else "open"))
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "split", "labels"), *rows])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kernel-scales", nargs="+", type=float, default=[0.2, 0.5, 1.0])
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    asked = parser.parse_args()
    data = os.environ.get("SUPERSCENE_DATA")
    if not data:
        sys.exit("reliability_eurosat.yaml needs SUPERSCENE_DATA: the folder of real data and weights")
    with tempfile.TemporaryDirectory() as pictures:  # a table lies below the root of its pictures
        os.environ["PICTURES"] = pictures
        write_table(Path(data, "eurosat_rgb"), Path(pictures))
        found = study_of(asked.kernel_scales)
    table = pd.DataFrame(found)
    print(table.round(4).to_string(index=False))
    if asked.out:
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "versions": {name: version(name) for name in ("superscene", "torch", "scikit-learn")},
            "rows": table.round(5).to_dict("records"),
        }
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def study_of(kernel_scales: Sequence[float]) -> list[dict[str, object]]:
    """Run the study once for each width, and return its figures."""
    run_yaml = Path(__file__).with_suffix(".yaml")
    study = run_study(run_yaml, Path("work/reliability_eurosat"))
    found = []
    for scale in kernel_scales:
        command: list[str | Path] = [Path(sys.executable).with_name("superscene"), "reliability", run_yaml]
        subprocess.run([*command, "--set", f"reliability={{kernel_scale: {scale}}}"], check=True, capture_output=True)
        found += figures(study.store, scale)
    return found


def figures(store: Path, scale: float) -> list[dict[str, object]]:
    """Return what the last run's reliability is worth on the test split, over all decisions."""
    last = pd.read_parquet(store / "tables" / "runs").sort_values("run_id").iloc[-1]
    chosen = {
        name: rows[rows.config.isin(set(last["configs"]))]
        for name in ("reliability_metrics", "reliability_clusters")
        for rows in [pd.read_parquet(store / "tables" / name)]
    }
    clusters = chosen["reliability_clusters"].query("split == 'validation'")
    metrics = chosen["reliability_metrics"].query("split == 'test' and label.isna()")
    rows: list[dict[str, object]] = []
    for row in metrics.to_dict("records"):
        score = row["score"] if pd.isna(row["reference"]) else f"{row['score']} minus {row['reference']}"
        rows.append(
            {
                "kernel_scale": scale,
                "metric": row["metric"],
                "score": score,
                **{name: row[name] for name in ("value", "low", "high")},
                "clusters_of_20": int((clusters["n"] >= 20).sum()),
                "flipped": int(clusters["flipped"].sum()),
            }
        )
    return rows


if __name__ == "__main__":
    main()
