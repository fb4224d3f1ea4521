from collections.abc import Iterator
from pathlib import Path

import pytest

from infra.archives import tar_inventory
from infra.archives.inventory import Found
from infra.archives.tar_inventory import TarInventory
from infra.archives.tar_reader import TarMember, read_tar
from infra.errors import ArchiveError, BadPatchError, TransientError
from infra.object_store import ObjectPath
from infra.storage import write_bytes
from tests.infra.archives.tar_files import member, write_members
from tests.infra.s3_server import Fault, S3Server

NAMES = [
    "top/p/b/b_1.tif",
    "top/p/b/deep/er.tif",
    "top/p/a/",
    "top/q/c/c.json",
    "top/loose.txt",
    "top/p/loose.txt",
    "other/p/d/d.tif",
    "top/.hidden/e/e.tif",
    "top/p/.hidden/e.tif",
    "top/../p/f/f.tif",
    "top/p/../g/f.tif",
    "/top/p/h/h.tif",
    "top//i/i.tif",
    "top/p/j\\\n/j.tif",
]


@pytest.mark.parametrize(
    ("by_product", "folders"), [(True, ["top/p/b", "top/p/a", "top/q/c"]), (False, ["top/p", "top/q"])]
)
def test_patch_folders_are_those_that_members_lie_in(tmp_path: Path, *, by_product: bool, folders: list[str]) -> None:
    path = write_members(tmp_path / "a.tar", [member(n, None, b"5") if n[-1] == "/" else member(n) for n in NAMES])
    inventory = TarInventory(str(tmp_path), {"top": str(path)}, None, may_pass=True)
    found = inventory.folders("top", by_product=by_product)
    assert found is not None
    assert (found.folders, found.blocked, found.blocked_products) == (folders, {}, {})
    assert TarInventory(str(tmp_path), {"top": str(path)}, None, False).folders("top", by_product=by_product) is None


def test_a_pass_is_made_once_for_each_state_of_an_archive(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    passes: list[str] = []

    def counting(path: str) -> Iterator[TarMember]:
        passes.append(path)
        return read_tar(path)

    monkeypatch.setattr(tar_inventory, "read_tar", counting)
    path = write_members(tmp_path / "a.tar", [member("top/a/a.tif")])
    inventory = TarInventory(str(tmp_path), {"top": str(path)}, tmp_path / "kept", may_pass=True)
    for _ in range(2):
        found = inventory.folders("top", by_product=False)
        assert found is not None
        assert found.folders == ["top/a"]
    assert len(passes) == 1
    write_members(path, [member("top/a/a.tif"), member("top/b/b.tif")])
    found = inventory.folders("top", by_product=False)
    assert found is not None
    assert found.folders == ["top/a", "top/b"]
    assert len(passes) == 2


def upper(data: bytes, shown: str) -> str:
    if data == b"bad":
        raise BadPatchError(shown, "malformed_metadata", "it is bad")
    return data.decode().upper()


def test_notes_are_kept_with_their_faults(tmp_path: Path) -> None:
    members = [
        member("top/a/a.json", b"first"),
        member("top/a/a.json", b"second"),
        member("top/b/b.json", b"bad"),
        member("top/c/other.json", b"x"),
        member("top/d/d.json", None, b"2", "/etc/passwd"),
        member("top/e/deep/e.json", b"x"),
    ]
    path = write_members(tmp_path / "a.tar", members)
    inventory = TarInventory(str(tmp_path), {"top": str(path)}, tmp_path / "kept", may_pass=True)
    for _ in range(2):
        notes = inventory.notes("top", ".json", upper)
        assert {key: note if isinstance(note, str) else str(note) for key, note in notes.items()} == {
            "top/a": "FIRST",
            "top/b": "top/b/b.json: malformed_metadata: it is bad",
            "top/c": "top/c/c.json: no_metadata: it does not exist",
            "top/d": "top/d/d.json: unreadable: the archive has a symbolic link in its place",
            "top/e": "top/e/e.json: no_metadata: it does not exist",
        }
    assert len(list((tmp_path / "kept").iterdir())) == 1


def test_folders_without_end_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_inventory, "MAX_FOLDERS", 3)
    path = write_members(tmp_path / "a.tar", [member(f"top/{i}/x") for i in range(4)])
    inventory = TarInventory(str(tmp_path), {"top": str(path)}, None, may_pass=True)
    with pytest.raises(ArchiveError, match="more than 3 folders of patches in top"):
        inventory.folders("top", by_product=False)


def test_endless_names_are_not_kept(tmp_path: Path) -> None:
    names = [f"top/{'x' * length}/a" for length in (255, 256, 60_000)]
    path = write_members(tmp_path / "a.tar", [member(name) for name in names])
    inventory = TarInventory(str(tmp_path), {"top": str(path)}, None, may_pass=True)
    assert inventory.folders("top", by_product=False) == Found([f"top/{'x' * 255}"])


def test_a_missing_archive_says_so(tmp_path: Path) -> None:
    inventory = TarInventory(str(tmp_path), {"top": str(tmp_path / "a.tar")}, tmp_path, may_pass=True)
    with pytest.raises(ArchiveError, match=r"a\.tar cannot be read: No such file"):
        inventory.folders("top", by_product=False)


def test_the_state_of_an_archive_on_object_storage_is_one_request(
    tmp_path: Path, s3: S3Server, s3_folder: ObjectPath
) -> None:
    path = s3_folder / "top.tar"
    inventory = TarInventory(str(s3_folder), {"top": str(path)}, None, may_pass=True)
    identities = []
    for content in (b"a", b"b", b"bb"):
        write_bytes(path, content)
        s3.requests.clear()
        identities.append(inventory.identity("top"))
        assert (s3.count("HEAD"), len(s3.requests)) == (1, 1)
    assert len(set(identities)) == 3
    assert inventory.identity("top") == identities[-1]
    s3.faults.append(Fault("status", 503, times=1000))
    with pytest.raises(TransientError, match="503"):
        inventory.identity("top")
    s3.faults.clear()
    path.unlink()
    with pytest.raises(ArchiveError, match=r"top\.tar cannot be read: there is no s3://"):
        inventory.identity("top")


def test_names_that_steer_a_terminal_or_hide_are_passed_over(tmp_path: Path) -> None:
    names = ["a\u202eb", "a\u200bb", "a\x9bb", "a\u202fb", "\u0645\u06cc\u200c\u062e"]
    path = write_members(tmp_path / "a.tar", [member(f"top/{name}/x") for name in names])
    inventory = TarInventory(str(tmp_path), {"top": str(path)}, None, may_pass=True)
    assert inventory.folders("top", by_product=False) == Found([f"top/{name}" for name in names[3:]])
