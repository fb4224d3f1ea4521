import csv
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from infra.errors import ConfigError
from tasks import explain_figure
from tasks.explain_figure import SheetRow, check_sheet, contact_sheet, patch_figure
from tasks.explained_patch import PatchView

METHODS = ("grad_cam", "eigen_cam")
LABELS = ("forest", "water")


def view(sr: str, *, bad: bool = False) -> PatchView:
    """A method with a map for each label, and one with a map of the patch; `bad`: NaN, and a map without evidence."""
    rng = np.random.default_rng(len(sr))
    maps = {"grad_cam": rng.random((2, 12, 12)).astype(np.float32), "eigen_cam": np.ones((1, 12, 12), np.float32)}
    if bad:
        maps["grad_cam"][1, 3, 4] = np.nan
        maps["eigen_cam"] = -maps["eigen_cam"]
    rgb = rng.integers(0, 256, (24, 24, 3)).astype(np.uint8)
    return PatchView(sr, rgb, LABELS, np.array([0.25, 0.875], np.float32), maps)


def words(path: Path) -> list[str]:
    """The texts of an SVG."""
    return re.findall(r"<!-- (.*?) -->", path.read_text())


def cells(path: Path) -> int:
    """The axes of an SVG."""
    return len(re.findall(r'<g id="axes_\d+">', path.read_text()))


def test_a_row_for_each_model_and_a_column_for_each_method(tmp_path: Path) -> None:
    path, mask = tmp_path / "figure.svg", np.zeros((12, 12), bool)
    mask[:3] = True
    patch_figure(path, "patch-1", [view("none"), view("bicubic"), view("swinir_m")], "water", mask)
    assert cells(path) == 3 * 3
    found = words(path)
    assert [word for word in found if word in {"picture", *METHODS}] == ["picture", *METHODS]
    # The second line of each, whose first is the model's name, has the label's probability.
    assert [word for word in found if word in {"none", "bicubic", "swinir_m"}] == ["none", "bicubic", "swinir_m"]
    assert found.count("p = 0.88") == 3
    assert {"patch-1", "water, 25 % of the patch"} <= set(found)
    patch_figure(path, "patch-1", [view("none")], "forest", None)
    assert cells(path) == 3
    assert {"forest", "p = 0.25"} <= set(words(path))


def test_a_map_that_is_not_finite_or_without_evidence_says_so_and_is_not_drawn(tmp_path: Path) -> None:
    path = tmp_path / "figure.svg"
    patch_figure(path, "p", [view("none", bad=True)], "water", None)
    assert {"not finite", "nowhere above 0"} <= set(words(path))
    patch_figure(path, "p", [view("none", bad=True)], "forest", None)  # whose map is sound
    assert "not finite" not in words(path)
    assert "nowhere above 0" in words(path)


def test_the_line_bounds_the_land_cover_where_it_is() -> None:
    """The upper quarter: a line at a quarter of the height from the top, under pixels that go from top to bottom."""
    mask = np.zeros((120, 120), bool)
    mask[:30] = True
    cam = np.zeros((120, 120), np.float32)
    cam[:30] = 1
    axis = Figure().subplots()
    explain_figure._draw_map(axis, np.full((120, 120, 3), 128, np.uint8), cam, mask)
    (line,) = axis.collections
    corners = np.concatenate([path.vertices for path in line.get_paths()])
    np.testing.assert_allclose(corners[:, 1], 0.25, atol=1e-6)
    assert np.ptp(corners[:, 0]) == pytest.approx(1, abs=0.01)
    assert (axis.get_xlim(), axis.get_ylim()) == ((0, 1), (1, 0))
    (image,) = axis.images
    picture = np.asarray(image.get_array(), float)
    assert tuple(image.get_extent()) == (0, 1, 1, 0)
    assert np.ptp(picture[:50].mean(axis=(1, 2))) < 1  # viridis' yellow above, its violet below
    assert picture[:50, :, 1].mean() > picture[70:, :, 1].mean() + 50


@pytest.mark.parametrize("ending", [".png", ".webp", ".pdf", ".svg", ".SVG", ".PDF"])
def test_the_same_maps_give_the_same_bytes(tmp_path: Path, ending: str) -> None:
    paths = [tmp_path / f"{name}{ending}" for name in ("one", "two")]
    for path in paths:
        patch_figure(path, "p", [view("none")], "water", np.eye(12, dtype=bool))
    assert paths[0].read_bytes() == paths[1].read_bytes()
    assert len(paths[0].read_bytes()) > 1000
    assert sorted(tmp_path.iterdir()) == sorted(paths)
    if ending in {".png", ".webp"}:
        with Image.open(paths[0]) as image:
            assert image.format == ending[1:].upper()


def sheet(n: int) -> list[SheetRow]:
    return [SheetRow(f"p{i}", view("none"), LABELS[i % 2], "forest;water" if i else "") for i in range(n)]


