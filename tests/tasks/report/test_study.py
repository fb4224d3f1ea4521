"""The report of a study: three seeds, the ceiling, comparisons, calibration, countries; and of archives of pictures."""

import re
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from matplotlib import colormaps
from numpy.typing import NDArray

from infra.bigearthnet.classes import CLASSES
from infra.errors import StoreError
from infra.storage import StorePaths
from infra.tables import COMPARISONS, METRICS, publish, read_table
from infra.zarr_store import ArraySpec, ShardedStore, create_store
from tasks.charts import Line, Reliability, line_chart, reliability_chart
from tasks.gallery_pixels import rgb_array
from tasks.pictures import label_colours
from tasks.report.cells import NULL, Cell, Column, Row, signed, with_best
from tasks.report.numbers import Numbers
from tasks.report.page import write_report
from tests.tasks.report.report_store import (
    ACC,
    AP,
    CLASSIFIERS,
    F2,
    HL,
    SR,
    STUDY,
    WIDTH,
    Made,
    Page,
    Wanted,
    make_store,
)
from tests.tasks.report.test_page import pictures, plain

ORDER = (*SR, "hr")
"""The ceiling is last, though RUN.yaml has it first."""


def page_of(paths: StorePaths) -> Page:
    write_report(paths)
    return Page(paths.report.read_text(encoding="utf-8"))


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A study with its page; read only."""
    return make_store(tmp_path_factory.mktemp("study") / "store", STUDY)


@pytest.fixture(scope="module")
def page(made: Made) -> Page:
    return page_of(made.paths)


def copied(made: Made, folder: Path) -> StorePaths:
    shutil.copytree(made.paths.root, folder / "copy")
    return StorePaths(folder / "copy")


def test_the_answer_is_the_difference_and_its_interval(page: Page) -> None:
    first, second = (page.text.split(f"With {name}, ")[1].split("A point is")[0] for name in CLASSIFIERS)
    first, second = (text.replace("\N{MINUS SIGN}", "-") for text in (first, second))
    assert first.startswith("srresnet scores significantly higher than bicubic, the control, on the 4 test patches:")
    assert "macro average precision, 3 seeds." in first
    assert "+4.1 points (+1.1 to +7.1) significantly higher" in first
    assert "Bicubic reaches 0.520, where chance gives 0.125." in first
    assert (
        "Against none, the patches as they are, it is +2.0 points (-1.0 to +5.0): larger inputs alone make no" in first
    )
    assert "The ceiling, hr, the untouched high-resolution images, reaches 0.750." in first
    assert second.startswith("no SR network scores significantly higher than bicubic, the control,")
    assert "+5.0 points (-1.0 to +11.0) no significant difference" in second
    assert "it is -5.0 points (-11.0 to +1.0): larger inputs alone make no" in second
    assert "Here are 2 comparisons, and intervals are not widened for their number." in page.text
    assert "No significance is claimed" not in page.text
    assert not re.search("hr .{0,12}(highest|significantly)", page.text.split("SR models")[0])


def test_the_answer_names_the_labels_that_gain_and_lose_most(made: Made, tmp_path: Path) -> None:
    """On ten patches a label counts: of Urban fabric F2 falls from 0.75 to 0.5, of Mixed forest nothing changes."""
    paths = copied(made, tmp_path)
    rows = read_table(paths.table("metrics")).to_pylist()
    rows = [row | {"value": 10.0} if row["metric"] == "support" else row for row in rows]
    shutil.rmtree(paths.table("metrics"))
    publish(paths.table("metrics"), pa.Table.from_pylist(rows, METRICS), METRICS, [])
    assert "F2 falls" not in page_of(made.paths).text  # two patches have it
    first, second = (
        page_of(paths).text.split(f"With {name}, ")[1].replace("\N{MINUS SIGN}", "-") for name in CLASSIFIERS
    )
    for text, interval in ((first, "-28.0 to -22.0"), (second, "-31.0 to -19.0")):
        told = f"F2 falls most for Urban fabric (-25.0 points against bicubic, {interval}; significant)."
        assert told in text.split("A point is")[0]
    assert "rises most" not in page_of(paths).text


def test_a_fall_that_rounds_to_nothing_is_a_fall(made: Made, tmp_path: Path) -> None:
    paths = copied(made, tmp_path)
    for table, schema in (("metrics", METRICS), ("comparisons", COMPARISONS)):
        rows = read_table(paths.table(table)).to_pylist()
        rows = [row | {"value": 10.0} if row["metric"] == "support" else row for row in rows]
        if table == "comparisons":
            tiny = {"value": -0.0004, "low": -0.0005, "high": -0.0003}
            rows = [row | tiny if row["label"] == "Urban fabric" and row["metric"] == "f2" else row for row in rows]
        shutil.rmtree(paths.table(table))
        publish(paths.table(table), pa.Table.from_pylist(rows, schema), schema, [])
    text = page_of(paths).text
    assert "F2 falls most for Urban fabric (0.0 points" in text.replace("\N{MINUS SIGN}", "")
    assert "F2 rises most for Urban fabric" not in text


def test_fewer_than_three_seeds_claim_nothing(tmp_path: Path) -> None:
    """The comparisons are there with their intervals, and yet nothing is called higher or significant."""
    page = page_of(
        make_store(tmp_path, Wanted(sr=("none", "bicubic", "srresnet", "hr"), seeds=(7, 8), study=True)).paths
    )
    answer = page.text.split("Archive")[0]
    assert "With resnet18, srresnet scores highest" in answer
    assert "macro average precision 0.561 , mean over 2 seeds" in answer
    assert "Over resampled tiles and the 2 seeds, the lead" in answer
    assert (
        "That is 6.1 points above none, the patches as they are, and 4.1 points above bicubic, the control." in answer
    )
    assert "The ceiling, hr, the untouched high-resolution images, reaches 0.750." in answer
    assert "No significance is claimed" in answer
    assert "this run has two." in answer
    assert "interval is +3.1 to +9.1 against none and +1.1 to +7.1 against bicubic." in answer
    for word in ("significantly", "✓"):
        assert word not in page.text.split("Gallery")[0]
    for name in ("minus-table", "label-minus-resnet18", "country-minus-resnet18"):
        found = [cell.text.split() for row in page.tables[name][1:] for cell in row if cell.attributes.get("data-v")]
        marks = {words[1] for words in found if re.match(r"[+\N{MINUS SIGN}]?0\.", words[0])}
        assert marks == {NULL}
    kinds = {cell.attributes.get("class") for row in page.tables["minus-table"] for cell in row}
    assert not kinds & {"better", "worse"}


def test_three_seeds_without_comparisons_claim_nothing(made: Made, tmp_path: Path) -> None:
    paths = copied(made, tmp_path)
    shutil.rmtree(paths.table("comparisons"))
    page = page_of(paths)
    assert "mean over 3 seeds" in page.text
    assert "which tables/comparisons does not hold." in page.text
    assert not [name for name in page.tables if "minus" in name]


def test_three_seeds_on_one_tile_claim_nothing_for_want_of_an_interval(made: Made, tmp_path: Path) -> None:
    """Of one country only: the rest is judged, and what is not says why."""
    paths = copied(made, tmp_path)
    rows = read_table(paths.table("comparisons")).to_pylist()
    bare = {"low": None, "high": None, "significant": None}
    rows = [row | bare if row["country"] == "Austria" else row for row in rows]
    shutil.rmtree(paths.table("comparisons"))
    publish(paths.table("comparisons"), pa.Table.from_pylist(rows, COMPARISONS), COMPARISONS, [])
    write_report(paths)
    text = paths.report.read_text(encoding="utf-8")
    titles = re.findall('title="(no significance claimed: [^"]*)"', text)
    assert set(titles) == {"no significance claimed: no interval, as of a single tile"}
    legends = re.findall("Blue is above.*?</p>", text)
    assert ["no interval" in legend for legend in legends] == [False, False, True]  # labels twice, then places


def test_one_tile_has_no_interval_to_claim_anything_by(made: Made, tmp_path: Path) -> None:
    paths = copied(made, tmp_path)
    bare = {"low": None, "high": None, "significant": None}
    rows = [row | bare for row in read_table(paths.table("comparisons")).to_pylist()]
    shutil.rmtree(paths.table("comparisons"))
    publish(paths.table("comparisons"), pa.Table.from_pylist(rows, COMPARISONS), COMPARISONS, [])
    page = page_of(paths)
    assert "that takes the interval of the paired differences over three seeds of both sides" in page.text
    assert "fewer than" not in page.text.split("Gallery")[0].replace("Rows of fewer than 10", "")
    said = f"{NULL} no interval, as of a single tile: no significance is claimed"
    assert page.text.count(said) == 4  # table 1, table 2 of both classifiers, places


def test_without_bicubic_the_reference_is_none_and_that_is_said(tmp_path: Path) -> None:
    made = make_store(tmp_path, Wanted(sr=("none", "srresnet"), seeds=(1, 2, 3)))
    row = {"reference": "none", "split": "test", "metric": "ap_macro", "value": 0.061, "low": 0.01, "high": 0.1}
    row |= {"sr": "srresnet", "classifier": "resnet18", "n_seeds": 3, "n": 4, "n_labels": 19, "significant": True}
    row |= {"config": made.configs["resnet18 srresnet"], "reference_config": made.configs["resnet18 none"]}
    publish(made.paths.table("comparisons"), pa.Table.from_pylist([row], COMPARISONS), COMPARISONS, [])
    page = page_of(made.paths)
    assert "srresnet scores significantly higher than none, the patches as they are, on the 4 test patches" in page.text
    assert "Without bicubic, the control, a gain may come of the larger size alone." in page.text
    assert "With resnet50, none scores highest" in page.text
    assert "Where no interval is shown, that takes the interval of the paired differences over three" in page.text


def test_one_branch_and_several_classifiers_are_one_sentence(tmp_path: Path) -> None:
    page = page_of(make_store(tmp_path, Wanted(sr=("none",))).paths)
    assert "none is the one branch that was run. Macro average precision on the 4 test patches:" in page.text
    answers = [attributes["data-answer"] for _, attributes in page.elements if "data-answer" in attributes]
    assert answers == list(CLASSIFIERS)
    assert "Does super-resolution help?" not in page.text


def test_table_1_holds_the_means_and_the_ceiling_takes_no_part(page: Page) -> None:
    head, *rows = page.tables["metrics-table"]
    titles = [cell.text for cell in head]
    assert titles[:9] == ["SR model", "Classifier", "Seeds", "ACC ↑", "HL ↓", "OE ↓", "P ↑", "R ↑", "F1 ↑"]
    assert [(row[1].text, row[0].text.split()[0]) for row in rows] == [(c, sr) for c in CLASSIFIERS for sr in ORDER]
    assert rows[3][0].text == "hr ceiling"
    column = {title: [row[i] for row in rows] for i, title in enumerate(titles)}
    assert {cell.text for cell in column["Seeds"]} == {"3"}
    means = {"ACC ↑": ACC, "HL ↓": HL}
    for title, by_sr in means.items():
        np.testing.assert_allclose([float(str(c.value)) for c in column[title]], [by_sr[sr] for sr in ORDER] * 2)
        assert [cell.bold for cell in column[title]] == [sr == "srresnet" for sr in ORDER] * 2  # hr is better still
    found = [cell.value for cell in column["AP macro ↑"]]
    np.testing.assert_allclose(np.array(found, float), [AP[c, sr] for c in CLASSIFIERS for sr in ORDER])
    assert {cell.text for cell in column["ECE ↓"]} == {"0.062"}
    assert "0.999" not in page.text  # of one country or season


def test_every_seed_has_its_row(page: Page) -> None:
    head, *rows = page.tables["seeds-table"]
    assert [row[2].text for row in rows] == ["7", "8", "9"] * 8
    ap = [cell.text for cell in head].index("AP macro ↑")
    assert [row[ap].value for row in rows[:3]] == [0.5 - 1 / 64, 0.5, 0.5 + 1 / 64]
    assert not any(row[ap].bold for row in rows)


def test_scores_without_an_average_precision_are_scores(made: Made, tmp_path: Path) -> None:
    """As of one against the rest, where no patch of the split has the one."""
    paths = copied(made, tmp_path)
    rows = read_table(paths.table("metrics")).to_pylist()
    rows = [row | {"value": None} if row["metric"].startswith("ap_") else row for row in rows]
    shutil.rmtree(paths.table("metrics"))
    publish(paths.table("metrics"), pa.Table.from_pylist(rows, METRICS), METRICS, [])
    page = page_of(paths)
    assert "This run has no scores" not in page.text
    assert (
        "There is no average precision to compare by: no test patch has a label that a classifier knows." in page.text
    )
    assert len(page.tables["metrics-table"]) == 1 + len(CLASSIFIERS) * len(ORDER)


def test_the_ceiling_alone_is_no_answer_and_yet_has_scores(tmp_path: Path) -> None:
    page = page_of(make_store(tmp_path, Wanted(sr=("hr",))).paths)
    assert "This run has no scores" not in page.text
    assert "hr, the ceiling, is the one branch with an average precision: there is nothing to compare it" in page.text


def test_table_1_minus_bicubic(page: Page) -> None:
    head, *rows = page.tables["minus-table"]
    titles = [cell.text for cell in head]
    others = ["none", "srresnet", "hr"]
    assert [(row[1].text, row[0].text.split()[0]) for row in rows] == [(c, sr) for c in CLASSIFIERS for sr in others]
    cells = {(row[1].text, row[0].text.split()[0]): dict(zip(titles, row, strict=True)) for row in rows}
    assert plain(cells["resnet18", "none"]["ACC ↑"]) == "-0.034 ✓ significant -0.064 to -0.004"
    assert cells["resnet18", "none"]["ACC ↑"].attributes["class"] == "worse"
    assert plain(cells["resnet50", "none"]["ACC ↑"]) == "-0.034 -0.094 to +0.026"
    assert "class" not in cells["resnet50", "none"]["ACC ↑"].attributes
    hl = cells["resnet50", "srresnet"]["HL ↓"]
    assert plain(hl) == "-0.100 ✓ significant -0.160 to -0.040"
    assert hl.attributes["class"] == "better"  # less loss
    assert hl.value == HL["srresnet"] - HL["bicubic"]
    assert cells["resnet18", "srresnet"]["AP macro ↑"].text.startswith("+0.041 ✓")
    assert cells["resnet18", "hr"]["OE ↓"].text == NULL


def test_the_heat_map_of_labels(page: Page) -> None:
    for classifier in CLASSIFIERS:
        head, urban, forest, macro = page.tables[f"label-minus-{classifier}"]
        assert [cell.text for cell in head] == ["Label", "n", "none", "srresnet", "hr ceiling"]
        assert [row[0].text for row in (urban, forest, macro)] == ["Urban fabric", "Mixed forest", "Macro mean"]
        assert [cell.text for cell in forest[1:]] == ["0", NULL, NULL, NULL]  # no patch has it
        for row, part in ((urban, 1), (macro, 2)):
            minus = [(F2[sr] - F2["bicubic"]) / part for sr in ("none", "srresnet", "hr")]
            assert [cell.value for cell in row[2:]] == minus
            assert [plain(cell).split()[0] for cell in row[2:]] == [f"{value:+.3f}" for value in minus]
            assert ["✓" in cell.text for cell in row[2:]] == [abs(value) > WIDTH[classifier] for value in minus]
            kinds = [cell.attributes["class"].split()[1] for cell in row[2:]]
            assert kinds == ["worse", "worse", "better"]
        # no label is on 10 patches, so all count; the scale ends at the largest, 0.5, of a model that is no ceiling
        assert [cell.attributes["style"] for cell in urban[2:]] == ["--d:100%", "--d:50%", "--d:25%"]
        assert urban[3].attributes["title"].startswith("95 % interval")
    assert "colours end at ±0.50" in page.text


def test_the_macro_mean_over_many_patches_does_not_set_the_colours_of_rare_labels(made: Made, tmp_path: Path) -> None:
    paths = copied(made, tmp_path)
    rows = read_table(paths.table("comparisons")).to_pylist()
    rows = [row | {"n": 40} if row["metric"] == "f2_macro" else row for row in rows]
    shutil.rmtree(paths.table("comparisons"))
    publish(paths.table("comparisons"), pa.Table.from_pylist(rows, COMPARISONS), COMPARISONS, [])
    _, urban, _, macro = page_of(paths).tables["label-minus-resnet18"]
    assert macro[1].text == "40"
    assert [cell.attributes["style"] for cell in urban[2:]] == ["--d:100%", "--d:50%", "--d:25%"]


def test_the_heat_map_of_places(page: Page) -> None:
    head, *rows = page.tables["country-minus-resnet18"]
    assert [cell.text for cell in head[:2]] == ["Country, season", "n"]
    expected = [["Austria", "3"], ["Ireland", "12"], ["winter", "2"], ["summer", "4"]]  # seasons as they follow
    assert [[cell.text for cell in row[:2]] for row in rows] == expected
    for row in rows:
        assert [plain(cell).split()[0] for cell in row[2:]] == ["-0.020", "+0.041", "+0.230"]
        # the end of the scale is that of resnet50's differences of 0.05
        assert [cell.attributes["style"] for cell in row[2:]] == ["--d:40%", "--d:82%", "--d:100%"]


def rgb_of(oklch: str) -> NDArray[np.float64]:
    """Linear sRGB of a CSS colour oklch(l c h), by the matrices of Ottosson's OKLab."""
    lightness, chroma, hue = map(float, oklch.split())
    a, b = chroma * np.cos(np.radians(hue)), chroma * np.sin(np.radians(hue))
    to_lms = np.array(
        [[1, 0.3963377774, 0.2158037573], [1, -0.1055613458, -0.0638541728], [1, -0.0894841775, -1.291485548]]
    )
    to_rgb = np.array(
        [
            [4.0767416621, -3.3077115913, 0.2309699292],
            [-1.2684380046, 2.6097574011, -0.3413193965],
            [-0.0041960863, -0.7034186147, 1.707614701],
        ]
    )
    rgb: NDArray[np.float64] = to_rgb @ (to_lms @ np.array([lightness, a, b])) ** 3
    return np.clip(rgb, 0, 1)


