"""Strips of detail: which patches, which part of them, and the very pixels."""

import base64
import io
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from PIL import Image

from infra.tables import SR_QUALITY
from tasks.pictures import Picture
from tasks.report.cells import NULL
from tasks.report.numbers import Numbers
from tasks.report.strips import Strip, busiest, choose_patches, make_strips
from tests.tasks.report.report_store import Made, Wanted, make_store


def quality(rows: list[tuple[str, str, float | None, float | None, float | None]]) -> pa.Table:
    names = ("patch_id", "sr", "hallucination_share", "improvement_share", "psnr_db")
    rest = {"config": "c", "clipped_share": 0.0}
    return pa.Table.from_pylist([{**dict(zip(names, row, strict=True)), **rest} for row in rows], SR_QUALITY)


def test_the_worst_the_median_and_the_best_by_the_networks_detail() -> None:
    """Harm: a -0.1, b 0.2 (mean of 0.4 and 0), c 0.3, d 0; e unknown, f and w left as they are; bicubic not asked."""
    table = quality(
        [
            ("a", "hat", 0.1, 0.2, 40.0),
            ("b", "hat", 0.5, 0.1, 1.0),
            ("b", "gan", 0.1, 0.1, 1.0),
            ("c", "hat", 0.3, 0.0, 2.0),
            ("d", "gan", 0.2, 0.2, 3.0),
            ("e", "hat", None, None, 0.0),
            ("f", "hat", 0.09, 0.0, 60.0),
            ("w", "hat", 0.0, 0.0, 90.0),
            ("a", "bicubic", 1.0, 0.0, 0.0),
        ]
    )
    assert choose_patches(table) == {"c": "worst", "b": "median", "a": "best"}


def test_few_patches_and_no_detail() -> None:
    assert choose_patches(quality([("a", "hat", 0.1, 0.2, 40.0)])) == {"a": "worst"}
    two = quality([("a", "hat", 0.1, 0.2, 40.0), ("b", "hat", 0.2, 0.2, 40.0)])
    assert choose_patches(two) == {"b": "worst", "a": "best"}
    by_psnr = quality([("a", "hat", None, None, 40.0), ("b", "hat", None, None, 30.0), ("c", "hat", None, None, 35.0)])
    assert choose_patches(by_psnr) == {"b": "worst", "c": "median", "a": "best"}
    assert choose_patches(quality([("a", "bicubic", 0.5, 0.0, 1.0), ("b", "bicubic", 0.0, 0.5, 2.0)])) == {
        "a": "worst",
        "b": "best",
    }
    flat = quality([("a", "hat", 0.01, 0.0, 1.0), ("b", "hat", 0.0, 0.01, 2.0)])
    assert choose_patches(flat) == {"a": "worst", "b": "best"}
    assert choose_patches(quality([])) == {}


def test_the_busiest_third_is_found() -> None:
    picture = np.full((120, 120, 3), 100, np.uint8)
    assert busiest(picture) == (0, 0)
    picture[50:90:2, 70:110] = 255
    assert busiest(picture) == (50 / 120, 70 / 120)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_store(tmp_path_factory.mktemp("strips") / "store")


@pytest.fixture(scope="module")
def strips(made: Made) -> list[Strip]:
    return make_strips(Numbers(made.paths))


def pixels(picture: Picture | None) -> NDArray[Any]:
    assert picture is not None
    return np.asarray(Image.open(io.BytesIO(base64.b64decode(picture.uri.split(",")[1]))).convert("RGB"))


def test_a_strip_shows_the_same_ground_on_every_branch(made: Made, strips: list[Strip]) -> None:
    """Blocks of 20 pixels: a third holds two by two of them, and starts where a block does, or between."""
    assert [(strip.patch_id, strip.rank) for strip in strips] == [("p0", "worst"), ("p1", "median"), ("p3", "best")]
    strip = strips[1]
    assert [cell.sr for cell in strip.cells] == ["none", "bicubic", "srresnet"]
    rgb = made.dn[1, [2, 1, 0]].transpose(1, 2, 0)
    whole = np.rint(255 * (np.minimum(rgb, 3000) / 3000.0) ** (2 / 3)).astype(np.uint8)
    spread = {(y, x): whole[y : y + 40, x : x + 40].mean(2).std() for y in range(0, 81, 10) for x in range(0, 81, 10)}
    y, x = max(spread, key=lambda place: spread[place])
    shown = pixels(strip.cells[0].picture)
    np.testing.assert_array_equal(shown, np.kron(whole[y : y + 40, x : x + 40], np.ones((6, 6, 1), np.uint8)))
    assert [pixels(cell.picture).shape for cell in strip.cells[1:]] == [(160, 160, 3)] * 2
    enlarged = pixels(strip.cells[1].picture).reshape(40, 4, 40, 4, 3).mean(axis=(1, 3))
    assert np.abs(enlarged - whole[y : y + 40, x : x + 40]).mean() < 8  # bicubic rings at edges, WebP adds its own
    assert strip.place == "Austria, summer, 2017-06-13"


def test_figures_are_the_patch_s_own_and_the_rule_is_applied(strips: list[Strip]) -> None:
    """srresnet makes up 0.375 of p1 and 0.125 of p3, where it recovers 0.125."""
    for strip, psnr, made_up, flagged in ((strips[1], "32.00", "37.5", True), (strips[2], "34.00", "12.5", False)):
        none, bicubic, srresnet = strip.cells
        assert (none.figures, none.faults, bicubic.faults) == ([], [], [])
        assert [text for _, text in srresnet.figures] == [psnr, "0.750", "12.5", made_up, "15.00"]
        assert bool(srresnet.faults) == flagged
    assert strips[0].cells[1].figures[1][1] == NULL  # null in the table


def test_without_pixels_or_measures_there_are_none(tmp_path: Path) -> None:
    assert make_strips(Numbers(make_store(tmp_path / "a", Wanted(sr=("none",))).paths)) == []
