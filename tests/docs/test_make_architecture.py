"""The picture of the architecture is the code's: redrawn it is the same, and its arrows are what ast finds."""

import ast
import re
import runpy
import xml.etree.ElementTree as ET
from functools import cache
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
SVG = ROOT / "docs" / "figures" / "architecture.svg"


@pytest.fixture(scope="module")
def maker() -> dict[str, Any]:
    return runpy.run_path(str(ROOT / "docs" / "make_architecture.py"))


@pytest.fixture(scope="module")
def picture() -> ET.Element:
    return ET.fromstring(SVG.read_text(encoding="utf-8"))


@cache
def imported(package: str) -> set[str]:
    """Return the first words of whatever the modules of a package import, at any depth of their code."""
    found = set()
    for path in (ROOT / package).rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Import):
                found |= {alias.name.split(".")[0] for alias in node.names}
            elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
                found.add(node.module.split(".")[0])
    return found


def test_redrawn_it_is_the_same(maker: dict[str, Any]) -> None:
    made = maker["svg"](maker["architecture"](maker["root_packages"]()))
    assert SVG.read_text(encoding="utf-8") == made, "run python docs/make_architecture.py"


def test_its_arrows_are_the_imports_of_the_code(maker: dict[str, Any], picture: ET.Element) -> None:
    packages = maker["root_packages"]()
    arrows = [(a.get("data-from"), a.get("data-to")) for a in picture.findall(".//{*}path") if a.get("data-from")]
    assert len(set(arrows)) == len(arrows)
    expected = {(of, to) for of in packages for to in imported(of) & set(packages) if of != to}
    assert set(arrows) == expected


def test_its_libraries_are_those_that_the_code_imports(maker: dict[str, Any], picture: ET.Element) -> None:
    texts = ["".join(text.itertext()) for text in picture.findall(".//{*}text")]
    for package in maker["root_packages"]():
        line = " ".join(name for name in maker["SHOWN"] if name in imported(package))
        assert line in texts[texts.index(f"{package}/") :], package


def test_no_arrow_runs_through_a_box_or_on_another(picture: ET.Element) -> None:
    boxes = {
        (int(r.attrib["x"]), int(r.attrib["y"]), int(r.attrib["width"]), int(r.attrib["height"]))
        for r in picture.findall(".//{*}rect")
    }
    matches = [re.fullmatch(r"M(\d+) (\d+)V(\d+)", arrow.attrib["d"]) for arrow in picture.findall(".//{*}path")]
    uprights = [tuple(map(int, match.groups())) for match in matches if match]
    assert len(uprights) >= 8
    for x, top, bottom in uprights:
        for left, box_top, width, height in boxes:
            inside = left < x < left + width and top < box_top + height - 1 and box_top + 1 < bottom
            assert not inside, (x, top, bottom)
    for (x, top, bottom), (other, above, below) in combinations(uprights, 2):
        assert abs(x - other) >= 20 or bottom <= above or below <= top


def test_a_package_without_a_place_is_told(maker: dict[str, Any]) -> None:
    found = maker["Architecture"](("new",), frozenset(), {"new": ()}, {"new": ()})
    with pytest.raises(ValueError, match="new: give it a place"):
        maker["svg"](found)
