import itertools
import struct
import tracemalloc
import warnings
import zlib
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from rasterio.errors import NotGeoreferencedWarning
from rasterio.io import MemoryFile
from rasterio.transform import from_origin

from infra.archives import tiff
from infra.archives.tiff import decode, grid_of, read_strip_tiff, read_tiff, stencil_of
from infra.errors import BadPatchError

CORNER = (390000.0, 5348400.0)


def by_rasterio(path: Path) -> tuple[np.ndarray[Any, Any], int | None, tuple[float, ...], float | None]:
    with rasterio.open(path) as dataset:
        epsg = dataset.crs.to_epsg() if dataset.crs else None
        return dataset.read(1), epsg, tuple(dataset.bounds), dataset.nodata


def values(dtype: str, height: int = 120, width: int = 120) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(3)
    if np.dtype(dtype).kind == "f":
        return random.normal(-15, 5, (height, width)).astype(dtype)
    info = np.iinfo(dtype)
    return random.integers(info.min, info.max, (height, width), endpoint=True).astype(dtype)


def write(path: Path, pixels: np.ndarray[Any, Any], **options: Any) -> Path:
    count = options.pop("count", 1)
    profile = {"crs": "EPSG:32633", "transform": from_origin(*CORNER, 10, 10), **options}
    height, width = pixels.shape
    with rasterio.open(
        path, "w", driver="GTiff", height=height, width=width, count=count, dtype=pixels.dtype, **profile
    ) as dataset:
        for band in range(count):
            dataset.write(np.roll(pixels, band), band + 1)
    return path


FAST: dict[str, dict[str, Any]] = {
    "uncompressed": {},
    "one strip": {"blockysize": 120},
    "17-row strips": {"blockysize": 17},
    "nodata 0": {"nodata": 0},
    "deflate": {"compress": "deflate"},
    "deflate, one strip": {"compress": "deflate", "blockysize": 120},
}
SLOW: dict[str, dict[str, Any]] = {
    "tiled": {"tiled": True, "blockxsize": 64, "blockysize": 64},
    "LZW": {"compress": "lzw"},
    "LZW, predictor 2": {"compress": "lzw", "predictor": 2},
    "zstd": {"compress": "zstd"},
    "packbits": {"compress": "packbits"},
    "BigTIFF": {"BIGTIFF": "YES"},
    "big-endian": {"ENDIANNESS": "BIG"},
    "three bands, interleaved": {"count": 3, "interleave": "pixel"},
    "three bands, planar": {"count": 3, "interleave": "band"},
    "sparse": {"SPARSE_OK": "TRUE", "compress": "deflate"},
}
FAST_TYPES = ("uint8", "uint16", "int16", "uint32", "float32")


@pytest.mark.parametrize("dtype", FAST_TYPES)
@pytest.mark.parametrize("kind", FAST)
def test_plain_strips_take_the_fast_path_and_equal_rasterio(tmp_path: Path, kind: str, dtype: str) -> None:
    path = write(tmp_path / "a.tif", values(dtype, 119, 121), **FAST[kind])
    band = read_strip_tiff(path.read_bytes(), "a.tif")
    assert band is not None
    assert_equals_rasterio(path)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "int16", "uint32"])
def test_predictor_2_takes_the_fast_path_and_equals_rasterio(tmp_path: Path, dtype: str) -> None:
    path = write(tmp_path / "a.tif", values(dtype), compress="deflate", predictor=2)
    assert read_strip_tiff(path.read_bytes(), "a.tif") is not None
    assert_equals_rasterio(path)


