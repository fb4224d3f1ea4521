"""The papers' figure on the report's page: one patch by methods and SR models."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib import colormaps
from numpy.typing import NDArray

from infra.bigearthnet.classes import NAMES
from tasks.report.page import write_report
from tests.tasks.gallery_store import QUADRANTS, add_maps, add_reference_maps, bright
from tests.tasks.report.report_store import NASTY, SR, Made, Page, Wanted, make_store
from tests.tasks.report.test_page import pictures

PLANTED = {
    ("none", "layer_cam"): "upper right",
    ("bicubic", "layer_cam"): "lower left",
    ("srresnet", "layer_cam"): "upper left",
    ("none", "eigen_cam"): "lower left",
    ("bicubic", "eigen_cam"): "upper left",
    ("srresnet", "eigen_cam"): "upper right",
}
"""Where each map is bright; those of none are 4 x 4, the others 16 x 16, as those of larger inputs are."""


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """A store of Grad-CAM and two more methods, noise, and a method that saw p0 on none alone; read only.

    The upper half of every patch is Urban fabric. LayerCAM's maps of NASTY are not finite on bicubic, and nowhere above
    0 on srresnet.
    """
    made = make_store(tmp_path_factory.mktemp("methods"))
    for (sr, method), quadrant in PLANTED.items():
        cam = bright(quadrant, 4 if sr == "none" else 16)
        maps = np.broadcast_to(cam, (4, len(NAMES) if method == "layer_cam" else 1, *cam.shape)).copy()
        if (sr, method) == ("bicubic", "layer_cam"):
            maps[2, :, 3, 3] = np.nan
        if (sr, method) == ("srresnet", "layer_cam"):
            maps[2] = -1
        add_maps(made.paths, sr, method, maps)
        add_maps(made.paths, sr, "random", np.ones((1, 4, 4), np.float32))
    add_maps(made.paths, "none", "rise", np.ones((len(NAMES), 8, 8), np.float32), rows=(0,))
    codes = np.full((120, 120), 312, np.uint16)  # CORINE's coniferous forest
    codes[:60] = 112  # discontinuous urban fabric
    add_reference_maps(made.paths, codes)
    write_report(made.paths)
    return made


@pytest.fixture(scope="module")
def page(made: Made) -> Page:
    return Page(made.paths.report.read_text(encoding="utf-8"))


def quadrant_of(picture: NDArray[np.float64]) -> str:
    """The quarter whose middle is the most like viridis' bright end, and the least like its dark one."""
    ends = [0.55 * 255 * np.array(colormaps["viridis"](level)[:3]) for level in (0.0, 1.0)]
    along = (ends[1] - ends[0]) / np.linalg.norm(ends[1] - ends[0])
    means = {
        name: float((picture[row * 120 + 35 : row * 120 + 85, col * 120 + 35 : col * 120 + 85] @ along).mean())
        for name, (row, col) in QUADRANTS.items()
    }
    return max(means, key=lambda name: means[name])


def test_a_row_for_each_model_and_a_column_for_each_method(page: Page) -> None:
    """Of p0 the likeliest true label is Urban fabric at 0.90, of NASTY Inland waters at 0.10: the first of equals."""
    figures = [name for name in page.tables if name.startswith("methods-")]
    assert len(figures) == 4
    for name in figures:
        head, *rows = page.tables[name]
        # Grad-CAM is what RUN.yaml asked for; noise is not drawn.
        titles = ["SR model", "Picture", "Grad-CAM", "EigenCAM whole patch", "LayerCAM", "RISE"]
        assert [cell.text for cell in head] == titles
        assert [row[0].text.split()[0] for row in rows] == list(SR)
        assert {len(row) for row in rows} == {6}
    assert page.text.count("Urban fabric, by methods and SR models") == 3
    assert page.text.count("Inland waters, by methods and SR models") == 1
    probs = {row[0].text.partition("p = ")[2] for name in figures for row in page.tables[name][1:]}
    assert probs == {"0.90", "0.89", "0.10", "0.87"}  # p0, p1, NASTY, p3


