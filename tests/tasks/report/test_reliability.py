"""The report's section on reliability against numbers put into its tables by hand."""

import base64
import html
import io
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image

from infra.parts import stage_parts
from infra.query import query
from infra.storage import StorePaths
from infra.tables import (
    RELIABILITY,
    RELIABILITY_CLUSTERS,
    RELIABILITY_METRICS,
    RISK_COVERAGE,
    RUNS,
    hive_folder,
    publish,
    read_table,
)
from tasks.charts import Line, line_chart
from tasks.report import reliability as report_reliability
from tasks.report.numbers import Numbers
from tasks.report.page import render
from tasks.report.reliability import DRAWN_LABELS, LEAST_RELIABLE, PROTOTYPE_SIZE, ReliabilityOfRun, reliability_of_run
from tests.tasks.report.report_store import Page, TableCell, Wanted, make_store

SR = ("none", "bicubic")
CLASSIFIER = "resnet18"
HOSTILE = "<img src=x onerror=alert('reliability')>&\"p"
LABELS = ("Urban fabric", "Pastures")

METRICS: Mapping[tuple[str, str, str | None], tuple[float, float | None, float | None]] = {
    ("accuracy", "predicted", None): (0.90625, 0.8751, 0.9376),
    ("accuracy", "adjusted", None): (0.9375, 0.9061, 0.9688),
    ("accuracy", "adjusted", "predicted"): (0.03125, -0.0101, 0.0625),
    ("class_accuracy", "predicted", None): (0.71875, 0.6, 0.8),
    ("class_accuracy", "adjusted", None): (0.75, 0.7, 0.8),
    ("class_accuracy", "adjusted", "predicted"): (-0.0625, None, None),
    ("aurc", "reliability", None): (0.0625, 0.05, 0.0751),
    ("aurc", "probability", None): (0.125, 0.1, 0.1501),
    ("aurc", "temperature", None): (0.15625, 0.1, 0.2),
    ("aurc", "reliability", "temperature"): (-0.09375, -0.12, -0.06),
}
"""Value, low and high on "none"; "bicubic" has a 64th less everywhere."""

SHOWN = {
    "Accuracy": ("accuracy", "predicted", None, "0.906 0.875 to 0.938"),
    "Class accuracy": ("class_accuracy", "predicted", None, "0.719 0.600 to 0.800"),
    "AURC, reliability ↓": ("aurc", "reliability", None, "0.062 0.050 to 0.075"),
    "probability ↓": ("aurc", "probability", None, "0.125 0.100 to 0.150"),
    "temperature ↓": ("aurc", "temperature", None, "0.156 0.100 to 0.200"),
    "reliability minus temp.": (
        "aurc",
        "reliability",
        "temperature",
        "\N{MINUS SIGN}0.094 \N{MINUS SIGN}0.120 to \N{MINUS SIGN}0.060",
    ),
}
"""Columns of one title alone: what they show, and how that looks on "none"."""


def of_clusters(sr: str, config: str, split: str) -> dict[str, Any]:
    return {"sr": sr, "classifier": CLASSIFIER, "config": config, "method": "grad_cam", "seed": 7, "split": split}


def metric_rows(sr: str, config: str) -> list[dict[str, Any]]:
    """Of test, and beside them rows of validation and of a label, which the page does not show."""
    less, rows = SR.index(sr) / 64, []
    for (metric, score, reference), (value, low, high) in METRICS.items():
        row = {"metric": metric, "score": score, "reference": reference, "low": low, "high": high, "n": 64}
        rows += [
            {**of_clusters(sr, config, "test"), **row, "label": None, "value": value - less},
            {**of_clusters(sr, config, "test"), **row, "label": LABELS[0], "value": 0.111},
            {**of_clusters(sr, config, "validation"), **row, "label": None, "value": 0.222},
        ]
    return rows