@pytest.mark.parametrize("dtype", [*FAST_TYPES, "float64", "int32"])
@pytest.mark.parametrize("kind", SLOW)
def test_other_files_are_left_to_rasterio(tmp_path: Path, kind: str, dtype: str) -> None:
    pixels = np.zeros((120, 120), dtype) if kind == "sparse" else values(dtype)
    options = dict(SLOW[kind])
    if "predictor" in options and dtype == "float64":
        options["predictor"] = 3  # GDAL writes predictor 2 for no more than 32-bit floats
    path = write(tmp_path / "a.tif", pixels, **options)
    assert read_strip_tiff(path.read_bytes(), "a.tif") is None
    assert_equals_rasterio(path)


def test_predictor_3_equals_rasterio(tmp_path: Path) -> None:
    assert_equals_rasterio(write(tmp_path / "a.tif", values("float32"), compress="deflate", predictor=3))


@pytest.mark.parametrize("byteorder", ["<", ">"])
@pytest.mark.parametrize("bigtiff", [False, True])
@pytest.mark.parametrize("options", [{}, {"tile": (32, 32)}, {"compression": "zlib"}, {"rowsperstrip": 7}])
def test_tifffile_s_files_equal_what_it_wrote(
    tmp_path: Path, byteorder: Any, bigtiff: bool, options: dict[str, Any]
) -> None:
    pixels = values("uint16", 77, 90)
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, pixels, byteorder=byteorder, bigtiff=bigtiff, photometric="minisblack", **options)
    np.testing.assert_array_equal(read_tiff(path).pixels, pixels)
    assert read_tiff(path).epsg is None


@pytest.mark.parametrize("area_or_point", ["Area", "Point"])
def test_pixel_is_point_moves_the_corner_as_in_gdal(tmp_path: Path, area_or_point: str) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        *(path, "w"),
        driver="GTiff",
        height=5,
        width=4,
        count=1,
        dtype="uint16",
        crs="EPSG:32635",
        transform=from_origin(500000.0, 7000000.0, 20, 20),
    ) as dataset:
        dataset.update_tags(AREA_OR_POINT=area_or_point)
        dataset.write(values("uint16", 5, 4), 1)
    assert read_strip_tiff(path.read_bytes(), "") is not None or area_or_point == "Point"
    assert_equals_rasterio(path)


@pytest.mark.parametrize(
    "crs", [None, "EPSG:4326", "EPSG:3035", "EPSG:2154", "+proj=laea +lat_0=50 +lon_0=9 +datum=WGS84", "EPSG:32733"]
)
def test_any_crs_is_the_one_that_rasterio_finds(tmp_path: Path, crs: str | None) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        path = write(tmp_path / "a.tif", values("uint16"), crs=crs, transform=from_origin(9.0, 50.0, 0.25, 0.5))
        assert_equals_rasterio(path)


def test_rotated_and_south_up_grids_have_no_bounds(tmp_path: Path) -> None:
    for name, transform in {
        "rotated": rasterio.Affine(10, 1, 390000, 1, -10, 5348400),
        "south up": rasterio.Affine(10, 0, 390000, 0, 10, 5348400),
    }.items():
        path = write(tmp_path / f"{name}.tif", values("uint16"), transform=transform)
        assert read_tiff(path).bounds is None


def test_no_georeferencing_is_no_error(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values("uint16"), photometric="minisblack")
    image = read_tiff(path)
    assert (image.epsg, image.bounds, image.nodata) == (None, None, None)


def test_every_real_file_takes_the_fast_path_and_equals_rasterio(shared_data: Path) -> None:
    paths = [p for version in ("bigearthnet_v1", "bigearthnet_v2") for p in (shared_data / version).rglob("*.tif")]
    assert len(paths) > 200
    for path in paths:
        assert read_strip_tiff(path.read_bytes(), path.name) is not None, path
        assert_equals_rasterio(path)


def test_a_real_cell_equals_rasterio(shared_data: Path) -> None:
    for path in (shared_data / "sentinel2_l2a_cell").rglob("*.tif"):
        assert_equals_rasterio(path)


