"""The city-features study on EuroSAT: two optimisers, two lengths, two partitions, eight models, their curves.

    SUPERSCENE_DATA=… python benchmarks/city_features.py [--figure docs/figures/city_features.webp]
                                                         [--out benchmarks/results/city_features.json]

Runs benchmarks/city_features.yaml into work/city_features: a frozen ResNet-50 whose features of all eight symmetries
are computed once for all models, and a head of two layers. `binary` learns one class against the rest with one sigmoid,
`multi` all ten with softmax; each is fitted by SGD and by Adam, for 5 and for 10 epochs, three seeds.
"""

import argparse
import json
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

from benchmarks.studies import real_data, run_study

COLOURS = {"sgd_5": "#9c6b00", "sgd_10": "#e0a526", "adam_5": "#1f4e79", "adam_10": "#4f9bd9"}
PARTITIONS = {"binary": "one class against the rest, sigmoid", "multi": "ten classes, softmax"}
METRICS = ("hl", "f1", "ap_macro")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--figure", type=Path, help="where the curves are drawn")
    parser.add_argument("--out", type=Path, help="JSON file of the figures")
    asked = parser.parse_args()
    real_data()
    study = run_study(Path(__file__).with_name("city_features.yaml"), Path("work/city_features"))
    training, metrics = study.table("training"), study.table("metrics")
    metrics = metrics[metrics.label.isna() & metrics.metric.isin(METRICS) & (metrics.split == "validation")]
    means = metrics.groupby(["classifier", "metric"]).value.mean().unstack()
    best = training[training.best].groupby("classifier").validation_accuracy.mean()
    table = means.join(best.rename("accuracy"))
    print(table.round(3).to_string())
    print(f"{study.seconds:.0f} s, the start-up included")
    if asked.figure:
        draw(training, asked.figure)
    if asked.out:
        result = {
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {name: version(name) for name in ("superscene", "torch", "timm")},
            "means_over_seeds": table.round(4).to_dict("index"),
        }
        asked.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


def draw(training: pd.DataFrame, path: Path) -> None:
    """Draw loss and accuracy per epoch of each model, means over seeds: validation solid, training dashed."""
    figure, axes = plt.subplots(2, 2, figsize=(9, 6), sharex=True, layout="constrained")
    for row, (partition, title) in zip(axes, PARTITIONS.items(), strict=True):
        for axis, measure in zip(row, ("loss", "accuracy"), strict=True):
            for variant, colour in COLOURS.items():
                curve = (
                    training[training.classifier == f"{partition}_{variant}"].groupby("epoch").mean(numeric_only=True)
                )
                epochs = curve.index + 1
                axis.plot(epochs, curve[f"validation_{measure}"], color=colour, label=variant.replace("_", ", "), lw=2)
                axis.plot(epochs, curve[f"train_{measure}"], color=colour, lw=1, ls="--")
            axis.set_title(f"{title}: {measure}", fontsize=10)
            axis.grid(alpha=0.3)
            axis.spines[["top", "right"]].set_visible(False)
    for axis in axes[1]:
        axis.set_xlabel("epoch")
    axes[0, 1].legend(title="optimiser, epochs", fontsize=8, title_fontsize=8, loc="lower right")
    figure.savefig(path, dpi=110, pil_kwargs={"quality": 88})


if __name__ == "__main__":
    main()
