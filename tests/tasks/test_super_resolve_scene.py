"""A scene in, a georeferenced scene out: read back, compared with the network on the whole image, broken on purpose."""

import os
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import rasterio.shutil
import torch
from numpy.typing import NDArray
from rasterio.control import GroundControlPoint
from rasterio.enums import ColorInterp
from rasterio.transform import Affine
from torch import Tensor, nn

import sr_models
from infra.errors import BadPatchError, ConfigError, StoreError
from infra.geotiff import RasterLayout, RasterReader, cog_writer
from sr_models import SuperResolver
from tasks.super_resolve_scene import SceneOptions, parse_bands, super_resolve_scene

UTM = Affine(10.0, 0.0, 362_612.5, 0.0, -10.0, 1_987_088.25)
ROTATED = UTM @ Affine.rotation(17) @ Affine.shear(3)


def dn(height: int, width: int, bands: int = 3, dtype: str = "uint16", high: float = 2900) -> NDArray[Any]:
    smooth = np.random.default_rng(7).random((bands, height // 4 + 2, width // 4 + 2))
    values = smooth.repeat(4, 1).repeat(4, 2)[:, :height, :width] * high
    return np.rint(values).astype(dtype) if np.dtype(dtype).kind in "ui" else values.astype(dtype)


def write(path: Path, values: NDArray[Any], names: tuple[str, ...] = (), **profile: Any) -> Path:
    profile = {"crs": "EPSG:32648", "transform": UTM, **profile}
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=len(values),
        height=values.shape[1],
        width=values.shape[2],
        dtype=values.dtype,
        **profile,
    ) as dataset:
        dataset.write(values)
        for band, name in enumerate(names, 1):
            dataset.set_band_description(band, name)
    return path


def run(source: Path, target: Path, resolver: SuperResolver | None = None, **options: Any) -> Any:
    options = {"window": 40, **options}
    return super_resolve_scene(str(source), target, resolver or sr_models.load("bicubic"), SceneOptions(**options))


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as dataset:
        values: NDArray[Any] = dataset.read()
    return values


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_a_scene_is_what_the_model_makes_of_the_whole(tmp_path: Path) -> None:
    """Against the archive's own way: to_unit, the model on the whole image, to_dn."""
    values = dn(150, 131)
    source = write(tmp_path / "in.tif", values, ("B04", "B03", "B02"))
    resolver = sr_models.load("bicubic")
    report = run(source, tmp_path / "out.tif")
    expected = sr_models.to_dn(resolver(sr_models.to_unit(values[None], 3000)), 3000)[0].numpy()
    off = np.abs(read(tmp_path / "out.tif").astype(int) - expected.astype(int))
    assert off.max() <= 1  # a half that falls to the other side
    assert (off > 0).mean() < 1e-3
    assert (report.height, report.width) == (600, 524)
    assert report.windows == 5 * 4
    assert report.clipped_share == report.nodata_share == 0
    assert left_over(tmp_path) == ["in.tif", "out.tif"]


@pytest.mark.parametrize("transform", [UTM, ROTATED], ids=["north up", "rotated and sheared"])
def test_the_grid_keeps_its_corners(tmp_path: Path, transform: Affine) -> None:
    source = write(tmp_path / "in.tif", dn(50, 70), transform=transform)
    run(source, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out, rasterio.open(source) as lr:
        assert out.crs == lr.crs
        for column, row in ((0, 0), (70, 0), (0, 50), (70, 50), (13, 27)):
            assert out.transform @ (4 * column, 4 * row) == pytest.approx(lr.transform @ (column, row), abs=1e-6)


def test_the_content_lies_where_it_lay(tmp_path: Path) -> None:
    """Means over 4x4 pixels are near the input where bicubic has nothing to sharpen: a slow slope."""
    rows, columns = np.mgrid[:60, :80]
    values = np.stack([500 + 9 * rows + 5 * columns, 100 + 3 * rows + 20 * columns, 2000 - 7 * rows]).astype(np.uint16)
    run(write(tmp_path / "in.tif", values), tmp_path / "out.tif")
    means = read(tmp_path / "out.tif").reshape(3, 60, 4, 80, 4).mean(axis=(2, 4))
    assert np.abs(means - values)[:, 2:-2, 2:-2].max() <= 0.5


def test_it_is_a_cloud_optimised_geotiff(tmp_path: Path) -> None:
    run(write(tmp_path / "in.tif", dn(300, 260)), tmp_path / "out.tif", window=512)
    path = tmp_path / "out.tif"
    with rasterio.open(path) as out:
        assert out.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"
        assert out.block_shapes == [(512, 512)] * 3
        assert out.overviews(1) == [2, 4]
        assert (out.compression.name, out.profile["interleave"]) == ("deflate", "pixel")
        assert out.colorinterp == (ColorInterp.red, ColorInterp.green, ColorInterp.blue)
        full = out.read(1).astype(float)
        half = out.read(1, out_shape=(600, 520))
    assert np.abs(full.reshape(600, 2, 520, 2).mean(axis=(1, 3)) - half).max() <= 1
    # the specification's own order: directories first, then overviews from coarse to fine, then the image
    import tifffile

    with tifffile.TiffFile(path) as tiff:
        directories = [page.offset for page in tiff.pages]
        first_bytes = [min(page.dataoffsets) for page in tiff.pages]
    assert max(directories) < min(first_bytes)
    assert first_bytes == sorted(first_bytes, reverse=True)


def test_a_tiff_that_only_names_another_file_is_refused(tmp_path: Path) -> None:
    """GDAL goes by the content; a scene from elsewhere must not choose what else is read, or which server is called."""
    write(tmp_path / "theirs.tif", np.ones((3, 8, 8), np.uint16))
    vrt = (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><GeoTransform>0, 10, 0, 0, 0, -10</GeoTransform>'
        + "".join(
            f'<VRTRasterBand dataType="UInt16" band="{i}"><SimpleSource><SourceFilename>{tmp_path}/theirs.tif'
            f"</SourceFilename><SourceBand>{i}</SourceBand></SimpleSource></VRTRasterBand>"
            for i in (1, 2, 3)
        )
        + "</VRTDataset>"
    )
    for name in ("a.tif", "a.TIFF", "a.jp2"):
        (tmp_path / name).write_text(vrt)
        with pytest.raises(ConfigError, match="cannot be read as a raster"):
            RasterReader(str(tmp_path / name))
    (tmp_path / "a.vrt").write_text(vrt)  # asked for by name
    with RasterReader(str(tmp_path / "a.vrt")) as reader:
        assert reader.layout.width == 8


def test_names_tags_and_radiometry_stay(tmp_path: Path) -> None:
    source = write(tmp_path / "in.tif", dn(30, 30), ("red edge", "B8A", "narrow"), nodata=0)
    with rasterio.open(source, "r+") as dataset:
        dataset.update_tags(AREA_OR_POINT="Point", TIFFTAG_DATETIME="2020:02:23 03:27:39", MISSION="S2B")
        dataset.update_tags(2, wavelength_nm="865", STATISTICS_MEAN="3")
        dataset.scales, dataset.offsets = (1e-4, 2e-4, 3e-4), (-0.1, 0, 0.1)
        dataset.units = ("1", "1", "1")
        before = dataset.transform
    run(source, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.descriptions == ("red edge", "B8A", "narrow")
        assert out.scales == (1e-4, 2e-4, 3e-4)
        assert out.offsets == (-0.1, 0, 0.1)
        assert out.units == ("1", "1", "1")
        assert out.nodata == 0
        tags = out.tags()
        assert (tags["AREA_OR_POINT"], tags["MISSION"]) == ("Point", "S2B")
        assert tags["TIFFTAG_DATETIME"] == "2020:02:23 03:27:39"
        assert (tags["SUPERSCENE_SR"], tags["SUPERSCENE_STRETCH"]) == ("bicubic", "0 3000")
        assert out.tags(2)["wavelength_nm"] == "865"
        assert "STATISTICS_MEAN" not in out.tags(2)
        assert out.transform @ (0, 0) == pytest.approx(before @ (0, 0))


@pytest.mark.parametrize(
    ("dtype", "high", "nodata"),
    [("uint8", 255, 0), ("uint8", 255, 255), ("int16", 2900, -9999), ("float32", 0.29, -1.0), ("float32", 0.29, None)],
)
def test_dtypes_and_nodata_come_out_as_they_went_in(
    tmp_path: Path, dtype: str, high: float, nodata: float | None
) -> None:
    values = dn(45, 62, dtype=dtype, high=high)
    empty = np.zeros((45, 62), np.bool_)
    empty[:9] = empty[20:24, 30:33] = empty[44, 61] = True
    for band in values:
        band[band == nodata] = 7
        band[empty] = np.nan if nodata is None else nodata
    report = run(write(tmp_path / "in.tif", values, nodata=nodata), tmp_path / "out.tif")
    out = read(tmp_path / "out.tif")
    assert out.dtype == values.dtype
    is_nodata = np.isnan(out) if nodata is None else out == nodata
    np.testing.assert_array_equal(is_nodata, np.stack([np.kron(empty, np.ones((4, 4), bool))] * 3))
    assert report.nodata_share == pytest.approx(empty.mean())
    # no halo: beside the gap, the slope of bicubic with its border repeated, never towards the nodata value
    lowest, highest = values[:, ~empty].min(), values[:, ~empty].max()
    kept = out[~is_nodata]
    assert kept.min() >= lowest - 0.2 * (highest - lowest)


def test_bands_with_gaps_of_their_own_keep_them(tmp_path: Path) -> None:
    values = dn(40, 40) + 1
    values[0, 5, 6] = values[2, 30:, 30:] = 0
    run(write(tmp_path / "in.tif", values, nodata=0), tmp_path / "out.tif")
    np.testing.assert_array_equal(read(tmp_path / "out.tif") == 0, (values == 0).repeat(4, axis=1).repeat(4, axis=2))


def test_a_mask_without_a_value_stays_a_mask(tmp_path: Path) -> None:
    mask = np.full((50, 60), 255, np.uint8)
    mask[10:20, 40:] = 0
    with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=True):
        source = write(tmp_path / "in.tif", dn(50, 60))
        with rasterio.open(source, "r+") as dataset:
            dataset.write_mask(mask)
    run(source, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.nodata is None
        np.testing.assert_array_equal(out.dataset_mask(), mask.repeat(4, axis=0).repeat(4, axis=1))
        assert out.tags(ns="IMAGE_STRUCTURE")["LAYOUT"] == "COG"


class Counting(nn.Module):
    """Bicubic enlargement that counts what goes through it."""

    def __init__(self) -> None:
        super().__init__()
        self.windows = 0

    def forward(self, x: Tensor) -> Tensor:
        self.windows += len(x)
        return nn.functional.interpolate(x, scale_factor=4, mode="bicubic")


def test_windows_without_data_are_left_out_and_gaps_are_not_dark(tmp_path: Path) -> None:
    values = np.full((3, 100, 120), 1500, np.uint16)
    values[:, :, 50:] = 0
    network = Counting()
    resolver = SuperResolver("bicubic", 4, network, torch.device("cpu"))
    run(write(tmp_path / "in.tif", values, nodata=0), tmp_path / "out.tif", resolver, window=44)
    out = read(tmp_path / "out.tif")
    assert (out[:, :, :200] == 1500).all()
    assert not out[:, :, 200:].any()
    assert network.windows == 3 * 2  # of 3 x 3: the last column has no data


def test_nodata_does_not_depend_on_windows(tmp_path: Path) -> None:
    """Gaps filled alike: 1e-5 in [0, 1] is 0.03 DN, so a different rounding at most."""
    values = dn(130, 140) + 1
    values[:, np.random.default_rng(0).random((130, 140)) < 0.2] = 0
    source = write(tmp_path / "in.tif", values, nodata=0)
    run(source, tmp_path / "small.tif", window=24)
    run(source, tmp_path / "large.tif", window=512)
    off = np.abs(read(tmp_path / "small.tif").astype(int) - read(tmp_path / "large.tif"))
    assert off.max() <= 1
    assert (off > 0).mean() < 1e-3


def test_clipped_pixels_are_counted_once(tmp_path: Path) -> None:
    values = dn(100, 90)
    values[1, 10:20, 10:30] = 5000
    values[2, 15:20, 10:30] = 4000
    report = run(write(tmp_path / "in.tif", values), tmp_path / "out.tif")
    assert report.clipped_share == pytest.approx(200 / 9000)
    assert read(tmp_path / "out.tif").max() == 3000
    assert "2.22% clipped at 3000" in str(report)
    assert run(tmp_path / "in.tif", tmp_path / "b.tif", max_dn=5000).clipped_share == 0


@pytest.mark.parametrize(("height", "width"), [(1, 1), (7, 13), (1, 300)])
def test_scenes_of_any_size(tmp_path: Path, height: int, width: int) -> None:
    values = dn(height, width)
    run(write(tmp_path / "in.tif", values), tmp_path / "out.tif")
    resolver = sr_models.load("bicubic")
    expected = sr_models.to_dn(resolver(sr_models.to_unit(values[None], 3000)), 3000)[0].numpy()
    assert np.abs(read(tmp_path / "out.tif").astype(int) - expected.astype(int)).max() <= 1


@pytest.mark.parametrize(
    ("names", "asked", "expected"),
    [
        (("B02", "B03", "B04", "B08"), None, [2, 1, 0]),
        (("blue", "Green", "RED", "nir"), None, [2, 1, 0]),
        ((), None, [0, 1, 2]),
        ((), "4,3,2", [3, 2, 1]),
        (("B02", "B03", "B04", "B08"), "b08, B04,2", [3, 2, 1]),
    ],
)
def test_red_green_and_blue_are_found(
    tmp_path: Path, names: tuple[str, ...], asked: str | None, expected: list[int]
) -> None:
    values = np.stack([np.full((9, 9), 100 * (band + 1), np.uint16) for band in range(4)])
    source = write(tmp_path / "in.tif", values, names)
    run(source, tmp_path / "out.tif", bands=parse_bands(asked))
    assert read(tmp_path / "out.tif")[:, 0, 0].tolist() == [100 * (band + 1) for band in expected]
    with rasterio.open(tmp_path / "out.tif") as out:
        assert out.descriptions == tuple(names[band] if names else None for band in expected)


def test_colours_tell_where_names_do_not(tmp_path: Path) -> None:
    values = np.stack([np.full((9, 9), 100 * (band + 1), np.uint16) for band in range(4)])
    source = write(tmp_path / "in.tif", values, photometric="MINISBLACK")
    with rasterio.open(source, "r+") as dataset:
        dataset.colorinterp = [ColorInterp.blue, ColorInterp.green, ColorInterp.undefined, ColorInterp.red]
    run(source, tmp_path / "out.tif")
    assert read(tmp_path / "out.tif")[:, 0, 0].tolist() == [400, 200, 100]


def test_control_points_move_with_the_grid(tmp_path: Path) -> None:
    points = [GroundControlPoint(r, c, 5.0 + c, 50.0 - r) for r, c in ((0, 0), (0, 30), (20, 0), (20, 30))]
    source = write(tmp_path / "in.tif", dn(20, 30), transform=None, crs="EPSG:4326", gcps=points)
    run(source, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out:
        found, crs = out.gcps
    assert crs.to_epsg() == 4326
    assert [(p.row, p.col, p.x, p.y) for p in found] == [(4 * p.row, 4 * p.col, p.x, p.y) for p in points]


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_a_picture_without_georeference_stays_one(tmp_path: Path) -> None:
    source = write(tmp_path / "in.tif", dn(20, 30, dtype="uint8", high=255), transform=None, crs=None)
    run(source, tmp_path / "out.tif")
    with rasterio.open(tmp_path / "out.tif") as out:
        assert (out.crs, out.transform) == (None, Affine.identity())


def complex_scene(path: Path) -> Path:
    return write(path, dn(9, 9).astype(np.complex64))


def one_band(path: Path) -> Path:
    return write(path, dn(9, 9, bands=1))


def no_raster(path: Path) -> Path:
    path.write_text("not a raster")
    return path


@pytest.mark.parametrize(
    ("make", "options", "words"),
    [
        (lambda path: path, {}, "is not there"),
        (no_raster, {}, "cannot be read as a raster"),
        (one_band, {}, "has 1 band: three are needed"),
        (complex_scene, {}, "complex64"),
        (lambda path: write(path, dn(9, 9)), {"bands": ("1", "2", "B08")}, "no band 'B08'"),
        (lambda path: write(path, dn(9, 9)), {"bands": ("1", "2")}, "three are needed"),
        (lambda path: write(path, dn(9, 9)), {"window": 4}, "choose a window of 5"),
        (lambda path: write(path, dn(9, 9)), {"max_dn": -1.0}, "needs to be the greater"),
    ],
)
def test_an_input_or_option_that_cannot_be_used(
    tmp_path: Path, make: Callable[[Path], Path], options: dict[str, Any], words: str
) -> None:
    source = make(tmp_path / "in.tif")
    before = left_over(tmp_path)
    with pytest.raises(ConfigError, match=words):
        run(source, tmp_path / "out.tif", **options)
    assert left_over(tmp_path) == before


def test_an_output_that_cannot_be_written(tmp_path: Path) -> None:
    source = write(tmp_path / "in.tif", dn(9, 9))
    with pytest.raises(ConfigError, match="is the input"):
        run(source, source, overwrite=True)
    (tmp_path / "there.tif").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="--overwrite"):
        run(source, tmp_path / "there.tif")
    assert (tmp_path / "there.tif").read_bytes() == b"mine"
    run(source, tmp_path / "there.tif", overwrite=True)
    assert read(tmp_path / "there.tif").shape == (3, 36, 36)
    with pytest.raises(StoreError, match="no such folder"):
        run(source, tmp_path / "nowhere" / "out.tif")
    with pytest.raises(ConfigError, match=r"ends in \.tif"):
        run(source, tmp_path / "out.png")
    (tmp_path / "folder.tif").mkdir()
    with pytest.raises(ConfigError, match="is a folder"):
        run(source, tmp_path / "folder.tif")
    with pytest.raises(ConfigError, match="enlarges nothing"):
        run(source, tmp_path / "out.tif", sr_models.load("none"))


def test_an_input_cut_short_leaves_nothing(tmp_path: Path) -> None:
    source = write(tmp_path / "in.tif", dn(200, 200), compress="deflate")
    data = source.read_bytes()
    with rasterio.open(source) as dataset:
        assert dataset.block_shapes[0][0] < 200  # more than one strip
    source.write_bytes(data[: len(data) // 2])
    with pytest.raises((BadPatchError, ConfigError), match=r"in\.tif"):
        run(source, tmp_path / "out.tif")
    assert left_over(tmp_path) == ["in.tif"]


_FULL = """
import resource, signal, sys
from pathlib import Path
import sr_models
from infra.errors import StoreError
from tasks.super_resolve_scene import SceneOptions, super_resolve_scene

signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
source, target, resolver = sys.argv[1], Path(sys.argv[2]), sr_models.load("bicubic")
for limit in map(int, sys.argv[3:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        super_resolve_scene(source, target, resolver, SceneOptions())
    except StoreError as error:
        print(limit, "refused", error)
    else:
        print(limit, "written")
    print(*sorted(path.name for path in target.parent.iterdir()))
"""


def test_a_full_disk_is_told_wherever_it_strikes(tmp_path: Path) -> None:
    """The kernel's limit on a file's size, from nothing to the last byte of the file in work and of the final one."""
    noise = np.random.default_rng(0).integers(0, 3000, (3, 180, 180)).astype(np.uint16)
    source = write(tmp_path / "in.tif", noise)
    run(source, tmp_path / "out.tif", window=None)
    size = (tmp_path / "out.tif").stat().st_size
    (tmp_path / "out.tif").unlink()
    limits = [1000, size // 2, int(size * 0.7), size - 5000, size - 1]
    done = subprocess.run(
        [sys.executable, "-c", _FULL, str(source), str(tmp_path / "out.tif"), *map(str, limits)],
        capture_output=True,
        text=True,
        check=True,
        timeout=240,
    )
    lines = done.stdout.splitlines()
    assert len(lines) == 2 * len(limits)
    for told, files in zip(lines[::2], lines[1::2], strict=True):
        assert " refused cannot write " in told, told
        assert files == "in.tif", told


def test_what_cannot_be_read_back_gets_no_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """GDAL does not report a disk that fills up while a file is closed; here the copy is silently of other pixels."""
    copy = rasterio.shutil.copy

    def forgetful(source: Path, target: Path, **options: Any) -> None:
        with rasterio.open(source, "r+") as dataset:
            dataset.write(np.zeros((3, 1, 5), np.uint16), window=((30, 31), (2, 7)))
        copy(source, target, **options)

    monkeypatch.setattr(rasterio.shutil, "copy", forgetful)
    with pytest.raises(StoreError, match="what was read back is not what was written"):
        run(write(tmp_path / "in.tif", dn(20, 20) + 9), tmp_path / "out.tif")
    assert left_over(tmp_path) == ["in.tif"]


def test_an_interrupted_run_leaves_nothing(tmp_path: Path) -> None:
    class Stops(nn.Module):
        calls = 0

        def forward(self, x: Tensor) -> Tensor:
            self.calls += 1
            if self.calls == 3:
                raise KeyboardInterrupt
            return nn.functional.interpolate(x, scale_factor=4)

    source = write(tmp_path / "in.tif", dn(100, 100))
    with pytest.raises(KeyboardInterrupt):
        run(source, tmp_path / "out.tif", SuperResolver("bicubic", 4, Stops(), torch.device("cpu")))
    assert left_over(tmp_path) == ["in.tif"]


_SLOW = """
import sys, time
from pathlib import Path
import torch
from torch import nn
from sr_models import SuperResolver
from tasks.super_resolve_scene import SceneOptions, super_resolve_scene

class Slow(nn.Module):
    def forward(self, x):
        print("window", flush=True)
        time.sleep(0.02)
        return nn.functional.interpolate(x, scale_factor=4)

super_resolve_scene(sys.argv[1], Path(sys.argv[2]), SuperResolver("bicubic", 4, Slow(), torch.device("cpu")),
                    SceneOptions(window=40, overwrite=True))
"""


def test_a_killed_run_leaves_what_was_there(tmp_path: Path) -> None:
    source = write(tmp_path / "in.tif", dn(200, 400))
    (tmp_path / "out.tif").write_bytes(b"the old one")
    process = subprocess.Popen(
        [sys.executable, "-c", _SLOW, str(source), str(tmp_path / "out.tif")], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for _ in range(25):  # into the second row of windows, after the first was written
        assert process.stdout.readline() == "window\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait(timeout=120)
    process.stdout.close()
    assert (tmp_path / "out.tif").read_bytes() == b"the old one"
    (hidden,) = [name for name in left_over(tmp_path) if name not in {"in.tif", "out.tif"}]
    assert hidden.startswith(".out.tif.")
    assert hidden.endswith(".partial")


def test_rows_of_any_height_make_the_same_file(tmp_path: Path) -> None:
    values = dn(1300, 40)
    valid = np.ones(values.shape, np.bool_)
    layout = RasterLayout(
        1300, 40, "uint16", ("a", "b", "c"), None, UTM, scales=(1,) * 3, offsets=(0,) * 3, units=(None,) * 3,
        band_tags=({},) * 3,
    )  # fmt: skip
    for name, step in (("a.tif", 7), ("b.tif", 700), ("c.tif", 1300)):
        with cog_writer(tmp_path / name, layout) as writer:
            for first in range(0, 1300, step):
                writer.append(values[:, first : first + step], valid[:, first : first + step])
        np.testing.assert_array_equal(read(tmp_path / name), values)
    assert (tmp_path / "a.tif").stat().st_size == (tmp_path / "c.tif").stat().st_size


def test_the_official_network_on_a_real_scene(tmp_path: Path, shared_data: Path) -> None:
    (cell,) = (shared_data / "sentinel2_l2a_cell").iterdir()
    bands = []
    for band in ("B04", "B03", "B02"):
        with rasterio.open(cell / f"{band}.tif") as dataset:
            bands.append(dataset.read(1, window=((500, 596), (300, 410))))
            crs, transform = dataset.crs, dataset.transform @ Affine.translation(300, 500)
    values = np.stack(bands)
    source = write(tmp_path / "in.tif", values, ("B04", "B03", "B02"), crs=crs, transform=transform)
    resolver = sr_models.load("realesrgan_general", shared_data / "weights" / "realesr-general-x4v3-fp16.pth")
    run(source, tmp_path / "out.tif", resolver, window=90)
    out = read(tmp_path / "out.tif")
    expected = sr_models.to_dn(resolver(sr_models.to_unit(values[None], 3000)), 3000)[0].numpy()
    off = np.abs(out.astype(int) - expected.astype(int))
    assert off.max() <= 1
    assert (off > 0).mean() < 1e-2
    # a restoration network invents texture but keeps the picture where it was: reduced again it is near the input
    means = out.reshape(3, 96, 4, 110, 4).mean(axis=(2, 4))

    def off_by(rows: int, columns: int) -> float:
        moved = np.roll(np.minimum(values, 3000), (rows, columns), axis=(1, 2)).astype(float)
        return float(np.abs(means - moved)[:, 2:-2, 2:-2].mean())

    assert off_by(0, 0) < 0.1 * values.mean()
    assert off_by(0, 0) < 0.7 * min(off_by(1, 0), off_by(-1, 0), off_by(0, 1), off_by(0, -1))
