"""Which bands a run asks of an archive, and which of its grids hold them."""

from collections.abc import Sequence
from typing import Literal

from infra.archives.model import PatchFormat
from infra.bigearthnet.bands import BAND_SETS, IMAGE_RGB, BandGroup
from infra.errors import ConfigError

Resampling = Literal["nearest", "bilinear", "bicubic"]
"""How bands of coarser grids are brought to the finest."""


def band_set(name: str, patch_format: PatchFormat) -> tuple[str, ...]:
    """Return the bands that `bands` of RUN.yaml means for an archive, in channel order.

    Raises:
        ConfigError: The archive does not have them.
    """
    there = {band for group in patch_format.groups for band in group.bands}
    bands = IMAGE_RGB if name == "rgb" and there == set(IMAGE_RGB) else BAND_SETS[name]
    if missing := [band for band in bands if band not in there]:
        raise ConfigError(f"bands: {name} needs {', '.join(missing)}, and this archive has {', '.join(sorted(there))}")
    return bands


def groups_of(patch_format: PatchFormat, bands: Sequence[str]) -> tuple[BandGroup, ...]:
    """Return the grids that hold any of the bands, the finest first."""
    return tuple(group for group in patch_format.groups if set(bands) & set(group.bands))
