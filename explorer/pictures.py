"""Pictures of patches as PNG, every pixel kept: true and false colour, each SR model, reference land cover."""

import io
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

import sr_models
from infra.bigearthnet.bands import S2_10M, stretch_max_dn
from infra.bigearthnet.classes import CLASSES
from infra.errors import PipelineError, StoreError
from infra.parts import StageParts
from infra.storage import StorePaths
from infra.zarr_store import ShardedStore
from sr_models.registry import CEILING
from tasks.gallery_pixels import GalleryPixels, rgb_array
from tasks.pictures import to_rgb8
from tasks.report.numbers import Numbers

FALSE_COLOUR = ("B08", "B04", "B03")
"""Near infrared, red, green as red, green, blue: vegetation is red."""

_MAX_DN = {S2_10M.array: 3000, "rgb": 255}  # of RUN.yaml, where no run tells
_KEPT = 64


class NoPictureError(PipelineError, LookupError):
    """There is no such picture; the message says why."""


class Pictures:
    """The pictures of one store."""

    def __init__(self, paths: StorePaths, numbers: Numbers | None) -> None:
        """Open the archive's pixels, where there are any.

        Args:
            paths: The store.
            numbers: Its last run; None: no run has ended, and there are no SR models.
        """
        self._paths, self._numbers = paths, numbers
        self._archive: ShardedStore | None = None
        self._of_branches: GalleryPixels | None = None
        try:
            archive = ShardedStore(paths.archive)
            self._array, _, self._rgb = rgb_array(archive)
            self._archive = archive
            self._max_dn = _MAX_DN[self._array] if numbers is None else numbers.run.max_dn
            self._of_branches = None if numbers is None else GalleryPixels(numbers)
        except StoreError as error:
            self._why_none = str(error)
        self.branch = lru_cache(_KEPT)(self._branch)

    @property
    def has_false_colour(self) -> bool:
        """Whether the archive has the bands."""
        return self._archive is not None and self._array == S2_10M.array

    @property
    def size(self) -> int | None:
        """Edge of the archive's patches, pixels; None where there are no pixels."""
        return None if self._archive is None else int(self._archive.array(self._array).shape[-1])

    def true_colour(self, patch: Mapping[str, Any]) -> bytes:
        """Return red, green and blue of a patch of tables/patches, one pixel each.

        Raises:
            NoPictureError: There are no pixels.
        """
        return png(to_rgb8(self._bands(patch)[self._rgb], self._max_dn))

    def input(self, patch: Mapping[str, Any]) -> bytes:
        """Return what SR models see of a patch: its red, green and blue, coarser where the run has `degrade`.

        Raises:
            NoPictureError: There are no pixels, or no run has ended.
        """
        if self._of_branches is None:
            raise NoPictureError(self._why_none if self._archive is None else "no run has ended in this store")
        return png(to_rgb8(self._of_branches.input_rgb(patch), self._max_dn))

    def false_colour(self, patch: Mapping[str, Any]) -> bytes:
        """Return near infrared, red and green likewise; near infrared is brighter, and stretched less.

        Raises:
            NoPictureError: There are no pixels, or no such bands.
        """
        if not self.has_false_colour:
            raise NoPictureError("this archive has no near infrared: there is no false colour")
        dn = self._bands(patch)[[S2_10M.bands.index(band) for band in FALSE_COLOUR]]
        limits = np.array(stretch_max_dn(FALSE_COLOUR, self._max_dn))
        one_stretch = dn * (self._max_dn / limits)[:, None, None]
        return png(to_rgb8(one_stretch.round().astype(np.uint16), self._max_dn))

    def land_cover(self, patch: Mapping[str, Any]) -> bytes:
        """Return the reference map in the colours of the classes; no class is transparent.

        Raises:
            NoPictureError: The patch has none.
        """
        if self._archive is None or not patch["has_map"]:
            raise NoPictureError("this patch has no reference map")
        codes = self._archive.read(patch["shard"], "reference_map", patch["row"], 1)[0]
        colours = np.zeros((1000, 4), np.uint8)
        for land_cover in CLASSES:
            rgb = bytes.fromhex(land_cover.colour.removeprefix("#"))
            colours[list(land_cover.clc)] = (*rgb, 255)
        return png(colours[np.minimum(codes, len(colours) - 1).astype(np.int64)])

    def why_not(self, patch: Mapping[str, Any], sr: str, predictions: str) -> str:
        """Return why a branch has no picture of a patch, without reading its pixels; nothing where it has one.

        Args:
            patch: The patch's row of tables/patches.
            sr: SR model of the branch.
            predictions: Config of its predictions.
        """
        if self._of_branches is None or self._numbers is None:
            return self._why_none if self._archive is None else "no run has ended in this store"
        if sr in {"none", CEILING}:
            return ""
        config = self._numbers.pixels(predictions)
        if config is not None and StageParts(self._paths, "super_resolve", config).is_done(patch["shard"]):
            return ""
        spec = sr_models.SR_MODELS.get(sr)
        is_cheap = spec is not None and spec.recompute_is_cheap and not spec.needs_weights
        return "" if is_cheap else "pixels not stored; keep_sr: always keeps them"

    def _branch(self, shard: int, row: int, sr: str, predictions: str) -> bytes:
        """Return a branch's red, green and blue of a patch.

        Raises:
            NoPictureError: They are neither stored nor cheap to make.
        """
        if self._of_branches is None:
            raise NoPictureError("there are no pixels of this branch")
        dn, why_not = self._of_branches.read({"shard": shard, "row": row}, sr, predictions)
        if dn is None:
            raise NoPictureError(why_not)
        return png(to_rgb8(dn, self._max_dn))

    def _bands(self, patch: Mapping[str, Any]) -> NDArray[np.uint16]:
        """Return all bands of the array that holds red, green and blue, (C, H, W) DN.

        Raises:
            NoPictureError: There are no pixels.
        """
        if self._archive is None:
            raise NoPictureError(self._why_none)
        values = self._archive.read(patch["shard"], self._array, patch["row"], 1)
        return np.asarray(values[0], np.uint16)


def png(pixels: NDArray[np.uint8]) -> bytes:
    """Return a picture as PNG, packed lightly: it goes no farther than this machine.

    Args:
        pixels: (H, W, 3), or (H, W, 4) with opacity.
    """
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "PNG", compress_level=1)
    return file.getvalue()
