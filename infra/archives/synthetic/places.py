"""Where and when each synthetic patch lies: product, tile, grid cell, split, flags, the class it must show.

The acquisitions are real ones of the v2 metadata, so that ids, orbits, countries and CRSs fit together.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal

import numpy as np

from infra.bigearthnet.bands import PATCH_METRES
from infra.bigearthnet.classes import CLASSES

GRID_CELLS = 91
"""Whole patches along one edge of a tile: 109.8 km / 1.2 km."""

FLAG_EVERY = 24
"""One patch in so many has snow or cloud."""

Flag = Literal["", "snow", "cloud"]


@dataclass(frozen=True, slots=True)
class Acquisition:
    """A Sentinel-2 product and the Sentinel-1 scene it is paired with."""

    s2: str
    """Product name without its tile."""
    s1: str
    """Scene name, the folder in BigEarthNet-S1."""

    @property
    def month(self) -> int:
        """Month of the Sentinel-2 acquisition, 1 to 12."""
        return int(self.s2.split("_")[2][4:6])


@dataclass(frozen=True, slots=True)
class Tile:
    """One MGRS tile."""

    country: str
    left: int
    """Easting of the tile's western edge, m."""
    top: int
    """Northing of the tile's northern edge, m."""
    acquisitions: tuple[Acquisition, ...]


TILES: Mapping[str, Tile] = MappingProxyType(
    {
        "29SND": Tile(
            "Portugal",
            499980,
            4400040,
            (
                Acquisition("S2A_MSIL2A_20170704T112111_N9999_R037", "S1B_IW_GRDH_1SDV_20170701T182622"),
                Acquisition("S2B_MSIL2A_20180515T112109_N9999_R037", "S1B_IW_GRDH_1SDV_20180515T063356"),
            ),
        ),
        "33UUP": Tile(
            "Austria",
            300000,
            5400000,
            (Acquisition("S2A_MSIL2A_20170613T101031_N9999_R022", "S1A_IW_GRDH_1SDV_20170613T165043"),),
        ),
        "34TCR": Tile(
            "Serbia",
            300000,
            5100000,
            (
                Acquisition("S2A_MSIL2A_20170803T094031_N9999_R036", "S1A_IW_GRDH_1SDV_20170802T163350"),
                Acquisition("S2B_MSIL2A_20171206T094349_N9999_R036", "S1B_IW_GRDH_1SDV_20171206T163254"),
            ),
        ),
        "35VNK": Tile(
            "Finland",
            499980,
            7000020,
            (
                Acquisition("S2B_MSIL2A_20180525T094029_N9999_R036", "S1B_IW_GRDH_1SDV_20180524T154016"),
                Acquisition("S2A_MSIL2A_20171101T094131_N9999_R036", "S1B_IW_GRDH_1SDV_20171101T154016"),
            ),
        ),
        "29UPU": Tile(
            "Ireland",
            600000,
            5900040,
            (
                Acquisition("S2A_MSIL2A_20170617T113321_N9999_R080", "S1A_IW_GRDH_1SDV_20170617T064724"),
                Acquisition("S2B_MSIL2A_20180421T114349_N9999_R123", "S1A_IW_GRDH_1SDV_20180420T063917"),
            ),
        ),
        "31UER": Tile(
            "Belgium",
            499980,
            5600040,
            (
                Acquisition("S2B_MSIL2A_20170829T105019_N9999_R051", "S1A_IW_GRDH_1SDV_20170829T055029"),
                Acquisition("S2B_MSIL2A_20180506T105029_N9999_R051", "S1A_IW_GRDH_1SDV_20180508T055029"),
            ),
        ),
        "32TMT": Tile(
            "Switzerland",
            399960,
            5300040,
            (Acquisition("S2A_MSIL2A_20170818T103021_N9999_R108", "S1B_IW_GRDH_1SDV_20170818T054218"),),
        ),
        "34UEG": Tile(
            "Lithuania",
            499980,
            6200040,
            (
                Acquisition("S2A_MSIL2A_20180413T095031_N9999_R079", "S1A_IW_GRDH_1SDV_20180413T161957"),
                Acquisition("S2B_MSIL2A_20170930T095019_N9999_R079", "S1B_IW_GRDH_1SDV_20170929T045032"),
            ),
        ),
        "31UGR": Tile(
            "Luxembourg",
            699960,
            5600040,
            (
                Acquisition("S2A_MSIL2A_20180508T104031_N9999_R008", "S1A_IW_GRDH_1SDV_20180508T055029"),
                Acquisition("S2B_MSIL2A_20171015T104009_N9999_R008", "S1A_IW_GRDH_1SDV_20171016T055031"),
            ),
        ),
        "34TEN": Tile(
            "Kosovo",
            499980,
            4800000,
            (Acquisition("S2A_MSIL2A_20171208T093351_N9999_R136", "S1A_IW_GRDH_1SDV_20171207T162450"),),
        ),
        "34WFS": Tile(
            "Finland",
            600000,
            7200000,
            (
                Acquisition("S2B_MSIL2A_20170817T101019_N9999_R022", "S1B_IW_GRDH_1SDV_20170817T045612"),
                Acquisition("S2A_MSIL2A_20180228T101021_N9999_R022", "S1A_IW_GRDH_1SDV_20180228T154921"),
            ),
        ),
        "29SNB": Tile(
            "Portugal",
            499980,
            4200000,
            (
                Acquisition("S2A_MSIL2A_20171002T112111_N9999_R037", "S1A_IW_GRDH_1SDV_20171004T183450"),
                Acquisition("S2B_MSIL2A_20180326T112109_N9999_R037", "S1B_IW_GRDH_1SDV_20180327T183408"),
            ),
        ),
        "34TEQ": Tile(
            "Serbia",
            499980,
            5000040,
            (
                Acquisition("S2B_MSIL2A_20170825T093029_N9999_R136", "S1A_IW_GRDH_1SDV_20170826T163327"),
                Acquisition("S2B_MSIL2A_20180422T093029_N9999_R136", "S1A_IW_GRDH_1SDV_20180422T044621"),
            ),
        ),
        "33TXN": Tile(
            "Austria",
            600000,
            5300040,
            (
                Acquisition("S2B_MSIL2A_20170801T095029_N9999_R079", "S1B_IW_GRDH_1SDV_20170801T164135"),
                Acquisition("S2A_MSIL2A_20171104T095201_N9999_R079", "S1A_IW_GRDH_1SDV_20171104T165048"),
            ),
        ),
        "35VLC": Tile(
            "Lithuania",
            300000,
            6300000,
            (
                Acquisition("S2A_MSIL2A_20180510T094031_N9999_R036", "S1A_IW_GRDH_1SDV_20180509T160338"),
                Acquisition("S2B_MSIL2A_20170927T094019_N9999_R036", "S1A_IW_GRDH_1SDV_20170928T161150"),
            ),
        ),
        "34VDN": Tile(
            "Finland",
            399960,
            6800040,
            (
                Acquisition("S2B_MSIL2A_20170906T101019_N9999_R022", "S1A_IW_GRDH_1SDV_20170904T161304"),
                Acquisition("S2A_MSIL2A_20180419T101031_N9999_R022", "S1A_IW_GRDH_1SDV_20180420T161303"),
            ),
        ),
    }
)
"""Sixteen tiles of seven UTM zones and ten countries; patch i lies in tile i mod 16. No two of them overlap."""

