import os
import pickle
import random
import shutil
import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio

from infra.archives.bigearthnet_v2 import BigEarthNetV2
from infra.archives.inventory import Subset
from infra.archives.model import INPUT_SCHEMA, PROBLEM_SCHEMA, PatchInput
from infra.bigearthnet.bands import S1, S2_GROUPS
from infra.bigearthnet.classes import NAMES
from infra.errors import ArchiveError, BadPatchError, TransientError
from tests.infra.archives.small_archive import (
    PRODUCT,
    SmallArchive,
    array_of,
    patch_id,
    reasons_of,
    rows_of,
    s1_name,
    write_tiff,
)


@pytest.fixture
def archive(tmp_path: Path) -> SmallArchive:
    return SmallArchive(tmp_path / "archive")


def only_row(archive: SmallArchive) -> tuple[BigEarthNetV2, PatchInput]:
    reader = BigEarthNetV2(str(archive.root))
    (row,) = rows_of(reader.scan())
    return reader, row


def s2_path(name: str) -> str:
    return f"BigEarthNet-S2/{PRODUCT}/{name}"


def test_a_patch_is_read_as_it_was_written(archive: SmallArchive) -> None:
    name = patch_id(26, 57)
    archive.v2(name)
    archive.metadata([{"patch_id": name, "split": "val"}])
    reader, row = only_row(archive)
    assert row == PatchInput(
        name, "validation", ("Arable land", "Pastures"), "Austria", False, False, s1_name(name), s2_path(name)
    )
    patch = reader.read(row)
    for group in S2_GROUPS:
        expected = np.stack([archive.pixels[name, band] for band in group.bands])
        np.testing.assert_array_equal(patch.arrays[group.array], expected)
    np.testing.assert_array_equal(
        patch.arrays["s1"], np.stack([archive.pixels[s1_name(name), band] for band in S1.bands])
    )
    np.testing.assert_array_equal(patch.reference_map, archive.pixels[name, "reference_map"])
    left, top = archive.corner(name)
    assert (patch.epsg, patch.bounds) == (32633, (left, top - 1200, left + 1200, top))
    assert (patch.acquired, patch.tile, patch.nodata_share) == ("2017-06-13", "33UUP", 0.0)
    assert patch.labels == row.labels


def test_labels_come_in_the_project_s_order_without_repetition(archive: SmallArchive) -> None:
    labels = [
        ["Marine waters", "Urban fabric", "Pastures", "Urban fabric"],
        list(reversed(NAMES)),
        ["Mixed forest"],
        None,
    ]
    names = [patch_id(0, i) for i in range(4)]
    for name in names:
        archive.s2(archive.root / s2_path(name), name)
    archive.metadata([{"patch_id": n, "labels": x} for n, x in zip(names, labels, strict=True)])
    found = {row.patch_id: row.labels for row in rows_of(BigEarthNetV2(str(archive.root)).scan())}
    assert found == {
        names[0]: ("Urban fabric", "Pastures", "Marine waters"),
        names[1]: NAMES,
        names[2]: ("Mixed forest",),
        names[3]: None,
    }


@pytest.mark.parametrize("missing", ["folder", "files", "all"])
def test_a_missing_pair_or_map_is_none(archive: SmallArchive, missing: str) -> None:
    name = patch_id(1, 2)
    archive.v2(name)
    archive.metadata([{"patch_id": name}])
    for top in ("BigEarthNet-S1", "Reference_Maps"):
        if missing == "all":
            shutil.rmtree(archive.root / top)
            continue
        for file in list((archive.root / top).rglob("*.tif")):
            shutil.rmtree(file.parent) if missing == "folder" and file.exists() else file.unlink(missing_ok=True)
    reader, row = only_row(archive)
    patch = reader.read(row)
    assert "s1" not in patch.arrays
    assert patch.reference_map is None


def test_no_s1_name_is_no_pair(archive: SmallArchive) -> None:
    name = patch_id(1, 2)
    archive.v2(name)
    archive.metadata([{"patch_id": name, "s1_name": None}])
    reader, row = only_row(archive)
    assert "s1" not in reader.read(row).arrays


