"""One band of a TIFF file: a fast path for plain strips, rasterio for all else.

BigEarthNet is 6.6 million small files: classic little-endian TIFFs of one band, in uncompressed strips (reference maps:
deflate with predictor 2). GDAL spends a millisecond to open one. Here a file is one `os.read`; what its directory (IFD)
says is parsed once and kept by the directory's bytes, so that the next file with the same directory costs one lookup,
one comparison of its strip table and one `np.frombuffer`. Sidecar files (.aux.xml, .tfw) are not looked at.

Source: TIFF 6.0 (Adobe 1992); Adobe TIFF Technical Note 1 (predictor); OGC GeoTIFF 1.1 (19-008r4).
"""

import math
import os
import struct
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import rasterio
from numpy.typing import NDArray
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import DatasetReader, MemoryFile

from infra.archives.files import read_file
from infra.archives.tiff_blocks import DEFLATE, MAX_BLOCK_BYTES, MAX_PIXEL_BYTES, UNCOMPRESSED, check_blocks, inflated
from infra.archives.tiff_directory import integers, read_directory, truncated
from infra.errors import BadPatchError

MAX_FILE_BYTES = 1 << 26
"""Larger files are left to GDAL, which reads only what it needs."""

_CACHED_LAYOUTS = 256

# Tags that say nothing about how pixels are decoded, or that the fast path checks; any other tag: rasterio.
_KNOWN_TAGS = frozenset(
    {254, 256, 257, 258, 259, 262, 266, 269, 270, 273, 274, 277, 278, 279, 282, 283, 284, 296, 305, 306, 317, 339}
    | {33550, 33922, 34735, 34736, 34737, 42113}
)
_DTYPES: Mapping[tuple[int, int], np.dtype[Any]] = {
    (8, 1): np.dtype("u1"),
    (16, 1): np.dtype("<u2"),
    (16, 2): np.dtype("<i2"),
    (32, 1): np.dtype("<u4"),
    (32, 3): np.dtype("<f4"),
}
_UINT32 = struct.Struct("<I")
_UINT16 = struct.Struct("<H")
# GeoKeys from which the CRS is its EPSG code and nothing else; citations (1026, 2049, 3073) are names only.
_PLAIN_GEO_KEYS = frozenset({1024, 1025, 1026, 2048, 2049, 2054, 3072, 3073, 3076})


class Grid(NamedTuple):
    """Where a band lies: north up, no rotation."""

    epsg: int
    left: float
    top: float
    x_size: float
    """Width of a pixel in the CRS's unit, > 0."""
    y_size: float
    """Height of a pixel, > 0."""


class Band(NamedTuple):
    """One decoded band; its georeferencing is parsed by `grid_of`, on request."""

    pixels: NDArray[Any]
    """(H, W), native byte order; may be read-only."""
    geo: bytes | Grid | None
    """Pixel scale, tie point and GeoKeys as they stand in the file: bands of one grid have equal bytes."""
    nodata: float | bytes | None
    """The GDAL_NODATA tag: a number, or its text."""


@dataclass(frozen=True, slots=True)
class TiffImage:
    """The first band of a TIFF."""

    pixels: NDArray[Any]
    """(H, W)."""
    epsg: int | None
    """None where the file names no EPSG code."""
    bounds: tuple[float, float, float, float] | None
    """left, bottom, right, top in that CRS; None where it has none or is rotated."""
    nodata: float | None
    """The value that stands for no data."""


class Stencil(NamedTuple):
    """All bytes of a plain file but its georeferencing, and its pixels, which end it.

    What tells how the pixels are read is among these bytes: a file that has them too, and is as long, is read alike.
    """

    before: bytes
    """Up to the georeferencing."""
    after: bytes
    """From there to the pixels."""
    pixels: int
    """Where those start."""


