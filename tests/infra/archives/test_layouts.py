from pathlib import Path

import pytest

from infra.archives.bigearthnet_v1 import BigEarthNetV1
from infra.archives.bigearthnet_v2 import BigEarthNetV2
from infra.archives.layouts import LAYOUTS, open_archive
from infra.archives.scene import SceneArchive
from infra.errors import ArchiveError, UnknownNameError


def test_each_layout_opens_its_reader_with_its_options(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert open_archive("bigearthnet-v2", root, include_flagged=True) == BigEarthNetV2(root, True, "all")
    assert open_archive("bigearthnet-v1", tmp_path, subset="present") == BigEarthNetV1(root, False, "present")
    assert open_archive("scene", root, boa_add_offset=-1000) == SceneArchive(root, -1000)


def test_a_layout_s_name_is_its_version(tmp_path: Path) -> None:
    assert {name: open_archive(name, tmp_path).version for name in LAYOUTS} == {name: name for name in LAYOUTS}


def test_a_relative_root_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have another working directory."""
    monkeypatch.chdir(tmp_path)
    assert open_archive("scene", ".") == SceneArchive(str(tmp_path))


def test_an_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"bigearthnet-v3.*bigearthnet-v2, bigearthnet-v1, scene"):
        open_archive("bigearthnet-v3", tmp_path)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="none is not a folder"):
        open_archive("scene", tmp_path / "none")
