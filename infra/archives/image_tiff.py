"""A TIFF as a picture: grey, palette or red, green and blue, 8 or 16 bits a channel, read with GDAL.

GDAL says nothing of much that would change a picture: it hands out CMYK as RGB, palette indices as grey, missing blocks
as black, the first of several pages, and pixels as they are stored, whatever orientation the file asks for. All of that
is looked at here.
"""

import os
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # GDAL's own errors, which rasterio passes on as they are
from rasterio.enums import ColorInterp, MaskFlags
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader

from infra.archives.tiff_blocks import MAX_BLOCK_BYTES, MAX_PIXEL_BYTES
from infra.errors import BadPatchError

_DEPTHS = {"uint8": 8, "uint16": 16}
_RGB = (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
_UNNAMED = (ColorInterp.gray, ColorInterp.undefined, ColorInterp.undefined)  # how GDAL writes three bands of 16 bits
_COLOURS = frozenset({(ColorInterp.gray,), (ColorInterp.palette,), _RGB, _UNNAMED})
_MAGICS = frozenset({b"II*\0", b"MM\0*", b"II+\0", b"MM\0+"})  # the latter two: BigTIFF
_ORIENTATION = 274


class TiffPicture:
    """An open TIFF that is a picture.

    Attributes:
        height, width: Pixels, as they are stored.
        bits: 8 or 16, of each channel.
        orientation: 1 to 8, as EXIF has it; 1: as stored.
    """

    def __init__(self, dataset: DatasetReader, shown: str, orientation: int) -> None:
        self._dataset, self._shown = dataset, shown
        self.height, self.width = dataset.shape
        self.bits = _DEPTHS[dataset.dtypes[0]]
        self.orientation = orientation

    def read(self) -> tuple[NDArray[Any], NDArray[Any] | None]:
        """Return the colours, (3, H, W), and the opacity, (H, W), where the file has one.

        Raises:
            BadPatchError: Blocks are missing, or cannot be decoded.
        """
        dataset = self._dataset
        self._refuse_missing_blocks()
        pixels = dataset.read()
        alpha = pixels[-1] if dataset.colorinterp[-1] == ColorInterp.alpha else None
        colours = pixels if alpha is None else pixels[:-1]
        if _structure(dataset).get("MINISWHITE") == "YES":  # before the palette: GDAL makes one up for it
            colours = np.iinfo(pixels.dtype).max - colours
        elif dataset.colorinterp[0] == ColorInterp.palette:
            colours = self._palette()[:, pixels[0]]
        return (colours if len(colours) == 3 else colours[[0, 0, 0]]), alpha

    def _palette(self) -> NDArray[np.uint8]:
        """Return the colour of each index, (3, 256)."""
        palette = np.zeros((3, 256), np.uint8)
        for index, colour in self._dataset.colormap(1).items():
            palette[:, index] = colour[:3]
        return palette

    def _refuse_missing_blocks(self) -> None:
        """Raise `truncated` where a block was never written, which GDAL reads as black, or ends beyond the file."""
        dataset = self._dataset
        size = Path(dataset.name).stat().st_size
        planes = range(1, 1 + (dataset.count if _structure(dataset).get("INTERLEAVE") == "BAND" else 1))
        for band in planes:
            for (row, column), _ in dataset.block_windows(band):
                offset, length = (
                    int(dataset.get_tag_item(f"BLOCK_{item}_{column}_{row}", "TIFF", bidx=band) or 0)
                    for item in ("OFFSET", "SIZE")
                )
                if not offset or not length:
                    raise BadPatchError(self._shown, "truncated", f"block {row}, {column} was never written")
                if offset + length > size:
                    ends = f"block {row}, {column} ends at byte {offset + length}, the file has {size}"
                    raise BadPatchError(self._shown, "truncated", ends)


@contextmanager
def open_tiff_picture(file: BinaryIO, path: str, shown: str) -> Iterator[TiffPicture]:
    """Open a TIFF, without what may lie beside it; whatever GDAL says within is the file's fault.

    Args:
        file: The file, open.
        path: The file.
        shown: The path for messages.

    Raises:
        BadPatchError: It is no TIFF, is damaged, too large, or no picture of three channels of 8 or 16 bits.
    """
    magic = file.read(4)
    if not magic:
        raise BadPatchError(shown, "truncated", "it is empty")
    if magic not in _MAGICS:
        raise BadPatchError(shown, "not_a_tiff", f"it starts with {magic!r}, which no TIFF does")
    try:
        orientation = _orientation(file)
    except struct.error as error:
        raise BadPatchError(shown, "truncated", "its directory lies beyond its end") from error
    try:
        with (
            warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning),
            rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"),
            rasterio.open(path, driver="GTiff") as dataset,
        ):
            for reason, wrong in (("wrong_size", _wrong_size(dataset)), ("wrong_type", _wrong_type(dataset))):
                if wrong is not None:
                    raise BadPatchError(shown, reason, wrong)
            yield TiffPicture(dataset, shown, orientation)
    except (RasterioError, CPLE_BaseError) as error:
        cause = error.__cause__ if error.__cause__ is not None else error
        raise BadPatchError(shown, "corrupt", f"GDAL cannot read it: {str(cause)[:300]}") from error