def luminance(rgb: NDArray[np.float64]) -> float:
    return float(rgb @ [0.2126, 0.7152, 0.0722])


def test_heat_maps_are_legible_and_even(made: Made, page: Page) -> None:
    """Ink on the strongest colour keeps WCAG's 4.5, and both ends are as light and as strong as each other."""
    style = made.paths.report.read_text(encoding="utf-8").split("</style>")[0]
    (inks,) = re.findall(r"--ink: light-dark\(#(\w{6}), #(\w{6})\)", style)
    pair = r"light-dark\(oklch\(([^)]+)\), oklch\(([^)]+)\)\)"
    ((higher,), (lower,)) = (re.findall(f"--{name}: {pair}", style) for name in ("higher", "lower"))
    assert len(inks) == len(higher) == len(lower) == 2  # light and dark
    for ink, *poles in zip(inks, higher, lower, strict=True):
        parts = np.array([int(ink[i : i + 2], 16) / 255 for i in (0, 2, 4)])
        of_ink = luminance(np.where(parts <= 0.04045, parts / 12.92, ((parts + 0.055) / 1.055) ** 2.4))
        for pole in poles:
            low, high = sorted([of_ink, luminance(rgb_of(pole))])
            assert (high + 0.05) / (low + 0.05) > 4.5
        assert poles[0].split()[:2] == poles[1].split()[:2]