def test_nodata_share_counts_pixels_where_any_10_m_band_is_zero(archive: SmallArchive) -> None:
    name = patch_id(1, 2)
    folder = archive.v2(name)
    for band, columns in {"B02": slice(0, 30), "B08": slice(20, 60), "B05": slice(0, 60)}.items():
        size, gsd = (60, 20) if band == "B05" else (120, 10)
        pixels = np.full((size, size), 7, np.uint16)
        pixels[:, columns] = 0
        write_tiff(folder / f"{name}_{band}.tif", pixels, gsd, archive.corner(name))
    archive.metadata([{"patch_id": name}])
    reader, row = only_row(archive)
    assert reader.read(row).nodata_share == 0.5  # columns 0 to 59 of 120; the 20 m band does not count


Breakage = Callable[[SmallArchive, Path, str], None]


def _write(pixels: np.ndarray[Any, Any], gsd: float, name: str, **options: Any) -> Breakage:
    def breakage(archive: SmallArchive, folder: Path, patch: str) -> None:
        corner = options.get("corner", archive.corner(patch))
        write_tiff(folder / name, pixels, gsd, corner, **{k: v for k, v in options.items() if k != "corner"})

    return breakage


def _bytes(name: str, data: bytes | None) -> Breakage:
    def breakage(archive: SmallArchive, folder: Path, patch: str) -> None:
        path = folder / name
        path.unlink()
        if data is not None:
            path.write_bytes(data)

    return breakage


def _cut(archive: SmallArchive, folder: Path, patch: str) -> None:
    os.truncate(folder / f"{patch}_B08.tif", 20_000)


def _folder(archive: SmallArchive, folder: Path, patch: str) -> None:
    (folder / f"{patch}_B08.tif").unlink()
    (folder / f"{patch}_B08.tif").mkdir()


def _pipe(archive: SmallArchive, folder: Path, patch: str) -> None:
    (folder / f"{patch}_B08.tif").unlink()
    os.mkfifo(folder / f"{patch}_B08.tif")


def _link_out(archive: SmallArchive, folder: Path, patch: str) -> None:
    outside = archive.root.parent / "outside.tif"
    shutil.move(folder / f"{patch}_B08.tif", outside)
    (folder / f"{patch}_B08.tif").symlink_to(outside)


def _link_loop(archive: SmallArchive, folder: Path, patch: str) -> None:
    (folder / f"{patch}_B08.tif").unlink()
    (folder / f"{patch}_B08.tif").symlink_to(f"{patch}_B08.tif")


NAME = patch_id(3, 4)
B08, B05 = f"{NAME}_B08.tif", f"{NAME}_B05.tif"
SQUARE = np.ones((120, 120), np.uint16)
BREAKAGES: dict[str, tuple[Breakage, str, str]] = {
    "missing": (_bytes(B08, None), "missing_band", B08),
    "empty": (_bytes(B08, b""), "truncated", B08),
    "cut off": (_cut, "truncated", B08),
    "text": (_bytes(B08, b"<html>404 Not Found</html>"), "not_a_tiff", B08),
    "too small": (_write(SQUARE[:60, :60], 10, B08), "wrong_size", B08),
    "20 m band at 10 m": (_write(SQUARE, 10, B05), "wrong_size", B05),
    "uint8": (_write(SQUARE.astype(np.uint8), 10, B08), "wrong_type", B08),
    "float32": (_write(SQUARE.astype(np.float32), 10, B08), "wrong_type", B08),
    "folder": (_folder, "unreadable", B08),
    "pipe": (_pipe, "unreadable", B08),
    "link out": (_link_out, "outside_archive", B08),
    "link to itself": (_link_loop, "unreadable", B08),
    "other corner": (_write(SQUARE, 10, B08, corner=(300000.0, 5400000.0)), "grid_mismatch", B08),
    "other CRS": (_write(SQUARE, 10, B08, crs="EPSG:32634"), "grid_mismatch", B08),
    "20 m band at another corner": (
        _write(SQUARE[:60, :60], 20, B05, corner=(300000.0, 5400000.0)),
        "grid_mismatch",
        B05,
    ),
    "no CRS": (_write(SQUARE, 10, B08, crs=None), "grid_mismatch", B08),
    "degrees": (_write(SQUARE, 10, B08, crs="EPSG:4326"), "grid_mismatch", B08),
    "other pixel size": (_write(SQUARE, 20, B08), "grid_mismatch", B08),
}


