"""The contact sheet on the report's page."""

import shutil
from pathlib import Path

import numpy as np
import pytest

from infra.bigearthnet.classes import NAMES
from infra.storage import StorePaths
from tasks import gallery_sheet
from tasks.report.page import write_report
from tests.tasks.gallery_store import add_maps, bright, change_settings
from tests.tasks.report.report_store import LABELS, PATCH_IDS, Made, Page, Wanted, make_store
from tests.tasks.report.test_page import pictures

UNIFORM = np.ones((len(NAMES), 4, 4), np.float32)


def page_of(paths: StorePaths) -> Page:
    write_report(paths)
    return Page(paths.report.read_text(encoding="utf-8"))


def alts_of_sheet(page: Page) -> list[str]:
    return [a["alt"] for tag, a in page.elements if tag == "img" and a["alt"].startswith("image ")]


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Two patches' maps of RISE, and LayerCAM's of all; read only."""
    made = make_store(tmp_path_factory.mktemp("sheet"), Wanted(sr=("none", "bicubic")))
    add_maps(made.paths, "none", "rise", UNIFORM, rows=(0, 2), sampled=(0, 2))
    add_maps(made.paths, "none", "layer_cam", np.stack([bright("lower left")] * len(NAMES)))
    add_maps(made.paths, "none", "random", np.ones((1, 4, 4), np.float32))
    return made


def test_every_image_has_its_maps_its_label_and_the_truth(store: Made, tmp_path: Path) -> None:
    """Of four patches in an order of chance; RISE lacks two of them, and noise is not drawn."""
    paths = StorePaths(shutil.copytree(store.paths.root, tmp_path / "store"))
    page = page_of(paths)
    alts = alts_of_sheet(page)
    order = [alt.split(", ", 1)[1].removesuffix(": true colour") for alt in alts if alt.endswith("colour")]
    assert sorted(order) == sorted(PATCH_IDS)
    expected = []
    for number, name in enumerate(order, start=1):
        parts = ("true colour", "Grad-CAM map of Urban fabric", "LayerCAM map of Urban fabric")
        expected += [f"image {number}, {name}: {part}" for part in parts]
    assert alts == expected
    for number, name in enumerate(order, start=1):
        (picture,) = pictures(page, f"image {number}, {name}: true")
        dn = store.dn[PATCH_IDS.index(name), [2, 1, 0]].transpose(1, 2, 0)
        by_hand = 255 * (np.minimum(dn, 3000) / 3000) ** (2 / 3)
        assert np.abs(picture - by_hand).mean() < 8  # with the losses of its format
        (cam,) = pictures(page, f"image {number}, {name}: LayerCAM")
        assert cam.shape == (120, 120, 3)
        assert cam[80:, :40, 1].mean() > max(cam[:40, :, 1].mean(), cam[80:, 80:, 1].mean()) + 50
    sheet = page.text.split("Contact sheet: 4 test patches at random")[1]
    assert "--sheet 4 --split test" in sheet
    for number, name in enumerate(order, start=1):
        at = PATCH_IDS.index(name)
        mark = "✓ right" if "Urban fabric" in LABELS[at] else "✕ wrong"
        truth = ", ".join(LABELS[at]) or "none"
        said = " ".join(sheet.split(f" {number} {mark} Urban fabric ")[1].split()[:40])
        assert said.startswith(f"{0.9 - 0.01 * at:.2f} True: {truth}")
    write_report(paths)
    again = Page(paths.report.read_text(encoding="utf-8"))
    assert alts_of_sheet(again) == alts
    assert [a["class"] for tag, a in page.elements if tag == "ol"] == ["sheet"]


def test_where_no_method_saw_all_the_sheet_is_of_the_sample(tmp_path: Path) -> None:
    made = make_store(tmp_path / "store", Wanted(sr=("none",)))
    shutil.rmtree(made.paths.table("explanations"))
    add_maps(made.paths, "none", "rise", UNIFORM, rows=(1, 2), sampled=(1, 2))
    page = page_of(made.paths)
    assert "Contact sheet" not in page.text  # the run asked for no sample, so its maps are not whole
    change_settings(made.paths, sample=2)
    page = page_of(made.paths)
    assert "Contact sheet: 2 test patches at random" in page.text
    assert "; from the sample, since no method was run on all." in page.text
    shown = {alt.split(", ", 1)[1].partition(": ")[0] for alt in alts_of_sheet(page)}
    assert shown == {PATCH_IDS[1], PATCH_IDS[2]}
    # The gallery shows those of the sample first.
    named = [a["alt"].partition(", none")[0] for tag, a in page.elements if tag == "img" and "none: true" in a["alt"]]
    assert set(named[:2]) == {PATCH_IDS[1], PATCH_IDS[2]}


def test_a_sheet_stops_before_the_page_is_too_large(
    store: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = StorePaths(shutil.copytree(store.paths.root, tmp_path / "store"))
    monkeypatch.setattr(gallery_sheet, "_BUDGET_BYTES", 1)
    page = page_of(paths)
    assert "Contact sheet: 1 test patch at random" in page.text
    assert len(alts_of_sheet(page)) == 3


def test_three_methods_at_most(store: Made, tmp_path: Path) -> None:
    paths = StorePaths(shutil.copytree(store.paths.root, tmp_path / "store"))
    for method, maps in (("cam", UNIFORM), ("eigen_cam", UNIFORM[:1]), ("hessian_ciam", bright("upper left")[None])):
        add_maps(paths, "none", method, maps)
    page = page_of(paths)
    shown = [alt.partition(": ")[2] for alt in alts_of_sheet(page)[:4]]
    assert [text.split()[0] for text in shown] == ["true", "Grad-CAM", "CAM", "EigenCAM"]
    assert "the patch, Grad-CAM, CAM, EigenCAM, on none." in page.text
