"""How good a super-resolved patch is: image metrics, Wald's protocol, consistency with the input.

All on the tensors' device, batched, one number per image; means over images are a later, named step. Where a metric has
no value (a black patch has no spectral angle), it is NaN, which the tables store as null.
"""

import math
from collections.abc import Mapping
from types import MappingProxyType
from typing import Protocol

import numpy as np
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import NDArray
from torch import Tensor

from infra.bigearthnet.bands import REFLECTANCE_SCALE
from infra.errors import ConfigError, ShapeError
from sr_models.opensr import SHARE_COLUMNS, detail_shares
from sr_models.registration import translation_px
from sr_models.stretch import MaxDn, as_tensor, clipped_share, limits, to_float, to_unit

PSNR_CAP_DB = 100.0
"""Largest PSNR reported, dB: that of a root mean square error of 1e-5, and of identical images."""

SSIM_WINDOW = 11
"""Edge of the Gaussian window of `ssim`, pixels."""

SSIM_SIGMA = 1.5
"""Standard deviation of the Gaussian window of `ssim`, pixels."""

QUALITY_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "psnr_db": "Wald: peak signal-to-noise ratio, dB, at most 100",
        "ssim": "Wald: structural similarity, mean over channels",
        "sam_deg": "Wald: spectral angle, degrees, mean over pixels",
        "ergas": "Wald: relative global error, ratio 1/scale",
        **SHARE_COLUMNS,
        "reflectance_mae": "consistency: mean absolute error, reflectance",
        "consistency_sam_deg": "consistency: spectral angle, degrees, mean over pixels",
        "shift_row_px": "consistency: how far the output lies too low, pixels of the input",
        "shift_col_px": "consistency: how far the output lies too far to the right, pixels of the input",
        "clipped_share": "share of the input's pixels that the stretch clips",
    }
)
"""The rows that `quality_columns` returns, and what each is."""

WALD_COLUMNS = ("psnr_db", "ssim", "sam_deg", "ergas", *SHARE_COLUMNS)
"""Those of `wald`."""