def assert_equals_rasterio(path: Path) -> None:
    pixels, epsg, bounds, nodata = by_rasterio(path)
    image = read_tiff(path)
    assert image.pixels.dtype == pixels.dtype
    assert image.pixels.tobytes() == pixels.tobytes()
    assert image.epsg == epsg
    assert image.nodata == nodata
    if epsg is not None:
        assert image.bounds == pytest.approx(bounds, rel=1e-12)
    image.pixels[0, 0] = 1  # a caller owns what it gets


def strips(pixels: np.ndarray[Any, Any], order: list[int], rows: int = 30) -> bytes:
    """Return a TIFF whose strips lie in the file in the given order, tables out of line; by hand from TIFF 6.0."""
    height, width = pixels.shape
    entries = 9
    tables = 8 + 2 + 12 * entries + 4
    number = len(order)
    start = tables + 8 * number
    size = rows * width * 2
    offsets = [start + order.index(i) * size for i in range(number)]
    tags = [
        (256, 3, 1, width),
        (257, 3, 1, height),
        (258, 3, 1, 16),
        (259, 3, 1, 1),
        (262, 3, 1, 1),
        (273, 4, number, tables),
        (277, 3, 1, 1),
        (278, 3, 1, rows),
        (279, 4, number, tables + 4 * number),
    ]
    head = b"II*\0" + struct.pack("<I", 8) + struct.pack("<H", entries)
    head += b"".join(struct.pack("<HHII", *tag) for tag in tags) + struct.pack("<I", 0)
    head += struct.pack(f"<{number}I", *offsets) + struct.pack(f"<{number}I", *[size] * number)
    return head + b"".join(pixels[i * rows : (i + 1) * rows].tobytes() for i in order)


@pytest.mark.parametrize("order", list(itertools.permutations(range(4)))[::5])
def test_equal_directories_with_other_strip_tables_are_told_apart(order: tuple[int, ...]) -> None:
    """The directory's bytes are the same for every order of strips: a cache by them alone would read wrong pixels."""
    pixels = values("uint16")
    for turn in (list(order), [0, 1, 2, 3], list(order)):
        data = strips(pixels, turn)
        np.testing.assert_array_equal(decode(data, "a.tif").pixels, pixels)
        with MemoryFile(data) as memory, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with memory.open() as dataset:
                np.testing.assert_array_equal(dataset.read(1), pixels)


def test_a_strip_table_that_begins_in_the_directory_and_ends_behind_it(tmp_path: Path) -> None:
    """It begins where the last entry has its value: two files of one directory whose last strips are swapped."""
    pixels = np.arange(16, dtype=np.uint16).reshape(4, 4)
    stop = 8 + 2 + 12 * 10
    start = stop + 4 + 8 + 16  # next directory, the end of the offsets, lengths
    first, second, third, fourth = (start + 8 * i for i in range(4))
    tags = [
        *((256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1)),
        *((273, 4, 4, stop - 4), (277, 3, 1, 1), (278, 3, 1, 1), (279, 4, 4, stop + 12)),
        (305, 2, 5, first),  # the program's name, which nobody reads: its place is the first strip's
    ]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    for order in ((third, fourth), (fourth, third)):
        data = head + struct.pack("<3I", second, *order) + struct.pack("<4I", 8, 8, 8, 8) + pixels.tobytes()
        path = tmp_path / "a.tif"
        path.write_bytes(data)
        expected = pixels if order == (third, fourth) else pixels[[0, 1, 3, 2]]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            np.testing.assert_array_equal(by_rasterio(path)[0], expected)
        np.testing.assert_array_equal(decode(data, "a.tif").pixels, expected)