def test_calibration_pools_the_seeds(page: Page) -> None:
    """Three seeds of 900, 0, 4 and 100 decisions; the last bin is at 0.875, above the diagonal by SR model."""
    charts = [a["aria-label"] for tag, a in page.elements if tag == "svg" and "Share of true labels" in a["aria-label"]]
    assert charts == [f"Share of true labels by probability: {classifier}" for classifier in CLASSIFIERS]
    assert page.text.count("none: 0.812 of those at 0.875") == len(CLASSIFIERS)  # RUN.yaml's second: 0.75 + 0.0625
    assert page.text.count("hr: 0.750 of those at 0.875") == len(CLASSIFIERS)
    legend = page.text.split(": expected calibration error")[1].split("1.0")[0]
    assert legend.split()[:2] == ["none", "0.062"]


def test_a_reliability_diagram_is_drawn_in_proportion() -> None:
    curve = Reliability("a & b", 2, [(0.25, 0.5), (0.75, 1.0)], [(0.0, 0.5, 1000), (0.5, 1.0, 0)])
    svg = reliability_chart("share", [curve])
    diagonal, line, histogram = (
        [tuple(map(float, point.split(","))) for point in points.split()]
        for points in re.findall('points="([^"]+)"', svg)
    )
    (left, bottom), (right, top) = diagonal
    assert line == [
        pytest.approx((left + x * (right - left), bottom + y * (top - bottom)), abs=0.1) for x, y in curve.points
    ]
    assert [x for x, _ in histogram] == pytest.approx([left, (left + right) / 2, (left + right) / 2, right], abs=0.1)
    assert histogram[0][1] == histogram[1][1] < histogram[2][1] == histogram[3][1]
    assert [float(y) for y in re.findall(r'y="([\d.]+)">(?:1k|1)<', svg)] == [histogram[2][1] + 4, histogram[0][1] + 4]
    assert "a &amp; b" in svg


