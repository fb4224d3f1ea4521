"""One picture from a file: its size and depth without its pixels, and its pixels as red, green and blue."""

import warnings
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np
import rasterio
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError
from rasterio.errors import NotGeoreferencedWarning, RasterioError

from infra.archives.files import bad_file
from infra.errors import BadPatchError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
"""Endings of file names that are taken for pictures, in lower case."""

_TIFF = frozenset({".tif", ".tiff"})
_MODES = frozenset({"RGB", "L", "P", "RGBA", "LA", "PA"})
_EXIF_ORIENTATION = 0x0112
_TURNED = frozenset({5, 6, 7, 8})  # EXIF orientations that swap width and height
_DEPTHS = {"uint8": 8, "uint16": 16}


@dataclass(frozen=True, slots=True)
class Kind:
    """What a picture's header tells, after the orientation that it asks for."""

    height: int
    width: int
    bits: int
    """8 or 16, of each channel."""


def kind_of(root: str, relative: str) -> Kind:
    """Return the size and depth of a picture from its header.

    Args:
        root: The archive's root.
        relative: The file, relative to it.

    Raises:
        BadPatchError: It cannot be opened as a picture, or is of a kind that has no three channels of 8 or 16 bits.
        ArchiveError, TransientError: As `bad_file` does.
    """
    if Path(relative).suffix.lower() in _TIFF:
        with _tiff(root, relative) as dataset:
            return Kind(dataset.height, dataset.width, _DEPTHS[dataset.dtypes[0]])
    with _file(root, relative) as file, _opened(file, relative) as image:
        width, height = image.size
        turned = image.getexif().get(_EXIF_ORIENTATION) in _TURNED
    return Kind(width, height, 8) if turned else Kind(height, width, 8)


def read_picture(root: str, relative: str, size: int | None) -> NDArray[np.uint16]:
    """Return a picture's pixels as they are in the file.

    Grey and palette become RGB. Where it is resized, each channel is: bilinear, weighted over all pixels that fall
    together, and rounded, halves to even.

    Args:
        root: The archive's root.
        relative: The file, relative to it.
        size: Edge that it is resized to, whatever its proportions; None: as it is.

    Returns:
        (3, H, W), 0..255 or 0..65,535.

    Raises:
        BadPatchError: The file is damaged, is gone, or has transparent pixels.
        ArchiveError, TransientError: As `bad_file` does.
    """
    is_tiff = Path(relative).suffix.lower() in _TIFF
    pixels = _tiff_pixels(root, relative) if is_tiff else _pillow_pixels(root, relative)
    if size is not None and pixels.shape[1:] != (size, size):
        channels = [Image.fromarray(channel.astype(np.float32)) for channel in pixels]
        resized = [np.asarray(channel.resize((size, size), Image.Resampling.BILINEAR)) for channel in channels]
        pixels = np.rint(np.stack(resized)).astype(np.uint16)
    return pixels


def _file(root: str, relative: str) -> BinaryIO:
    try:
        return Path(root, relative).open("rb")
    except OSError as error:
        raise bad_file(error, root, relative, absent="missing_file") from error


def _opened(file: BinaryIO, shown: str) -> Image.Image:
    """Open a picture with Pillow, whose pixels are read later."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            image = Image.open(file)
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise BadPatchError(shown, "wrong_size", f"its header promises too many pixels: {error}") from error
    except UnidentifiedImageError as error:
        file.seek(0)
        reason, detail = ("not_an_image", "its content is no picture") if file.read(1) else ("truncated", "it is empty")
        raise BadPatchError(shown, reason, detail) from error
    except (OSError, ValueError, SyntaxError) as error:
        raise _broken(shown, error) from error
    problem = None
    if getattr(image, "n_frames", 1) > 1:
        problem = "it has several frames"
    elif image.mode not in _MODES or (image.format == "PNG" and _png_depth(file) == 16):
        problem = f"it is of mode {image.mode}; 8 bits a channel are needed, or a TIFF of 16"
    if problem is not None:
        image.close()
        raise BadPatchError(shown, "wrong_type", problem)
    return image


def _png_depth(file: BinaryIO) -> int:
    """Return the bits of a channel of a PNG, which Pillow reduces to 8 without a word."""
    position = file.tell()
    file.seek(24)
    (depth,) = file.read(1)
    file.seek(position)
    return depth


def _pillow_pixels(root: str, shown: str) -> NDArray[np.uint16]:
    with _file(root, shown) as file, _opened(file, shown) as opened:
        try:
            image = ImageOps.exif_transpose(opened)
            if "A" in image.getbands() or "transparency" in image.info:
                image = image.convert("RGBA")
                _refuse_transparency(np.asarray(image.getchannel("A")), 255, shown)
            pixels = np.asarray(image.convert("RGB"))
        except (OSError, ValueError, SyntaxError, EOFError) as error:
            raise _broken(shown, error) from error
    return np.ascontiguousarray(pixels.transpose(2, 0, 1)).astype(np.uint16)


def _tiff(root: str, shown: str) -> rasterio.DatasetReader:
    """Open a TIFF whose bands are grey or red, green, blue, and perhaps an alpha."""
    _file(root, shown).close()  # tells what is wrong with the file as such
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            dataset = rasterio.open(Path(root, shown), driver="GTiff")
    except RasterioError as error:
        raise BadPatchError(shown, "not_a_tiff", str(error)[:300]) from error
    if dataset.count not in {1, 3, 4} or set(dataset.dtypes) - _DEPTHS.keys() or len(set(dataset.dtypes)) > 1:
        found = f"{dataset.count} bands of {', '.join(dict.fromkeys(dataset.dtypes))}"
        dataset.close()
        raise BadPatchError(shown, "wrong_type", f"it has {found}; 1, 3 or 4 of uint8 or uint16 are needed")
    return dataset


def _tiff_pixels(root: str, shown: str) -> NDArray[np.uint16]:
    with _tiff(root, shown) as dataset:
        try:
            pixels = dataset.read()
        except RasterioError as error:
            raise BadPatchError(shown, "corrupt", str(error)[:300]) from error
    if len(pixels) == 4:
        _refuse_transparency(pixels[3], np.iinfo(pixels.dtype).max, shown)
    colours = pixels[[0, 0, 0]] if len(pixels) == 1 else pixels[:3]
    return np.asarray(colours.astype(np.uint16))


def _refuse_transparency(alpha: NDArray[np.generic], opaque: int, shown: str) -> None:
    if (alpha != opaque).any():
        share = float((alpha != opaque).mean())
        raise BadPatchError(shown, "wrong_type", f"{100 * share:.1f} % of its pixels are transparent")


def _broken(shown: str, error: Exception) -> BadPatchError:
    if isinstance(error, OSError) and error.errno is not None:
        return BadPatchError(shown, "unreadable", error.strerror or str(error))
    reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
    return BadPatchError(shown, reason, str(error)[:300])
