"""What the doctor takes from a RUN.yaml that may be wrong, and how it tells a store from one."""

from pathlib import Path

import pytest
import yaml

from flows.doctor.case import Case, case_of
from infra.archives.layouts import ArchiveOptions
from infra.errors import ConfigError
from infra.object_store import object_path

SETTINGS = {
    "archive": {"layout": "bigearthnet-v2", "root": "/data/BigEarthNet"},
    "store": "s3://bucket/store",
    "sr": ["none", "hat"],
    "classifiers": ["resnet50", "small", "mine", "chance"],
    "variants": {"small": {"network": "resnet18"}, "chance": {"network": "resnet101", "train": {"backbone": "random"}}},
    "trained": {"mine": "/models/mine.safetensors"},
    "weights": {"hat": "~/hat.pth"},
    "resources": {"actors": 3, "gpus_per_actor": 1},
}


def test_nothing_and_a_store(tmp_path: Path) -> None:
    assert case_of(None) == Case()
    assert case_of(str(tmp_path)) == Case(store=tmp_path)
    assert case_of(str(tmp_path / "new")) == Case(store=tmp_path / "new")
    assert case_of("s3://bucket/store") == Case(store=object_path("s3://bucket/store"))


def test_a_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Backbones from files are those of resnet50 and of the variant `small`."""
    monkeypatch.setenv("HOME", "/home/me")
    run_yaml = tmp_path / "RUN.yaml"
    run_yaml.write_text(yaml.safe_dump(SETTINGS))
    case = case_of(str(run_yaml), ["resources.actors=5"])
    assert (case.layout, case.archive) == ("bigearthnet-v2", Path("/data/BigEarthNet"))
    assert (case.store, case.local_store) == (object_path("s3://bucket/store"), None)
    assert (case.sr, case.classifiers) == (("none", "hat"), ("resnet50", "resnet18"))
    assert (case.actors, case.gpus) == (5, 1.0)
    assert case.label_table == ArchiveOptions().label_table
    assert case_of(str(run_yaml), ["archive.label_table=meta/a.csv"]).label_table == "meta/a.csv"
    assert case.places == {"archive.root": Path("/data/BigEarthNet"), "weights.hat": Path("/home/me/hat.pth")}


@pytest.mark.parametrize(
    "settings",
    [
        {"archive": 3, "sr": "none", "classifiers": None, "resources": [1], "weights": "w", "train": None},
        {"archive": {"root": 3}, "store": "http://me:secret@host", "variants": {"a": 3}, "classifiers": ["a"]},
        {"models_from": "/other", "resources": {"actors": "auto", "gpus_per_actor": "auto"}},
    ],
)
def test_settings_that_are_wrong_are_left_to_the_check_of_settings(tmp_path: Path, settings: object) -> None:
    run_yaml = tmp_path / "RUN.yaml"
    run_yaml.write_text(yaml.safe_dump(settings))
    case = case_of(str(run_yaml))
    assert case.run_yaml == run_yaml
    assert (case.archive, case.store, case.actors, case.gpus) == (None, None, None, None)


@pytest.mark.parametrize(
    ("target", "overrides", "words"),
    [
        ("RUN.yaml", None, "cannot read"),
        ("http://host/store", None, "cannot be used"),
        (".", ["a=b"], "is a store"),
        (None, ["a=b"], "say which"),
    ],
)
def test_what_cannot_be_examined(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str | None, overrides: list[str] | None, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match=words):
        case_of(target, overrides)