def test_curves_show_each_seed_and_their_mean(made: Made, page: Page) -> None:
    text = made.paths.report.read_text(encoding="utf-8")
    charts = dict(re.findall(r'aria-label="([^"]+ per epoch: [^"]+)">(.*?)</svg>', text, re.DOTALL))
    kinds = ("Validation macro AP", "Accuracy", "Loss")
    assert set(charts) == {f"{kind} per epoch: {c}, the whole network" for kind in kinds for c in CLASSIFIERS}
    ap, accuracy, loss = (charts[f"{kind} per epoch: resnet18, the whole network"] for kind in kinds)
    for chart, dashed in ((ap, 0), (accuracy, len(ORDER)), (loss, len(ORDER))):
        lines = re.findall(r'class="line s\d([^"]*)" points="([^"]+)"', chart)
        assert Counter(style for style, _ in lines) == {" thin": 3 * len(ORDER), "": len(ORDER)} | (
            {" dashed": dashed} if dashed else {}
        )
        assert Counter(len(points.split()) for style, points in lines if style == " thin") == {3: 8, 4: 4}
        means = [points.split() for style, points in lines if not style]
        assert {len(points) for points in means} == {3}  # the third seed's last epoch is no mean
    assert "hr, mean of 3 seeds, training" in loss
    assert ap.count("none, seed 7: epoch 1, 0.609") == 1


