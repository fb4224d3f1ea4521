"""Which file a model uses: the one given, the stored official one, the shipped one; all who ask get the same answer."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import sr_models
from infra.errors import WeightsError
from infra.weights_store import OfficialFile, WeightsStore, sha256
from sr_models import ShippedWeights
from sr_models.registry import WeightsFolder
from tests.sr_models.small_model import NAME, put_in_table, shipped_with, small_file, small_spec

OFFICIAL = OfficialFile("small.pth", "https://example.org/small.pth", None)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsStore:
    monkeypatch.setenv("SUPERSCENE_WEIGHTS", str(tmp_path / "store"))
    return WeightsStore.default()


def assert_used(path: Path, given: Path | None = None) -> None:
    """The resolution, the fingerprint and the loaded network agree that path is the file."""
    assert sr_models.weights_file(NAME, given) == path
    loaded = sr_models.load(NAME, given)
    assert loaded.weights_sha256 == sha256(path)
    assert loaded.identity() == sr_models.fingerprint(NAME, given)
    x = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    assert torch.equal(loaded(x), sr_models.load(NAME, path)(x))


def test_given_before_stored_before_shipped(
    store: WeightsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = small_file(tmp_path / "shipped.safetensors", seed=0)
    put_in_table(monkeypatch, small_spec(OFFICIAL, shipped_with(shipped)))
    assert_used(shipped)
    stored = small_file(store.path(NAME, OFFICIAL), seed=1)
    assert_used(stored)
    given = small_file(tmp_path / "given.pth", seed=2)
    assert_used(given, given)
    stored.unlink()
    assert_used(shipped)
    assert len({sha256(shipped), sha256(given)}) == 2


def test_no_file_at_all_is_explained(store: WeightsStore, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_table(monkeypatch, small_spec(OFFICIAL))
    for ask in (sr_models.weights_file, sr_models.load, sr_models.fingerprint):
        with pytest.raises(WeightsError) as caught:
            ask(NAME)
        for words in (OFFICIAL.url, "`superscene weights fetch small`", "weights: {small: FILE}", "CC0-1.0"):
            assert words in str(caught.value)
    put_in_table(monkeypatch, small_spec(replace(OFFICIAL, direct=False)))
    with pytest.raises(WeightsError, match="with a browser and store it with `superscene weights add small FILE`"):
        sr_models.load(NAME)


def test_a_changed_stored_file_is_not_passed_over_for_the_shipped_one(
    store: WeightsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = small_file(tmp_path / "shipped.safetensors", seed=0)
    put_in_table(monkeypatch, small_spec(replace(OFFICIAL, sha256="0" * 64), shipped_with(shipped)))
    small_file(store.path(NAME, OFFICIAL), seed=1)
    for ask in (sr_models.weights_file, sr_models.load, sr_models.fingerprint):
        with pytest.raises(WeightsError, match="changed or damaged"):
            ask(NAME)


def test_a_damaged_installation_is_noticed(
    store: WeightsStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shipped = small_file(tmp_path / "shipped.safetensors", seed=0)
    put_in_table(monkeypatch, small_spec(OFFICIAL, shipped_with(shipped)))
    small_file(shipped, seed=1)
    with pytest.raises(WeightsError, match="the installation is damaged, install superscene again"):
        sr_models.load(NAME)
    shipped.unlink()
    with pytest.raises(WeightsError, match=r"no weight file that can be read at .*shipped\.safetensors"):
        sr_models.load(NAME)


def test_a_path_given_becomes_absolute(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put_in_table(monkeypatch, small_spec(OFFICIAL))
    small_file(tmp_path / "given.pth", seed=0)
    monkeypatch.chdir(tmp_path)
    assert sr_models.weights_file(NAME, "given.pth") == tmp_path / "given.pth"


def test_models_without_weights_need_no_file() -> None:
    for name in ("none", "bicubic"):
        assert sr_models.weights_file(name) is None


def test_every_shipped_file_is_in_the_package_and_loads() -> None:
    for name, spec in sr_models.SR_MODELS.items():
        if spec.shipped is not None:
            assert spec.shipped.path.is_relative_to(Path(sr_models.__file__).parent)
            assert spec.shipped.path.stat().st_size < 4e6
            assert sr_models.load(name).weights_sha256 is not None


def test_the_path_of_a_shipped_file_is_inside_the_package() -> None:
    shipped = ShippedWeights("shipped/x.safetensors", "0" * 64, "CC0-1.0", "none")
    assert shipped.path == Path(sr_models.__file__).parent / "shipped" / "x.safetensors"


def test_a_folder_has_a_name_however_it_is_given(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Copies for other nodes lie in a folder of that name; `..` would be the folder above."""
    (tmp_path / "official" / "inside").mkdir(parents=True)
    (tmp_path / "link").symlink_to(tmp_path / "official" / "inside")

    def lists(folder: Path, options: object) -> list[Path]:
        assert options is None
        return [path.relative_to(folder) for path in folder.iterdir()]

    entry = WeightsFolder("one file", lists, lambda folder, options: None, lambda folder, options: torch.nn.Identity())
    put_in_table(monkeypatch, replace(small_spec(OFFICIAL), official_file=None, folder=entry))
    monkeypatch.chdir(tmp_path / "official" / "inside")
    for given in ("..", "../inside/..", tmp_path / "official", tmp_path / "link" / ".."):
        found = sr_models.weights_file(NAME, given)
        assert found == (tmp_path / "official").resolve()
        assert found is not None
        assert found.name == "official"
