"""The report's gallery: a few patches as each branch sees them, with the maps and labels that came of it."""

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from classifiers.cam.explain import METHODS
from infra.errors import StoreError
from tasks.gallery_maps import MapPicture, Sources, StoredMaps, map_picture
from tasks.gallery_methods import MethodFigure, method_figure
from tasks.gallery_pixels import GalleryPixels
from tasks.gallery_rows import (
    BranchRows,
    Label,
    branch_rows,
    explained_folders,
    explained_seed,
    patch_rows,
    predicted_labels,
    sampled_patches,
)
from tasks.gallery_sheet import ReportSheet, make_sheet
from tasks.pictures import Picture, encode, fitted, label_colours
from tasks.report_numbers import Numbers
from tasks.report_order import shown_split

PATCHES = 6
"""Patches in the gallery, at most."""

MAPS = 3
"""Labels whose maps are shown for a patch, at most."""

_BUDGET_BYTES = 4_500_000
"""Text of all cards' pictures together; no patch is added beyond it. With the sheet, the page stays below 7 MB."""


@dataclass(frozen=True, slots=True)
class MapCell:
    """The place of one label's map."""

    label: Label
    map: MapPicture


@dataclass(frozen=True, slots=True)
class BranchRow:
    """One patch on one branch."""

    sr: str
    caption: str
    """What the picture is, and its pixels' size."""
    picture: Picture | None
    why_not: str
    maps: Sequence[MapCell]
    labels: Sequence[Label]
    """What was predicted, and what was missed; the most probable first."""


@dataclass(frozen=True, slots=True)
class PatchCard:
    """One patch."""

    patch_id: str
    place: str
    """Country, season, day."""
    truth: Sequence[tuple[str, str]] | None
    """Names and colours of the true labels; None where unknown."""
    rows: Sequence[BranchRow]
    figure: MethodFigure | None
    """One label by methods and SR models."""

    @property
    def bytes(self) -> int:
        """Text of its pictures."""
        pictures = [p for row in self.rows for p in (row.picture, *(cell.map.picture for cell in row.maps))]
        for line in self.figure.rows if self.figure else ():
            pictures += [cell.picture for cell in (line.picture, *line.maps)]
        return sum(len(picture.uri) for picture in pictures if picture is not None)


@dataclass(frozen=True, slots=True)
class Gallery:
    """The cards, and what their maps are of."""

    classifier: str
    method: str
    """Whose maps of several labels are shown."""
    methods: Sequence[str]
    """Methods that are compared."""
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
        return [method for method in self.methods if method in METHODS and not METHODS[method].per_label]

    @property
    def bounded(self) -> bool:
        """Whether any card knows where the land cover is that a label names."""
        return any(card.figure is not None and card.figure.area is not None for card in self.cards)


def make_gallery(numbers: Numbers) -> Gallery | None:
    """Return the gallery of the run's first classifier.

    None: there are no predictions, no pixels, or no tables/classes to name the probabilities.
    """
    folders = numbers.hive("predictions")
    if not folders or not numbers.patches.num_rows or not numbers.labels:
        return None
    classifier = folders[0].keys["classifier"]
    folders = [folder for folder in folders if folder.keys["classifier"] == classifier]
    rows = predicted_labels(numbers, folders[0])
    if not rows:
        return None
    try:
        pixels = GalleryPixels(numbers)
    except StoreError:  # no archive.zarr: the tables were copied without the pixels
        return None
    explained = explained_folders(numbers, classifier)
    maps = StoredMaps(numbers, explained, pixels.size)
    wanted = numbers.run.settings.get("explain", {}).get("methods", ())
    sources = Sources(pixels, maps, maps.methods(wanted), label_colours(numbers.labels))
    seed = explained_seed(explained, default=min(row["seed"] for row in rows))
    split = shown_split({row["split"] for row in rows}) or ""
    rows = [row for row in rows if row["split"] == split and row["seed"] == seed]
    sampled = sampled_patches(numbers, explained)
    chosen = choose_patches(rows, sampled, PATCHES)
    branches = [branch_rows(folder, seed, chosen) for folder in folders]
    cards = _cards(patch_rows(numbers, chosen), chosen, branches, sources)
    sheet = make_sheet(numbers, folders[0], seed, [row["patch_id"] for row in rows], sampled, sources)
    return Gallery(
        classifier=classifier,
        method=next(iter(sources.methods), "grad_cam"),
        methods=sources.methods,
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


def _cards(
    patches: Mapping[str, Mapping[str, Any]], chosen: Sequence[str], branches: Sequence[BranchRows], sources: Sources
) -> list[PatchCard]:
    cards: list[PatchCard] = []
    spent = 0
    for patch_id in chosen:
        card = _card(patches[patch_id], branches, sources)
        spent += card.bytes
        if cards and spent > _BUDGET_BYTES:
            break
        cards.append(card)
    return cards


def _card(patch: Mapping[str, Any], branches: Sequence[BranchRows], sources: Sources) -> PatchCard:
    there = [branch for branch in branches if patch["patch_id"] in branch.predictions]
    views = [
        (sources.pixels.seen(patch, branch.sr, branch.config), branch.labels(patch, sources.tints)) for branch in there
    ]
    method = next(iter(sources.methods), "")
    columns = _columns([list(labels.values()) for _, labels in views])
    masks = {label: sources.pixels.truth(patch, label) for label in columns}
    rows = []
    for seen, labels in views:
        name = f"{patch['patch_id']}, {seen.sr}"
        picture = None
        if seen.rgb is not None:
            picture = encode(fitted(seen.rgb), f"{name}: true colour", lossless=seen.sr == "none")
        maps = []
        for label in columns:
            stored = sources.maps.read(seen.sr, method, patch, label)
            drawn = map_picture(stored, seen.base, f"{name}: activation map of {label}", masks[label])
            maps.append(MapCell(labels[label], drawn))
        told = [label for label in labels.values() if label.verdict != "absent"]
        told.sort(key=lambda label: -(label.prob or 0.0))
        caption = sources.pixels.caption(seen.sr, seen.width)
        rows.append(BranchRow(seen.sr, caption, picture, seen.why_not, maps, told))
    place = ", ".join(str(patch[key]) for key in ("country", "season", "acquired") if patch[key])
    truth = patch["labels"]
    colours = None if truth is None else [(name, sources.tints.get(name, "#888888")) for name in truth]
    return PatchCard(patch["patch_id"], place, colours, rows, method_figure(patch, views, sources))


def _columns(branches: Sequence[Sequence[Label]]) -> list[str]:
    """Return the labels whose maps are shown: those that most branches predict, then the most probable."""
    votes: Counter[str] = Counter()
    probs: Counter[str] = Counter()
    for labels in branches:
        votes.update(label.name for label in labels if label.predicted)
        probs.update({label.name: label.prob for label in labels if label.prob is not None})
    return sorted(votes, key=lambda name: (-votes[name], -probs[name], name))[:MAPS]
