"""The report's page in Chromium: each control does what it says, by pointer and by keys, in both lights, on a phone."""

import re
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from playwright.sync_api import Browser, Locator, Page, expect

from infra.bigearthnet.classes import NAMES
from infra.storage import StorePaths
from infra.tables import RUNS, publish, read_table
from tasks.report.cells import NULL
from tasks.report.page import write_report
from tests.chromium import accessibility_findings, open_page, scrolls_sideways
from tests.tasks.gallery_store import add_maps, bright
from tests.tasks.report.report_store import AP, CLASSIFIERS, F2, SR, WIDTH, Wanted, make_store
from tests.tasks.report.test_reliability import make

LARGEST = 10_000_000
"""Bytes that a page may have."""


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """The page of a study of three seeds, with maps of several methods, reliability, and hours of devices."""
    paths = make(
        tmp_path_factory.mktemp("browser") / "store",
        wanted=Wanted(sr=("hr", *SR), seeds=(7, 8, 9), study=True, judged="located"),
    )
    maps = np.stack([bright("upper right")] * len(NAMES))
    for sr in SR:
        for method in ("eigen_cam", "score_cam"):
            add_maps(paths, sr, method, maps if method == "eigen_cam" else maps[:, ::-1])
    _count_hours(paths)
    page = write_report(paths, paths.root / "elsewhere" / "page.html")
    assert page.stat().st_size < LARGEST
    return page.as_uri()


def _count_hours(paths: StorePaths) -> None:
    """Two stages on cores and one on a GPU: 0.5 + 1.5 core-hours, of which 1 busy, and 2 of a GPU, all busy."""
    (file,) = paths.table("runs").glob("*.parquet")
    (row,) = read_table(paths.table("runs")).to_pylist()
    (stage,) = row["stages"]
    row["stages"] = [
        {**stage, "stage": name, "seconds": seconds, "device": device, "devices": 2.0, "workers": 1}
        | {"device_hours": hours, "busy_device_hours": busy}
        for name, seconds, device, hours, busy in (
            ("ingest", 30.0, "cpu", 0.5, 0.25),
            ("predict none", 8.0, "cpu", 1.5, 0.75),
            ("predict bicubic", 90.0, "NVIDIA H200", 2.0, 2.0),
        )
    ]
    publish(paths.table("runs"), pa.Table.from_pylist([row], RUNS), RUNS, [], file_stem=file.stem.rpartition("-")[0])


def column(table: Locator, index: int) -> list[str]:
    """Texts of a column's cells, white space as one blank."""
    texts = table.locator(f"tbody tr > :nth-child({index + 1})").all_text_contents()
    return [" ".join(text.split()) for text in texts]


def tip(page: Page) -> str:
    return page.locator("#tip").inner_text().replace("\N{MINUS SIGN}", "-")


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [1280, 390])
def test_nobody_is_kept_out_and_nothing_is_fetched(browser: Browser, url: str, width: int, dark: bool) -> None:
    """As it opens; and with all that is folded opened, once in each light and at each width."""
    with open_page(browser, url, width, 844, dark=dark) as opened:
        page = opened.page
        if dark == (width < 600):
            for details in page.locator("details:not([open]) > summary").all():
                if details.is_visible():
                    details.click()
            page.get_by_role("button", name="All patches").click()
        assert not scrolls_sideways(page)
        wide = page.eval_on_selector_all(".scroll", "all => all.filter(e => e.scrollWidth > e.clientWidth).length")
        assert width > 600 or wide > 0  # wide tables scroll in their own place
        assert accessibility_findings(page) == []
        opened.assert_quiet()


def test_tables_sort_by_pointer_and_by_key(browser: Browser, url: str) -> None:
    with open_page(browser, url) as opened:
        table = opened.page.locator("#metrics-table")
        heads = [text.strip() for text in table.locator("thead th").all_text_contents()]
        at = next(i for i, text in enumerate(heads) if text.startswith("AP macro"))
        head = table.locator("thead th").nth(at)
        rising = sorted(AP.values())
        head.get_by_role("button").click()
        expect(head).to_have_attribute("aria-sort", "ascending")
        assert [float(text) for text in column(table, at)] == pytest.approx(rising, abs=5e-4)
        head.get_by_role("button").press("Enter")
        expect(head).to_have_attribute("aria-sort", "descending")
        assert [float(text) for text in column(table, at)] == pytest.approx(rising[::-1], abs=5e-4)
        table.locator("thead th").nth(1).get_by_role("button").click()
        assert head.get_attribute("aria-sort") is None
        assert column(table, 1) == sorted(CLASSIFIERS * 4)
        opened.assert_quiet()


