import csv
import os
import pickle
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.archives.image_table import ImageTable
from infra.errors import ArchiveError
from tests.infra.archives.picture_files import as_stored, noise, with_pillow, write_picture
from tests.infra.archives.small_archive import reasons_of, rows_of


def write_pictures(root: Path, *paths: str) -> None:
    for i, path in enumerate(paths):
        write_picture(root / path, noise((6, 6, 3), seed=i))


def write_table(root: Path, *lines: str, name: str = "labels.csv", encoding: str = "utf-8") -> None:
    (root / name).write_text("\n".join(lines) + "\n", encoding=encoding)


def reasons_by_line(root: Path, **options: Any) -> dict[int, str]:
    """Return line: reason of the table's problems, and check that each has a detail."""
    scan = ImageTable(str(root), **options).scan()
    reasons_of(scan)
    rows = [row for row in scan.problems.to_pylist() if ", line " in row["path"]]
    assert all(row["detail"] for row in rows)
    return {int(row["path"].rpartition(" ")[2]): row["reason"] for row in rows}


def test_label_columns_and_splits(tmp_path: Path) -> None:
    write_pictures(tmp_path, "img/a.png", "img/b.png", "img/c.jpg", "img/d.png")
    write_table(tmp_path, "image,split,water,trees", "a,train,0,1", "b,VAL,1.0,true", "c,validation,0,0", "d,test,1,0")
    archive = ImageTable(str(tmp_path))
    scan = archive.scan()
    assert (reasons_of(scan), scan.total, scan.format.labels) == ({}, 4, ("water", "trees"))
    rows = rows_of(scan)
    assert [(row.patch_id, row.source, row.split, row.labels) for row in rows] == [
        ("a", "img/a.png", "train", ("trees",)),
        ("b", "img/b.png", "validation", ("water", "trees")),
        ("c", "img/c.jpg", "validation", ()),
        ("d", "img/d.png", "test", ("water",)),
    ]
    assert scan.inputs["labels"].to_pylist()[2] == []  # known to have none, which is not unknown
    patch = archive.read(rows[1])
    np.testing.assert_array_equal(patch.arrays["rgb"], as_stored(noise((6, 6, 3), seed=1)))
    assert (patch.labels, archive.read(rows[2]).labels) == (("water", "trees"), ())


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_one_column_of_labels(tmp_path: Path, encoding: str, newline: str) -> None:
    write_pictures(tmp_path, "a.png", "b.png", "c.png", "d.png")
    text = newline.join(["image,labels", "a.png,été;  sea |été", "b.png,", '"c.png","labels|sea"', "", "d.png, ; ", ""])
    (tmp_path / "labels.csv").write_bytes(text.encode(encoding))
    scan = ImageTable(str(tmp_path), validation_share=0).scan()
    assert (reasons_of(scan), scan.format.labels) == ({}, ("labels", "sea", "été"))
    assert [(row.patch_id, row.labels, row.split) for row in rows_of(scan)] == [
        ("a", ("sea", "été"), "all"),
        ("b", (), "all"),
        ("c", ("labels", "sea"), "all"),
        ("d", (), "all"),
    ]


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("x/a.png", "x/a.png"),
        ("x/a", "x/a.png"),
        ("a.jpg", "y/a.jpg"),
        ("b", None),
        ("b.c", "y/b.c.png"),
        ("b.c.png", "y/b.c.png"),
        ("d.png", "d.png"),  # a whole path means that file alone, though y has one of that name
        ("y/d.png", "y/d.png"),
        (" a.jpg ", "y/a.jpg"),
        ("a", None),
        ("d", None),
        ("A.JPG", None),
        ("y", None),
    ],
)
def test_ways_to_name_a_picture(tmp_path: Path, name: str, source: str | None) -> None:
    write_pictures(tmp_path, "x/a.png", "y/a.jpg", "y/b.c.png", "d.png", "y/d.png", "z.png")
    write_table(tmp_path, "file,forest", "z.png,1", f"{name},1")
    expected = ["z.png"] if source is None else ["z.png", source]
    assert ImageTable(str(tmp_path)).scan().inputs["source"].to_pylist() == expected


def test_a_name_that_may_mean_two_pictures_says_which(tmp_path: Path) -> None:
    write_pictures(tmp_path, "x/a.png", "y/a.png", "z.png")
    write_table(tmp_path, "image,forest", "z,1", "a,1")
    scan = ImageTable(str(tmp_path)).scan()
    assert reasons_of(scan) == {"labels.csv, line 3": "duplicate_id"}
    assert scan.problems["detail"].to_pylist() == ["it may be x/a.png or y/a.png"]