def _wrong_size(dataset: DatasetReader) -> str | None:
    """Return why a picture must not be decoded: its header may promise what no memory holds."""
    item = dataset.count * max(np.dtype(name).itemsize for name in dataset.dtypes)
    height, width = dataset.shape
    block = item * max(rows * columns for rows, columns in dataset.block_shapes)
    if item * height * width <= MAX_PIXEL_BYTES and block <= MAX_BLOCK_BYTES:
        return None
    return f"its header promises {width} x {height} pixels in blocks of {block} B"


def _wrong_type(dataset: DatasetReader) -> str | None:
    """Return why a TIFF is no picture; None where it is one."""
    structure = _structure(dataset)
    if dataset.subdatasets:
        return f"it has {len(dataset.subdatasets)} pages"
    types = set(dataset.dtypes)
    bits = {dataset.tags(i, ns="IMAGE_STRUCTURE").get("NBITS") for i in dataset.indexes} - {None}
    if len(types) > 1 or types - _DEPTHS.keys() or bits:
        depth = f"{', '.join(sorted(bits))} bits" if bits else ", ".join(sorted(types))
        return f"its channels are of {depth}; 8 or 16 bits are needed"
    space = structure.get("SOURCE_COLOR_SPACE")
    if space is not None and not ("JPEG" in structure.get("COMPRESSION", "") and space == "YCbCr"):
        return f"its colours are {space}; grey, a palette or red, green and blue are needed"
    roles = tuple(dataset.colorinterp)
    colours = roles[:-1] if roles[-1] == ColorInterp.alpha else roles
    if colours not in _COLOURS:
        return f"its {dataset.count} bands are {', '.join(role.name for role in roles)}; grey or R, G, B are needed"
    if colours == (ColorInterp.palette,) and dataset.dtypes[0] != "uint8" and structure.get("MINISWHITE") != "YES":
        return "its palette has 16 bits; 8 are needed"
    if len(colours) == len(roles) and MaskFlags.per_dataset in dataset.mask_flag_enums[0]:
        return "a mask hides some of its pixels"
    return None


def _structure(dataset: DatasetReader) -> dict[str, str]:
    tags: dict[str, str] = dataset.tags(ns="IMAGE_STRUCTURE")
    return tags


def _orientation(file: BinaryIO) -> int:
    """Return the orientation that the first directory of a TIFF asks for; 1 where it has none of 1 to 8.

    Raises:
        struct.error: The file ends before the directory does.

    Source: TIFF 6.0 (Adobe 1992), section 2; BigTIFF has wider counts and offsets.
    """
    file.seek(0)
    head = file.read(16)
    order = "<" if head[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", head, 2) == (43,)
    (start,) = struct.unpack_from(order + ("Q" if big else "I"), head, 8 if big else 4)
    file.seek(min(start, file.seek(0, os.SEEK_END)))
    number = struct.Struct(order + ("Q" if big else "H"))
    entry = struct.Struct(order + ("HHQH6x" if big else "HHIH2x"))  # tag, type, count, and a short as the value
    (entries,) = number.unpack(file.read(number.size))
    for _ in range(entries):
        tag, _, _, value = entry.unpack(file.read(entry.size))
        if tag == _ORIENTATION:
            return value if 1 <= value <= 8 else 1
        if tag > _ORIENTATION:  # they are in order
            break
    return 1
