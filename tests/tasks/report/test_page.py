"""The report's page, read as a browser reads it, against the tables and pixels that it is made of."""

import base64
import io
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib import colormaps
from PIL import Image

from infra.errors import StoreError
from infra.storage import StorePaths
from infra.tables import METRICS, publish, read_table
from tasks import gallery
from tasks.charts import Line, line_chart, ticks
from tasks.gallery import choose
from tasks.report.cells import NULL, number
from tasks.report.page import duration, grouped, write_report
from tests.tasks.report.report_store import AP, CLASSIFIERS, F2, NASTY, SR, Made, Page, TableCell, Wanted, make_store


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store with its page; read only."""
    made = make_store(tmp_path_factory.mktemp("report") / "store")
    write_report(made.paths)
    return made


@pytest.fixture(scope="module")
def page(made: Made) -> Page:
    return Page(made.paths.report.read_text(encoding="utf-8"))


def metric_cells(page: Page) -> dict[tuple[str, str], dict[str, TableCell]]:
    """Cells of the metrics table by classifier and SR model, and by title."""
    head, *rows = page.tables["metrics-table"]
    titles = [cell.text.rstrip(" ↑↓") for cell in head]
    return {(row[1].text, row[0].text.split()[0]): dict(zip(titles, row, strict=True)) for row in rows}


def test_metrics_are_those_of_the_table(made: Made, page: Page) -> None:
    cells = metric_cells(page)
    assert list(cells) == [(classifier, sr) for classifier in CLASSIFIERS for sr in SR]  # the order of RUN.yaml
    titles = {"acc": "ACC", "hl": "HL", "ap_macro": "AP macro", "ap_macro_above_prevalence": "AP above chance"}
    seen = 0
    for row in read_table(made.paths.table("metrics")).to_pylist():
        if row["split"] == "test" and row["label"] is None and row["metric"] in titles:
            cell = cells[row["classifier"], row["sr"]][titles[row["metric"]]]
            assert cell.value == row["value"]
            assert cell.text.startswith(f"{row['value']:.3f}")
            seen += 1
    assert seen == 4 * 6
    assert cells["resnet18", "none"]["AP above chance"].text == "0.375 0.300 to 0.450"
    assert cells["resnet18", "none"]["OE"].text == NULL  # null in the table
    assert cells["resnet18", "none"]["F1"].text == NULL  # not in the table


def test_the_best_of_each_classifier_is_bold(page: Page) -> None:
    cells = metric_cells(page)
    bold = {key for key, row in cells.items() if row["AP macro"].bold}
    assert bold == {
        ("resnet18", "srresnet"),
        ("resnet50", "none"),
        ("resnet50", "srresnet"),
    }  # 0.7 and 0.6999 look alike
    assert {key for key, row in cells.items() if row["HL"].bold} == {(c, "srresnet") for c in CLASSIFIERS}  # lower
    assert {sr for (_, sr), row in cells.items() if row["ACC"].bold} == {"srresnet"}


def test_the_answer_is_the_difference_of_macro_ap(page: Page) -> None:
    first, second = (page.text.split(f"With {name}, ")[1] for name in CLASSIFIERS)
    assert first.startswith("srresnet scores highest on the 4 test patches: macro average precision 0.561 ,")
    assert "That is 6.1 points above none, the patches as they are, and 4.1 points above bicubic, the control." in first
    assert second.startswith("none scores highest")
    assert f"That is {100 * (AP['resnet50', 'none'] - AP['resnet50', 'bicubic']):.1f} points above bicubic" in second
    assert "No significance is claimed : that takes the 95\N{NO-BREAK SPACE}% interval" in page.text
    assert "over three training seeds; this run has one." in page.text


def test_classes_show_f2_and_support(page: Page) -> None:
    for classifier in CLASSIFIERS:
        head, urban, forest, macro = page.tables[f"f2-{classifier}"]
        assert [cell.text.split()[0] for cell in head] == ["Label", "n", *SR]
        assert [cell.text for cell in urban[:2]] == ["Urban fabric", "2"]
        assert [cell.value for cell in urban[2:]] == [F2[sr] for sr in SR]
        assert [cell.bold for cell in urban[2:]] == [False, True, False]
        assert [cell.text for cell in forest] == ["Mixed forest", "0", NULL, NULL, NULL]  # no positive: F2 says nothing
        assert [cell.value for cell in macro[2:]] == [F2[sr] / 2 for sr in SR]
        assert [cell.bold for cell in macro[2:]] == [False, True, False]
    assert not [name for name in page.tables if "minus" in name]  # nothing was compared


def plain(cell: TableCell) -> str:
    """A cell's text with ASCII signs."""
    return cell.text.replace("\N{MINUS SIGN}", "-")