def psnr_db(a: Tensor, b: Tensor) -> Tensor:
    """Return the peak signal-to-noise ratio of each image, -10 log10(MSE), peak 1, capped at 100 dB.

    Args:
        a: (N, C, H, W), in [0, 1].
        b: The same shape and range.

    Returns:
        (N,), dB; the mean squared error is over channels and pixels.

    Raises:
        ShapeError: The inputs are not 4-D, or their shapes differ.
    """
    _check_pair("psnr_db", a, b)
    mse = (a - b).square().mean(dim=(1, 2, 3))
    return (-10.0 * mse.clamp(min=10 ** (-PSNR_CAP_DB / 10)).log10()).clamp(max=PSNR_CAP_DB)


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Return the structural similarity of each image, mean over channels and over all whole windows.

    Args:
        a: (N, C, H, W), in [0, 1], H and W at least 11.
        b: The same shape and range.

    Returns:
        (N,), in [-1, 1].

    Raises:
        ShapeError: The inputs are not 4-D, their shapes differ, or they are smaller than the window.

    Source: Wang et al. 2004, doi:10.1109/TIP.2003.819861: Gaussian window 11x11, sigma 1.5, K1 = 0.01, K2 = 0.03,
    L = 1, no padding (scikit-image: gaussian_weights=True, use_sample_covariance=False).
    """
    _check_pair("ssim", a, b)
    if min(a.shape[2:]) < SSIM_WINDOW:
        raise ShapeError(f"ssim needs images of at least {SSIM_WINDOW}x{SSIM_WINDOW}, got {tuple(a.shape)}")
    # E[x^2] - E[x]^2 loses its digits in float32 unless x is near 0; moments about the image's mean are the same
    shift_a, shift_b = a.mean(dim=(2, 3), keepdim=True), b.mean(dim=(2, 3), keepdim=True)
    x, y = a - shift_a, b - shift_b
    mean_x, mean_y = _gaussian(x), _gaussian(y)
    var_a = _gaussian(x * x) - mean_x * mean_x
    var_b = _gaussian(y * y) - mean_y * mean_y
    covariance = _gaussian(x * y) - mean_x * mean_y
    mean_a, mean_b = mean_x + shift_a, mean_y + shift_b
    c1, c2 = 0.01**2, 0.03**2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a.square() + mean_b.square() + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def spectral_angle_deg(a: Tensor, b: Tensor) -> Tensor:
    """Return the angle between the spectra of a and b, mean over the pixels of each image.

    A pixel that is zero in all bands, in a or in b, has no angle and is left out.

    Args:
        a: (N, C, H, W), any unit; a factor common to all bands does not matter.
        b: The same shape.

    Returns:
        (N,), degrees, in [0, 180]; NaN where no pixel has an angle.

    Raises:
        ShapeError: The inputs are not 4-D, or their shapes differ.

    Source: Kruse et al. 1993, doi:10.1016/0034-4257(93)90013-N; the angle by Kahan's half-angle formula, since arccos
    loses half the digits of a small angle.
    """
    _check_pair("spectral_angle_deg", a, b)
    # torch's norm over dim 1 takes ten times as long as its formula
    length_a = a.square().sum(dim=1, keepdim=True).sqrt_()
    length_b = b.square().sum(dim=1, keepdim=True).sqrt_()
    unit_a, unit_b = a / length_a, b / length_b  # NaN where the length is 0
    apart, along = (unit_a - unit_b).square_().sum(dim=1).sqrt_(), (unit_a + unit_b).square_().sum(dim=1).sqrt_()
    angle = 2 * torch.atan2(apart, along)  # (N, H, W), rad
    return angle.nanmean(dim=(1, 2)) * (180 / math.pi)


def ergas(estimate: Tensor, reference: Tensor, ratio: float = 1 / 4) -> Tensor:
    """Return the relative dimensionless global error, 100 ratio sqrt(mean_k (RMSE_k / mean_k)^2), k the bands.

    Args:
        estimate: (N, C, H, W), linear in radiance, any unit.
        reference: The same shape and unit; its band means are the denominators.
        ratio: Pixel size of the estimate over that of the input it was made from.

    Returns:
        (N,), >= 0, 0 is best; NaN where a band of the reference has mean 0.

    Raises:
        ShapeError: The inputs are not 4-D, or their shapes differ.

    Source: Wald 2000, "Quality of high resolution synthesised images: is there a simple criterion?".
    """
    _check_pair("ergas", estimate, reference)
    mean_square = (estimate - reference).square().mean(dim=(2, 3))  # RMSE_k^2, (N, C)
    mean = reference.mean(dim=(2, 3))
    value = 100 * ratio * (mean_square / mean.square()).mean(dim=1).sqrt()
    return value.masked_fill((mean == 0).any(dim=1), torch.nan)


def reduce_mean(x: Tensor, factor: int = 4) -> Tensor:
    """Return the mean over blocks of factor x factor pixels: how every reduction here is done, in linear DN.

    Args:
        x: (N, C, H, W), floating point, linear in DN; H and W multiples of factor.
        factor: Edge of a block, pixels.

    Returns:
        (N, C, H/factor, W/factor), the unit of x.

    Raises:
        ShapeError: x is not 4-D, or its size is not a multiple of factor.
    """
    if x.ndim != 4 or x.shape[2] % factor or x.shape[3] % factor:
        raise ShapeError(f"reduce_mean needs (N, C, H, W) with H and W multiples of {factor}, got {tuple(x.shape)}")
    return F.avg_pool2d(x, factor)


def degrade(x: Tensor, factor: int = 4, mtf: float | None = None) -> Tensor:
    """Return x at a factor-th of its resolution: by block means, or as a sensor of a given MTF would see it.

    Args:
        x: (N, C, H, W), floating point, linear in DN; H and W multiples of factor.
        factor: Pixel size of the result, pixels of x.
        mtf: None for block means. Otherwise the modulation transfer at the result's Nyquist frequency,
            1/(2 factor) cycles per pixel, in (0, 1): x is seen through a Gaussian of that transfer, sigma =
            factor sqrt(-2 ln mtf) / pi pixels, at the centres of the blocks.

    Returns:
        (N, C, H/factor, W/factor), the unit of x. At the border, weights are normalised over the pixels there are.

    Raises:
        ShapeError: x is not 4-D, or its size is not a multiple of factor.
        ConfigError: mtf is not between 0 and 1.

    Source: Aiazzi et al. 2006, "MTF-tailored multiscale fusion of high-resolution MS and Pan imagery".
    """
    if mtf is None:
        return reduce_mean(x, factor)
    if not 0 < mtf < 1:
        raise ConfigError(f"an MTF at Nyquist lies between 0 and 1, got {mtf}: give None for block means")
    if x.ndim != 4 or x.shape[2] % factor or x.shape[3] % factor:
        raise ShapeError(f"degrade needs (N, C, H, W) with H and W multiples of {factor}, got {tuple(x.shape)}")
    sigma = factor * math.sqrt(-2 * math.log(mtf)) / math.pi
    rows, columns = (_gaussian_rows(size, factor, sigma).to(x) for size in x.shape[2:])
    return rows @ x @ columns.T


def consistency(
    sr_dn: NDArray[np.uint16] | Tensor, lr_dn: NDArray[np.uint16] | Tensor, max_dn: MaxDn
) -> dict[str, Tensor]:
    """Return how far the super-resolved patch, reduced to the input's size, is from the input.

    Both are clipped at max_dn first, as the model saw the input clipped.

    Args:
        sr_dn: (N, C, s*H, s*W), DN, integer.
        lr_dn: (N, C, H, W), DN, integer.
        max_dn: DN at which the stretch clips.

    Returns:
        `reflectance_mae`: (N,), mean absolute error over bands and pixels, reflectance (DN / 10,000).
        `consistency_sam_deg`: (N,), spectral angle, degrees; NaN for an image of zeros.
        `shift_row_px`, `shift_col_px`: (N,), how far the output lies below and to the right of the input, pixels of
            the input; NaN where that cannot be told (`translation_px`).

    Raises:
        ShapeError: The larger is not a whole multiple of the smaller.
    """
    sr, lr = (x.clamp_(min=0).minimum(limits(max_dn, x)) for x in (to_float(sr_dn), to_float(lr_dn)))
    factor = sr.shape[-1] // max(lr.shape[-1], 1)
    if factor < 1 or sr.ndim != 4 or sr.shape != (*lr.shape[:2], factor * lr.shape[2], factor * lr.shape[3]):
        raise ShapeError(
            f"consistency needs (N, C, s*H, s*W) and (N, C, H, W), s one integer, "
            f"got {tuple(sr.shape)} and {tuple(lr.shape)}"
        )
    reduced = reduce_mean(sr, factor)
    shift_row, shift_col = translation_px(reduced, lr).unbind(dim=1)
    return {
        "reflectance_mae": (reduced - lr).abs().mean(dim=(1, 2, 3)) / REFLECTANCE_SCALE,
        "consistency_sam_deg": spectral_angle_deg(reduced, lr),
        "shift_row_px": shift_row,
        "shift_col_px": shift_col,
    }


class Enlarger(Protocol):
    """A super-resolution model on a device: `SuperResolver`, or `SrEngine`, which minds the device's memory."""

    @property
    def scale(self) -> int:
        """Factor of enlargement."""
        ...

    @property
    def device(self) -> torch.device:
        """Where its output lies."""
        ...

    def __call__(self, x: Tensor) -> Tensor:
        """Return (N, C, H, W), in [0, 1], enlarged."""
        ...


