"""One synthetic patch: land cover, true 2.5 m image, and what Sentinel-2 and Sentinel-1 would see of it."""

from dataclasses import dataclass

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.archives.synthetic.landcover import COVERS, ROAD, draw_codes, draw_regions, majority_map
from infra.archives.synthetic.places import Flag, Place
from infra.archives.synthetic.textures import SIZE, Canvas, Field
from infra.bigearthnet.bands import PATCH_SIZE, RGB, S2_BANDS, S2_GROUPS
from infra.bigearthnet.classes import CLC_TO_INDEX, NAMES

SENSOR_NOISE_DN = 9.0
"""Standard deviation of the noise of one 2.5 m pixel, per band."""

S1_LOOKS = 4.4
"""Equivalent number of looks of a GRD product: the shape of its gamma-distributed speckle."""


@dataclass(frozen=True, slots=True)
class SyntheticPatch:
    """The pixels of one patch and the labels that follow from its map."""

    bands: dict[str, NDArray[np.uint16]]
    """Sentinel-2 band to (n, n) DN, n = 120, 60 or 20."""
    s1: dict[str, NDArray[np.float32]]
    """VV and VH to (120, 120) dB."""
    reference_map: NDArray[np.uint16]
    """(120, 120) CORINE level-3 codes."""
    high_res: NDArray[np.uint16]
    """(3, 480, 480) DN, B04, B03, B02 at 2.5 m: the truth that B02 to B04 are means of."""
    labels: tuple[str, ...]
    """Classes of the codes in the map, in alphabetical order as in the v2 metadata."""


def render(place: Place, seed: int) -> SyntheticPatch:
    """Return the pixels of one patch; they depend on the seed and the place alone."""
    canvas = Canvas(np.random.default_rng([seed, 0, place.index]), place.vigour)
    codes = draw_codes(canvas.rng, place.anchor)
    regions = draw_regions(canvas, codes)
    codes = _draw_motorway(canvas, regions, codes)
    index, shade = _paint(canvas, regions, codes)
    reference_map = majority_map(regions, codes)
    high_res = {}
    bands = {}
    spectra = canvas.spectra()
    overlay = _overlay(canvas, place.flag)
    for number, band in enumerate(S2_BANDS):
        dn = np.take(spectra[:, number], index) * shade
        if overlay is not None:
            cover, material, shadow = overlay
            dn = dn * shadow * (1 - cover) + cover * material[number]
        if band in RGB:
            dn = np.rint(dn + np.float32(SENSOR_NOISE_DN) * canvas.noise()).clip(1, 65535)
            high_res[band] = dn.astype(np.uint16)
        bands[band] = np.rint(_block_mean(dn, _size(band))).clip(1, 65535).astype(np.uint16)
    labels = {NAMES[CLC_TO_INDEX[code]] for code in np.unique(reference_map).tolist() if code in CLC_TO_INDEX}
    return SyntheticPatch(
        bands=bands,
        s1=_backscatter(canvas, reference_map),
        reference_map=reference_map,
        high_res=np.stack([high_res[band] for band in RGB]),
        labels=tuple(sorted(labels)),
    )


def _size(band: str) -> int:
    return next(group.size for group in S2_GROUPS if band in group.bands)


def _block_mean(field: Field, size: int) -> NDArray[np.float64]:
    """Return the (size, size) means over blocks; exact for whole numbers, so that any order of summing agrees."""
    factor = SIZE // size
    rows = field.reshape(size, factor, SIZE).sum(axis=1, dtype=np.float64)
    return np.asarray(rows.reshape(size, size, factor).sum(axis=2) / factor**2)


def _draw_motorway(canvas: Canvas, regions: NDArray[np.uint8], codes: tuple[int, ...]) -> tuple[int, ...]:
    """Draw a motorway, 20 to 30 m wide, into one map in ten; return the codes with its own."""
    if canvas.rng.random() >= 0.1:
        return codes
    _, v = canvas.axes(bend=40)
    offset, width = canvas.rng.uniform(-100, 100), canvas.rng.uniform(4, 6)
    line = np.abs(v - np.float32(offset)) < np.float32(width)
    for k, code in enumerate(codes):  # it crosses no water
        if code >= 500:
            line &= regions != k
    regions[line] = len(codes)
    return (*codes, ROAD)


def _paint(canvas: Canvas, regions: NDArray[np.uint8], codes: tuple[int, ...]) -> tuple[NDArray[np.intp], Field]:
    index = np.empty((SIZE, SIZE), dtype=np.intp)
    shade = np.empty((SIZE, SIZE), dtype=np.float32)
    for k, code in enumerate(codes):
        surface = COVERS[code].paint(canvas)
        here = regions == k
        np.copyto(index, surface.index, where=here)
        np.copyto(shade, surface.shade, where=here, casting="same_kind")
    sun = np.float32(canvas.rng.normal(1.0, 0.06))
    return index, shade * (sun + np.float32(0.04) * canvas.smooth(150))


def _overlay(canvas: Canvas, flag: Flag) -> tuple[Field, NDArray[np.float32], Field] | None:
    """Return opacity, spectrum and the shadow's light of snow or cloud; None for a clear patch."""
    if not flag:
        return None
    shadow = np.ones((SIZE, SIZE), dtype=np.float32)
    if flag == "snow":
        cover = np.clip(0.7 + 0.5 * canvas.smooth(40, octaves=4), 0, 0.95).astype(np.float32)
    else:
        cover = np.clip(0.8 * (canvas.smooth(160, octaves=3) + 0.3), 0, 0.98).astype(np.float32)
        shadow -= np.float32(0.5) * np.roll(cover, (40, 40), axis=(0, 1))
    return cover, canvas.mean(flag), shadow


def _backscatter(canvas: Canvas, reference_map: NDArray[np.uint16]) -> dict[str, NDArray[np.float32]]:
    """Return VV and VH in dB: each cover's mean, slow changes within it, speckle, and bright corners in towns."""
    shape = (PATCH_SIZE, PATCH_SIZE)
    slow = cv2.resize(canvas.smooth(100, octaves=2), shape, interpolation=cv2.INTER_AREA)
    codes, at = np.unique(reference_map, return_inverse=True)
    built = (reference_map < 130) & (reference_map != ROAD)
    corners = np.where(built & (canvas.rng.random(shape) < 0.06), canvas.rng.uniform(4, 14, shape), 0.0)
    channels = {}
    for channel in ("VV", "VH"):
        means = [COVERS[code].vv if channel == "VV" else COVERS[code].vh for code in codes.tolist()]
        mean = np.asarray(means)[at.reshape(shape)]
        speckle = 10 * np.log10(canvas.rng.gamma(S1_LOOKS, 1 / S1_LOOKS, shape))
        channels[channel] = (mean + 0.8 * slow + speckle + corners).astype(np.float32)
    return channels
