"""One picture from a file: its size and depth without its pixels, and its pixels as red, green and blue."""

import os
import stat
import struct
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from infra.archives.files import bad_file, is_inside, leaves
from infra.archives.image_tiff import open_tiff_picture
from infra.errors import BadPatchError

SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff"})
"""Endings of file names that are taken for pictures, in lower case."""

_TIFF = frozenset({".tif", ".tiff"})
_FORMATS = ("PNG", "JPEG", "WEBP")  # of Pillow's many; some of the others start programs
_MODES = frozenset({"RGB", "L", "P", "RGBA", "LA", "PA"})
_ORIENTATION = 0x0112
_TURNED = frozenset({5, 6, 7, 8})  # orientations that swap width and height
_START_OF_SCAN, _END_OF_IMAGE = 0xDA, b"\xff\xd9"
_FLAGS = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK  # a named pipe must not stall a worker
_DAMAGED = (ValueError, LookupError, SyntaxError, EOFError, struct.error)  # what Pillow raises beside OSError
_MOST_BYTES = 1 << 29  # more than Pillow's most pixels have; a file of holes takes no disk, but memory


@dataclass(frozen=True, slots=True)
class Kind:
    """What a picture's header tells, after the orientation that it asks for."""

    height: int
    width: int
    bits: int
    """8 or 16, of each channel."""


def kind_of(root: str, relative: str) -> Kind:
    """Return the size and depth of a picture from its header.

    A PNG that is not square may tell its orientation behind its pixels, which are gone through for it.

    Args:
        root: The archive's root.
        relative: The file, relative to it.

    Raises:
        BadPatchError: It cannot be opened as a picture, or is of a kind that has no three channels of 8 or 16 bits.
        ArchiveError, TransientError: As `bad_file` does.
    """
    with _file(root, relative) as file:
        if _is_tiff(relative):
            with open_tiff_picture(file, f"{root}/{relative}", relative) as tiff:
                height, width, bits, orientation = tiff.height, tiff.width, tiff.bits, tiff.orientation
        else:
            with _pillow(file, relative) as image:
                (width, height), bits = image.size, 8
                orientation = 1 if width == height else _orientation(image)
    return Kind(width, height, bits) if orientation in _TURNED else Kind(height, width, bits)