def test_quality_is_the_mean_over_patches_and_its_interval(page: Page) -> None:
    """With two tiles, a quarter of the resamples holds one tile alone: the interval ends at the tiles' own means."""
    head, bicubic, srresnet, minus = page.tables["quality-table"]
    assert [cell.text for cell in head] == [
        "SR model", "Patches", "PSNR, dB ↑", "SSIM ↑", "Angle, ° ↓", "ERGAS ↓",
        "Improved, % ↑", "Omitted, % ↓", "Made up, % ↓",
    ]  # fmt: skip
    assert [cell.text for cell in bicubic] == [
        "bicubic control",
        "4",
        "31.50 30.50 to 32.50",
        "0.750 0.750 to 0.750",
        "2.00 2.00 to 2.00",
        "3.00 3.00 to 3.00",
        "25.0 25.0 to 25.0",
        "50.0 50.0 to 50.0",
        "25.0 25.0 to 25.0",
    ]
    assert srresnet[2].value == np.mean([31.0, 32, 33, 34])
    assert srresnet[8].text == "25.0 12.5 to 37.5"
    assert [cell.bold for cell in srresnet[2:]] == [True, False, True, False, False, False, False]
    assert [cell.bold for cell in bicubic[2:]] == [False, False, False, False, True, False, False]
    assert plain(minus[0]) == "srresnet - bicubic"


def test_differences_to_bicubic_tell_better_from_worse(page: Page) -> None:
    *_, minus = page.tables["quality-table"]
    assert [plain(cell) for cell in minus[1:]] == [
        "4",
        "+1.00 better 1.00 to 1.00",
        "0.000 0.000 to 0.000",
        "-1.00 better -1.00 to -1.00",  # a smaller angle is better
        "0.00 0.00 to 0.00",
        "-12.5 worse -12.5 to -12.5",
        "0.0 0.0 to 0.0",
        "0.0 -12.5 to 12.5",  # more in one tile, less in the other: no verdict
    ]
    assert [cell.attributes.get("class") for cell in minus[2:]] == ["better", None, "better", None, "worse", None, None]


def test_consistency_tells_the_shift(page: Page) -> None:
    _, bicubic, srresnet, minus = page.tables["consistency-table"]
    assert [cell.text.split()[0] for cell in bicubic[2:]] == ["15.00", "0.250", "0.000", "0.000", "0.000", "1.50"]
    assert [plain(cell).split()[0] for cell in srresnet[2:]] == ["15.00", "0.250", "0.500", "-0.300", "0.400", "1.50"]
    verdicts = [cell.attributes.get("class") for cell in minus[2:]]
    assert verdicts == [None, None, "worse", None, None, None]  # a direction is neither


def test_capped_and_null_patches_are_told(page: Page) -> None:
    assert "Patches at the cap of 100 dB: 0 of 4 in bicubic, 0 of 4 in srresnet." in page.text
    assert "ssim is null, and left out of its mean: 1 in bicubic, 1 in srresnet." in page.text
    assert "sam_deg is null" not in page.text


