"""Maps that a run stored, for the report's pictures: each on the patch's grid, or a word why it is not drawn."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from classifiers.cam.grid import on_grid
from classifiers.cam.methods import FLOOR
from infra.errors import StoreError
from infra.zarr_store import ShardedStore
from tasks.explain import WHOLE_PATCH
from tasks.gallery_pixels import GalleryPixels
from tasks.map_store import read_map
from tasks.pictures import OVERLAY_SIZE, Picture, encode, outlined, overlay, why_not_drawn
from tasks.report.numbers import HiveFolder, Numbers

NOT_MADE = "not made"
"""Of a patch or branch that the method was not run on."""

MISSING = "its map is missing"
"""The tables know of it, and its store is gone, or of a layout without scales."""

UNTAUGHT = "unknown to the classifier"
"""There is no map of a label that the classifier was not taught."""


_ROUNDING = 2e-3  # of half precision, in units of the largest value, and of sums in another order


@dataclass(frozen=True, slots=True)
class StoredMap:
    """One map of one patch."""

    values: NDArray[np.float32] | None
    """(S, S) on the patch's grid, finite, with a positive value; None where there is none."""
    why_not: str
    """Why there is none."""


@dataclass(frozen=True, slots=True)
class MapPicture:
    """The place of a map on the page."""

    picture: Picture | None
    why_not: str
    """Why there is no picture."""


class StoredMaps:
    """All maps of one classifier that a run stored: of every label that it knows, whichever have rows in the tables."""

    def __init__(self, numbers: Numbers, folders: Sequence[HiveFolder], grid: int) -> None:
        """Find them.

        Args:
            numbers: The run.
            folders: The classifier's folders of tables/explanations.
            grid: Edge of the patch's grid, pixels.
        """
        self._grid = grid
        self._paths: Mapping[tuple[str, str], Path] = {
            (f.keys["sr"], f.keys["method"]): numbers.paths.maps(f.keys["method"], f.keys["config"]) for f in folders
        }
        self._open = cache(ShardedStore)
        self._names = cache(_names)

    def methods(self, wanted: Sequence[str]) -> list[str]:
        """Return the methods of a run that are worth drawing: those with maps; noise only where there is nothing else.

        Args:
            wanted: The run's methods, in the order of RUN.yaml.
        """
        made = {method for _, method in self._paths}
        there = [method for method in dict.fromkeys([*wanted, *sorted(made)]) if method in made]
        return [method for method in there if method != FLOOR] or there

    def distinct(self, methods: Sequence[str], patches: Sequence[Mapping[str, Any]]) -> list[tuple[str, ...]]:
        """Return methods that differ, each with those whose maps are the same but for their unit.

        So it is of CAM, Grad-CAM, HiResCAM and XGrad-CAM where a linear head sees pooled features.

        Args:
            methods: Methods to draw.
            patches: Rows of tables/patches; the maps of all their labels, on every branch, are compared.
        """
        groups: list[tuple[str, ...]] = []
        for method in methods:
            same = (i for i, group in enumerate(groups) if self._are_one(group[0], method, patches))
            at = next(same, None)
            if at is None:
                groups.append((method,))
            else:
                groups[at] += (method,)
        return groups

    def _are_one(self, first: str, second: str, patches: Sequence[Mapping[str, Any]]) -> bool:
        seen = False
        for sr in dict.fromkeys(sr for sr, _ in self._paths):
            try:
                stores = [self._store(sr, method) for method in (first, second)]
                one, other = ([_in_units_of_scale(s, p) for p in patches] if s else [] for s in stores)
            except StoreError:
                return False
            if len(one) != len(other) or not all(map(_alike, one, other)):
                return False
            seen = seen or any(bool((np.nan_to_num(maps) != 0).any()) for maps in one)
        return seen

    def has(self, sr: str, method: str, patch: Mapping[str, Any]) -> bool:
        """Return whether a method was run on a patch of a branch, and its maps are at hand."""
        try:
            store = self._store(sr, method)
        except StoreError:
            return False
        return store is not None and _is_valid(store, patch)

    def read(self, sr: str, method: str, patch: Mapping[str, Any], label: str) -> StoredMap:
        """Return a patch's map of a label, or of the whole patch by a method without labels.

        Args:
            sr: The branch.
            method: The method.
            patch: The patch's row of tables/patches.
            label: The label.
        """
        try:
            store = self._store(sr, method)
            if store is None or not _is_valid(store, patch):
                return StoredMap(None, NOT_MADE)
            names = self._names(store)
            wanted = WHOLE_PATCH if names == (WHOLE_PATCH,) else label
            if wanted not in names:
                return StoredMap(None, UNTAUGHT)
            raw = read_map(store, _index(store, patch), names.index(wanted))
        except StoreError:
            return StoredMap(None, MISSING)
        # Rectified, as what is judged; on one grid, so that maps of all branches and methods compare by pixels.
        values = on_grid(torch.from_numpy(raw).clamp(min=0), self._grid).numpy()
        why_not = why_not_drawn(values)
        return StoredMap(None if why_not else values, why_not)

    def _store(self, sr: str, method: str) -> ShardedStore | None:
        """Return the store of a method on a branch; None where the method was not run on it.

        Raises:
            StoreError: It is gone.
        """
        path = self._paths.get((sr, method))
        return None if path is None else self._open(path)


