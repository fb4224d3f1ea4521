"""Looking names up among half a million others: a hash table of all of those would take more than the names do."""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

_AT_ONCE = 1 << 17
"""Names that are put into one hash table; fewer take more passes and no less memory to speak of."""


def places_among(names: pa.Array | pa.ChunkedArray, others: pa.Array) -> NDArray[np.int32]:
    """Return where each name stands among others for the first time, -1 where it does not or is null.

    Args:
        names: Texts.
        others: Texts, no nulls.
    """
    places = np.full(len(names), -1, np.int32)
    for start in range(0, len(others), _AT_ONCE):
        found = pc.fill_null(pc.index_in(names, value_set=others.slice(start, _AT_ONCE)), -1).to_numpy()
        new = (found >= 0) & (places < 0)
        places[new] = found[new] + start
    return places


def is_first(names: pa.Array) -> NDArray[np.bool_]:
    """Return, for each name, whether it stands there for the first time; nulls are of one name."""
    first = np.ones(len(names), np.bool_)
    order = pc.sort_indices(names).to_numpy()  # stable: of equal names the first comes first; nulls come last
    ordered = names.take(pa.array(order))
    same = pc.equal(ordered[1:], ordered[:-1])
    first[order[1:]] = ~pc.fill_null(same, pc.is_null(ordered[:-1])).to_numpy(zero_copy_only=False)
    return first
