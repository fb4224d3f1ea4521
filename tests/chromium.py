"""The system's Chromium, driven by Playwright: what a page says, asks for, and keeps from those who cannot see it."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from urllib.parse import urlsplit

import pytest
from axe_playwright_python.sync_playwright import Axe  # type: ignore[import-untyped]
from playwright.sync_api import Browser, Page, sync_playwright

_PHONE = 600  # viewports narrower than this have fingers
_HERE = frozenset({"localhost", "127.0.0.1", "::1"})
_WITHOUT_HOST = frozenset({"about", "blob", "data", "file"})
_ARGS = (
    "--no-sandbox",  # tests run as root in containers
    "--disable-dev-shm-usage",  # where /dev/shm is small
    "--disable-background-networking",
    "--host-resolver-rules=MAP * ~NOTFOUND, EXCLUDE localhost, EXCLUDE 127.0.0.1",
)


@dataclass(frozen=True, slots=True)
class OpenPage:
    """A page, and what it did that it should not."""

    page: Page
    errors: list[str] = field(default_factory=list)
    """Errors of its console, and exceptions that nothing caught."""
    strangers: list[str] = field(default_factory=list)
    """What it asked of other machines."""

    def assert_quiet(self) -> None:
        """Assert that the page met no error and asked nothing of another machine."""
        assert not self.errors, self.errors
        assert not self.strangers, self.strangers


@contextmanager
def chromium() -> Iterator[Browser]:
    """Give the system's Chromium, or skip the test where there is none.

    Playwright's event loop counts as running in this thread for as long as the browser is open: code that calls
    asyncio.run here fails meanwhile, so the fixture `browser` lives for a module and not for the session.
    """
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        pytest.skip("no chromium on this machine: pages are not looked at")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=list(_ARGS))
        try:
            yield browser
        finally:
            browser.close()


@contextmanager
def open_page(
    browser: Browser, url: str, width: int = 1280, height: int = 900, *, dark: bool = False
) -> Iterator[OpenPage]:
    """Open a page in a window of its own, of which nothing is kept; from 600 px down it is a phone's.

    Args:
        browser: Of `chromium`.
        url: file:, or http: of this machine.
        width: CSS pixels.
        height: CSS pixels.
        dark: Whether its user prefers dark colours.
    """
    phone = width < _PHONE
    context = browser.new_context(
        viewport={"width": width, "height": height},
        color_scheme="dark" if dark else "light",
        reduced_motion="reduce",
        is_mobile=phone,
        has_touch=phone,
    )
    try:
        opened = OpenPage(context.new_page())
        page = opened.page
        page.set_default_timeout(10_000)
        page.on("console", lambda message: opened.errors.append(message.text) if message.type == "error" else None)
        page.on("pageerror", lambda error: opened.errors.append(str(error)))
        page.on("request", lambda request: None if _is_here(request.url) else opened.strangers.append(request.url))
        page.goto(url)
        yield opened
    finally:
        context.close()


def accessibility_findings(page: Page) -> list[str]:
    """Return what axe-core finds serious or critical: the rule, the element, and what is wrong with it."""
    found = Axe().run(page).response["violations"]
    return [
        f"{rule['id']} ({rule['impact']}): {' '.join(map(str, node['target']))}: {node['failureSummary']}"
        for rule in found
        if rule["impact"] in {"serious", "critical"}
        for node in rule["nodes"]
    ]


def scrolls_sideways(page: Page) -> bool:
    """Return whether the page as a whole is wider than its window."""
    return bool(page.evaluate("document.documentElement.scrollWidth > document.documentElement.clientWidth"))


def _is_here(url: str) -> bool:
    parts = urlsplit(url)
    return parts.scheme in _WITHOUT_HOST or parts.hostname in _HERE
