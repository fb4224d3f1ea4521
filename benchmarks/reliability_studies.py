"""Reliability scores in their authors' setting, on two archives: what flipping and withholding are worth.

    SUPERSCENE_DATA=… python benchmarks/reliability_studies.py [--studies eurosat synthetic]
                                                               [--kernel-scales 0.2 0.5 1.0]
                                                               [--out benchmarks/results/reliability_studies.json]

- eurosat: EuroSAT in two classes, built (Highway, Industrial, Residential) and open (the other seven), 40 pictures of
  each of its ten classes: 12 train, 16 validate, 12 test. Needs SUPERSCENE_DATA.
- synthetic: 720 patches of the synthetic archive, 19 labels, each clustered by itself.

Each runs benchmarks/reliability_<study>.yaml into work/reliability_<study>, once for each width of the similarity; all
but the clusters is done by the first run.
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

from benchmarks.studies import real_data, run_study
from infra.archives.synthetic import write_synthetic_archive

BUILT = frozenset({"Highway", "Industrial", "Residential"})
SPLITS = ("train",) * 12 + ("validation",) * 16 + ("test",) * 12
SYNTHETIC_PATCHES = 720
"""Enough for 160 clean ones to validate on."""


def write_eurosat(root: Path) -> None:
    """Copy the pictures of EuroSAT below a root, and write the table of their labels and splits."""
    rows = []
    for folder in sorted(path for path in (real_data() / "eurosat_rgb").iterdir() if path.is_dir()):
        for picture, split in zip(sorted(folder.iterdir()), SPLITS, strict=True):
            shutil.copyfile(picture, root / picture.name)
            rows.append((picture.name, split, "built" if folder.name in BUILT else "open"))
    with (root / "labels.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("image", "split", "labels"), *rows])


def write_synthetic(root: Path) -> None:
    """Write the synthetic archive."""
    write_synthetic_archive(root, SYNTHETIC_PATCHES)


STUDIES = {"eurosat": write_eurosat, "synthetic": write_synthetic}
"""By name, what writes a study's archive into an empty folder."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", nargs="+", choices=STUDIES, default=list(STUDIES))
    parser.add_argument("--kernel-scales", nargs="+", type=float, default=[0.2, 0.5, 1.0])
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    asked = parser.parse_args()
    found = []
    for study in asked.studies:
        with tempfile.TemporaryDirectory() as archive:
            os.environ["ARCHIVE"] = archive
            STUDIES[study](Path(archive))
            found += run(study, asked.kernel_scales)
    table = pd.DataFrame(found)
    print(table.round(4).to_string(index=False))
    if asked.out:
        result = {
            "date": time.strftime("%Y-%m-%d"),
            "versions": {name: version(name) for name in ("superscene", "torch", "scikit-learn")},
            "rows": table.round(5).to_dict("records"),
        }
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def run(study: str, kernel_scales: Sequence[float]) -> list[dict[str, object]]:
    """Run a study once for each width, and return its figures."""
    run_yaml = Path(__file__).with_name(f"reliability_{study}.yaml")
    finished = run_study(run_yaml, Path(f"work/reliability_{study}"))
    found = []
    for scale in kernel_scales:
        command: list[str | Path] = [Path(sys.executable).with_name("superscene"), "reliability", run_yaml]
        subprocess.run([*command, "--set", f"reliability={{kernel_scale: {scale}}}"], check=True, capture_output=True)
        found += [{"study": study, "kernel_scale": scale, **row} for row in figures(finished.store)]
    return found


def figures(store: Path) -> list[dict[str, object]]:
    """Return what the last run's reliability is worth on the test split, over all decisions of each branch."""
    last = pd.read_parquet(store / "tables" / "runs").sort_values("run_id").iloc[-1]
    chosen = {
        name: rows[rows.config.isin(set(last["configs"]))]
        for name in ("reliability_metrics", "reliability_clusters")
        for rows in [pd.read_parquet(store / "tables" / name)]
    }
    clusters = chosen["reliability_clusters"].query("split == 'fit'")
    metrics = chosen["reliability_metrics"].query("split == 'test' and label.isna()")
    rows: list[dict[str, object]] = []
    for row in metrics.to_dict("records"):
        of_branch = clusters[clusters.sr == row["sr"]]
        large = of_branch[of_branch.n >= 20]
        rows.append(
            {
                "sr": row["sr"],
                "metric": row["metric"],
                "score": row["score"] if pd.isna(row["reference"]) else f"{row['score']} minus {row['reference']}",
                **{name: row[name] for name in ("value", "low", "high")},
                "clusters": len(of_branch),
                "clusters_of_20": len(large),
                "worst_of_20": large["error_rate"].max(),
                "flipped": int(of_branch["flipped"].sum()),
            }
        )
    return rows


if __name__ == "__main__":
    main()
