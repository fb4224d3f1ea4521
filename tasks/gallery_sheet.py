"""The contact sheet in the report: images at random, each with its maps, its likeliest label and the truth."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tasks.explain_sample import drawn_at_random
from tasks.gallery_maps import MapPicture, Sources, map_picture
from tasks.gallery_rows import BranchRows, Label, branch_rows, patch_rows
from tasks.labels import likeliest
from tasks.pictures import Picture, encode, thumbnail
from tasks.report.numbers import HiveFolder, Numbers

IMAGES = 100
"""Images on a sheet, at most: as many as the study of city features looked at."""

METHODS = 3
"""Methods on a sheet, at most: as many as that study compared by eye."""

_SIZE = 120
_BUDGET_BYTES = 1_500_000
"""Text of a sheet's pictures; no image is added beyond it."""


@dataclass(frozen=True, slots=True)
class SheetImage:
    """One image of the sheet."""

    patch_id: str
    picture: Picture
    label: Label
    """The likeliest label, whose maps are shown."""
    maps: Sequence[MapPicture]
    """One for each method."""
    truth: Sequence[str] | None
    """True labels; None where nobody knows."""

    @property
    def bytes(self) -> int:
        """Text of its pictures."""
        return sum(len(p.uri) for p in (self.picture, *(cell.picture for cell in self.maps)) if p is not None)


@dataclass(frozen=True, slots=True)
class ReportSheet:
    """Images at random with their maps."""

    sr: str
    methods: Sequence[str]
    of_sample: bool
    """Whether they are drawn from the sample of `explain.sample`, since no method was run on every patch."""
    images: Sequence[SheetImage]


def make_sheet(
    numbers: Numbers, folder: HiveFolder, seed: int, ids: Sequence[str], sampled: Collection[str], sources: Sources
) -> ReportSheet | None:
    """Return the contact sheet of one branch; None where no method has maps for it.

    Images are drawn at random from all patches, and shown with the first methods that have maps of all that are drawn.
    Where there is no such method, they are drawn from the sample.

    Args:
        numbers: The run.
        folder: The branch's folder of tables/predictions.
        seed: Seed of the network explained.
        ids: Names of the patches to draw from, sorted.
        sampled: Patches in the sample of `explain.sample`.
        sources: Where pixels and maps come from.
    """
    sr = folder.keys["sr"]
    of_sample = False
    drawn = _drawn(numbers, ids)
    methods = [m for m in sources.methods if all(sources.maps.has(sr, m, patch) for patch in drawn)]
    if not methods:
        of_sample = True
        drawn = _drawn(numbers, [name for name in ids if name in sampled])
        methods = [m for m in sources.methods if any(sources.maps.has(sr, m, patch) for patch in drawn)]
    if not methods:
        return None
    branch = branch_rows(numbers, folder, seed, [patch["patch_id"] for patch in drawn])
    images: list[SheetImage] = []
    spent = 0
    for number, patch in enumerate(drawn, start=1):
        image = _image(number, patch, branch, methods[:METHODS], sources)
        spent += image.bytes
        if images and spent > _BUDGET_BYTES:
            break
        images.append(image)
    return ReportSheet(sr, methods[:METHODS], of_sample, images)


def _drawn(numbers: Numbers, ids: Sequence[str]) -> list[Mapping[str, Any]]:
    """Return rows of tables/patches of patches at random, in the order drawn."""
    names = drawn_at_random(ids, IMAGES)
    rows = patch_rows(numbers, names)
    return [rows[name] for name in names]


def _image(
    number: int, patch: Mapping[str, Any], branch: BranchRows, methods: Sequence[str], sources: Sources
) -> SheetImage:
    labels = branch.labels(patch, sources.tints)
    shown = likeliest({name: label.prob for name, label in labels.items() if label.prob is not None}, None)
    base = sources.pixels.seen(patch, branch.sr, branch.config).base
    name = f"image {number}, {patch['patch_id']}"
    maps = []
    for method in methods:
        alt = f"{name}: {sources.titles[method]} map of {shown}"
        maps.append(map_picture(sources.maps.read(branch.sr, method, patch, shown), base, alt, size=_SIZE))
    picture = encode(thumbnail(base, _SIZE), f"{name}: true colour")
    return SheetImage(patch["patch_id"], picture, labels[shown], maps, patch["labels"])
