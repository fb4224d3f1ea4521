import contextlib
import errno
import os
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image, ImageOps
from torch.nn import functional

from infra.archives.image_file import Kind, kind_of, read_picture
from infra.errors import ArchiveError, BadPatchError, PipelineError
from tests.infra.archives.picture_files import Depth, Pixels, as_stored, noise, smooth, with_pillow, write_picture

ORIENTATION = 0x0112
FORMATS = {"png": {}, "jpg": {"quality": 95}, "webp": {"quality": 90}}


def exif(orientation: int) -> Any:
    tags = Image.Exif()
    tags[ORIENTATION] = orientation
    return tags


def refusal(path: Path, *, at_header: bool = True) -> str:
    """Return why a file is refused, by its header too unless only its pixels tell."""
    root = str(path.parent)
    with pytest.raises(BadPatchError) as caught:
        read_picture(root, path.name, None)
    assert caught.value.path == path.name
    assert caught.value.detail
    if at_header:
        with pytest.raises(BadPatchError) as early:
            kind_of(root, path.name)
        assert early.value.reason == caught.value.reason
    return caught.value.reason


@pytest.mark.parametrize("suffix", ["png", "jpg", "jpeg", "JPG", "webp"])
def test_pixels_are_those_that_pillow_reads(tmp_path: Path, suffix: str) -> None:
    path = write_picture(tmp_path / f"a.{suffix}", smooth(20, 31))
    pixels = read_picture(str(tmp_path), path.name, None)
    np.testing.assert_array_equal(pixels, with_pillow(path))
    assert pixels.dtype == np.uint16
    assert pixels.flags.c_contiguous
    assert kind_of(str(tmp_path), path.name) == Kind(20, 31, 8)


def test_png_is_what_was_written(tmp_path: Path) -> None:
    values = noise((9, 7, 3))
    write_picture(tmp_path / "a.png", values)
    np.testing.assert_array_equal(read_picture(str(tmp_path), "a.png", None), as_stored(values))


def test_grey_and_palette_become_rgb(tmp_path: Path) -> None:
    grey = noise((6, 6))
    write_picture(tmp_path / "grey.png", grey)
    palette = noise((256, 3), seed=1)
    image = Image.frombytes("P", (6, 6), grey.tobytes())
    image.putpalette(palette.tobytes())
    image.save(tmp_path / "palette.png")
    write_picture(tmp_path / "grey.jpg", smooth(6, 6)[..., 0])
    few = Image.frombytes("P", (2, 2), bytes([0, 1, 2, 3]))
    few.putpalette(bytes([1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12]))
    few.save(tmp_path / "few.png", bits=2)
    root = str(tmp_path)
    np.testing.assert_array_equal(read_picture(root, "grey.png", None), np.stack([grey] * 3))
    np.testing.assert_array_equal(read_picture(root, "palette.png", None), palette[grey].transpose(2, 0, 1))
    np.testing.assert_array_equal(read_picture(root, "grey.jpg", None), with_pillow(tmp_path / "grey.jpg"))
    np.testing.assert_array_equal(read_picture(root, "few.png", None)[0], [[1, 4], [7, 10]])


@pytest.mark.parametrize("bands", [2, 4])
def test_an_opaque_alpha_is_dropped_and_any_other_refused(tmp_path: Path, bands: int) -> None:
    values = noise((8, 8, bands))
    values[..., -1] = 255
    write_picture(tmp_path / "opaque.png", values)
    expected = values[..., 0] if bands == 2 else values[..., :3]
    np.testing.assert_array_equal(read_picture(str(tmp_path), "opaque.png", None), as_stored(expected))
    values[3, 4, -1] = 254
    assert refusal(write_picture(tmp_path / "clear.png", values), at_header=False) == "wrong_type"


def test_a_transparent_colour_matters_only_where_a_pixel_has_it(tmp_path: Path) -> None:
    values = np.full((4, 4, 3), 9, np.uint8)
    Image.fromarray(values).save(tmp_path / "unused.png", transparency=(1, 2, 3))
    Image.fromarray(values).save(tmp_path / "used.png", transparency=(9, 9, 9))
    grey = Image.fromarray(values[..., 0])
    grey.save(tmp_path / "grey.png", transparency=9)
    indexed = grey.convert("P")
    indexed.save(tmp_path / "indexed.png", transparency=bytes([255] * 9 + [7]))
    indexed.save(tmp_path / "solid.png", transparency=bytes([7] * 9 + [255]))
    assert (read_picture(str(tmp_path), "unused.png", None) == 9).all()
    assert (read_picture(str(tmp_path), "solid.png", None) == with_pillow(tmp_path / "grey.png")).all()
    for name in ("used.png", "grey.png", "indexed.png"):
        assert refusal(tmp_path / name, at_header=False) == "wrong_type"


