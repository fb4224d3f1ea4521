from pathlib import Path

import pytest

from infra.archives.bigearthnet_v2 import MODALITIES
from infra.archives.layouts import open_archive
from infra.archives.streamed import StreamedArchive, find_tars
from infra.errors import ArchiveError
from tests.infra.archives.small_archive import SmallArchive, patch_id, reasons_of, rows_of
from tests.infra.archives.tar_files import member, pack, write_members


def small(tmp_path: Path) -> Path:
    archive = SmallArchive(tmp_path / "archive")
    archive.v2(patch_id(0, 0))
    archive.v2(patch_id(9, 9))  # which no metadata names
    archive.metadata([{"patch_id": patch_id(0, i)} for i in range(2)])
    return pack(archive.root, tmp_path / "packed")


def opened(root: Path, kept: Path | None) -> StreamedArchive:
    archive = open_archive("bigearthnet-v2", root, kept=kept)
    assert isinstance(archive, StreamedArchive)
    return archive


def test_a_scan_trusts_the_metadata_until_a_pass_was_made(tmp_path: Path) -> None:
    root = small(tmp_path)
    archive = opened(root, tmp_path / "kept")
    before = archive.scan()
    assert ([row.patch_id for row in rows_of(before)], reasons_of(before)) == ([patch_id(0, 0), patch_id(0, 1)], {})
    after = archive.scan_through()
    assert [row.patch_id for row in rows_of(after)] == [patch_id(0, 0)]
    assert sorted(reasons_of(after).values()) == ["missing_folder", "no_metadata"]
    assert archive.scan().inputs.equals(after.inputs)
    assert opened(root, None).scan().inputs.equals(before.inputs)


def test_an_archive_is_new_until_a_run_begins_and_when_any_of_it_is_replaced(tmp_path: Path) -> None:
    root = small(tmp_path)
    archive = opened(root, tmp_path / "kept")
    assert archive.is_new()
    archive.begin()
    assert not opened(root, tmp_path / "kept").is_new()
    assert opened(root, tmp_path / "other").is_new()
    write_members(root.with_name("Reference_Maps.tar"), [member("Reference_Maps/a/b/b_reference_map.tif")])
    assert archive.is_new()


def test_archives_beside_are_found_by_their_names(tmp_path: Path) -> None:
    names = ["any.tgz", "BigEarthNet-S1.tar.zst", "BigEarthNet-S1.tar.gz", "BigEarthNet-S2.tar", "Reference_Maps.zip"]
    for name in names:
        (tmp_path / name).touch()
    assert find_tars(tmp_path / "any.tgz", MODALITIES) == {
        "BigEarthNet-S1": str(tmp_path / "BigEarthNet-S1.tar.zst"),
        "BigEarthNet-S2": str(tmp_path / "any.tgz"),
    }
    (tmp_path / "Reference_Maps.tar").touch()
    assert find_tars(tmp_path / "any.tgz", MODALITIES)["Reference_Maps"] == str(tmp_path / "Reference_Maps.tar")


def test_single_patches_are_not_read(tmp_path: Path) -> None:
    archive = opened(small(tmp_path), None)
    (first, _) = rows_of(archive.scan())
    with pytest.raises(ArchiveError, match="of which only whole shards can be read"):
        archive.read(first)
