import bz2
import json
import tracemalloc
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio

from infra.archives import bigearthnet_v1
from infra.archives.bigearthnet_v1 import BigEarthNetV1, classes_of, strict_json
from infra.bigearthnet.bands import S2_GROUPS
from infra.bigearthnet.classes import NAMES, UNMAPPED_V1_LABELS, V1_LABEL_TO_CLASS
from infra.errors import ArchiveError, BadPatchError
from tests.infra.archives.small_archive import SmallArchive, array_of, reasons_of, rows_of


@pytest.fixture
def archive(tmp_path: Path) -> SmallArchive:
    return SmallArchive(tmp_path / "archive")


def v1_name(column: int) -> str:
    return f"S2A_MSIL2A_20170613T101031_8_{column}"


def s1_name(column: int) -> str:
    return f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_8_{column}"


def write_list(archive: SmallArchive, name: str, patches: list[str], *, packed: bool = False, end: str = "\n") -> None:
    data = "".join(patch + end for patch in patches).encode()
    if packed:
        (archive.root / f"{name}.csv.bz2").write_bytes(bz2.compress(data))
    else:
        (archive.root / f"{name}.csv").write_bytes(data)


def test_a_patch_is_read_as_it_was_written(archive: SmallArchive) -> None:
    archive.v1(v1_name(1), s1=s1_name(1))
    reader = BigEarthNetV1(str(archive.root))
    (row,) = rows_of(reader.scan())
    assert (row.split, row.labels, row.has_snow, row.s1_name) == ("all", None, None, s1_name(1))
    patch = reader.read(row)
    assert patch.labels == ("Pastures", "Inland waters")
    assert (patch.tile, patch.acquired, patch.epsg) == ("33UUP", "2017-06-13", 32633)
    for group in S2_GROUPS:
        expected = np.stack([archive.pixels[v1_name(1), band] for band in group.bands])
        np.testing.assert_array_equal(patch.arrays[group.array], expected)
    np.testing.assert_array_equal(
        patch.arrays["s1"], np.stack([archive.pixels[s1_name(1), band] for band in ("VV", "VH")])
    )
    assert patch.reference_map is None


@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize("end", ["\n", "\r\n", ",S1A_of_another_kind\n"])
def test_lists_give_split_and_flags(archive: SmallArchive, packed: bool, end: str) -> None:
    names = [v1_name(i) for i in range(8)]
    for name in names:
        (archive.root / "BigEarthNet-v1.0" / name).mkdir(parents=True)
    train, val, test, snow, cloud, none, unlisted, both = names
    lists = {
        "train": ["patch_id", train],
        "val": [val],
        "test": [test],
        "patches_with_seasonal_snow": [snow, both],
        "patches_with_cloud_and_shadow": [cloud, both],
        "patches_with_no_19_class_targets": [none],
    }
    for name, patches in lists.items():
        write_list(archive, name, patches, packed=packed, end=end)
    scan = BigEarthNetV1(str(archive.root), include_flagged=True).scan()
    assert {row.patch_id: (row.split, row.has_snow, row.has_cloud) for row in rows_of(scan)} == {
        train: ("train", False, False),
        val: ("validation", False, False),
        test: ("test", False, False),
        snow: ("all", True, False),
        cloud: ("all", False, True),
        both: ("all", True, True),
        unlisted: ("all", False, False),
    }
    assert reasons_of(scan) == {f"BigEarthNet-v1.0/{none}": "no_label"}
    clean = BigEarthNetV1(str(archive.root)).scan()
    assert {row.patch_id for row in rows_of(clean)} == {train, val, test, unlisted}
    assert (clean.total, clean.excluded) == (5, 3)
    reasons_of(clean)


