"""One patch of the report's gallery: on every branch its pixels, the maps of its labels, and its predictions."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.gallery_maps import MapPicture, Sources, map_picture
from tasks.gallery_methods import MethodFigure, method_figure
from tasks.gallery_rows import BranchRows, Label
from tasks.pictures import Picture, encode, fitted

MAPS = 3
"""Labels whose maps are shown for a patch, at most."""


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
    bounded: bool
    """Whether the patch has a reference map, so that lines bound the labels' land cover."""

    @property
    def bytes(self) -> int:
        """Text of its pictures."""
        pictures = [p for row in self.rows for p in (row.picture, *(cell.map.picture for cell in row.maps))]
        for line in self.figure.rows if self.figure else ():
            pictures += [cell.picture for cell in (line.picture, *line.maps)]
        return sum(len(picture.uri) for picture in pictures if picture is not None)


def make_card(patch: Mapping[str, Any], branches: Sequence[BranchRows], method: str, sources: Sources) -> PatchCard:
    """Return the card of one patch.

    Args:
        patch: Its row of tables/patches.
        branches: Predictions on each branch.
        method: Whose maps of several labels are shown.
        sources: Where pixels and maps come from.
    """
    there = [branch for branch in branches if patch["patch_id"] in branch.predictions]
    views = [
        (sources.pixels.seen(patch, branch.sr, branch.config), branch.labels(patch, sources.tints)) for branch in there
    ]
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
    return PatchCard(patch["patch_id"], place, colours, rows, method_figure(patch, views, sources), patch["has_map"])


def _columns(branches: Sequence[Sequence[Label]]) -> list[str]:
    """Return the labels whose maps are shown: those that most branches predict, then the most probable."""
    votes: Counter[str] = Counter()
    probs: Counter[str] = Counter()
    for labels in branches:
        votes.update(label.name for label in labels if label.predicted)
        probs.update({label.name: label.prob for label in labels if label.prob is not None})
    return sorted(votes, key=lambda name: (-votes[name], -probs[name], name))[:MAPS]
