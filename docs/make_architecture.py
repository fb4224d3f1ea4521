"""Draw docs/figures/architecture.svg from the imports of the code: python docs/make_architecture.py."""

import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from html import escape
from pathlib import Path

import grimp

ROOT = Path(__file__).resolve().parents[1]
FIGURE = Path(__file__).with_name("figures") / "architecture.svg"
WIDTH, ROW, BOX, TOP = 1040, 150, 92, 16  # px: of the picture, from row to row, of a box, above the first
_FONT, _GREY = 'font-family="system-ui, sans-serif"', "#808794"  # a grey that is seen on white and on black


@dataclass(frozen=True, slots=True)
class Place:
    """Where a package's box stands."""

    package: str
    row: int
    left: int
    right: int
    says: str
    """What it does, in a few words."""

    @property
    def top(self) -> int:
        """Its upper edge, px."""
        return TOP + self.row * ROW

    @property
    def bottom(self) -> int:
        """Its lower edge, px."""
        return self.top + BOX


PLACES = (
    Place("flows", 0, 20, 1020, "the order of stages, RUN.yaml, the command line"),
    Place("explorer", 1, 790, 960, "pages over a store"),
    Place("tasks", 1, 200, 720, "one stage for one shard"),
    Place("sr_models", 2, 100, 480, "super-resolution and its quality"),
    Place("classifiers", 2, 540, 900, "networks, metrics, activation maps"),
    Place("infra", 3, 20, 1020, "archives, Zarr, Parquet, storage, the Ray pool"),
)
"""Every package that may be there; the picture has those of import-linter's `root_packages`."""

SHOWN = ("prefect", "typer", "pydantic", "fastapi", "ray", "torch", "timm", "basicsr", "sklearn", "rasterio", "zarr")
SHOWN += ("xarray", "pyarrow", "duckdb", "pandas", "obstore", "matplotlib", "jinja2")
"""Libraries that tell what a package is about; others are left out."""


@dataclass(frozen=True, slots=True)
class Architecture:
    """What imports what."""

    packages: tuple[str, ...]
    edges: frozenset[tuple[str, str]]
    """Importing and imported package."""
    subpackages: dict[str, tuple[str, ...]]
    libraries: dict[str, tuple[str, ...]]
    """Of `SHOWN`, those that a package imports itself."""


def root_packages() -> tuple[str, ...]:
    """Return the packages that import-linter looks at."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return tuple(settings["tool"]["importlinter"]["root_packages"])


def architecture(packages: tuple[str, ...]) -> Architecture:
    """Return the imports between packages, as the code has them."""
    sys.path.insert(0, str(ROOT))
    graph = grimp.build_graph(*packages, include_external_packages=True, cache_dir=None)
    edges, libraries = set(), {package: set[str]() for package in packages}
    for module in graph.modules:
        package = module.split(".")[0]
        if package not in packages:
            continue
        for imported in graph.find_modules_directly_imported_by(module):
            other = imported.split(".")[0]
            if other in packages:
                edges |= {(package, other)} - {(package, package)}
            else:
                libraries[package].add(other)
    return Architecture(
        packages,
        frozenset(edges),
        {package: tuple(_subpackages(graph, package)) for package in packages},
        {package: tuple(name for name in SHOWN if name in libraries[package]) for package in packages},
    )


def _subpackages(graph: grimp.ImportGraph, package: str) -> Iterator[str]:
    for child in sorted(graph.find_children(package)):
        if graph.find_children(child):
            yield child.removeprefix(f"{package}.")


def svg(found: Architecture) -> str:
    """Return the picture: a box for each package, an arrow for each pair of which one imports the other."""
    places = [place for place in PLACES if place.package in found.packages]
    if missing := set(found.packages) - {place.package for place in places}:
        raise ValueError(f"{', '.join(sorted(missing))}: give it a place in PLACES")
    by_name = {place.package: place for place in places}
    height = max(place.bottom for place in places) + TOP
    words = "; ".join(
        f"{place.package} imports {', '.join(sorted(to for of, to in found.edges if of == place.package)) or 'nothing'}"
        for place in places
    )
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" role="img" {_FONT}>',
        f"<title>What imports what: {escape(words)}</title>",
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="7" markerHeight="7" orient="auto">',
        f'<path d="M0 0 8 4 0 8z" fill="{_GREY}"/></marker></defs>',
    ]
    taken: list[tuple[int, int, int]] = []  # x, and the rows between which an arrow runs there
    for of, to in sorted(found.edges, key=lambda edge: (by_name[edge[1]].row - by_name[edge[0]].row, edge)):
        path = _arrow(by_name[of], by_name[to], places, taken)
        lines.append(
            f'<path d="{path}" data-from="{of}" data-to="{to}" fill="none" stroke="{_GREY}" stroke-width="2" '
            'marker-end="url(#tip)"/>'
        )
    for place in places:
        lines += _box(place, found.subpackages[place.package], found.libraries[place.package])
    return "\n".join([*lines, "</svg>", ""])


def _arrow(of: Place, to: Place, places: list[Place], taken: list[tuple[int, int, int]]) -> str:
    if of.row == to.row:
        middle = of.top + BOX // 2
        start, end = (of.left, to.right) if to.right <= of.left else (of.right, to.left)
        return f"M{start} {middle}H{end}"
    if of.row > to.row:
        raise ValueError(f"{of.package} imports {to.package}, which stands above it: change PLACES")
    between = [place for place in places if of.row < place.row < to.row]
    free = [
        x
        for x in range(of.left + 30, of.right - 20, 10)
        if not any(place.left - 15 <= x <= place.right + 15 for place in between)
        and all(abs(x - other) >= 30 or last < of.row or to.row < first for other, first, last in taken)
    ]
    straight = [x for x in free if to.left + 20 <= x <= to.right - 20]
    centre = (max(of.left, to.left) + min(of.right, to.right)) // 2
    if straight:
        x = min(straight, key=lambda x: abs(x - centre))
        taken.append((x, of.row, to.row))
        return f"M{x} {of.bottom}V{to.top - 1}"
    x = min(free, key=lambda x: abs(x - (to.left + to.right) // 2))
    into = to.left + 40 if x < to.left else to.right - 40
    taken.append((x, of.row, to.row))
    return f"M{x} {of.bottom}V{to.top - 22}H{into}V{to.top - 1}"


def _box(place: Place, subpackages: tuple[str, ...], libraries: tuple[str, ...]) -> list[str]:
    x, size = place.left + 16, f'width="{place.right - place.left}" height="{BOX}"'
    lines = [
        f'<rect x="{place.left}" y="{place.top}" {size} rx="8" fill="#23395b" stroke="{_GREY}"/>',
        f'<text x="{x}" y="{place.top + 26}" fill="#ffffff" font-size="18" font-weight="600">{place.package}/</text>',
        f'<text x="{x}" y="{place.top + 46}" fill="#dbe4f0" font-size="13">{escape(place.says)}</text>',
    ]
    rows = [" · ".join(f"{name}/" for name in subpackages), " ".join(libraries)]
    for line, (text, colour) in enumerate(zip(rows, ("#a8d8c0", "#f3d08b"), strict=True)):
        lines.append(
            f'<text x="{x}" y="{place.top + 65 + 17 * line}" fill="{colour}" font-size="12">{escape(text)}</text>'
        )
    return lines


if __name__ == "__main__":
    FIGURE.write_text(svg(architecture(root_packages())), encoding="utf-8")