def test_quality_of_an_earlier_version_lacks_its_columns(made: Made, tmp_path: Path) -> None:
    """Rows without the columns that were added since: they are null, nothing else changes."""
    root = tmp_path / "store"
    shutil.copytree(made.paths.root, root)
    paths = StorePaths(root)
    new = ["improvement_share", "omission_share", "hallucination_share", "shift_row_px", "shift_col_px"]
    for file in paths.table("sr_quality").glob("*.parquet"):
        pq.write_table(pq.ParquetFile(file).read().drop_columns(new), file)
    write_report(paths)
    page = Page(paths.report.read_text(encoding="utf-8"))
    _, bicubic, _, _ = page.tables["quality-table"]
    assert [cell.text for cell in bicubic[5:]] == ["3.00 3.00 to 3.00", NULL, NULL, NULL]
    assert "hallucination_share is null, and left out of its mean: 4 in bicubic, 4 in srresnet." in page.text


def test_inputs_stages_and_quarantine(page: Page) -> None:
    assert "1\u202f004 inputs = 4 patches + 6 quarantined + 994 absent." in page.text
    assert "The run took 1 h 2 min; the first stage began 12.5 s after the command." in page.text
    assert [c.text for c in page.tables["stages-table"][1]] == ["predict none", "1", "0", "0", "4", "0.50", "8.0"]
    _, truncated, bad = page.tables["quarantine-table"]
    assert [cell.text for cell in truncated[:2]] == ["truncated", "5"]
    assert truncated[2].text.count("ends early") == 3
    assert bad[0].text == "bad name"


def test_text_of_the_archive_is_escaped(page: Page) -> None:
    assert NASTY in page.text
    assert '<img src="http://example.org/x.png" onerror="f()">' in page.text
    assert [tag for tag, _ in page.elements].count("script") == 1
    assert not any("onerror" in attributes for _, attributes in page.elements)
    assert any(NASTY in attributes.get("alt", "") for tag, attributes in page.elements if tag == "img")


def test_nothing_is_fetched(made: Made, page: Page) -> None:
    for tag, attributes in page.elements:
        for name in {"src", "href", "srcset", "data", "action", "poster", "xlink:href"} & attributes.keys():
            assert attributes[name].startswith(("data:", "#")), f"<{tag} {name}={attributes[name]}>"
    targets = {attributes["href"][1:] for tag, attributes in page.elements if tag == "a"}
    assert targets <= {attributes["id"] for _, attributes in page.elements if "id" in attributes}
    text = made.paths.report.read_text(encoding="utf-8")
    assert not re.search(r"@import|url\(|fetch\(|XMLHttpRequest", text)
    assert "default-src 'none'" in text
    assert len(text.encode()) < 5_000_000


def pictures(page: Page, alt: str) -> list[Any]:
    """Pictures whose alternative text starts so, decoded."""
    found = [a for tag, a in page.elements if tag == "img" and a["alt"].startswith(alt)]
    decoded = []
    for attributes in found:
        image = Image.open(io.BytesIO(base64.b64decode(attributes["src"].split(",")[1])))
        assert image.size == (int(attributes["width"]), int(attributes["height"]))
        decoded.append(np.asarray(image.convert("RGB"), np.float64))
    return decoded


def test_pictures_are_the_pixels(made: Made, page: Page) -> None:
    images = [a for tag, a in page.elements if tag == "img"]
    # Four patches on three branches, each with one of two maps, the other is zero; then a sheet of the four on one;
    # then strips of three patches, each with the three branches.
    assert len(images) == 4 * 3 * 2 + 4 * 2 + 3 * (1 + 3)
    assert all(a["alt"] and a["src"].startswith("data:image/webp;base64,") for a in images)
    (patch,) = pictures(page, "p1, none: true colour")
    rgb = made.dn[1, [2, 1, 0]].transpose(1, 2, 0)  # B04, B03, B02 of B02, B03, B04, B08
    by_hand = np.rint(255 * (np.minimum(rgb, 3000) / 3000.0) ** (2 / 3))
    np.testing.assert_array_equal(patch, np.kron(by_hand, np.ones((4, 4, 1))))  # nearest neighbour, lossless
    (stored,) = pictures(page, "p1, srresnet: true colour")
    assert stored.shape == (480, 480, 3)
    np.testing.assert_allclose(stored, 255 * (375 / 3000) ** (2 / 3), atol=2)  # an eighth: a quarter of the range
    (enlarged,) = pictures(page, "p1, bicubic: true colour")
    assert enlarged.shape == (480, 480, 3)