def cluster_rows(sr: str, config: str, label: str | None) -> list[dict[str, Any]]:
    """Three clusters: one that is right, one that is wrong and flipped, an empty one."""
    rows = []
    counts = {
        "fit": ((30, 50, 2, 18), (1, 4, 5, 30), (0, 0, 0, 0)),
        "validation": ((3, 5, 2, 1), (1, 0, 0, 0), (0, 0, 0, 0)),
        "test": ((7, 8, 1, 2), (3, 0, 4, 6)),
    }
    for split, of_split in counts.items():
        for cluster, (tp, tn, fp, fn) in enumerate(of_split):
            n = tp + tn + fp + fn
            row: dict[str, Any] = {"label": label, "cluster": cluster, "n": n, "tp": tp, "tn": tn, "fp": fp, "fn": fn}
            row |= {"error_rate": (fp + fn) / n if n else None, "flipped": cluster == 1}
            row |= {"height": 2, "width": 3} if split == "fit" else {}
            prototype = [0.0, 0.2, 0.4, 0.6, 0.8, 1.0] if n and split == "fit" else None
            rows.append({**of_clusters(sr, config, split), **row, "prototype": prototype})
    return rows


def decision(patch_id: str, prob: float, rate: float | None, **changes: object) -> dict[str, Any]:
    row = {"patch_id": patch_id, "split": "test", "label": LABELS[1], "seed": 7, "prob": prob, "truth": None}
    row |= {"predicted": prob >= 0.5, "adjusted": prob >= 0.5, "cluster": 0, "cluster_error_rate": rate}
    return {**row, "reliability": None if rate is None else 1 - rate, **changes}


DECISIONS = {
    "none": [
        decision("p0", 0.875, 0.5, label=LABELS[0], truth=False),
        decision("p0", 0.25, 0.75, truth=True),
        decision(HOSTILE, 0.625, 0.75),
        decision("p1", 0.5, None),
        decision("of validation", 0.5, 1.0, split="validation"),
        *(decision(f"q{i:02}", 0.0, 0.125) for i in range(LEAST_RELIABLE)),
    ],
    "bicubic": [decision("p0", 0.5, 0.875)],
}
"""Of the two in clusters with three of four wrong, the hostile one's 0.625 is less sure than 1 - 0.25."""


def make(
    root: Path, labels: Sequence[str | None] = (None,), of_run: bool = True, wanted: Wanted | None = None
) -> StorePaths:
    """A store with reliability of one classifier on two branches; rows of an earlier run, or only those."""
    paths = make_store(root, wanted or Wanted(sr=SR)).paths
    metrics: list[dict[str, Any]] = []
    clusters: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    configs = []
    for sr in SR:
        for config in ("a0000000", stage_parts(paths, "reliability", {"sr": sr}).config)[: 1 + of_run]:
            mine = config != "a0000000"
            configs += [config] if mine else []
            metrics += metric_rows(sr, config) if mine else [{**row, "value": 0.333} for row in metric_rows(sr, config)]
            clusters += [row for label in labels for row in cluster_rows(sr, config, label)]
            curves += [
                {**of_clusters(sr, config, split), "score": score, "coverage": share, "risk": share / part, "n": 64}
                for split, part in (("test", 4), ("validation", 3))
                for score in ("reliability", "probability", "temperature")
                for share in (0.5, 1.0)
            ]
            rows = DECISIONS[sr] if mine else [decision("of an earlier run", 0.5, 1.0)]
            folder = hive_folder(paths.table("reliability"), sr=sr, classifier=CLASSIFIER, config=config)
            publish(folder, pa.Table.from_pylist(rows, RELIABILITY), RELIABILITY, ["patch_id", "label"])
    for name, schema, rows in (
        ("reliability_metrics", RELIABILITY_METRICS, metrics),
        ("reliability_clusters", RELIABILITY_CLUSTERS, clusters),
        ("risk_coverage", RISK_COVERAGE, curves),
    ):
        publish(paths.table(name), pa.Table.from_pylist(rows, schema), schema, [])
    change_run(paths, configs)
    return paths


