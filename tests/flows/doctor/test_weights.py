"""Weight files that are stored, named, missing or damaged, in a store of the test's own."""

from pathlib import Path

import pytest

from flows.doctor import weights
from flows.doctor.case import Case
from infra.weights_store import OfficialFile, WeightsStore, sha256
from tests.sr_models.small_model import NAME, put_in_table, small_file, small_spec

RUN = Path("RUN.yaml")


@pytest.fixture(autouse=True)
def _store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUPERSCENE_WEIGHTS", str(tmp_path / "weights"))


def test_the_folder_and_what_is_in_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert weights.stored(Case()).found == f"0 stored in {tmp_path / 'weights'}"
    small_file(tmp_path / "weights" / "one" / "w.pth", seed=0)
    finding = weights.stored(Case())
    assert (finding.state, finding.found) == ("ok", f"1 stored in {tmp_path / 'weights'}")
    monkeypatch.setattr(WeightsStore, "writable", lambda _: False)
    finding = weights.stored(Case())
    assert (finding.state, finding.found.endswith("read-only")) == ("ok", True)
    monkeypatch.setenv("SUPERSCENE_WEIGHTS", "/dev/null/store")
    assert weights.stored(Case()).state == "fail"


def test_weights_that_a_run_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = small_file(tmp_path / "w.pth", seed=0)
    official = OfficialFile("w.pth", "https://example.org/w.pth", sha256(file))
    put_in_table(monkeypatch, small_spec(official))
    asked = Case(run_yaml=RUN, sr=("none", "bicubic", NAME), classifiers=("resnet50",))
    finding = weights.needed(asked)
    assert finding is not None
    assert finding.state == "fail"
    assert NAME in finding.found
    assert "resnet50 needs pretrained weights" in finding.found
    assert "bicubic" not in finding.found
    named = Case(run_yaml=RUN, sr=("none", NAME), weights={NAME: str(file)})
    finding = weights.needed(named)
    assert finding is not None
    assert (finding.state, finding.found) == ("ok", "1 of 2 models need files, and have them")
    gone = weights.needed(Case(run_yaml=RUN, sr=(NAME,), weights={NAME: "/nowhere/w.pth"}))
    assert gone is not None
    assert (gone.state, "/nowhere/w.pth" in gone.found) == ("fail", True)
    assert weights.needed(Case(sr=(NAME,))) is None


def test_a_stored_file_that_was_changed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = small_file(tmp_path / "w.pth", seed=0)
    official = OfficialFile("w.pth", "https://example.org/w.pth", sha256(file))
    put_in_table(monkeypatch, small_spec(official))
    small_file(WeightsStore.default().path(NAME, official), seed=1)
    finding = weights.needed(Case(run_yaml=RUN, sr=(NAME,)))
    assert finding is not None
    assert (finding.state, "was changed or damaged" in finding.found) == ("fail", True)