@dataclass(frozen=True, slots=True)
class Sources:
    """Where the gallery's pictures come from."""

    pixels: GalleryPixels
    maps: StoredMaps
    titles: Mapping[str, str]
    """Methods worth drawing, in the order of RUN.yaml, and what people call each and those that are one map with it."""
    tints: Mapping[str, str]
    """Colours of the labels, in their order."""

    @property
    def methods(self) -> list[str]:
        """Methods worth drawing."""
        return list(self.titles)


def map_picture(
    stored: StoredMap,
    base: NDArray[np.uint8],
    alt: str,
    mask: NDArray[np.bool_] | None = None,
    size: int = OVERLAY_SIZE,
) -> MapPicture:
    """Return a map drawn over its patch, or why it is not.

    Args:
        stored: The map.
        base: The patch, (H, W, 3).
        alt: What the picture shows.
        mask: Where the land cover is the label, (S, S), which a line bounds; None: no line.
        size: Edge of the picture, pixels.
    """
    if stored.values is None:
        return MapPicture(None, stored.why_not)
    drawn = overlay(base, stored.values, size)
    if mask is not None and mask.any() and not mask.all():
        drawn, alt = outlined(drawn, mask), f"{alt}, a line around its land cover"
    return MapPicture(encode(drawn, alt), "")


def _index(store: ShardedStore, patch: Mapping[str, Any]) -> int:
    """Return a patch's place on the patch axis."""
    return int(patch["shard"]) * store.shard_size + int(patch["row"])


def _in_units_of_scale(store: ShardedStore, patch: Mapping[str, Any]) -> NDArray[np.float32]:
    """Return a patch's maps of all labels, (L, h, w), from -1 to 1, NaN where not finite; empty where not made."""
    if not _is_valid(store, patch):
        return np.zeros(0, np.float32)
    return np.asarray(store.array("maps")[_index(store, patch)], np.float32)


def _alike(one: NDArray[np.float32], other: NDArray[np.float32]) -> bool:
    return one.shape == other.shape and np.allclose(one, other, rtol=0, atol=_ROUNDING, equal_nan=True)


def _is_valid(store: ShardedStore, patch: Mapping[str, Any]) -> bool:
    """Return whether a store of maps holds those of a patch."""
    valid, index = store.array("valid"), _index(store, patch)
    return index < valid.shape[0] and bool(valid[index])


def _names(store: ShardedStore) -> tuple[str, ...]:
    """Return what the maps of a patch are of, in their order."""
    return tuple(str(name) for name in np.asarray(store.array("label")[:]).tolist())