@dataclass(frozen=True, slots=True)
class _Layout:
    """All that a file's directory says about its pixels."""

    dtype: np.dtype[Any]
    shape: tuple[int, int]
    compression: int
    predictor: int
    offsets: tuple[int, ...]
    """Of each strip."""
    counts: tuple[int, ...]
    """Bytes of each strip in the file."""
    rows_per_strip: int
    contiguous: bool
    """Uncompressed, and the strips follow each other."""
    tables: tuple[tuple[int, int, bytes], ...]
    """start, stop, content of the strip tables that lie outside the directory: checked for every file."""
    geo: tuple[tuple[int, int], ...]
    """start, stop of pixel scale, tie point and GeoKeys; adjoining ones merged; empty where one is missing."""
    nodata: tuple[int, int] | None
    """start, stop of the GDAL_NODATA text."""
    size: int
    """The least size of such a file, bytes."""


_layouts: dict[bytes, _Layout] = {}


def read_tiff(path: str | Path, *, shape: tuple[int, int] | None = None) -> TiffImage:
    """Return the first band of a TIFF and where it lies.

    Args:
        path: A local file. Symbolic links are followed; archives check theirs first.
        shape: (H, W) that the band must have; None takes any up to MAX_PIXEL_BYTES.

    Returns:
        The pixels as rasterio reads them, bit for bit.

    Raises:
        OSError: The file cannot be opened.
        BadPatchError: The file is no TIFF, is cut off, damaged, of another shape or too large.
    """
    shown = os.fspath(path)
    data = read_file(shown, shown, follow=True, limit=MAX_FILE_BYTES + 1)
    if len(data) > MAX_FILE_BYTES:
        band, grid = _read_with_rasterio(None, shown, shape)
    else:
        band = decode(data, shown, shape)
        grid = grid_of(band, data)
    height, width = band.pixels.shape
    bounds = None
    if grid is not None:
        bounds = (grid.left, grid.top - height * grid.y_size, grid.left + width * grid.x_size, grid.top)
    epsg = grid.epsg if grid is not None and grid.epsg else None
    pixels = band.pixels if band.pixels.flags.writeable else band.pixels.copy()
    return TiffImage(pixels, epsg, bounds, _number(band.nodata))


def decode(data: bytes | memoryview, shown: str, shape: tuple[int, int] | None = None) -> Band:
    """Return the first band of a whole TIFF file in memory.

    Args:
        data: The file's bytes.
        shown: The path for messages.
        shape: (H, W) that the band must have; None takes any up to MAX_PIXEL_BYTES.

    Raises:
        BadPatchError: truncated, not_a_tiff, corrupt or wrong_size.
    """
    band = read_strip_tiff(data, shown, shape)
    return band if band is not None else _read_with_rasterio(bytes(data), shown, shape)[0]


def read_strip_tiff(data: bytes | memoryview, shown: str, shape: tuple[int, int] | None = None) -> Band | None:
    """Return the band of a plain strip TIFF, or None where rasterio has to read it.

    Args:
        data: The file's bytes.
        shown: The path for messages.
        shape: (H, W) that the band must have; None takes any up to MAX_PIXEL_BYTES.

    Raises:
        BadPatchError: truncated, not_a_tiff, corrupt or wrong_size.
    """
    try:
        key = _key(data)
    except struct.error:
        read_directory(bytes(data), shown)  # says what is wrong, or that the file is of another flavour
        return None
    layout = _layouts.get(key)
    tables = () if layout is None else layout.tables
    if layout is None or len(data) < layout.size or (tables and any(data[a:b] != table for a, b, table in tables)):
        layout = _parse(bytes(data), shown)
        if layout is None:
            return None
        if layout.contiguous:  # others have strip counts of their own in each file
            if len(_layouts) >= _CACHED_LAYOUTS:
                _layouts.clear()
            _layouts[key] = layout
    height, width = layout.shape
    if shape is not None and layout.shape != shape:
        raise _wrong_shape(shown, layout.shape, shape)
    if layout.contiguous:
        pixels = np.frombuffer(data, layout.dtype, height * width, layout.offsets[0]).reshape(layout.shape)
    else:
        pixels = _join_strips(data, layout, shown)
    if len(layout.geo) == 1:
        ((a, b),) = layout.geo
        geo = bytes(data[a:b])
    else:
        geo = b"".join(data[a:b] for a, b in layout.geo)
    return Band(pixels, geo, None if layout.nodata is None else bytes(data[layout.nodata[0] : layout.nodata[1]]))


