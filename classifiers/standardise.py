"""Standardisation of bands: from the unit interval after the stretch to zero mean and unit deviation."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from infra.bigearthnet.bands import IMAGE_RGB, STATISTICS
from infra.errors import ConfigError, ShapeError, UnknownNameError

_DECIBEL_BANDS = frozenset({"VV", "VH"})

_IMAGE_MOMENTS = dict(zip(IMAGE_RGB, ((0.485, 0.229), (0.456, 0.224), (0.406, 0.225)), strict=True))
"""Mean and deviation of ImageNet's channels in [0, 1]: what published backbones expect of pictures.

Source: torchvision, ImageNet weights' transforms.
"""


@dataclass(frozen=True, slots=True)
class Standardiser:
    """Mean and deviation of each band, in the order of the input's channels."""

    bands: tuple[str, ...]
    """Band names, in channel order."""
    mean: tuple[float, ...]
    """Mean of each band after the stretch; in the unit interval for Sentinel-2, in dB for Sentinel-1."""
    std: tuple[float, ...]
    """Standard deviation of each band, in the unit of its mean, > 0."""

    def __post_init__(self) -> None:
        if not self.bands or not len(self.bands) == len(self.mean) == len(self.std):
            raise ShapeError(
                f"a standardiser needs one mean and one deviation per band, got {len(self.bands)} bands, "
                f"{len(self.mean)} means and {len(self.std)} deviations"
            )
        if not all(math.isfinite(value) for value in (*self.mean, *self.std)) or min(self.std) <= 0:
            raise ConfigError(f"band statistics must be finite, deviations > 0, got {self.mean} and {self.std}")

    def __call__(self, x: Tensor) -> Tensor:
        """Return (x - mean) / std.

        Args:
            x: (N, C, H, W), C bands in the order of `bands`, after the stretch.

        Returns:
            Same shape, dtype and device; 0 is the mean of the band.

        Raises:
            ShapeError: x is not 4-D or has another number of bands.
        """
        if x.ndim != 4 or x.shape[1] != len(self.bands):
            raise ShapeError(f"bands {', '.join(self.bands)} need (N, {len(self.bands)}, H, W), got {tuple(x.shape)}")
        mean = torch.tensor(self.mean, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
        std = torch.tensor(self.std, dtype=x.dtype, device=x.device).view(1, -1, 1, 1)
        return (x - mean) / std


def from_archive_statistics(bands: Sequence[str], max_dn: float | Sequence[float]) -> Standardiser:
    """Return the standardiser of the BigEarthNet v2 train split under the stretch min(DN, max_dn) / max_dn.

    The published moments are of unclipped DN, so this approximates the moments under the clip; statistics of the
    clipped training patches, where they are at hand, are better. Sentinel-1 stays in dB. Bands of pictures (R, G, B)
    have ImageNet's moments, whatever their max_dn.

    Args:
        bands: Names such as `B04`, in channel order.
        max_dn: DN that the stretch maps to 1, > 0: one, or one a band.

    Returns:
        The standardiser of those bands.

    Raises:
        UnknownNameError: A band has no published statistics.
        ConfigError: max_dn is not positive.

    Source: `infra.bigearthnet.bands.STATISTICS`.
    """
    limits = [max_dn] * len(bands) if isinstance(max_dn, int | float) else list(max_dn)
    if len(limits) != len(bands) or not all(limit > 0 for limit in limits):
        raise ConfigError(f"the stretch needs max_dn > 0, one or one for each of {', '.join(bands)}, got {max_dn}")
    if unknown := [band for band in bands if band not in STATISTICS and band not in _IMAGE_MOMENTS]:
        known = ", ".join([*STATISTICS, *_IMAGE_MOMENTS])
        raise UnknownNameError(f"no statistics of band {', '.join(unknown)}: known are {known}")
    moments = [_moments(band, limit) for band, limit in zip(bands, limits, strict=True)]
    return Standardiser(tuple(bands), tuple(mean for mean, _ in moments), tuple(std for _, std in moments))


def _moments(band: str, max_dn: float) -> tuple[float, float]:
    """Return a band's mean and deviation after the stretch."""
    if band in _IMAGE_MOMENTS:
        return _IMAGE_MOMENTS[band]
    divisor = 1.0 if band in _DECIBEL_BANDS else max_dn
    return STATISTICS[band].mean / divisor, STATISTICS[band].std / divisor
