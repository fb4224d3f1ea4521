"""The page in a browser: each control does what it says, quietly, for everybody."""

import re
from pathlib import Path
from urllib.parse import quote

import pytest
from playwright.sync_api import Browser, expect

from explorer.app import make_app
from infra.bigearthnet.classes import NAMES
from tests.chromium import OpenPage, accessibility_findings, open_page, scrolls_sideways
from tests.explorer.conftest import served
from tests.explorer.oracle import are, frame
from tests.explorer.pages import coloured, loaded, ready, settled, shown
from tests.explorer.store import METHODS, NASTY, SHARD, SLASHED, Made, N


def test_filters_and_the_address_keep_step(opened: OpenPage, made: Made) -> None:
    page, rows = opened.page, frame(made, "srresnet")
    shown(page, N)
    expect(page.get_by_label("Reliability from")).to_be_disabled()
    page.locator("input[name=country][value=Finland]").check()
    finland = rows[rows["country"] == "Finland"]
    shown(page, len(finland))
    assert "country=Finland" in page.url
    page.locator("select[name=branch]").select_option(label="resnet18 on srresnet")
    page.locator("select[name=outcome]").select_option("wrong")
    wrong = finland[are(finland, "wrong")]
    shown(page, len(wrong))
    expect(page.locator("#grid .verdict").first).to_contain_text("✗ wrong")
    middle = float(wrong["least"].median())
    page.get_by_label("to", exact=True).fill(str(middle))
    expect(page).to_have_url(re.compile("reliability_max="))
    shown(page, int((wrong["least"] <= middle).sum()))
    page.go_back()
    shown(page, len(wrong))
    expect(page.get_by_label("to", exact=True)).to_have_value("")
    page.get_by_role("button", name="Clear all filters").click()
    shown(page, N)
    page.locator(f"input[name=label][value='{NAMES[4]}']").check()
    shown(page, int(rows["labels"].map(lambda labels: NAMES[4] in (labels or ())).sum()))
    page.reload()
    ready(page)
    expect(page.locator(f"input[name=label][value='{NAMES[4]}']")).to_be_checked()


def test_text_search_pages_and_order(opened: OpenPage, made: Made) -> None:
    page = opened.page
    page.get_by_label("Patch id contains").fill("s2a_201703")
    shown(page, sum("S2A_201703" in row["patch_id"] for row in made.rows))
    page.get_by_label("Patch id contains").fill("")
    shown(page, N)
    expect(page.locator("#page")).to_have_text("page 1 of 2")
    expect(page.get_by_role("button", name="Previous")).to_be_disabled()
    first = set(page.locator("#grid .id").all_inner_texts())
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#grid > li")).to_have_count(N - 48)
    expect(page.get_by_role("button", name="Next")).to_be_disabled()
    assert not first & set(page.locator("#grid .id").all_inner_texts())
    page.locator("#order").select_option("id")
    expect(page.locator("#grid .id").first).to_have_text(frame(made)["patch_id"][0])
    assert page.locator("#order option[value=reliability]").is_disabled()


def test_the_map_shows_selects_and_leads_to_patches(opened: OpenPage, made: Made) -> None:
    page, blue, orange = opened.page, (0, 114, 178), (230, 159, 0)
    canvas = page.locator("#map-points")
    settled(page)
    everything = coloured(page, blue)
    assert everything > 0
    page.locator("input[name=country][value=Austria]").check()
    shown(page, 30 - 0)
    settled(page)
    assert 0 < coloured(page, blue) < everything
    page.locator("#colour-by").select_option("country")
    expect(page.locator("#legend")).to_contain_text("Finland")
    page.locator("input[name=country][value=Austria]").uncheck()
    settled(page)
    assert coloured(page, blue) > 0  # Austria
    assert coloured(page, orange) > 0  # Finland
    # Keys: to Austria in the south, near enough for footprints, and what lies in the middle.
    canvas.focus()
    for _ in range(4):
        page.keyboard.press("ArrowDown")
    page.keyboard.press("+")
    settled(page)
    page.get_by_label("List only what the map shows").check()
    rows = frame(made)
    north = float(re.search(r"north=([\d.-]+)", page.url)[1])  # type: ignore[index]
    shown(page, int((rows["lat"] <= north).sum()))
    assert 0 < int((rows["lat"] <= north).sum()) < N
    page.get_by_label("List only what the map shows").uncheck()
    canvas.focus()
    page.keyboard.press("0")
    settled(page)
    assert coloured(page, orange) > 0


