"""Labels between their two forms: names in tables, multi-hot vectors in networks."""

from collections.abc import Mapping, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray


def multi_hot(label_lists: Sequence[Sequence[str] | None], names: Sequence[str]) -> NDArray[np.bool_]:
    """Return label names as (N, L), in the order of `names`; others are left out, and None has no label."""
    index = {name: i for i, name in enumerate(names)}
    hot = np.zeros((len(label_lists), len(names)), np.bool_)
    for i, labels in enumerate(label_lists):
        for label in labels or ():
            if label in index:
                hot[i, index[label]] = True
    return hot


def likeliest(probs: Mapping[str, float], truth: Sequence[str] | None) -> str:
    """Return the likeliest of a patch's true labels, or of all labels where no true one is known.

    Args:
        probs: Probabilities of the labels that the classifier knows, by name; of equal ones the first is taken.
        truth: True labels; None: nobody knows. Those that the classifier does not know are left out.
    """
    among = [name for name in truth or () if name in probs] or list(probs)
    return max(among, key=lambda name: probs[name])


def is_clean(patches: pa.Table) -> pa.ChunkedArray:
    """Return which patches have neither snow nor cloud: those that networks are trained and scored on.

    Args:
        patches: Rows with has_snow and has_cloud; null counts as clean.
    """
    flags = [pc.fill_null(patches[name], fill_value=False) for name in ("has_snow", "has_cloud")]
    return pc.invert(pc.or_(*flags))