def test_maps_lie_where_the_network_looked(page: Page) -> None:
    """On a flat grey of 64, a map that is bright in one corner is 0.45 grey + 0.55 of the scale's ends."""
    (shown,) = pictures(page, "p1, srresnet: activation map of Urban fabric")
    assert shown.shape == (240, 240, 3)
    for corner, level in ((np.s_[:20, :20], 1.0), (np.s_[-60:, -60:], 0.0)):
        by_hand = 0.45 * 64 + 0.55 * 255 * np.array(colormaps["viridis"](level)[:3])
        np.testing.assert_allclose(shown[corner].mean(axis=(0, 1)), by_hand, atol=3)
    assert page.text.count("nowhere above 0") == 4 * 3  # Arable land's zero maps


def test_labels_are_told_apart_by_words(page: Page) -> None:
    card = page.text.split(" p0 ")[1].split(" p1 ")[0]
    assert "✓ right Urban fabric 0.90" in card
    assert "✕ wrong Arable land 0.80" in card
    assert "○ missed Pastures 0.30" in card


def test_training_curves_mark_the_chosen_epoch(page: Page) -> None:
    assert page.text.count("none, seed 7: epoch 1, 0.625") == len(CLASSIFIERS)


def test_configs_are_spelt_out(made: Made, page: Page) -> None:
    rows = {cells[0].text: [cell.text for cell in cells[1:]] for cells in page.tables["configs-table"][1:]}
    pixels = {config for config, (stage, _) in rows.items() if stage == "super resolve"}
    assert len(pixels) == len(SR)  # not the run's own, but what its predictions rest on
    stage, words = rows[made.configs["resnet50 bicubic"]]
    assert stage == "predictions"
    assert words.startswith("classifier resnet50")
    assert any(f"pixels {config}" in words for config in pixels)


def test_rows_of_other_runs_stay_out(tmp_path: Path) -> None:
    paths = make_store(tmp_path).paths
    write_report(paths)
    before = paths.report.read_bytes()
    rows = read_table(paths.table("metrics")).to_pylist()
    others = pa.Table.from_pylist([{**row, "config": "a0000000", "value": 0.987} for row in rows], METRICS)
    publish(paths.table("metrics"), others, METRICS, [], file_stem="other")
    shutil.copytree(
        next(paths.table("predictions").glob("*/*/*")),
        paths.table("predictions") / "sr=none/classifier=resnet18/config=a0000000",
    )
    write_report(paths)
    assert paths.report.read_bytes() == before


@pytest.mark.parametrize(
    "missing",
    ["tables/metrics", "tables/predictions", "tables/explanations", "tables/training", "tables/sr_quality",
     "tables/quarantine", "tables/configs", "tables/patches", "archive.zarr", "maps", "sr"],
)  # fmt: skip
def test_what_is_missing_is_said(made: Made, tmp_path: Path, missing: str) -> None:
    paths = StorePaths(tmp_path / "store")
    shutil.copytree(made.paths.root, paths.root)
    shutil.rmtree(paths.root / missing)
    write_report(paths)
    page = Page(paths.report.read_text(encoding="utf-8"))
    assert [a["id"] for tag, a in page.elements if tag == "section"] == [
        "metrics", "classes", "calibration", "maps", "reliability", "gallery", "quality", "training", "speed",
        "inputs", "configuration",
    ]  # fmt: skip
    word = {
        "tables/metrics": "There are no metrics",
        "tables/predictions": "There are no pictures",
        "tables/explanations": "not made",
        "tables/training": "Nothing was trained",
        "tables/sr_quality": "There are no measures",
        "tables/quarantine": "Nothing is in quarantine",
        "archive.zarr": "There are no pictures",
        "tables/patches": "There are no pictures",
        "tables/classes": "There are no pictures",
        "maps": "its map is missing",
        "sr": "pixels not stored",
    }
    assert word.get(missing, "") in page.text


