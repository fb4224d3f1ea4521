import pickle
from pathlib import Path

import numpy as np
import pytest

from infra.archives.image_folder import ImageFolder
from infra.errors import ArchiveError
from tests.infra.archives.picture_files import as_stored, noise, with_pillow, write_picture
from tests.infra.archives.small_archive import reasons_of, rows_of


def write_classes(root: Path, classes: str = "abc", each: int = 3) -> None:
    for i, name in enumerate(classes):
        for j in range(each):
            write_picture(root / name / f"{j}.png", noise((6, 6, 3), seed=each * i + j))


def test_the_folder_is_the_label_and_part_of_the_name(tmp_path: Path) -> None:
    write_classes(tmp_path, "bca")
    archive = ImageFolder(str(tmp_path), validation_share=0)
    scan = archive.scan()
    assert (reasons_of(scan), scan.total, scan.absent) == ({}, 9, 0)
    assert scan.format.labels == ("a", "b", "c")
    rows = rows_of(scan)
    assert [(row.patch_id, row.labels, row.split) for row in rows] == [
        (f"{name}/{j}", (name,), "all") for name in "abc" for j in range(3)
    ]
    for row in rows:
        patch = archive.read(row)
        seed = 3 * "bca".index(row.patch_id[0]) + int(row.patch_id[-1])
        np.testing.assert_array_equal(patch.arrays["rgb"], as_stored(noise((6, 6, 3), seed=seed)))
        assert (patch.labels, patch.epsg, patch.bounds, patch.reference_map) == (row.labels, None, None, None)
        assert (patch.acquired, patch.tile, patch.nodata_share) == (None, None, 0)


def test_pictures_are_read_in_the_size_that_is_asked_for(tmp_path: Path) -> None:
    write_picture(tmp_path / "a" / "x.png", np.full((9, 5, 3), (1, 2, 3), np.uint8))
    archive = ImageFolder(str(tmp_path), image_size=4)
    (row,) = rows_of(archive.scan())
    np.testing.assert_array_equal(archive.read(row).arrays["rgb"], np.broadcast_to([[[1]], [[2]], [[3]]], (3, 4, 4)))


def test_every_file_ends_in_one_place(tmp_path: Path) -> None:
    write_classes(tmp_path, "ab", each=2)
    pixels = noise((6, 6, 3))
    write_picture(tmp_path / "a" / "0.jpg", pixels)
    write_picture(tmp_path / "a" / "sub" / "deep.png", pixels)
    write_picture(tmp_path / "loose.png", pixels)
    write_picture(tmp_path / "b" / "small.png", noise((5, 5, 3)))
    write_picture(tmp_path / "b" / ".hidden.png", pixels)
    (tmp_path / "b" / "broken.png").write_bytes(b"")
    (tmp_path / "b" / "Thumbs.db").touch()
    scan = ImageFolder(str(tmp_path)).scan()
    assert reasons_of(scan) == {
        "a/0.png": "duplicate_id",  # of one name, the first in the order of the file names counts
        "a/sub/deep.png": "no_label",
        "loose.png": "no_label",
        "b/small.png": "wrong_size",
        "b/broken.png": "truncated",
        "b/Thumbs.db": "not_an_image",
    }
    assert scan.inputs["source"].to_pylist() == ["a/0.jpg", "a/1.png", "b/0.png", "b/1.png"]
    assert scan.total == 10
    details = {row["path"]: row["detail"] for row in scan.problems.to_pylist()}
    assert ("deeper" in details["a/sub/deep.png"], "no class folder" in details["loose.png"]) == (True, True)
    assert "a/0.jpg" in details["a/0.png"]


def test_the_label_of_a_class_whose_pictures_are_all_broken_stays(tmp_path: Path) -> None:
    """The order of labels must not change with what can be read today."""
    write_classes(tmp_path, "b")
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "x.png").write_bytes(b"")
    assert ImageFolder(str(tmp_path)).scan().format.labels == ("a", "b")


def test_splits_stay_when_the_archive_grows(tmp_path: Path) -> None:
    write_classes(tmp_path, "ab", each=20)
    archive = ImageFolder(str(tmp_path), validation_share=0.4, split_seed=5)
    before = {row.patch_id: row.split for row in rows_of(archive.scan())}
    write_classes(tmp_path, "abc", each=30)
    after = {row.patch_id: row.split for row in rows_of(archive.scan())}
    assert set(before.values()) == {"train", "validation"}
    assert {name: after[name] for name in before} == before
    assert len(after) == 90


def test_a_reader_pickles_and_an_empty_archive_says_what_it_lacks(tmp_path: Path) -> None:
    archive = ImageFolder(str(tmp_path), image_size=3)
    assert pickle.loads(pickle.dumps(archive)) == archive
    with pytest.raises(ArchiveError, match=r"<root>/<class>/<picture>"):
        archive.scan()
    write_picture(tmp_path / "loose.png", noise((4, 4, 3)))
    with pytest.raises(ArchiveError, match=r"<root>/<class>/<picture>"):
        archive.scan()
    with pytest.raises(ArchiveError, match="cannot be listed"):
        ImageFolder(str(tmp_path / "none")).scan()


def test_eurosat_has_forty_pictures_of_each_of_ten_classes(shared_data: Path) -> None:
    root = shared_data / "eurosat_rgb"
    archive = ImageFolder(str(root))
    scan = archive.scan()
    rows = rows_of(scan)
    folders = sorted(path.name for path in root.iterdir() if path.is_dir())
    assert (reasons_of(scan), scan.total, len(folders), scan.format.size) == ({}, 400, 10, 64)
    assert scan.format.labels == tuple(folders)
    assert [sum(row.labels == (name,) for row in rows) for name in folders] == [40] * 10
    assert {row.source for row in rows} == {str(path.relative_to(root)) for path in root.glob("*/*.jpg")}
    assert 0.12 < sum(row.split == "validation" for row in rows) / 400 < 0.28  # 0.2, four standard deviations
    for row in rows[::20]:
        np.testing.assert_array_equal(archive.read(row).arrays["rgb"], with_pillow(root / row.source))
