"""The paper's tables against numbers that were put into metrics and comparisons by hand."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from infra.storage import StorePaths
from infra.tables import CLASSES, COMPARISONS, METRICS, PAPER_METRICS, PAPER_TABLE_1, PAPER_TABLE_2, publish
from tasks.paper_tables import paper_table_1, paper_table_2, publish_paper_tables
from tasks.report import markdown as report_markdown

LABELS = ("sea", "land | *dry*", "ice")
NULLS: dict[str, Any] = {"country": None, "season": None, "label": None}


def metric(name: str, value: float | None, sr: str = "none", seed: int = 0, **changes: object) -> dict[str, Any]:
    classifier = str(changes.get("classifier", "resnet50"))
    row = {"sr": sr, "classifier": classifier, "config": f"{classifier}-{sr}", "seed": seed, "split": "test"}
    return {**row, **NULLS, "metric": name, "value": value, "n": 40, "n_labels": 3, **changes}


def comparison(name: str, value: float | None, sr: str = "none", **changes: object) -> dict[str, Any]:
    row: dict[str, Any] = {
        "sr": sr,
        "reference": "bicubic",
        "classifier": "resnet50",
        "config": f"resnet50-{sr}",
        "split": "test",
    }
    row |= {"reference_config": "resnet50-bicubic", **NULLS, "metric": name, "value": value}
    ends = {} if value is None else {"low": value - 0.02, "high": value + 0.02}
    claim = None if value is None else abs(value) > 0.02
    return {**row, **ends, "significant": claim, "n_seeds": 3, "n": 39, "n_labels": 3, **changes}


def metrics(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), METRICS)


def comparisons(*rows: dict[str, Any]) -> pa.Table:
    return pa.Table.from_pylist(list(rows), COMPARISONS)


NONE = comparisons()


def test_table_1_is_the_mean_over_seeds() -> None:
    rows = [metric(name, 0.25 + 0.125 * seed, seed=seed) for name in PAPER_METRICS for seed in (0, 1, 2)]
    rows += [metric("oe", 0.5, sr="bicubic"), metric("oe", None, sr="bicubic", seed=1, n=38)]
    rows += [metric("acc", 0.9, country="Finland"), metric("acc", 0.9, season="winter"), metric("f2", 0.9, label="sea")]
    rows += [metric("hl", 0.75, split="train"), metric("ap_macro", 0.5, sr="hr")]
    table = paper_table_1(metrics(*rows), NONE)
    assert table.schema.equals(PAPER_TABLE_1)
    found = {(row["sr"], row["split"]): row for row in table.to_pylist()}
    assert set(found) == {("none", "test"), ("none", "train"), ("bicubic", "test")}  # hr has no metric of the table
    none = found["none", "test"]
    assert [none[name] for name in PAPER_METRICS] == [0.375] * 6
    assert (none["n"], none["n_seeds"], none["config"]) == (40, 3, "resnet50-none")
    assert found["none", "train"]["hl"] == 0.75
    assert found["none", "train"]["acc"] is None
    bicubic = found["bicubic", "test"]
    assert (bicubic["oe"], bicubic["n"], bicubic["n_seeds"]) == (0.5, 38, 2)  # null in one seed: the mean of the other
    assert not any(value is not None for name, value in none.items() if "minus" in name or "paired" in name)


def test_differences_are_those_of_the_comparisons() -> None:
    """They are not differences of the means: those may be over other seeds and patches."""
    rows = [metric("acc", 0.5), metric("acc", 0.25, sr="bicubic"), metric("acc", 0.75, sr="hat"), metric("hl", 0.5)]
    compared = [
        comparison("acc", 0.125),
        comparison("acc", 0.5, country="Finland"),
        comparison("acc", 0.5, season="winter"),
        comparison("acc", 0.5, split="train"),
        comparison("acc", 0.5, label="sea"),
        comparison("acc", 0.5, sr="hat", reference="none"),
        comparison("hl", 0.01, n=38, n_seeds=2, significant=None),
    ]
    found = {row["sr"]: row for row in paper_table_1(metrics(*rows), comparisons(*compared)).to_pylist()}
    none = found["none"]
    acc = [none[f"acc_minus_bicubic{end}"] for end in ("", "_low", "_high", "_significant")]
    assert acc == [0.125, 0.125 - 0.02, 0.125 + 0.02, True]
    assert none["hl_minus_bicubic_significant"] is None
    assert (none["n_paired"], none["n_seeds_paired"]) == (38, 2)  # of the metric that has the fewest
    for sr in ("bicubic", "hat"):  # the control itself, and a model that was compared with none alone
        assert found[sr]["acc_minus_bicubic"] is None
        assert found[sr]["n_seeds_paired"] is None


def test_table_2_has_a_row_for_each_label_and_the_macro_mean() -> None:
    rows = [
        metric("f2", value, label=label, seed=seed)
        for seed in (0, 1)
        for label, value in zip(LABELS, (0.5 + seed / 4, 0.0, 1.0), strict=True)
    ]
    rows += [metric("support", n, label=label) for label, n in zip(LABELS, (12.0, 0.0, 3.0), strict=True)]
    rows += [metric("f2_macro", 0.5), metric("f1_macro", 0.9), metric("f2", 0.125, label="unheard of")]
    compared = [comparison("f2", -0.25, label="sea"), comparison("f2_macro", 0.015625)]
    table = paper_table_2(metrics(*rows), comparisons(*compared), LABELS)
    assert table.schema.equals(PAPER_TABLE_2)
    found = {row["label"]: row for row in table.to_pylist()}
    names = ("label_index", "support", "f2", "f2_minus_bicubic", "f2_minus_bicubic_significant", "n_seeds")
    assert {label: tuple(row[name] for name in names) for label, row in found.items()} == {
        "sea": (0, 12, 0.625, -0.25, True, 2),
        "land | *dry*": (1, 0, 0.0, None, None, 2),
        "ice": (2, 3, 1.0, None, None, 2),
        "unheard of": (None, None, 0.125, None, None, 1),
        None: (None, None, 0.5, 0.015625, False, 1),
    }


SR = ("hr", "none", "bicubic", "hat")
F1 = {"none": 0.50149, "bicubic": 0.5, "hat": 0.50151, "hr": 0.9}
HL = {"none": 0.2004, "bicubic": 0.25, "hat": 0.2, "hr": 0.1}
F2 = {"none": (0.75, 0.0, 0.5), "bicubic": (0.5, 0.0, 0.5), "hat": (0.625, 0.0, 0.5), "hr": (1.0, 0.0, 1.0)}
MINUS = {"none": 0.25, "hat": 0.015625, "hr": -0.0001}


def publish_study(paths: StorePaths, seeds: tuple[int, ...] = (0, 1, 2)) -> set[str]:
    """Write two classifiers, of which the first was compared, and rows of another run; return the run's configs."""
    rows, compared = [], []
    for sr in SR:
        for seed in seeds:
            for classifier in ("resnet50", "vgg"):
                common: dict[str, Any] = {"sr": sr, "seed": seed, "classifier": classifier}
                rows += [metric("f1", F1[sr], **common), metric("hl", HL[sr], **common)]
                for label, f2, support in zip(LABELS, F2[sr], (12.0, 0.0, 3.0), strict=True):
                    rows += [metric("f2", f2, label=label, **common), metric("support", support, label=label, **common)]
                rows.append(metric("f2_macro", sum(F2[sr]) / 3, **common))
        rows.append(metric("f1", 0.99, sr=sr, config="another"))
        if sr != "bicubic":
            claim = {} if len(seeds) > 2 else {"significant": None}
            counted: dict[str, Any] = {"sr": sr, "n_seeds": len(seeds), **claim}
            compared += [comparison("f1", MINUS[sr], **counted), comparison("f2_macro", MINUS[sr], **counted)]
            compared += [comparison("f2", MINUS[sr], label=label, **counted) for label in LABELS]
            compared.append(comparison("f1", 0.5, sr=sr, reference_config="another"))
    publish(paths.table("metrics"), metrics(*rows), METRICS, [])
    publish(paths.table("comparisons"), comparisons(*compared), COMPARISONS, [])
    classes = [{"label_index": i, "label": label, "clc_codes": []} for i, label in enumerate(LABELS)]
    publish(paths.table("classes"), pa.Table.from_pylist(classes, CLASSES), CLASSES, ["label_index"])
    return {f"{classifier}-{sr}" for sr in SR for classifier in ("resnet50", "vgg")}


