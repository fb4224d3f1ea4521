import hashlib
import os
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from scipy.stats import binom

from infra.archives.images import Labelled, Problems, drawn_split, find_pictures, take_stock_of_pictures
from infra.archives.model import Scan
from infra.errors import ArchiveError
from tests.infra.archives.picture_files import noise, write_picture
from tests.infra.archives.small_archive import reasons_of, rows_of


def find(root: Path) -> tuple[list[str], dict[str, str]]:
    problems = Problems()
    return find_pictures(str(root), problems), {str(row["path"]): str(row["reason"]) for row in problems.rows}


def stock(root: Path, **options: Any) -> Scan:
    """Take stock of all pictures of a folder under their paths."""
    problems = Problems()
    inputs = [Labelled(path, path, ("a",), None) for path in find_pictures(str(root), problems)]
    settings: dict[str, Any] = {"image_size": None, "validation_share": 0.0, "split_seed": 0, **options}
    return take_stock_of_pictures(str(root), inputs, ("a",), problems, **settings)


def write_all(root: Path, **edges: tuple[int, int]) -> None:
    for name, shape in edges.items():
        write_picture(root / f"{name}.png", noise((*shape, 3)))


def test_pictures_are_found_by_their_endings_at_any_depth(tmp_path: Path) -> None:
    names = ["a.png", "b.JPG", "c/d.jpeg", "c/e/f.webp", "c/e/g.tif", "c/h.TIFF", "c.d/i.png"]
    for name in [*names, "notes.txt", "c/no_ending", ".hidden.png", "c/.cache/x.png", "c/e/.g.tif.swp"]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found, problems = find(tmp_path)
    assert found == sorted(names)
    assert problems == {"notes.txt": "not_an_image", "c/no_ending": "not_an_image"}