def test_the_mean_of_curves_lies_between_them() -> None:
    """Offsets of the seeds are -1/64, 0 and 1/64, so that the mean is the middle seed's line."""
    svg = line_chart(
        "x",
        [Line("m", 0, [(0, 0.5), (1, 0.75)]), Line("s", 0, [(0, 0.25), (1, 0.5)], thin=True, marked=(1, 0.5))],
        "epoch",
    )
    thin, mean = re.findall(r'class="line s0([^"]*)"', svg)
    assert (thin, mean) == (" thin", "")  # the mean is drawn over its seeds
    assert '<circle class="mark small s0"' in svg


def test_pages_hold_no_name_twice_and_fetch_nothing(made: Made, page: Page) -> None:
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    for _, attributes in page.elements:
        for value in (attributes[name] for name in ("src", "href", "style") if name in attributes):
            assert "//" not in value or value.startswith("data:")
    assert not re.search(r"@import|url\(|fetch\(", made.paths.report.read_text(encoding="utf-8"))
    tables = [(tag, attributes) for tag, attributes in page.elements if attributes.get("role") == "region"]
    assert all(attributes["aria-label"] and attributes["tabindex"] == "0" for _, attributes in tables)


def test_metrics_of_an_earlier_version_have_no_countries(tmp_path: Path) -> None:
    paths = make_store(tmp_path).paths
    write_report(paths)
    before = paths.report.read_bytes()
    for file in paths.table("metrics").glob("*.parquet"):
        pq.write_table(pq.ParquetFile(file).read().drop_columns(["country", "season"]), file)
    for file in paths.table("training").glob("*.parquet"):
        pq.write_table(pq.ParquetFile(file).read().drop_columns(["wait_share"]), file)
    write_report(paths)
    assert paths.report.read_bytes() == before
    for file in paths.table("training").glob("*.parquet"):
        pq.write_table(pq.ParquetFile(file).read().drop_columns(["train_accuracy", "validation_accuracy"]), file)
    text = page_of(paths).text
    assert "Accuracy: validation solid" not in text
    assert "Loss: validation solid, training dashed" in text