def stencil_of(data: bytes | memoryview) -> Stencil | None:
    """Return the stencil of a file that `read_strip_tiff` has just read; None where it has none.

    Its pixels may not end it, or lie in any other order than that of its strips; or what tells how they are read may
    reach into them, or into the georeferencing.
    """
    layout = _layouts.get(_key(data))
    if layout is None or len(layout.geo) != 1 or any(data[a:b] != table for a, b, table in layout.tables):
        return None
    ((start, stop),) = layout.geo
    pixels = layout.offsets[0]
    read = [(0, 8), _directory(data), *((a, b) for a, b, _ in layout.tables)]
    if stop > pixels or pixels + sum(layout.counts) != len(data):
        return None
    if any(b > pixels or (a < stop and start < b) for a, b in read):
        return None
    return Stencil(bytes(data[:start]), bytes(data[stop:pixels]), pixels)


def _directory(data: bytes | memoryview) -> tuple[int, int]:
    """Return where a file's directory starts and stops; struct.error: the file is too short."""
    (start,) = _UINT32.unpack_from(data, 4)
    (entries,) = _UINT16.unpack_from(data, start)
    return start, start + 6 + 12 * entries


def _key(data: bytes | memoryview) -> bytes:
    """Return the bytes by which a layout is kept, of header and directory; struct.error: the file is too short."""
    start, stop = _directory(data)
    return bytes(data[:stop]) if start == 8 else bytes(data[:8]) + bytes(data[start:stop])


def grid_of(band: Band, data: bytes | memoryview) -> Grid | None:
    """Return where a band lies, or None where the file does not say it as a north-up grid.

    Args:
        band: What `decode` returned.
        data: The file it came from.

    Returns:
        The grid; its `epsg` is 0 where the CRS has no EPSG code.
    """
    if not isinstance(band.geo, bytes):
        return band.geo
    if not band.geo:
        return None
    grid = parse_geo(band.geo)
    if grid is not None:
        return grid
    try:
        with MemoryFile(bytes(data)) as memory, _open(memory) as dataset:
            return _grid_of_dataset(dataset)
    except RasterioError:
        return None


@lru_cache(maxsize=4096)
def parse_geo(geo: bytes) -> Grid | None:
    """Return the grid that pixel scale, tie point and GeoKeys state, or None where GDAL should be asked.

    Args:
        geo: ModelPixelScale (24 bytes), ModelTiepoint (48), GeoKeyDirectory, little-endian, one after the other.
    """
    x_size, y_size, _, column, row, _, x, y, _ = struct.unpack_from("<9d", geo)
    keys = struct.unpack_from(f"<{(len(geo) - 72) // 2}H", geo, 72)
    if len(keys) < 4 or keys[0] != 1 or len(keys) != 4 + 4 * keys[3]:
        return None
    found = {keys[i]: (keys[i + 1], keys[i + 3]) for i in range(4, len(keys), 4)}
    values = {key: value for key, (place, value) in found.items() if place == 0}  # others lie in other tags
    if (
        not found.keys() <= _PLAIN_GEO_KEYS
        or values.get(1024) != 1
        or not 1024 <= values.get(3072, 0) < 32767
        or values.get(1025, 1) not in {1, 2}
        or values.get(3076, 9001) != 9001
        or values.get(2054, 9102) != 9102
    ):
        return None
    if not all(map(math.isfinite, (x_size, y_size, column, row, x, y))) or x_size <= 0 or y_size <= 0:
        return None
    if values.get(1025) == 2:  # PixelIsPoint: the tie point is a pixel's centre
        column += 0.5
        row += 0.5
    return Grid(values[3072], x - column * x_size, y + row * y_size, x_size, y_size)