def test_each_map_is_bright_where_the_stored_one_is(page: Page) -> None:
    """Grad-CAM's is bright in one sixteenth of the patch: its upper left corner."""
    for (sr, method), quadrant in PLANTED.items():
        title = {"layer_cam": "LayerCAM", "eigen_cam": "EigenCAM"}[method]
        (picture,) = pictures(page, f"p1, {sr}: {title} map of Urban fabric")
        assert picture.shape == (240, 240, 3)
        assert quadrant_of(picture) == quadrant, (sr, method)
    for sr in SR:
        (grad_cam,) = pictures(page, f"p1, {sr}: Grad-CAM map of Urban fabric")
        assert grad_cam[:20, :20, 1].mean() > grad_cam[70:, 70:, 1].mean() + 60


def test_a_line_bounds_the_land_cover(page: Page) -> None:
    """Urban fabric fills the upper half: white above the middle, black below it, from edge to edge."""
    (picture,) = pictures(page, "p1, srresnet: EigenCAM map of Urban fabric")
    above, below = picture[119].mean(axis=1), picture[120].mean(axis=1)
    assert above.mean() > 190  # a line of one pixel, after the losses of the format
    assert below.mean() < 60
    inside = picture[:110].mean(axis=(1, 2))
    assert inside.max() < 190
    alts = [a["alt"] for tag, a in page.elements if tag == "img"]
    assert "p1, srresnet: EigenCAM map of Urban fabric, a line around its land cover" in alts
    assert "50\N{NO-BREAK SPACE}% of the patch, within the line" in page.text
    (elsewhere,) = (alt for alt in alts if alt.startswith(f"{NASTY}, none: EigenCAM map of Inland waters"))
    assert "line" not in elsewhere  # the reference map does not have the label
    assert "nowhere in the reference map" in page.text


def test_cells_without_a_picture_say_why(page: Page) -> None:
    """RISE saw p0 on none alone; the water of NASTY has maps that cannot be drawn."""
    cells = {
        (name, row[0].text.split()[0], title.text.split()[0]): cell.text
        for name in page.tables
        if name.startswith("methods-")
        for row in page.tables[name][1:]
        for title, cell in zip(page.tables[name][0], row, strict=True)
    }
    rise = [text for (_, _, title), text in cells.items() if title == "RISE"]
    assert sorted(rise) == ["", *["not made"] * 11]
    layer = [text for (_, _, title), text in cells.items() if title == "LayerCAM"]
    assert sorted(layer) == [*[""] * 10, "not finite", "nowhere above 0"]
    (faults,) = {name for (name, _, title), text in cells.items() if text == "not finite"}
    assert cells[faults, "bicubic", "LayerCAM"] == "not finite"
    assert cells[faults, "srresnet", "LayerCAM"] == "nowhere above 0"
    assert cells[faults, "none", "LayerCAM"] == ""
    # Grad-CAM's maps of all labels but the first are zeros.
    assert [cells[faults, sr, "Grad-CAM"] for sr in SR] == ["nowhere above 0"] * 3
    alts = [a["alt"] for tag, a in page.elements if tag == "img"]
    assert not any(alt.startswith(f"{NASTY}, bicubic: LayerCAM map") for alt in alts)


def test_pictures_are_told_in_words_and_tables_are_reached_by_keys(page: Page) -> None:
    alts = [a["alt"] for tag, a in page.elements if tag == "img"]
    assert all(alts)
    assert len(set(alts)) == len(alts)
    regions = [a for _, a in page.elements if a.get("role") == "region" and "by methods" in a["aria-label"]]
    assert len(regions) == 4
    assert all(a["tabindex"] == "0" for a in regions)
    assert "carried to the patch\N{RIGHT SINGLE QUOTATION MARK}s own grid, 120\N{NO-BREAK SPACE}" in page.text
    assert "EigenCAM has one map for the whole patch, whatever the label." in page.text


def test_one_method_alone_is_not_compared(tmp_path: Path) -> None:
    made = make_store(tmp_path, Wanted(sr=("none",), n=1))
    add_maps(made.paths, "none", "random", np.ones((1, 4, 4), np.float32))
    write_report(made.paths)
    page = Page(made.paths.report.read_text(encoding="utf-8"))
    assert not [name for name in page.tables if name.startswith("methods-")]
    assert "by methods and SR models" not in page.text
