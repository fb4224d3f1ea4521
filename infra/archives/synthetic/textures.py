"""Painters: what land cover looks like at 2.5 m, as materials and light per pixel.

Every painter fills a whole patch; the land-cover map then decides where it shows.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.archives.synthetic.spectra import spectrum

SIZE = 480
"""Edge of a patch at 2.5 m, pixels."""

STREET = 3
"""Width of a street, pixels."""

_WIDE = 24
"""Blobs from this width on, pixels, are drawn at a quarter of the size."""

type Field = NDArray[np.float32]  # (SIZE, SIZE)
type Ids = NDArray[np.intp]  # (SIZE, SIZE)


@dataclass(frozen=True, slots=True)
class Surface:
    """One painted patch."""

    index: Ids
    """Row of `Canvas.spectra` of each pixel."""
    shade: Field
    """Light on each pixel, about 1."""


@dataclass(frozen=True, slots=True)
class Bricks:
    """A plane cut into rows of rectangles."""

    ids: Ids
    """Number of each pixel's rectangle, 0 to count - 1."""
    u: Field
    """Pixels from the rectangle's left edge."""
    v: Field
    """Pixels from its lower edge."""
    width: Field
    """Its width, pixels."""
    row: Ids
    column: Ids
    count: int


@cache
def _grid() -> tuple[Field, Field]:
    y, x = np.mgrid[:SIZE, :SIZE].astype(np.float32) - np.float32(SIZE / 2)
    return y, x


