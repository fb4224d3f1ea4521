"""Archives in trouble: not there, of another spelling, a level too high or too low, unreadable, half downloaded."""

from collections.abc import Callable
from pathlib import Path

import pytest

from flows.doctor import archive
from flows.doctor.case import Case, Finding
from infra.object_store import ObjectPath
from infra.storage import write_text


def told(finding: Finding | None) -> tuple[str, str]:
    assert finding is not None
    return finding.state, finding.found


def touched(root: Path, *names: str) -> Path:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"x")
    return root


def bigearthnet_v2(root: Path) -> Path:
    return touched(root, "metadata.parquet", "BigEarthNet-S2/S2A_x/S2A_x_00_00/S2A_x_00_00_B02.tif")


def bigearthnet_v1(root: Path) -> Path:
    return touched(root, "BigEarthNet-v1.0/S2A_x_0_0/S2A_x_0_0_B02.tif")


def scenes(root: Path) -> Path:
    return touched(root, "T33UUP/T33UUP_B02_10m.jp2", "T33UUP/T33UUP_B03_10m.jp2")


def classes(root: Path) -> Path:
    return touched(root, "Forest/1.jpg", "River/1.jpg")


def table(root: Path) -> Path:
    return touched(root, "labels.csv", "images/1.png")


LAYOUTS = {
    "bigearthnet-v2": bigearthnet_v2,
    "bigearthnet-v1": bigearthnet_v1,
    "scene": scenes,
    "image-folder": classes,
    "image-table": table,
}


def test_a_table_of_labels_is_looked_for_where_it_is_named(tmp_path: Path) -> None:
    root = touched(tmp_path, *(f"{i}.png" for i in range(400)), "labels.csv", "meta/mine.txt")
    for name, state in (("labels.csv", "ok"), ("meta/mine.txt", "ok"), ("mine.csv", "fail")):
        assert told(archive.level(Case(archive=root, layout="image-table", label_table=name)))[0] == state


def test_an_archive_that_is_not_there(tmp_path: Path) -> None:
    bigearthnet_v2(tmp_path / "data" / "BigEarthNet")
    assert told(archive.root(Case(archive=tmp_path / "data" / "BigEarthNet")))[0] == "ok"
    state, found = told(archive.root(Case(archive=tmp_path / "data" / "BigEarthNets")))
    assert (state, f"did you mean {tmp_path / 'data' / 'BigEarthNet'}?" in found) == ("fail", True)
    state, found = told(archive.root(Case(archive=tmp_path / "dato" / "BigEarthNet")))
    assert (state, f"did you mean {tmp_path / 'data'}?" in found) == ("fail", True)
    state, found = told(archive.root(Case(archive=tmp_path / "elsewhere")))
    assert (state, found) == ("fail", f"there is no {tmp_path / 'elsewhere'}; {tmp_path} has no elsewhere")


def test_what_is_no_folder(tmp_path: Path) -> None:
    touched(tmp_path, "archive.zip", "BigEarthNet-S2.tar.zst")
    assert told(archive.root(Case(archive=tmp_path / "BigEarthNet-S2.tar.zst")))[0] == "ok"
    state, found = told(archive.root(Case(archive=tmp_path / "archive.zip")))
    assert (state, found.endswith("is a file, and no tar archive")) == ("fail", True)
    (tmp_path / "link").symlink_to("/mnt/gone")
    state, found = told(archive.root(Case(archive=tmp_path / "link")))
    assert (state, found) == ("fail", f"{tmp_path / 'link'} is a link to /mnt/gone, which is not there")


def test_an_archive_in_a_bucket(s3_folder: ObjectPath) -> None:
    state, found = told(archive.root(Case(archive=s3_folder)))
    assert (state, found) == ("fail", f"nothing is at {s3_folder}")
    write_text(s3_folder / "metadata.parquet", "x")
    assert told(archive.root(Case(archive=s3_folder)))[0] == "ok"


def test_large_and_small_letters(tmp_path: Path) -> None:
    root = bigearthnet_v2(tmp_path / "Data" / "BigEarthNet")
    weights = touched(tmp_path, "Weights/W.pth") / "Weights" / "W.pth"
    case = Case(archive=tmp_path / "data" / "bigearthnet", weights={"hat": str(tmp_path / "weights" / "w.pth")})
    state, found = told(archive.spelling(case))
    assert state == "fail"
    assert f"archive.root: {case.archive} is {root}" in found
    assert f"weights.hat: {tmp_path / 'weights' / 'w.pth'} is {weights}" in found
    assert f": it is spelled {root}" in told(archive.root(case))[1]
    assert told(archive.spelling(Case(archive=root, weights={"hat": str(weights)})))[0] == "ok"
    assert archive.spelling(Case()) is None