def markdown(root: Path) -> str:
    """The page of a store, dashes and minus signs as hyphens."""
    text = (root / "report" / "tables.md").read_text(encoding="utf-8")
    return text.translate(dict.fromkeys(map(ord, "\N{EN DASH}\N{MINUS SIGN}"), "-"))


def tables(text: str) -> dict[str, list[list[str]]]:
    """Cells of every Markdown table, by the headings above it."""
    found: dict[str, list[list[str]]] = {}
    section = heading = ""
    for line in text.splitlines():
        if line.startswith("## "):
            section = heading = line[3:]
        elif line.startswith("### "):
            heading = f"{section}, {line[4:]}"
        elif line.startswith("|") and not set(line) <= set("|-:"):
            found.setdefault(heading, []).append([c.strip() for c in re.split(r"(?<!\\)\|", line)[1:-1]])
    return found


@pytest.fixture
def page(tmp_path: Path) -> str:
    paths = StorePaths(tmp_path)
    configs = publish_study(paths)
    publish_paper_tables(paths, configs, SR, ["vgg", "resnet50"])
    return markdown(tmp_path)


def test_markdown_of_table_1(page: str) -> None:
    """0.50149 and 0.50151 differ at the third decimal, 0.2004 and 0.2 do not; the ceiling is last, and never best."""
    head, *rows = tables(page)["Table 1"]
    assert head == ["classifier", "SR model", "ACC ↑", "HL ↓", "OE ↓", "P ↑", "R ↑", "F1 ↑", "seeds", "patches"]
    expected = [
        ["none", "-", "**0.200**", "-", "-", "-", "0.501", "3", "40"],
        ["bicubic", "-", "0.250", "-", "-", "-", "0.500", "3", "40"],
        ["hat", "-", "**0.200**", "-", "-", "-", "**0.502**", "3", "40"],
        ["hr (ceiling)", "-", "0.100", "-", "-", "-", "0.900", "3", "40"],
    ]
    assert rows == [[name, *row] for name in ("vgg", "resnet50") for row in expected]