def read_picture(root: str, relative: str, size: int | None) -> NDArray[np.uint16]:
    """Return a picture's pixels as they are in the file, the right way up.

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
    with _file(root, relative) as file:
        if _is_tiff(relative):
            with open_tiff_picture(file, f"{root}/{relative}", relative) as tiff:
                pixels, alpha = tiff.read()
                orientation = tiff.orientation
        else:
            pixels, alpha, orientation = _read_with_pillow(file, relative)
    if alpha is not None:
        _refuse_transparency(alpha, relative)
    pixels = _upright(pixels, orientation).astype(np.uint16, order="C")
    if size is not None and pixels.shape[1:] != (size, size):
        channels = [Image.fromarray(channel.astype(np.float32)) for channel in pixels]
        resized = [np.asarray(channel.resize((size, size), Image.Resampling.BILINEAR)) for channel in channels]
        pixels = np.rint(np.stack(resized)).astype(np.uint16)
    return pixels


def _is_tiff(relative: str) -> bool:
    return os.path.splitext(relative)[1].lower() in _TIFF  # noqa: PTH122 - a string


@contextmanager
def _file(root: str, relative: str) -> Iterator[BinaryIO]:
    """Open a regular file of the archive; what fails while it is read is the file's fault, or as `bad_file` says."""
    if not is_inside(root, relative):
        raise leaves(relative)
    try:
        with os.fdopen(os.open(f"{root}/{relative}", _FLAGS), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise BadPatchError(relative, "unreadable", "it is not a regular file")
            yield file
    except OSError as error:
        if error.errno is None:  # none of the system's
            raise
        raise bad_file(error, root, relative, absent="missing_file") from error


@contextmanager
def _pillow(file: BinaryIO, shown: str) -> Iterator[Image.Image]:
    """Open a picture with Pillow, whose pixels are read later; whatever fails within is the picture's fault."""
    size = os.fstat(file.fileno()).st_size
    if size > _MOST_BYTES:
        raise BadPatchError(shown, "wrong_size", f"{size} bytes are more than a picture has")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of metadata that says nothing about pixels
        warnings.simplefilter("error", Image.DecompressionBombWarning)
        try:
            with Image.open(file, formats=_FORMATS) as image:
                _refuse_kind(image, file, shown)
                yield image
        except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
            raise BadPatchError(shown, "wrong_size", f"its header promises too many pixels: {error}") from error
        except UnidentifiedImageError as error:
            file.seek(0)
            if not file.read(1):
                raise BadPatchError(shown, "truncated", "it is empty") from error
            raise BadPatchError(shown, "not_an_image", f"its content is none of {', '.join(_FORMATS)}") from error
        except BadPatchError:
            raise
        except (OSError, *_DAMAGED) as error:
            if isinstance(error, OSError) and error.errno is not None:  # the disk's fault
                raise
            reason = "truncated" if "truncated" in str(error).lower() else "corrupt"
            raise BadPatchError(shown, reason, str(error)[:300] or type(error).__name__) from error


def _refuse_kind(image: Image.Image, file: BinaryIO, shown: str) -> None:
    problem = None
    if getattr(image, "n_frames", 1) > 1:
        problem = "it has several frames"
    elif image.mode not in _MODES or (image.format == "PNG" and _png_depth(file) == 16):
        problem = f"it is of mode {image.mode}; 8 bits a channel are needed, or a TIFF of 16"
    if problem is not None:
        raise BadPatchError(shown, "wrong_type", problem)


def _png_depth(file: BinaryIO) -> int:
    """Return the bits of a channel of a PNG, which Pillow reduces to 8 without a word."""
    position = file.tell()
    file.seek(24)
    (depth,) = file.read(1)
    file.seek(position)
    return depth


def _read_with_pillow(file: BinaryIO, shown: str) -> tuple[NDArray[Any], NDArray[Any] | None, int]:
    """Return the colours, (3, H, W), the opacity, (H, W), where the file has one, and the orientation."""
    with _pillow(file, shown) as image:
        if image.format == "PNG":
            image.verify()  # checksums: Pillow stops at the last row, and a tail of zeros may give rows too
        elif image.format == "JPEG":
            _refuse_open_end(file, shown)
    file.seek(0)  # a verified picture cannot be read
    with _pillow(file, shown) as image:
        orientation = _orientation(image)
        image.load()  # only now all of a PNG's metadata is known
        has_alpha = "A" in image.getbands() or "transparency" in image.info
        pixels = np.asarray(image.convert("RGBA" if has_alpha else "RGB")).transpose(2, 0, 1)
        return pixels[:3], pixels[3] if has_alpha else None, orientation


def _refuse_open_end(file: BinaryIO, shown: str) -> None:
    """Raise `truncated` for a JPEG without its end: one whose rest is zeros, say, which decodes as grey.

    Source: ITU-T T.81, B.1: the marker does not occur within coded pixels; the segments before them, where smaller
    pictures may stand, tell their lengths.
    """
    file.seek(0)
    data = file.read()
    at = 2
    while at + 4 <= len(data) and data[at + 1] != _START_OF_SCAN:
        at += 1 if data[at + 1] == 0xFF else 2 + int.from_bytes(data[at + 2 : at + 4])  # 0xFF: a byte that fills
    if data.find(_END_OF_IMAGE, at) < 0:
        raise BadPatchError(shown, "truncated", "it lacks the marker of its end")


def _orientation(image: Image.Image) -> int:
    """Return the orientation that a picture asks for, 1 to 8; 1: as it is, also where it asks for none of these."""
    value = image.getexif().get(_ORIENTATION, 1)
    return value if value in range(1, 9) else 1


def _upright(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Return pixels, (C, H, W), turned and mirrored as an orientation asks for.

    Source: EXIF 2.32 (CIPA DC-008), tag Orientation: where the first row and the first column of the file belong.
    """
    if orientation in _TURNED:  # the first row of the file is a column
        pixels = pixels.swapaxes(1, 2)
    if orientation in {3, 4, 7, 8}:  # its rows, or what they have become, run upwards
        pixels = pixels[:, ::-1]
    if orientation in {2, 3, 6, 7}:
        pixels = pixels[:, :, ::-1]
    return pixels


def _refuse_transparency(alpha: NDArray[Any], shown: str) -> None:
    """Raise `wrong_type` where a picture lets through what lies behind it."""
    clear = alpha != np.iinfo(alpha.dtype).max
    if clear.any():
        raise BadPatchError(shown, "wrong_type", f"{100 * clear.mean():.2g} % of its pixels are transparent")
