"""The report's gallery: a few patches as each branch sees them, with the maps and labels that came of it."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.dataset as ds
from numpy.typing import NDArray

from infra.errors import StoreError
from tasks.gallery_pixels import GalleryPixels
from tasks.labels import is_clean
from tasks.pictures import Picture, encode, fitted, label_colours, overlay, to_rgb8
from tasks.report_numbers import HiveFolder, Numbers
from tasks.report_order import shown_split

PATCHES = 6
"""Patches in the gallery, at most."""

MAPS = 3
"""Labels whose maps are shown for a patch, at most."""

_BUDGET_BYTES = 4_000_000
"""Text of all pictures together; no patch is added beyond it, so that the page stays below 5 MB."""


@dataclass(frozen=True, slots=True)
class Label:
    """A label of one patch on one branch."""

    name: str
    prob: float | None
    """None: the classifier does not know the label."""
    verdict: str
    """right, wrong, missed, absent (rightly not predicted), untaught (the classifier does not know the label, which the
    patch has) or unknown (nobody labelled the patch)."""
    colour: str

    @property
    def predicted(self) -> bool:
        """Whether the classifier gave it."""
        return self.verdict in {"right", "wrong", "unknown"}


@dataclass(frozen=True, slots=True)
class MapCell:
    """The place of one label's map."""

    label: Label
    picture: Picture | None
    why_not: str
    """Why there is no picture."""


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


@dataclass(frozen=True, slots=True)
class Gallery:
    """The cards, and what their maps are of."""

    classifier: str
    method: str
    seed: int
    split: str
    bands: Sequence[str]
    """Names of the bands shown as red, green and blue."""
    width_km: float | None
    """Width of a patch; None where the archive does not say how large a pixel is."""
    cards: Sequence[PatchCard]


@dataclass(frozen=True, slots=True)
class _Shown:
    """Rows of the chosen patches on one branch."""

    sr: str
    config: str
    predictions: Mapping[str, Mapping[str, Any]]
    """By patch_id."""
    maps: Mapping[tuple[str, str], Mapping[str, Any]]
    """Rows of tables/explanations by patch_id and label."""


def make_gallery(numbers: Numbers) -> Gallery | None:
    """Return the gallery of the run's first classifier and method.

    None: there are no predictions, no pixels, or no tables/classes to name the probabilities.
    """
    folders = numbers.hive("predictions")
    if not folders or not numbers.patches.num_rows or not numbers.labels:
        return None
    classifier = folders[0].keys["classifier"]
    folders = [folder for folder in folders if folder.keys["classifier"] == classifier]
    method = next(iter(numbers.run.settings.get("explain", {}).get("methods", ())), "grad_cam")
    table = _read(folders[0], columns=["patch_id", "split", "seed", "predicted", "labels"])
    scored = numbers.patches.filter(is_clean(numbers.patches))["patch_id"].combine_chunks()
    clean = table.filter(pc.is_in(table["patch_id"], value_set=scored))
    rows = (clean if clean.num_rows else table).sort_by("patch_id").to_pylist()
    if not rows:
        return None
    seed = _explained_seed(numbers, classifier, method, default=min(row["seed"] for row in rows))
    split = shown_split({row["split"] for row in rows}) or ""
    rows = [row for row in rows if row["split"] == split and row["seed"] == seed]
    chosen = choose([row["patch_id"] for row in rows], [row["labels"] or row["predicted"] for row in rows], PATCHES)
    shown = [_shown(numbers, folder, method, seed, chosen) for folder in folders]
    try:
        pixels = GalleryPixels(numbers)
    except StoreError:  # no archive.zarr: the tables were copied without the pixels
        return None
    cards = _cards(numbers, shown, chosen, pixels)
    return Gallery(classifier, method, seed, split, pixels.bands, pixels.width_km, cards)


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


def _dataset(folder: HiveFolder) -> ds.Dataset:
    """Return a folder's files as one table; names of folders are no columns."""
    files = [str(path) for path in sorted(folder.path.glob("*.parquet"))]
    return ds.dataset(files, format="parquet", partitioning=None)


def _read(folder: HiveFolder, columns: list[str] | None = None, ids: Sequence[str] | None = None) -> pa.Table:
    """Return columns of the rows of some patches, or of all."""
    chosen = None if ids is None else ds.field("patch_id").isin(list(ids))
    return _dataset(folder).to_table(columns=columns, filter=chosen)


def _explained_seed(numbers: Numbers, classifier: str, method: str, default: int) -> int:
    """Return the seed of the network that the maps are of."""
    wanted = {"classifier": classifier, "method": method}
    for folder in numbers.hive("explanations"):
        if wanted.items() <= folder.keys.items():
            for row in _dataset(folder).head(1, columns=["seed"]).to_pylist():
                return int(row["seed"])
    return default


