"""The map, the list and the address say the same, whatever comes first, fails, or is too much."""

import math
import re

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from tests.chromium import OpenPage, open_page
from tests.explorer.oracle import frame
from tests.explorer.pages import coloured, ready, settled, shown
from tests.explorer.store import Made, N

BLUE = (0, 114, 178)
SETTLED_MS = 400  # longer than the map waits until it is at rest
BOX = ("west", "south", "east", "north")


def mercator(lon: float, lat: float) -> tuple[float, float]:
    """Return a place on the square of Web Mercator, 0 to 1, y downwards (EPSG:3857)."""
    return (lon + 180) / 360, 0.5 - math.asinh(math.tan(math.radians(lat))) / (2 * math.pi)


def around(made: Made, country: str) -> list[float]:
    """Return a box, degrees, around the patches of a country."""
    rows = frame(made)
    rows = rows[rows["country"] == country]
    lon, lat = rows["lon"], rows["lat"]
    return [round(value, 5) for value in (lon.min() - 0.01, lat.min() - 0.01, lon.max() + 0.01, lat.max() + 0.01)]


def address_of(box: list[float]) -> str:
    return "&".join(f"{name}={value}" for name, value in zip(BOX, box, strict=True))


def box_of(page: Page) -> list[float]:
    """Return the box in the page's address."""
    return [float(re.search(rf"{name}=([\d.-]+)", page.url)[1]) for name in BOX]  # type: ignore[index]


def test_the_map_shows_what_was_asked_last(opened: OpenPage) -> None:
    """Finland is asked for, and left again before its answer is there: the answer is of no use any more."""
    page, held = opened.page, list[Route]()
    settled(page)
    everything = coloured(page, BLUE)
    page.route("**/api/selection?country=Finland", lambda route: held.append(route))  # noqa: PLW0108
    page.locator("input[name=country][value=Finland]").check()
    shown(page, 30 - 1)
    page.go_back()
    shown(page, N)
    page.wait_for_timeout(100)
    assert len(held) == 1
    held[0].continue_()
    page.wait_for_timeout(SETTLED_MS)
    settled(page)
    assert coloured(page, BLUE) == everything


def test_a_filter_that_failed_is_asked_for_again(browser: Browser, address: str) -> None:
    with open_page(browser, address) as found:
        page = found.page
        ready(page)
        settled(page)
        everything = coloured(page, BLUE)
        page.route("**/api/selection?country=Finland", lambda route: route.abort(), times=1)
        finland = page.locator("input[name=country][value=Finland]")
        finland.check()
        expect(page.locator("#status")).not_to_be_empty()
        finland.uncheck()
        shown(page, N)
        expect(page.locator("#status")).to_be_empty()
        finland.check()
        shown(page, 30 - 1)
        page.wait_for_timeout(SETTLED_MS)
        assert 0 < coloured(page, BLUE) < everything


def test_patches_beyond_those_whose_corners_are_told_are_points(
    browser: Browser, address: str, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Five of Austria's 30 patches have footprints here; all are in the map."""
    for module in ("app", "footprints"):
        monkeypatch.setattr(f"explorer.{module}.MOST_POLYGONS", 5)
    west, south, east, north = around(made, "Austria")
    with open_page(browser, "about:blank") as found:
        page, told = found.page, list[bytes]()

        def overheard(route: Route) -> None:
            answer = route.fetch()
            told.append(answer.body())
            route.fulfill(response=answer)

        page.route("**/api/footprints?*", overheard)
        page.goto(f"{address}#/?country=Austria&{address_of([west, south, east, north])}")
        ready(page)
        page.wait_for_timeout(SETTLED_MS)
        settled(page)
        assert {len(footprints) for footprints in told} == {5 * 36}
        width, height = page.evaluate("(c => [c.width, c.height])(document.getElementById('map-points'))")
        (left, top), (right, bottom) = mercator(west, north), mercator(east, south)
        scale = min(width / (right - left), height / (bottom - top))
        rows = frame(made)
        rows = rows[(rows["country"] == "Austria") & rows["lon"].notna()]
        for lon, lat in rows[["lon", "lat"]].itertuples(index=False):
            x, y = mercator(lon, lat)
            place = [width / 2 + (x - (left + right) / 2) * scale, height / 2 + (y - (top + bottom) / 2) * scale]
            script = "p => [...document.getElementById('map-points').getContext('2d').getImageData(...p, 1, 1).data]"
            assert page.evaluate(script, [round(value) for value in place]) == [*BLUE, 255], (lon, lat)
        found.assert_quiet()


def test_a_page_of_what_the_map_shows_outlives_a_reload(opened: OpenPage, made: Made) -> None:
    page = opened.page
    with_place = int(frame(made)["lon"].notna().sum())
    page.get_by_label("List only what the map shows").check()
    shown(page, with_place)
    page.get_by_role("button", name="Next").click()
    expect(page.locator("#page")).to_have_text("page 2 of 2")
    before, whole = page.url, box_of(page)
    assert "page=2" in before
    page.reload()
    ready(page)
    page.wait_for_timeout(SETTLED_MS)
    settled(page)
    assert page.url == before
    expect(page.locator("#page")).to_have_text("page 2 of 2")
    page.locator("#map-points").focus()
    page.keyboard.press("+")  # another map is another list, from its beginning
    expect(page).not_to_have_url(re.compile("page=2"))
    after = box_of(page)
    assert after[2] - after[0] == pytest.approx((whole[2] - whole[0]) / 2, abs=1e-3)


def test_the_map_follows_the_address(opened: OpenPage, made: Made) -> None:
    page, box = opened.page, around(made, "Austria")
    page.evaluate("hash => { location.hash = hash }", f"#/?{address_of(box)}")
    shown(page, int((frame(made)["country"] == "Austria").sum()))
    page.wait_for_timeout(SETTLED_MS)
    assert box_of(page) == box
    page.locator("#map-points").focus()
    page.keyboard.press("+")  # twice as near to its middle
    expect(page).not_to_have_url(re.compile(re.escape(address_of(box))))
    west, south, east, north = box_of(page)
    assert (west + east) / 2 == pytest.approx((box[0] + box[2]) / 2, abs=1e-4)
    assert box[0] < west or box[1] < south
    page.go_back()
    page.go_forward()
    shown(page, int((frame(made)["lon"].between(west, east) & frame(made)["lat"].between(south, north)).sum()))
