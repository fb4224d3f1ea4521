"""RGB networks on other bands: in groups of three, radiometry kept. An approximation: no network here saw B08.

The first group is red, green, blue; every further band is a grey picture, three times the same band, whose three
outputs are averaged. Then the result is projected back onto the input, so that its means over scale x scale pixels are
the input's DN: whatever shift a network trained on photographs makes in near infrared is taken out again.
"""

import torch
from torch import Tensor
from torch.nn.functional import avg_pool2d, interpolate

from infra.errors import ShapeError

BACK_PROJECTIONS = 8
"""Steps of `back_project`; each leaves at most six tenths of the difference, at the highest frequency of the input."""


def split(x: Tensor) -> Tensor:
    """Return the groups of an image as a batch of RGB images.

    Args:
        x: (N, C, H, W), C >= 3; the first three bands are red, green, blue.

    Returns:
        (N * (C - 2), 3, H, W): the RGB images, then those of the fourth band, and so on.

    Raises:
        ShapeError: x is not (N, C, H, W) with at least three bands.
    """
    if x.ndim != 4 or x.shape[1] < 3:
        raise ShapeError(f"bands in groups need (N, C, H, W), red, green, blue and more, got {tuple(x.shape)}")
    grey = [x[:, band : band + 1].expand(-1, 3, -1, -1) for band in range(3, x.shape[1])]
    return torch.cat([x[:, :3], *grey])


def join(y: Tensor, bands: int) -> Tensor:
    """Undo `split` on enlarged images: (N * (C - 2), 3, H, W) to (N, C, H, W); grey groups are averaged."""
    rgb, *grey = y.chunk(bands - 2)
    return torch.cat([rgb, *(group.mean(dim=1, keepdim=True) for group in grey)], dim=1)


def back_project(sr: Tensor, lr: Tensor, steps: int = BACK_PROJECTIONS) -> Tensor:
    """Return sr with what its reduction lacks of lr added, enlarged by bicubic interpolation, several times.

    Args:
        sr: (N, C, s*H, s*W), linear in DN.
        lr: (N, C, H, W), the unit of sr.
        steps: How often.

    Returns:
        The shape of sr; its means over s x s pixels approach lr.

    Source: Irani and Peleg 1991, doi:10.1016/1049-9652(91)90045-L.
    """
    scale = sr.shape[-1] // lr.shape[-1]
    for _ in range(steps):
        lacking = lr - avg_pool2d(sr, scale)
        sr = sr + interpolate(lacking, scale_factor=scale, mode="bicubic", align_corners=False)
    return sr