def test_markdown_of_differences(page: str) -> None:
    found = tables(page)
    head, *rows = found["Table 1 minus bicubic, resnet50"]
    assert head == ["metric", "none", "hat", "hr (ceiling)"]
    assert rows[-1] == [
        "F1 ↑",
        "+0.250 (+0.230 to +0.270) ✓",
        "+0.016 (-0.004 to +0.036) ✗",
        "0.000 (-0.020 to +0.020) ✗",
    ]
    assert rows[0] == ["ACC ↑", "-", "-", "-"]
    assert "Table 1 minus bicubic, vgg" not in found  # nothing was compared
    _, sea, land, ice, macro = found["Table 2 minus bicubic, resnet50"]
    assert [row[0] for row in (sea, land, ice, macro)] == ["sea", r"land \| \*dry\*", "ice", "macro mean"]
    assert sea[1:] == ice[1:] == macro[1:] == rows[-1][1:]
    assert land[1:] == ["-"] * 3  # no patch has it
    assert "✓ significant" in page
    assert "fewer than three seeds" not in page


def test_markdown_of_table_2(page: str) -> None:
    for classifier in ("vgg", "resnet50"):
        assert tables(page)[f"Table 2: F2 of each label, {classifier}"] == [
            ["label", "patches", "none", "bicubic", "hat", "hr (ceiling)"],
            ["sea", "12", "**0.750**", "0.500", "0.625", "1.000"],
            [r"land \| \*dry\*", "0", "-", "-", "-", "-"],
            ["ice", "3", "0.500", "0.500", "0.500", "1.000"],  # all alike: none is best
            ["macro mean", "", "**0.417**", "0.333", "0.375", "0.667"],
        ]
    assert "A label that no patch has is -; in the macro mean it counts as 0." in page


def test_markdown_is_aligned(page: str) -> None:
    widths: list[int] = []
    for line in page.splitlines():
        if line.startswith("|"):
            widths.append(len(line))
        elif widths:
            assert len(set(widths)) == 1
            widths = []