def test_patches_on_lists_without_a_folder(archive: SmallArchive) -> None:
    (archive.root / "BigEarthNet-v1.0" / v1_name(0)).mkdir(parents=True)
    write_list(archive, "train", [v1_name(0), v1_name(1), v1_name(0), "../x"])
    write_list(archive, "test", [v1_name(0)])
    scan = BigEarthNetV1(str(archive.root)).scan()
    assert Counter(row["reason"] for row in scan.problems.to_pylist()) == {
        "missing_folder": 1,
        "duplicate_id": 2,
        "outside_archive": 1,
    }
    assert [(row.patch_id, row.split) for row in rows_of(scan)] == [(v1_name(0), "train")]
    present = BigEarthNetV1(str(archive.root), subset="present").scan()
    assert (present.absent, present.total) == (1, 5)
    reasons_of(present)


def test_a_sentinel_1_folder_is_joined_by_its_json_not_by_its_name(archive: SmallArchive) -> None:
    archive.v1(v1_name(1))
    archive.v1(v1_name(2))
    pair = archive.root / "BigEarthNet-S1-v1.0" / s1_name(1)
    archive.s1(pair, s1_name(1), archive.corner(v1_name(2)))
    (pair / f"{s1_name(1)}_labels_metadata.json").write_text(json.dumps({"corresponding_s2_patch": v1_name(2)}))
    reader = BigEarthNetV1(str(archive.root))
    rows = {row.patch_id: row for row in rows_of(reader.scan())}
    assert (rows[v1_name(1)].s1_name, rows[v1_name(2)].s1_name) == (None, s1_name(1))
    assert reader.read(rows[v1_name(1)]).arrays.get("s1") is None
    assert reader.read(rows[v1_name(2)]).arrays.get("s1") is not None


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (None, "no_metadata"),
        ("{", "malformed_metadata"),
        ("{}", "malformed_metadata"),
        ('{"corresponding_s2_patch": 3}', "malformed_metadata"),
        (json.dumps({"corresponding_s2_patch": "x" * 256}), "malformed_metadata"),
        (json.dumps({"corresponding_s2_patch": v1_name(1)}), "duplicate_id"),
    ],
)
def test_a_sentinel_1_folder_that_names_no_patch_of_its_own_is_one_problem(
    archive: SmallArchive, text: str | None, reason: str
) -> None:
    archive.v1(v1_name(1), s1=s1_name(1))
    other = archive.root / "BigEarthNet-S1-v1.0" / s1_name(2)
    other.mkdir()
    if text is not None:
        (other / f"{s1_name(2)}_labels_metadata.json").write_text(text)
    scan = BigEarthNetV1(str(archive.root)).scan()
    assert list(reasons_of(scan).values()) == [reason]
    assert (scan.total, scan.inputs["s1_name"].to_pylist()) == (2, [s1_name(1)])


GOOD: dict[str, Any] = {"labels": ["Pastures"], "tile_source": "x", "acquisition_date": "2017-06-13 10:10:31"}


@pytest.mark.parametrize(
    ("metadata", "reason"),
    [
        ("", "malformed_metadata"),
        ("[]", "malformed_metadata"),
        ('{"labels": ["Pastures"]} {"more": 1}', "malformed_metadata"),
        ('{"labels": ["Pastures"], "x": NaN}', "malformed_metadata"),
        ("[" * 100_000, "malformed_metadata"),
        ('{"labels": "Pastures"}', "malformed_metadata"),
        ("{}", "malformed_metadata"),
        ({**GOOD, "labels": ["Pastures", "pastures"]}, "unknown_label"),
        ({**GOOD, "labels": ["Airports", "Bare rock"]}, "no_label"),
        ({**GOOD, "labels": []}, "no_label"),
    ],
)
def test_a_bad_json_is_one_problem(archive: SmallArchive, metadata: Any, reason: str) -> None:
    folder = archive.v1(v1_name(1), metadata)
    reader = BigEarthNetV1(str(archive.root))
    (row,) = rows_of(reader.scan())
    with pytest.raises(BadPatchError) as caught:
        reader.read(row)
    file = f"{v1_name(1)}_labels_metadata.json"
    assert (caught.value.reason, caught.value.path) == (reason, f"{folder.relative_to(archive.root)}/{file}")


