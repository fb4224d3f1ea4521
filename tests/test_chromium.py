"""What the tests of pages rest on sees errors, strangers and barriers, and is silent where there are none."""

from pathlib import Path

from playwright.sync_api import Browser

from tests.chromium import accessibility_findings, open_page, scrolls_sideways

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>t</title>
<meta name="viewport" content="width=device-width"><style>:root {{ color-scheme: light dark; }}</style></head>
<body><main><h1>A page</h1>{body}</main></body></html>"""


def test_a_sound_page_is_silent(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "sound.html"
    path.write_text(PAGE.format(body='<img alt="" src="data:image/gif;base64,R0lGODlhAQABAAAAACw=">'))
    with open_page(browser, path.as_uri(), 390, 844, dark=True) as opened:
        assert opened.page.evaluate("matchMedia('(prefers-color-scheme: dark)').matches")
        assert not scrolls_sideways(opened.page)
        assert accessibility_findings(opened.page) == []
        opened.assert_quiet()


def test_what_is_wrong_is_seen(browser: Browser, tmp_path: Path) -> None:
    path = tmp_path / "crooked.html"
    body = '<img src="http://example.org/a.png"><div style="width: 2000px">wide</div><script>throw Error("oh")</script>'
    path.write_text(PAGE.format(body=body))
    with open_page(browser, path.as_uri()) as opened:
        opened.page.wait_for_load_state("networkidle")
        assert opened.strangers == ["http://example.org/a.png"]
        assert any("oh" in error for error in opened.errors)
        assert scrolls_sideways(opened.page)
        (finding,) = accessibility_findings(opened.page)
        assert finding.startswith("image-alt (critical): img")