@pytest.mark.parametrize("kind", BREAKAGES)
def test_a_bad_band_is_one_problem_with_path_and_reason(archive: SmallArchive, kind: str) -> None:
    breakage, reason, file = BREAKAGES[kind]
    folder = archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    breakage(archive, folder, NAME)
    reader, row = only_row(archive)
    with pytest.raises(BadPatchError) as caught:
        reader.read(row)
    assert (caught.value.reason, caught.value.path) == (reason, f"{s2_path(NAME)}/{file}")
    assert len(caught.value.detail) > 10


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sentinel_1_value_that_is_not_finite_is_a_problem(archive: SmallArchive, value: float) -> None:
    archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    pixels = archive.pixels[s1_name(NAME), "VH"].copy()
    pixels[5, 6] = value
    (path,) = archive.root.rglob("*_VH.tif")
    write_tiff(path, pixels, 10, archive.corner(NAME))
    reader, row = only_row(archive)
    with pytest.raises(BadPatchError) as caught:
        reader.read(row)
    assert (caught.value.reason, caught.value.path) == ("not_finite", str(path.relative_to(archive.root)))


@pytest.mark.parametrize(
    ("pattern", "data", "reason"),
    [
        ("*_VV.tif", None, "missing_band"),
        ("*_VH.tif", b"", "truncated"),
        ("*_reference_map.tif", b"text", "not_a_tiff"),
    ],
)
def test_a_bad_pair_or_map_makes_the_patch_bad(
    archive: SmallArchive, pattern: str, data: bytes | None, reason: str
) -> None:
    archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    (path,) = archive.root.rglob(pattern)
    path.unlink()
    if data is not None:
        path.write_bytes(data)
    reader, row = only_row(archive)
    with pytest.raises(BadPatchError) as caught:
        reader.read(row)
    assert (caught.value.reason, caught.value.path) == (reason, str(path.relative_to(archive.root)))


@pytest.mark.parametrize("where", ["s1", "map"])
def test_a_pair_or_map_of_other_ground_is_a_problem(archive: SmallArchive, where: str) -> None:
    archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    (path,) = archive.root.rglob("*_VV.tif" if where == "s1" else "*_reference_map.tif")
    pixels = SQUARE.astype(np.float32) if where == "s1" else SQUARE
    write_tiff(path, pixels, 10, (310000.0, 5400000.0))
    reader, row = only_row(archive)
    with pytest.raises(BadPatchError, match="grid_mismatch"):
        reader.read(row)


def test_any_tiff_that_gdal_reads_is_read(archive: SmallArchive) -> None:
    """Re-compressed archives are common: tiled, LZW, big-endian files give the same patch."""
    folder = archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    reader, row = only_row(archive)
    before = reader.read(row)
    options: list[dict[str, Any]] = [
        {"compress": "lzw"},
        {"tiled": True, "blockxsize": 64, "blockysize": 64},
        {"ENDIANNESS": "BIG"},
        {"BIGTIFF": "YES"},
    ]
    for band, option in zip(("B02", "B03", "B04", "B08"), options, strict=True):
        path = folder / f"{NAME}_{band}.tif"
        path.unlink()
        write_tiff(path, archive.pixels[NAME, band], 10, archive.corner(NAME), **option)
    after = reader.read(row)
    np.testing.assert_array_equal(after.arrays["s2_10m"], before.arrays["s2_10m"])
    assert (after.epsg, after.bounds) == (before.epsg, before.bounds)


def test_links_within_the_archive_are_followed(archive: SmallArchive) -> None:
    folder = archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    moved = folder.rename(archive.root / "elsewhere")
    folder.symlink_to(moved)
    file = (moved / B08).rename(archive.root / "band.tif")
    (moved / B08).symlink_to(file)
    reader, row = only_row(archive)
    np.testing.assert_array_equal(array_of(reader.read(row), "s2_10m")[3], archive.pixels[NAME, "B08"])