def wald(resolver: Enlarger, lr: Tensor, mtf: float | None = None) -> dict[str, Tensor]:
    """Return how well a model restores the input from its own reduction: Wald's protocol.

    120x120 is reduced to 30x30, super-resolved back to 120x120, and compared with the original.

    Args:
        resolver: The model. One of scale 1 restores nothing: all its values are NaN.
        lr: (N, 3, H, W), float32, in [0, 1] after the stretch; H and W multiples of the scale.
        mtf: How the input is reduced: see `degrade`.

    Returns:
        The keys of `WALD_COLUMNS`, `ergas` with the ratio 1/scale: (N,) each, on the resolver's device.

    Raises:
        ShapeError: lr is not (N, 3, H, W), of a size that is a multiple of the scale.

    Source: Wald et al. 1997, "Fusion of satellite images of different spatial resolutions".
    """
    lr = lr.to(resolver.device)
    if resolver.scale == 1:
        nothing = lr.new_full((lr.shape[0],), torch.nan)
        return dict.fromkeys(WALD_COLUMNS, nothing)
    reduced = degrade(lr, resolver.scale, mtf)
    return against_truth(reduced, resolver(reduced), lr)


def against_truth(lr: Tensor, sr: Tensor, hr: Tensor) -> dict[str, Tensor]:
    """Return how near a super-resolved image is to the truth.

    Args:
        lr: (N, C, H, W), float32, in [0, 1]: what was super-resolved.
        sr: (N, C, s*H, s*W), likewise: the output.
        hr: The shape of sr: the truth.

    Returns:
        The keys of `WALD_COLUMNS`, `ergas` with the ratio 1/s: (N,) each.

    Raises:
        ShapeError: The shapes do not go together.
    """
    return {
        "psnr_db": psnr_db(sr, hr),
        "ssim": ssim(sr, hr),
        "sam_deg": spectral_angle_deg(sr, hr),
        "ergas": ergas(sr, hr, ratio=lr.shape[-1] / hr.shape[-1]),
        **detail_shares(lr, sr, hr),
    }