CAPACITY = len(TILES) * GRID_CELLS**2
"""Most patches that an archive can hold without overlap."""

VIGOUR = (0.50, 0.50, 0.60, 0.80, 1.00, 1.00, 0.95, 0.90, 0.85, 0.75, 0.60, 0.50)
"""How green deciduous plants are, January to December, 0 to 1."""

_SPLITS = ("train", "validation", "train", "test")


@dataclass(frozen=True, slots=True)
class Place:
    """Everything about one patch but its pixels."""

    index: int
    """Running number; seeds the pixels."""
    patch_id: str
    product: str
    """Folder in BigEarthNet-S2 and Reference_Maps."""
    s1_scene: str
    """Folder in BigEarthNet-S1."""
    s1_name: str
    s2v1_name: str
    split: str
    country: str
    flag: Flag
    """What the flagged table says of it; empty for a clean patch."""
    anchor: int
    """Label index of a class that the patch must show."""
    vigour: float
    """0 (dormant) to 1 (full leaf)."""
    epsg: int
    left: int
    """Easting of the patch's western edge, m."""
    top: int
    """Northing of the patch's northern edge, m."""


def plan(patches: int, seed: int) -> Iterator[Place]:
    """Yield the places of an archive; the first n are the same whatever the number of patches.

    Clean patches of each split take their anchor classes in turn, from shuffled rounds of all 19, so that a split of
    19 clean patches shows every class.

    Args:
        patches: How many, 1 to CAPACITY.
        seed: >= 0.
    """
    names = tuple(TILES)
    cells = [np.random.default_rng([seed, 1, t]).permutation(GRID_CELLS**2) for t in range(len(names))]
    taken = dict.fromkeys(_SPLITS, 0)
    for index in range(patches):
        turn, t = divmod(index, len(names))
        split = _SPLITS[(index + turn) % len(_SPLITS)]  # every tile meets every split within four turns
        flagged, phase = divmod(index, FLAG_EVERY)
        flag: Flag = "" if phase != FLAG_EVERY - 1 else ("snow", "cloud")[flagged % 2]
        round_, step = divmod(taken[split], len(CLASSES))
        order = np.random.default_rng([seed, 2, _SPLITS.index(split), round_]).permutation(len(CLASSES))
        taken[split] += not flag
        yield _place(index, names[t], turn, int(cells[t][turn]), split, flag, int(order[step]))


def _place(index: int, name: str, turn: int, cell: int, split: str, flag: Flag, anchor: int) -> Place:
    tile = TILES[name]
    acquisition = tile.acquisitions[turn % len(tile.acquisitions)]
    row, column = divmod(cell, GRID_CELLS)
    product = f"{acquisition.s2}_T{name}"
    return Place(
        index=index,
        patch_id=f"{product}_{column:02d}_{row:02d}",
        product=product,
        s1_scene=acquisition.s1,
        s1_name=f"{acquisition.s1}_{name}_{column}_{row}",
        s2v1_name=f"{'_'.join(acquisition.s2.split('_')[:3])}_{column}_{row}",
        split=split,
        country=tile.country,
        flag=flag,
        anchor=anchor,
        vigour=VIGOUR[acquisition.month - 1],
        epsg=32600 + int(name[:2]),
        left=tile.left + column * PATCH_METRES,
        top=tile.top - row * PATCH_METRES,
    )
