"""What the bands of Sentinel-2 see: their common names and nominal wavelengths.

Source: ESA, Sentinel-2 MSI technical guide (nominal central wavelengths; those of the single satellites differ by up to
17 nm); common names as the STAC extension eo has them.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Spectrum:
    """Where a band lies in the spectrum."""

    common_name: str
    centre_um: float
    """Central wavelength, micrometres."""


SPECTRA: Mapping[str, Spectrum] = MappingProxyType(
    {
        "B01": Spectrum("coastal", 0.443),
        "B02": Spectrum("blue", 0.490),
        "B03": Spectrum("green", 0.560),
        "B04": Spectrum("red", 0.665),
        "B05": Spectrum("rededge071", 0.705),
        "B06": Spectrum("rededge075", 0.740),
        "B07": Spectrum("rededge078", 0.783),
        "B08": Spectrum("nir", 0.842),
        "B8A": Spectrum("nir08", 0.865),
        "B09": Spectrum("nir09", 0.945),
        "B11": Spectrum("swir16", 1.610),
        "B12": Spectrum("swir22", 2.190),
    }
)
"""By band of Sentinel-2 L2A."""