def georeferenced(table: int, *, swapped: bool = False) -> bytes:
    """Return a TIFF of two strips, its pixels last, whose table of offsets lies where it is told; by hand."""
    stop = 8 + 2 + 12 * 12 + 4
    geo = stop + 16
    keys = struct.pack("<8H", 1, 1, 0, 1, 3072, 0, 1, 32633)
    start = geo + 24 + 48 + len(keys)
    tags = [
        *((256, 3, 1, 4), (257, 3, 1, 4), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 2, table)),
        *((277, 3, 1, 1), (278, 3, 1, 2), (279, 4, 2, stop + 8)),
        *((33550, 12, 3, geo), (33922, 12, 6, geo + 24), (34735, 3, 8, geo + 72)),
    ]
    head = b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags)
    offsets = struct.pack("<2I", *((start + 16, start) if swapped else (start, start + 16)))
    scale = offsets + struct.pack("<2d", 10, 0) if table == geo else struct.pack("<3d", 10, 10, 0)
    head += bytes(4) + offsets + struct.pack("<2I", 16, 16) + scale + struct.pack("<6d", 0, 0, 0, *CORNER, 0) + keys
    assert len(head) == start
    return head + np.arange(16, dtype=np.uint16).tobytes()


def test_a_stencil_is_all_but_place_and_pixels() -> None:
    """Unless the place is a part of what tells where pixels are, or something follows them."""
    stop = 8 + 2 + 12 * 12 + 4
    data = georeferenced(stop)
    assert stencil_of(data) is None  # nobody read it
    for table, after, is_known in ((stop, b"", True), (stop, b"x", False), (stop + 16, b"", False)):
        data = georeferenced(table) + after
        band = read_strip_tiff(data, "a.tif")
        assert band is not None
        np.testing.assert_array_equal(band.pixels, np.arange(16).reshape(4, 4))
        stencil = stencil_of(data)
        assert (stencil is not None) == is_known
        if stencil is not None:
            assert isinstance(band.geo, bytes)
            assert stencil.before + band.geo + stencil.after + data[stencil.pixels :] == data
            assert len(data) - stencil.pixels == 32


def test_a_stencil_is_of_the_file_and_not_of_one_with_its_directory() -> None:
    """Whose strips follow each other, while those of the file do not."""
    stop = 8 + 2 + 12 * 12 + 4
    assert read_strip_tiff(georeferenced(stop), "a.tif") is not None
    assert stencil_of(georeferenced(stop)) is not None
    data = georeferenced(stop, swapped=True)
    for _ in range(2):
        band = read_strip_tiff(data, "b.tif")
        assert band is not None
        np.testing.assert_array_equal(band.pixels, np.roll(np.arange(16).reshape(4, 4), 2, axis=0))
        assert stencil_of(data) is None


def test_a_directory_among_the_pixels_is_in_no_stencil() -> None:
    """Another file with other pixels there would be laid out in another way."""
    geo, start = 8, 8 + 24 + 48 + 16
    tags = [
        *((256, 3, 1, 10), (257, 3, 1, 10), (258, 3, 1, 16), (259, 3, 1, 1), (262, 3, 1, 1), (273, 4, 1, start)),
        *((277, 3, 1, 1), (278, 3, 1, 10), (279, 4, 1, 200)),
        *((33550, 12, 3, geo), (33922, 12, 6, geo + 24), (34735, 3, 8, geo + 72)),
    ]
    directory = struct.pack("<H", len(tags)) + b"".join(struct.pack("<HHII", *tag) for tag in tags) + bytes(4)
    pixels = (bytes(20) + directory).ljust(200, b"x")
    place = struct.pack("<9d", 10, 10, 0, 0, 0, 0, *CORNER, 0) + struct.pack("<8H", 1, 1, 0, 1, 3072, 0, 1, 32633)
    data = b"II*\0" + struct.pack("<I", start + 20) + place + pixels
    band = read_strip_tiff(data, "a.tif")
    assert band is not None
    assert band.pixels.tobytes() == pixels
    assert band.geo == place
    assert stencil_of(data) is None


def test_the_cache_stays_small(tmp_path: Path) -> None:
    for width in range(1, 400):
        decode(strips(np.zeros((4, width), np.uint16), [0, 1], rows=2), "a.tif")
    assert len(tiff._layouts) <= tiff._CACHED_LAYOUTS