def refused_kinds(folder: Path) -> dict[str, Path]:
    """Write one file of each kind that would be reduced or is no still picture."""
    values = smooth(16, 16)
    image, other = Image.fromarray(values), Image.fromarray(255 - values)
    image.convert("CMYK").save(folder / "cmyk.jpg")
    image.convert("1").save(folder / "one_bit.png")
    Image.fromarray(noise((16, 16), np.uint16)).save(folder / "grey16.png")
    image.save(folder / "animated.webp", save_all=True, append_images=[other])
    image.save(folder / "animated.png", save_all=True, append_images=[other])
    image.save(folder / "pair.jpg", format="MPO", save_all=True, append_images=[other])
    (folder / "rgb16.png").write_bytes(png_of_16_bits())
    return {path.name: path for path in folder.iterdir()}


def png_of_16_bits() -> bytes:
    """Return an RGB PNG of 16 bits, which Pillow cannot write: its chunks by hand (W3C PNG, 3rd edition)."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + noise((16, 3), np.uint16, i).astype(">u2").tobytes() for i in range(16))
    header = struct.pack(">IIBBBBB", 16, 16, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")


def test_what_would_be_reduced_is_refused(tmp_path: Path) -> None:
    kinds = refused_kinds(tmp_path)
    with Image.open(tmp_path / "rgb16.png") as image:  # the reason to look: Pillow takes it, as 8 bits
        assert image.mode == "RGB"
    assert {name: refusal(path) for name, path in kinds.items()} == dict.fromkeys(kinds, "wrong_type")
    assert len(kinds) == 7


def test_other_formats_are_no_pictures_whatever_their_name_says(tmp_path: Path) -> None:
    image = Image.fromarray(smooth(16, 16))
    for name, kind in {"gif.png": "GIF", "bmp.jpg": "BMP", "tiff.webp": "TIFF", "eps.png": "EPS"}.items():
        image.save(tmp_path / name, format=kind)
        assert refusal(tmp_path / name) == "not_an_image"
    (tmp_path / "text.jpg").write_text("a picture")
    assert refusal(tmp_path / "text.jpg") == "not_an_image"
    image.save(tmp_path / "jpeg.png", format="JPEG")  # one of the four: its content counts
    np.testing.assert_array_equal(read_picture(str(tmp_path), "jpeg.png", None), with_pillow(tmp_path / "jpeg.png"))


@pytest.mark.parametrize("suffix", FORMATS)
@pytest.mark.parametrize("orientation", range(1, 9))
def test_the_orientation_is_applied_to_pixels_and_size(tmp_path: Path, suffix: str, orientation: int) -> None:
    path = write_picture(tmp_path / f"a.{suffix}", smooth(12, 20), exif=exif(orientation), **FORMATS[suffix])
    with Image.open(path) as image:
        expected = np.asarray(ImageOps.exif_transpose(image)).transpose(2, 0, 1)
    np.testing.assert_array_equal(read_picture(str(tmp_path), path.name, None), expected)
    kind = kind_of(str(tmp_path), path.name)
    assert (kind.height, kind.width) == expected.shape[1:] == ((20, 12) if orientation > 4 else (12, 20))


def test_an_orientation_behind_the_pixels_of_a_png_counts_too(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", noise((4, 6, 3)), exif=exif(6))
    data = path.read_bytes()
    at = data.index(b"eXIf") - 4
    length = 12 + int.from_bytes(data[at : at + 4])
    end = data.index(b"IEND") - 4
    path.write_bytes(data[:at] + data[at + length : end] + data[at : at + length] + data[end:])
    assert kind_of(str(tmp_path), "a.png") == Kind(6, 4, 8)
    turned = np.rot90(noise((4, 6, 3)), -1)
    np.testing.assert_array_equal(read_picture(str(tmp_path), "a.png", None), as_stored(turned))


@pytest.mark.parametrize("value", [0, 9, 65535])
def test_an_orientation_that_there_is_not_leaves_the_picture_as_it_is(tmp_path: Path, value: int) -> None:
    path = write_picture(tmp_path / "a.png", noise((4, 6, 3)), exif=exif(value))
    assert kind_of(str(tmp_path), "a.png") == Kind(4, 6, 8)
    np.testing.assert_array_equal(read_picture(str(tmp_path), "a.png", None), with_pillow(path))


def test_odd_metadata_warns_nobody_and_costs_no_picture(tmp_path: Path) -> None:
    """Pillow warns of the cut EXIF block; warnings are errors here."""
    block = exif(6)
    block[0x010E] = "x" * 200
    path = write_picture(tmp_path / "a.jpg", smooth(12, 20), exif=block.tobytes()[:-150])
    with pytest.warns(UserWarning, match="Tag data"), Image.open(path) as image:
        image.getexif()
    assert kind_of(str(tmp_path), "a.jpg") == Kind(20, 12, 8)
    assert read_picture(str(tmp_path), "a.jpg", None).shape == (3, 20, 12)
    write_picture(tmp_path / "b.jpg", smooth(12, 20), exif=b"Exif\0\0nothing of the kind")
    np.testing.assert_array_equal(read_picture(str(tmp_path), "b.jpg", None), with_pillow(tmp_path / "b.jpg"))


@pytest.mark.parametrize("suffix", FORMATS)
def test_a_file_that_ends_early_is_never_read_as_something_else(tmp_path: Path, suffix: str) -> None:
    path = write_picture(tmp_path / f"a.{suffix}", smooth(24, 24), **FORMATS[suffix])
    data, cut = path.read_bytes(), tmp_path / f"cut.{suffix}"
    whole = read_picture(str(tmp_path), path.name, None)
    for length in range(len(data)):
        cut.write_bytes(data[:length])
        if suffix == "png" and length >= len(data) - 4:  # all but a part of its end chunk
            np.testing.assert_array_equal(read_picture(str(tmp_path), cut.name, None), whole)
        else:
            assert refusal(cut, at_header=False) in {"truncated", "corrupt", "not_an_image"}
    cut.write_bytes(b"")
    assert refusal(cut) == "truncated"


@pytest.mark.parametrize("suffix", ["png", "jpg"])
def test_a_tail_of_zeros_is_no_pixels(tmp_path: Path, suffix: str) -> None:
    """What a disk leaves of a file whose end was not written when the machine went down."""
    path = write_picture(tmp_path / f"a.{suffix}", smooth(64, 64))
    data = path.read_bytes()
    for keep in (0.3, 0.6, 0.9):
        path.write_bytes(data[: int(keep * len(data))].ljust(len(data), b"\0"))
        assert refusal(path, at_header=False) in {"truncated", "corrupt"}


def test_a_small_picture_in_the_metadata_does_not_end_a_jpeg(tmp_path: Path) -> None:
    thumbnail = write_picture(tmp_path / "small.jpg", smooth(8, 8)).read_bytes()
    path = write_picture(tmp_path / "a.jpg", smooth(64, 64), exif=b"Exif\0\0II*\0\x08\0\0\0\0\0\0\0\0\0" + thumbnail)
    np.testing.assert_array_equal(read_picture(str(tmp_path), "a.jpg", None), with_pillow(path))
    data = path.read_bytes()
    path.write_bytes(data[: len(data) * 9 // 10].ljust(len(data), b"\0"))
    assert refusal(path, at_header=False) == "truncated"


def test_no_flipped_bit_of_a_png_changes_a_pixel(tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png", noise((6, 6, 3)), compress_level=0)
    data = path.read_bytes()
    for bit in range(8 * 33, 8 * len(data)):  # behind the header, which tells its size
        damaged = bytearray(data)
        damaged[bit // 8] ^= 1 << bit % 8
        path.write_bytes(damaged)
        try:
            pixels = read_picture(str(tmp_path), "a.png", None)
        except BadPatchError:
            continue
        np.testing.assert_array_equal(pixels, as_stored(noise((6, 6, 3))))


@settings(
    max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(suffix=st.sampled_from([*FORMATS, "tif"]), data=st.data())
def test_damage_is_a_reason_and_never_another_error(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    source = tmp_path / f"whole.{suffix}"
    if not source.exists():
        write_picture(source, smooth(12, 20), exif=exif(6), **FORMATS.get(suffix, {}))
    content = bytearray(source.read_bytes())
    for at, value in data.draw(
        st.lists(st.tuples(st.integers(0, len(content) - 1), st.integers(0, 255)), min_size=1, max_size=4)
    ):
        content[at] = value
    (tmp_path / f"a.{suffix}").write_bytes(content)
    with contextlib.suppress(BadPatchError):
        kind_of(str(tmp_path), f"a.{suffix}")
    with contextlib.suppress(BadPatchError):
        assert read_picture(str(tmp_path), f"a.{suffix}", 8).shape == (3, 8, 8)


def test_a_bomb_is_refused_by_its_header(tmp_path: Path) -> None:
    for name, edge in (("warns.png", 9600), ("errs.png", 14000)):  # above Pillow's limit, and above its double
        Image.new("L", (edge, edge)).save(tmp_path / name)
        assert refusal(tmp_path / name) == "wrong_size"


def test_files_that_are_none(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.png")
    os.mkfifo(tmp_path / "pipe.tif")
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "out.png").symlink_to(write_picture(tmp_path.parent / "out-of-it.png", noise((2, 2))))
    reasons = {path.name: refusal(path) for path in tmp_path.iterdir()}
    assert reasons == {
        "pipe.png": "unreadable",
        "pipe.tif": "unreadable",
        "folder.png": "unreadable",
        "out.png": "outside_archive",
    }
    assert refusal(tmp_path / "none.png") == "missing_file"
    with pytest.raises(ArchiveError, match="still mounted"):
        read_picture(str(tmp_path / "gone"), "a.png", None)


@pytest.mark.parametrize("dtype", [np.uint8, np.uint16])
@pytest.mark.parametrize(("shape", "size"), [((64, 64), 16), ((50, 37), 20), ((10, 13), 31), ((30, 8), 16)])
def test_resizing_is_the_antialiased_bilinear_of_torch(
    tmp_path: Path, dtype: Depth, shape: tuple[int, int], size: int
) -> None:
    values = noise((*shape, 3), dtype)
    write_picture(tmp_path / "a.tif", values)
    pixels = read_picture(str(tmp_path), "a.tif", size)
    exact = functional.interpolate(
        torch.from_numpy(as_stored(values).astype(np.float64))[None],
        size=(size, size),
        mode="bilinear",
        align_corners=False,
        antialias=True,
    )[0].numpy()
    assert np.abs(pixels - exact).max() <= 0.5 + 0.01  # float32 at 65,535


def test_resizing_rounds_halves_to_even(tmp_path: Path) -> None:
    """Two pixels into one weigh the same: a + b over 2."""
    values = np.zeros((2, 2, 3), np.uint8)
    values[0] = [1, 3, 4]  # rows 0 and 1 are averaged: 0.5, 1.5, 2
    write_picture(tmp_path / "a.png", values)
    assert read_picture(str(tmp_path), "a.png", 1).ravel().tolist() == [0, 2, 2]


def test_a_picture_of_the_asked_size_stays_as_it_is(tmp_path: Path) -> None:
    values = noise((16, 16, 3), np.uint16)
    write_picture(tmp_path / "a.tif", values)
    np.testing.assert_array_equal(read_picture(str(tmp_path), "a.tif", 16), as_stored(values))


def test_a_disk_that_fails_is_not_the_picture_s_fault(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stale handle is worth another attempt; it must not become a quarantine row."""
    write_picture(tmp_path / "a.png", noise((4, 4, 3)))

    def stale(*_: object, **__: object) -> None:
        raise OSError(errno.ESTALE, "Stale file handle")

    monkeypatch.setattr(Image, "open", stale)
    with pytest.raises(PipelineError, match="try again") as caught:
        read_picture(str(tmp_path), "a.png", None)
    assert not isinstance(caught.value, BadPatchError)