def test_the_folders_in_the_root_may_be_links_to_other_disks(archive: SmallArchive) -> None:
    archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    disk = archive.root.parent / "disk"
    disk.mkdir()
    for top in ("BigEarthNet-S2", "BigEarthNet-S1", "Reference_Maps"):
        (archive.root / top).rename(disk / top)
        (archive.root / top).symlink_to(disk / top)
    link = archive.root.parent / "link"
    link.symlink_to(archive.root)
    reader = BigEarthNetV2(str(link))
    (row,) = rows_of(reader.scan())
    patch = reader.read(row)
    assert "s1" in patch.arrays
    assert patch.reference_map is not None


@pytest.mark.parametrize("level", ["patch", "product"])
def test_folders_that_link_out_of_the_archive_are_not_opened(archive: SmallArchive, level: str) -> None:
    folder = archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    folder = folder if level == "patch" else folder.parent
    folder.rename(archive.root.parent / "outside")
    folder.symlink_to(archive.root.parent / "outside")
    reader = BigEarthNetV2(str(archive.root))
    scan = reader.scan()
    assert reasons_of(scan) == {s2_path(NAME): "outside_archive"}
    row = PatchInput(NAME, "train", (), None, None, None, None, s2_path(NAME))
    with pytest.raises(BadPatchError, match="outside_archive"):  # nor by a worker with an older scan
        reader.read(row)


@pytest.mark.parametrize("top", ["BigEarthNet-S1", "Reference_Maps"])
@pytest.mark.parametrize("level", [1, 0])
def test_pairs_and_maps_that_link_out_are_not_opened(archive: SmallArchive, top: str, level: int) -> None:
    archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    folder = next((archive.root / top).rglob("*.tif")).parents[level]
    folder.rename(archive.root.parent / "outside")
    folder.symlink_to(archive.root.parent / "outside")
    reader, row = only_row(archive)
    with pytest.raises(BadPatchError, match="outside_archive"):
        reader.read(row)


def test_every_input_ends_in_one_place(archive: SmallArchive) -> None:
    good, flagged, orphan, gone, unlabelled, strange = (patch_id(9, i) for i in range(6))
    for name in (good, flagged, orphan, unlabelled, strange):
        (archive.root / s2_path(name)).mkdir(parents=True)
    (archive.root / s2_path("not a folder")).write_text("x")
    (archive.root / "BigEarthNet-S2" / ".cache" / "x").mkdir(parents=True)
    hostile = ["../../etc", f"{PRODUCT}/../x_1_2", "/etc/passwd_0_0", ".", "a\0b"]
    archive.metadata(
        [
            {"patch_id": good},
            {"patch_id": good, "split": "test"},
            {"patch_id": gone},
            {"patch_id": unlabelled, "labels": []},
            {"patch_id": strange, "labels": ["Pastures", "Lava"]},
            *({"patch_id": name} for name in hostile),
            {"patch_id": None},
            {"patch_id": ""},
            {"patch_id": patch_id(9, 6), "split": "dev"},
        ]
    )
    archive.metadata([{"patch_id": flagged}], flagged=True)
    (archive.root / s2_path(patch_id(9, 6))).mkdir()
    scan = BigEarthNetV2(str(archive.root)).scan()
    assert scan.inputs.schema == INPUT_SCHEMA
    assert scan.problems.schema == PROBLEM_SCHEMA
    assert [(row.patch_id, row.split) for row in rows_of(scan)] == [(good, "train")]
    assert Counter(row["reason"] for row in scan.problems.to_pylist()) == {
        "duplicate_id": 1,
        "missing_folder": 1,
        "no_label": 1,
        "unknown_label": 1,
        "outside_archive": len(hostile),
        "malformed_metadata": 3,
        "no_metadata": 1,
    }
    assert reasons_of(scan)[s2_path(orphan)] == "no_metadata"
    assert (scan.total, scan.excluded, scan.absent) == (13 + 1, 1, 0)

    present = BigEarthNetV2(str(archive.root), subset="present").scan()
    assert present.absent == 1
    assert s2_path(gone) not in reasons_of(present)
    assert present.total == scan.total

    whole = BigEarthNetV2(str(archive.root), include_flagged=True).scan()
    assert {row.patch_id: row.has_snow for row in rows_of(whole)} == {good: False, flagged: True}
    assert (whole.total, whole.excluded) == (15, 0)
    reasons_of(whole)


