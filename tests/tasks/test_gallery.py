from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from infra.bigearthnet.classes import NAMES
from tasks import gallery, gallery_sheet
from tasks.gallery import choose_patches, make_gallery
from tasks.report.numbers import Numbers
from tasks.report.page import render
from tasks.report.strips import make_strips
from tests.tasks.gallery_store import add_maps, change_settings
from tests.tasks.report.report_store import Page, Wanted, make_store


def row(patch_id: str, labels: Sequence[str] | None, predicted: Sequence[str] = ()) -> dict[str, Any]:
    return {"patch_id": patch_id, "labels": labels, "predicted": predicted}


def test_patches_of_the_sample_come_first_and_others_fill_up() -> None:
    """Without a sample, b and d show three labels; in the sample, a and c show one."""
    rows = [row("a", ["x"]), row("b", ["x", "y"]), row("c", None, ["x"]), row("d", ["z"])]
    assert choose_patches(rows, (), 2) == ["b", "d"]
    assert choose_patches(rows, {"a", "c"}, 2) == ["a", "c"]
    assert choose_patches(rows, {"c", "not of the split"}, 3) == ["c", "b", "d"]
    assert choose_patches(rows, {"a", "b", "c", "d"}, 9) == choose_patches(rows, (), 9)
    assert choose_patches([], {"a"}, 9) == []


def test_pictures_are_counted_as_they_stand_on_the_page(tmp_path: Path) -> None:
    """What is counted against the budgets is all but the words of the page, and both together stay below 7 MB."""
    made = make_store(tmp_path, Wanted(sr=("none", "bicubic")))
    add_maps(made.paths, "none", "layer_cam", np.random.default_rng(0).random((len(NAMES), 4, 4)).astype(np.float32))
    numbers = Numbers(made.paths)
    text = render(numbers)
    found = make_gallery(numbers)
    assert found is not None
    assert found.sheet is not None
    cards, sheet = sum(card.bytes for card in found.cards), sum(image.bytes for image in found.sheet.images)
    images = [a for tag, a in Page(text).elements if tag == "img"]
    of_sheet = [len(a["src"]) for a in images if a["alt"].startswith("image ")]
    assert sheet == sum(of_sheet)
    strips = [p for strip in make_strips(numbers) for p in (strip.context, *(cell.picture for cell in strip.cells))]
    of_strips = sum(len(picture.uri) for picture in strips if picture is not None)
    assert cards + sheet + of_strips == sum(len(a["src"]) for a in images)
    assert len(text.encode()) - cards - sheet < 300_000
    assert gallery._BUDGET_BYTES + gallery_sheet._BUDGET_BYTES + 300_000 < 7_000_000


def test_the_network_shown_is_the_one_that_was_explained(tmp_path: Path) -> None:
    """Predictions of the seeds 3 and 7, maps of 7."""
    made = make_store(tmp_path / "explained", Wanted(sr=("none",), seeds=(7, 3)))
    found = make_gallery(Numbers(made.paths))
    assert found is not None
    assert (found.seed, found.method, found.titles) == (7, "grad_cam", {"grad_cam": "Grad-CAM"})


def test_cards_show_a_method_that_saw_all_of_their_patches(tmp_path: Path) -> None:
    """The first of RUN.yaml has maps of p0 alone: it is compared, and the cards' maps are of the next one."""
    made = make_store(tmp_path, Wanted(sr=("none",)))
    add_maps(made.paths, "none", "cam", np.ones((len(NAMES), 4, 4), np.float32), rows=(0,))
    change_settings(made.paths, methods=["cam", "grad_cam"])
    found = make_gallery(Numbers(made.paths))
    assert found is not None
    assert list(found.titles) == ["cam", "grad_cam"]
    assert found.method == "grad_cam"
    assert {cell.map.why_not for card in found.cards for line in card.rows for cell in line.maps} <= {
        "",
        "nowhere above 0",
    }