def test_a_patch_without_json_has_no_metadata(archive: SmallArchive) -> None:
    folder = archive.v1(v1_name(1))
    next(folder.glob("*.json")).unlink()
    reader = BigEarthNetV1(str(archive.root))
    (row,) = rows_of(reader.scan())
    with pytest.raises(BadPatchError, match="no_metadata"):
        reader.read(row)


def test_day_and_tile_fall_back_to_the_name(archive: SmallArchive) -> None:
    archive.v1("S2B_MSIL2A_20180204T94161_57_38", {"labels": ["Pastures"]})
    reader = BigEarthNetV1(str(archive.root))
    patch = reader.read(rows_of(reader.scan())[0])
    assert (patch.acquired, patch.tile) == ("2018-02-04", None)


def test_all_43_labels_map_to_a_class_or_to_none() -> None:
    assert len(V1_LABEL_TO_CLASS) + len(UNMAPPED_V1_LABELS) == 43
    everything = classes_of([*reversed(list(V1_LABEL_TO_CLASS)), *UNMAPPED_V1_LABELS], "x")
    assert everything == NAMES


def test_strict_json_takes_one_object_and_white_space() -> None:
    assert strict_json(b' {"a": [1]}\n', "x") == {"a": [1]}


def test_an_unusable_archive_says_what_it_lacks(archive: SmallArchive) -> None:
    reader = BigEarthNetV1(str(archive.root))
    with pytest.raises(ArchiveError, match="is not a folder"):
        reader.scan()
    archive.root.mkdir()
    with pytest.raises(ArchiveError, match=r"needs a folder BigEarthNet-v1\.0"):
        reader.scan()
    (archive.root / "BigEarthNet-v1.0").mkdir()
    with pytest.raises(ArchiveError, match="not one patch folder"):
        reader.scan()
    (archive.root / "train.csv.bz2").write_bytes(b"BZh9 no")
    with pytest.raises(ArchiveError, match=r"train\.csv\.bz2 cannot be read"):
        reader.scan()


def test_18_of_the_19_real_patches_are_good_and_equal_rasterio(shared_data: Path) -> None:
    root = shared_data / "bigearthnet_v1"
    reader = BigEarthNetV1(str(root), include_flagged=True, subset="present")
    scan = reader.scan()
    assert (scan.inputs.num_rows, scan.problems.num_rows) == (19, 0)
    assert scan.total == 590_326  # all of BigEarthNet v1.0: the lists name every patch once
    bad, pairs = [], 0
    for row in rows_of(scan):
        try:
            patch = reader.read(row)
        except BadPatchError as error:
            bad.append((row.patch_id, error.reason))
            continue
        for group in S2_GROUPS:
            for i, band in enumerate(group.bands):
                with rasterio.open(root / row.source / f"{row.patch_id}_{band}.tif") as dataset:
                    np.testing.assert_array_equal(array_of(patch, group.array)[i], dataset.read(1))
                    assert (patch.epsg, patch.bounds) == (dataset.crs.to_epsg(), tuple(dataset.bounds))
        if "s1" in patch.arrays:
            pairs += 1
            for i, band in enumerate(("VV", "VH")):
                with rasterio.open(root / "BigEarthNet-S1-v1.0" / row.s1_name / f"{row.s1_name}_{band}.tif") as dataset:  # type: ignore[operator]
                    np.testing.assert_array_equal(array_of(patch, "s1")[i], dataset.read(1))
    assert bad == [("S2A_MSIL2A_20170613T101031_0_46", "malformed_metadata")]
    joined = [row for row in rows_of(scan) if row.s1_name is not None]
    assert pairs == len(joined) == 6  # the other three of the nine belong to patches that are not there