def change_run(paths: StorePaths, configs: Sequence[str]) -> None:
    """Let the store's run have asked for reliability, and published these configs too."""
    (file,) = paths.table("runs").glob("*.parquet")
    (row,) = read_table(paths.table("runs")).to_pylist()
    settings = {**json.loads(row["run_yaml"]), "reliability": {"clusters": 3}}
    row |= {"configs": [*row["configs"], *configs], "run_yaml": json.dumps(settings)}
    publish(paths.table("runs"), pa.Table.from_pylist([row], RUNS), RUNS, [], file_stem=file.stem.rpartition("-")[0])


def found(paths: StorePaths) -> ReliabilityOfRun:
    of_run = reliability_of_run(Numbers(paths))
    assert of_run is not None
    return of_run


def section(text: str) -> str:
    (inner,) = re.findall(r'<section id="reliability">(.*?)</section>', text, re.DOTALL)
    return str(inner)


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> StorePaths:
    """A store with pooled clusters; read only."""
    return make(tmp_path_factory.mktemp("reliability") / "store")


@pytest.fixture(scope="module")
def text(paths: StorePaths) -> str:
    return render(Numbers(paths))


def lines(text: str, table: str) -> tuple[list[str], list[list[TableCell]]]:
    """Titles and rows of a table of the page."""
    head, *rows = Page(text).tables[table]
    return [cell.text for cell in head], rows


def test_the_numbers_of_the_page_are_those_of_the_table(text: str) -> None:
    titles, rows = lines(text, "reliability-table")
    assert [row[0].text.split()[0] for row in rows] == list(SR)
    for row, less in zip(rows, (0, 1 / 64), strict=True):
        assert row[1].text == CLASSIFIER
        for title, (metric, score, reference, looks) in SHOWN.items():
            cell = row[titles.index(title)]
            assert cell.value == METRICS[metric, score, reference][0] - less
            assert less or cell.text == looks
        flips = [row[i] for i, title in enumerate(titles) if title == "by flipping"]
        assert [cell.value for cell in flips] == [0.03125 - less, -0.0625 - less]
        assert less or flips[0].text == "+0.031 \N{MINUS SIGN}0.010 to 0.062"
        assert less or flips[1].text == "\N{MINUS SIGN}0.062", "no interval, none shown"


def test_pooled_clusters_have_one_figure_of_counts_of_the_fit_and_on_test(paths: StorePaths, text: str) -> None:
    """Of the fit 20 of 100 and 35 of 40 are wrong; the third cluster is empty. Its counts, and those of test."""
    for branch, sr in zip(found(paths).branches, SR, strict=True):
        assert branch.sr == sr
        (figure,) = branch.figures
        assert figure.label is None
        told = [(c.number, c.n, c.error_rate, c.flipped, c.prototype is None) for c in figure.clusters]
        assert told == [(0, 100, 0.2, False, False), (1, 40, 0.875, True, False), (2, 0, None, False, True)]
        charts = dict(figure.bars)
        assert list(charts) == ["fit", "test"]
        titles = re.findall(r"<title>(cluster 2.*?)</title>", charts["fit"])
        assert titles == [
            f"cluster 2: {n} {words} of 40"
            for n, words in (
                (1, "true positives"),
                (4, "true negatives"),
                (5, "false positives"),
                (30, "false negatives"),
            )
        ]
        titles = re.findall(r"<title>(cluster.*?)</title>", charts["test"])
        assert titles == [
            f"cluster {cluster}: {words} of {n}"
            for cluster, n, kinds in (
                (1, 18, ("7 true positives", "8 true negatives", "1 false positives", "2 false negatives")),
                (2, 13, ("3 true positives", "4 false positives", "6 false negatives")),
            )
            for words in kinds
        ]
    shown = Page(section(text)).text
    assert shown.count("all labels") == len(SR)
    for words in ("1: 20\N{NO-BREAK SPACE}% of 100 wrong", "2: 88\N{NO-BREAK SPACE}% of 40 wrong flipped", "3: empty"):
        assert shown.count(words) == len(SR)


