"""Patches read and compressed while their files come out of a tar archive, as the store keeps them.

What is kept until a shard is whole is then little more than half as large, and is neither decoded nor compressed again:
only put in the order of the shard. Plain files alone are read here, by this project's own code; what GDAL would have to
read, or what is wrong in any way, is left as it came to the worker of its shard, which can tell, and may crash.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from infra.archives.modality import FolderPixels, Ground, Modality
from infra.archives.patch_folder import ground_of, is_same_ground, nodata_share
from infra.archives.tiff import Stencil, parse_geo, read_strip_tiff, stencil_of
from infra.bigearthnet.bands import S2_10M, BandGroup
from infra.errors import BadPatchError
from infra.zarr_rows import PackedRow
from infra.zarr_store import ShardedStore

_HEADER_BYTES = 1 << 13
"""Of a file beside its pixels, at most; BigEarthNet's have 400. The driver keeps directories that it has met."""

_GEO_BYTES = 1 << 10
"""Of a file's georeferencing, at most, which is kept as well; BigEarthNet's has 136."""

_STENCILS = 16  # that are kept of a grid, whose files have one length, or few


class FolderPacker:
    """Reads and packs the bands of one modality's folders, one after the other."""

    def __init__(self, modality: Modality, store: ShardedStore) -> None:
        """Prepare.

        Args:
            modality: Of which patches are read.
            store: For which they are packed.
        """
        self._groups = [_Group(group, store) for group in modality.groups]

    def pack(self, files: Mapping[str, memoryview]) -> FolderPixels | None:
        """Return what the bands of a folder show, or None where its files have to be read as they are.

        Args:
            files: Content of each file, by what its name has after the folder's.
        """
        try:
            grounds = [group.read(files) for group in self._groups]
        except BadPatchError:
            return None  # told by who reads the files
        first, *others = grounds
        if first is None or not all(ground is not None and is_same_ground(ground, first) for ground in others):
            return None
        arrays = {group.array: group.pack() for group in self._groups}
        shares = [nodata_share(group.pixels) for group in self._groups if group.array == S2_10M.array]
        return FolderPixels(arrays, first, sum(shares))


class _Group:
    """The bands of one grid; its pixels are overwritten by each folder."""

    def __init__(self, group: BandGroup, store: ShardedStore) -> None:
        self.array = group.array
        self._group, self._shape, self._dtype = group, (group.size, group.size), np.dtype(group.dtype)
        self.pixels: NDArray[Any] = np.empty((len(group.bands), *self._shape), self._dtype)
        self._bands = [memoryview(band).cast("B") for band in self.pixels]
        self._suffixes = [f"_{band}.tif" for band in group.bands]
        self._codec = store.row_codec(group.array)
        self._most = self.pixels[0].nbytes + _HEADER_BYTES
        self._stencils: dict[int, Stencil] = {}

    def read(self, files: Mapping[str, memoryview]) -> Ground | None:
        """Read the bands, and return where they lie; None, or BadPatchError: they cannot be packed."""
        first: bytes | None = None
        for suffix, band in zip(self._suffixes, self._bands, strict=True):
            data = files[suffix]
            found = self._known(data) or self._read(data, suffix)
            if found is None or (first is not None and found[0] != first):
                return None
            first, band[:] = found
        assert first is not None
        if self._dtype.kind == "f" and not np.isfinite(self.pixels).all():
            return None
        grid = parse_geo(first) if 0 < len(first) <= _GEO_BYTES else None
        return None if grid is None else ground_of(grid, self._group, self.array)

    def pack(self) -> PackedRow:
        """Compress what was read last."""
        return self._codec.pack(self.pixels.reshape(self._codec.shape))

    def _known(self, data: memoryview) -> tuple[bytes, memoryview] | None:
        """Return georeferencing and pixels of a file that is laid out as one that was read, as nearly all are."""
        stencil = self._stencils.get(len(data))
        if stencil is None:
            return None
        before, after, start = stencil
        head = bytes(data[:start])
        if not (head.startswith(before) and head.endswith(after)):
            return None
        return head[len(before) : start - len(after)], data[start:]

    def _read(self, data: memoryview, suffix: str) -> tuple[bytes, memoryview] | None:
        if len(data) > self._most:
            return None
        band = read_strip_tiff(data, suffix, self._shape)
        if band is None or band.pixels.dtype != self._dtype or not isinstance(band.geo, bytes):
            return None
        stencil = stencil_of(data)
        if stencil is not None:
            if len(self._stencils) == _STENCILS:
                self._stencils.clear()
            self._stencils[len(data)] = stencil
        return band.geo, memoryview(np.ascontiguousarray(band.pixels)).cast("B")
