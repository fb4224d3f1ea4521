"""What grows where: how each CORINE code is painted, which classes meet in a patch, and the map itself."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import cv2
import numpy as np
from numpy.typing import NDArray

from infra.archives.synthetic.textures import (
    SIZE,
    Canvas,
    Field,
    Ids,
    Surface,
    canopy,
    creeks,
    fields,
    mottle,
    pivots,
    ripples,
    town,
    trees,
    water,
)
from infra.bigearthnet.classes import CLASSES

ROAD = 122
"""Code without a class: roads and rail."""

BEACH = 331
"""Code of beaches, dunes and sands."""

SEA = (521, 522, 523)
"""Codes of marine waters."""

FIRST_NATURAL = 300
"""Codes below it are built or farmed: their regions have straight edges."""


@dataclass(frozen=True, slots=True)
class Cover:
    """One CORINE level-3 code."""

    paint: Callable[[Canvas], Surface]
    vv: float
    """Mean backscatter, dB."""
    vh: float
    """Mean backscatter, dB."""


def _farmed_with_nature(canvas: Canvas) -> Surface:
    """Paint fields with clumps of woodland and scrub on about two fifths of the ground."""
    farmed = fields(canvas, {"grass": 3, "crop": 2, "cereal": 2, "soil": 1}, 34, 70, border="broadleaf")
    wild = canopy(canvas, {"broadleaf": 3, "shrub": 1}, crown=3.6, relief=0.5, clump=1.0)
    wooded = canvas.smooth(55, octaves=2) > np.float32(0.25)
    return Surface(np.where(wooded, wild.index, farmed.index), np.where(wooded, wild.shade, farmed.shade))


COVERS: Mapping[int, Cover] = MappingProxyType(
    {
        111: Cover(
            lambda c: town(c, 6, 0.85, {"red_roof": 5, "grey_roof": 3}, {"asphalt": 2, "concrete": 1}, "asphalt"),
            vv=-4.0,
            vh=-11.5,
        ),
        112: Cover(
            lambda c: town(
                c, 8, 0.55, {"red_roof": 5, "grey_roof": 3}, {"grass": 4, "broadleaf": 2, "concrete": 1}, "asphalt"
            ),
            vv=-6.5,
            vh=-14.0,
        ),
        121: Cover(
            lambda c: town(
                c, 24, 0.68, {"white_roof": 2, "grey_roof": 5}, {"concrete": 3, "asphalt": 3, "grass": 1}, "asphalt"
            ),
            vv=-3.5,
            vh=-12.5,
        ),
        # Green parcels of arable land have the RGB of pastures; only their rows, 5 to 10 m apart, tell them.
        211: Cover(
            lambda c: fields(c, {"cereal": 3, "crop": 3, "soil": 2, "dark_soil": 1, "rape": 1, "maize": 1}, 46, 170),
            vv=-11.0,
            vh=-18.0,
        ),
        212: Cover(lambda c: pivots(c, {"maize": 3, "crop": 2, "soil": 1}, "dry_grass"), vv=-11.0, vh=-17.5),
        213: Cover(lambda c: fields(c, {"paddy": 4, "mud": 1}, 36, 60, ridged=0.2, border="soil"), vv=-13.0, vh=-20.0),
        221: Cover(
            lambda c: fields(c, {"vine": 3, "soil": 2}, 40, 70, ridged=1.0, contrast=0.4, border="pale_soil"),
            vv=-11.0,
            vh=-18.0,
        ),
        # Orchards and transitional woodland (324) share tree, ground and cover: only the crowns' order differs.
        222: Cover(
            lambda c: trees(c, mottle(c, "dry_grass", "soil", 80), "orchard", 3.2, 1.35, jitter=0.0), vv=-9.5, vh=-15.5
        ),
        223: Cover(
            lambda c: trees(c, mottle(c, "pale_soil", "soil", 90), "olive", 4.0, 1.5, jitter=0.0), vv=-9.5, vh=-15.5
        ),
        241: Cover(
            lambda c: trees(c, fields(c, {"cereal": 2, "crop": 1, "soil": 2}, 30, 60), "olive", 5, 1.5, jitter=0.0),
            vv=-10.5,
            vh=-17.0,
        ),
        231: Cover(
            lambda c: fields(c, {"grass": 1}, 70, 100, ridged=0.0, border="broadleaf"),
            vv=-11.5,
            vh=-19.0,
        ),
        242: Cover(
            lambda c: fields(
                c,
                {"crop": 3, "cereal": 2, "soil": 2, "grass": 2, "rape": 1, "orchard": 2, "red_roof": 0.7},
                13,
                26,
                ridged=0.5,
            ),
            vv=-10.5,
            vh=-17.0,
        ),
        243: Cover(_farmed_with_nature, vv=-10.5, vh=-16.5),
        244: Cover(
            lambda c: trees(c, mottle(c, "dry_grass", "stubble", 120), "olive", 10, 3.0, jitter=0.9, share=0.8),
            vv=-11.0,
            vh=-17.0,
        ),
        311: Cover(lambda c: canopy(c, {"broadleaf": 1}, crown=4.2, relief=0.45), vv=-9.5, vh=-14.5),
        312: Cover(lambda c: canopy(c, {"conifer": 1}, crown=2.6, relief=0.65), vv=-10.5, vh=-15.5),
        313: Cover(
            lambda c: canopy(c, {"broadleaf": 1, "conifer": 1}, crown=3.4, relief=0.55, clump=0.8), vv=-10.0, vh=-15.0
        ),
        321: Cover(lambda c: mottle(c, "upland_grass", "grass", 110, sharp=0.3), vv=-12.5, vh=-19.5),
        333: Cover(lambda c: mottle(c, "scree", "upland_grass", 50, sharp=0.6, speckle=0.14), vv=-12.0, vh=-19.5),
        322: Cover(lambda c: mottle(c, "heath", "peat", 40, sharp=0.5, speckle=0.12), vv=-12.0, vh=-18.5),
        323: Cover(
            lambda c: trees(c, mottle(c, "heath", "soil", 60), "shrub", 4.5, 1.9, jitter=0.9, share=0.9),
            vv=-11.0,
            vh=-17.0,
        ),
        324: Cover(
            lambda c: trees(c, mottle(c, "dry_grass", "soil", 80), "orchard", 3.2, 1.8, jitter=1.0), vv=-10.0, vh=-15.8
        ),
        331: Cover(
            lambda c: ripples(c, mottle(c, "sand", "wet_sand", 140, sharp=0.25), period=9, contrast=0.06),
            vv=-16.0,
            vh=-24.0,
        ),
        411: Cover(lambda c: creeks(c, mottle(c, "reed", "pool", 70, sharp=0.5), "pool", 90, 7), vv=-10.5, vh=-17.5),
        412: Cover(
            lambda c: creeks(c, ripples(c, mottle(c, "peat", "bog_moss", 60), 8, 0.12), "pool", 40, 2.5),
            vv=-11.5,
            vh=-18.0,
        ),
        421: Cover(
            lambda c: creeks(c, mottle(c, "salt_marsh", "mud", 60, sharp=0.45), "estuary", 70, 5), vv=-12.0, vh=-19.5
        ),
        422: Cover(
            lambda c: fields(c, {"salt": 1, "pink_brine": 2, "green_brine": 3}, 34, 44, ridged=0.0, border="pale_soil"),
            vv=-14.0,
            vh=-23.0,
        ),
        511: Cover(lambda c: water(c, "river", "estuary"), vv=-18.0, vh=-25.0),
        512: Cover(lambda c: water(c, "lake", "river"), vv=-19.0, vh=-26.0),
        521: Cover(lambda c: water(c, "lagoon", "sea", depth=0.4), vv=-18.0, vh=-26.0),
        522: Cover(lambda c: water(c, "estuary", "lagoon", depth=0.4), vv=-17.0, vh=-25.0),
        523: Cover(lambda c: water(c, "sea", "lagoon"), vv=-16.5, vh=-26.0),
        # The codes below belong to none of the 19 classes.
        ROAD: Cover(lambda c: mottle(c, "asphalt", "concrete", 400, sharp=0.1), vv=-13.0, vh=-21.0),
        131: Cover(lambda c: mottle(c, "rock", "pale_soil", 60, sharp=0.6, speckle=0.12), vv=-9.0, vh=-17.0),
        142: Cover(
            lambda c: trees(c, mottle(c, "crop", "grass", 40), "broadleaf", 16, 4.5, jitter=0.9, share=0.5),
            vv=-11.0,
            vh=-17.0,
        ),
        332: Cover(lambda c: mottle(c, "rock", "scree", 30, sharp=0.6, speckle=0.2), vv=-9.5, vh=-17.5),
        423: Cover(lambda c: creeks(c, mottle(c, "mud", "wet_sand", 120), "estuary", 120, 6), vv=-16.0, vh=-25.0),
    }
)
"""Every code that a synthetic patch may hold."""


UNCLASSED: tuple[int, ...] = (131, 142, 332, 423)
"""Codes without a class that may take a region of their own."""

NEIGHBOURS: tuple[tuple[int, ...], ...] = (
    (18, 14, 16, 0, 12, 11, 1),  # coast
    (2, 4, 5, 6, 3, 0, 8, 17, 1),  # farmland
    (8, 9, 10, 13, 4, 17, 15, 12, 11),  # forest and lakes
    (7, 3, 2, 12, 5, 11, 13, 6),  # the dry south
    (0, 1, 5, 2, 17, 18, 4),  # towns
    (15, 16, 17, 18, 4, 12, 14),  # wetlands
)
"""Label indices that occur together."""

_CLASS_COUNTS = (0.16, 0.22, 0.28, 0.20, 0.10, 0.04)
"""How often a patch shows 1 to 6 classes; v2: 0.18, 0.20, 0.28, 0.21, 0.09, 0.03."""

_SMALLEST_REGION = 0.07
"""Area share that every region is grown to."""

_SMALLEST_AREA = 0.03
"""Area share that every region has in the end."""


def draw_codes(rng: np.random.Generator, anchor: int) -> tuple[int, ...]:
    """Return the codes of a patch, the anchor class's first: 1 to 6 classes that occur together, one code each.

    One patch in six also holds a code without a class.

    Args:
        rng: Random state.
        anchor: Label index of the class that must be there.
    """
    groups = [group for group in NEIGHBOURS if anchor in group]
    group = groups[rng.integers(len(groups))]
    count = 1 + int(rng.choice(len(_CLASS_COUNTS), p=_CLASS_COUNTS))
    others = [label for label in rng.permutation(group).tolist() if label != anchor]
    codes = [int(rng.choice(list(CLASSES[label].clc))) for label in [anchor, *others[: count - 1]]]
    if rng.random() < 1 / 6:
        codes.append(int(rng.choice(UNCLASSED)))
    return tuple(codes)


def draw_regions(canvas: Canvas, codes: Sequence[int]) -> NDArray[np.uint8]:
    """Return a map, (480, 480), of positions in `codes`; each code gets one region or a few, none below 3 %.

    Regions are where a code's random field is the highest. Offsets of the fields are tuned on a coarse grid until the
    areas are near those drawn. Rivers follow a line, beaches the shore, and what people made keeps to parcels.
    """
    if len(codes) == 1:
        return np.zeros((SIZE, SIZE), dtype=np.uint8)
    sea = [k for k, code in enumerate(codes) if code in SEA]
    beach = [k for k, code in enumerate(codes) if code == BEACH]
    shore = (sea[0], beach[0]) if sea and beach and len(codes) > 2 else None
    while True:  # once, but for rare fields that cannot be balanced
        parcels = canvas.bricks(34, 50, bend=30).ids
        scores = np.stack([_score(canvas, code, parcels) for code in codes])
        target = np.maximum(canvas.rng.dirichlet(np.full(len(codes), 3.0)), _SMALLEST_REGION)
        coarse = np.stack([cv2.resize(score, (60, 60), interpolation=cv2.INTER_AREA) for score in scores])
        regions = _highest(scores + _balance(coarse, target / target.sum(), shore), shore)
        if _areas(regions, len(codes)).min() >= _SMALLEST_AREA:
            return regions


def _balance(
    scores: NDArray[np.float32], target: NDArray[np.float64], shore: tuple[int, int] | None
) -> NDArray[np.float32]:
    """Return offsets of the scores, (n, 1, 1), that make each win about its target share of the area."""
    offset = np.zeros((len(scores), 1, 1), dtype=np.float32)
    for step in range(60):
        area = _areas(_highest(scores + offset, shore), len(scores))
        if np.all(np.abs(area - target) < 0.02):
            break
        pull = np.clip(np.log(target / np.maximum(area, 0.005)), -1, 1) * (0.5 / (1 + step / 10))
        offset += pull.astype(np.float32)[:, None, None]
    return offset


def _areas(regions: NDArray[np.uint8], count: int) -> NDArray[np.float64]:
    return np.bincount(regions.ravel(), minlength=count) / regions.size


def _highest(scores: NDArray[np.float32], shore: tuple[int, int] | None) -> NDArray[np.uint8]:
    """Return which score wins at each pixel; a beach, `shore` = (sea, beach), wins where sea and land are even."""
    if shore is not None:
        sea, beach = shore
        land = np.delete(scores, shore, axis=0).max(axis=0)
        offset = scores[beach] - scores[beach].mean()  # its own field only roughens the strip
        lift = scores[beach].mean() + np.float32(0.2) * offset
        strip = np.maximum(scores[sea], land) + lift - 2 * np.abs(scores[sea] - land)
        scores = scores.copy()
        scores[beach] = strip
    return scores.argmax(axis=0).astype(np.uint8)


def _score(canvas: Canvas, code: int, parcels: Ids) -> Field:
    if code == 511:
        _, v = canvas.axes(bend=35)
        v = v - np.float32(canvas.rng.uniform(-90, 90))
        return (1.5 - np.abs(v) / np.float32(45)).astype(np.float32)
    if code in SEA:
        return canvas.smooth(320, octaves=3)
    score = canvas.smooth(190, octaves=4)
    if code >= FIRST_NATURAL:
        return score
    total = np.bincount(parcels.ravel(), weights=score.ravel())  # what people made keeps to their parcels
    return (total / np.maximum(np.bincount(parcels.ravel()), 1)).astype(np.float32)[parcels]


def majority_map(regions: NDArray[np.uint8], codes: Sequence[int]) -> NDArray[np.uint16]:
    """Return the code that covers most of each 10 m pixel, (120, 120); the first of `codes` on ties."""
    shares = np.stack([(regions == k).reshape(SIZE // 4, 4, SIZE // 4, 4).sum(axis=(1, 3)) for k in range(len(codes))])
    return np.asarray(codes, dtype=np.uint16)[shares.argmax(axis=0)]
