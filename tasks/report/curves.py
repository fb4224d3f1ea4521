"""The report's curves: training by epoch, and how far probabilities are to be trusted."""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from statistics import fmean
from typing import Any

from markupsafe import Markup

from tasks.charts import Line, Reliability, colour_of, line_chart, reliability_chart
from tasks.report.cells import number
from tasks.report.means import Subject
from tasks.report.numbers import Numbers


@dataclass(frozen=True, slots=True)
class Panel:
    """The training curves of one network."""

    title: str
    sr: Sequence[str]
    n_seeds: int
    """Seeds of the branch that has the most."""
    charts: Sequence[tuple[str, Markup]]
    """Caption and chart: validation macro AP, accuracy and loss, as far as the table has them."""


@dataclass(frozen=True, slots=True)
class CalibrationPanel:
    """The reliability diagram of one classifier."""

    classifier: str
    ece: Sequence[tuple[str, str]]
    """SR model, and its expected calibration error, mean over seeds."""
    chart: Markup


type Epochs = Sequence[Mapping[str, Any]]
"""Rows of tables/training of one seed, by epoch."""


def training_panels(numbers: Numbers, branches: Sequence[str]) -> list[Panel]:
    """Return the training curves, a panel for each classifier and what was fitted."""
    found = []
    rows = sorted(numbers.training, key=lambda row: row["fitted"])
    for (fitted, classifier), members in groupby(rows, lambda row: (row["fitted"], row["classifier"])):
        runs: dict[str, list[tuple[int, Epochs]]] = defaultdict(list)
        for (sr, seed), epochs in groupby(members, lambda row: (row["sr"], row["seed"])):
            runs[sr].append((seed, list(epochs)))
        name = {
            "network": f"{classifier}, the whole network",
            "backbone": f"{classifier}, the backbone that every branch shares",
            "head": f"{classifier}, the head on a frozen backbone",
        }.get(fitted, f"{classifier}, {fitted}")
        charts = []
        for caption, validation, training in (
            ("Validation macro AP", "validation_ap_macro", None),
            ("Accuracy", "validation_accuracy", "train_accuracy"),
            ("Loss", "validation_loss", "train_loss"),
        ):
            lines = []
            for sr, seeds in runs.items():
                colour = colour_of(branches, sr)
                if training is not None:
                    lines += _lines(sr, seeds, training, colour, dashed=True)
                lines += _lines(sr, seeds, validation, colour, dashed=False)
            if lines:
                detail = "" if training is None else ": validation solid, training dashed"
                charts.append((f"{caption}{detail}", line_chart(f"{caption} per epoch: {name}", lines, "epoch")))
        found.append(Panel(name, list(runs), max(len(seeds) for seeds in runs.values()), charts))
    return found


def calibration_panels(numbers: Numbers, branches: Sequence[str]) -> list[CalibrationPanel]:
    """Return the reliability diagrams, all seeds of an SR model pooled."""
    found = []
    for classifier, of_classifier in groupby(numbers.calibration, lambda row: row["classifier"]):
        curves, ece = [], []
        for sr, rows in groupby(of_classifier, lambda row: row["sr"]):
            error = numbers.means.get(Subject(sr, classifier, numbers.split or ""), {}).get("ece")
            ece.append((sr, number(None if error is None else error.value, 3)))
            curves.append(_pooled(sr, list(rows), colour_of(branches, sr)))
        name = f"Share of true labels by probability: {classifier}"
        found.append(CalibrationPanel(classifier, ece, reliability_chart(name, curves)))
    return found


def _lines(sr: str, seeds: Sequence[tuple[int, Epochs]], column: str, colour: int, *, dashed: bool) -> list[Line]:
    """Return a branch's lines: of one seed its own; of several their mean, with each seed thin, unless dashed."""
    of_seed: list[tuple[str, dict[int, float], Epochs]] = []
    for seed, epochs in seeds:
        values = {row["epoch"]: row[column] for row in epochs if row[column] is not None}
        if values:
            of_seed.append((f"{sr}, seed {seed}{', training' if dashed else ''}", values, epochs))
    if not of_seed:
        return []
    several = len(of_seed) > 1
    lines = []
    for title, values, epochs in of_seed:
        best = next((row["epoch"] for row in epochs if row["best"] and row["epoch"] in values), None)
        marked = None if best is None or dashed else (best, values[best])
        if not (several and dashed):  # the seeds' training curves would hide the rest
            lines.append(Line(title, colour, sorted(values.items()), dashed=dashed, thin=several, marked=marked))
    if several:
        common = sorted(set.intersection(*(set(values) for _, values, _ in of_seed)))  # a mean of all seeds, or none
        points = [(epoch, fmean(values[epoch] for _, values, _ in of_seed)) for epoch in common]
        if points:
            title = f"{sr}, mean of {len(of_seed)} seeds{', training' if dashed else ''}"
            lines.append(Line(title, colour, points, dashed=dashed))
    return lines


def _pooled(sr: str, rows: Sequence[Mapping[str, Any]], colour: int) -> Reliability:
    """Return one curve of the bins of all seeds together: counts add up, means weigh by counts."""
    points, counts = [], []
    for _, members in groupby(sorted(rows, key=lambda row: row["bin"]), lambda row: row["bin"]):
        of_bin = list(members)
        n = sum(row["n"] for row in of_bin)
        counts.append((of_bin[0]["prob_low"], of_bin[0]["prob_high"], n))
        if n:
            full = [row for row in of_bin if row["n"]]
            probability, share = (
                sum(row["n"] * row[column] for row in full) / n for column in ("prob_mean", "positive_share")
            )
            points.append((probability, share))
    return Reliability(sr, colour, points, counts)