def test_bad_rows_are_problems_one_by_one(tmp_path: Path) -> None:
    write_pictures(tmp_path, *(f"{name}.png" for name in "abcdefgh"), "unnamed.png")
    write_table(
        tmp_path,
        "image,split,x,y",
        "a,train,0,1",
        "b,train,0",  # 3: cells
        "c,train,0,1,1",  # 4: cells
        "d,train,0,2",  # 5: a value
        "d,train,0,1",  # 6: named before
        "e,train,,1",  # 7: no value
        "f,training,0,1",  # 8: split
        ",train,0,1",  # 9: no name
        "../a,train,0,1",  # 10: leads out
        "/etc/passwd,train,0,1",  # 11: leads out
        "a.png,train,0,1",  # 12: the picture of another row, under the same id
        "gone.png,test,0,1",  # 13: no such picture
        "g,,0,1",  # 14: no split
        "h,test,1,0",
    )
    scan = ImageTable(str(tmp_path)).scan()
    assert scan.inputs["patch_id"].to_pylist() == ["a", "h"]
    assert scan.total == 2 + 12 + 1
    assert reasons_by_line(tmp_path) == {
        **dict.fromkeys([3, 4, 5, 7, 8, 9, 14], "malformed_metadata"),
        **dict.fromkeys([10, 11], "outside_archive"),
        **dict.fromkeys([6, 12], "duplicate_id"),
    }
    others = {row["path"]: row["reason"] for row in scan.problems.to_pylist() if "line" not in row["path"]}
    assert others == {"gone.png": "missing_file", "unnamed.png": "no_metadata"}
    details = dict(zip(scan.problems["path"].to_pylist(), scan.problems["detail"].to_pylist(), strict=True))
    assert details["labels.csv, line 3"] == "it has 3 cells, the header 4"
    assert "y is '2'" in details["labels.csv, line 5"]
    assert "'training'" in details["labels.csv, line 8"]
    assert "line 13" in details["gone.png"]


def test_one_picture_under_two_names_counts_once(tmp_path: Path) -> None:
    write_pictures(tmp_path, "x/a.png", "b.png")
    write_table(tmp_path, "image,forest", "a,1", "x/a.png,0", "b,1")
    scan = ImageTable(str(tmp_path)).scan()
    assert reasons_of(scan) == {"labels.csv, line 3": "duplicate_id"}
    assert scan.inputs["source"].to_pylist() == ["x/a.png", "b.png"]


