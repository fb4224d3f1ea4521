"""Columns of tables in the form that filters want: names as small codes, sets of labels as bits."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

NONE = -1
"""Code of a null."""


@dataclass(frozen=True, slots=True)
class Coded:
    """A column of names, each held once."""

    names: tuple[str, ...]
    """Sorted."""
    codes: NDArray[np.int16]
    """(N,), places in names; NONE for a null."""

    def name(self, row: int) -> str | None:
        """Return the name in a row."""
        code = int(self.codes[row])
        return None if code == NONE else self.names[code]

    def among(self, names: Collection[str]) -> NDArray[np.bool_]:
        """Return which rows have one of some names, (N,)."""
        wanted = np.array([name in names for name in self.names] + [False])
        return np.asarray(wanted[self.codes])

    def counts(self, rows: NDArray[np.bool_]) -> dict[str, int]:
        """Return how many of some rows have each name."""
        found = np.bincount(self.codes[rows] + 1, minlength=len(self.names) + 1)[1:]
        return {name: int(n) for name, n in zip(self.names, found, strict=True)}


def coded(column: pa.ChunkedArray) -> Coded:
    """Return a column of strings as codes."""
    names = sorted(name for name in column.unique().to_pylist() if name is not None)
    codes = pc.fill_null(pc.index_in(column, value_set=pa.array(names, pa.string())), NONE)
    return Coded(tuple(names), codes.to_numpy().astype(np.int16))


def label_bits(column: pa.ChunkedArray, labels: Sequence[str]) -> NDArray[np.uint8]:
    """Return lists of labels as bits, (N, B), the first label in the lowest bit; unknown names are left out.

    Args:
        column: list<string>; a null has no bit.
        labels: The archive's labels in their order.
    """
    lists = column.combine_chunks()
    lists = lists if isinstance(lists, pa.ListArray) else pa.concat_arrays(lists.chunks)
    codes = pc.fill_null(pc.index_in(lists.flatten(), value_set=pa.array(labels, pa.string())), NONE).to_numpy()
    rows = np.repeat(np.arange(len(lists)), pc.fill_null(pc.list_value_length(lists), 0).to_numpy())
    hot = np.zeros((len(lists), len(labels)), np.bool_)
    hot[rows[codes >= 0], codes[codes >= 0]] = True
    return np.packbits(hot, axis=1, bitorder="little")


def mask_of(chosen: Collection[str], labels: Sequence[str]) -> NDArray[np.uint8]:
    """Return some of the labels as one row of bits, (B,)."""
    return np.packbits(np.array([label in chosen for label in labels], np.bool_), bitorder="little")


def labels_of(bits: NDArray[np.uint8], labels: Sequence[str]) -> list[str]:
    """Return the labels of one row of bits, in their order."""
    hot = np.unpackbits(bits, bitorder="little", count=len(labels))
    return [label for label, is_there in zip(labels, hot, strict=True) if is_there]


def label_counts(bits: NDArray[np.uint8], labels: Sequence[str]) -> dict[str, int]:
    """Return how many rows of bits, (N, B), have each label."""
    counts = {}
    for i, label in enumerate(labels):
        counts[label] = int(np.count_nonzero(bits[:, i >> 3] & (1 << (i & 7))))
    return counts
