"""Colours of the output after those of the input: a diffusion model shifts them, and land cover is told by them.

Both ways are SeeSR's, on float images instead of its 8-bit ones. Each image is aligned by itself.
"""

from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from infra.errors import ShapeError

Alignment = Literal["adain", "wavelet", "none"]

_VARIANCE_FLOOR = 1e-5  # added to each variance, so that a flat image can be aligned
_LEVELS = 5
_SMOOTHING = (0.25, 0.5, 0.25)  # along each axis


def align(sr: Tensor, enlarged: Tensor, alignment: Alignment) -> Tensor:
    """Return an image with the colours of another, clamped to [0, 1].

    Args:
        sr: What gives the detail, (N, C, H, W), float32, in [0, 1].
        enlarged: What gives the colours, same shape and range: the input, enlarged.
        alignment: "adain", "wavelet" or "none".

    Returns:
        Same shape, float32.

    Raises:
        ShapeError: The two are not (N, C, H, W) of one shape.
    """
    if sr.ndim != 4 or sr.shape != enlarged.shape:
        raise ShapeError(
            f"colours are aligned between two (N, C, H, W) of one shape, got {tuple(sr.shape)} and "
            f"{tuple(enlarged.shape)}"
        )
    if alignment == "adain":
        sr = adain(sr, enlarged)
    elif alignment == "wavelet":
        sr = wavelet(sr, enlarged)
    return sr.clamp(0.0, 1.0)


def adain(sr: Tensor, enlarged: Tensor) -> Tensor:
    """Return sr with the mean and standard deviation of another image, channel by channel.

    With m and s the mean and the standard deviation (n - 1 in the denominator, 1e-5 added to the variance) over an
    image's channel: (sr - m_sr) / s_sr * s_enlarged + m_enlarged.

    Args:
        sr: (N, C, H, W), two pixels or more.
        enlarged: Same shape.

    Returns:
        Same shape, not clamped.

    Source: Huang and Belongie 2017, arXiv:1703.06868, eq. 8; constants as in SeeSR.
    """
    mean, spread = _moments(sr)
    wanted_mean, wanted_spread = _moments(enlarged)
    return (sr - mean) / spread * wanted_spread + wanted_mean


def wavelet(sr: Tensor, enlarged: Tensor) -> Tensor:
    """Return the high frequencies of sr on the low frequencies of another image.

    The low frequencies are what is left after five passes of the 3 x 3 binomial kernel whose taps lie 1, 2, 4, 8 and 16
    pixels apart (the transform à trous); edges are repeated.

    Args:
        sr: (N, C, H, W).
        enlarged: Same shape.

    Returns:
        Same shape, not clamped.

    Source: Wang et al. 2023 (StableSR), arXiv:2305.07015, section 3.4; constants as in SeeSR.
    """
    return sr - _low_frequencies(sr) + _low_frequencies(enlarged)


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    variance, mean = torch.var_mean(x, dim=(2, 3), keepdim=True)
    return mean, (variance + _VARIANCE_FLOOR).sqrt()


def _low_frequencies(x: Tensor) -> Tensor:
    channels = x.shape[1]
    line = x.new_tensor(_SMOOTHING)
    kernel = torch.outer(line, line).expand(channels, 1, 3, 3)
    for level in range(_LEVELS):
        apart = 2**level
        x = F.conv2d(F.pad(x, (apart,) * 4, mode="replicate"), kernel, groups=channels, dilation=apart)
    return x
