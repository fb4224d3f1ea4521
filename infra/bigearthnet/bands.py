"""Facts about the bands of Sentinel-2 L2A and Sentinel-1 patches: names, grids, statistics.

Source of names and grids: the BigEarthNet v1 and v2 file layout. DN to reflectance: reflectance = DN / 10,000 for
both versions, whose products carry no BOA_ADD_OFFSET (Clasen et al. 2024, arXiv:2407.03653).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

PATCH_METRES = 1200
"""Edge of a patch on the ground, m."""

PATCH_SIZE = 120
"""Edge of a patch on the 10 m grid, pixels."""

REFLECTANCE_SCALE = 10_000.0
"""DN of a surface reflectance of 1."""


@dataclass(frozen=True, slots=True)
class BandGroup:
    """Bands that share a grid, and so an array of the archive store."""

    array: str
    """Name of the Zarr array."""
    bands: tuple[str, ...]
    """Band names in the order of the array's band axis."""
    gsd: int | None
    """Metres per pixel; None: unknown."""
    size: int
    """Edge of a patch, pixels."""
    dtype: str = "uint16"
    """Of the array."""


S2_10M = BandGroup("s2_10m", ("B02", "B03", "B04", "B08"), gsd=10, size=120)
S2_20M = BandGroup("s2_20m", ("B05", "B06", "B07", "B8A", "B11", "B12"), gsd=20, size=60)
S2_60M = BandGroup("s2_60m", ("B01", "B09"), gsd=60, size=20)
S1 = BandGroup("s1", ("VV", "VH"), gsd=10, size=120, dtype="float32")

S2_GROUPS = (S2_10M, S2_20M, S2_60M)
S2_BANDS: tuple[str, ...] = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B11", "B12")
"""The twelve L2A bands in spectral order (B10 is absent from L2A)."""

RGB: tuple[str, str, str] = ("B04", "B03", "B02")
"""Band order of every SR model's input and of `bands: rgb`."""

IMAGE_RGB: tuple[str, str, str] = ("R", "G", "B")
"""Bands of archives of pictures; `bands: rgb` there."""

_S2 = (*RGB, "B08", "B05", "B06", "B07", "B8A", "B11", "B12", "B01", "B09")

BAND_SETS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {"rgb": RGB, "10m": (*RGB, "B08"), "s2": _S2, "s1s2": (*_S2, "VV", "VH")}
)
"""What `bands` of RUN.yaml means, in channel order: RGB first, then by ground distance."""

_BRIGHT = frozenset({"B06", "B07", "B08", "B8A", "B09", "B11"})
_BRIGHT_STRETCH = 2
"""Vegetation reflects three to five times as much near infrared as red: B08 under the stretch of RGB would be clipped
on a quarter of the archive (mean 2,193, standard deviation 1,369 DN), and so would its neighbours."""


def stretch_max_dn(bands: Sequence[str], sr_input_max_dn: int) -> tuple[int, ...]:
    """Return the DN that becomes 1 in the stretch of each band.

    That is sr_input_max_dn, twice as much for near and short-wave infrared that vegetation reflects strongly, at most
    65,535. Sentinel-1 is not stretched: 1, for dB.
    """
    bright = min(65_535, _BRIGHT_STRETCH * sr_input_max_dn)
    return tuple(1 if band in S1.bands else bright if band in _BRIGHT else sr_input_max_dn for band in bands)


@dataclass(frozen=True, slots=True)
class BandStatistics:
    """Mean and standard deviation of one band over the v2 train split; DN for Sentinel-2, dB for Sentinel-1."""

    mean: float
    std: float


STATISTICS: Mapping[str, BandStatistics] = MappingProxyType(
    {
        "B01": BandStatistics(361.08, 575.07),
        "B02": BandStatistics(438.37, 607.03),
        "B03": BandStatistics(614.06, 603.30),
        "B04": BandStatistics(588.41, 684.57),
        "B05": BandStatistics(942.84, 738.43),
        "B06": BandStatistics(1769.93, 1100.46),
        "B07": BandStatistics(2049.55, 1275.81),
        "B08": BandStatistics(2193.29, 1369.37),
        "B8A": BandStatistics(2235.56, 1356.54),
        "B09": BandStatistics(2241.46, 1316.39),
        "B11": BandStatistics(1568.23, 1070.16),
        "B12": BandStatistics(997.73, 813.53),
        "VV": BandStatistics(-12.644, 5.133),
        "VH": BandStatistics(-19.353, 5.591),
    }
)
"""Source: ConfigILM, BENv2_utils.py; 20 m and 60 m bands enlarged by nearest neighbour."""
