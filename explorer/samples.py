"""Samples: rows of patches as the page lists them, in an order, a page at a time, or the nearest to a place."""

from collections.abc import Iterable, Sequence
from typing import Annotated, Any, Literal, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from explorer.branches import Branch
from explorer.columns import labels_of
from explorer.filters import Degrees, Filters, Selection, outcomes
from explorer.snapshot import Snapshot

KM_A_DEGREE = 111.195
"""Of latitude, on a sphere of 6,371 km."""


class SamplesQuery(Filters):
    """A page of the patches that fit."""

    order: Literal["shuffled", "id", "reliability"] = Field(
        "shuffled", description="reliability: the least reliable first; needs a branch"
    )
    offset: Annotated[int, Field(ge=0, le=100_000_000)] = 0
    limit: Annotated[int, Field(ge=1, le=200)] = 48

    @model_validator(mode="after")
    def _has_branch(self) -> Self:
        if self.branch is None and self.order == "reliability":
            raise ValueError("order=reliability needs a branch")
        return self


class NearQuery(Filters):
    """Patches that fit around a place."""

    lon: Annotated[Degrees, Field(ge=-180, le=180)]
    lat: Annotated[Degrees, Field(ge=-90, le=90)]
    radius_km: Annotated[float, Field(gt=0, le=100, allow_inf_nan=False)] = 5
    limit: Annotated[int, Field(ge=1, le=48)] = 24


def page_rows(query: SamplesQuery, selection: Selection, patches: Snapshot, branch: Branch | None) -> NDArray[np.int64]:
    """Return the rows of a page, in its order."""
    rows: NDArray[np.signedinteger]
    if query.order == "shuffled":
        rows = patches.shuffled[selection.mask[patches.shuffled]]
    else:
        rows = np.flatnonzero(selection.mask)
        if query.order == "reliability" and branch is not None:
            least = branch.least_reliability(patches)[rows]
            rows = rows[np.argsort(least, kind="stable")]  # NaN last
    return rows[query.offset : query.offset + query.limit].astype(np.int64)


def distances_km(patches: Snapshot, lon: float, lat: float) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return how far east and north of a place each patch's centre lies, km, (N,) each; NaN without a place.

    On a plane that touches the globe there: within 100 km and below 70 degrees of latitude less than 2 % off.
    """
    east = (patches.centres[:, 0] - np.float32(lon)) * np.float32(KM_A_DEGREE * np.cos(np.radians(lat)))
    north = (patches.centres[:, 1] - np.float32(lat)) * np.float32(KM_A_DEGREE)
    return east, north


def near(
    patches: Snapshot, lon: float, lat: float, radius_km: float, limit: int, among: NDArray[np.bool_] | None = None
) -> list[tuple[int, float, float]]:
    """Return the nearest patches: row, distance in km, and bearing in degrees clockwise from north.

    Args:
        patches: All patches.
        lon: Longitude, degrees.
        lat: Latitude, degrees.
        radius_km: How far they may be.
        limit: How many at most.
        among: Which of them, (N,); None: all.
    """
    east, north = distances_km(patches, lon, lat)
    distance = np.hypot(east, north)
    close = distance <= radius_km  # false of NaN
    rows = np.flatnonzero(close if among is None else close & among)
    rows = rows[np.argsort(distance[rows], kind="stable")[:limit]]
    bearings = np.degrees(np.arctan2(east[rows], north[rows])) % 360
    return [(int(r), float(distance[r]), float(b)) for r, b in zip(rows, bearings, strict=True)]


def samples(
    rows: Iterable[int], patches: Snapshot, branch: Branch | None, labels: Sequence[str] = ()
) -> list[dict[str, Any]]:
    """Return what the page shows of some patches.

    Args:
        rows: Their rows.
        patches: All patches.
        branch: Whose decisions are told; None: nobody's.
        labels: Labels that the outcome is about; all where there are none.
    """
    found = []
    least = branch.least_reliability(patches) if branch is not None and branch.has_reliability else None
    verdicts = None if branch is None else outcomes(branch, patches, labels)
    for row in rows:
        sample: dict[str, Any] = {
            "patch_id": patches.patch_id(row),
            "index": int(row),
            "labels": patches.true_labels(row),
            "split": patches.split.name(row),
            "country": patches.country.name(row),
            "season": patches.season.name(row),
            "acquired": patches.acquired.name(row),
            "has_pixels": bool(patches.has_pixels[row]),
        }
        if branch is not None and verdicts is not None:
            made = branch.decisions(patches).made[row]
            bits = branch.decisions(patches).predicted[row]
            sample["predicted"] = labels_of(bits, patches.labels) if made else None
            sample["outcomes"] = [name for name, rows_of in verdicts.items() if rows_of[row]]
            sample["reliability"] = None if least is None or np.isnan(least[row]) else float(least[row])
        found.append(sample)
    return found
