"""BigEarthNet v2's land-cover reference maps: where in a patch each of the 19 classes truly is."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from infra.bigearthnet.classes import CLC_TO_INDEX, NAMES
from infra.errors import ShapeError, UnknownNameError

_NO_CLASS = 255


def _class_of_code() -> NDArray[np.uint8]:
    table = np.full(1 << 16, _NO_CLASS, np.uint8)
    for code, index in CLC_TO_INDEX.items():
        table[code] = index
    return table


_CLASS_OF_CODE = _class_of_code()
"""Label index of every 16-bit code."""


def label_masks(codes: NDArray[np.uint16], labels: Sequence[str]) -> NDArray[np.bool_]:
    """Return where each reference map shows its label.

    Args:
        codes: CORINE level-3 codes, (M, S, S), uint16; codes of no class, 0 among them, belong to no label.
        labels: Names of classes, M of them, one a map.

    Returns:
        (M, S, S).

    Raises:
        UnknownNameError: A label is none of the 19 classes.
        ShapeError: The codes are not 3-D or not uint16, or there are not as many labels as maps.

    Source: Clasen et al. 2024, arXiv:2407.03653, on the maps; `infra.bigearthnet.classes` on the codes.
    """
    if codes.ndim != 3 or codes.dtype != np.uint16 or len(codes) != len(labels):
        raise ShapeError(
            f"label_masks needs uint16 codes (M, S, S) and M labels, got {codes.shape} {codes.dtype} and {len(labels)}"
        )
    if unknown := sorted(set(labels) - set(NAMES)):
        raise UnknownNameError(f"the reference maps do not show {', '.join(unknown)}: they know {', '.join(NAMES)}")
    index_of = {name: index for index, name in enumerate(NAMES)}
    wanted = np.array([index_of[label] for label in labels], np.uint8)
    return np.asarray(_CLASS_OF_CODE[codes] == wanted[:, None, None])