def to_picture(dn: NDArray[np.float64], times: int) -> NDArray[np.float64]:
    """What the gallery shows of (3, H, W) DN, each pixel so many times."""
    rgb = np.rint(255 * (np.minimum(dn.transpose(1, 2, 0), 3000) / 3000.0) ** (2 / 3))
    return rgb.repeat(times, axis=0).repeat(times, axis=1)


def test_pictures_of_another_archive(tmp_path: Path) -> None:
    """64 x 64 pixels of R, G, B, labels of its own, one of which no classifier knows, no tiles, no country."""
    made = make_store(tmp_path, Wanted(pictures=True, sr=("none", "bicubic")))
    page = page_of(made.paths)
    assert len([tag for tag, _ in page.elements if tag == "img"]) == 4 * 2 * 2 + 4 * 2 + 3 * (1 + 2)
    (patch,) = pictures(page, "p1, none: true colour")
    np.testing.assert_array_equal(patch, to_picture(made.dn[1], 7))
    for caption in ("the patch, 64 px wide", "enlarged, 256 px wide"):
        assert page.text.count(caption) == 4
    assert "Pictures are R, G, B from 0 to DN 3000" in page.text
    assert "km wide" not in page.text
    assert page.text.count("not among the classifier\N{RIGHT SINGLE QUOTATION MARK}s labels: field") == 4 * 2
    assert "○ missed" not in page.text
    assert "4 labelled patches." in page.text  # nothing is said of snow and tiles
    assert "Sentinel-2 tiles" not in page.text
    _, airplane, _ = page.tables["f2-resnet18"]
    assert airplane[0].text == "airplane"


