"""What the explorer should answer, by pandas and plain Python over the rows that the store was made of."""

from typing import Any

import numpy as np
import pandas as pd
import shapely
from numpy.typing import NDArray

from infra.bigearthnet.classes import NAMES
from tests.explorer.store import THRESHOLD, Made

UNSEEN = 21
"""Place of the patch that no network saw."""


def frame(made: Made, sr: str | None = None) -> pd.DataFrame:
    """Return the patches by patch_id, with centres, and a branch's predicted labels and least reliability."""
    rows = pd.DataFrame(made.rows, dtype=object)  # None stays None
    centres = [None if g is None else shapely.from_wkb(g).centroid for g in rows["geometry"]]
    rows["lon"] = [np.nan if c is None else c.x for c in centres]
    rows["lat"] = [np.nan if c is None else c.y for c in centres]
    if sr is not None:
        given = made.probs[sr] >= THRESHOLD
        rows["predicted"] = [[name for name, is_given in zip(NAMES, of, strict=True) if is_given] for of in given]
        rows.at[UNSEEN, "predicted"] = None
        if sr in made.reliability:
            rows["least"] = np.nanmin(made.reliability[sr], axis=1)
    return rows.sort_values("patch_id", key=lambda names: names.map(str.encode)).reset_index(drop=True)


def outcomes(rows: pd.DataFrame, labels: list[str] | None = None) -> list[set[str]]:
    """Return `outcome` of every row."""
    return [outcome(row, labels) for row in rows.to_dict("records")]


def are(rows: pd.DataFrame, wanted: str, labels: list[str] | None = None) -> NDArray[np.bool_]:
    """Return of which rows something is true."""
    return np.array([wanted in found for found in outcomes(rows, labels)])


def outcome(row: Any, labels: list[str] | None = None) -> set[str]:
    """Return what is true of a row: right, wrong, missed, extra; nothing where nobody knows."""
    if row["labels"] is None or row["predicted"] is None:
        return set()
    counted = set(labels or NAMES)
    true, given = set(row["labels"]) & counted, set(row["predicted"]) & counted
    found = {"missed"} if true - given else set()
    found |= {"extra"} if given - true else set()
    return found | ({"wrong"} if found else {"right"})