def test_every_label_has_a_figure_of_its_own_the_most_wrong_first(tmp_path: Path) -> None:
    """Both labels have the same counts but for a cluster of Pastures that is all wrong in the fit."""
    paths = make(tmp_path, LABELS)
    rows = read_table(paths.table("reliability_clusters")).to_pylist()
    for row in rows:
        if (row["label"], row["split"], row["cluster"]) == (LABELS[1], "fit", 1):
            row |= {"tp": 0, "tn": 0, "fp": 20, "fn": 20, "error_rate": 1.0}
    table = pa.Table.from_pylist(rows, RELIABILITY_CLUSTERS)
    publish(paths.table("reliability_clusters"), table, RELIABILITY_CLUSTERS, [])
    for branch in found(paths).branches:
        assert [figure.label for figure in branch.figures] == [LABELS[1], LABELS[0]]
        assert [figure.clusters[1].error_rate for figure in branch.figures] == [1.0, 0.875]
    of_page = section(render(Numbers(paths)))
    assert re.findall(r"<h4>(.*?)</h4>", of_page) == [LABELS[1], LABELS[0]] * len(SR)


def test_the_least_reliable_are_listed_those_least_sure_first(text: str) -> None:
    """Eleven or fewer of the twelve at 0.125 fill up; the unknown cluster and other splits and runs are left out."""
    titles, rows = lines(text, "doubtful-table")
    assert len(rows) == LEAST_RELIABLE
    told = [[cell.text for cell in row if cell.text != CLASSIFIER] for row in rows]
    assert titles[:4] == ["Patch", "SR model", "Classifier", "Label"]
    assert {row[2].text for row in rows} == {CLASSIFIER}
    assert told[:4] == [
        ["p0", "bicubic", LABELS[1], "0.500", "yes", "unknown", "88 %"],
        [HOSTILE, "none", LABELS[1], "0.625", "yes", "unknown", "75 %"],
        ["p0", "none", LABELS[1], "0.250", "no", "yes", "75 %"],
        ["p0", "none", LABELS[0], "0.875", "yes", "no", "50 %"],
    ]
    assert [row[0] for row in told[4:]] == [f"q{i:02}" for i in range(LEAST_RELIABLE - 4)]
    assert [row[-1].value for row in rows[:4]] == [0.875, 0.75, 0.75, 0.5]


def test_the_query_of_the_page_is_the_documentation_s_and_lists_the_same(paths: StorePaths, text: str) -> None:
    (shown,) = re.findall(r'superscene sql STORE "(.*?)"', Page(section(text)).text)
    questions = (Path(__file__).parents[3] / "docs" / "questions.md").read_text(encoding="utf-8")
    (block,) = (text for text in re.findall(r"```sql\n(.*?)```", questions, re.DOTALL) if "FROM reliability" in text)
    assert " ".join(shown.split()) == " ".join(block.split("\n", 1)[1].split())
    rows = query(paths.tables, Numbers(paths).run.configs, shown).fetchall()
    _, listed = lines(text, "doubtful-table")
    assert [list(row[:4]) for row in rows] == [[cell.text for cell in row[:4]] for row in listed]
    assert [round(1 - row[-1], 9) for row in rows] == [row[-1].value for row in listed]


def test_every_classifier_s_predictions_are_listed_and_one_s_clusters_drawn(tmp_path: Path) -> None:
    paths = make(tmp_path)
    config = stage_parts(paths, "reliability", {"sr": "none"}).config
    for name, schema in (("reliability_metrics", RELIABILITY_METRICS), ("reliability_clusters", RELIABILITY_CLUSTERS)):
        rows = [row for row in read_table(paths.table(name)).to_pylist() if row["sr"] == "none"]
        of_other = pa.Table.from_pylist([{**row, "classifier": "vit"} for row in rows], schema)
        publish(paths.table(name), of_other, schema, [], file_stem="other")
    folder = hive_folder(paths.table("reliability"), sr="none", classifier="vit", config=config)
    rows = [decision("p0", 0.5, 0.875), decision("of vit", 0.5, 1.0)]
    publish(folder, pa.Table.from_pylist(rows, RELIABILITY), RELIABILITY, ["patch_id", "label"])
    of_run = found(paths)
    assert [(line.classifier, line.sr) for line in of_run.lines] == [
        (CLASSIFIER, "none"),
        (CLASSIFIER, "bicubic"),
        ("vit", "none"),
    ]
    assert of_run.classifier == CLASSIFIER
    assert [branch.sr for branch in of_run.branches] == list(SR)
    assert [(row.patch_id, row.sr, row.classifier) for row in of_run.doubtful[:3]] == [
        ("of vit", "none", "vit"),
        ("p0", "bicubic", CLASSIFIER),
        ("p0", "none", "vit"),
    ]
    assert f"Of {CLASSIFIER}" in Page(section(render(Numbers(paths)))).text


