"""What a super-resolved image gets right, leaves out and makes up against a truth: the shares of opensr-test.

Each pixel has three distances: of the truth from the enlarged input (what there was to gain), of the output from the
truth, of the output from the enlarged input. In units of the first, the other two say where the pixel lies: near the
truth (improvement), near the input (omission), or far from both (hallucination).

Source: Aybar et al. 2024, "A comprehensive benchmark for optical remote sensing image super-resolution",
doi:10.1109/LGRS.2024.3401394; constants as in opensr-test 1.2 and later.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Literal

import torch
import torch.nn.functional as F  # noqa: N812
from torch import Tensor

from infra.errors import ShapeError

BORDER_PX = 16
"""Border of the truth that is left out, pixels."""

DETAIL_QUANTILE = 0.75
"""Pixels whose three distances all lie below this quantile of the image's truth-input distances are left out."""

GAMMA = 0.05
"""Decay of all three scores."""

TEMPERATURE = 0.25
"""Temperature of the norm "softmin"."""

SHARE_COLUMNS: Mapping[str, str] = MappingProxyType(
    {
        "improvement_share": "Wald: share of pixels with detail that come near to the truth",
        "omission_share": "Wald: share of pixels with detail that stay as the enlarged input",
        "hallucination_share": "Wald: share of pixels with detail that are far from both",
    }
)
"""Names of the shares, in the order in which ties are decided, and what each is."""


def detail_shares(
    lr: Tensor, sr: Tensor, hr: Tensor, norm: Literal["percent", "softmin"] = "percent"
) -> dict[str, Tensor]:
    """Return the shares of improvement, omission and hallucination of each image.

    With d(a, b) the mean over bands of |a - b| / (a + b), up the bilinear enlargement, and per pixel
    x = d(sr, hr) / d(up, hr), y = d(sr, up) / d(up, hr), H = x + y - 1, the scores are

        improvement x + y (1 - exp(-gamma H)), omission y + x (1 - exp(-gamma H)), hallucination exp(-gamma x y);

    the smallest one names the pixel. Pixels without detail are left out: those where none of the three distances
    exceeds the image's 75 % quantile of d(up, hr).

    Unlike opensr-test, the output is not first matched to the truth in histogram and place: truth and input here come
    from one sensor, so a cast or a shift is the model's own.

    Args:
        lr: The input, (N, C, H/s, W/s), >= 0.
        sr: The output, (N, C, H, W), the unit of lr, >= 0.
        hr: The truth, the shape and unit of sr.
        norm: "percent": share of the pixels; "softmin": mean of the scores' softmin, opensr-test's default, which
            never quite reaches 0 or 1.

    Returns:
        The keys of `SHARE_COLUMNS`: (N,) each, in [0, 1], of sum 1; NaN for an image without detail, or
        of at most 32 pixels along an edge, all of it border.

    Raises:
        ShapeError: The shapes do not go together.
    """
    scale = hr.shape[-1] // max(lr.shape[-1], 1)
    expected = (*lr.shape[:2], *(scale * size for size in lr.shape[2:]))
    if lr.ndim != 4 or scale < 1 or sr.shape != hr.shape or hr.shape != expected:
        raise ShapeError(
            "detail_shares needs (N, C, H/s, W/s), (N, C, H, W) and (N, C, H, W), s one integer, "
            f"got {tuple(lr.shape)}, {tuple(sr.shape)} and {tuple(hr.shape)}"
        )
    if min(hr.shape[2:]) <= 2 * BORDER_PX:
        return dict.fromkeys(SHARE_COLUMNS, hr.new_full((len(hr),), torch.nan))
    up = F.interpolate(lr, scale_factor=scale, mode="bilinear", align_corners=False)
    up, sr, hr = (x[..., BORDER_PX:-BORDER_PX, BORDER_PX:-BORDER_PX] for x in (up, sr, hr))
    to_gain, to_truth, to_input = _distance(up, hr), _distance(sr, hr), _distance(sr, up)  # (N, pixels)
    rank = max(1, int(DETAIL_QUANTILE * to_gain.shape[1]))
    least = to_gain.kthvalue(rank, dim=1, keepdim=True).values
    detail = torch.maximum(torch.maximum(to_gain, to_truth), to_input) > least
    x, y = to_truth / to_gain, to_input / to_gain  # infinite where there was nothing to gain: made up
    fade = -torch.expm1(-GAMMA * (x + y - 1))
    improvement, omission, hallucination = x + y * fade, y + x * fade, torch.exp(-GAMMA * x * y)
    if norm == "percent":
        improved = (improvement <= omission) & (improvement <= hallucination)
        omitted = (omission < improvement) & (omission <= hallucination)
        weights = torch.stack([improved, omitted, ~(improved | omitted)])  # argmin, but ten times as fast
    else:
        weights = torch.softmax(torch.stack([improvement, omission, hallucination]) / -TEMPERATURE, dim=0)
    shares = torch.where(detail, weights, 0).sum(dim=2) / detail.sum(dim=1)  # 0 / 0 is NaN
    return dict(zip(SHARE_COLUMNS, shares.to(hr.dtype), strict=True))


def _distance(a: Tensor, b: Tensor) -> Tensor:
    """Return the fractional difference |a - b| / (a + b), mean over bands, (N, H W); 0 where both are 0."""
    total = (a + b).clamp_(min=torch.finfo(a.dtype).tiny)
    return ((a - b).abs_() / total).mean(dim=1).flatten(1)