def test_a_hostile_s1_name_is_a_problem(archive: SmallArchive) -> None:
    (archive.root / s2_path(NAME)).mkdir(parents=True)
    archive.metadata([{"patch_id": NAME, "s1_name": "../../../etc"}])
    assert reasons_of(BigEarthNetV2(str(archive.root)).scan()) == {s2_path(NAME): "outside_archive"}


def test_a_product_that_cannot_be_listed_is_not_missing(archive: SmallArchive, monkeypatch: pytest.MonkeyPatch) -> None:
    archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    scandir = os.scandir

    def refuse(path: str) -> Any:
        if str(path).endswith(PRODUCT):
            raise PermissionError(13, "Permission denied")
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    scan = BigEarthNetV2(str(archive.root), subset="present").scan()
    assert reasons_of(scan) == {s2_path(NAME): "unreadable"}


def test_random_archives_agree_with_a_count_by_hand(tmp_path: Path) -> None:
    chance = random.Random(5)
    for turn in range(20):
        archive = SmallArchive(tmp_path / str(turn))
        names = [patch_id(i, turn) for i in range(30)]
        on_disk = set(chance.sample(names, 20))
        for name in on_disk:
            (archive.root / s2_path(name)).mkdir(parents=True)
        listed = [chance.choice(names) for _ in range(20)]
        flagged = [chance.choice(names) for _ in range(5)]
        archive.metadata([{"patch_id": name} for name in listed])
        archive.metadata([{"patch_id": name} for name in flagged], flagged=True)
        for include in (False, True):
            rows = listed + flagged if include else listed
            expected_inputs = set(rows) & on_disk
            repeated = len(rows) - len(set(rows))
            orphans = on_disk - set(listed) - set(flagged)
            gone = set(rows) - on_disk
            for subset in get_args(Subset):
                scan = BigEarthNetV2(str(archive.root), include, subset).scan()
                reasons_of(scan)
                assert {row.patch_id for row in rows_of(scan)} == expected_inputs
                counts = Counter(row["reason"] for row in scan.problems.to_pylist())
                assert counts["duplicate_id"] == repeated
                assert counts["no_metadata"] == len(orphans)
                assert counts["missing_folder"] == (len(gone) if subset == "all" else 0)
                assert scan.absent == (len(gone) if subset == "present" else 0)
                assert scan.total == len(rows) + len(orphans)
                assert scan.excluded == (0 if include else len(flagged))


def test_an_unusable_archive_says_what_it_lacks(archive: SmallArchive) -> None:
    reader = BigEarthNetV2(str(archive.root))
    with pytest.raises(ArchiveError, match="is not a folder"):
        reader.scan()
    archive.root.mkdir()
    with pytest.raises(ArchiveError, match=r"has no metadata\.parquet"):
        reader.scan()
    archive.metadata([{"patch_id": NAME}])
    with pytest.raises(ArchiveError, match="needs a folder BigEarthNet-S2"):
        reader.scan()
    (archive.root / "BigEarthNet-S2").mkdir()
    with pytest.raises(ArchiveError, match="not one patch folder"):
        reader.scan()
    (archive.root / "metadata.parquet").write_bytes(b"PAR1 no")
    with pytest.raises(ArchiveError, match="cannot be read"):
        reader.scan()
    pq.write_table(pa.table({"name": ["x"]}), archive.root / "metadata.parquet")
    with pytest.raises(ArchiveError, match="no column patch_id"):
        reader.scan()
    pq.write_table(pa.table({"patch_id": ["x"], "labels": ["Pastures"]}), archive.root / "metadata.parquet")
    with pytest.raises(ArchiveError, match="cannot be read"):
        reader.scan()


def test_metadata_may_have_the_id_alone(archive: SmallArchive) -> None:
    folder = archive.v2(NAME)
    pq.write_table(pa.table({"patch_id": pa.array([NAME]).dictionary_encode()}), archive.root / "metadata.parquet")
    _, row = only_row(archive)
    assert row == PatchInput(NAME, "all", None, None, None, None, None, str(folder.relative_to(archive.root)))


def test_a_disk_that_went_away_is_no_patch_s_fault(archive: SmallArchive) -> None:
    archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    reader, row = only_row(archive)
    shutil.rmtree(archive.root / s2_path(NAME))
    with pytest.raises(BadPatchError, match="missing_folder"):
        reader.read(row)
    shutil.rmtree(archive.root)
    with pytest.raises(ArchiveError, match="still mounted"):
        reader.read(row)