def test_degraded_pictures_and_their_ceiling(tmp_path: Path) -> None:
    """Blocks of 16 x 16 pixels: their means over 4 x 4 are themselves, so that the reduced picture is known."""
    made = make_store(tmp_path, Wanted(pictures=True, sr=("none", "bicubic", "hr")))
    page = page_of(made.paths)
    (low,), (high,) = pictures(page, "p1, none: true colour"), pictures(page, "p1, hr: true colour")
    np.testing.assert_array_equal(low, to_picture(made.dn[1, :, ::4, ::4], 30))
    assert high.shape == (448, 448, 3)
    np.testing.assert_allclose(high, to_picture(made.dn[1], 7), atol=90)  # with the losses of its format
    assert np.abs(high - to_picture(made.dn[1], 7)).mean() < 4
    for caption in ("the patch, 16 px wide", "enlarged, 64 px wide", "high resolution, 64 px wide"):
        assert page.text.count(caption) == 4
    assert "Against the truth" in page.text
    assert "pixels, the truth, are reduced by 4, super-resolved and compared with themselves." in page.text


def test_degraded_patches_say_how_large_a_pixel_is(page: Page) -> None:
    captions = ("the patch, 40 m", "enlarged, 10 m", "super-resolved, 10 m", "high resolution, 10 m")
    assert [page.text.count(caption) for caption in captions] == [4] * 4
    assert "Each patch is 1.2 km wide." in page.text


