"""Completion by the protocol that the shells' scripts speak: words by environment variables, answers on stdout."""

import subprocess
import sys
from pathlib import Path

import pytest

import classifiers
import sr_models
from classifiers.published import PUBLISHED
from flows.commands import completion
from tests.flows.stores import environment


def completed(*words: str, cwd: Path, shell: str = "bash") -> list[str]:
    """What the shell is offered for the last of the words; heavy packages are out of reach."""
    line = ["superscene", *words]
    asked = {
        "_SUPERSCENE_COMPLETE": f"complete_{shell}",
        "COMP_WORDS": " ".join(line),
        "COMP_CWORD": str(len(words)),
        "_TYPER_COMPLETE_ARGS": " ".join(line),
    }
    refuse = "import sys; sys.modules.update(dict.fromkeys(('torch', 'ray', 'prefect', 'pyarrow', 'duckdb')));"
    code = f"{refuse} sys.argv[0] = 'superscene'; from flows.cli import main; main()"
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        cwd=cwd,
        env={**environment(), **asked},
    )
    assert result.stderr == ""
    return result.stdout.splitlines()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("RUN.yaml", "Rest.yml", "Readme.md"):
        (tmp_path / name).touch()
    (tmp_path / "Runs" / "tables").mkdir(parents=True)
    (tmp_path / "Raw").mkdir()
    return tmp_path


def test_commands_options_models_files_and_stores(folder: Path) -> None:
    assert completed("sup", cwd=folder) == ["super-resolve"]
    assert completed("weights", "ve", cwd=folder) == ["verify"]
    assert completed("run", "--s", cwd=folder) == ["--set"]
    assert completed("super-resolve", "a", "b", "--sr", "hat_", cwd=folder) == ["hat_s", "hat_l"]
    assert completed("super-resolve", "a", "b", "--sr", "s", cwd=folder) == ["srresnet"]
    assert completed("run", "R", cwd=folder) == ["RUN.yaml", "Raw/", "Rest.yml", "Runs"]


def test_zsh_has_an_answer_too(folder: Path) -> None:
    (answer,) = completed("status", "Ru", cwd=folder, shell="zsh")
    assert '"Runs"' in answer


def test_stores_are_folders(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A store is a word to end with, another folder one to go into."""
    monkeypatch.chdir(folder)
    assert completion.stores("R") == ["Raw/", "Runs"]
    assert completion.stores(f"{folder}/R") == [f"{folder}/Raw/", f"{folder}/Runs"]
    assert completion.stores("Runs/") == ["Runs/tables/"]
    assert completion.stores("nowhere/") == []


def test_names_are_those_of_the_registries() -> None:
    """They are written twice, since a registry takes seconds to import."""
    assert sr_models.names() == completion.SR_MODELS
    scenes = tuple(name for name in sr_models.names() if not sr_models.spec(name).conditioned)
    assert scenes == completion.SCENE_MODELS
    assert classifiers.names() == completion.CLASSIFIERS
    assert tuple(PUBLISHED) == completion.PUBLISHED
    assert completion.one_of(completion.SR_MODELS)("real") == ["realesrgan", "realesrgan_general", "real_hat_gan"]