class Canvas:
    """The random state of one patch and the spectra used in it."""

    def __init__(self, rng: np.random.Generator, vigour: float) -> None:
        self.rng = rng
        self._vigour = vigour
        self._tint = rng.normal(1.0, 0.03, 12).astype(np.float32)
        self._rows: list[Field] = []
        self._count = 0

    def spectra(self) -> NDArray[np.float32]:
        """Return every spectrum in use, (rows, 12) DN."""
        return np.concatenate(self._rows)

    def add(self, rows: NDArray[np.float32]) -> int:
        """Add spectra, (n, 12) DN, and return the row of the first."""
        first = self._count
        self._rows.append(rows)
        self._count += len(rows)
        return first

    def mean(self, material: str) -> NDArray[np.float32]:
        """Return a material's spectrum in this patch, (12,) DN."""
        return spectrum(material, self._vigour) * self._tint

    def pick(self, mix: Mapping[str, float], count: int, scatter: float) -> int:
        """Add `count` spectra of materials drawn by weight, and return the row of the first.

        Args:
            mix: Material to weight.
            count: Spectra to draw.
            scatter: Standard deviation of the log of their brightness.
        """
        weights = np.array(list(mix.values()), dtype=np.float64)
        kinds = self.rng.choice(len(mix), size=count, p=weights / weights.sum())
        means = np.stack([self.mean(material) for material in mix])
        light = np.exp(self.rng.normal(0.0, scatter, (count, 1))).astype(np.float32)
        return self.add(means[kinds] * light)

    def noise(self) -> Field:
        """Return white noise of unit variance."""
        return self.rng.standard_normal((SIZE, SIZE), dtype=np.float32)

    def smooth(self, cell: float, octaves: int = 1) -> Field:
        """Return noise of about unit variance whose blobs are about `cell` pixels wide.

        Each octave halves the blobs and the amplitude. Octaves of wide blobs are summed at a quarter of the size.
        """
        steps = [(cell / 2**octave, np.float32(1.4 * 0.5**octave)) for octave in range(octaves)]
        wide = [self._octave(step / 4, SIZE // 4) * scale for step, scale in steps if step >= _WIDE]
        total = np.zeros((SIZE, SIZE), dtype=np.float32)
        if wide:
            total += cv2.resize(np.sum(wide, axis=0), (SIZE, SIZE), interpolation=cv2.INTER_CUBIC)
        for step, scale in steps:
            if step < _WIDE:
                total += self._octave(step, SIZE) * scale
        return total

    def _octave(self, step: float, size: int) -> NDArray[np.float32]:
        n = int(np.ceil(size / step)) + 1
        edge = int(n * step)  # a step too wide, so that the coarse grid starts anywhere
        y, x = self.rng.integers(0, edge - size + 1, 2)
        coarse = self.rng.standard_normal((n, n), dtype=np.float32)
        fine = cv2.resize(coarse, (edge, edge), interpolation=cv2.INTER_CUBIC)
        return np.asarray(fine[y : y + size, x : x + size], dtype=np.float32)

    def axes(self, bend: float = 0.0) -> tuple[Field, Field]:
        """Return coordinates along and across a random direction, pixels, bent by about `bend` pixels."""
        angle = self.rng.uniform(0, np.pi)
        y, x = _grid()
        cos, sin = np.float32(np.cos(angle)), np.float32(np.sin(angle))
        u, v = cos * x + sin * y, cos * y - sin * x
        if bend:
            v = v + np.float32(bend) * self.smooth(240)
        return u, v

    def bricks(self, width: float, length: float, bend: float = 0.0, stagger: float = 1.0) -> Bricks:
        """Cut the patch into rows, `length` pixels deep, of rectangles about `width` pixels wide.

        Args:
            width: Mean width, pixels.
            length: Depth of a row, pixels.
            bend: How far rows leave a straight line, pixels.
            stagger: 0 for a regular grid, 1 for rows of any width and offset.
        """
        u, v = self.axes(bend)
        v = v / np.float32(length) + np.float32(self.rng.random())
        row = np.floor(v)
        line = (row - row.min()).astype(np.intp)
        lines = int(line.max()) + 1
        widths = (width * (1 + stagger * self.rng.uniform(-0.3, 0.5, lines))).astype(np.float32)[line]
        along = u / widths + (stagger * self.rng.random(lines)).astype(np.float32)[line]
        column = np.floor(along)
        place = (column - column.min()).astype(np.intp)
        columns = int(place.max()) + 1
        return Bricks(
            ids=line * columns + place,
            u=((along - column) * widths).astype(np.float32),
            v=((v - row) * np.float32(length)).astype(np.float32),
            width=widths,
            row=line,
            column=place,
            count=lines * columns,
        )

    def blend(self, low: str, high: str, share: Field, levels: int = 24) -> Ids:
        """Return spectra rows between two materials; `share` of the second one, clipped to 0 to 1."""
        steps = np.linspace(0, 1, levels, dtype=np.float32)[:, None]
        first = self.add((1 - steps) * self.mean(low) + steps * self.mean(high))
        step = (share * np.float32(levels - 1) + self.rng.random((SIZE, SIZE), dtype=np.float32)).astype(np.intp)
        return np.asarray(first + np.clip(step, 0, levels - 1))


def _light(field: Field) -> Field:
    """Return a shade of mean 1, as darkening must not change a cover's mean spectrum."""
    return np.asarray(np.maximum(field, np.float32(0.15)) / np.float32(field.mean()), dtype=np.float32)


def mottle(canvas: Canvas, low: str, high: str, cell: float, sharp: float = 0.5, speckle: float = 0.06) -> Surface:
    """Paint two materials that grade into each other: grassland, moor, sand, rock."""
    share = 0.5 + np.float32(sharp) * canvas.smooth(cell, octaves=4)
    return Surface(canvas.blend(low, high, share), _light(1 + np.float32(speckle) * canvas.noise()))


def water(canvas: Canvas, material: str, other: str, depth: float = 0.15) -> Surface:
    """Paint water: nearly flat, with a little of another material where it is shallow, faint waves and rare glint."""
    u, _ = canvas.axes(bend=0)
    shade = 1 + np.float32(0.02) * np.sin(u * np.float32(2 * np.pi / 7)) + np.float32(0.015) * canvas.noise()
    shade[canvas.rng.random((SIZE, SIZE), dtype=np.float32) > np.float32(0.9995)] *= np.float32(1.6)
    return Surface(canvas.blend(material, other, np.float32(depth) * (1 + canvas.smooth(200, octaves=2))), shade)


def fields(
    canvas: Canvas,
    mix: Mapping[str, float],
    width: float,
    length: float,
    ridged: float = 0.6,
    contrast: float = 0.22,
    border: str = "grass",
) -> Surface:
    """Paint parcels, a crop each, many with rows 5 to 10 m apart that a 10 m pixel averages away.

    Args:
        canvas: Random state.
        mix: Crop to weight.
        width: Mean parcel width, 2.5 m pixels.
        length: Parcel length, 2.5 m pixels.
        ridged: Share of parcels with rows.
        contrast: Light between rows, 0 to 1.
        border: Material of the field margins.
    """
    parcels = canvas.bricks(width, length, bend=25)
    first = canvas.pick(mix, parcels.count, scatter=0.10)
    rng = canvas.rng
    period = rng.uniform(2.0, 4.0, parcels.count).astype(np.float32)
    strength = np.where(rng.random(parcels.count) < ridged, contrast, 0.0).astype(np.float32)
    along = np.where((rng.random(parcels.count) < 0.7)[parcels.ids], parcels.u, parcels.v)
    rows = np.sin(along * (np.float32(2 * np.pi) / period)[parcels.ids]) * strength[parcels.ids]
    index = first + parcels.ids
    edge = (parcels.u < 1.2) | (parcels.v < 1.2)
    index[edge] = canvas.pick({border: 1}, 1, scatter=0.0)
    rows[edge] = 0
    vigour = np.float32(0.05) * canvas.smooth(60, octaves=2)
    return Surface(index, 1 + rows + vigour + np.float32(0.03) * canvas.noise())


def pivots(canvas: Canvas, mix: Mapping[str, float], ground: str) -> Surface:
    """Paint irrigated circles, 100 to 250 m in radius, on dry ground."""
    base = fields(canvas, {ground: 3, "cereal": 1, "soil": 1}, 120, 160, ridged=0.2)
    cells = canvas.bricks(150, 170)
    du, dv = cells.u - cells.width / 2, cells.v - 85
    inside = np.hypot(du, dv) < np.minimum(cells.width / 2, 85) * np.float32(0.95)
    first = canvas.pick(mix, cells.count, scatter=0.12)
    ring = 1 + np.float32(0.15) * np.sin(np.hypot(du, dv) * np.float32(2 * np.pi / 2.8))
    return Surface(np.where(inside, first + cells.ids, base.index), np.where(inside, ring, base.shade))


def trees(
    canvas: Canvas, ground: Surface, tree: str, spacing: float, radius: float, jitter: float, share: float = 1.0
) -> Surface:
    """Paint crowns on ground: in a lattice (orchards), or scattered (shrub, wood pasture).

    Args:
        canvas: Random state.
        ground: What lies below.
        tree: Material of the crowns.
        spacing: Distance of the crowns, 2.5 m pixels.
        radius: Of a crown, pixels; a crown ends where its cell does.
        jitter: 0 for a lattice, 1 for crowns centred anywhere in their cell.
        share: Of cells with a crown.
    """
    u, v = canvas.axes(bend=0 if jitter else 8)
    rng = canvas.rng
    cu, cv = np.floor(u / np.float32(spacing)), np.floor(v / np.float32(spacing))
    iu, iv = (cu - cu.min()).astype(np.intp), (cv - cv.min()).astype(np.intp)
    shape = (int(iu.max()) + 1, int(iv.max()) + 1)
    at = iu * shape[1] + iv
    cells = shape[0] * shape[1]
    move = (rng.uniform(-0.5, 0.5, (2, cells)) * (jitter * spacing)).astype(np.float32)
    du = u - (cu + np.float32(0.5)) * np.float32(spacing) - move[0][at]
    dv = v - (cv + np.float32(0.5)) * np.float32(spacing) - move[1][at]
    stands = (rng.random(cells) < share)[at]
    crown = stands & (du * du + dv * dv < np.float32(radius**2))
    shadow = stands & ~crown & ((du - 1) ** 2 + (dv - 1) ** 2 < np.float32(radius**2))
    first = canvas.pick({tree: 1}, 32, scatter=0.12)
    index = np.where(crown, first + (at * 7919) % 32, ground.index)
    return Surface(index, np.where(shadow, np.float32(0.72), np.where(crown, np.float32(1.0), ground.shade)))


def canopy(canvas: Canvas, mix: Mapping[str, float], crown: float, relief: float, clump: float = 0.0) -> Surface:
    """Paint closed forest: one species and one lit dome per crown.

    Args:
        canvas: Random state.
        mix: One or two species and their weights.
        crown: Mean diameter of a crown, 2.5 m pixels.
        relief: Light between the sunny and the shady side, 0 to 1.
        clump: How much a second species keeps to its own groups, 0 to 1.
    """
    rng = canvas.rng
    count = int(SIZE * SIZE / (crown * crown * 0.8))
    seeds = np.ones(SIZE * SIZE, dtype=np.uint8)
    seeds[rng.integers(0, SIZE * SIZE, count)] = 0
    distance, nearest = cv2.distanceTransformWithLabels(
        seeds.reshape(SIZE, SIZE), cv2.DIST_L2, cv2.DIST_MASK_5, labelType=cv2.DIST_LABEL_PIXEL
    )
    ids = np.asarray(nearest, dtype=np.intp) - 1
    distance = np.asarray(distance, dtype=np.float32)
    crowns = int(ids.max()) + 1
    species = list(mix)
    first = canvas.pick({species[0]: 1}, crowns, scatter=0.13)
    index = first + ids
    if len(species) > 1:
        other = canvas.pick({species[1]: 1}, crowns, scatter=0.13)
        share = mix[species[1]] / (mix[species[0]] + mix[species[1]])
        draw = rng.random(crowns).astype(np.float32)[ids]
        limit = np.float32(share) + np.float32(0.35 * clump) * canvas.smooth(40)
        index = np.where(draw < limit, other + ids, index)
    slope = distance - np.roll(distance, (1, 1), axis=(0, 1))  # sun from the north-west of the image
    shade = 1.2 - np.float32(relief * 0.8 / crown) * distance + np.float32(relief * 0.25) * slope
    return Surface(index, _light(shade + np.float32(0.06) * canvas.smooth(90, octaves=2)))


def town(
    canvas: Canvas, house: float, cover: float, roofs: Mapping[str, float], yards: Mapping[str, float], street: str
) -> Surface:
    """Paint blocks of buildings between streets.

    Args:
        canvas: Random state.
        house: Edge of a building's plot, 2.5 m pixels.
        cover: Share of the plots' width that is roof, 0 to 1.
        roofs: Roof material to weight.
        yards: Material between the buildings to weight.
        street: Material of the streets.
    """
    plots = canvas.bricks(house, house * 1.1, bend=15, stagger=0)
    rng = canvas.rng
    roof = canvas.pick(roofs, plots.count, scatter=0.18)
    yard = canvas.pick(yards, plots.count, scatter=0.15)
    depth = np.float32(house * 1.1)
    slack = rng.uniform(0.4, 1.3, (2, plots.count)).astype(np.float32) * np.float32((1 - cover) / 2)
    margin_u, margin_v = slack[0][plots.ids] * plots.width, slack[1][plots.ids] * depth
    right, upper = plots.width - plots.u, depth - plots.v
    built = (plots.u > margin_u) & (right > margin_u) & (plots.v > margin_v) & (upper > margin_v)
    index = np.where(built, roof + plots.ids, yard + plots.ids)
    ridge = np.where(plots.v > depth / 2, np.float32(1.14), np.float32(0.86))  # a roof's two sides
    shade = np.where(built, ridge, 1 + np.float32(0.12) * canvas.noise())
    shade[np.roll(built, (1, 1), axis=(0, 1)) & ~built] = np.float32(0.6)
    road = ((plots.row % 3 == 0) & (plots.v < STREET)) | ((plots.column % 7 == 0) & (plots.u < STREET))
    index[road] = canvas.pick({street: 1}, 1, scatter=0.05)
    shade[road] = 1
    return Surface(index, shade)


def creeks(canvas: Canvas, ground: Surface, material: str, cell: float, width: float) -> Surface:
    """Draw winding channels, about `width` pixels wide, over ground."""
    field = canvas.smooth(cell, octaves=3)
    line = np.abs(field) < np.float32(width / cell)
    index = np.where(line, canvas.pick({material: 1}, 1, scatter=0.05), ground.index)
    return Surface(index, np.where(line, np.float32(1.0), ground.shade))


def ripples(canvas: Canvas, ground: Surface, period: float, contrast: float) -> Surface:
    """Lay bent stripes of light over ground: dunes, ploughed peat."""
    _, v = canvas.axes(bend=14)
    stripes = np.float32(contrast) * np.sin(v * np.float32(2 * np.pi / period))
    return Surface(ground.index, ground.shade * (1 + stripes))
