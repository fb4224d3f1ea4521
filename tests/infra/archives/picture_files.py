"""Pictures of known pixels, written with Pillow and tifffile."""

from pathlib import Path
from typing import Any

import numpy as np
import tifffile
from PIL import Image

Pixels = np.ndarray[Any, Any]
Depth = type[np.uint8] | type[np.uint16]


def smooth(height: int, width: int, seed: int = 0) -> Pixels:
    """Return a picture (H, W, 3) uint8 without sharp edges, so that JPEG and WebP keep it nearly."""
    random = np.random.default_rng(seed)
    coarse = Image.fromarray(random.integers(0, 256, (4, 4, 3)).astype(np.uint8))
    return np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))


def noise(shape: tuple[int, ...], dtype: Depth = np.uint8, seed: int = 0) -> Pixels:
    """Return values over the whole range of a type."""
    return np.random.default_rng(seed).integers(0, np.iinfo(dtype).max, shape, dtype=dtype, endpoint=True)


def write_picture(path: Path, pixels: Pixels, **options: Any) -> Path:
    """Write (H, W[, bands]) uint8 with Pillow, or (H, W[, 3]) uint16 with tifffile; folders are made."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if pixels.dtype == np.uint16:
        tifffile.imwrite(path, pixels, photometric="minisblack" if pixels.ndim == 2 else "rgb", **options)
    else:
        Image.fromarray(pixels).save(path, **options)
    return path


def as_stored(pixels: Pixels) -> Pixels:
    """Return (H, W) or (H, W, 3) as a patch has it, (3, H, W)."""
    return np.stack([pixels] * 3) if pixels.ndim == 2 else pixels.transpose(2, 0, 1)


def with_pillow(path: Path) -> Pixels:
    """Return a file's pixels as Pillow reads them, (3, H, W)."""
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).transpose(2, 0, 1)
