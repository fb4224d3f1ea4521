"""The papers' figure in the report: one patch and one label, by methods and SR models."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.gallery_maps import MapPicture, Sources, map_picture
from tasks.gallery_pixels import SeenPatch
from tasks.gallery_rows import Label
from tasks.labels import likeliest
from tasks.pictures import OVERLAY_SIZE, encode, thumbnail


@dataclass(frozen=True, slots=True)
class MethodRow:
    """One branch of the figure."""

    sr: str
    label: Label
    """What the branch says of the label explained."""
    picture: MapPicture
    """The patch, small."""
    maps: Sequence[MapPicture]
    """One for each method."""


@dataclass(frozen=True, slots=True)
class MethodFigure:
    """A patch by methods and SR models."""

    label: str
    """The label explained: the likeliest of the true ones on the first branch."""
    area: float | None
    """Share of the patch that the reference map gives to the label; None where nobody knows."""
    rows: Sequence[MethodRow]


def method_figure(
    patch: Mapping[str, Any], branches: Sequence[tuple[SeenPatch, Mapping[str, Label]]], sources: Sources
) -> MethodFigure | None:
    """Return the figure of one patch; None where there are not two methods to compare, or no label has a probability.

    Args:
        patch: The patch's row of tables/patches.
        branches: The patch on each branch, and its labels there by name.
        sources: Where pixels and maps come from.
    """
    probs = {name: label.prob for name, label in branches[0][1].items() if label.prob is not None} if branches else {}
    if len(sources.methods) < 2 or not probs:
        return None
    shown = likeliest(probs, patch["labels"])
    mask = sources.pixels.truth(patch, shown)
    rows = []
    for seen, labels in branches:
        name = f"{patch['patch_id']}, {seen.sr}"
        picture = None if seen.rgb is None else encode(thumbnail(seen.rgb, OVERLAY_SIZE), f"{name}, small: true colour")
        maps = []
        for method in sources.methods:
            alt = f"{name}: {sources.titles[method]} map of {shown}"
            maps.append(map_picture(sources.maps.read(seen.sr, method, patch, shown), seen.base, alt, mask))
        rows.append(MethodRow(seen.sr, labels[shown], MapPicture(picture, seen.why_not), maps))
    return MethodFigure(shown, None if mask is None else float(mask.mean()), rows)