def quality_columns(
    resolver: Enlarger,
    lr_dn: NDArray[np.uint16] | Tensor,
    sr_dn: NDArray[np.uint16] | Tensor,
    max_dn: MaxDn,
    hr_dn: NDArray[np.uint16] | Tensor | None = None,
) -> Tensor:
    """Return the columns of `tables/sr_quality` for one batch.

    Args:
        resolver: The model that made sr_dn; without hr_dn it is run once more, on the reduced input (1/scale² of the
            work).
        lr_dn: (N, C, H, W), DN, integer.
        sr_dn: (N, C, scale*H, scale*W), DN, integer, as stored.
        max_dn: DN at which the stretch clips.
        hr_dn: The truth, of the shape of sr_dn, where there is one: the output is compared with it, and Wald's
            protocol, which does without, is not needed.

    Returns:
        (K, N), float32, on the device: a row for each of `QUALITY_COLUMNS`, a value per image, NaN where there is
        none.

    Raises:
        ShapeError: The shapes do not go together, or H and W are no multiples of the scale.
    """
    lr, sr = as_tensor(lr_dn, resolver.device), as_tensor(sr_dn, resolver.device)
    if hr_dn is None:
        restored = wald(resolver, to_unit(lr, max_dn))
    else:
        restored = against_truth(to_unit(lr, max_dn), to_unit(sr, max_dn), to_unit(hr_dn, max_dn, resolver.device))
    columns = {
        **restored,
        **consistency(sr, lr, max_dn),
        "clipped_share": clipped_share(lr, max_dn),
    }
    return torch.stack([columns[key] for key in QUALITY_COLUMNS])


def _gaussian_rows(size: int, factor: int, sigma: float) -> Tensor:
    """Return the weights of a Gaussian at the centre of every block of factor pixels, (size/factor, size), sums 1."""
    centres = (torch.arange(size // factor, dtype=torch.float64) + 0.5) * factor - 0.5
    distance = torch.arange(size, dtype=torch.float64) - centres[:, None]
    weights = torch.exp(-0.5 * (distance / sigma).square())
    return weights / weights.sum(dim=1, keepdim=True)


def _gaussian(x: Tensor) -> Tensor:
    """Return x, (N, C, H, W), under the window of `ssim`: (N, C, H-10, W-10).

    By shifted sums, not by a convolution, which CUDA would run in TensorFloat-32.
    """
    offsets = [i - SSIM_WINDOW // 2 for i in range(SSIM_WINDOW)]
    weights = [math.exp(-0.5 * (offset / SSIM_SIGMA) ** 2) for offset in offsets]
    total = sum(weights)
    for dim in (2, 3):
        size = x.shape[dim] - SSIM_WINDOW + 1
        rows = torch.zeros_like(x.narrow(dim, 0, size))
        for shift, weight in enumerate(weights):
            rows.add_(x.narrow(dim, shift, size), alpha=weight / total)
        x = rows
    return x


def _check_pair(function: str, a: Tensor, b: Tensor) -> None:
    if a.ndim != 4 or a.shape != b.shape:
        raise ShapeError(
            f"{function} needs two (N, C, H, W) tensors of one shape, got {tuple(a.shape)} and {tuple(b.shape)}"
        )