@pytest.mark.parametrize("options", [{}, {"compress": "deflate"}, {"tiled": True, "blockxsize": 64, "blockysize": 64}])
def test_every_shortened_file_is_truncated(tmp_path: Path, options: dict[str, Any]) -> None:
    data = write(tmp_path / "a.tif", values("uint16"), **options).read_bytes()
    for length in [*range(600), *range(600, len(data), 997), len(data) - 1]:
        with pytest.raises(BadPatchError) as caught:
            decode(data[:length], "folder/a.tif")
        assert (caught.value.reason, caught.value.path) == ("truncated", "folder/a.tif"), length


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        (b"", "truncated"),
        (b"I", "truncated"),
        (b"II*\0\x08\0", "truncated"),
        (b"hello world", "not_a_tiff"),
        (b"\x89PNG\r\n\x1a\n" + bytes(100), "not_a_tiff"),
        (b"<VRTDataset rasterXSize='1' rasterYSize='1'></VRTDataset>", "not_a_tiff"),
        (b"II\x2c\0\x08\0\0\0" + bytes(100), "not_a_tiff"),
        (b"II*\0\x08\0\0\0\0\0" + bytes(100), "not_a_tiff"),
        (b"II*\0\xff\xff\xff\xff" + bytes(100), "truncated"),
        (b"MM\0+\0\x08\0\0\xff\xff\xff\xff\xff\xff\xff\xff" + bytes(100), "truncated"),
    ],
)
def test_what_is_no_whole_tiff_is_told_apart(tmp_path: Path, data: bytes, reason: str) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(data)
    with pytest.raises(BadPatchError) as caught:
        read_tiff(path)
    assert caught.value.reason == reason
    assert caught.value.path == str(path)
    assert caught.value.detail


def patched(data: bytes, tag: int, value: int, kind: int = 4) -> bytes:
    """Return a classic little-endian TIFF with the value of one tag replaced."""
    changed = bytearray(data)
    (number,) = struct.unpack_from("<H", data, 8)
    for at in range(10, 10 + 12 * number, 12):
        if struct.unpack_from("<H", data, at)[0] == tag:
            struct.pack_into("<HII", changed, at + 2, kind, 1, value)
            return bytes(changed)
    raise AssertionError(tag)


@pytest.mark.parametrize("options", [{}, {"compress": "lzw"}, {"tiled": True, "blockxsize": 128, "blockysize": 128}])
def test_a_header_that_claims_a_huge_image_costs_no_memory(tmp_path: Path, options: dict[str, Any]) -> None:
    data = write(
        tmp_path / "a.tif", values("uint16"), blockysize=options.pop("blockysize", 120), **options
    ).read_bytes()
    hostile = patched(patched(data, 256, 2**31 - 1), 257, 2**31 - 1)
    tracemalloc.start()
    try:
        with pytest.raises(BadPatchError) as caught:
            decode(hostile, "a.tif")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert caught.value.reason in {"wrong_size", "truncated", "corrupt"}


def test_a_strip_that_inflates_to_gigabytes_costs_no_memory(tmp_path: Path) -> None:
    path = write(tmp_path / "a.tif", values("uint16"), compress="deflate", blockysize=120)
    data = path.read_bytes()
    bomb = zlib.compress(bytes(100_000_000), 9)
    hostile = patched(patched(data, 273, len(data)), 279, len(bomb)) + bomb
    tracemalloc.start()
    try:
        with pytest.raises(BadPatchError, match="inflates to more than the 28800 bytes"):
            decode(hostile, "a.tif")
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()


