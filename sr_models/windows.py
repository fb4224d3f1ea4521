"""Images of any size in windows: what is planned, run and put together, row by row of windows.

A window is a crop given to the model, its margin the edge that is discarded afterwards. Where a window ends at the
image's own border there is nothing to discard: the model's padding there is the whole image's. Two ways to put
windows together:

- A model that sees no farther than its receptive radius r gives, with a margin of r, what the whole image gives:
  windows are cut at the middle of their overlap.
- A model that sees the whole image (global attention) gives something else in each window: half of the margin is
  discarded, and across the rest neighbours are blended with a smooth weight.

All windows of a plan have one shape: they are spread evenly, so that none is shrunk, and only an image smaller than a
window, or one whose size is not a multiple of the model's own grid, makes another.
"""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from infra.errors import ConfigError, ShapeError
from sr_models.registry import SrSpec, spec
from sr_models.super_resolver import SuperResolver

SMALLEST_WINDOW = 512
"""Edge of a window unless told otherwise, LR pixels; wider where the margin takes more than half of it."""

BLEND_MARGIN = 64
"""Margin of a model that sees the whole image, LR pixels."""

Read = Callable[[int, int], Tensor]
"""Returns rows first..last of an image, (3, last - first, W), float32, in [0, 1]."""

Valid = Callable[[int, int], Tensor]
"""Returns where rows first..last of an image hold data, (last - first, W), bool."""

Tell = Callable[[int, int], None]
"""Is told how many windows are done, and of how many."""


@dataclass(frozen=True, slots=True)
class WindowRule:
    """How images are cut for one model."""

    window: int
    """Edge of a window, LR pixels, margins included."""
    margin: int
    """Edge of a window that is discarded or blended, LR pixels, at each side that is not the image's border."""
    blend: int = 0
    """Half of the width across which neighbours are blended, LR pixels, at most `margin`; 0 cuts."""
    multiple: int = 1
    """Windows start, and are as wide as, multiples of this, LR pixels."""


@dataclass(frozen=True, slots=True)
class Span:
    """One window along one axis, LR pixels."""

    start: int
    """First pixel given to the model."""
    stop: int
    """One past the last."""
    first: int
    """Where the window before ends and this one begins to count; 0 at the image's border."""
    last: int
    """Where the next one begins; the image's size at its border."""


@dataclass(frozen=True, slots=True)
class WindowPlan:
    """All windows of one image: every pair of a span of rows and a span of columns."""

    rows: tuple[Span, ...]
    """From top to bottom."""
    columns: tuple[Span, ...]
    """From left to right."""
    blend: int
    """As in `WindowRule`."""

    @property
    def height(self) -> int:
        """Rows of the image."""
        return self.rows[-1].last

    @property
    def width(self) -> int:
        """Columns of the image."""
        return self.columns[-1].last

    @property
    def windows(self) -> int:
        """Number of windows."""
        return len(self.rows) * len(self.columns)

    @property
    def cost(self) -> float:
        """Pixels given to the model, over pixels of the image."""
        rows = sum(span.stop - span.start for span in self.rows)
        columns = sum(span.stop - span.start for span in self.columns)
        return rows * columns / (self.height * self.width)


@dataclass(frozen=True, slots=True)
class Band:
    """Finished rows of the output, over its whole width."""

    first: int
    """First row of the input that it covers."""
    last: int
    """One past the last."""
    values: Tensor
    """(3, scale*(last - first), scale*W), float32, in [0, 1], on the CPU."""