def test_a_missing_picture_is_only_counted_in_a_subset(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    write_table(tmp_path, "image,forest", "a,1", "b.png,1", "sub/c,0", "d,5")
    scan = ImageTable(str(tmp_path)).scan()
    assert reasons_of(scan) == {
        "b.png": "missing_file",
        "sub/c": "missing_file",
        "labels.csv, line 5": "malformed_metadata",
    }
    scan = ImageTable(str(tmp_path), subset="present").scan()
    assert reasons_of(scan) == {"labels.csv, line 5": "malformed_metadata"}
    assert (scan.absent, scan.absent_ids.to_pylist(), scan.total) == (2, ["b", "sub/c"], 4)


def test_a_picture_that_cannot_be_used_is_a_problem_under_its_name(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png", "b.png")
    write_picture(tmp_path / "small.png", noise((5, 5, 3)))
    (tmp_path / "broken.png").write_bytes(b"")
    write_table(tmp_path, "image,forest", "a,1", "b,1", "small,1", "broken,1")
    scan = ImageTable(str(tmp_path)).scan()
    assert {row["patch_id"]: row["reason"] for row in scan.problems.to_pylist()} == {
        "small": "wrong_size",
        "broken": "truncated",
    }


def test_splits_are_drawn_where_the_table_has_none(tmp_path: Path) -> None:
    names = [f"{i:02d}" for i in range(40)]
    write_pictures(tmp_path, *(f"{name}.png" for name in names))
    write_table(tmp_path, "image,forest", *(f"{name},1" for name in names))
    archive = ImageTable(str(tmp_path), validation_share=0.5)
    before = {row.patch_id: row.split for row in rows_of(archive.scan())}
    write_table(tmp_path, "image,forest", *(f"{name},1" for name in reversed(names[:30])))
    after = {row.patch_id: row.split for row in rows_of(archive.scan())}
    assert set(before.values()) == {"train", "validation"}
    assert after == {name: before[name] for name in names[:30]}


def test_the_table_may_lie_elsewhere_and_is_no_problem_itself(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    (tmp_path / "meta").mkdir()
    write_table(tmp_path / "meta", "image,forest", "a,1", name="all.csv")
    for path in ("meta/all.csv", "./meta/all.csv", "meta/../meta/all.csv"):
        scan = ImageTable(str(tmp_path), path).scan()
        assert (reasons_of(scan), scan.total) == ({}, 1)


def test_the_column_of_pictures_is_image_or_the_first_that_is_no_split(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    for header, row in (("forest,image", "1,a"), ("split,file,forest", "test,a,1"), ("file,forest", "a,1")):
        write_table(tmp_path, header, row)
        scan = ImageTable(str(tmp_path)).scan()
        assert (scan.format.labels, scan.inputs["patch_id"].to_pylist()) == (("forest",), ["a"])


def test_lines_are_those_of_the_file(tmp_path: Path) -> None:
    """A cell may hold a line break, and blank lines are none."""
    write_pictures(tmp_path, "a.png")
    write_table(tmp_path, 'image,"for', 'est"', "", "a,1", "b,7")
    assert reasons_by_line(tmp_path) == {5: "malformed_metadata"}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "has no rows"),
        (b"image,forest\n", "has no rows"),
        (b"image\na\n", "no column of labels"),
        (b"image,split\na,train\n", "no column of labels"),
        (b"image;forest\na;1\n", "commas part its cells"),
        (b"split,labels\ntrain,forest\n", "no column that names the picture"),
        (b"image,forest,forest\na,1,1\n", "each once"),
        (b"image,forest,\na,1,1\n", "needs column names"),
        (b"image,labels\na,\n", "names no label"),
        (b"image,for\xeat\na,1\n", "UTF-8"),
        ("image,forest\na,1\n".encode("utf-16"), "UTF-8"),
        (b'image,forest\na,1\nb,"1"x\n', "line 3, cannot be read as CSV"),
        (b'image,forest\na,"1\n', "cannot be read as CSV"),
        (b"image,forest\nb,1\n", "no picture that can be read"),
        (b"image,forest\na,yes\n", "neither 0 nor 1"),
    ],
)
def test_a_table_that_is_unusable_as_a_whole_is_one_error(tmp_path: Path, content: bytes, message: str) -> None:
    write_pictures(tmp_path, "a.png")
    (tmp_path / "labels.csv").write_bytes(content)
    with pytest.raises(ArchiveError, match=message) as caught:
        ImageTable(str(tmp_path)).scan()
    assert "\n" not in str(caught.value)


def test_no_stray_file_hides_why_no_row_can_be_used(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    write_table(tmp_path, "image,split,forest", "a,dev,1")
    (tmp_path / "README.txt").write_text("about these pictures")
    with pytest.raises(ArchiveError, match=r"labels\.csv, line 2: its split is 'dev', none of"):
        ImageTable(str(tmp_path)).scan()


def test_a_table_that_is_no_file_is_an_error_too(tmp_path: Path) -> None:
    write_pictures(tmp_path, "a.png")
    with pytest.raises(ArchiveError, match=r"no table of labels .*none\.csv: set archive\.label_table"):
        ImageTable(str(tmp_path), "none.csv").scan()
    (tmp_path / "folder").mkdir()
    with pytest.raises(ArchiveError, match="cannot be read"):
        ImageTable(str(tmp_path), "folder").scan()
    os.mkfifo(tmp_path / "pipe.csv")
    with pytest.raises(ArchiveError, match="not a regular file"):
        ImageTable(str(tmp_path), "pipe.csv").scan()


def test_a_reader_pickles(tmp_path: Path) -> None:
    archive = ImageTable(str(tmp_path), "x.csv", 3, 0.1, 7, "present")
    assert pickle.loads(pickle.dumps(archive)) == archive


def test_all_of_uc_merced_ends_somewhere(shared_data: Path) -> None:
    root = shared_data / "ucmerced_multilabel"
    with (root / "labels.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    labels = list(table[0])[2:]
    archive = ImageTable(str(root))
    scan = archive.scan()
    rows = rows_of(scan)
    assert (scan.total, len(rows), scan.format.size, scan.absent) == (1260, 1233, 256, 0)
    assert Counter(reasons_of(scan).values()) == {"wrong_size": 27}

    resized = ImageTable(str(root), image_size=256).scan()
    assert (reasons_of(resized), resized.total, resized.inputs.num_rows) == ({}, 1260, 1260)
    assert resized.format.labels == tuple(labels)
    counts = Counter(name for row in rows_of(resized) for name in row.labels or ())
    assert counts == {name: sum(int(row[name]) for row in table) for name in labels}
    splits = Counter(row.split for row in rows_of(resized))
    assert splits == {"train": 840, "validation": 420}
    by_id = {row["image"]: row for row in table}
    for row in rows[::50]:
        assert row.labels == tuple(name for name in labels if by_id[row.patch_id][name] == "1")
        np.testing.assert_array_equal(archive.read(row).arrays["rgb"], with_pillow(root / row.source))


def test_a_table_that_is_a_link_out_of_the_archive_is_not_read(tmp_path: Path) -> None:
    root = tmp_path / "archive"
    write_pictures(root, "a.png", "b.png")
    write_table(tmp_path, "image,water", "a,1", "b,0")
    (root / "labels.csv").symlink_to(tmp_path / "labels.csv")
    with pytest.raises(ArchiveError, match="leads out of the archive"):
        ImageTable(str(root)).scan()
    for named in (str(tmp_path / "labels.csv"), "../labels.csv"):  # who writes RUN.yaml may name any table
        assert ImageTable(str(root), label_table=named).scan().inputs.num_rows == 2