def test_a_damaged_stream_is_corrupt_or_truncated(tmp_path: Path) -> None:
    data = write(tmp_path / "a.tif", values("uint16"), compress="deflate", blockysize=120).read_bytes()
    (number,) = struct.unpack_from("<H", data, 8)
    offset = next(
        struct.unpack_from("<I", data, at + 8)[0]
        for at in range(10, 10 + 12 * number, 12)
        if struct.unpack_from("<H", data, at)[0] == 273
    )
    for at in (offset, offset + 1000, len(data) - 1):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        with pytest.raises(BadPatchError) as caught:
            decode(bytes(damaged), "a.tif")
        assert caught.value.reason in {"corrupt", "truncated"}


@pytest.mark.parametrize("options", [{}, {"compress": "lzw"}])
def test_another_shape_is_wrong_size(tmp_path: Path, options: dict[str, Any]) -> None:
    path = write(tmp_path / "a.tif", values("uint16", 60, 60), **options)
    with pytest.raises(BadPatchError, match=r"60 x 60 pixels, the layout asks for 120 x 120") as caught:
        read_tiff(path, shape=(120, 120))
    assert caught.value.reason == "wrong_size"


def test_large_files_are_read_by_gdal_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = write(tmp_path / "a.tif", values("uint16"))
    monkeypatch.setattr(tiff, "MAX_FILE_BYTES", 1000)
    assert_equals_rasterio(path)


def test_a_missing_file_is_an_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        read_tiff(tmp_path / "a.tif")


def test_grids_of_one_patch_have_equal_bytes(tmp_path: Path) -> None:
    one, other = (
        read_strip_tiff(write(tmp_path / f"{x}.tif", values("uint16") + x).read_bytes(), "").__getattribute__("geo")
        for x in (np.uint16(0), np.uint16(1))
    )
    assert one == other


@cache
def seeds() -> tuple[bytes, ...]:
    """Return small TIFFs of every flavour, to be mutated."""
    found = []
    flavours: list[dict[str, Any]] = [
        {},
        {"blockysize": 4, "nodata": 0},
        {"compress": "deflate", "predictor": 2},
        *SLOW.values(),
    ]
    for options in flavours:
        with MemoryFile() as memory:
            profile = {"crs": "EPSG:32633", "transform": from_origin(*CORNER, 10, 10), "count": 1, **options}
            with memory.open(driver="GTiff", height=24, width=20, dtype="uint16", **profile) as dataset:
                for band in range(profile["count"]):
                    dataset.write(values("uint16", 24, 20), band + 1)
            found.append(bytes(memory.read()))
    return tuple(found)


@st.composite
def mutated(draw: st.DrawFn) -> bytes:
    data = bytearray(draw(st.sampled_from(seeds()[:3]) | st.sampled_from(seeds())))
    for _ in range(draw(st.integers(0, 3))):
        at = draw(st.integers(0, min(len(data), 420) - 1) | st.integers(0, len(data) - 1))
        new = draw(st.binary(min_size=1, max_size=4) | st.sampled_from([b"\0\0\0\0", b"\xff\xff\xff\xff", b"\x01\0"]))
        data[at : at + len(new)] = new
    if draw(st.sampled_from([False, False, False, True])):
        del data[draw(st.integers(0, len(data))) :]
    return bytes(data)


@settings(max_examples=600, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(data=mutated())
def test_a_damaged_file_is_refused_or_reads_as_with_rasterio(data: bytes) -> None:
    """What is left to rasterio is not compared: GDAL fills damaged tiles with whatever its memory holds."""
    try:
        grid_of(decode(data, "a.tif"), data)
        band = read_strip_tiff(data, "a.tif")
    except BadPatchError as error:
        event(error.reason)
        return
    if band is None:
        event("left to rasterio")
        return
    event("read")
    try:
        with MemoryFile(data) as memory, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with memory.open(driver="GTiff") as dataset:
                expected = dataset.read(1)
    except rasterio.errors.RasterioError:
        return
    assert band.pixels.shape == expected.shape
    assert band.pixels.tobytes() == expected.tobytes()