def test_the_real_v1_labels_equal_those_of_v2(shared_data: Path) -> None:
    """v2 lists the v1 patch that each of its patches comes from; flags and splits of v1 agree with its own lists."""
    tables = [
        pq.read_table(shared_data / "bigearthnet_v2" / name, columns=["s2v1_name", "labels", "contains_seasonal_snow"])
        for name in ("metadata.parquet", "metadata_for_patches_with_snow_cloud_or_shadow.parquet")
    ]
    v2: dict[str, list[str]] = {}
    for table in tables:
        v2.update(zip(table["s2v1_name"].to_pylist(), table["labels"].to_pylist(), strict=True))
    reader = BigEarthNetV1(str(shared_data / "bigearthnet_v1"), include_flagged=True, subset="present")
    compared = 0
    for row in rows_of(reader.scan()):
        try:
            patch = reader.read(row)
        except BadPatchError:
            continue
        if row.patch_id in v2:
            assert patch.labels is not None
            assert set(patch.labels) == set(v2[row.patch_id]), row.patch_id
            compared += 1
    assert compared == 18  # the 19th has a malformed JSON


def test_the_real_lists_give_the_published_counts(shared_data: Path) -> None:
    root = str(shared_data / "bigearthnet_v1")
    clean = BigEarthNetV1(root).scan()
    flagged = BigEarthNetV1(root, include_flagged=True).scan()
    assert clean.total + clean.excluded == flagged.total == 590_326
    assert clean.excluded == 61_707 + 9_280  # snow, cloud: no patch is on both lists
    reasons_of(clean)


def test_half_a_character_in_a_json_is_one_problem_of_one_patch(archive: SmallArchive) -> None:
    """JSON may spell "\\ud800", which no table can hold: one such file must not end the scan of all."""
    archive.v1(v1_name(1), s1=s1_name(1))
    archive.v1(v1_name(2), s1=s1_name(2))
    pair = archive.root / "BigEarthNet-S1-v1.0" / s1_name(2)
    (pair / f"{s1_name(2)}_labels_metadata.json").write_text('{"corresponding_s2_patch": "\\ud800"}')
    scan = BigEarthNetV1(str(archive.root)).scan()
    assert {row.patch_id: row.s1_name for row in rows_of(scan)} == {v1_name(1): s1_name(1), v1_name(2): None}
    shown = f"BigEarthNet-S1-v1.0/{s1_name(2)}/{s1_name(2)}_labels_metadata.json"
    assert reasons_of(scan) == {shown: "malformed_metadata"}
    assert strict_json(b'{"a": "\\ud83d\\ude00"}', "x") == {"a": "\N{GRINNING FACE}"}, "two halves are a whole"


def test_a_list_that_unpacks_to_gigabytes_is_not_unpacked(
    archive: SmallArchive, monkeypatch: pytest.MonkeyPatch
) -> None:
    archive.v1(v1_name(1))
    write_list(archive, "train", [v1_name(1)] * 100_000, packed=True)
    assert (archive.root / "train.csv.bz2").stat().st_size < 3000
    assert BigEarthNetV1(str(archive.root)).scan().inputs.num_rows == 1
    monkeypatch.setattr(bigearthnet_v1, "_LIST_BYTES", 100_000)
    tracemalloc.start()
    try:
        with pytest.raises(ArchiveError, match="more than 100000 bytes"):
            BigEarthNetV1(str(archive.root)).scan()
        assert tracemalloc.get_traced_memory()[1] < 2_000_000
    finally:
        tracemalloc.stop()


def test_a_list_that_is_a_link_out_of_the_archive_is_not_read(archive: SmallArchive) -> None:
    archive.v1(v1_name(1))
    theirs = archive.root.parent / "theirs.csv"
    theirs.write_text(v1_name(1))
    (archive.root / "train.csv").symlink_to(theirs)
    with pytest.raises(ArchiveError, match="leads out of the archive"):
        BigEarthNetV1(str(archive.root)).scan()