def test_a_click_on_the_map_lists_what_lies_there(opened: OpenPage, made: Made) -> None:
    page = opened.page
    box = page.locator("#map-points").bounding_box()
    assert box is not None
    # `Fit` puts the middle between both countries into the middle: a place of the northern one is found by its pixels.
    place = page.evaluate("""() => { const c = document.getElementById('map-points'), w = c.width,
        d = c.getContext('2d').getImageData(0, 0, w, c.height).data;
        for (let i = 0; i < d.length; i += 4) if (d[i + 2] === 178 && d[i + 3] === 255)
          return [(i / 4) % w, Math.floor(i / 4 / w)]; }""")
    page.mouse.click(box["x"] + place[0] + 1, box["y"] + place[1] + 1)
    expect(page.locator("#here h3")).to_contain_text("here")
    countries = set(page.locator("#here .facts:nth-of-type(3)").all_inner_texts())
    assert page.locator("#here li").count() > 0, countries
    page.locator("#here").get_by_role("button", name="Close").click()
    expect(page.locator("#here")).to_be_hidden()
    page.mouse.click(box["x"] + 5, box["y"] + box["height"] / 2)
    expect(page.locator("#here h3")).to_have_text("No patch here")


def test_a_patch_and_its_way_back(opened: OpenPage, made: Made) -> None:
    page, row = opened.page, made.rows[0]
    page.locator("input[name=country][value=Austria]").check()
    shown(page, 30)
    page.get_by_label("Patch id contains").fill(row["patch_id"])
    shown(page, 1)
    page.locator("#grid a").click()
    expect(page.locator("#patch h2")).to_have_text(row["patch_id"])
    expect(page.locator("#patch dl")).to_contain_text(f"{row['acquired']}")
    for label in row["labels"]:
        expect(page.locator("#patch dl")).to_contain_text(label)
    expect(page.locator("#pixels figcaption")).to_have_count(3)
    loaded(page, "#patch img")
    expect(page.locator("#around li").first).to_contain_text("the same ground")
    page.locator("#around li").nth(1).get_by_role("link").click()
    expect(page.locator("#patch h2")).not_to_have_text(row["patch_id"])
    page.keyboard.press("Escape")
    shown(page, 1)
    expect(page.locator("input[name=country][value=Austria]")).to_be_checked()


def test_the_slider_uncovers_the_sr_model_by_keys_and_pointer(opened: OpenPage, made: Made) -> None:
    page = opened.page
    page.goto(f"{page.url.split('#')[0]}#/patch/{made.rows[0]['patch_id']}")
    figures = page.locator("#resolved .compare")
    expect(figures).to_have_count(2)
    expect(figures.nth(1).locator("img").first).to_have_attribute("src", re.compile("^/api/patch/input.png"))
    expect(figures.nth(1)).to_contain_text("srresnet")
    slider, over = figures.nth(1).get_by_role("slider"), figures.nth(1).locator(".over")
    slider.focus()
    page.keyboard.press("End")
    expect(over).to_have_css("clip-path", "inset(0px 0px 0px 100%)")
    page.keyboard.press("ArrowLeft")
    expect(over).to_have_css("clip-path", "inset(0px 0px 0px 99%)")
    page.keyboard.press("Home")
    expect(over).to_have_css("clip-path", "inset(0px 0px 0px 0%)")
    stage = figures.nth(1).locator(".stage")
    stage.scroll_into_view_if_needed()
    box = stage.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + 0.25 * box["width"], box["y"] + 20)
    expect(slider).to_have_value("25")
    expect(figures.nth(0).get_by_role("slider")).to_have_value("50")


