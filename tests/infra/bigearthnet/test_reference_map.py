"""Oracles: codes and classes by hand, and a loop over pixels and classes."""

from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from infra.bigearthnet.classes import CLASSES, NAMES
from infra.bigearthnet.reference_map import label_masks
from infra.errors import ShapeError, UnknownNameError


def test_by_hand() -> None:
    """Urban fabric is 111 and 112; 122 (roads), 0 (no data) and 999 are of no class."""
    codes = np.array([[[111, 112], [122, 0]], [[112, 512], [511, 999]]], np.uint16)
    assert label_masks(codes, ["Urban fabric", "Inland waters"]).tolist() == [
        [[True, True], [False, False]],
        [[False, True], [True, False]],
    ]


def test_every_label_at_every_code() -> None:
    codes = np.arange(1 << 16, dtype=np.uint16).reshape(256, 256)
    masks = label_masks(np.broadcast_to(codes, (len(NAMES), 256, 256)), NAMES)
    assert masks.shape == (19, 256, 256)
    for item, mask in zip(CLASSES, masks, strict=True):
        assert codes[mask].tolist() == sorted(item.clc)
    assert int(masks.sum()) == 32


def test_no_map_at_all() -> None:
    assert label_masks(np.zeros((0, 120, 120), np.uint16), []).shape == (0, 120, 120)


def test_refuses_unknown_labels_and_other_shapes() -> None:
    codes = np.zeros((1, 2, 2), np.uint16)
    with pytest.raises(UnknownNameError, match=r"do not show Airports: they know Urban fabric, "):
        label_masks(codes, ["Airports"])
    wrongs: list[NDArray[Any]] = [codes[0], codes.astype(np.int64), np.zeros((2, 2, 2), np.uint16)]
    for wrong in wrongs:
        with pytest.raises(ShapeError, match="uint16 codes"):
            label_masks(wrong, ["Pastures"])