def test_the_order_of_the_directory_does_not_matter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for i in range(5):
        write_picture(tmp_path / f"c{i % 2}" / f"{i}.png", noise((4, 4 + i // 4, 3)))
        (tmp_path / f"{i}.txt").touch()
    before = stock(tmp_path)
    scandir = os.scandir

    class Backwards:
        def __init__(self, path: str) -> None:
            with scandir(path) as entries:
                self._entries = sorted(entries, key=lambda entry: entry.name, reverse=True)

        def __enter__(self) -> Any:
            return iter(self._entries)

        def __exit__(self, *_: object) -> None: ...

    monkeypatch.setattr(os, "scandir", Backwards)
    after = stock(tmp_path)
    assert (after.inputs, after.problems) == (before.inputs, before.problems)
    assert (before.inputs.num_rows, before.problems.num_rows) == (4, 6)


def test_links_must_end_within_the_archive(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    write_picture(root / "a" / "own.png", noise((4, 4, 3)))
    write_picture(outside / "deep" / "x.png", noise((4, 4, 3)))
    (root / "other_disk").symlink_to(outside)  # laid out by the owner
    (root / "a" / "inside.png").symlink_to(root / "a" / "own.png")
    (root / "a" / "out.png").symlink_to(tmp_path / "outside" / "deep" / "x.png")
    (root / "a" / "out").symlink_to(outside)
    (root / "a" / "dangling.png").symlink_to(root / "nothing.png")
    (root / "out.png").symlink_to(outside / "deep" / "x.png")
    (root / "again").symlink_to(root / "a")
    (root / "up").symlink_to("/")
    (root / "self").symlink_to(root)
    (root / "a" / "round.png").symlink_to("round.png")
    (root / "a" / "back").symlink_to("..")
    found, problems = find(root)
    assert found == ["a/inside.png", "a/own.png", "other_disk/deep/x.png"]
    assert problems == {
        "a/out.png": "outside_archive",
        "a/out": "outside_archive",
        "a/dangling.png": "unreadable",
        "out.png": "outside_archive",
        "again": "duplicate_id",
        "up": "duplicate_id",
        "self": "duplicate_id",
        "a/round.png": "unreadable",
        "a/back": "duplicate_id",
    }


def test_what_is_no_regular_file_or_has_no_name_is_a_problem(tmp_path: Path) -> None:
    write_picture(tmp_path / "a.png", noise((4, 4, 3)))
    os.mkfifo(tmp_path / "pipe.png")
    for name in (b"pic\xe9.png", b"pic\xe9/b.png", b"pic\xe9/note"):
        path = tmp_path / os.fsdecode(name)
        path.parent.mkdir(exist_ok=True)
        path.touch()
    scan = stock(tmp_path)
    assert reasons_of(scan) == {
        "pipe.png": "unreadable",
        "pic\\xe9.png": "unreadable",
        "pic\\xe9/b.png": "unreadable",
        "pic\\xe9/note": "not_an_image",
    }
    assert scan.inputs["source"].to_pylist() == ["a.png"]


def test_a_folder_that_cannot_be_listed_is_a_problem_and_the_root_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Permissions do not stop root, who may run the tests."""
    write_picture(tmp_path / "good" / "a.png", noise((4, 4, 3)))
    (tmp_path / os.fsdecode(b"pic\xe9")).mkdir()
    (tmp_path / "shut").mkdir()
    scandir, shut = os.scandir, ["shut", "pic"]

    def refuse(path: str) -> Any:
        if any(word in path.rpartition("/")[2] for word in shut):
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    scan = stock(tmp_path)
    assert reasons_of(scan) == {"shut": "unreadable", "pic\\xe9": "unreadable"}
    assert scan.inputs.num_rows == 1
    shut.append("")
    with pytest.raises(ArchiveError, match="cannot be listed: Permission denied"):
        stock(tmp_path)


def test_the_commonest_size_is_that_of_the_patches(tmp_path: Path) -> None:
    write_all(tmp_path, a=(6, 6), b=(8, 8), c=(6, 6), d=(6, 7), e=(7, 6))
    scan = stock(tmp_path)
    assert reasons_of(scan) == dict.fromkeys(["b.png", "d.png", "e.png"], "wrong_size")
    (group,) = scan.format.groups
    assert (group.array, group.bands, group.gsd, group.size, group.dtype) == ("rgb", ("R", "G", "B"), None, 6, "uint16")
    assert (scan.format.labels, scan.format.has_maps, scan.excluded) == (("a",), False, 0)
    scan = stock(tmp_path, image_size=5)
    assert (reasons_of(scan), scan.inputs.num_rows, scan.format.size) == ({}, 5, 5)


def test_of_sizes_as_common_the_largest_counts(tmp_path: Path) -> None:
    write_all(tmp_path, a=(6, 6), b=(8, 8))
    assert stock(tmp_path).format.size == 8


def test_pictures_that_are_not_square_have_to_be_resized(tmp_path: Path) -> None:
    write_all(tmp_path, a=(6, 9), b=(6, 9), c=(6, 6))
    with pytest.raises(ArchiveError, match=r"9 x 6.*archive\.image_size"):
        stock(tmp_path)
    assert stock(tmp_path, image_size=6).inputs.num_rows == 3


def test_the_orientation_decides_which_size_a_picture_has(tmp_path: Path) -> None:
    """A picture of 9 x 6 on its side is 6 x 9: three of those are the commonest."""
    side = Image.Exif()
    side[0x0112] = 6
    write_all(tmp_path, a=(6, 9), b=(6, 9))
    for name in "cde":
        write_picture(tmp_path / f"{name}.png", noise((6, 9, 3)), exif=side)
    with pytest.raises(ArchiveError, match="are 6 x 9,"):
        stock(tmp_path)


def test_the_commonest_depth_is_that_of_the_patches(tmp_path: Path) -> None:
    write_all(tmp_path, a=(6, 6))
    for name in ("b.tif", "c.tif"):
        write_picture(tmp_path / name, noise((6, 6, 3), np.uint16))
    assert reasons_of(stock(tmp_path)) == {"a.png": "wrong_type"}
    write_all(tmp_path, d=(6, 6), e=(6, 6))
    assert reasons_of(stock(tmp_path)) == {"b.tif": "wrong_type", "c.tif": "wrong_type"}


def test_an_archive_without_a_picture_names_the_first_problem(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="no picture that can be read: there is none"):
        stock(tmp_path)
    (tmp_path / "a.png").write_bytes(b"")
    with pytest.raises(ArchiveError, match=r"no picture that can be read: a\.png: it is empty"):
        stock(tmp_path)


def test_absent_pictures_are_counted_only(tmp_path: Path) -> None:
    write_all(tmp_path, a=(6, 6))
    (tmp_path / "b.png").write_bytes(b"")
    scan = stock(tmp_path, absent=["x", "y"])
    assert (len(rows_of(scan)), reasons_of(scan), scan.absent, scan.total) == (1, {"b.png": "truncated"}, 2, 4)
    assert scan.absent_ids.to_pylist() == ["x", "y"]


@given(share=st.floats(0.01, 0.99), seed=st.integers(0, 1000))
def test_the_share_that_validates_is_the_one_asked_for(share: float, seed: int) -> None:
    """The draws are independent: their number is binomial; 1 - 1e-12 of it lies within these bounds."""
    n = 2000
    count = sum(drawn_split(f"class/{i}", share, seed) == "validation" for i in range(n))
    assert binom.ppf(1e-12, n, share) <= count <= binom.isf(1e-12, n, share)


def test_a_split_is_drawn_by_name_and_seed_alone() -> None:
    """Whoever lies below the share in the order of the digests validates."""
    place = int(hashlib.sha256(b"0:a/b").hexdigest()[:16], 16) / 16**16
    assert drawn_split("a/b", place + 1e-9, 0) == "validation"
    assert drawn_split("a/b", place - 1e-9, 0) == "train"
    names = [f"a/{i}" for i in range(64)]
    by_seed = [[drawn_split(name, 0.5, seed) for name in names] for seed in (0, 0, 1)]
    assert by_seed[0] == by_seed[1] != by_seed[2]
    assert {drawn_split(name, 0, 0) for name in names} == {"all"}
    assert {drawn_split(name, 1, 0) for name in names} == {"validation"}


@given(st.text(min_size=1), st.floats(0.01, 0.5), st.floats(0.01, 0.5))
def test_a_larger_share_keeps_those_that_validated(name: str, share: float, more: float) -> None:
    if drawn_split(name, share, 3) == "validation":
        assert drawn_split(name, share + more, 3) == "validation"


@pytest.mark.parametrize("odd", ["\x1b[2J", "\n", "\x9b2J", "\u202e"])
def test_names_that_steer_a_terminal_or_hide_are_a_problem(tmp_path: Path, odd: str) -> None:
    write_picture(tmp_path / "a" / "own.png", noise((4, 4, 3)))
    write_picture(tmp_path / "a" / f"x{odd}.png", noise((4, 4, 3)))
    write_picture(tmp_path / f"b{odd}" / "x.png", noise((4, 4, 3)))
    found, problems = find(tmp_path)
    assert found == ["a/own.png"]
    assert problems == {f"a/x{odd}.png": "unreadable", f"b{odd}/x.png": "unreadable"}


def test_names_with_other_spaces_and_joiners_are_names(tmp_path: Path) -> None:
    """As macOS names its screenshots, Japanese writes spaces, Persian some of its words, and emoji their families."""
    names = ["9.41.05\u202fPM", "a\u00a0b", "a\u3000b", "\u0645\u06cc\u200c\u062e", "\U0001f468\u200d\U0001f469"]
    for name in names:
        write_picture(tmp_path / "a" / f"{name}.png", noise((4, 4, 3)))
    assert find(tmp_path) == (sorted(f"a/{name}.png" for name in names), {})
