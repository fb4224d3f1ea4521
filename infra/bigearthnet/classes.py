"""The 19 land-cover classes of BigEarthNet, their one order, and the CORINE codes and names they come from.

The order is that of the original BigEarthNet-19 nomenclature (Sumbul et al. 2021, arXiv:2105.07921, table 2), not the
alphabetical one of ConfigILM and the BIFOLD checkpoints. Names always travel with values.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class LandCoverClass:
    """One of the 19 classes."""

    name: str
    """Name as the v2 metadata writes it."""
    clc: Mapping[int, str]
    """CORINE level-3 codes and their v1 label names."""
    colour: str
    """sRGB hex for maps and charts, after the CORINE legend."""


def _of(name: str, colour: str, clc: dict[int, str]) -> LandCoverClass:
    return LandCoverClass(name, MappingProxyType(clc), colour)


CLASSES: tuple[LandCoverClass, ...] = (
    _of("Urban fabric", "#e6004d", {111: "Continuous urban fabric", 112: "Discontinuous urban fabric"}),
    _of("Industrial or commercial units", "#cc4df2", {121: "Industrial or commercial units"}),
    _of(
        "Arable land",
        "#ffffa8",
        {211: "Non-irrigated arable land", 212: "Permanently irrigated land", 213: "Rice fields"},
    ),
    _of(
        "Permanent crops",
        "#e68000",
        {
            221: "Vineyards",
            222: "Fruit trees and berry plantations",
            223: "Olive groves",
            241: "Annual crops associated with permanent crops",
        },
    ),
    _of("Pastures", "#e6e64d", {231: "Pastures"}),
    _of("Complex cultivation patterns", "#ffe64d", {242: "Complex cultivation patterns"}),
    _of(
        "Land principally occupied by agriculture, with significant areas of natural vegetation",
        "#e6cc4d",
        {243: "Land principally occupied by agriculture, with significant areas of natural vegetation"},
    ),
    _of("Agro-forestry areas", "#f2cca6", {244: "Agro-forestry areas"}),
    _of("Broad-leaved forest", "#80ff00", {311: "Broad-leaved forest"}),
    _of("Coniferous forest", "#00a600", {312: "Coniferous forest"}),
    _of("Mixed forest", "#4dff00", {313: "Mixed forest"}),
    _of(
        "Natural grassland and sparsely vegetated areas",
        "#ccf24d",
        {321: "Natural grassland", 333: "Sparsely vegetated areas"},
    ),
    _of(
        "Moors, heathland and sclerophyllous vegetation",
        "#a6ff80",
        {322: "Moors and heathland", 323: "Sclerophyllous vegetation"},
    ),
    _of("Transitional woodland, shrub", "#a6f200", {324: "Transitional woodland/shrub"}),
    _of("Beaches, dunes, sands", "#e6e6e6", {331: "Beaches, dunes, sands"}),
    _of("Inland wetlands", "#a6a6ff", {411: "Inland marshes", 412: "Peatbogs"}),
    _of("Coastal wetlands", "#ccccff", {421: "Salt marshes", 422: "Salines"}),
    _of("Inland waters", "#00ccf2", {511: "Water courses", 512: "Water bodies"}),
    _of("Marine waters", "#00ffa6", {521: "Coastal lagoons", 522: "Estuaries", 523: "Sea and ocean"}),
)

NAMES: tuple[str, ...] = tuple(c.name for c in CLASSES)
"""The one label order of the project."""

UNMAPPED_V1_LABELS: frozenset[str] = frozenset(
    {
        "Road and rail networks and associated land",
        "Port areas",
        "Airports",
        "Mineral extraction sites",
        "Dump sites",
        "Construction sites",
        "Green urban areas",
        "Sport and leisure facilities",
        "Bare rock",
        "Burnt areas",
        "Intertidal flats",
    }
)
"""The 11 of v1's 43 labels that have no class among the 19."""

V1_LABEL_TO_CLASS: Mapping[str, str] = MappingProxyType({label: c.name for c in CLASSES for label in c.clc.values()})
"""v1's other 32 labels and the class each belongs to."""

CLC_TO_INDEX: Mapping[int, int] = MappingProxyType({code: i for i, c in enumerate(CLASSES) for code in c.clc})
"""CORINE level-3 code to label index, for the reference maps; codes that are absent belong to no class."""
