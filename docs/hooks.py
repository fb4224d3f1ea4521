"""What mkdocs needs to show pages that lie outside of docs/, at the project's top, where people look for them."""

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[1]
OUTSIDE = {
    "CONTRIBUTING.md": "contributing.md",
    "SECURITY.md": "security.md",
    "sr_models/shipped/README.md": "shipped-weights.md",
}
"""Pages of the site by the files that they show."""


def on_files(files: Files, config: Any, **_: object) -> Files:  # noqa: ANN401  # mkdocs' own configuration
    """Add the pages."""
    for source, page in OUTSIDE.items():
        files.append(File.generated(config, page, content=(ROOT / source).read_text(encoding="utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, **_: object) -> str:  # noqa: ANN401  # mkdocs' own page
    """Let links lead to the site's pages that lead to files in the repository."""
    if page.file.src_uri in OUTSIDE.values():
        return re.sub(r"\]\(docs/", "](", markdown)
    for source, target in OUTSIDE.items():
        markdown = markdown.replace(f"](../{source}", f"]({target}")
    return markdown