@pytest.mark.parametrize(("number", "kind"), [(116, TransientError), (24, OSError), (13, BadPatchError)])
def test_errors_of_the_system_are_told_apart(
    archive: SmallArchive, monkeypatch: pytest.MonkeyPatch, number: int, kind: type[Exception]
) -> None:
    """ESTALE is worth another attempt, EMFILE is this process's own, EACCES is the file's."""
    archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    reader, row = only_row(archive)

    def fail(*arguments: object, **options: object) -> int:
        raise OSError(number, os.strerror(number))

    with monkeypatch.context() as patch:
        patch.setattr(os, "read", fail)
        with pytest.raises(kind) as caught:
            reader.read(row)
    if isinstance(caught.value, BadPatchError):
        assert caught.value.reason == "unreadable"
        assert "EACCES" in caught.value.detail


def test_short_reads_of_a_network_disk_are_not_truncation(
    archive: SmallArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    reader, row = only_row(archive)
    expected = reader.read(row).arrays["s2_10m"]
    read = os.read
    monkeypatch.setattr(os, "read", lambda fd, size: read(fd, min(size, 1000)))
    np.testing.assert_array_equal(reader.read(row).arrays["s2_10m"], expected)


def test_a_reader_is_cheap_to_pickle(archive: SmallArchive) -> None:
    reader = BigEarthNetV2(str(archive.root), include_flagged=True, subset="present")
    assert pickle.loads(pickle.dumps(reader)) == reader
    assert len(pickle.dumps(reader)) < 500
    assert reader.version == "bigearthnet-v2"


def test_no_file_stays_open(archive: SmallArchive) -> None:
    folder = archive.v2(NAME)
    archive.metadata([{"patch_id": NAME}])
    reader, row = only_row(archive)
    before = len(list(Path("/proc/self/fd").iterdir()))
    reader.read(row)
    (folder / B08).unlink()
    with pytest.raises(BadPatchError):
        reader.read(row)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_the_real_patch_equals_rasterio(shared_data: Path) -> None:
    root = shared_data / "bigearthnet_v2"
    reader = BigEarthNetV2(str(root), include_flagged=True, subset="present")
    scan = reader.scan()
    assert (scan.total, scan.absent, scan.problems.num_rows) == (549_488, 549_487, 0)
    (row,) = rows_of(scan)
    patch = reader.read(row)
    for group in S2_GROUPS:
        for i, band in enumerate(group.bands):
            with rasterio.open(root / row.source / f"{row.patch_id}_{band}.tif") as dataset:
                np.testing.assert_array_equal(array_of(patch, group.array)[i], dataset.read(1))
                assert patch.bounds == tuple(dataset.bounds)
    assert (patch.arrays.get("s1"), patch.reference_map, patch.tile) == (None, None, "33UUP")


def test_the_real_metadata_counts_clean_and_flagged(shared_data: Path) -> None:
    scan = BigEarthNetV2(str(shared_data / "bigearthnet_v2")).scan()
    assert reasons_of(scan)
    assert (scan.total, scan.excluded, scan.inputs.num_rows) == (480_038, 69_450, 1)
    assert set(scan.problems["reason"].to_pylist()) == {"missing_folder"}


def _write_metadata(archive: SmallArchive, **columns: pa.Array) -> None:
    pq.write_table(pa.table(columns), archive.root / "metadata.parquet")


def test_metadata_that_is_a_link_out_of_the_archive_is_not_read(archive: SmallArchive) -> None:
    archive.v2(patch_id(0, 0))
    archive.metadata([{"patch_id": patch_id(0, 0)}])
    inside = archive.root / "metadata.parquet"
    inside.rename(archive.root / "real.parquet")
    inside.symlink_to("real.parquet")
    assert BigEarthNetV2(str(archive.root)).scan().inputs.num_rows == 1
    shutil.move(archive.root / "real.parquet", archive.root.parent / "theirs.parquet")
    inside.unlink()
    inside.symlink_to(archive.root.parent / "theirs.parquet")
    with pytest.raises(ArchiveError, match="leads out of the archive"):
        BigEarthNetV2(str(archive.root)).scan()


def test_a_column_twice_is_an_error_and_not_a_guess(archive: SmallArchive) -> None:
    archive.v2(patch_id(0, 0))
    ids = pa.array([patch_id(0, 0)])
    for name in ("patch_id", "split"):
        table = pa.Table.from_arrays([ids, ids, ids], ["patch_id", "split", name])
        pq.write_table(table, archive.root / "metadata.parquet")
        with pytest.raises(ArchiveError, match=f"more than one column {name}"):
            BigEarthNetV2(str(archive.root)).scan()


@pytest.mark.parametrize("column", ["patch_id", "s1_name", "country", "split"])
def test_texts_that_are_not_utf_8_are_an_error(archive: SmallArchive, column: str) -> None:
    """Parquet files say that a column is UTF-8, and nobody checks it until someone asks for the text."""
    archive.v2(patch_id(0, 0))
    odd = pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers())
    _write_metadata(archive, **{"patch_id": pa.array([patch_id(0, 0)]), column: odd})
    with pytest.raises(ArchiveError, match="UTF"):
        BigEarthNetV2(str(archive.root)).scan()