def without(paths: StorePaths, *splits: str) -> None:
    """Take the rows of some splits from the small tables."""
    for name, schema in (
        ("reliability_metrics", RELIABILITY_METRICS),
        ("reliability_clusters", RELIABILITY_CLUSTERS),
        ("risk_coverage", RISK_COVERAGE),
    ):
        rows = [row for row in read_table(paths.table(name)).to_pylist() if row["split"] not in splits]
        publish(paths.table(name), pa.Table.from_pylist(rows, schema), schema, [])


def test_an_archive_without_validation_shows_the_fit_s(tmp_path: Path) -> None:
    paths = make(tmp_path)
    without(paths, "validation")
    text = render(Numbers(paths))
    assert [name for branch in found(paths).branches for name, _ in branch.figures[0].bars] == ["fit", "test"] * 2
    assert "1: 20\N{NO-BREAK SPACE}% of 100 wrong" in Page(section(text)).text


def test_an_archive_without_labels_shows_clusters_and_what_to_look_at(tmp_path: Path) -> None:
    paths = make(tmp_path)
    without(paths, "validation", "test")
    of_run = found(paths)
    assert (of_run.lines, [branch.curves for branch in of_run.branches]) == ([], [None, None])
    assert [name for branch in of_run.branches for name, _ in branch.figures[0].bars] == ["fit"] * 2
    text = render(Numbers(paths))
    shown = Page(section(text)).text
    assert "nobody can tell" in shown
    assert "reliability-table" not in Page(text).tables
    assert shown.count("2: 88\N{NO-BREAK SPACE}% of 40 wrong flipped") == len(SR)
    _, rows = lines(text, "doubtful-table")
    assert [row[0].text for row in rows[:2]] == ["p0", HOSTILE]


def test_many_labels_are_a_table_the_worst_of_them_drawn(tmp_path: Path) -> None:
    """Nineteen labels; the second cluster of label i is wrong in i / 20, the first in all, of too few samples."""
    names = [f"label {i:02}" for i in range(1, 20)]
    paths = make(tmp_path, names)
    rows = read_table(paths.table("reliability_clusters")).to_pylist()
    for row in rows:
        wrong = 2 * int(row["label"][-2:])
        if row["split"] == "fit" and row["cluster"] < 2:
            counts = {"tp": 40 - wrong, "tn": 0, "fp": wrong, "fn": 0, "n": 40, "error_rate": wrong / 40}
            row.update(counts if row["cluster"] else {**counts, "n": 19, "error_rate": 1.0})  # too few to count
    publish(
        paths.table("reliability_clusters"), pa.Table.from_pylist(rows, RELIABILITY_CLUSTERS), RELIABILITY_CLUSTERS, []
    )
    for branch in found(paths).branches:
        assert [figure.label for figure in branch.figures] == names[: -DRAWN_LABELS - 1 : -1]
        assert [(line.label, line.worst) for line in branch.labels] == [
            (f"label {i:02}", i / 20) for i in range(19, 0, -1)
        ]
        assert {(line.n, line.clusters, line.flipped) for line in branch.labels} == {(59, 3, 1)}
    titles, shown = lines(render(Numbers(paths)), "clusters-table-1")
    assert titles == ["Label", "Samples", "Clusters", "Worst cluster", "Flipped"]
    assert [cell.text for cell in shown[0]] == ["label 19", "59", "3", "95 % wrong", "1"]


