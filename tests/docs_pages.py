"""The documentation's pages and their code blocks, and the tables that their queries are put to."""

import re
import shutil
import textwrap
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa

from infra.tables import RELIABILITY, hive_folder, publish
from tests.flows.stores import PROJECT, Inputs

PAGES = {
    str(path.relative_to(PROJECT)): path.read_text(encoding="utf-8")
    for path in (PROJECT / "README.md", PROJECT / "CONTRIBUTING.md", *sorted((PROJECT / "docs").glob("*.md")))
}
"""Text of every page by its path."""

_FENCE = re.compile(r"^( *)```([\w-]*)\n(.*?)^\1```", flags=re.DOTALL | re.MULTILINE)


@dataclass(frozen=True)
class Block:
    """One fenced block of code."""

    language: str
    text: str
    page: str = ""
    number: int = 0

    @property
    def name(self) -> str:
        """Page and number, from 1, among the page's blocks."""
        return f"{self.page}:{self.number}"


def blocks_of(text: str, page: str = "") -> list[Block]:
    """Return the blocks of a page, those within lists too."""
    found = _FENCE.findall(text)
    return [Block(language, textwrap.dedent(code), page, n) for n, (_, language, code) in enumerate(found, 1)]


BLOCKS = [block for page, text in PAGES.items() for block in blocks_of(text, page)]


def in_language(*languages: str) -> list[Block]:
    """Return the blocks of all pages in some languages."""
    return [block for block in BLOCKS if block.language in languages]


def tables_with_reliability(inputs: Inputs, folder: Path) -> Path:
    """Copy the reference store's tables, and add reliability, which it lacks: by hand, of this run and another."""
    shutil.copytree(inputs.reference / "tables", folder)
    row = {"label": "Pastures", "seed": 0, "predicted": True, "truth": None, "cluster": 0, "adjusted": True}
    scores = (("a", "test", 0.75, 0.9), ("b", "test", 0.25, 0.9), ("c", "test", 0.25, 0.6), ("d", "train", 0.0, 0.9))
    rows: list[dict[str, Any]] = [
        {**row, "patch_id": name, "split": split, "reliability": score, "cluster_error_rate": 1 - score, "prob": prob}
        for name, split, score, prob in scores
    ]
    rows.append({**rows[0], "patch_id": "no map", "cluster": None, "reliability": None, "cluster_error_rate": None})
    for sr in ("none", "bicubic"):
        keys = {"sr": sr, "classifier": "resnet18", "config": "12345678"}
        path = hive_folder(folder / "reliability", **keys)
        publish(path, pa.Table.from_pylist(rows, RELIABILITY), RELIABILITY, ["patch_id"])
    return folder