def test_names_of_columns_that_are_not_utf_8_are_an_error(archive: SmallArchive) -> None:
    archive.v2(patch_id(0, 0))
    path = archive.root / "metadata.parquet"
    pq.write_table(pa.table({"patch_id": [patch_id(0, 0)], "xyzzy": [1]}), path, store_schema=False)
    path.write_bytes(path.read_bytes().replace(b"xyzzy", b"\xff\xfezzy"))
    with pytest.raises(ArchiveError, match="cannot be read as BigEarthNet v2 metadata"):
        BigEarthNetV2(str(archive.root)).scan()


def test_a_claim_of_more_rows_than_any_archive_has_is_not_followed(archive: SmallArchive) -> None:
    """Equal rows take next to no bytes: ten million ids make a file of a few kilobytes."""
    archive.v2(patch_id(0, 0))
    one = pa.array([patch_id(0, 0)]).dictionary_encode()
    indices = pa.array(np.zeros(10_000_001, np.int32))
    ids = pa.DictionaryArray.from_arrays(indices, one.dictionary)
    _write_metadata(archive, patch_id=ids)
    assert (archive.root / "metadata.parquet").stat().st_size < 100_000
    with pytest.raises(ArchiveError, match="claims 10000001 rows"):
        BigEarthNetV2(str(archive.root)).scan()


@pytest.mark.parametrize("odd", ["\x9b2J", "\u202e", "\u2028", "\u200b", "\ufeff"])
def test_names_that_steer_a_terminal_or_hide_are_no_names(archive: SmallArchive, odd: str) -> None:
    names = [patch_id(0, 0), f"{patch_id(0, 1)}{odd}"]
    for name in names:
        archive.v2(patch_id(0, 0) if name == names[0] else patch_id(0, 1))
    product = archive.root / "BigEarthNet-S2" / PRODUCT
    (product / patch_id(0, 1)).rename(product / names[1])
    archive.metadata([{"patch_id": name} for name in names])
    scan = BigEarthNetV2(str(archive.root)).scan()
    assert [row.patch_id for row in rows_of(scan)] == names[:1]
    assert reasons_of(scan) == {"metadata.parquet": "outside_archive"}


def test_a_parquet_file_brings_no_types_of_its_own(archive: SmallArchive) -> None:
    """Versions of pyarrow before 14.0.1 unpickled what a schema called arrow.py_extension_type."""
    archive.v2(patch_id(0, 0))
    trap = archive.root / "trap"
    pickled = pickle.dumps(_Trap(str(trap)))
    field = pa.field(
        "patch_id",
        pa.string(),
        metadata={"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": pickled},
    )
    pq.write_table(pa.table([pa.array([patch_id(0, 0)])], pa.schema([field])), archive.root / "metadata.parquet")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert BigEarthNetV2(str(archive.root)).scan().inputs.num_rows == 1
    assert not trap.exists()
    pickle.loads(pickled)
    assert trap.exists(), "the trap would have told"


class _Trap:
    def __init__(self, path: str) -> None:
        self._path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (self._path,)
