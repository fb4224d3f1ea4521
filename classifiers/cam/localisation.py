"""How well maps point at what they are of, judged by masks of where it truly is.

A map is rectified and brought onto the mask's grid. Its pixels in falling order of value, ties in row-major order, are
sorted once; area under the curve, pointing and the smallest sets that hold a share of the map's energy come of it.
"""

from dataclasses import dataclass, fields

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from classifiers.cam.grid import are_finite, on_grid
from infra.errors import ShapeError

ENERGY_PERCENT = (95, 90, 85, 80, 75)
"""Shares of a map's energy, percent, whose smallest sets of pixels are compared with the mask."""

_SLACK = 1e-6
"""Part of a share of energy that a set of pixels may lack and still hold it."""

_PIXELS_AT_ONCE = 1 << 16  # fits a CPU's cache
_PIXELS_AT_ONCE_GPU = 1 << 24

_BITS = 30
"""Bits that the numbers from 0 to 1 take in float32: as integers, they are in the same order."""
_ONE = 0x3F800000
"""1.0 in float32."""


@dataclass(frozen=True, slots=True)
class Localisation:
    """Numbers of every map, each (M,), float32, on the maps' device; NaN where undefined."""

    area_share: Tensor
    """Share of the grid that the mask covers, in [0, 1]; of every mask, whatever its map."""
    judd_auc: Tensor
    """Area under the ROC of values against the mask, ties at midranks; NaN for an empty or a full mask."""
    pointing: Tensor
    """1 where the maximum lies in the mask, else 0; of several maxima, the share in the mask."""
    iou_95: Tensor
    """Intersection over union of the mask and the smallest set of pixels that holds 95 % of the map's sum."""
    iou_90: Tensor
    """The same for 90 %."""
    iou_85: Tensor
    """The same for 85 %."""
    iou_80: Tensor
    """The same for 80 %."""
    iou_75: Tensor
    """The same for 75 %."""
    similarity: Tensor
    """Sum of the smaller of both at each pixel, each scaled to sum 1, in [0, 1]; NaN for an empty mask."""
    correlation: Tensor
    """Pearson's correlation with the mask; NaN for a constant map, an empty or a full mask."""


LOCALISATION: tuple[str, ...] = tuple(field.name for field in fields(Localisation))
"""Names of the numbers."""


