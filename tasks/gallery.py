"""The report's gallery: a few patches as each branch sees them, with the maps and labels that came of it."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from classifiers.cam.methods import METHODS
from infra.errors import StoreError
from tasks.gallery_cards import PatchCard, make_card
from tasks.gallery_maps import Sources, StoredMaps
from tasks.gallery_pixels import GalleryPixels
from tasks.gallery_rows import (
    BranchRows,
    branch_rows,
    explained_folders,
    explained_seed,
    patch_rows,
    predicted_labels,
    sampled_patches,
    splits_and_first_seed,
)
from tasks.gallery_sheet import ReportSheet, make_sheet
from tasks.pictures import label_colours
from tasks.report.map_tables import METHOD_NAMES
from tasks.report.numbers import Numbers
from tasks.report.order import shown_split

PATCHES = 6
"""Patches in the gallery, at most."""

_BUDGET_BYTES = 4_500_000
"""Text of all cards' pictures together; no patch is added beyond it. With the sheet, the page stays below 7 MB."""


@dataclass(frozen=True, slots=True)
class Gallery:
    """The cards, and what their maps are of."""

    classifier: str
    method: str
    """Whose maps of several labels are shown."""
    titles: Mapping[str, str]
    """Methods that are compared, and what people call them and those that are one map with them."""
    seed: int
    split: str
    bands: Sequence[str]
    """Names of the bands shown as red, green and blue."""
    width_km: float | None
    """Width of a patch; None where the archive does not say how large a pixel is."""
    grid: int
    """Edge of the grid that all maps are brought to, pixels."""
    of_sample: bool
    """Whether patches of the sample of `explain.sample` come first."""
    cards: Sequence[PatchCard]
    sheet: ReportSheet | None

    @property
    def label_free(self) -> list[str]:
        """Compared methods that have one map for a patch, whatever the label."""
        return [method for method in self.titles if method in METHODS and not METHODS[method].per_label]

    @property
    def same(self) -> list[str]:
        """Names of compared methods that are one and the same map."""
        return [title for title in self.titles.values() if " = " in title]

    @property
    def bounded(self) -> bool:
        """Whether any card knows where the land cover is that a label names."""
        return any(card.bounded for card in self.cards)


def make_gallery(numbers: Numbers) -> Gallery | None:
    """Return the gallery of the run's first classifier.

    None: there are no predictions, no pixels, or no tables/classes to name the probabilities.
    """
    folders = numbers.hive("predictions")
    if not folders or not numbers.patches.num_rows or not numbers.labels:
        return None
    classifier = folders[0].keys["classifier"]
    folders = [folder for folder in folders if folder.keys["classifier"] == classifier]
    there = splits_and_first_seed(numbers, folders[0])
    if there is None:
        return None
    splits, first_seed = there
    try:
        pixels = GalleryPixels(numbers)
    except StoreError:  # no archive.zarr: the tables were copied without the pixels
        return None
    explained = explained_folders(numbers, classifier)
    seed = explained_seed(explained, default=first_seed)
    split = shown_split(splits) or ""
    rows = predicted_labels(numbers, folders[0], split, seed)
    sampled = sampled_patches(numbers, explained)
    chosen = choose_patches(rows, sampled, PATCHES)
    by_name = patch_rows(numbers, chosen)
    patches = [by_name[name] for name in chosen]
    maps = StoredMaps(numbers, explained, pixels.size)
    titles = _titles(numbers, maps, patches)
    sources = Sources(pixels, maps, titles, label_colours(numbers.labels))
    # A method that saw only some of these patches would leave many places of the cards empty.
    whole = (m for m in titles if all(maps.has(f.keys["sr"], m, patch) for f in folders for patch in patches))
    method = next(whole, next(iter(titles), "grad_cam"))
    cards = _cards(patches, [branch_rows(numbers, folder, seed, chosen) for folder in folders], method, sources)
    sheet = make_sheet(numbers, folders[0], seed, [row["patch_id"] for row in rows], sampled, sources)
    return Gallery(
        classifier=classifier,
        method=method,
        titles=titles,
        seed=seed,
        split=split,
        bands=pixels.bands,
        width_km=pixels.width_km,
        grid=pixels.size,
        of_sample=bool(sampled),
        cards=cards,
        sheet=sheet,
    )


def choose_patches(rows: Sequence[Mapping[str, Any]], sampled: Collection[str], count: int) -> list[str]:
    """Return patches for the gallery: from the sample first, where there is one, since costly methods saw no others.

    Args:
        rows: patch_id, labels (None: unknown) and predicted, sorted by patch_id.
        sampled: Patches in the sample.
        count: Patches to return, at most.
    """
    chosen: list[str] = []
    for group in ([row for row in rows if (row["patch_id"] in sampled) == among] for among in (True, False)):
        label_sets = [row["labels"] or row["predicted"] for row in group]
        chosen += choose([row["patch_id"] for row in group], label_sets, count - len(chosen))
    return chosen


def choose(ids: Sequence[str], label_sets: Sequence[Sequence[str]], count: int) -> list[str]:
    """Return patches that together show many labels: each adds the most, a label shown k times before counting 4^-k.

    Args:
        ids: Names of the patches, sorted; the first wins a tie.
        label_sets: Labels of each.
        count: Patches to return, at most.
    """
    shown: Counter[str] = Counter()
    left = dict(zip(ids, label_sets, strict=True))
    chosen: list[str] = []
    while left and len(chosen) < count:
        best = max(left, key=lambda patch: sum(0.25 ** shown[label] for label in left[patch]))
        shown.update(left.pop(best))
        chosen.append(best)
    return chosen


def _titles(numbers: Numbers, maps: StoredMaps, patches: Sequence[Mapping[str, Any]]) -> dict[str, str]:
    """Return the methods to draw, in the order of RUN.yaml, and what people call them."""
    wanted = maps.methods(numbers.run.settings.get("explain", {}).get("methods", ()))
    groups = maps.distinct(wanted, patches)
    return {group[0]: " = ".join(METHOD_NAMES.get(method, method) for method in group) for group in groups}


def _cards(
    patches: Sequence[Mapping[str, Any]], branches: Sequence[BranchRows], method: str, sources: Sources
) -> list[PatchCard]:
    cards: list[PatchCard] = []
    spent = 0
    for patch in patches:
        card = make_card(patch, branches, method, sources)
        spent += card.bytes
        if cards and spent > _BUDGET_BYTES:
            break
        cards.append(card)
    return cards
