"""What `image_file` makes of TIFFs; the oracle is what tifffile wrote, or reads."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import tifffile
from PIL import Image, ImageOps
from rasterio.errors import NotGeoreferencedWarning

from infra.archives.image_file import Kind, kind_of, read_picture
from infra.errors import BadPatchError
from tests.infra.archives.picture_files import Depth, Pixels, as_stored, noise, with_pillow, write_picture


def read(path: Path) -> Pixels:
    return read_picture(str(path.parent), path.name, None)


def refusal(path: Path) -> BadPatchError:
    """Return why a file is refused; only its pixels may have to tell."""
    with pytest.raises(BadPatchError) as caught:
        read(path)
    return caught.value


def early_refusal(path: Path) -> BadPatchError:
    """Return why a file is refused, which its header tells."""
    with pytest.raises(BadPatchError) as caught:
        kind_of(str(path.parent), path.name)
    assert (refusal(path).reason, refusal(path).detail) == (caught.value.reason, caught.value.detail)
    return caught.value


@contextmanager
def gdal(path: Path, mode: str = "w", **options: Any) -> Iterator[Any]:
    """Open a TIFF to write; only here may GDAL complain that it has no place on Earth."""
    with warnings.catch_warnings(action="ignore", category=NotGeoreferencedWarning):
        settings = {"driver": "GTiff", "dtype": "uint8", "count": 3, "width": 16, "height": 16}
        with rasterio.open(path, mode, **({**settings, **options} if mode == "w" else {})) as dataset:
            yield dataset


def write_with_gdal(path: Path, bands: Pixels, **options: Any) -> Path:
    count, height, width = bands.shape
    with gdal(path, count=count, height=height, width=width, dtype=bands.dtype, **options) as dataset:
        dataset.write(bands)
    return path


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("shape", [(9, 14), (9, 14, 3)])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"byteorder": ">"},
        {"bigtiff": True},
        {"bigtiff": True, "byteorder": ">"},
        {"compression": "zlib", "predictor": True},
        {"tile": (16, 16)},
        {"rowsperstrip": 2},
    ],
)
def test_pixels_are_those_that_were_written(
    tmp_path: Path, dtype: Depth, shape: tuple[int, ...], options: dict[str, Any]
) -> None:
    values = noise(shape, dtype)
    path = tmp_path / "a.TIF"
    tifffile.imwrite(path, values, photometric="minisblack" if len(shape) == 2 else "rgb", **options)
    np.testing.assert_array_equal(tifffile.imread(path), values)
    np.testing.assert_array_equal(read(path), as_stored(values))
    assert kind_of(str(tmp_path), path.name) == Kind(9, 14, np.dtype(dtype).itemsize * 8)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("interleave", ["band", "pixel"])
def test_three_bands_that_gdal_wrote_are_red_green_and_blue(tmp_path: Path, dtype: Depth, interleave: str) -> None:
    """GDAL names no colours where three bands have 16 bits, and whatever has no place warns."""
    bands = noise((3, 20, 20), dtype)
    path = write_with_gdal(tmp_path / "a.tif", bands, interleave=interleave, blockysize=8, compress="deflate")
    np.testing.assert_array_equal(read(path), bands)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("options", [{}, {"byteorder": ">"}, {"bigtiff": True}, {"bigtiff": True, "byteorder": ">"}])
def test_the_orientation_is_applied_to_pixels_and_size(
    tmp_path: Path, orientation: int, options: dict[str, Any]
) -> None:
    values = noise((6, 10, 3))
    tag = (274, "H", 1, orientation, True)
    tifffile.imwrite(tmp_path / "a.tif", values, photometric="rgb", extratags=[tag], **options)
    image = Image.fromarray(values)
    image.getexif()[274] = orientation
    expected = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    np.testing.assert_array_equal(read(tmp_path / "a.tif"), expected)
    _, height, width = expected.shape
    assert kind_of(str(tmp_path), "a.tif") == Kind(height, width, 8)


def test_palettes_and_inverted_grey_become_what_they_show(tmp_path: Path) -> None:
    index = noise((8, 8))
    colours = np.random.default_rng(2).integers(0, 256, (3, 256)).astype(np.uint16)
    path = tmp_path / "palette.tif"
    tifffile.imwrite(path, index, photometric="palette", colormap=colours * 257)
    np.testing.assert_array_equal(read(path), colours[:, index])
    np.testing.assert_array_equal(read(path), with_pillow(path))
    for values in (index, noise((8, 8), np.uint16)):
        tifffile.imwrite(tmp_path / "inverted.tif", values, photometric="miniswhite")
        np.testing.assert_array_equal(read(tmp_path / "inverted.tif")[1], np.iinfo(values.dtype).max - values)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize("bands", [2, 4])
def test_an_opaque_alpha_is_dropped_and_any_other_refused(tmp_path: Path, dtype: Depth, bands: int) -> None:
    values = noise((8, 8, bands), dtype)
    values[..., -1] = np.iinfo(dtype).max
    options: dict[str, Any] = {"planarconfig": "contig", "extrasamples": ["unassalpha"]}
    options["photometric"] = "minisblack" if bands == 2 else "rgb"
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, values, **options)
    np.testing.assert_array_equal(read(path), as_stored(values[..., 0] if bands == 2 else values[..., :3]))
    values[0, 0, -1] -= 1
    tifffile.imwrite(path, values, **options)
    assert "transparent" in refusal(path).detail
    assert refusal(path).reason == "wrong_type"


def test_jpeg_within_a_tiff_is_nearly_what_was_written(tmp_path: Path) -> None:
    values = np.full((32, 32, 3), (200, 90, 40), np.uint8)
    path = write_with_gdal(tmp_path / "a.tif", as_stored(values), compress="jpeg", photometric="ycbcr", jpeg_quality=95)
    assert np.abs(read(path).astype(int) - as_stored(values)).max() <= 2


def refused_kinds(folder: Path) -> dict[str, str]:
    """Write one file of each kind that would be reduced, and return what the refusal has to name."""
    rgb = noise((16, 16, 3))
    four = noise((16, 16, 4))

    def tiff(name: str, values: Pixels, photometric: str, **options: Any) -> None:
        tifffile.imwrite(folder / name, values, photometric=photometric, **options)

    tiff("cmyk.tif", four, "separated")
    tiff("lab.tif", rgb, "cielab")
    tiff("ycbcr.tif", rgb, "ycbcr", subsampling=(1, 1))
    tiff("pages.tif", np.stack([rgb, rgb]), "rgb")
    tiff("one_bit.tif", rgb[..., 0] > 100, "minisblack")
    tiff("float.tif", rgb.astype(np.float32), "rgb")
    tiff("signed.tif", rgb.view(np.int8), "rgb")
    tiff("wide.tif", rgb.astype(np.uint32), "rgb")
    tiff("extra.tif", four, "rgb", extrasamples=["unspecified"])
    tiff("two.tif", rgb[..., :2], "minisblack", planarconfig="contig", extrasamples=["unspecified"])
    write_with_gdal(folder / "twelve.tif", as_stored(rgb).astype(np.uint16), nbits=12)
    write_with_gdal(folder / "four16.tif", as_stored(four).astype(np.uint16))
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True), gdal(folder / "mask.tif") as dataset:
        dataset.write(as_stored(rgb))
        dataset.write_mask(rgb[..., 0] > 9)
    return {
        "cmyk.tif": "CMYK",
        "lab.tif": "CIELAB",
        "ycbcr.tif": "YCbCr",
        "pages.tif": "2 pages",
        "one_bit.tif": "1 bits",
        "float.tif": "float32",
        "signed.tif": "int8",
        "wide.tif": "uint32",
        "extra.tif": "undefined",
        "two.tif": "undefined",
        "twelve.tif": "12 bits",
        "four16.tif": "4 bands",
        "mask.tif": "mask",
    }


def test_what_would_be_reduced_is_refused(tmp_path: Path) -> None:
    for name, word in refused_kinds(tmp_path).items():
        error = early_refusal(tmp_path / name)
        assert (error.reason, word in error.detail) == ("wrong_type", True), (name, error.detail)


def test_files_that_are_no_tiff(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", noise((4, 4, 3))).rename(tmp_path / "png.tif")
    (tmp_path / "text.tif").write_text("a picture")
    (tmp_path / "vrt.tif").write_text("<VRTDataset rasterXSize='4' rasterYSize='4'/>")
    (tmp_path / "empty.tif").write_bytes(b"")
    reasons = {path.name: early_refusal(path).reason for path in tmp_path.iterdir()}
    assert reasons == {
        "png.tif": "not_a_tiff",
        "text.tif": "not_a_tiff",
        "vrt.tif": "not_a_tiff",
        "empty.tif": "truncated",
    }


@pytest.mark.parametrize("compress", ["none", "deflate", "lzw"])
def test_a_file_that_ends_early_is_never_read_as_something_else(tmp_path: Path, compress: str) -> None:
    cut = tmp_path / "cut.tif"
    whole = [write_with_gdal(tmp_path / "a.tif", noise((3, 10, 10)), compress=compress, blockysize=4)]
    whole.append(tmp_path / "b.tif")
    tifffile.imwrite(whole[1], noise((10, 10, 3)), photometric="rgb")
    for path in whole:
        data = path.read_bytes()
        for length in range(0, len(data), 3):
            cut.write_bytes(data[:length])
            assert refusal(cut).reason in {"truncated", "corrupt", "not_a_tiff"}
        cut.write_bytes(data[:-1])
        assert refusal(cut).reason == "truncated"


@pytest.mark.parametrize("bigtiff", [False, True])
def test_a_directory_beyond_the_end_means_that_the_file_was_cut(tmp_path: Path, bigtiff: bool) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((6, 6, 3)), photometric="rgb", bigtiff=bigtiff)
    data = bytearray(path.read_bytes())
    data[8 if bigtiff else 4 : 16 if bigtiff else 8] = b"\xff" * (8 if bigtiff else 4)
    path.write_bytes(data)
    assert early_refusal(path).reason == "truncated"


def test_blocks_that_were_never_written_are_not_black(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    with gdal(path, width=64, height=64, blockysize=16, sparse_ok=True) as dataset:
        dataset.write(noise((3, 16, 64)), window=((0, 16), (0, 64)))
    with gdal(path, "r") as dataset:  # the reason to look: GDAL reads zeros
        assert not dataset.read()[:, 16:].any()
    assert refusal(path).reason == "truncated"
    assert "never written" in refusal(path).detail


def test_pixels_that_cannot_be_decoded_are_corrupt(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, noise((64, 64, 3)), photometric="rgb", compression="zlib")
    data = bytearray(path.read_bytes())
    data[-4000:-1000] = b"\xff" * 3000
    path.write_bytes(data)
    assert refusal(path).reason == "corrupt"


@pytest.mark.parametrize("options", [{}, {"tiled": True, "blockxsize": 32768, "blockysize": 32768}])
def test_a_bomb_is_refused_by_its_header(tmp_path: Path, options: dict[str, Any]) -> None:
    """A small file that promises gigabytes: as many pixels, or one tile that GDAL would decode whole."""
    edge = 64 if options else 60_000
    path = tmp_path / "a.tif"
    with gdal(path, width=edge, height=edge, sparse_ok=True, **options):
        pass
    assert path.stat().st_size < 1 << 21
    assert early_refusal(path).reason == "wrong_size"


def test_what_lies_beside_a_tiff_does_not_change_it(tmp_path: Path) -> None:
    """GDAL takes colours, masks and statistics from sidecar files."""
    values = noise((3, 16, 16))
    path = write_with_gdal(tmp_path / "a.tif", values)
    write_with_gdal(tmp_path / "a.tif.msk", np.zeros((1, 16, 16), np.uint8))
    (tmp_path / "a.tif.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><ColorInterp>Alpha</ColorInterp></PAMRasterBand></PAMDataset>'
    )
    np.testing.assert_array_equal(read(path), values)


def test_nodata_and_overviews_leave_pixels_as_they_are(tmp_path: Path) -> None:
    values = noise((3, 64, 64))
    path = write_with_gdal(tmp_path / "a.tif", values, nodata=values[0, 0, 0])
    with gdal(path, "r+") as dataset:
        dataset.build_overviews([2])
    np.testing.assert_array_equal(read(path), values)