def test_a_long_label_pushes_out_its_own_row_alone(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    long = "Land principally occupied by agriculture, with significant areas of natural vegetation"
    rows = [metric("f2", 0.5, label=label) for label in ("sea", long)] + [metric("acc", 0.5)]
    publish(paths.table("metrics"), metrics(*rows), METRICS, [])
    publish_paper_tables(paths, {"resnet50-none"}, ["none"], ["resnet50"])
    lines = markdown(tmp_path).splitlines()
    (sea,) = [line for line in lines if line.startswith("| sea")]
    (land,) = [line for line in lines if line.startswith("| Land")]
    assert len(sea) < 40
    assert land.startswith(f"| {long} |")


def test_two_seeds_claim_nothing(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    publish_paper_tables(paths, publish_study(paths, (0, 1)), SR, ["resnet50"])
    text = markdown(tmp_path)
    assert tables(text)["Table 1 minus bicubic, resnet50"][-1][1] == "+0.250 (+0.230 to +0.270) -"
    assert "- fewer than three seeds: no significance is claimed." in text
    assert "✓" not in text
    assert "✗" not in text


def test_three_seeds_on_one_tile_claim_nothing_for_want_of_an_interval(tmp_path: Path) -> None:
    rows = [metric("f1", 0.5, sr=sr, seed=seed) for sr in ("none", "bicubic") for seed in (0, 1, 2)]
    publish(paths := StorePaths(tmp_path).table("metrics"), metrics(*rows), METRICS, [])
    bare = comparison("f1", 0.25, low=None, high=None, significant=None)
    publish(paths.with_name("comparisons"), comparisons(bare), COMPARISONS, [])
    publish_paper_tables(StorePaths(tmp_path), {"resnet50-none", "resnet50-bicubic"}, ["none", "bicubic"], ["resnet50"])
    text = markdown(tmp_path)
    assert tables(text)["Table 1 minus bicubic, resnet50"][-1] == ["F1 ↑", "+0.250 -"]
    assert "- no interval, as of a single tile: no significance is claimed." in text
    assert "fewer than three seeds" not in text
    assert "✓" not in text
    assert "✗" not in text


def test_parquet_holds_the_run_and_says_whether_it_is_complete(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    configs = publish_study(paths)
    for complete in (True, False):
        publish_paper_tables(paths, configs, SR, ["resnet50"], complete=complete)
        for name, n_rows in (("paper_table_1", 8), ("paper_table_2", 8 * 4)):
            (file,) = paths.table(name).glob("*.parquet")
            table = pq.ParquetFile(file).read()
            assert table.num_rows == n_rows
            assert set(table["config"].to_pylist()) == configs
            assert table.schema.metadata[b"superscene.complete"] == str(complete).lower().encode()
    rows = pq.ParquetFile(file).read().to_pylist()
    order = [(row["classifier"], row["sr"]) for row in rows]
    assert order == sorted(order)
    assert [row["label"] for row in rows[:4]] == [*LABELS, None]
    (first,) = paths.table("paper_table_1").glob("*.parquet")
    f1 = {row["sr"]: row["f1_minus_bicubic"] for row in pq.ParquetFile(first).read().to_pylist()[:4]}
    assert f1 == {"bicubic": None, **MINUS}  # not the row whose reference is of another run


def test_a_run_without_metrics_leaves_empty_tables(tmp_path: Path) -> None:
    paths = StorePaths(tmp_path)
    publish_paper_tables(paths, publish_study(paths), SR, ["resnet50"])
    publish_paper_tables(paths, {"a later run's"}, SR, ["resnet50"])
    for name, schema in (("paper_table_1", PAPER_TABLE_1), ("paper_table_2", PAPER_TABLE_2)):
        (file,) = paths.table(name).glob("*.parquet")
        table = pq.ParquetFile(file).read()
        assert table.num_rows == 0
        assert table.schema.names == schema.names
    assert "Nothing was scored" in markdown(tmp_path)


def test_a_label_is_text_and_no_markup() -> None:
    """CommonMark 0.31, 2.4: a backslash in front of a sign makes it that sign and nothing more."""
    assert (
        report_markdown._label("[x](javascript:y) | *a* `b` <i>") == "\\[x\\](javascript:y) \\| \\*a\\* \\`b\\` &lt;i>"
    )
