"""How faithful maps are to the network: what its probability does where a map keeps, deletes or inserts pixels.

Pixels that are not kept are 0 in the standardised input, the training mean, as everywhere in these methods.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from classifiers.cam.grid import are_finite, min_max, on_grid
from classifiers.cam.masked import chunks
from classifiers.cam.methods import STEPS
from classifiers.cam.target import Target, images_at_once
from infra.errors import ConfigError, ShapeError


@dataclass(frozen=True, slots=True)
class Faithfulness:
    """Numbers of every map, each (M,), float32, on the maps' device.

    NaN for a map that says nothing, and where a probability that a number is made of is not a number.

    Y is the probability of the label, O that of the input multiplied by the map, min-max scaled and enlarged.
    """

    average_drop: Tensor
    """100 max(0, Y - O) / Y, percent; 0 where Y is 0. Its mean over maps is the Average Drop."""
    average_increase: Tensor
    """100 where Y < O, else 0. Its mean over maps is the Average Increase."""
    deletion_auc: Tensor
    """Mean probability while pixels are deleted by falling map value, in [0, 1]; low for a faithful map."""
    insertion_auc: Tensor
    """Mean probability while they are inserted into the blank input, in [0, 1]; high for a faithful map."""


def judge_faithfulness(target: Target, maps: Tensor, patch: Tensor, label: Tensor, steps: int = STEPS) -> Faithfulness:
    """Return how faithful maps are, each of one patch and one label.

    Each map costs 2 steps - 1 passes through the network, which serve all labels of a patch that share a map and lie
    beside each other. Maps are rectified, min-max scaled, and brought onto the input's grid; pixels of one value are
    deleted and inserted in row-major order. A map says nothing where it is constant when rectified, or not finite:
    `are_finite` tells which.

    Args:
        target: The patches, and the labels of which `label` is an index; of its layer nothing is asked.
        maps: Raw maps, (M, h, w), any scale, on the patches' device.
        patch: Which patch each map is of, (M,), integers.
        label: Which of the target's labels each map is of, (M,), integers.
        steps: Of deletion and of insertion, of equal numbers of pixels.

    Returns:
        The numbers of each map.

    Raises:
        ShapeError: There are not as many patches and labels as maps.
        ConfigError: No step, or a patch or a label that the target does not have.

    Source: Chattopadhay et al. 2018, arXiv:1710.11063, and Soomro et al., Grad++ScoreCAM, section IV-A
    (drop, increase); Petsiuk et al. 2018, arXiv:1806.07421 (deletion, insertion, there into a blurred
    image).
    """
    _check(target, maps, patch, label, steps)
    patch, label = patch.to(target.x.device).long(), label.to(target.x.device).long()
    positive = F.relu(maps.detach())
    says = are_finite(maps) & (positive.amax(dim=(1, 2)) > positive.amin(dim=(1, 2)))
    found = maps.new_full((4, len(maps)), torch.nan, dtype=torch.float32)
    rows = says.nonzero().flatten()
    if len(rows):
        found[:, rows] = _judged(target, positive[rows], patch[rows], label[rows], steps).float()
    return Faithfulness(*found)


def _check(target: Target, maps: Tensor, patch: Tensor, label: Tensor, steps: int) -> None:
    if maps.ndim != 3 or patch.shape != maps.shape[:1] or label.shape != maps.shape[:1]:
        raise ShapeError(
            "judge_faithfulness needs maps (M, h, w) and M patches and labels, got "
            f"{tuple(maps.shape)}, {tuple(patch.shape)} and {tuple(label.shape)}"
        )
    if steps < 1:
        raise ConfigError(f"pixels are deleted and inserted in at least 1 step, got {steps}")
    for indices, count, what in ((patch, len(target.x), "patches"), (label, len(target.labels), "labels")):
        if len(indices) and not 0 <= int(indices.min()) <= int(indices.max()) < count:
            raise ConfigError(f"the target has {count} {what}, asked were {sorted(set(indices.tolist()))}")


def _judged(target: Target, maps: Tensor, patch: Tensor, label: Tensor, steps: int) -> Tensor:
    """Return the numbers of rectified maps that are not constant, (4, M), float64."""
    is_new = torch.ones_like(patch, dtype=torch.bool)
    is_new[1:] = (patch[1:] != patch[:-1]) | (maps[1:] != maps[:-1]).flatten(1).any(dim=1)
    of_map = is_new.cumsum(dim=0) - 1
    seen, of_patch = torch.unique(patch, return_inverse=True)
    # Not `target.probabilities`, whose activations may come of a pass in lower precision than those below.
    whole = target.probabilities_of(target.x[seen])[of_patch, label].double()
    blank = target.blank_probabilities[0, label].double()
    passes = _passes(target, maps[is_new], patch[is_new], steps)[of_map, :, label].double()
    masked, deleted, inserted = passes[:, 0], passes[:, 1:steps], passes[:, steps:]
    counts = _counts(target.x[0, 0].numel(), steps, target.x.device).double()
    ends = whole[:, None], blank[:, None]
    return torch.stack(
        [
            torch.where((whole == 0) & ~masked.isnan(), 0.0, 100 * (whole - masked).clamp(min=0) / whole),
            torch.where((whole + masked).isnan(), torch.nan, 100 * (whole < masked).double()),
            torch.trapezoid(torch.cat([ends[0], deleted, ends[1]], dim=1), counts / counts[-1]),
            torch.trapezoid(torch.cat([ends[1], inserted, ends[0]], dim=1), counts / counts[-1]),
        ]
    )


def _passes(target: Target, maps: Tensor, patch: Tensor, steps: int) -> Tensor:
    """Return f_c of inputs times maps, then deleted and then inserted step by step without both ends.

    Args:
        target: The patches.
        maps: (M, h, w), >= 0, not constant.
        patch: Which patch each is of, (M,).
        steps: Of deletion and of insertion.

    Returns:
        (M, 2 steps - 1, L).
    """
    x, each = target.x, 2 * steps - 1
    pixels = x[0, 0].numel()
    inner = _counts(pixels, steps, x.device)[1:-1]
    # Which ranks are kept: from, to; the first input is multiplied by the map itself.
    first = torch.cat([inner.new_zeros(1), inner, torch.zeros_like(inner)])
    last = torch.cat([inner.new_full((1 + len(inner),), pixels), inner])
    parts = []
    for rows in torch.split(torch.arange(len(maps), device=x.device), max(1, images_at_once(x) // each)):
        scaled = on_grid(min_max(maps[rows]), (x.shape[2], x.shape[3])).to(x.dtype)
        ranks = _ranks(scaled.flatten(1))
        for chunk in chunks(len(rows) * each, x):
            number = torch.arange(chunk.start, chunk.stop, device=x.device)
            row, step = number // each, number % each
            rank = ranks[row]
            kept = ((rank >= first[step, None]) & (rank < last[step, None])).to(x.dtype).reshape(-1, *x.shape[2:])
            masks = torch.where((step == 0)[:, None, None], scaled[row], kept)
            parts.append(target.probabilities_of(x[patch[rows[row]]] * masks[:, None]))
    return torch.cat(parts).reshape(len(maps), each, -1)


def _counts(pixels: int, steps: int, device: torch.device) -> Tensor:
    """Return how many pixels are changed after each step, from none to all, (steps + 1,)."""
    return (torch.arange(steps + 1, device=device) * pixels + steps // 2) // steps


def _ranks(values: Tensor) -> Tensor:
    """Return the rank of each value in falling order within its row, from 0, ties as they stand, (M, P) to (M, P)."""
    order = values.sort(dim=1, descending=True, stable=True).indices
    places = torch.arange(values.shape[1], device=values.device).expand_as(order)
    return torch.empty_like(order).scatter_(1, order, places)
