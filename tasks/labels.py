"""Labels between their two forms: names in tables, multi-hot vectors in networks."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from infra.bigearthnet.classes import NAMES

_INDEX = {name: i for i, name in enumerate(NAMES)}


def multi_hot(label_lists: Sequence[Sequence[str] | None]) -> NDArray[np.bool_]:
    """Return label names as (N, L), in the one label order; None has no label."""
    hot = np.zeros((len(label_lists), len(NAMES)), np.bool_)
    for i, labels in enumerate(label_lists):
        for label in labels or ():
            hot[i, _INDEX[label]] = True
    return hot


def is_clean(patches: pa.Table) -> pa.ChunkedArray:
    """Return which patches have neither snow nor cloud: those that networks are trained and scored on.

    Args:
        patches: Rows with has_snow and has_cloud; null counts as clean.
    """
    flags = [pc.fill_null(patches[name], fill_value=False) for name in ("has_snow", "has_cloud")]
    return pc.invert(pc.or_(*flags))