def test_sorted_lines_keep_what_belongs_to_them(browser: Browser, url: str) -> None:
    """A difference stays under its model, countries stay above seasons, the macro mean below the labels."""
    with open_page(browser, url) as opened:
        page = opened.page
        quality = page.locator("#quality-table")
        for _ in range(2):
            quality.locator("thead th").nth(2).get_by_role("button").click()
        names = [name.split()[0] for name in column(quality, 0)]
        assert names == ["srresnet", "srresnet", "bicubic"]  # 32.5, its difference of 1, 31.5 dB
        places = page.locator("#country-minus-resnet18")
        places.locator("thead th").nth(1).get_by_role("button").click()
        assert column(places, 0) == ["Austria", "Ireland", "winter", "summer"]
        places.locator("thead th").nth(0).get_by_role("button").click()
        assert column(places, 0) == ["Austria", "Ireland", "summer", "winter"]
        opened.assert_quiet()


def test_the_switch_turns_colours_and_is_remembered(browser: Browser, url: str) -> None:
    with open_page(browser, url) as opened:
        page = opened.page

        def paper() -> str:
            return str(page.evaluate("getComputedStyle(document.body).backgroundColor"))

        assert paper() == "rgb(251, 250, 247)"
        switch = page.locator("#theme")
        expect(switch).to_have_text("Dark colours")
        switch.press("Space")
        assert paper() == "rgb(20, 23, 27)"
        expect(switch).to_have_text("Light colours")
        page.reload()
        assert paper() == "rgb(20, 23, 27)"
        switch.click()
        assert paper() == "rgb(251, 250, 247)"
        page.emulate_media(color_scheme="dark")
        assert paper() == "rgb(251, 250, 247)"  # what its user chose counts
        opened.assert_quiet()


def test_a_line_tells_its_values_under_the_pointer_and_by_arrow_keys(browser: Browser, url: str) -> None:
    """Validation macro AP of a seed is 0.5, 0.625, 0.6 off by the seed's place, and the third has 0.55 more."""
    with open_page(browser, url) as opened:
        page = opened.page
        chart = page.locator('svg[aria-label^="Validation macro AP per epoch: resnet18"]')
        chart.focus()
        page.keyboard.press("Shift+Tab")
        page.keyboard.press("Tab")
        expect(chart).to_be_focused()
        first = tip(page)
        assert re.fullmatch(r"none, seed 7: epoch 0, 0\.484", first), first
        page.keyboard.press("ArrowRight")
        assert tip(page) == "none, seed 7: epoch 1, 0.609"
        page.keyboard.press("End")
        assert tip(page) == "none, seed 7: epoch 2, 0.584"
        page.keyboard.press("ArrowRight")
        assert tip(page) == "none, seed 7: epoch 2, 0.584"
        page.keyboard.press("ArrowDown")
        assert tip(page) == "none, seed 8: epoch 2, 0.600"
        page.keyboard.press("Escape")
        expect(page.locator("#tip")).to_be_hidden()
        mark = chart.locator("circle.mark").first.bounding_box()
        assert mark is not None
        page.mouse.move(mark["x"] + mark["width"] / 2, mark["y"] + mark["height"] / 2)
        assert re.fullmatch(r"none, seed 7: epoch 1, 0\.609", tip(page))
        page.mouse.move(2, 2)
        expect(page.locator("#tip")).to_be_hidden()
        opened.assert_quiet()


def test_bars_and_bins_tell_their_counts(browser: Browser, url: str) -> None:
    with open_page(browser, url) as opened:
        page = opened.page
        for name, words in (
            ("Decisions by cluster, fit", "cluster 1: 30 true positives of 100"),
            ("Share of true labels by probability: resnet18", "none: 0.125 of those at 0.062"),
        ):
            chart = page.locator(f'svg[aria-label^="{name}"]').first
            chart.scroll_into_view_if_needed()
            chart.evaluate("element => element.focus({ focusVisible: true })")
            assert tip(page) == words
        page.keyboard.press("ArrowDown")
        assert "decisions from 0 to 0.25" in tip(page) or "of those at" in tip(page)
        opened.assert_quiet()


def test_a_heat_map_tells_its_intervals_by_keys(browser: Browser, url: str) -> None:
    with open_page(browser, url, 390, 844) as opened:
        page = opened.page
        region = page.locator(".scroll:has(#label-minus-resnet18)")
        region.evaluate("element => element.focus({ focusVisible: true })")
        page.keyboard.press("ArrowRight")
        value, width = F2["srresnet"] - F2["bicubic"], WIDTH["resnet18"]
        assert tip(page).startswith(f"Urban fabric, srresnet: {value:+.3f} ✓")
        assert tip(page).endswith(f"95 % interval {value - width:+.3f} to {value + width:+.3f}")
        page.keyboard.press("ArrowRight")
        assert tip(page).startswith("Urban fabric, hr ceiling: +0.125")
        cell = page.locator("#label-minus-resnet18 td.spot").bounding_box()
        assert cell is not None
        assert cell["x"] >= 0
        assert cell["x"] + cell["width"] <= 390  # it was scrolled to
        opened.assert_quiet()


