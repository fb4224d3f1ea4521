"""`superscene weights` as a user meets it, and what a run makes of what is stored or shipped."""

import csv
import hashlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import save_file

import classifiers
import sr_models
from classifiers.published import BANDS, PublishedSpec, is_published
from classifiers.registry import CLASSIFIERS
from flows.cli import main
from flows.config import RunConfig, validated
from infra.errors import ConfigError, WeightsError
from infra.storage import StorePaths
from infra.weights_store import OfficialFile, WeightsStore, sha256
from sr_models.seesr.tiny import write_tiny_folder
from tasks.run_record import RunRecord
from tests.infra.file_server import FileServer, file_server
from tests.sr_models.small_model import NAME, put_in_table, shipped_with, small_file, small_spec


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def rows(self) -> dict[str, dict[str, str]]:
        """The table on standard output, by model."""
        return {row["model"]: row for row in csv.DictReader(StringIO(self.out), dialect="excel-tab")}


Cli = Callable[..., Result]


@pytest.fixture
def cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Cli:
    def call(*arguments: object) -> Result:
        monkeypatch.setattr(sys, "argv", ["superscene", "weights", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            main()
        captured = capsys.readouterr()
        code = caught.value.code
        return Result(code if isinstance(code, int) else 0, captured.out, captured.err)

    return call


@pytest.fixture(autouse=True)
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> WeightsStore:
    monkeypatch.setenv("SUPERSCENE_WEIGHTS", str(tmp_path / "store"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    return WeightsStore.default()


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return small_file(tmp_path / "small.pth", seed=0)


@pytest.fixture
def server(file: Path) -> Iterator[FileServer]:
    with file_server(file.read_bytes()) as served:
        yield served


@pytest.fixture
def official(server: FileServer, file: Path, monkeypatch: pytest.MonkeyPatch) -> OfficialFile:
    """The small model's file at the server, its hash known."""
    entry = OfficialFile("w.pth", server.url, sha256(file))
    put_in_table(monkeypatch, small_spec(entry))
    return entry


def sentence(result: Result) -> str:
    (line,) = result.err.splitlines()
    assert line.startswith("superscene: ")
    return line


class TestList:
    def test_every_model_and_its_state(self, cli: Cli, official: OfficialFile, file: Path, tmp_path: Path) -> None:
        result = cli("list")
        assert result.code == 0
        published = ["resnet50-s1-v0.2.0", "resnet50-s2-v0.2.0", "resnet50-all-v0.2.0"]
        assert list(result.rows) == [*sr_models.names(), *classifiers.names(), *published]
        assert result.rows["bicubic"]["state"] == "not needed"
        row = result.rows[NAME]
        assert (row["file"], row["state"], row["hash is"]) == ("w.pth", "absent", "official")
        assert (row["licence"], row["address"]) == ("CC0-1.0", official.url)
        assert row["sha256"] == sha256(file)[:12]
        assert str(tmp_path / "store") in result.err
        cli("fetch", NAME)
        row = cli("list").rows[NAME]
        assert (row["state"], row["MB"]) == ("stored", f"{file.stat().st_size / 1e6:.1f}")

    def test_recorded_and_shipped_files(
        self, cli: Cli, file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        shipped = small_file(tmp_path / "shipped.safetensors", seed=1)
        page = OfficialFile("deep/w.pth", "https://example.org/folder", None, direct=False)
        put_in_table(monkeypatch, small_spec(page, shipped_with(shipped)))
        row = cli("list").rows[NAME]
        assert (row["file"], row["state"], row["hash is"]) == ("shipped.safetensors", "shipped", "shipped")
        assert (row["licence"], row["sha256"]) == ("CC-BY-4.0", sha256(shipped)[:12])
        cli("add", NAME, file)
        row = cli("list").rows[NAME]
        assert (row["file"], row["state"], row["hash is"]) == ("w.pth", "stored", "recorded")
        assert row["sha256"] == sha256(file)[:12]

    def test_a_terminal_gets_a_table(self, cli: Cli, official: OfficialFile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        result = cli("list")
        assert result.code == 0
        assert NAME in result.out
        assert "\t" not in result.out


class TestFolders:
    """SeeSR's: in the tiny random configuration, which has the official layout."""

    def test_it_is_stored_only_when_it_is_whole(self, cli: Cli, store: WeightsStore) -> None:
        def row() -> dict[str, str]:
            return cli("list").rows["seesr"]

        folder = store.folder / "seesr"
        assert (row()["file"], row()["state"]) == ("seesr/", "absent")
        folder.mkdir(parents=True)
        assert row()["state"] == "incomplete"
        write_tiny_folder(folder)
        assert row()["state"] == "stored"
        (folder / "DAPE.pth").unlink()
        assert row()["state"] == "incomplete"
        assert "https://github.com/cswry/SeeSR" in row()["address"]

    def test_it_is_not_verified(self, cli: Cli, official: OfficialFile, store: WeightsStore) -> None:
        cli("fetch", NAME)
        before = cli("verify")
        write_tiny_folder(store.folder / "seesr")
        after = cli("verify")
        assert (after.code, after.out) == (0, before.out)
        assert NAME in after.rows


class TestFetch:
    def test_the_file_is_stored_and_its_hash_told(self, cli: Cli, official: OfficialFile, store: WeightsStore) -> None:
        result = cli("fetch", NAME)
        assert result.code == 0, result.err
        path = store.path(NAME, official)
        assert str(path) in result.out
        assert hashlib.sha256(path.read_bytes()).hexdigest() in result.out
        assert "w.pth: 0.0 of 0.0 MB" in result.err
        assert sr_models.load(NAME).weights_sha256 == official.sha256

    def test_a_terminal_gets_a_bar(self, cli: Cli, official: OfficialFile, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("FORCE_COLOR", "1")
        result = cli("fetch", NAME)
        assert result.code == 0, result.err
        assert "w.pth" in result.err
        assert "━" in result.err
        assert "kB" in result.err or "bytes" in result.err

    def test_a_mirror_serves_what_a_program_cannot_fetch(
        self, cli: Cli, server: FileServer, file: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        put_in_table(monkeypatch, small_spec(OfficialFile("w.pth", "https://example.org/page", None, direct=False)))
        refused = cli("fetch", NAME)
        assert refused.code == 1
        assert "superscene weights add small FILE" in sentence(refused)
        assert "https://example.org/page" in refused.err
        result = cli("fetch", NAME, "--mirror", f"{server.root}/absent", "--mirror", server.root)
        assert result.code == 0, result.err
        assert f"{sha256(file)}, recorded; no official one is known" in result.out

    def test_a_file_of_another_network_from_a_mirror_is_refused(
        self, cli: Cli, server: FileServer, tmp_path: Path, store: WeightsStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = OfficialFile("w.pth", server.url, None)
        put_in_table(monkeypatch, small_spec(entry))
        server.content = small_file(tmp_path / "other.pth", seed=0, features=8).read_bytes()
        result = cli("fetch", NAME)
        assert result.code == 1
        assert "looks like SRVGGNetCompact with 8 features" in result.err
        assert not store.path(NAME, entry).exists()

    def test_one_that_fails_does_not_keep_the_others(
        self, cli: Cli, official: OfficialFile, store: WeightsStore
    ) -> None:
        result = cli("fetch", "srresnet", NAME)
        assert result.code == 1
        assert "superscene: srresnet: net_g_1000000.pth cannot be fetched by a program" in result.err
        assert store.find(NAME, official) is not None

    @pytest.mark.parametrize("by", ["option", "variable"])
    def test_offline(
        self, cli: Cli, official: OfficialFile, server: FileServer, by: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        if by == "variable":
            monkeypatch.setenv("SUPERSCENE_OFFLINE", "1")
        result = cli("fetch", NAME, *(["--offline"] if by == "option" else []))
        assert result.code == 1
        assert "offline nothing is fetched" in sentence(result)
        assert server.requests == []

    @pytest.mark.parametrize(
        ("arguments", "words"),
        [
            (["magic"], "no model is called 'magic'"),
            (["bicubic"], "bicubic has no weight file"),
            ([NAME, "--mirror", "/mnt"], "--mirror /mnt"),
        ],
    )
    def test_wrong_usage_is_one_sentence(
        self, cli: Cli, official: OfficialFile, server: FileServer, arguments: list[str], words: str
    ) -> None:
        result = cli("fetch", *arguments)
        assert result.code == 2
        assert words in sentence(result)
        assert server.requests == []

    def test_a_folder_that_cannot_be_written_is_one_sentence(
        self, cli: Cli, official: OfficialFile, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setenv("SUPERSCENE_WEIGHTS", "/proc/superscene")
        result = cli("fetch", NAME)
        assert result.code == 2
        assert "cannot write /proc/superscene" in sentence(result)


class TestAdd:
    def test_the_official_file_is_copied(
        self, cli: Cli, official: OfficialFile, file: Path, store: WeightsStore, server: FileServer
    ) -> None:
        result = cli("add", NAME, file)
        assert result.code == 0, result.err
        assert store.path(NAME, official).read_bytes() == file.read_bytes()
        assert server.requests == []

    def test_what_does_not_fit_is_one_sentence(
        self, cli: Cli, tmp_path: Path, store: WeightsStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = OfficialFile("w.pth", "https://example.org/page", None, direct=False)
        put_in_table(monkeypatch, small_spec(entry))
        result = cli("add", NAME, small_file(tmp_path / "other.pth", seed=0, features=8))
        assert result.code == 2
        assert "does not fit small" in sentence(result)
        assert store.find(NAME, entry) is None

    def test_another_file_needs_replace(self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        put_in_table(monkeypatch, small_spec(OfficialFile("w.pth", "https://example.org/w.pth", None)))
        one, two = (small_file(tmp_path / f"{seed}.pth", seed) for seed in (1, 2))
        assert cli("add", NAME, one).code == 0
        assert cli("add", NAME, two).code == 2
        assert sr_models.load(NAME).weights_sha256 == sha256(one)
        assert cli("add", NAME, two, "--replace").code == 0
        assert sr_models.load(NAME).weights_sha256 == sha256(two)


class TestVerify:
    def test_a_change_is_exit_code_1(self, cli: Cli, official: OfficialFile, file: Path, store: WeightsStore) -> None:
        cli("fetch", NAME)
        good = cli("verify")
        assert (good.code, good.rows[NAME]["state"], good.rows[NAME]["sha256"]) == (0, "ok", sha256(file))
        store.path(NAME, official).write_bytes(b"changed")
        bad = cli("verify")
        assert (bad.code, bad.rows[NAME]["state"]) == (1, "changed")
        assert hashlib.sha256(b"changed").hexdigest() in bad.out
        store.path(NAME, official).unlink()
        assert cli("verify").code == 1

    def test_shipped_files_are_read_too(self, cli: Cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        shipped = small_file(tmp_path / "shipped.safetensors", seed=1)
        page = OfficialFile("w.pth", "https://example.org/folder", None, direct=False)
        put_in_table(monkeypatch, small_spec(page, shipped_with(shipped)))
        assert (cli("verify").code, cli("verify").rows[NAME]["state"]) == (0, "ok")
        shipped.write_bytes(b"")
        assert (cli("verify").code, cli("verify").rows[NAME]["state"]) == (1, "changed")
        shipped.unlink()
        assert (cli("verify").code, cli("verify").rows[NAME]["state"]) == (1, "missing")

    def test_nothing_stored_is_fine(self, cli: Cli) -> None:
        assert cli("verify").code == 0


def backbone_file(path: Path, *, labels: int = 1000) -> Path:
    """Write a ResNet-18 as torchvision names its tensors, each of them one number, so that the file is small."""
    with torch.device("meta"):
        state = timm.create_model("resnet18", num_classes=labels).state_dict()
    torch.save({key: torch.tensor(i / 100).expand(value.shape) for i, (key, value) in enumerate(state.items())}, path)
    return path


class TestClassifiers:
    @pytest.fixture
    def file(self, tmp_path: Path) -> Path:
        return backbone_file(tmp_path / "backbone.pth")

    @pytest.fixture
    def official(self, server: FileServer, file: Path, monkeypatch: pytest.MonkeyPatch) -> OfficialFile:
        """The file at the server; of its hash eight digits are known."""
        entry = OfficialFile("w.pth", server.url, sha256(file)[:8])
        table = {"resnet18": replace(CLASSIFIERS["resnet18"], official_file=entry)}
        monkeypatch.setattr("classifiers.registry.CLASSIFIERS", table)
        return entry

    def test_a_fetched_file_is_where_a_backbone_starts(
        self, cli: Cli, official: OfficialFile, file: Path, store: WeightsStore
    ) -> None:
        row = cli("list").rows["resnet18"]
        assert (row["state"], row["sha256"], row["hash is"]) == ("absent", sha256(file)[:8], "official, first 8 digits")
        assert row["licence"] == "BSD-3-Clause (torchvision), trained on ImageNet"
        result = cli("fetch", "resnet18")
        assert result.code == 0, result.err
        assert f"{sha256(file)}, recorded; of the official one only {sha256(file)[:8]}... is known" in result.out
        row = cli("list").rows["resnet18"]
        assert (row["state"], row["sha256"], row["hash is"]) == ("stored", sha256(file)[:12], "recorded")
        path = classifiers.weights_file("resnet18")
        assert path == store.path("resnet18", official)
        network = classifiers.build("resnet18", 19, weights=path)
        assert network.backbone.state_dict()["bn1.weight"].unique().tolist() == [pytest.approx(0.01)]
        assert cli("verify").rows["resnet18"]["state"] == "ok"

    def test_a_file_of_another_network_is_one_sentence(
        self, cli: Cli, official: OfficialFile, file: Path, store: WeightsStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        table = {"resnet50": replace(CLASSIFIERS["resnet50"], official_file=replace(official, sha256=None))}
        monkeypatch.setattr("classifiers.registry.CLASSIFIERS", table)
        result = cli("add", "resnet50", file)
        assert result.code == 2
        assert "does not hold the backbone of resnet50" in sentence(result)

    def test_a_published_file_must_have_the_bands_of_its_name(
        self, cli: Cli, tmp_path: Path, store: WeightsStore, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        entry = OfficialFile("model.safetensors", "https://example.org/model.safetensors", None)
        table = {name: PublishedSpec("resnet18", bands, entry) for name, bands in (("s1", BANDS[2]), ("s2", BANDS[10]))}
        monkeypatch.setattr("classifiers.published.PUBLISHED", table)
        state = timm.create_model("resnet18", num_classes=19, in_chans=2).state_dict()
        file = tmp_path / "model.safetensors"
        save_file({f"model.vision_encoder.{key}": value for key, value in state.items()}, file)
        refused = cli("add", "s2", file)
        assert refused.code == 2
        assert "sees the bands VV, VH, asked are B02, B03" in sentence(refused)
        stored = cli("add", "s1", file)
        assert stored.code == 0, stored.err
        assert is_published(store.path("s1", entry))
        assert cli("list").rows["s1"]["licence"] == "MIT (BIFOLD), trained on BigEarthNet v2"


def _record(folder: Path) -> RunRecord:
    return RunRecord(StorePaths(folder / "run"), "{}", datetime.now(UTC))


def configured(tmp_path: Path, **changes: object) -> RunConfig:
    settings = {
        "archive": {"layout": "bigearthnet-v2"},
        "store": str(tmp_path / "run"),
        "sr": ["bicubic", NAME],
        "classifiers": ["resnet18"],
        "train": {"backbone": "random"},
        **changes,
    }
    return validated(settings, "RUN.yaml")


class TestRuns:
    def test_a_stored_file_need_not_be_named(
        self, official: OfficialFile, cli: Cli, tmp_path: Path, store: WeightsStore
    ) -> None:
        with pytest.raises(ConfigError, match="`superscene weights fetch small` stores it") as caught:
            configured(tmp_path)
        assert "\n" not in str(caught.value)
        cli("fetch", NAME)
        assert configured(tmp_path).sr_weights(NAME) == store.path(NAME, official)

    def test_a_damaged_stored_file_stops_the_run_before_it_starts(
        self, official: OfficialFile, tmp_path: Path, store: WeightsStore
    ) -> None:
        small_file(store.path(NAME, official), seed=5)
        with pytest.raises(ConfigError, match="changed or damaged"):
            configured(tmp_path)

    def test_all_stages_of_a_run_use_what_was_settled_at_its_start(
        self, official: OfficialFile, cli: Cli, tmp_path: Path, store: WeightsStore
    ) -> None:
        from flows.archive import _start

        cli("fetch", NAME)
        run = _start(configured(tmp_path), _record(tmp_path))
        assert run.weights == {"none": None, "bicubic": None, NAME: store.path(NAME, official)}

    def test_a_wrong_file_of_a_classifier_stops_the_run_before_it_reads_the_archive(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from flows.archive import _start

        file = tmp_path / "w.pth"

        def refused(words: str, **changes: object) -> None:
            config = configured(tmp_path, sr=["none"], **changes)
            with pytest.raises(WeightsError, match=words):
                _start(config, _record(tmp_path))

        of_backbone = {"weights": {"resnet18": str(file)}, "train": {}}
        as_it_is = {"trained": {"mine": str(file)}, "classifiers": ["mine"]}
        file.write_bytes(b"garbage")
        for chosen in (of_backbone, as_it_is):
            refused("cannot be read as weights", **chosen)
        backbone_file(file)
        _start(configured(tmp_path, sr=["none"], **of_backbone), _record(tmp_path))
        refused("cannot be read as a safetensors file", **as_it_is)
        network = {"classifiers": ["resnet50"], "weights": {"resnet50": str(file)}}
        refused("does not hold the backbone of resnet50", **(of_backbone | network))
        state = timm.create_model("resnet18", num_classes=19, in_chans=2).state_dict()
        torch.save({f"model.vision_encoder.{key}": value for key, value in state.items()}, file)
        for chosen in (of_backbone, as_it_is):
            refused("sees the bands VV, VH, asked are B04, B03, B02", **chosen)
        assert not (tmp_path / "run" / "archive.zarr").exists()

    def test_workers_are_given_the_path_even_where_none_was_named(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        from infra.parts import stage_parts
        from infra.storage import StorePaths
        from tasks.branch import make_branch
        from tests.tasks.small_store import inputs_of

        shipped = small_file(tmp_path / "shipped.safetensors", seed=1)
        page = OfficialFile("w.pth", "https://example.org/folder", None, direct=False)
        put_in_table(monkeypatch, small_spec(page, shipped_with(shipped)))
        ingest = stage_parts(StorePaths(tmp_path), "ingest", {})
        branch = make_branch(inputs_of(ingest), NAME, None)
        assert branch.weights == shipped
        assert branch.identity["weights_sha256"] == sha256(shipped)
        named = make_branch(inputs_of(ingest), NAME, shipped)
        assert named.pixels.config == branch.pixels.config
