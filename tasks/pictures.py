"""Pictures for a page: pixels and activation maps as images inside the text."""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib import colormaps
from numpy.typing import NDArray
from PIL import Image

from infra.bigearthnet.classes import CLASSES

GAMMA = 1.5
"""Pictures are (DN / max_dn) ** (1 / GAMMA): land is dark on a linear scale, and 2.2 would wash it out."""

COLOURS = "viridis"
"""matplotlib's colour map of the activation maps; perceptually even."""

LABEL_COLOURS = "tab20"
"""matplotlib's colours of labels that have none of their own, by their place."""

OVERLAY_SIZE = 240
"""Edge of a map over its picture, pixels."""

_PICTURE_SIZE = 480


@dataclass(frozen=True, slots=True)
class Picture:
    """An image inside the page."""

    uri: str
    size: int
    """Edge, pixels."""
    alt: str


def to_rgb8(dn: NDArray[np.uint16], max_dn: int) -> NDArray[np.uint8]:
    """Return a picture, (H, W, 3) uint8, of B04, B03, B02 as DN (3, H, W): 0..max_dn with a gamma of 1 / GAMMA."""
    x = np.minimum(dn, max_dn).astype(np.float64) / max_dn
    return np.asarray(np.rint(255 * x ** (1 / GAMMA)).transpose(1, 2, 0), np.uint8)


def why_not_drawn(cam: NDArray[np.float32]) -> str:
    """Return why a map cannot be drawn, in words for its place: it is not finite, or nowhere above 0; else nothing.

    Args:
        cam: (h, w), any range.
    """
    if not np.isfinite(cam).all():
        return "not finite"
    return "" if cam.max() > 0 else "nowhere above 0"


def overlay(rgb: NDArray[np.uint8], cam: NDArray[np.float32], size: int = OVERLAY_SIZE) -> NDArray[np.uint8]:
    """Return a map laid over a picture in grey, (size, size, 3) uint8.

    Args:
        rgb: (H, W, 3).
        cam: (h, w), with a positive value; drawn from 0 to its own maximum, enlarged bilinearly.
        size: Edge, pixels.
    """
    edges = (size, size)
    grey = np.asarray(Image.fromarray(rgb).convert("L").resize(edges, Image.Resampling.LANCZOS), np.float64) / 255
    positive = np.maximum(cam, 0) / cam.max()
    heat = np.asarray(Image.fromarray(positive).resize(edges, Image.Resampling.BILINEAR), np.float64)
    colour = colormaps[COLOURS](np.clip(heat, 0, 1))[..., :3]
    return np.asarray(np.rint(255 * (0.45 * grey[..., None] + 0.55 * colour)), np.uint8)


def outlined(rgb: NDArray[np.uint8], mask: NDArray[np.bool_]) -> NDArray[np.uint8]:
    """Return a picture with a line around a mask: white within it, black without, so that one of both is seen.

    Args:
        rgb: (H, W, 3).
        mask: (h, w), over the same ground; brought to the picture's grid by nearest neighbour. Where it goes on to the
            picture's edge there is no line.
    """
    height, width = rgb.shape[:2]
    inside = np.asarray(Image.fromarray(mask).resize((width, height), Image.Resampling.NEAREST), np.bool_)
    near = np.pad(inside, 1, mode="edge")
    around = [near[:-2, 1:-1], near[2:, 1:-1], near[1:-1, :-2], near[1:-1, 2:]]
    picture = rgb.copy()
    picture[inside & ~np.logical_and.reduce(around)] = 255
    picture[~inside & np.logical_or.reduce(around)] = 0
    return picture


def thumbnail(rgb: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Return a small picture, (size, size, 3) uint8; where pixels are enlarged they stay squares.

    Args:
        rgb: (H, H, 3).
        size: Edge, pixels, at most 240: below what `fitted` gives.
    """
    return np.asarray(Image.fromarray(fitted(rgb)).resize((size, size), Image.Resampling.BOX), np.uint8)


def label_colours(labels: Sequence[str]) -> dict[str, str]:
    """Return a colour of each label, CSS: CORINE's of BigEarthNet's classes, others by their place.

    Args:
        labels: The archive's labels in their order.
    """
    own = {c.name: c.colour for c in CLASSES}
    others = colormaps[LABEL_COLOURS]
    return {label: own.get(label, _css(others(i % others.N))) for i, label in enumerate(labels)}


def colour_stops(count: int = 9) -> list[str]:
    """Return the colours of the maps from 0 to the maximum, CSS."""
    return [_css(colormaps[COLOURS](i / (count - 1))) for i in range(count)]


def fitted(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return a picture in the page's size, at most 480 pixels wide.

    Args:
        rgb: (H, H, 3); below 480 every pixel is repeated a whole number of times, above 480 it is reduced (Lanczos).
    """
    times = _PICTURE_SIZE // len(rgb)
    if times:
        return rgb.repeat(times, axis=0).repeat(times, axis=1)
    size = (_PICTURE_SIZE, _PICTURE_SIZE)
    return np.asarray(Image.fromarray(rgb).resize(size, Image.Resampling.LANCZOS), np.uint8)


def encode(rgb: NDArray[np.uint8], alt: str, *, lossless: bool = False) -> Picture:
    """Return an image for the page, WebP.

    Args:
        rgb: (H, H, 3).
        alt: What it shows, for those who cannot see it.
        lossless: Whether every pixel is kept.
    """
    image = Image.fromarray(rgb)
    file = io.BytesIO()
    image.save(file, "WEBP", lossless=lossless, quality=50 if lossless else 86)
    return Picture(f"data:image/webp;base64,{base64.b64encode(file.getvalue()).decode()}", image.width, alt)


def map_uri(cam: NDArray[np.float32]) -> str:
    """Return a map as an image for the page, PNG, a pixel a place; (h, w), from 0 to 1, in the maps' colours."""
    colour = np.rint(255 * colormaps[COLOURS](np.clip(cam, 0, 1))[..., :3]).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(colour).save(file, "PNG")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"


def _css(colour: Sequence[float]) -> str:
    return "#" + "".join(f"{round(255 * part):02x}" for part in colour[:3])
