"""Filters: what a query may ask, and which patches it selects. No text of a query ever becomes SQL or a path."""

from collections.abc import Collection, Mapping
from functools import cached_property
from typing import Annotated, Literal, Self

import numpy as np
import pyarrow.compute as pc
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StringConstraints, model_validator

from explorer.branches import Branch
from explorer.columns import label_counts, mask_of
from explorer.snapshot import Snapshot
from infra.errors import UnknownNameError

Name = Annotated[str, StringConstraints(max_length=300)]
"""Name of a label, country, season, split or branch, in a query; patch ids are no longer either."""

Names = Annotated[tuple[Name, ...], Field(max_length=64)]

Degrees = Annotated[float, Field(allow_inf_nan=False)]

Outcome = Literal["right", "wrong", "missed", "extra"]
"""right: the decisions are the truth; wrong: they are not; missed: a true label was not given; extra: a label was given
that is not true. All of the labels that are filtered by, or of every label where there is no such filter."""


class Filters(BaseModel):
    """Conditions on patches, all of which hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    label: Names = Field((), description="Patches with any of these labels, or all with `every`")
    every: bool = Field(default=False, description="Whether all of the labels must be there")
    label_in: Literal["truth", "predicted"] = Field("truth", description="Whose labels; predicted needs a branch")
    country: Names = ()
    season: Names = ()
    split: Names = ()
    q: Annotated[str, StringConstraints(max_length=200)] = Field("", description="Part of the patch id, any case")
    branch: Name | None = Field(None, description="A branch of /api/store: an SR model and a classifier")
    outcome: Outcome | None = Field(None, description="How the branch did; needs a branch")
    reliability_min: Annotated[float, Field(ge=0, le=1)] | None = None
    reliability_max: Annotated[float, Field(ge=0, le=1)] | None = None
    west: Annotated[Degrees, Field(ge=-180, le=180)] | None = None
    south: Annotated[Degrees, Field(ge=-90, le=90)] | None = None
    east: Annotated[Degrees, Field(ge=-180, le=180)] | None = None
    north: Annotated[Degrees, Field(ge=-90, le=90)] | None = None

    @model_validator(mode="after")
    def _belong_together(self) -> Self:
        if self.branch is None and (self.outcome or self.scored or self.label_in == "predicted"):
            raise ValueError("outcome, reliability and label_in=predicted need a branch")
        if len({value is None for value in self.box}) > 1:
            raise ValueError("west, south, east and north come together")
        if self.west is not None and (self.west > self.east or self.south > self.north):  # type: ignore[operator]
            raise ValueError("west must not be east of east, nor south north of north")
        return self

    @property
    def scored(self) -> bool:
        """Whether patches are filtered by reliability."""
        return self.reliability_min is not None or self.reliability_max is not None

    @property
    def box(self) -> tuple[float | None, float | None, float | None, float | None]:
        """West, south, east and north, degrees."""
        return self.west, self.south, self.east, self.north

    @property
    def conditions(self) -> "Filters":
        """The filters alone, without what a query that builds on them asks besides."""
        return Filters(**{name: getattr(self, name) for name in Filters.model_fields})


class Selection:
    """The patches that fit some filters."""

    def __init__(self, patches: Snapshot, mask: NDArray[np.bool_]) -> None:
        self._patches, self.mask = patches, mask

    @cached_property
    def total(self) -> int:
        """How many there are."""
        return int(np.count_nonzero(self.mask))

    @cached_property
    def bits(self) -> bytes:
        """A bit a patch, the first in the lowest bit of the first byte."""
        return np.packbits(self.mask, bitorder="little").tobytes()

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Patches by label, country, season and split."""
        patches = self._patches
        return {
            "label": label_counts(patches.truth[self.mask], patches.labels),
            **{name: getattr(patches, name).counts(self.mask) for name in ("country", "season", "split")},
        }


def select(filters: Filters, patches: Snapshot, branches: Mapping[str, Branch]) -> Selection:
    """Return the patches that fit.

    Raises:
        UnknownNameError: A label, country, season, split or branch is none of the store's.
    """
    mask = np.ones(len(patches), np.bool_)
    for column in ("country", "season", "split"):
        if wanted := getattr(filters, column):
            found = getattr(patches, column)
            _check(column, wanted, found.names)
            mask &= found.among(wanted)
    branch = None if filters.branch is None else branch_named(filters.branch, branches)
    if filters.label:
        _check("label", filters.label, patches.labels)
        bits = patches.truth
        if branch is not None and filters.label_in == "predicted":
            bits = branch.decisions(patches).predicted
        wanted_bits = mask_of(filters.label, patches.labels)
        both = bits & wanted_bits
        mask &= (both == wanted_bits).all(axis=1) if filters.every else both.any(axis=1)
    if branch is not None and filters.outcome is not None:
        mask &= outcomes(branch, patches, filters.label)[filters.outcome]
    if branch is not None and filters.scored:
        least = branch.least_reliability(patches)
        low, high = filters.reliability_min, filters.reliability_max
        mask &= (least >= (0 if low is None else low)) & (least <= (1 if high is None else high))  # false of NaN
    if filters.west is not None:
        lon, lat = patches.centres.T
        mask &= (lon >= filters.west) & (lon <= filters.east) & (lat >= filters.south) & (lat <= filters.north)
    if filters.q:
        mask &= pc.match_substring(patches.ids, filters.q, ignore_case=True).to_numpy(zero_copy_only=False)
    return Selection(patches, mask)


def outcomes(branch: Branch, patches: Snapshot, labels: Collection[str] = ()) -> dict[Outcome, NDArray[np.bool_]]:
    """Return which patches a branch got right, wrong, missed a label of, or gave one too many.

    Labels that the classifier does not know are no part of the truth, as in docs/metrics.md. Nobody knows, and nothing
    is true, where a patch has no labels, the branch did not see it, or it knows none of the labels that count.

    Args:
        branch: The branch.
        patches: All patches.
        labels: Labels that count; all where there are none.
    """
    decisions = branch.decisions(patches)
    counted = mask_of(labels or patches.labels, patches.labels) & decisions.known
    judged = decisions.made & patches.labelled & counted.any()
    missed = (patches.truth & ~decisions.predicted & counted).any(axis=1) & judged
    extra = (decisions.predicted & ~patches.truth & counted).any(axis=1) & judged
    wrong = missed | extra
    return {"right": judged & ~wrong, "wrong": wrong, "missed": missed, "extra": extra}


def branch_named(name: str, branches: Mapping[str, Branch]) -> Branch:
    """Return a branch.

    Raises:
        UnknownNameError: There is none of that name.
    """
    _check("branch", [name], branches)
    return branches[name]


def _check(column: str, names: Collection[str], there: Collection[str]) -> None:
    for name in names:
        if name not in there:
            raise UnknownNameError(f"{column}: this store has no {name!r}")
