"""What the service does not answer is told, and nothing else is shown in its place."""

import json
import re
from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page, Route, expect

from infra.bigearthnet.classes import NAMES
from tests.chromium import open_page
from tests.explorer.pages import coloured, loaded, ready, settled
from tests.explorer.store import METHODS, Made

BLUE = (0, 114, 178)
TOLD = "the store cannot be read: it rests."


@pytest.fixture
def page(browser: Browser, address: str) -> Iterator[Page]:
    """The page, whose console may tell of answers that failed."""
    with open_page(browser, address) as found:
        ready(found.page)
        yield found.page
        assert not found.strangers
        assert all("503" in error for error in found.errors), found.errors


def refuse(route: Route) -> None:
    route.fulfill(status=503, json={"detail": TOLD.removesuffix(".")})


def to_patch(page: Page, made: Made, i: int = 0) -> None:
    branch = made.branches["srresnet"]
    page.evaluate("hash => { location.hash = hash }", f"#/patch/{made.rows[i]['patch_id']}?branch={branch}")


def test_maps_of_the_label_before_are_not_left_standing(page: Page, made: Made) -> None:
    to_patch(page, made)
    page.locator("#map-label").select_option(NAMES[6])
    loaded(page, "#maps .map")
    page.route("**/api/patch/maps?*", refuse)
    page.locator("#map-label").select_option(NAMES[8])
    expect(page.locator("#status")).to_have_text(TOLD)
    expect(page.locator("#maps")).to_have_text("These maps cannot be shown.")
    expect(page.locator("#maps img")).to_have_count(0)
    page.unroute("**/api/patch/maps?*")
    page.locator("#map-label").select_option(NAMES[6])
    expect(page.locator("#maps figure")).to_have_count(len(METHODS))
    expect(page.locator("#status")).to_be_empty()


def test_nothing_can_be_chosen_among_answers_that_are_not_there(page: Page, made: Made) -> None:
    held: list[Route] = []
    page.route("**/api/patch/branch?*", lambda route: held.append(route))  # noqa: PLW0108
    to_patch(page, made)
    expect(page.locator("#sr")).to_be_disabled()
    expect(page.locator("#decided")).to_contain_text("Reading what the network says")
    page.wait_for_timeout(100)
    assert len(held) == 3
    for route in held:
        route.continue_()
    page.unroute("**/api/patch/branch?*")
    expect(page.locator("#sr")).to_be_enabled()
    expect(page.locator("#resolved .compare")).to_have_count(2)
    page.route("**/api/patch/branch?*", refuse)
    page.locator("#classifier").dispatch_event("change")
    expect(page.locator("#status")).to_have_text(TOLD)
    expect(page.locator("#decided")).to_contain_text("What this network says cannot be shown.")
    expect(page.locator("#sr")).to_be_disabled()
    expect(page.locator("#decided table")).to_have_count(0)
    expect(page.locator("#resolved, #looked").filter(visible=True)).to_have_count(0)


def test_colours_of_the_choice_before_are_not_left_standing(page: Page) -> None:
    settled(page)
    everything = coloured(page, BLUE)
    page.locator("#colour-by").select_option("country")
    expect(page.locator("#legend")).to_contain_text("Finland")
    settled(page)
    assert 0 < coloured(page, BLUE) < everything
    page.route("**/api/colours?*", refuse)
    page.locator("#colour-by").select_option("season")
    expect(page.locator("#status")).to_have_text(TOLD)
    expect(page.locator("#legend")).to_be_empty()
    assert coloured(page, BLUE) == everything  # all alike
    page.unroute("**/api/colours?*")
    page.locator("#colour-by").select_option("country")
    expect(page.locator("#legend")).to_contain_text("Finland")
    expect(page.locator("#status")).to_be_empty()


def test_a_cluster_without_samples_has_no_share_of_errors(page: Page, made: Made) -> None:
    """Told so, and not as 0 %, which would be the best there is."""

    def empty(route: Route) -> None:
        found = route.fetch().json()
        for line in found["labels"]:
            if line["of_cluster"]:
                line["of_cluster"].update(n=0, error_rate=None)
        route.fulfill(body=json.dumps(found), content_type="application/json")

    page.route("**/api/patch/branch?*", empty)
    to_patch(page, made)
    expect(page.locator("#decided .cluster").first).to_have_text(re.compile(r"^[01]: no samples$"))
