"""Archives of folders on object storage; the oracle is the same archive on disk."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from infra.archives.layouts import ArchiveOptions, open_archive
from infra.archives.model import Archive, PatchInput
from infra.archives.remote import RemoteFolder, RemoteInventory
from infra.archives.tar_reader import MEMBER_BYTES
from infra.errors import ArchiveError, BadPatchError, StoreError, TransientError
from infra.object_store import ObjectPath
from infra.storage import write_bytes
from tests.infra.archives.small_archive import SmallArchive, patch_id, reasons_of, rows_of
from tests.infra.s3_server import Fault, S3Server

V1_NAMES = [f"S2A_MSIL2A_20170613T101031_{row}_0" for row in range(4)]


def small_v2(root: Path) -> Path:
    archive = SmallArchive(root)
    for i in range(3):
        archive.v2(patch_id(0, i))
    archive.v2(patch_id(9, 9))  # which no metadata names
    archive.metadata([{"patch_id": patch_id(0, i)} for i in range(4)])  # the last has no folder
    next(root.rglob(f"{patch_id(0, 1)}_B03.tif")).unlink()
    next(root.rglob(f"{patch_id(0, 2)}_reference_map.tif")).unlink()
    return root


def small_v1(root: Path) -> Path:
    archive = SmallArchive(root)
    whole = {"labels": ["Water bodies"], "acquisition_date": "2017-06-13 10:10:31"}
    for i, name in enumerate(V1_NAMES):
        archive.v1(name, whole, s1=f"S1A_{i}_0" if i < 2 else None)
    (root / "BigEarthNet-v1.0" / V1_NAMES[3] / f"{V1_NAMES[3]}_labels_metadata.json").write_text("{} {}")
    (root / "BigEarthNet-S1-v1.0" / "S1A_1_0" / "S1A_1_0_labels_metadata.json").unlink()
    (root / "train.csv").write_text("\n".join(V1_NAMES[:3]))
    return root


def uploaded(root: Path, target: ObjectPath) -> ObjectPath:
    for path in root.rglob("*"):
        if path.is_file():
            write_bytes(target / path.relative_to(root).as_posix(), path.read_bytes())
    return target


def patch_of(archive: Archive, row: PatchInput) -> dict[str, Any] | tuple[str, str, str]:
    """A patch as plain values, or why it cannot be used."""
    try:
        found = archive.read(row)
    except BadPatchError as error:
        return error.path, error.reason, error.detail
    values = {field.name: getattr(found, field.name) for field in dataclasses.fields(found)}
    arrays = {name: array.tolist() for name, array in values.pop("arrays").items()}
    reference_map = values.pop("reference_map")
    return values | arrays | {"reference_map": None if reference_map is None else np.asarray(reference_map).tolist()}


@pytest.mark.parametrize(("layout", "make"), [("bigearthnet-v2", small_v2), ("bigearthnet-v1", small_v1)])
def test_an_archive_is_what_it_is_on_disk(tmp_path: Path, s3_folder: ObjectPath, layout: str, make: Any) -> None:
    root = make(tmp_path / "archive")
    here = open_archive(layout, root, ArchiveOptions())
    there = open_archive(layout, str(uploaded(root, s3_folder)), ArchiveOptions())
    scan, other = here.scan(), there.scan()
    assert [row.patch_id for row in rows_of(other)] == [row.patch_id for row in rows_of(scan)] != []
    assert reasons_of(other) == reasons_of(scan) != {}
    patches = {row.patch_id: patch_of(here, row) for row in rows_of(scan)}
    assert {row.patch_id: patch_of(there, row) for row in rows_of(other)} == patches
    assert {type(found) for found in patches.values()} == {dict, tuple}


def test_a_patch_costs_a_listing_a_folder_and_a_request_a_file(
    tmp_path: Path, s3: S3Server, s3_folder: ObjectPath
) -> None:
    archive = open_archive("bigearthnet-v2", str(uploaded(small_v2(tmp_path / "archive"), s3_folder)))
    first = rows_of(archive.scan())[0]
    s3.requests.clear()
    archive.read(first)
    files = [line for line in s3.requests if line.startswith("GET") and ".tif" in line.partition("?")[0]]
    assert (len(files), len(s3.requests) - len(files)) == (12 + 2 + 1, 3)


def test_what_passes_is_tried_again_and_what_does_not_is_told(
    tmp_path: Path, s3: S3Server, s3_folder: ObjectPath
) -> None:
    root = small_v2(tmp_path / "archive")
    archive = open_archive("bigearthnet-v2", str(uploaded(root, s3_folder)))
    first = rows_of(archive.scan())[0]
    s3.faults.append(Fault("status", 503, key="_B08.tif", times=2))
    s3.faults.append(Fault("half", key="_B02.tif"))
    s3.faults.append(Fault("cut", key="list-type"))
    s3.faults.append(Fault("half", key="list-type", times=2))
    assert patch_of(archive, first) == patch_of(open_archive("bigearthnet-v2", root), first)
    s3.faults[:] = [Fault("status", 503, key="_B08.tif", times=1000)]
    with pytest.raises(TransientError, match="503"):
        archive.read(first)
    s3.faults[:] = [Fault("status", 403, times=1000)]
    with pytest.raises(StoreError, match="access denied"):
        archive.read(first)


def test_an_archive_that_went_away_is_no_missing_patch(tmp_path: Path, s3_folder: ObjectPath) -> None:
    archive = open_archive("bigearthnet-v2", str(uploaded(small_v2(tmp_path / "archive"), s3_folder)))
    first, *_, last = rows_of(archive.scan())
    for path in s3_folder.rglob("*"):
        if first.patch_id in str(path):
            path.unlink()
    with pytest.raises(BadPatchError, match="missing_folder"):
        archive.read(first)
    for path in s3_folder.rglob("*"):
        path.unlink()
    with pytest.raises(ArchiveError, match=r"s3://.* lost its BigEarthNet-S2 while it was read"):
        archive.read(last)


def test_a_folder(s3: S3Server, s3_folder: ObjectPath) -> None:
    write_bytes(s3_folder / "a" / "small", b"content")
    write_bytes(s3_folder / "a" / "large", bytes(MEMBER_BYTES + 1))
    write_bytes(s3_folder / "a" / "gone", b"soon")
    write_bytes(s3_folder / "ab" / "other", b"")
    folder = RemoteFolder.open(s3_folder, "a")
    assert folder is not None
    assert RemoteFolder.open(s3_folder, "none") is None
    (s3_folder / "a" / "gone").unlink()
    s3.requests.clear()
    with folder:
        assert folder.read("small") == b"content"
        for name, why in (("other", "no_metadata: it does not exist"), ("gone", "no_metadata: it does not exist")):
            with pytest.raises(BadPatchError, match=f"^a/{name}: {why}$"):
                folder.read(name, "no_metadata")
        with pytest.raises(BadPatchError, match=r"a/large: unreadable: it has 1048577 bytes"):
            folder.read("large")
        assert folder.has_any({"large", "other"})
        assert not folder.has_any({"other"})
    assert s3.count("GET", "/a/large") == 0


def test_notes_and_files_that_are_too_large_are_not_fetched(s3_folder: ObjectPath) -> None:
    for name, size in (("small", 0), ("full", MEMBER_BYTES), ("large", MEMBER_BYTES + 1)):
        write_bytes(s3_folder / "top" / name / f"{name}.json", bytes(size))
    notes = RemoteInventory(s3_folder).notes("top", ".json", lambda data, shown: f"{shown} has {len(data)}")
    assert {folder: str(note) for folder, note in notes.items()} == {
        "top/small": "top/small/small.json has 0",
        "top/full": "top/full/full.json has 1048576",
        "top/large": "top/large/large.json: unreadable: it has 1048577 bytes, where 1048576 are plenty",
    }
    write_bytes(s3_folder / "top" / "small" / "other", b"content")
    folder = RemoteFolder.open(s3_folder, "top/small")
    assert folder is not None
    write_bytes(s3_folder / "top" / "small" / "small.json", bytes(MEMBER_BYTES + 1))  # grown since it was listed
    assert folder.read("other") == b"content"
    with pytest.raises(BadPatchError, match=r"top/small/small\.json: unreadable: it has 1048577 bytes"):
        folder.read("small.json")


def test_more_files_than_a_patch_has_are_fetched_one_by_one(s3: S3Server, s3_folder: ObjectPath) -> None:
    for i in range(70):
        write_bytes(s3_folder / "a" / f"{i:02d}", bytes([i]))
    folder = RemoteFolder.open(s3_folder, "a")
    assert folder is not None
    s3.requests.clear()
    assert folder.read("00") == b"\0"
    assert s3.count("GET", "/a/") == 64
    assert [folder.read(f"{i:02d}")[0] for i in range(70)] == list(range(70))


def test_the_folders_of_many_pages(s3: S3Server, s3_folder: ObjectPath) -> None:
    s3.page = 2
    names = [f"top/product{i}/patch{k}" for i in range(3) for k in range(5)]
    for name in (*names, "top/.hidden/patch", "top/file"):
        write_bytes(s3_folder / name / "file", b"")
    inventory = RemoteInventory(s3_folder)
    assert sorted(inventory.folders("top", by_product=True).folders) == names
    assert sorted(inventory.folders("top", by_product=False).folders) == [
        "top/file",
        "top/product0",
        "top/product1",
        "top/product2",
    ]
    assert inventory.has("top")
    assert not inventory.has("to")
    with pytest.raises(ArchiveError, match=r"s3://.* needs a folder other: nothing lies there"):
        inventory.folders("other", by_product=True)


def test_layouts_of_pictures_and_scenes_are_of_this_machine(s3_folder: ObjectPath) -> None:
    for layout in ("scene", "image-folder", "image-table"):
        with pytest.raises(ArchiveError, match=f"the layout {layout} reads folders of this machine, not s3://"):
            open_archive(layout, str(s3_folder))
    with pytest.raises(ArchiveError, match=r"root s3://.* is not a folder"):
        open_archive("bigearthnet-v2", str(s3_folder / "nothing"))