def test_a_sheet_numbers_its_images_and_its_table_asks_for_verdicts(tmp_path: Path) -> None:
    """Seven images in lines of five, each with two maps beside it."""
    path = tmp_path / "sheet.svg"
    assert contact_sheet(path, sheet(7)) == tmp_path / "sheet.csv"
    found = words(path)
    titles = [f"{i + 1} {LABELS[i % 2]} {(0.25, 0.88)[i % 2]:.2f}" for i in range(7)]
    assert [word for word in found if word in titles] == titles
    assert all(found.count(method) == 7 for method in METHODS)
    with (tmp_path / "sheet.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["number", "patch_id", "label", "prob", "truth", "verdict_grad_cam", "verdict_eigen_cam"]
    assert [row["number"] for row in rows] == [str(i + 1) for i in range(7)]
    assert [row["patch_id"] for row in rows] == [f"p{i}" for i in range(7)]
    assert [row["label"] for row in rows] == [LABELS[i % 2] for i in range(7)]
    assert [float(row["prob"]) for row in rows] == [(0.25, 0.875)[i % 2] for i in range(7)]
    assert [row["truth"] for row in rows] == ["", *["forest;water"] * 6]
    assert {row[f"verdict_{method}"] for row in rows for method in METHODS} == {""}


@pytest.mark.parametrize(
    ("methods", "lines", "across"),
    [(("cam",), 1, 3), (METHODS, 1, 3), (("cam", "grad_cam", "layer_cam", "x_grad_cam", "hires_cam"), 2, 2)],
)
def test_a_sheet_of_many_methods_is_no_ribbon(tmp_path: Path, methods: Sequence[str], lines: int, across: int) -> None:
    """Three images: 15 pictures and maps fit side by side, two images of six, but never more than there are."""
    of_all = view("none")
    maps = {method: of_all.maps["eigen_cam" if method == "eigen_cam" else "grad_cam"] for method in methods}
    rows = [SheetRow(f"p{i}", replace(of_all, maps=maps), "water", "") for i in range(3)]
    contact_sheet(tmp_path / "sheet.svg", rows)
    assert cells(tmp_path / "sheet.svg") == 3 * (1 + len(methods))
    size = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', (tmp_path / "sheet.svg").read_text())
    assert size is not None
    width, height = (float(points) / 72 for points in size.groups())
    assert width == pytest.approx(0.8 * across * (1 + len(methods)))
    assert height == pytest.approx(0.95 * lines, abs=0.2)


def test_verdicts_are_never_erased(tmp_path: Path) -> None:
    """A sheet that nobody has marked is written anew; one with a single verdict is not."""
    path, table = tmp_path / "sheet.png", tmp_path / "sheet.csv"
    contact_sheet(path, sheet(3))
    contact_sheet(path, sheet(2))
    lines = table.read_text().splitlines()
    assert len(lines) == 3
    table.write_text("\n".join([*lines[:2], lines[2] + "pass"]) + "\n")
    before = table.read_bytes(), path.read_bytes()
    with pytest.raises(ConfigError, match=r"sheet\.csv holds verdicts.*move it, or choose another name"):
        contact_sheet(path, sheet(4))
    with pytest.raises(ConfigError, match="holds verdicts"):
        check_sheet(tmp_path / "sheet.pdf")
    assert (table.read_bytes(), path.read_bytes()) == before


@pytest.mark.parametrize("separator", [";", "\t"])
@pytest.mark.parametrize("verdict", ["pass", ""])
def test_verdicts_that_a_spreadsheet_saved_in_its_own_way_are_not_erased(
    tmp_path: Path, separator: str, verdict: str
) -> None:
    """One with a comma for decimals writes semicolons; what has no verdicts of it cannot be told from what has."""
    path, table = tmp_path / "sheet.png", tmp_path / "sheet.csv"
    contact_sheet(path, sheet(2))
    with table.open(newline="") as file:
        rows = list(csv.reader(file))
    rows[2][-1] = verdict
    with table.open("w", newline="", encoding="utf-8-sig" if separator == ";" else "utf-8") as file:
        csv.writer(file, delimiter=separator).writerows(rows)
    before = table.read_bytes()
    with pytest.raises(ConfigError, match=r"sheet\.csv is no sheet as it was written.*choose another name"):
        contact_sheet(path, sheet(2))
    assert table.read_bytes() == before


@pytest.mark.parametrize(
    "text",
    [
        "patch,label\na,b\n",
        "number,patch_id,label,prob,truth,judgement\n",
        "patch_id,number,label,prob,truth,verdict_cam\n",
        "",
        "number,patch_id,label,prob,truth,verdict_cam\n1,p,water,0.5,,,pass\n",
    ],
)
def test_a_table_that_is_no_sheet_is_not_overwritten(tmp_path: Path, text: str) -> None:
    """The last one's verdict lies in a column that its head does not name."""
    (tmp_path / "sheet.csv").write_text(text)
    with pytest.raises(ConfigError, match=r"sheet\.csv .*move it, or choose another name"):
        check_sheet(tmp_path / "sheet.png")
    (tmp_path / "sheet.csv").write_text("number,patch_id,label,prob,truth,verdict_cam\n1,p,water,0.5,,\n")
    check_sheet(tmp_path / "sheet.png")


def test_what_cannot_be_drawn_is_refused(tmp_path: Path) -> None:
    for name in ("figure.jpg", "figure", "figure.tif"):
        with pytest.raises(ConfigError, match=r"figures end in \.png, \.pdf, \.svg, \.webp"):
            patch_figure(tmp_path / name, "p", [view("none")], "water", None)
        with pytest.raises(ConfigError, match="figures end in"):
            contact_sheet(tmp_path / name, sheet(1))
    with pytest.raises(ConfigError, match="needs at least one image"):
        contact_sheet(tmp_path / "sheet.png", [])
    assert not list(tmp_path.iterdir())
