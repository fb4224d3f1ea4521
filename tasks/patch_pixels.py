"""From stored arrays to what a network sees: bands picked from their grids, reduced on request, joined, stretched."""

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from infra.bigearthnet.bands import S1, BandGroup
from sr_models.stretch import limits
from tasks.bands import Resampling


def picked(values: NDArray[np.generic], group: BandGroup, bands: Sequence[str]) -> NDArray[np.generic]:
    """Return a grid's wanted bands, (N, all its bands, h, w) to (N, C, h, w), in the order of `bands`."""
    index = [group.bands.index(band) for band in bands if band in group.bands]
    return values[:, index]


def reduced(dn: Tensor, factor: int) -> Tensor:
    """Return DN on a grid that is `factor` times coarser: means over factor x factor pixels, halves to even.

    In float64, where such a mean is exact, so devices agree.

    Args:
        dn: (N, C, H, W), torch.uint16, linear in radiance; H and W multiples of the factor.
        factor: 1 leaves them as they are.
    """
    if factor == 1:
        return dn
    return avg_pool2d(dn.to(torch.float64), factor).round_().to(torch.int32).to(torch.uint16)


def joined(
    arrays: Mapping[str, Tensor],
    groups: Sequence[BandGroup],
    bands: Sequence[str],
    max_dn: Sequence[int],
    resampling: Resampling,
) -> Tensor:
    """Return bands of several grids as one image on the finest, after the stretch.

    Args:
        arrays: By name of the grid, its wanted bands: (N, C_g, h, w), DN or, of Sentinel-1, dB.
        groups: The grids, the finest first.
        bands: All bands, in the order of the result's channels.
        max_dn: DN of 1 in the stretch, of each band; Sentinel-1 is not stretched.
        resampling: How a coarser grid is enlarged, before the stretch; bilinear and bicubic keep pixel centres.

    Returns:
        (N, C, H, W), float32: [0, 1] for Sentinel-2, dB for Sentinel-1.
    """
    size = groups[0].size
    channels: dict[str, Tensor] = {}
    for group in groups:
        x = arrays[group.array].to(torch.float32)
        if group.size != size:
            keep_centres = {} if resampling == "nearest" else {"align_corners": False}
            x = interpolate(x, size=(size, size), mode=resampling, **keep_centres)
        channels |= dict(zip((band for band in bands if band in group.bands), x.unbind(dim=1), strict=True))
    image = torch.stack([channels[band] for band in bands], dim=1)
    optical = [i for i, band in enumerate(bands) if band not in S1.bands]
    limit = limits([max_dn[i] for i in optical], image[:, optical])
    image[:, optical] = image[:, optical].clamp(min=0).minimum(limit) / limit
    return image
