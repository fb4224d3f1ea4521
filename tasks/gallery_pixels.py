"""Where the report's gallery takes its pixels from: the Zarr stores, or a model that is cheap to run."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

import sr_models
from infra.bigearthnet.bands import IMAGE_RGB, RGB, S2_10M
from infra.errors import StoreError
from infra.parts import StageParts
from infra.zarr_store import ShardedStore
from sr_models.registry import CEILING
from tasks.explained_patch import land_cover
from tasks.patch_pixels import reduced
from tasks.pictures import to_rgb8
from tasks.quality_summary import CONTROL
from tasks.report.numbers import Numbers

_RGB_ARRAYS = (S2_10M.array, "rgb")  # an archive has one of them
_RGB_NAMES = (RGB, IMAGE_RGB)


@dataclass(frozen=True, slots=True)
class SeenPatch:
    """A patch as one branch shows it."""

    sr: str
    rgb: NDArray[np.uint8] | None
    """(H, W, 3); None where there are no pixels."""
    why_not: str
    """Why there are none."""
    width: int | None
    """Its edge in pixels; None where there are none."""
    base: NDArray[np.uint8]
    """What maps are laid over, (H, W, 3): the branch's pixels, or the archive's."""


class GalleryPixels:
    """Where the gallery's pixels come from."""

    def __init__(self, numbers: Numbers) -> None:
        """Open the archive's pixels.

        Raises:
            StoreError: There are none, or none of the arrays known here holds red, green and blue.
        """
        self._numbers = numbers
        self.max_dn = numbers.run.max_dn
        self._degrade = numbers.degrade
        self._archive = ShardedStore(numbers.paths.archive)
        self._open: Callable[[Path], ShardedStore] = cache(ShardedStore)
        self._resolver: Callable[[str], sr_models.SuperResolver] = cache(sr_models.load)
        self._array, self.bands, self._index = rgb_array(self._archive)
        array = self._archive.array(self._array)
        self.size = int(array.shape[-1])
        """Edge of the archive's patches, pixels."""
        gsd = array.attrs.get("gsd_m")
        self._gsd = float(gsd) if isinstance(gsd, int | float) else None

    @property
    def width_km(self) -> float | None:
        """Width of a patch, km; None where the archive does not say how large a pixel is."""
        return None if self._gsd is None else self.size * self._gsd / 1000

    def caption(self, sr: str, size: int | None) -> str:
        """Return what a branch's picture is.

        Args:
            sr: The branch.
            size: Its edge in pixels; None where there are no pixels.
        """
        what = {"none": "the patch", CONTROL: "enlarged", CEILING: "high resolution"}.get(sr, "super-resolved")
        if size is None:
            return what
        return f"{what}, {size} px wide" if self._gsd is None else f"{what}, {self._gsd * self.size / size:g} m"

    def input_rgb(self, patch: Mapping[str, Any]) -> NDArray[np.uint16]:
        """Return red, green and blue of a patch as DN, (3, H, W), as SR models see it: reduced by `degrade`."""
        return reduced(torch.from_numpy(self._archive_rgb(patch))[None], self._degrade)[0].numpy()

    def read(self, patch: Mapping[str, Any], sr: str, predictions: str) -> tuple[NDArray[np.uint16] | None, str]:
        """Return a branch's red, green, blue as DN, (3, H, W), stored or computed, or None and why there are none."""
        if sr == "none":
            return self.input_rgb(patch), ""
        if sr == CEILING:
            return self._archive_rgb(patch), ""
        config = self._numbers.pixels(predictions)
        if config is not None:
            path = self._numbers.paths.super_resolved(sr, config)
            done = StageParts(self._numbers.paths, "super_resolve", config).is_done(patch["shard"])
            if done and (path / "zarr.json").exists():
                return self._open(path).read(patch["shard"], "sr", patch["row"], 1)[0, : len(RGB)].astype(np.uint16), ""
        spec = sr_models.SR_MODELS.get(sr)
        if spec is None or spec.needs_weights or not spec.recompute_is_cheap:
            return None, "pixels not stored; keep_sr: always keeps them"
        x = sr_models.to_unit(self.input_rgb(patch)[None], self.max_dn)
        return sr_models.to_dn(self._resolver(sr)(x), self.max_dn)[0].numpy(), ""

    def seen(self, patch: Mapping[str, Any], sr: str, predictions: str) -> SeenPatch:
        """Return a patch as a branch shows it.

        Args:
            patch: Its row of tables/patches.
            sr: The branch.
            predictions: Config of the branch's predictions.
        """
        dn, why_not = self.read(patch, sr, predictions)
        if dn is None:
            return SeenPatch(sr, None, why_not, None, to_rgb8(self.input_rgb(patch), self.max_dn))
        rgb = to_rgb8(dn, self.max_dn)
        return SeenPatch(sr, rgb, "", dn.shape[-1], rgb)

    def truth(self, patch: Mapping[str, Any], label: str) -> NDArray[np.bool_] | None:
        """Return where the land cover is the label, (S, S); None without a reference map."""
        return land_cover(self._archive, patch["shard"], patch["row"], label) if patch["has_map"] else None

    def _archive_rgb(self, patch: Mapping[str, Any]) -> NDArray[np.uint16]:
        row = self._archive.read(patch["shard"], self._array, patch["row"], 1)
        return row[0, self._index].astype(np.uint16, copy=False)


def rgb_array(archive: ShardedStore) -> tuple[str, tuple[str, ...], list[int]]:
    """Return the array that holds red, green and blue, their names there, and their places on its band axis.

    Raises:
        StoreError: There is none.
    """
    for name in _RGB_ARRAYS:
        if name in archive.group:
            axes: tuple[str, ...] = archive.array(name).metadata.dimension_names  # type: ignore[union-attr, assignment]
            bands = np.asarray(archive.array(axes[1])[:]).tolist()  # the coordinate of the band axis
            for names in _RGB_NAMES:
                if set(names) <= set(bands):
                    return name, names, [bands.index(band) for band in names]
    wanted = " or ".join(",".join(names) for names in _RGB_NAMES)
    raise StoreError(f"{archive.path} has no array {' or '.join(_RGB_ARRAYS)} with the bands {wanted}: nothing to draw")
