from dataclasses import fields
from pathlib import Path

import pytest

from infra.archives.bigearthnet_v1 import BigEarthNetV1
from infra.archives.bigearthnet_v2 import BigEarthNetV2
from infra.archives.image_folder import ImageFolder
from infra.archives.image_table import ImageTable
from infra.archives.layouts import LAYOUTS, ArchiveOptions, determining, open_archive, unused
from infra.archives.scene import SceneArchive
from infra.errors import ArchiveError, UnknownNameError

ALL = ArchiveOptions(
    include_flagged=True,
    subset="present",
    boa_add_offset=-1000,
    image_size=32,
    label_table="x.csv",
    validation_share=0.3,
    split_seed=4,
)


def test_each_layout_opens_its_reader_with_its_options(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert {name: open_archive(name, tmp_path, ALL) for name in LAYOUTS} == {
        "bigearthnet-v2": BigEarthNetV2(root, True, "present"),
        "bigearthnet-v1": BigEarthNetV1(root, True, "present"),
        "scene": SceneArchive(root, -1000),
        "image-folder": ImageFolder(root, image_size=32, validation_share=0.3, split_seed=4),
        "image-table": ImageTable(
            root, label_table="x.csv", image_size=32, validation_share=0.3, split_seed=4, subset="present"
        ),
    }


def test_options_and_readers_have_the_same_defaults(tmp_path: Path) -> None:
    root = str(tmp_path)
    assert {name: open_archive(name, tmp_path) for name in LAYOUTS} == {
        "bigearthnet-v2": BigEarthNetV2(root),
        "bigearthnet-v1": BigEarthNetV1(root),
        "scene": SceneArchive(root),
        "image-folder": ImageFolder(root),
        "image-table": ImageTable(root),
    }


def test_a_layout_s_name_is_its_version(tmp_path: Path) -> None:
    assert {name: open_archive(name, tmp_path).version for name in LAYOUTS} == {name: name for name in LAYOUTS}


def test_every_option_changes_the_reader_of_each_layout_that_has_use_for_it_and_no_other(tmp_path: Path) -> None:
    for layout in LAYOUTS:
        for field in fields(ArchiveOptions):
            changed = ArchiveOptions(**{field.name: getattr(ALL, field.name)})
            differs = open_archive(layout, tmp_path, changed) != open_archive(layout, tmp_path)
            assert differs == (field.name in LAYOUTS[layout].options), (layout, field.name)
            assert unused(layout, [field.name]) == ([] if differs else [field.name])


def test_only_what_changes_a_store_determines_it() -> None:
    assert all(determining(name, ArchiveOptions()) == {} for name in LAYOUTS)
    pictures = {"image_size": 32, "validation_share": 0.3, "split_seed": 4}
    assert {name: determining(name, ALL) for name in LAYOUTS} == {
        "bigearthnet-v2": {},
        "bigearthnet-v1": {},
        "scene": {"boa_add_offset": -1000},
        "image-folder": pictures,
        "image-table": {**pictures, "label_table": "x.csv"},
    }


def test_a_relative_root_is_kept_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers have another working directory."""
    monkeypatch.chdir(tmp_path)
    assert open_archive("scene", ".") == SceneArchive(str(tmp_path))


def test_an_unknown_layout_lists_the_known_ones(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"bigearthnet-v3.*bigearthnet-v2, bigearthnet-v1, scene, image-folder"):
        open_archive("bigearthnet-v3", tmp_path)


def test_a_missing_root_is_named(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match="none is not a folder"):
        open_archive("scene", tmp_path / "none")
