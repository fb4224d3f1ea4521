"""Fail if a page of the documentation's site fetches anything from elsewhere, or an expected page is missing."""

import re
import sys
from html.parser import HTMLParser
from pathlib import Path

site = Path(sys.argv[1])
FETCHED = {"script": "src", "img": "src", "source": "src", "iframe": "src", "link": "href", "use": "href"}


class Fetched(HTMLParser):
    """Addresses that a browser asks for by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Keep what an element fetches."""
        given = dict(attrs)
        if tag in FETCHED and given.get("rel") not in {"canonical", "prev", "next"}:
            self.found.append(given.get(FETCHED[tag]) or "")


pages = sorted(site.rglob("*.html"))
assert {"index.html", "tutorial.html", "python.html", "cli.html", "contributing.html"} <= {page.name for page in pages}
for page in pages:
    parser = Fetched()
    parser.feed(page.read_text(encoding="utf-8"))
    strangers = [address for address in parser.found if re.match(r"(\w+:)?//", address)]
    assert not strangers, f"{page.name} fetches {strangers}"
for sheet in site.rglob("*.css"):
    assert not re.search(r"url\([\"']?(https?:)?//", sheet.read_text(encoding="utf-8")), f"{sheet} fetches"