def test_the_page_stays_small_whatever_the_prototypes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise of 64 x 64 is as large as a picture can be; each is reduced, and figures end with the room."""
    paths = make(tmp_path, [f"label {i:02}" for i in range(1, 20)])
    rng = np.random.default_rng(0)
    rows = read_table(paths.table("reliability_clusters")).to_pylist()
    for row in rows:
        if row["split"] == "fit" and row["n"]:
            row |= {"height": 64, "width": 64, "prototype": rng.random(4096).tolist()}
    publish(
        paths.table("reliability_clusters"), pa.Table.from_pylist(rows, RELIABILITY_CLUSTERS), RELIABILITY_CLUSTERS, []
    )
    uri = next(c.prototype for c in found(paths).branches[0].figures[0].clusters if c.prototype)
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(uri.split(",")[1]))))
    assert picture.shape == (PROTOTYPE_SIZE, PROTOTYPE_SIZE, 3)
    sizes = [figure.size for branch in found(paths).branches for figure in branch.figures]
    assert len(sizes) == 2 * DRAWN_LABELS
    monkeypatch.setattr(report_reliability, "FIGURE_BYTES", sum(sizes) // 2)
    fewer = [[figure.label for figure in branch.figures] for branch in found(paths).branches]
    assert [len(labels) for labels in fewer] == [DRAWN_LABELS // 2] * 2
    text = section(render(Numbers(paths)))
    assert len(text) < sum(sizes) // 2 + 100_000


def test_a_hostile_name_is_text(text: str) -> None:
    of_page = section(text)
    assert HOSTILE not in of_page
    assert html.escape(HOSTILE, quote=False).split("&amp;")[0].split("'")[0] in of_page
    assert [a for tag, a in Page(of_page).elements if tag == "img" and not a["src"].startswith("data:")] == []


def test_curves_are_of_the_shown_split_in_percent(paths: StorePaths, text: str) -> None:
    """At half of the decisions an eighth is wrong, at all of them a quarter."""
    names = ("reliability of the map's cluster", "probability of the decision", "the same, temperature-scaled")
    points = [(50.0, 12.5), (100.0, 25.0)]
    expected = [Line(name, i, points, dashed=i == 2) for i, name in enumerate(names)]
    of_run = found(paths)
    assert [name for _, name in of_run.score_names] == list(names)
    for branch, sr in zip(of_run.branches, SR, strict=True):
        title = f"Share of wrong decisions by share kept, {CLASSIFIER} on {sr}"
        assert branch.curves == line_chart(title, expected, "decisions kept, %")
        assert str(branch.curves) in section(text)


@pytest.mark.parametrize("asked", [True, False])
def test_a_store_without_such_tables_says_so(tmp_path: Path, asked: bool) -> None:
    paths = make_store(tmp_path, Wanted(sr=SR)).paths
    if asked:
        change_run(paths, [])
    assert reliability_of_run(Numbers(paths)) is None
    shown = Page(section(render(Numbers(paths)))).text
    words = (
        "tables/reliability_metrics has no rows of this run",
        "No score was made: RUN.yaml has no section reliability",
    )
    assert [" ".join(told.split()) in " ".join(shown.split()) for told in words] == [asked, not asked]


def test_rows_of_another_run_are_not_shown(tmp_path: Path) -> None:
    paths = make(tmp_path, of_run=False)
    assert reliability_of_run(Numbers(paths)) is None
    assert "has no rows of this run" in Page(section(render(Numbers(paths)))).text


def test_without_test_metrics_the_fit_s_own_split_is_shown_and_named_so(tmp_path: Path) -> None:
    paths = make(tmp_path)
    rows = [row for row in read_table(paths.table("reliability_metrics")).to_pylist() if row["split"] == "validation"]
    table = pa.Table.from_pylist(rows, RELIABILITY_METRICS)
    publish(paths.table("reliability_metrics"), table, RELIABILITY_METRICS, [])
    assert found(paths).split == "validation"
    text = render(Numbers(paths))
    assert "on which the clusters were fitted" in section(text)
    _, table_rows = lines(text, "reliability-table")
    assert {row[2].value for row in table_rows} == {0.222}
    _, doubtful = lines(text, "doubtful-table")
    assert [row[0].text for row in doubtful] == ["of validation"]