def test_what_the_network_says_and_where_it_looks(opened: OpenPage, made: Made) -> None:
    page, i = opened.page, 2
    row = made.rows[i]
    branch = made.branches["none"]
    page.goto(f"{page.url.split('#')[0]}#/patch/{quote(row['patch_id'], safe='')}?branch={branch}")
    expect(page.locator("#sr option:checked")).to_have_text("none")
    line = page.locator("#decided tr", has=page.get_by_text(row["labels"][0], exact=True))
    expect(line).to_contain_text("yes")
    expect(line).to_contain_text(f"{made.probs['none'][i, NAMES.index(row['labels'][0])]:.3f}")
    expect(line).to_contain_text(f"{made.probs['srresnet'][i, NAMES.index(row['labels'][0])]:.3f}")
    expect(page.locator("#looked")).to_be_hidden()  # nothing was explained without SR
    page.locator("#sr").select_option(label="srresnet")
    expect(page.locator("#looked figure")).to_have_count(len(METHODS))
    score = made.reliability["srresnet"][i, NAMES.index(row["labels"][-1])]
    line = page.locator("#decided tr", has=page.get_by_text(row["labels"][-1], exact=True))
    if score == score:
        expect(line.locator(".number").last).to_have_text(f"{score:.2f}")
        expect(line.locator("canvas.prototype")).to_be_visible()
    page.locator("#sr").select_option(label="bicubic")
    expect(page.locator("#decided thead").first).not_to_contain_text("Reliability")
    page.locator("#sr").select_option(label="srresnet")
    page.locator("#map-label").select_option(NAMES[6])
    loaded(page, "#maps .map")
    one = page.locator("#maps .map").first.get_attribute("src")
    page.locator("#map-label").select_option(NAMES[8])
    expect(page.locator("#maps .map").first).not_to_have_attribute("src", str(one))
    expect(page.locator("#maps .map").first).to_have_attribute("alt", f"Grad-CAM map of {NAMES[8]}")
    page.locator("#opacity").focus()
    page.keyboard.press("Home")
    expect(page.locator("#maps .map").first).to_have_css("opacity", "0")
    page.keyboard.press("End")
    expect(page.locator("#maps .map").first).to_have_css("opacity", "1")
    page.locator("#map-label").select_option(NAMES[1])
    expect(page.locator("#maps")).to_contain_text("nowhere above 0")


def test_a_name_is_text_and_never_markup(opened: OpenPage) -> None:
    page = opened.page
    page.on("dialog", lambda dialog: pytest.fail(dialog.message))
    page.get_by_label("Patch id contains").fill("onerror")
    shown(page, 1)
    expect(page.locator("#grid .id")).to_have_text(NASTY)
    page.locator("#grid a").click()
    expect(page.locator("#patch h2")).to_have_text(NASTY)
    loaded(page, "#pixels img")


def test_a_name_with_slashes_has_a_page(opened: OpenPage) -> None:
    page = opened.page
    page.get_by_label("Patch id contains").fill("forest/")
    shown(page, 1)
    loaded(page, "#grid img")
    page.locator("#grid a").click()
    expect(page.locator("#patch h2")).to_have_text(SLASHED)
    assert f"#/patch/{quote(SLASHED, safe='')}?" in page.url
    page.reload()
    expect(page.locator("#patch h2")).to_have_text(SLASHED)
    page.locator("#sr").select_option(label="srresnet")
    loaded(page, "#patch img:not([loading])")
    expect(page.locator("#looked figure")).to_have_count(len(METHODS))
    expect(page.locator("#around li").first).to_be_visible()


def test_a_store_without_a_run_hides_what_it_lacks(browser: Browser, unfinished: Path, made: Made) -> None:
    with served(make_app(unfinished)) as url, open_page(browser, url) as found:
        page = found.page
        ready(page)
        shown(page, N)
        expect(page.locator("#about")).to_contain_text("no run has ended here")
        expect(page.locator("select[name=branch]")).to_have_count(0)
        page.goto(f"{url}#/patch/{made.rows[0]['patch_id']}")
        loaded(page, "#pixels img")
        expect(page.locator("#around li").first).to_be_visible()
        expect(page.locator("#decided, #looked, #resolved")).to_have_count(0)
        page.goto(f"{url}#/patch/{made.rows[SHARD]['patch_id']}")
        expect(page.locator("#patch")).to_contain_text("The pixels of this patch are not in archive.zarr.")
        found.assert_quiet()


@pytest.mark.parametrize(("width", "dark"), [(1280, False), (1280, True), (390, False)])
def test_nobody_is_shut_out(browser: Browser, address: str, made: Made, width: int, *, dark: bool) -> None:
    with open_page(browser, address, width, dark=dark) as found:
        page = found.page
        ready(page)
        if width < 600:
            page.locator("#filter-box summary").click()
        assert accessibility_findings(page) == []
        assert not scrolls_sideways(page)
        page.goto(f"{address}#/patch/{quote(SLASHED, safe='')}?branch={made.branches['srresnet']}")
        loaded(page, "#patch img:not([loading])")
        assert accessibility_findings(page) == []
        assert not scrolls_sideways(page)
        found.assert_quiet()


def test_an_unknown_patch_is_told(browser: Browser, address: str) -> None:
    with open_page(browser, f"{address}#/patch/nobody") as found:
        expect(found.page.locator("#status")).to_contain_text("this store has no patch 'nobody'")
        assert not found.strangers