def test_intervals_and_hints_are_told_by_keys_and_pointer(browser: Browser, url: str) -> None:
    with open_page(browser, url) as opened:
        page = opened.page
        chart = page.locator('.forest[aria-label^="Macro average precision, resnet18"]')
        chart.evaluate("element => element.focus({ focusVisible: true })")
        low, value, high = (AP["resnet18", "none"] - 1 / 64 + shift for shift in (-0.1, 0, 0.08))
        assert tip(page) == f"none, seed 7: {value:.3f}, {low:.3f} to {high:.3f}"
        head = page.locator("#metrics-table thead th").nth(3).get_by_role("button")
        head.evaluate("element => element.focus({ focusVisible: true })")
        assert tip(page) == "Sample accuracy: common labels over all labels, true or predicted"
        page.locator("#metrics-table thead th").nth(4).hover()
        assert tip(page).startswith("Hamming loss: share of wrong label decisions")
        page.locator("#label-minus-resnet18 td.heat").first.hover()
        assert tip(page).startswith("Urban fabric, none: -0.500 ✓")
        opened.assert_quiet()


def test_the_gallery_shows_one_patch_at_a_time_or_all(browser: Browser, url: str) -> None:
    with open_page(browser, url) as opened:
        page = opened.page
        cards = page.locator("#gallery > .card")
        thumbs = page.locator("#picker .thumb")
        n = cards.count()
        assert n == thumbs.count() == 4

        def shown() -> list[int]:
            return [i for i in range(n) if cards.nth(i).is_visible()]

        assert shown() == [0]
        thumbs.nth(2).click()
        assert shown() == [2]
        expect(thumbs.nth(2)).to_have_attribute("aria-pressed", "true")
        page.keyboard.press("ArrowRight")
        expect(thumbs.nth(3)).to_be_focused()
        assert shown() == [3]
        page.keyboard.press("ArrowRight")
        assert shown() == [0]
        every = page.get_by_role("button", name="All patches")
        every.click()
        assert shown() == [0, 1, 2, 3]
        every.click()
        assert shown() == [0]
        page.evaluate("dispatchEvent(new Event('beforeprint'))")
        assert shown() == [0, 1, 2, 3]
        assert page.locator("details:not([open])").count() == 0
        opened.assert_quiet()


def test_a_price_makes_hours_a_cost(browser: Browser, url: str) -> None:
    with open_page(browser, url) as opened:
        page = opened.page
        table = page.locator("#cost-table")
        assert [text.split()[0] for text in column(table, 0)] == ["cpu", "NVIDIA"]
        assert column(table, 1) == ["2.000", "2.000"]
        assert column(table, 2) == ["50", "100"]
        gpu = page.get_by_label("Price of an hour of NVIDIA H200")
        gpu.fill("2.5")
        assert column(table, 5) == [NULL, "5"]
        assert column(table, 6) == [NULL, "125,000"]  # four patches took two hours
        gpu.fill("")
        assert column(table, 5) == [NULL, NULL]
        opened.assert_quiet()


def test_links_lead_to_their_sections_and_details_open(browser: Browser, url: str) -> None:
    with open_page(browser, url) as opened:
        page = opened.page
        for link in page.locator("nav a").all():
            link.click()
            target = page.locator(str(link.get_attribute("href")))
            expect(target.locator("h2").first).to_be_in_viewport()
        details = page.locator("#configuration details").first
        details.locator("summary").press("Enter")
        expect(details.locator("pre")).to_be_visible()
        opened.assert_quiet()


def test_without_scripts_everything_is_there(browser: Browser, url: str) -> None:
    page = browser.new_page(java_script_enabled=False)
    try:
        page.goto(url)
        assert page.locator("#gallery > .card").count() == 4
        for card in page.locator("#gallery > .card").all():
            expect(card).to_be_visible()
        expect(page.locator("#theme")).to_be_hidden()
        assert page.locator("#metrics-table tbody td[title], .track i[title]").count() > 0  # the browser shows titles
    finally:
        page.close()


def test_a_page_of_a_small_store_is_sound_too(browser: Browser, tmp_path: Path) -> None:
    """One patch that nobody labelled: sections that are empty, one card, nothing to sort."""
    paths = make_store(tmp_path, Wanted(labelled=False, n=1)).paths
    with open_page(browser, write_report(paths).as_uri(), 390, 844) as opened:
        assert not scrolls_sideways(opened.page)
        assert accessibility_findings(opened.page) == []
        expect(opened.page.locator("#picker")).to_be_hidden()
        opened.assert_quiet()
