import pickle
import struct
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from rasterio.windows import Window

from infra.archives import scene
from infra.archives.model import PatchInput
from infra.archives.scene import SceneArchive, apply_offset, close_scenes
from infra.bigearthnet.bands import PATCH_METRES, S2_BANDS, S2_GROUPS
from infra.errors import ArchiveError, BadPatchError
from tests.infra.archives.small_archive import array_of, reasons_of, rows_of, write_tiff

OLD = "S2A_MSIL2A_20180613T101031_N0208_R022_T33UUP_20180613T121209"
NEW = "S2A_MSIL2A_20230613T101031_N0509_R022_T33UUP_20230613T121209"
CORNER = (399960.0, 5300040.0)
Pixels = Mapping[str, np.ndarray[Any, Any]]


@pytest.fixture(autouse=True)
def _no_scene_stays_open() -> Any:
    yield
    close_scenes()


def pixels_of(height: int, width: int) -> dict[str, np.ndarray[Any, Any]]:
    random = np.random.default_rng(11)
    return {
        band: random.integers(0, 11000, (height * group.size // 120, width * group.size // 120)).astype(np.uint16)
        for group in S2_GROUPS
        for band in group.bands
    }


def gsd_of(band: str) -> int:
    return next(PATCH_METRES // group.size for group in S2_GROUPS if band in group.bands)


def write_scene(folder: Path, pixels: Pixels, pattern: str = "{band}.tif") -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    for band, values in pixels.items():
        path = folder / pattern.format(band=band, gsd=gsd_of(band))
        write_tiff(path, values, gsd_of(band), CORNER)
    return folder


def xml(offsets: Mapping[int, int]) -> str:
    rows = "".join(f'<BOA_ADD_OFFSET band_id="{i}">{value}</BOA_ADD_OFFSET>' for i, value in offsets.items())
    return (
        '<?xml version="1.0" encoding="UTF-8"?><n1:Level-2A_User_Product xmlns:n1="https://x"><n1:General_Info>'
        f"<BOA_ADD_OFFSET_VALUES_LIST>{rows}</BOA_ADD_OFFSET_VALUES_LIST></n1:General_Info></n1:Level-2A_User_Product>"
    )


def write_safe(root: Path, name: str, pixels: Pixels, offsets: Mapping[int, int] | None) -> Path:
    """Write a SAFE product as ESA lays it out, with the coarser copies of bands that it has."""
    safe = root / f"{name}.SAFE"
    for band, values in pixels.items():
        for gsd in (10, 20, 60):
            if gsd < gsd_of(band):
                continue
            folder = safe / "GRANULE" / "L2A_T33UUP_A1" / "IMG_DATA" / f"R{gsd}m"
            folder.mkdir(parents=True, exist_ok=True)
            step = gsd // gsd_of(band)
            write_tiff(
                folder / f"T33UUP_20230613T101031_{band}_{gsd}m.jp2",
                np.ascontiguousarray(values[::step, ::step]),
                gsd,
                CORNER,
                driver="JP2OpenJPEG",
                QUALITY="100",
                REVERSIBLE="YES",
            )
    if offsets is not None:
        (safe / "MTD_MSIL2A.xml").write_text(xml(offsets))
    return safe


def test_patches_are_the_whole_squares_from_the_upper_left(tmp_path: Path) -> None:
    pixels = pixels_of(300, 480)
    write_scene(tmp_path / OLD, pixels)
    archive = SceneArchive(str(tmp_path))
    scan = archive.scan()
    assert reasons_of(scan) == {}
    rows = rows_of(scan)
    assert [row.patch_id for row in rows] == [f"{OLD}_{r:02d}_{c:02d}" for r in range(2) for c in range(4)]
    assert {(row.split, row.labels, row.s1_name) for row in rows} == {("all", None, None)}
    for row in rows:
        r, c = (int(x) for x in row.patch_id.split("_")[-2:])
        patch = archive.read(row)
        for group in S2_GROUPS:
            s = group.size
            for i, band in enumerate(group.bands):
                np.testing.assert_array_equal(
                    array_of(patch, group.array)[i], pixels[band][r * s : (r + 1) * s, c * s : (c + 1) * s]
                )
        left, top = CORNER[0] + 1200 * c, CORNER[1] - 1200 * r
        assert (patch.epsg, patch.bounds) == (32633, (left, top - 1200, left + 1200, top))
        assert (patch.acquired, patch.tile) == ("2018-06-13", "33UUP")
        assert (patch.labels, patch.arrays.get("s1"), patch.reference_map) == (None, None, None)
        zero = (array_of(patch, "s2_10m") == 0).any(axis=0).mean()
        assert patch.nodata_share == pytest.approx(zero)


@pytest.mark.parametrize("pattern", ["{band}.tif", "T33UUP_2018_{band}.tif", "T33UUP_{band}_{gsd}m.tif", "{band}.TIF"])
def test_band_files_may_be_called_as_products_call_them(tmp_path: Path, pattern: str) -> None:
    write_scene(tmp_path / OLD, pixels_of(120, 120), pattern)
    (tmp_path / OLD / "cloud_mask.tif").write_bytes(b"")
    (tmp_path / "README").mkdir()
    assert SceneArchive(str(tmp_path)).scan().inputs.num_rows == 1


def test_the_root_may_be_the_scene(tmp_path: Path) -> None:
    folder = write_scene(tmp_path / OLD, pixels_of(120, 120))
    archive = SceneArchive(str(folder))
    (row,) = rows_of(archive.scan())
    assert (row.patch_id, row.source) == (f"{OLD}_00_00", ".")
    assert array_of(archive.read(row), "s2_10m").shape == (4, 120, 120)


def test_a_safe_product_is_read_at_native_resolution_with_its_offset(tmp_path: Path) -> None:
    """band_id counts B10, which L2A lacks: B11 is 11, B12 is 12."""
    pixels = pixels_of(240, 120)
    offsets = dict.fromkeys(range(13), -1000) | {11: -900, 12: 7}
    write_safe(tmp_path, NEW, pixels, offsets)
    archive = SceneArchive(str(tmp_path))
    rows = rows_of(archive.scan())
    assert [row.patch_id for row in rows] == [f"{NEW}_00_00", f"{NEW}_01_00"]
    patch = archive.read(rows[1])
    for group in S2_GROUPS:
        for i, band in enumerate(group.bands):
            dn = pixels[band][group.size :, :].astype(np.int64)
            add = {"B11": -900, "B12": 7}.get(band, -1000)
            expected = [[0 if x == 0 else max(1, x + add) for x in line] for line in dn.tolist()]
            np.testing.assert_array_equal(array_of(patch, group.array)[i], expected)


def test_offsets_never_make_valid_pixels_nodata() -> None:
    dn = np.array([0, 1, 999, 1000, 1001, 1002, 65535], np.uint16)
    np.testing.assert_array_equal(apply_offset(dn, -1000), [0, 1, 1, 1, 1, 2, 64535])
    np.testing.assert_array_equal(apply_offset(dn, 5), [0, 6, 1004, 1005, 1006, 1007, 65535])
    assert apply_offset(dn, 0) is dn


def test_a_baseline_with_an_offset_needs_the_xml_or_the_option(tmp_path: Path) -> None:
    pixels = pixels_of(120, 120)
    write_scene(tmp_path / NEW, pixels)
    with pytest.raises(ArchiveError, match=r"baseline 0509.*boa_add_offset"):
        SceneArchive(str(tmp_path)).scan()
    archive = SceneArchive(str(tmp_path), boa_add_offset=-1000)
    (row,) = rows_of(archive.scan())
    np.testing.assert_array_equal(array_of(archive.read(row), "s2_10m")[0], apply_offset(pixels["B02"], -1000))
    (tmp_path / NEW / "MTD_MSIL2A.xml").write_text(xml({}))
    with pytest.raises(ArchiveError, match="boa_add_offset"):
        SceneArchive(str(tmp_path)).scan()
    (tmp_path / NEW / "MTD_MSIL2A.xml").write_text(xml(dict.fromkeys(range(13), -500)))
    np.testing.assert_array_equal(
        array_of(SceneArchive(str(tmp_path)).read(row), "s2_10m")[0], apply_offset(pixels["B02"], -500)
    )


@pytest.mark.parametrize("name", [OLD, OLD.replace("N0208", "N9999"), "any name"])
def test_other_scenes_have_no_offset(tmp_path: Path, name: str) -> None:
    pixels = pixels_of(120, 120)
    write_scene(tmp_path / name, pixels)
    archive = SceneArchive(str(tmp_path))
    (row,) = rows_of(archive.scan())
    np.testing.assert_array_equal(array_of(archive.read(row), "s2_10m")[0], pixels["B02"])


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<a>",
        '<a><BOA_ADD_OFFSET band_id="x">1</BOA_ADD_OFFSET></a>',
        '<a><BOA_ADD_OFFSET band_id="77">1</BOA_ADD_OFFSET></a>',
        '<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        '<?xml version="1.0" encoding="UTF-16"?>\ufeff<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        '<?xml version="1.0" encoding="cp037"?>|<!DOCTYPE a [<!ENTITY b "c">]><a>&b;</a>',
        '<a><BOA_ADD_OFFSET band_id="-1">1</BOA_ADD_OFFSET></a>',
        f'<a><BOA_ADD_OFFSET band_id="1">{10**30}</BOA_ADD_OFFSET></a>',
    ],
)
def test_a_bad_xml_is_one_problem(tmp_path: Path, text: str) -> None:
    write_scene(tmp_path / OLD, pixels_of(120, 120))
    path = tmp_path / OLD / "MTD_MSIL2A.xml"
    declaration, bar, rest = text.partition("|")
    if "\ufeff" in text:
        path.write_bytes(text.replace("\ufeff", "").encode("utf-16"))
    else:  # behind the bar in the encoding that the declaration names
        path.write_bytes(declaration.encode() + (rest.encode("cp037") if bar else b""))
    assert reasons_of(SceneArchive(str(tmp_path)).scan()) == {f"{OLD}/MTD_MSIL2A.xml": "malformed_metadata"}


def shift(values: np.ndarray[Any, Any], path: Path, **change: Any) -> None:
    path.unlink()
    write_tiff(path, values, change.pop("gsd", 20), change.pop("corner", CORNER), **change)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"corner": (CORNER[0] + 20, CORNER[1])}, "grid_mismatch"),
        ({"crs": "EPSG:32634"}, "grid_mismatch"),
        ({"crs": None}, "grid_mismatch"),
        ({"gsd": 10}, "grid_mismatch"),
    ],
)
def test_bands_of_other_ground_make_the_scene_one_problem(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    pixels = pixels_of(240, 240)
    write_scene(tmp_path / OLD, pixels)
    write_scene(tmp_path / "good", pixels_of(120, 120))
    shift(pixels["B05"], tmp_path / OLD / "B05.tif", **change)
    scan = SceneArchive(str(tmp_path)).scan()
    assert reasons_of(scan) == {OLD: reason}
    assert (scan.total, [row.patch_id for row in rows_of(scan)]) == (2, ["good_00_00"])


def test_other_unusable_scenes(tmp_path: Path) -> None:
    pixels = pixels_of(120, 120)
    for name in ("missing", "empty", "text", "type", "link", "twice"):
        write_scene(tmp_path / name, pixels)
    write_scene(tmp_path / "small", pixels_of(60, 120))
    write_scene(tmp_path / "short", {**pixels, "B05": pixels["B05"][:50]})
    write_scene(tmp_path.parent / "outside", pixels)
    (tmp_path / "missing" / "B8A.tif").unlink()
    (tmp_path / "empty" / "B8A.tif").write_bytes(b"")
    (tmp_path / "text" / "B8A.tif").write_bytes(b"<VRTDataset/>")
    shift(pixels["B8A"].astype(np.int16), tmp_path / "type" / "B8A.tif")
    (tmp_path / "link" / "B8A.tif").unlink()
    (tmp_path / "link" / "B8A.tif").symlink_to(tmp_path.parent / "outside" / "B8A.tif")
    (tmp_path / "twice" / "copy_B8A.tif").write_bytes((tmp_path / "twice" / "B8A.tif").read_bytes())
    write_safe(tmp_path, "small", pixels, None)
    scan = SceneArchive(str(tmp_path)).scan()
    assert reasons_of(scan) == {
        "missing": "missing_band",
        "empty/B8A.tif": "truncated",
        "text/B8A.tif": "not_a_tiff",
        "type": "wrong_type",
        "link/B8A.tif": "outside_archive",
        "twice": "duplicate_id",
        "small": "wrong_size",
        "short": "grid_mismatch",
        "small.SAFE": "duplicate_id",
    }
    assert scan.total == 9


def test_a_scene_may_lie_on_another_disk_but_not_its_files(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    elsewhere = write_scene(tmp_path / "elsewhere", pixels_of(120, 120))
    (root / "scene").symlink_to(elsewhere)
    assert SceneArchive(str(root)).scan().inputs["patch_id"].to_pylist() == ["scene_00_00"]
    (elsewhere / "B02.tif").rename(tmp_path / "B02.tif")
    (elsewhere / "B02.tif").symlink_to(tmp_path / "B02.tif")
    assert reasons_of(SceneArchive(str(root)).scan()) == {"scene/B02.tif": "outside_archive"}
    assert reasons_of(SceneArchive(str(elsewhere)).scan()) == {"B02.tif": "outside_archive"}


def test_a_scene_damaged_within_is_a_problem_of_its_patches(tmp_path: Path) -> None:
    pixels = pixels_of(360, 120)
    folder = write_scene(tmp_path / OLD, pixels)
    path = folder / "B02.tif"
    path.unlink()
    write_tiff(path, pixels["B02"], 10, CORNER, compress="deflate", blockysize=120)
    data = bytearray(path.read_bytes())
    data[-5000:] = b"\xff" * 5000
    path.write_bytes(data)
    archive = SceneArchive(str(tmp_path))
    first, _, last = rows_of(archive.scan())
    np.testing.assert_array_equal(array_of(archive.read(first), "s2_10m")[0], pixels["B02"][:120])
    with pytest.raises(BadPatchError) as caught:
        archive.read(last)
    assert (caught.value.reason, caught.value.path) == ("corrupt", f"{OLD}/B02.tif")
    with pytest.raises(BadPatchError, match="no patch 9, 9"):
        archive.read(PatchInput(f"{OLD}_09_09", "all", None, None, None, None, None, OLD))


def test_few_scenes_stay_open_and_a_reader_pickles(tmp_path: Path) -> None:
    pixels = pixels_of(120, 120)
    for i in range(scene.OPEN_SCENES + 2):
        write_scene(tmp_path / f"scene{i}", {**pixels, "B02": np.full((120, 120), 1 + i, np.uint16)})
    archive = SceneArchive(str(tmp_path))
    rows = rows_of(archive.scan())
    for _ in range(2):
        for i, row in enumerate(rows):
            assert (array_of(archive.read(row), "s2_10m")[0] == 1 + i).all()
    assert len(scene._open_scenes) == scene.OPEN_SCENES
    assert pickle.loads(pickle.dumps(archive)) == archive


def test_an_unusable_archive_says_what_it_lacks(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="is not a folder"):
        SceneArchive(str(tmp_path / "none")).scan()
    with pytest.raises(ArchiveError, match="neither a scene nor a folder of scenes"):
        SceneArchive(str(tmp_path)).scan()


def test_the_real_cell_gives_64_patches_that_equal_rasterio(shared_data: Path) -> None:
    root = shared_data / "sentinel2_l2a_cell"
    archive = SceneArchive(str(root))
    scan = archive.scan()
    assert reasons_of(scan) == {}
    rows = rows_of(scan)
    assert len(rows) == 64
    for row in (rows[0], rows[13], rows[63]):
        r, c = (int(x) for x in row.patch_id.split("_")[-2:])
        patch = archive.read(row)
        assert patch.tile == "48QUE"
        for group in S2_GROUPS:
            for i, band in enumerate(group.bands):
                with rasterio.open(root / row.source / f"{band}.tif") as dataset:
                    window = Window(c * group.size, r * group.size, group.size, group.size)
                    np.testing.assert_array_equal(array_of(patch, group.array)[i], dataset.read(1, window=window))
                    assert patch.bounds == pytest.approx(dataset.window_bounds(window))
    assert len(S2_BANDS) == 12


def test_a_file_that_only_names_other_files_is_no_band(tmp_path: Path) -> None:
    write_scene(tmp_path / OLD, pixels_of(120, 120))
    inside = tmp_path / OLD / "B02.tif"
    inside.rename(tmp_path / "theirs.tif")
    inside.write_text(
        '<VRTDataset rasterXSize="120" rasterYSize="120"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        f"<SourceFilename>{tmp_path}/theirs.tif</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>"
    )
    with warnings.catch_warnings(action="ignore"), rasterio.open(inside) as dataset:
        assert dataset.driver == "VRT", "GDAL by itself goes by the content"
    assert reasons_of(SceneArchive(str(tmp_path)).scan()) == {f"{OLD}/B02.tif": "not_a_tiff"}


def test_a_header_that_promises_a_continent_is_no_scene(tmp_path: Path) -> None:
    """A TIFF of holes has a few kilobytes, whatever its size; the plan would have a row a patch."""
    for band in S2_BANDS:
        (tmp_path / OLD).mkdir(exist_ok=True)
        edge = 1_200_000 * 10 // gsd_of(band)
        with rasterio.open(
            *(tmp_path / OLD / f"{band}.tif", "w"),
            driver="GTiff",
            height=edge,
            width=edge,
            count=1,
            dtype="uint16",
            crs="EPSG:32633",
            transform=rasterio.transform.from_origin(*CORNER, gsd_of(band), gsd_of(band)),
            tiled=True,
            blockxsize=16384,
            blockysize=8192,
            SPARSE_OK="TRUE",
            BIGTIFF="YES",
        ):
            pass
    scan = SceneArchive(str(tmp_path)).scan()
    assert scan.inputs.num_rows == 0
    assert reasons_of(scan) == {OLD: "wrong_size"}


def test_blocks_that_no_memory_holds_are_refused_before_one_is_read(tmp_path: Path) -> None:
    write_scene(tmp_path / OLD, pixels_of(120, 120))
    write_tiff(
        tmp_path / OLD / "B02.tif", pixels_of(120, 120)["B02"], 10, CORNER, tiled=True, blockxsize=16, blockysize=16
    )
    data = bytearray((tmp_path / OLD / "B02.tif").read_bytes())
    (number,) = struct.unpack_from("<H", data, 8)
    for at in range(10, 10 + 12 * number, 12):
        if struct.unpack_from("<H", data, at)[0] in {322, 323}:  # width and length of a tile
            struct.pack_into("<HII", data, at + 2, 4, 1, 65520)
    (tmp_path / OLD / "B02.tif").write_bytes(data)
    assert reasons_of(SceneArchive(str(tmp_path)).scan()) == {OLD: "wrong_size"}


def test_metadata_that_is_a_link_out_of_the_archive_is_not_read(tmp_path: Path) -> None:
    archive = tmp_path / "archive"
    write_scene(archive / OLD, pixels_of(120, 120))
    (tmp_path / "theirs.xml").write_text(xml({1: -1000}))
    (archive / OLD / "MTD_MSIL2A.xml").symlink_to(tmp_path / "theirs.xml")
    assert reasons_of(SceneArchive(str(archive)).scan()) == {f"{OLD}/MTD_MSIL2A.xml": "outside_archive"}