def localise(maps: Tensor, masks: Tensor) -> Localisation:
    """Return how well each map points at its mask.

    Numbers but `area_share` are NaN for a map that is nowhere above 0, and for one that is not finite: `are_finite`
    tells them apart. No number depends on the scale of a map, nor on the maps beside it.

    Args:
        maps: Raw maps, (M, h, w), any scale.
        masks: Where the truth is, (M, S, S), bool, on the maps' device.

    Returns:
        The numbers of each map.

    Raises:
        ShapeError: The masks are not boolean, not square, or not as many as the maps.

    Source: Bylinskii et al. 2019, arXiv:1604.03605 (AUC-Judd, similarity, correlation); Zhang et al. 2018,
    arXiv:1608.00507 (pointing); Qian et al. 2023, doi:10.1007/978-3-031-43895-0_17, section 4 (energy).
    """
    square = masks.ndim == 3 and masks.shape[1] == masks.shape[2] > 0
    if maps.ndim != 3 or len(maps) != len(masks) or not square or masks.dtype != torch.bool:
        raise ShapeError(
            "localise needs maps (M, h, w) and boolean masks (M, S, S), got "
            f"{tuple(maps.shape)} and {tuple(masks.shape)} {masks.dtype}"
        )
    at_once = max(1, (_PIXELS_AT_ONCE_GPU if maps.is_cuda else _PIXELS_AT_ONCE) // masks.shape[1] ** 2)
    parts = zip(torch.split(maps.detach().float(), at_once), torch.split(masks, at_once), strict=True)
    return Localisation(*torch.cat([_localise(*part) for part in parts]).unbind(dim=1))


def _localise(maps: Tensor, masks: Tensor) -> Tensor:
    """Return the numbers of some maps, (M, 10)."""
    values, usable = _unit_maps(maps, masks.shape[1])
    inside = masks.flatten(1)
    weight = inside.to(values.dtype)
    pixels = inside.shape[1]
    falling, order = _falling(values)
    hits = inside.flatten().index_select(0, order).reshape(inside.shape).cumsum(dim=1, dtype=torch.int32)
    area = hits[:, -1].double()
    auc, pointing = _auc_and_pointing(falling, hits)
    energy = falling.cumsum(dim=1, dtype=torch.float64)
    total = energy[:, -1]
    overlaps = _overlaps(energy, hits)
    # In the mask, the smaller of value / total and 1 / area.
    level = (total / area).to(values.dtype)[:, None]
    similarity = _dot(torch.minimum(values, level), weight) / total
    centred = values - (total / pixels).to(values.dtype)[:, None]
    spread = _dot(centred, centred) * (area * (1 - area / pixels))
    # The mean that was taken off is rounded: what is left of it counts once for each pixel of the mask.
    rest = total / pixels - (total / pixels).to(values.dtype).double()
    correlation = (_dot(centred, weight) - rest * area) / spread.sqrt()
    is_constant = (falling[:, 0] == falling[:, -1]) | (area % pixels == 0)  # the map, or the mask
    found = torch.column_stack(
        [
            auc,
            pointing,
            overlaps,
            torch.where(area == 0, torch.nan, similarity),
            torch.where(is_constant, torch.nan, correlation).clamp(-1.0, 1.0),
        ]
    )
    return torch.column_stack([area / pixels, torch.where(usable[:, None], found, torch.nan)]).float()


def _dot(first: Tensor, second: Tensor) -> Tensor:
    """Return the scalar product of each row, (M, P) and (M, P) to (M,), float64."""
    return (first * second).sum(dim=1).double()


def _unit_maps(maps: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """Return rectified maps on a grid, (M, size * size), in [0, 1], and which are usable; the others are zeros."""
    finite = are_finite(maps)
    positive = F.relu(maps)
    peak = positive.amax(dim=(1, 2))
    usable = finite & (peak > 0)
    scaled = torch.where(usable[:, None, None], positive / peak[:, None, None], 0.0)
    return on_grid(scaled, size).clamp(0.0, 1.0).flatten(1), usable


def _falling(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return values (M, P) in [0, 1] in falling order row by row, ties as they stood, and their places in all rows.

    Row and value make one whole number, so that one sort of whole numbers serves all rows: torch has a radix sort for
    these, several times faster than its sort of rows of floats.
    """
    rows = torch.arange(len(values), device=values.device)[:, None] << _BITS
    keys = (_ONE - (values + 0.0).view(torch.int32)) + rows  # + 0.0: a negative zero has other bits
    ordered, order = keys.flatten().sort(stable=True)
    bits = _ONE - (ordered.reshape(values.shape) - rows)
    return bits.to(torch.int32).view(torch.float32), order


def _auc_and_pointing(falling: Tensor, hits: Tensor) -> tuple[Tensor, Tensor]:
    """Return the area under the ROC by trapezoids between different values, and pointing, both (M,), float64.

    Args:
        falling: Values in falling order, (M, P).
        hits: How many of the pixels so far lie in the mask, (M, P).
    """
    rows, pixels = falling.shape
    is_last = torch.ones_like(falling, dtype=torch.bool)  # of the pixels of one value
    torch.ne(falling[:, 1:], falling[:, :-1], out=is_last[:, :-1])
    at = is_last.flatten().nonzero().flatten()
    ends = torch.searchsorted(at, pixels * torch.arange(1, rows + 1, device=at.device))  # of the rows in `at`
    starts = ends.roll(1)
    starts[:1] = 0
    so_far = at % pixels + 1
    true = hits.flatten().index_select(0, at).long()
    false = so_far - true
    # Twice the trapezoids, in whole numbers; at the start of a row the curve is at (0, 0).
    width, sides = false.diff(prepend=false[:1]), true + true.roll(1)
    width[starts], sides[starts] = false[starts], true[starts]
    under = (width * sides).cumsum(dim=0)[ends - 1]
    under = under.diff(prepend=under.new_zeros(1)).double() / 2
    area = hits[:, -1].double()
    return under / (area * (pixels - area)), true[starts] / so_far[starts].double()


def _overlaps(energy: Tensor, hits: Tensor) -> Tensor:
    """Return the intersections over unions of the mask and the fewest pixels that hold shares of the energy.

    Args:
        energy: Sum of the values so far, in falling order, (M, P), float64.
        hits: How many of the pixels so far lie in the mask, (M, P).

    Returns:
        (M, shares of `ENERGY_PERCENT`), float64.
    """
    percent = torch.tensor(ENERGY_PERCENT, dtype=energy.dtype, device=energy.device)
    # The slack is more than the rounding of a scaled map, so that a share that is met exactly is met at any scale.
    last = torch.searchsorted(energy, energy[:, -1:] * (percent / 100 * (1 - _SLACK)))
    inside = hits.gather(1, last).double()
    return inside / (hits[:, -1:] + last + 1 - inside)