@pytest.mark.parametrize(
    ("layout", "make", "wrong", "right"),
    [
        ("bigearthnet-v2", bigearthnet_v2, "bigearthnet-s2", "BigEarthNet-S2"),
        ("bigearthnet-v2", bigearthnet_v2, "Metadata.parquet", "metadata.parquet"),
        ("bigearthnet-v1", bigearthnet_v1, "bigearthnet-V1.0", "BigEarthNet-v1.0"),
    ],
)
def test_letters_within_an_archive(
    tmp_path: Path, layout: str, make: Callable[[Path], Path], wrong: str, right: str
) -> None:
    root = make(tmp_path / "archive")
    assert told(archive.spelling(Case(archive=root, layout=layout)))[0] == "ok"
    (root / right).rename(root / wrong)
    state, found = told(archive.spelling(Case(archive=root, layout=layout)))
    assert (state, found) == ("fail", f"{root / wrong} is to be {right}")


@pytest.mark.parametrize("layout", LAYOUTS)
def test_every_level_above_and_below_an_archive(tmp_path: Path, layout: str) -> None:
    assert set(LAYOUTS) == set(archive.ROOTS)
    root = LAYOUTS[layout](tmp_path / "disk" / "downloads" / "archive")
    assert told(archive.level(Case(archive=root, layout=layout)))[0] == "ok"
    state, found = told(archive.level(Case(archive=root.parent.parent, layout=layout)))
    assert (state, f"{root} is, which" in found) == ("fail", True), found
    inner = next(path for path in root.iterdir() if path.is_dir())
    if layout != "scene":  # where a folder within is a scene by itself
        state, found = told(archive.level(Case(archive=inner, layout=layout)))
        assert (state, f"{root} is, which" in found) == ("fail", True), found


def test_a_folder_that_is_no_archive(tmp_path: Path) -> None:
    touched(tmp_path / "one" / "two" / "three", "notes.txt")
    state, found = told(archive.level(Case(archive=tmp_path / "one" / "two" / "three", layout="bigearthnet-v2")))
    assert (state, "its root holds metadata.parquet and BigEarthNet-S2" in found) == ("fail", True)


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    root = classes(tmp_path / "archive")
    assert told(archive.readable(Case(archive=root))) == ("ok", "2 files were opened")
    (root / "River" / "2.jpg").symlink_to("/mnt/gone/2.jpg")
    state, found = told(archive.readable(Case(archive=root)))
    assert state == "fail"
    assert found == f"1 of 3 looked at cannot be read, such as {root / 'River' / '2.jpg'}: No such file or directory"


def test_files_that_this_user_may_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The administrator may read everything, so the refusal is made here."""
    root, opened = classes(tmp_path / "archive"), Path.open

    def refuse(path: Path, *arguments: object) -> object:
        if path.name == "1.jpg" and path.parent.name == "Forest":
            raise PermissionError(13, "Permission denied")
        return opened(path, *arguments)  # type: ignore[call-overload]  # passed on

    monkeypatch.setattr(Path, "open", refuse)
    state, found = told(archive.readable(Case(archive=root)))
    assert (state, found.endswith("1.jpg: Permission denied")) == ("fail", True)


def test_an_empty_archive(tmp_path: Path) -> None:
    assert told(archive.readable(Case(archive=tmp_path)))[0] == "warn"
    assert archive.readable(Case(archive=tmp_path / "none")) is None


@pytest.mark.parametrize("name", ["BigEarthNet-S1.tar.zst.part", "BigEarthNet-S1.tar.zst.aria2", "a.crdownload"])
def test_an_unfinished_download(tmp_path: Path, name: str) -> None:
    touched(tmp_path, "BigEarthNet-S2.tar.zst", name)
    for place in (tmp_path, tmp_path / "BigEarthNet-S2.tar.zst"):
        state, found = told(archive.unfinished(Case(archive=place)))
        assert (state, name in found) == ("warn", True)


def test_an_empty_download(tmp_path: Path) -> None:
    touched(tmp_path, "BigEarthNet-S2.tar.zst")
    assert told(archive.unfinished(Case(archive=tmp_path)))[0] == "ok"
    (tmp_path / "BigEarthNet-S1.tar.zst").touch()
    state, found = told(archive.unfinished(Case(archive=tmp_path)))
    assert (state, "BigEarthNet-S1.tar.zst (empty)" in found) == ("warn", True)