def test_warnings_of_others_are_left_as_they_were(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", noise((4, 4, 3)))
    before = list(warnings.filters)
    read_picture(str(tmp_path), "a.png", None)
    assert warnings.filters == before


def test_real_pictures_equal_pillow_s(shared_data: Path) -> None:
    root = shared_data / "ucmerced_multilabel" / "images"
    names = sorted(path.name for path in root.iterdir())[::60]
    assert len(names) == 21
    for name in names:
        pixels: Pixels = read_picture(str(root), name, None)
        np.testing.assert_array_equal(pixels, with_pillow(root / name))
        _, height, width = pixels.shape
        assert kind_of(str(root), name) == Kind(height, width, 8)


def test_a_png_without_pixels_is_damaged(tmp_path: Path) -> None:
    """Pillow ends with an IndexError at a PNG that has no pixels."""
    write_picture(tmp_path / "a.png", noise((4, 4, 3)))
    data = (tmp_path / "a.png").read_bytes()
    start = data.index(b"IDAT") - 4
    (tmp_path / "a.png").write_bytes(data[:start] + data[data.index(b"IEND") - 4 :])
    assert refusal(tmp_path / "a.png", at_header=False) in {"corrupt", "truncated"}


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp"])
def test_a_file_of_holes_is_not_read_into_memory(tmp_path: Path, suffix: str) -> None:
    path = write_picture(tmp_path / f"a{suffix}", noise((8, 8, 3)))
    os.truncate(path, 1 << 36)
    assert refusal(path) == "wrong_size"
