"""What tests of the page look at."""

from playwright.sync_api import Page, expect

from tests.explorer.store import N


def ready(page: Page) -> None:
    expect(page.locator("#total")).not_to_be_empty()
    expect(page.locator("#map")).to_have_attribute("data-drawn", "")


def settled(page: Page) -> None:
    page.wait_for_load_state("networkidle")
    expect(page.locator("#grid")).not_to_have_attribute("aria-busy", "true")


def shown(page: Page, n: int) -> None:
    expect(page.locator("#total")).to_have_text(f"{n} of {N}")
    expect(page.locator("#grid > li > a")).to_have_count(min(n, 48))


def loaded(page: Page, selector: str) -> None:
    """Wait until all pictures of a part of the page are there."""
    page.wait_for_function(
        "s => { const all = [...document.querySelectorAll(s)];"
        " return all.length && all.every((image) => image.complete && image.naturalWidth) }",
        arg=selector,
    )


def coloured(page: Page, colour: tuple[int, int, int]) -> int:
    """How many pixels of the map have a colour."""
    script = """rgb => { const c = document.getElementById('map-points'), d = c.getContext('2d').getImageData(0, 0,
        c.width, c.height).data; let n = 0; for (let i = 0; i < d.length; i += 4)
        if (d[i] === rgb[0] && d[i + 1] === rgb[1] && d[i + 2] === rgb[2] && d[i + 3] === 255) n++; return n; }"""
    return int(page.evaluate(script, list(colour)))