def test_classifiers_of_few_labels_leave_the_probabilities_of_others_out(tmp_path: Path) -> None:
    made = make_store(tmp_path, Wanted(pictures=True, labelled=False, n=1))
    page = page_of(made.paths)
    assert "airplane 0.90" in page.text
    assert "not among" not in page.text  # nobody said that it is there


def test_labels_have_their_own_colours_or_those_of_their_place() -> None:
    colours = label_colours(["beach", CLASSES[3].name, *(f"label {i}" for i in range(20))])
    tab20 = ["#" + "".join(f"{round(255 * part):02x}" for part in c[:3]) for c in colormaps["tab20"].colors]  # type: ignore[attr-defined]
    assert colours["beach"] == tab20[0]
    assert colours[CLASSES[3].name] == CLASSES[3].colour
    assert [colours[f"label {i}"] for i in range(20)] == [*tab20[2:], *tab20[:2]]


def test_bands_are_found_by_their_names(tmp_path: Path) -> None:
    of_pictures, of_bigearthnet = (
        ShardedStore(make_store(tmp_path / str(wanted), Wanted(pictures=wanted)).paths.archive)
        for wanted in (True, False)
    )
    assert rgb_array(of_pictures) == ("rgb", ("R", "G", "B"), [0, 1, 2])
    assert rgb_array(of_bigearthnet) == ("s2_10m", ("B04", "B03", "B02"), [2, 1, 0])


def test_pixels_without_red_green_and_blue_are_said_to_be_missing(tmp_path: Path) -> None:
    radar = ArraySpec("rgb", ("band", "y", "x"), (2, 4, 4), "uint16", 0, {}, names=("VV", "VH"))
    create_store(tmp_path / "archive.zarr", (radar,), 4, 1, {})
    with pytest.raises(StoreError, match="no array s2_10m or rgb with the bands B04,B03,B02 or R,G,B"):
        rgb_array(ShardedStore(tmp_path / "archive.zarr"))


def test_labels_keep_the_order_of_the_archive(tmp_path: Path) -> None:
    numbers = Numbers(make_store(tmp_path, Wanted(pictures=True)).paths)
    assert numbers.labels == ("airplane", "beach", "court", "dock", "field")
    rows = read_table(numbers.paths.table("metrics")).to_pylist()
    extra = [{**row, "label": label} for row in rows if row["label"] == "airplane" for label in ("beach", "a stranger")]
    publish(numbers.paths.table("metrics"), pa.Table.from_pylist(extra, METRICS), METRICS, [], file_stem="extra")
    labels = [row.label for row in Numbers(numbers.paths).label_rows("f2", "resnet18")]
    assert labels == ["airplane", "beach", "a stranger"]


def test_the_best_is_told_by_what_is_seen() -> None:
    def row(sr: str, classifier: str, value: float | None) -> Row:
        return Row(sr, classifier, (0,), 1, {"hl": Cell(value, NULL if value is None else f"{value:.3f}")})

    rows = [
        row("none", "a", 0.1004),
        row("hat", "a", 0.1),
        row("gan", "a", 0.2),
        row("hr", "a", 0.1),
        row("x", "a", None),
    ]
    rows += [row("none", "b", 0.5), row("hat", "b", 0.5001)]  # alike: none is best
    best = with_best(rows, [Column("hl", "HL", "", better=-1)], lambda r: r.classifier)
    assert [r.cells["hl"].best for r in best] == [True, True, False, False, False, False, False]
    assert [signed(v, 2) for v in (0.004, -0.004, 0.006, -0.5, None)] == ["0.00", "0.00", "+0.01", "\u22120.50", NULL]