def test_one_patch_that_nobody_labelled(tmp_path: Path) -> None:
    paths = make_store(tmp_path, Wanted(labelled=False, n=1)).paths
    write_report(paths)
    page = Page(paths.report.read_text(encoding="utf-8"))
    assert "No patch of this archive has labels, so nothing can be scored." in page.text
    assert "Land cover of 1 patch" in page.text
    assert "Nobody labelled this patch." in page.text
    assert not re.search("[✓✕○]", page.text)
    assert "metrics-table" not in page.tables


def test_the_gallery_stops_before_the_page_is_too_large(
    made: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = StorePaths(tmp_path / "store")
    shutil.copytree(made.paths.root, paths.root)
    monkeypatch.setattr(gallery, "_BUDGET_BYTES", 1)
    write_report(paths)
    page = Page(paths.report.read_text(encoding="utf-8"))
    assert [tag for tag, _ in page.elements].count("article") == 1


def test_a_store_without_a_run_has_no_report(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no finished run"):
        write_report(StorePaths(tmp_path))


def test_chosen_patches_cover_the_labels() -> None:
    sets = [["x"], ["x", "y"], ["x", "y"], ["z"]]
    # b adds x and y, and comes before c; then z is new; then c (two labels at a quarter) beats a (one).
    assert choose(["a", "b", "c", "d"], sets, 3) == ["b", "d", "c"]
    assert choose(["a"], [[]], 6) == ["a"]
    assert choose([], [], 6) == []


@given(st.floats(-1e6, 1e6), st.floats(0, 1e6), st.integers(3, 9))
def test_ticks_cover_the_range(low: float, span: float, at_most: int) -> None:
    found = ticks(low, low + span, at_most)
    slack = 1e-6 * (found[1] - found[0])
    assert found[0] <= low + slack
    assert found[-1] >= low + span - slack
    assert 2 <= len(found) <= at_most + 2
    np.testing.assert_allclose(np.diff(found), found[1] - found[0], rtol=1e-6)


def test_a_line_is_drawn_in_proportion() -> None:
    svg = line_chart("a <chart>", [Line("one & two", 0, [(0, 0.0), (1, 0.5), (4, 1.0)])], "epoch")
    assert "a &lt;chart&gt;" in svg
    assert "one &amp; two" in svg
    points = re.search(r'points="([^"]+)"', svg)
    assert points is not None
    (x0, y0), (x1, y1), (x2, y2) = (map(float, point.split(",")) for point in points[1].split())
    assert (x1 - x0) / (x2 - x0) == pytest.approx(1 / 4, abs=1e-3)
    assert (y1 - y0) / (y2 - y0) == pytest.approx(1 / 2, abs=1e-3)
    assert y2 < y0  # up is more


def test_words_for_numbers() -> None:
    assert [duration(s) for s in (0.04, 59.94, 60, 200, 7500, 7200)] == [
        "0.0 s", "59.9 s", "1 min", "3 min 20 s", "2 h 5 min", "2 h",
    ]  # fmt: skip
    assert grouped(1234567) == "1\u202f234\u202f567"
    assert [number(v, 2) for v in (-0.125, 1.0, None, -0.001)] == ["\u22120.12", "1.00", NULL, "0.00"]