def _shown(numbers: Numbers, folder: HiveFolder, method: str, seed: int, ids: Sequence[str]) -> _Shown:
    predictions = [row for row in _read(folder, ids=ids).to_pylist() if row["seed"] == seed]
    names = {**{key: folder.keys[key] for key in ("sr", "classifier")}, "method": method}
    maps = {
        (row["patch_id"], row["label"]): row
        for found in numbers.hive("explanations")
        if names.items() <= found.keys.items()
        for row in _read(found, ids=ids).to_pylist()
        if row["seed"] == seed
    }
    by_patch = {row["patch_id"]: row for row in predictions}
    return _Shown(folder.keys["sr"], folder.keys["config"], by_patch, maps)


def _cards(numbers: Numbers, shown: Sequence[_Shown], chosen: Sequence[str], pixels: GalleryPixels) -> list[PatchCard]:
    colours = label_colours(numbers.labels)
    of_chosen = numbers.patches.filter(pc.is_in(numbers.patches["patch_id"], value_set=pa.array(chosen)))
    patches = {row["patch_id"]: row for row in of_chosen.to_pylist()}
    cards: list[PatchCard] = []
    spent = 0
    for patch_id in chosen:
        patch = patches[patch_id]
        card = _card(patch, shown, pixels, colours)
        pictures = [p for row in card.rows for p in (row.picture, *(cell.picture for cell in row.maps)) if p]
        spent += sum(len(picture.uri) for picture in pictures)
        if cards and spent > _BUDGET_BYTES:
            break
        cards.append(card)
    return cards


def _card(
    patch: Mapping[str, Any], shown: Sequence[_Shown], pixels: GalleryPixels, tints: Mapping[str, str]
) -> PatchCard:
    truth = patch["labels"]
    there = [branch for branch in shown if patch["patch_id"] in branch.predictions]
    labels = {branch.sr: _labels(branch.predictions[patch["patch_id"]], truth, tints) for branch in there}
    columns = _columns(list(labels.values()))
    rows = []
    for branch in there:
        dn, why_not = pixels.read(patch, branch.sr, branch.config)
        rgb = None if dn is None else to_rgb8(dn, pixels.max_dn)
        name = f"{patch['patch_id']}, {branch.sr}"
        picture = None if rgb is None else encode(fitted(rgb), f"{name}: true colour", lossless=branch.sr == "none")
        base = rgb if rgb is not None else to_rgb8(pixels.input_rgb(patch), pixels.max_dn)
        by_name = {label.name: label for label in labels[branch.sr]}
        maps = [
            _map_cell(by_name[label], branch.maps.get((patch["patch_id"], label)), base, name, pixels)
            for label in columns
        ]
        listed = sorted(by_name.values(), key=lambda label: -(label.prob or 0.0))
        caption = pixels.caption(branch.sr, None if dn is None else dn.shape[-1])
        told = [label for label in listed if label.verdict != "absent"]
        rows.append(BranchRow(branch.sr, caption, picture, why_not, maps, told))
    place = ", ".join(str(patch[key]) for key in ("country", "season", "acquired") if patch[key])
    colours = None if truth is None else [(name, tints.get(name, "#888888")) for name in truth]
    return PatchCard(patch["patch_id"], place, colours, rows)


def _labels(row: Mapping[str, Any], truth: Sequence[str] | None, tints: Mapping[str, str]) -> list[Label]:
    """Return every label of a patch on a branch with its verdict; tints are in the order of the labels."""
    given = set(row["predicted"])
    labels = []
    for (name, tint), prob in zip(tints.items(), row["probs"], strict=True):
        if prob is None:
            verdict = "untaught" if name in (truth or ()) else "absent"
        elif truth is None:
            verdict = "unknown" if name in given else "absent"
        else:
            verdict = {(True, True): "right", (True, False): "wrong", (False, True): "missed"}.get(
                (name in given, name in truth), "absent"
            )
        labels.append(Label(name, prob, verdict, tint))
    return labels


def _columns(branches: Sequence[Sequence[Label]]) -> list[str]:
    """Return the labels whose maps are shown: those that most branches predict, then the most probable."""
    votes: Counter[str] = Counter()
    probs: Counter[str] = Counter()
    for labels in branches:
        votes.update(label.name for label in labels if label.predicted)
        probs.update({label.name: label.prob for label in labels if label.prob is not None})
    return sorted(votes, key=lambda name: (-votes[name], -probs[name], name))[:MAPS]


def _map_cell(
    label: Label, row: Mapping[str, Any] | None, base: NDArray[np.uint8], name: str, pixels: GalleryPixels
) -> MapCell:
    if row is None:
        return MapCell(label, None, "no map stored" if label.predicted else "not predicted")
    cam = pixels.map(row)
    if cam is None:
        return MapCell(label, None, "its map is missing")
    if not np.nanmax(cam, initial=0.0) > 0:
        return MapCell(label, None, "nowhere above 0")
    return MapCell(label, encode(overlay(base, cam), f"{name}: activation map of {label.name}"), "")
