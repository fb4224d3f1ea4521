"""The map's data, as bytes that a browser reads into arrays: little-endian, without a frame.

All patches' centres go once, 8 bytes each; a selection is a bit a patch, colours a byte a patch; corners only of the
patches in view, when these are few.
"""

from typing import Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import model_validator

from explorer.branches import Branch
from explorer.filters import Filters, Selection, outcomes
from explorer.snapshot import Snapshot

MOST_POLYGONS = 8000
"""Footprints that one answer holds at most: 36 bytes each."""

NO_COLOUR = 255
"""Of patches without a value, and of those whose value is one of too many."""

OUTCOMES = ("right", "wrong")
"""What the codes 0 and 1 stand for where patches are coloured by outcome."""

_RELIABILITY_STEPS = 10


class ColourQuery(Filters):
    """What patches are coloured by; of the filters only labels and branch count, for outcome and reliability."""

    by: Literal["split", "country", "season", "outcome", "reliability"] = "split"

    @model_validator(mode="after")
    def _has_branch(self) -> Self:
        if self.branch is None and self.by in {"outcome", "reliability"}:
            raise ValueError(f"by={self.by} needs a branch")
        return self


def centres(patches: Snapshot) -> bytes:
    """Return longitude and latitude of every patch, N times two float32, degrees; NaN without a place."""
    return np.ascontiguousarray(patches.centres, "<f4").tobytes()


def colours(query: ColourQuery, patches: Snapshot, branch: Branch | None) -> bytes:
    """Return a code for every patch, N bytes: a place in the names of /api/store, in OUTCOMES, or a tenth of 0 to 1."""
    codes: NDArray[np.int64]
    if query.by == "outcome" and branch is not None:
        of = outcomes(branch, patches, query.label)
        codes = np.select([of["right"], of["wrong"]], [0, 1], NO_COLOUR)
    elif query.by == "reliability" and branch is not None:
        least = branch.least_reliability(patches)
        steps = np.minimum(np.nan_to_num(least) * _RELIABILITY_STEPS, _RELIABILITY_STEPS - 1).astype(np.int64)
        codes = np.where(np.isnan(least), NO_COLOUR, steps)
    else:
        codes = getattr(patches, query.by).codes.astype(np.int64)
        codes = np.where((codes < 0) | (codes >= NO_COLOUR), NO_COLOUR, codes)
    return codes.astype(np.uint8).tobytes()


def polygons(selection: Selection, patches: Snapshot) -> bytes:
    """Return selected patches, 36 bytes each: row, uint32, and four times longitude and latitude, float32."""
    rows = np.flatnonzero(selection.mask & np.isfinite(patches.centres[:, 0]))[:MOST_POLYGONS]
    records = np.empty(len(rows), np.dtype([("row", "<u4"), ("corners", "<f4", (4, 2))]))
    records["row"], records["corners"] = rows, patches.corners[rows]
    return records.tobytes()