def _wrong_shape(shown: str, found: tuple[int, ...], asked: tuple[int, int]) -> BadPatchError:
    return BadPatchError(
        shown, "wrong_size", f"the band has {found[0]} x {found[1]} pixels, the layout asks for {asked[0]} x {asked[1]}"
    )


def _parse(data: bytes, shown: str) -> _Layout | None:
    """Return the layout of a plain strip TIFF; None where rasterio has to read it."""
    _, entries, plain = read_directory(data, shown)
    if not plain or not entries.keys() <= _KNOWN_TAGS:
        return None

    def one(tag: int, default: int) -> int:
        if tag not in entries:
            return default
        values = integers(data, entries[tag])
        return values[0] if len(values) == 1 and entries[tag].kind in {3, 4} else -1

    width, height = one(256, -1), one(257, -1)
    dtype = _DTYPES.get((one(258, 1), one(339, 1)))
    compression, predictor = one(259, 1), one(317, 1)
    offsets, counts = integers(data, entries.get(273)), integers(data, entries.get(279))
    if (
        dtype is None
        or width < 1
        or height < 1
        or (one(254, 0), one(262, -1), one(266, 1), one(274, 1), one(277, 1), one(284, 1)) != (0, 1, 1, 1, 1, 1)
        or not offsets
        or any(entries[tag].kind not in {3, 4} for tag in (273, 279) if tag in entries)
        or not (
            (compression == UNCOMPRESSED and predictor == 1)
            or (compression in DEFLATE and (predictor == 1 or (predictor == 2 and dtype.kind != "f")))
        )
    ):
        return None
    rows = min(one(278, height), height)
    if rows < 1 or len(offsets) != len(counts) or len(offsets) != -(-height // rows):
        return None
    if width * height * dtype.itemsize > MAX_PIXEL_BYTES:
        raise BadPatchError(shown, "wrong_size", f"its header claims {height} x {width} pixels")
    if 0 in offsets or 0 in counts:
        return None  # sparse: GDAL fills them in
    ends = [offset + count for offset, count in zip(offsets, counts, strict=True)]
    if max(ends) > len(data):
        raise truncated(shown, f"its strips end at byte {max(ends)}, the file has {len(data)}")
    if compression == UNCOMPRESSED:
        whole = rows * width * dtype.itemsize
        last = (height - rows * (len(offsets) - 1)) * width * dtype.itemsize
        if counts != (whole,) * (len(offsets) - 1) + (last,):
            return None
    places = [(entries[tag].start, entries[tag].stop) for tag in (33550, 33922, 34735) if tag in entries]
    lengths = [b - a for a, b in places]
    geo = _merged(places) if len(places) == 3 and lengths[:2] == [24, 48] and lengths[2] % 8 == 0 else ()
    if places and (not geo or any(entries[t].kind != k for t, k in ((33550, 12), (33922, 12), (34735, 3)))):
        return None  # a partial or unusual georeferencing is GDAL's to judge
    nodata = entries.get(42113)
    start = _UINT32.unpack_from(data, 4)[0]
    stop = start + 2 + 12 * len(entries)
    outside = [e for e in (entries[273], entries[279]) if not start <= e.start <= e.stop <= stop]
    return _Layout(
        dtype=dtype,
        shape=(height, width),
        compression=compression,
        predictor=predictor,
        offsets=offsets,
        counts=counts,
        rows_per_strip=rows,
        contiguous=compression == UNCOMPRESSED and ends[:-1] == list(offsets[1:]),
        tables=tuple((e.start, e.stop, data[e.start : e.stop]) for e in outside),
        geo=geo,
        nodata=None if nodata is None else (nodata.start, nodata.stop),
        size=max(*ends, *(e.stop for e in entries.values())),
    )


def _merged(places: list[tuple[int, int]]) -> tuple[tuple[int, int], ...]:
    """Return the slices with each that starts where the one before it stops joined to it."""
    merged = [places[0]]
    for start, stop in places[1:]:
        if start == merged[-1][1]:
            merged[-1] = (merged[-1][0], stop)
        else:
            merged.append((start, stop))
    return tuple(merged)


def _join_strips(data: bytes | memoryview, layout: _Layout, shown: str) -> NDArray[Any]:
    """Return the pixels of scattered or deflated strips."""
    height, width = layout.shape
    parts: list[bytes | memoryview] = []
    for i, (offset, count) in enumerate(zip(layout.offsets, layout.counts, strict=True)):
        strip = data[offset : offset + count]
        if layout.compression != UNCOMPRESSED:
            rows = min(layout.rows_per_strip, height - i * layout.rows_per_strip)
            expected = rows * width * layout.dtype.itemsize
            strip = inflated(strip, f"strip {i}", shown, expected, expected)
        parts.append(strip)
    pixels = np.frombuffer(b"".join(parts), layout.dtype).reshape(layout.shape)
    if layout.predictor == 2:  # each value is the difference to its left neighbour, modulo 2^bits
        pixels = np.cumsum(pixels, axis=1, dtype=layout.dtype)
    return pixels


def _open(source: "MemoryFile | str") -> DatasetReader:
    """Open a TIFF with GDAL's TIFF driver only: no VRT that points elsewhere, no sidecar files."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        if isinstance(source, str):
            return rasterio.open(source, driver="GTiff")
        return source.open(driver="GTiff")


def _read_with_rasterio(data: bytes | None, path: str, shape: tuple[int, int] | None) -> tuple[Band, Grid | None]:
    """Return band 1 and its grid as GDAL reads them; from memory, or, where `data` is None, from the file."""
    if data is not None:
        check_blocks(data, path)
    try:
        with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"):
            if data is None:
                with _open(path) as dataset:
                    return _read_dataset(dataset, path, shape)
            with MemoryFile(bytes(data)) as memory, _open(memory) as dataset:
                return _read_dataset(dataset, path, shape)
    except (RasterioError, MemoryError, ValueError, TypeError) as error:
        if isinstance(error, BadPatchError):
            raise
        reason = error.__cause__ if error.__cause__ is not None else error
        raise BadPatchError(path, "corrupt", f"GDAL cannot read it: {reason}") from error


def _read_dataset(dataset: DatasetReader, shown: str, shape: tuple[int, int] | None) -> tuple[Band, Grid | None]:
    if shape is not None and dataset.shape != shape:
        raise _wrong_shape(shown, dataset.shape, shape)
    item = max(np.dtype(name).itemsize for name in dataset.dtypes)
    height, width = dataset.shape
    block = max(rows * columns for rows, columns in dataset.block_shapes) * dataset.count * item
    if height * width * item > MAX_PIXEL_BYTES or block > MAX_BLOCK_BYTES:
        raise BadPatchError(shown, "wrong_size", f"its header claims {height} x {width} pixels in blocks of {block} B")
    grid = _grid_of_dataset(dataset)
    return Band(dataset.read(1), grid, dataset.nodata), grid


def _grid_of_dataset(dataset: DatasetReader) -> Grid | None:
    transform = dataset.transform
    values = (transform.a, transform.e, transform.c, transform.f)
    if transform.b or transform.d or transform.a <= 0 or transform.e >= 0 or not all(map(math.isfinite, values)):
        return None
    if dataset.crs is None:
        return None
    return Grid(dataset.crs.to_epsg() or 0, transform.c, transform.f, transform.a, -transform.e)


def _number(nodata: float | bytes | None) -> float | None:
    if not isinstance(nodata, bytes):
        return nodata
    try:
        return float(nodata.partition(b"\0")[0])
    except ValueError:
        return None