def window_rule(model: SrSpec, window: int | None = None, margin: int | None = None) -> WindowRule:
    """Return how images are cut for a model: exact unless a smaller margin is asked for.

    Args:
        model: The model's entry in `SR_MODELS`.
        window: Edge of a window, LR pixels, rounded up to the model's `multiple`; None for 512, or four margins where
            that is more, so that the whole costs at most four times what the pixels alone would.
        margin: LR pixels; None for the receptive radius, or 64 where the model sees the whole image. Less is faster
            and leaves seams where the model does see farther.

    Raises:
        ConfigError: The window leaves nothing after its margins, or a number is out of range.
    """
    radius, multiple = model.receptive_radius, model.multiple
    if margin is None:
        margin = BLEND_MARGIN if radius is None else radius
    if margin < 0 or (window is not None and window < 1):
        raise ConfigError(
            f"a window of {window} pixels with a margin of {margin}: neither can be less than that of one"
        )
    wanted = max(SMALLEST_WINDOW, 4 * margin) if window is None else window
    edge = math.ceil(wanted / multiple) * multiple
    if edge - 2 * margin < multiple:
        raise ConfigError(
            f"a window of {edge} pixels with a margin of {margin} at each side leaves "
            f"{max(edge - 2 * margin, 0)} pixels, and {multiple} are needed: "
            f"choose a window of {2 * margin + multiple} or more, or a smaller margin"
        )
    return WindowRule(edge, margin, margin // 2 if radius is None else 0, multiple)


def plan_windows(height: int, width: int, rule: WindowRule) -> WindowPlan:
    """Return the windows of an image.

    Args:
        height: Rows, at least 1.
        width: Columns, at least 1.
        rule: How to cut.

    Raises:
        ShapeError: The image has no pixels.
    """
    if height < 1 or width < 1:
        raise ShapeError(f"an image of {height}x{width} has no pixels")
    return WindowPlan(_spans(height, rule), _spans(width, rule), rule.blend)


def _spans(size: int, rule: WindowRule) -> tuple[Span, ...]:
    if size <= rule.window:
        return (Span(0, size, 0, size),)
    # counted in the model's own grid, so that it lies in every window as in the whole image
    cells, edge = math.ceil(size / rule.multiple), rule.window // rule.multiple
    stride = (rule.window - 2 * rule.margin) // rule.multiple
    gaps = math.ceil((cells - edge) / stride)
    starts = [i * (cells - edge) // gaps * rule.multiple for i in range(gaps + 1)]
    stops = [min(start + rule.window, size) for start in starts]
    cuts = [0, *((stop + start) // 2 for stop, start in zip(stops, starts[1:], strict=False)), size]
    return tuple(map(Span, starts, stops, cuts, cuts[1:]))


def enlarge_in_windows(
    read: Read,
    plan: WindowPlan,
    enlarge: Callable[[Tensor], Tensor],
    scale: int,
    *,
    valid: Valid | None = None,
    batch_size: int = 1,
    tell: Tell | None = None,
) -> Iterator[Band]:
    """Yield the output from top to bottom; in memory are the rows of one row of windows.

    Args:
        read: The image; asked for the rows of each row of windows in turn.
        plan: Its windows.
        enlarge: The model: (N, 3, h, w) in [0, 1] -> (N, 3, scale*h, scale*w) in [0, 1].
        scale: The model's factor.
        valid: Where the image holds data; windows that would add nothing to it do not go through the model, and the
            output there is 0. None: everywhere.
        batch_size: Windows of one shape that go through the model at once.
        tell: Told after every batch, and of the last when its rows have been taken.

    Raises:
        ShapeError: `read` or `enlarge` returned another shape than it should.
    """
    columns = [_weights(plan.columns, i, plan.blend, scale) for i in range(len(plan.columns))]
    done = 0
    open_rows = torch.zeros((3, 0, scale * plan.width))  # begun by the row of windows before, not finished by it
    for i, row in enumerate(plan.rows):
        support, weights = _weights(plan.rows, i, plan.blend, scale)
        image = _checked(read(row.start, row.stop), (3, row.stop - row.start, plan.width), "the image")
        has_data = None if valid is None else valid(support.start, support.stop)
        sums = torch.zeros((3, scale * (support.stop - support.start), scale * plan.width))
        sums[:, : open_rows.shape[1]] += open_rows
        wanted = [
            j
            for j, (across, _) in enumerate(columns)
            if has_data is None or has_data[:, across.start : across.stop].any()
        ]
        done += len(columns) - len(wanted)
        for batch in _equal_shapes(wanted, plan.columns, batch_size):
            crops = torch.stack([image[:, :, plan.columns[j].start : plan.columns[j].stop] for j in batch])
            outputs = enlarge(crops).to("cpu", torch.float32)
            _checked(outputs, (*crops.shape[:2], scale * crops.shape[2], scale * crops.shape[3]), "the model's output")
            for j, output in zip(batch, outputs, strict=True):
                corner = row.start, plan.columns[j].start
                _add(output, corner, sums, (support, columns[j][0]), (weights, columns[j][1]), plan.blend, scale)
            done += len(batch)
            if tell is not None and done < plan.windows:
                tell(done, plan.windows)
        finished = plan.height if i + 1 == len(plan.rows) else row.last - plan.blend
        ready = scale * (finished - support.start)
        yield Band(support.start, finished, sums[:, :ready])
        open_rows = sums[:, ready:].clone()
        del sums
    if tell is not None:
        tell(plan.windows, plan.windows)


def super_resolve_image(
    resolver: SuperResolver,
    x: Tensor,
    *,
    window: int | None = None,
    margin: int | None = None,
    rule: WindowRule | None = None,
    batch_size: int = 1,
) -> Tensor:
    """Return one image of any size enlarged, window by window.

    Args:
        resolver: The model.
        x: (3, H, W), floating point, in [0, 1].
        window: See `window_rule`.
        margin: See `window_rule`.
        rule: How to cut, instead of what `window_rule` says for the model.
        batch_size: Windows that go through the model at once.

    Returns:
        (3, scale*H, scale*W), float32, in [0, 1], on the CPU.

    Raises:
        ShapeError: x is not a (3, H, W) with pixels.
        ConfigError: The window leaves nothing after its margins.
    """
    if x.ndim != 3 or x.shape[0] != 3:
        raise ShapeError(f"super_resolve_image needs (3, H, W), got {tuple(x.shape)}")
    rule = window_rule(spec(resolver.name), window, margin) if rule is None else rule
    plan = plan_windows(x.shape[1], x.shape[2], rule)
    bands = enlarge_in_windows(
        lambda first, last: x[:, first:last], plan, resolver, resolver.scale, batch_size=batch_size
    )
    return torch.cat([band.values for band in bands], dim=1)


def _add(
    output: Tensor,
    corner: tuple[int, int],
    sums: Tensor,
    support: tuple[slice, slice],
    weights: tuple[Tensor, Tensor],
    blend: int,
    scale: int,
) -> None:
    """Add the part of a window's output that counts to the rows in work, which begin at the support's first row."""
    (top, left), (down, across) = corner, support
    kept = output[
        :,
        scale * (down.start - top) : scale * (down.stop - top),
        scale * (across.start - left) : scale * (across.stop - left),
    ]
    place = sums[:, :, scale * across.start : scale * across.stop]
    if blend:
        place.add_(kept * weights[0][:, None] * weights[1])
    else:
        place.copy_(kept)


def _weights(spans: tuple[Span, ...], i: int, blend: int, scale: int) -> tuple[slice, Tensor]:
    """Return where a window counts, LR pixels, and how much there: over all windows the weights add up to 1.

    The step at a cut rises as sin^2 across 2*blend LR pixels; a window's weight is the step at its first cut less the
    step at its last, so that it adds up to 1 even where more than two windows overlap.
    """
    span = spans[i]
    before = blend if i else 0
    after = blend if i + 1 < len(spans) else 0
    support = slice(span.first - before, span.last + after)
    pixels = torch.arange(scale * support.start, scale * support.stop, dtype=torch.float64) + 0.5  # centres
    weights = torch.ones_like(pixels)
    for cut, sign, is_seam in ((span.first, 1, before), (span.last, -1, after)):
        if is_seam:
            t = (sign * (pixels - scale * cut) / (2 * scale * blend) + 0.5).clamp(0, 1)
            weights = weights + torch.sin(t * (math.pi / 2)).square() - 1
    return support, weights.float()


def _equal_shapes(wanted: list[int], columns: tuple[Span, ...], batch_size: int) -> Iterator[list[int]]:
    batch: list[int] = []
    for j in wanted:
        width = columns[j].stop - columns[j].start
        if batch and (len(batch) == batch_size or width != columns[batch[0]].stop - columns[batch[0]].start):
            yield batch
            batch = []
        batch.append(j)
    if batch:
        yield batch


def _checked(x: Tensor, shape: tuple[int, ...], what: str) -> Tensor:
    if tuple(x.shape) != shape:
        raise ShapeError(f"{what} has the shape {tuple(x.shape)}, where {shape} is needed")
    return x
