"""Every code block of README, CONTRIBUTING and docs: run where it can, checked against what it speaks of where not.

Python and SQL run on a small store. YAML is validated as RUN.yaml. Shell lines of `superscene` are parsed by the
command line itself, and its queries run; `make` targets and files must be there. What is neither is in a list here,
with why.
"""

import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest
import typer
import typer.main
import yaml
from typer.core import TyperGroup

import classifiers
import sr_models
from flows.cli import app
from flows.config import RunConfig, load_config
from infra.query import query
from tests.docs_pages import BLOCKS, PAGES, Block, in_language, tables_with_reliability
from tests.flows.stores import PROJECT, Inputs, shared_inputs
from tests.installed import install

CHECKED = {"bash", "sh", "python", "sql", "yaml", "toml"}
WITHOUT_LANGUAGE = {"README.md": 1, "docs/architecture.md": 1, "docs/own-archive.md": 2, "docs/seesr.md": 1}
"""Blocks that are no code, by page: trees of folders, the order of stages, and a CSV."""

OTHER_PROGRAMS = {
    "cd": "the shell's",
    "createdb": "PostgreSQL's",
    "createuser": "PostgreSQL's",
    "curl": "asks an explorer that listens",
    "export": "the shell's",
    "pip": "needs an index",
    "prefect": "a server; tests/flows/test_deployments.py tests the files",
    "source": "the shell's",
}
"""First words of shell lines that nothing here can run or parse, and whose they are."""

NO_RUN_YAML = {"docs/deployments.md": "an action of a Prefect automation, whose block a person makes"}
"""YAML blocks that are none of RUN.yaml's, by page."""

WITHOUT_ROWS = {
    "For wetlands in Finland?": "the synthetic patches of a test need not have any there",
    "Or is it mere size?": "the test's store has no SR model beside bicubic",
    "The hallucination check": "likewise",
    "What it took": "the last run of the test's store may have found everything done",
}
"""Queries whose answer may be empty, by the heading above them."""

SILENT = {"CONTRIBUTING.md", "docs/add-classifier.md"}
"""Pages whose Python defines something and shows nothing."""

TESTED_ELSEWHERE = {"docs/tables-howto.md": "tests/test_docs_tables.py"}
"""Pages whose Python has a test of its own, with what it reads and writes."""

SUPERSCENE: Any = typer.main.get_command(app)


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Inputs:
    base = tmp_path_factory.getbasetemp()
    return shared_inputs((base if worker_id == "master" else base.parent) / "flow-inputs")


@pytest.fixture(scope="module")
def tables(inputs: Inputs, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tables_with_reliability(inputs, tmp_path_factory.mktemp("docs") / "tables")


@pytest.fixture
def beside_a_demo(inputs: Inputs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with demo/store, as after `make demo`."""
    (tmp_path / "demo").mkdir()
    (tmp_path / "demo" / "store").symlink_to(inputs.reference)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_no_block_is_left_out() -> None:
    others = [block for block in BLOCKS if block.language not in CHECKED]
    assert {block.language for block in others} <= {""}
    counts = {page: sum(block.page == page for block in others) for page in {block.page for block in others}}
    assert counts == WITHOUT_LANGUAGE


# Python


@pytest.mark.parametrize("page", sorted({block.page for block in in_language("python")} - set(TESTED_ELSEWHERE)))
def test_python_runs_block_after_block(
    beside_a_demo: Path, page: str, capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    names: dict[str, Any] = {}
    for block in in_language("python"):
        if block.page == page:
            exec(compile(block.text, block.name, "exec"), names)
    assert bool(capsys.readouterr().out) == (page not in SILENT)
    assert not recwarn.list


# SQL


def heading(block: Block) -> str:
    before = PAGES[block.page].split(block.text)[0]
    return str(re.findall(r"^## (.*)$", before, flags=re.MULTILINE)[-1])


@pytest.mark.parametrize("block", in_language("sql"), ids=lambda block: block.name)
def test_sql_answers(tables: Path, block: Block) -> None:
    rows = query(tables, None, block.text).fetchall()
    assert rows or heading(block) in WITHOUT_ROWS


@pytest.mark.parametrize(
    "statement",
    [
        words[3]
        for block in in_language("bash", "sh")
        for line in block.text.splitlines()
        if (words := shlex.split(line, comments=True))[:2] == ["superscene", "sql"]
    ],
)
def test_sql_of_the_shell_runs(tables: Path, statement: str) -> None:
    assert query(tables, None, statement).columns


# Shell


def lines_of(block: Block) -> list[str]:
    """Return the commands of a block: without comments and variables before a command, chains and pipes taken apart."""
    found = []
    for line in block.text.replace("\\\n", " ").splitlines():
        words: list[str] = []
        for word in [*shlex.split(line, comments=True), "&&"]:
            if word not in {"&&", "|"}:
                words.append(word)
                continue
            while len(words) > 1 and re.fullmatch(r"[A-Z_]+=.*", words[0]):
                del words[0]
            if words:
                found.append(shlex.join(words))
            words = []
    return found


SHELL = [(block.name, line) for block in in_language("bash", "sh") for line in lines_of(block)]


@pytest.mark.parametrize(("where", "line"), SHELL, ids=[f"{where} {line[:40]}" for where, line in SHELL])
def test_shell_lines_are_what_the_programs_take(where: str, line: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(PROJECT)
    program, *arguments = shlex.split(line)
    match program:
        case "superscene":
            takes(arguments)
        case "make":
            targets = [word for word in arguments if "=" not in word]
            made = re.findall(r"^([a-z]+):", (PROJECT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE)
            assert set(targets) <= set(made)
        case "python" if arguments[0] == "-c":
            compile(arguments[1], where, "exec")
        case "python" if arguments[0] == "-m":
            assert find_spec(arguments[1]) is not None
        case "python":
            assert (PROJECT / arguments[0]).is_file(), arguments[0]
        case _:
            assert program in OTHER_PROGRAMS, f"{line}: say in OTHER_PROGRAMS whose it is"


def found(words: list[str]) -> tuple[Any, Any, list[str]]:
    """Return the command that words begin with, its parent's context and the other words."""
    command: Any = SUPERSCENE
    context: Any = typer.Context(SUPERSCENE, info_name="superscene")
    while isinstance(command, TyperGroup) and words and not words[0].startswith("-"):
        name, *words = words
        below = command.get_command(context, name)
        assert below is not None, f"there is no command {name}"
        if isinstance(below, TyperGroup):
            context = below.make_context(name, [], parent=context, resilient_parsing=True)
        command = below
    return command, context, words


def takes(arguments: list[str]) -> None:
    """Let the command line parse its arguments, and do nothing else."""
    command, parent, words = found([argument.replace("…", "x") for argument in arguments])
    if command is SUPERSCENE:
        assert set(words) <= {option for parameter in SUPERSCENE.params for option in parameter.opts}
        return
    command.make_context(command.name, words, parent=parent)


SPANS = [
    (page, span)
    for page, text in PAGES.items()
    for span in re.findall(r"(?<!`)`(superscene [a-z][^`\n]*)`", re.sub(r"```.*?```", "", text, flags=re.DOTALL))
    if page != "docs/cli.md"
]


@pytest.mark.parametrize(("page", "span"), sorted(set(SPANS)))
def test_commands_named_in_sentences_are_there(page: str, span: str) -> None:
    """With the options that are named with them; arguments may be left out in a sentence."""
    command, _, words = found(shlex.split(span)[1:])
    options = {option for parameter in command.params for option in parameter.opts}
    assert {word.split("=")[0] for word in words if word.startswith("--")} <= options


def test_settings_on_the_command_line_are_settings(beside_a_demo: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`--set` of every line, over the tutorial's RUN.yaml, with the models that CONTRIBUTING and docs bring."""
    own = {"sharpened": sr_models.spec("bicubic")}
    monkeypatch.setattr("sr_models.registry.SR_MODELS", {**sr_models.SR_MODELS, **own})
    monkeypatch.setattr("sr_models.SR_MODELS", {**sr_models.SR_MODELS, **own})
    small = {"small": classifiers.spec("resnet18")}
    monkeypatch.setattr("classifiers.registry.CLASSIFIERS", {**classifiers.CLASSIFIERS, **small})
    (run_yaml,) = (b.text for b in in_language("yaml") if b.page == "docs/tutorial.md")
    path = beside_a_demo / "RUN.yaml"
    path.write_text(run_yaml.replace("freeze_backbone: true", "freeze_backbone: false"), encoding="utf-8")
    settings = [
        [words[n + 1] for n, word in enumerate(words) if word == "--set"]
        for _, line in SHELL
        if "--set" in (words := shlex.split(line))
    ]
    assert len(settings) >= 3
    for overrides in settings:
        load_config(path, overrides)


# YAML


@pytest.mark.parametrize("block", in_language("yaml"), ids=lambda block: block.name)
def test_yaml_is_a_run(block: Block, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whole, or over a run that is; weight files are taken to be there, and so is a file that an example names."""
    told = yaml.safe_load(block.text)
    if block.page in NO_RUN_YAML:
        assert isinstance(told, list)
        return
    (tmp_path / "resnet50-s2-v0.2.0.safetensors").touch()
    (tmp_path / "FOLDER").mkdir()
    monkeypatch.chdir(tmp_path)
    for module in (sr_models, classifiers):
        monkeypatch.setattr(module, "weights_file", lambda name, given=None, options=None: None)
    base = {"archive": {"layout": "bigearthnet-v2", "root": "/data/BigEarthNet"}, "store": "/data/superscene"}
    RunConfig.model_validate({**base, **told})
    if "archive" in told:
        RunConfig.model_validate(told)


# A distribution of one's own


def blocks_on(page: str, language: str) -> list[str]:
    return [block.text for block in in_language(language) if block.page == page]


def distribution_of(page: str, folder: Path) -> Path:
    """Install what a page tells people to write: my_models.py and pyproject.toml."""
    (module,), (pyproject,) = blocks_on(page, "python"), blocks_on(page, "toml")
    assert tomllib.loads(pyproject)["project"]["version"]
    return install(folder, {"my_models": module}, pyproject)


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", "docs/add-classifier.md"])
def test_a_model_of_one_s_own_works_in_another_process(page: str, tmp_path: Path) -> None:
    """As its page says: installed, it keeps the contract, and RUN.yaml takes it by its name."""
    folder = distribution_of(page, tmp_path / "site")
    code = [shlex.split(line)[2] for where, line in SHELL if where.startswith(page) and " -c " in line]
    assert code
    settings = [
        shlex.split(line)[3:] for where, line in SHELL if where.startswith(page) and line.startswith("superscene run")
    ]
    run_yaml = tmp_path / "RUN.yaml"
    run_yaml.write_text(
        "archive: {layout: bigearthnet-v2, root: archive}\nstore: store\nclassifiers: [resnet18]\n"
        "train: {backbone: random}\n"
    )
    overrides = [word for words in settings for word in words if word != "--set"]
    code.append("from pathlib import Path; from flows.config import load_config")
    code.append(f"load_config(Path({str(run_yaml)!r}), {overrides!r})")
    if page == "CONTRIBUTING.md":
        code.append("import sr_models; print(sr_models.fingerprint('sharpened')['distribution'])")
    else:
        code.append("import classifiers; classifiers.check_classifier('regnet')")
        code.append(
            "from tasks.backbone import Backbone; print(Backbone('small', 'random').identity()['distribution'])"
        )
    ended = subprocess.run(
        [sys.executable, "-c", "\n".join(code)],
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": f"{folder}:{PROJECT}", "HOME": str(tmp_path)},
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    assert ended.stdout == "my-models 1.0\n"


def test_thirty_lines_are_enough() -> None:
    """Of code, without blank lines and what every package has."""
    (module,), (pyproject,) = blocks_on("CONTRIBUTING.md", "python"), blocks_on("CONTRIBUTING.md", "toml")
    lines = [line for line in (module + pyproject).splitlines() if line.strip()]
    assert len(lines) <= 32
    assert len([line for line in module.splitlines() if line.strip()]) <= 24


# Links


@pytest.mark.parametrize("page", sorted({*PAGES, "SECURITY.md", "sr_models/shipped/README.md"}))
def test_links_lead_to_files_that_are_there(page: str) -> None:
    """To headings too; `make docs` checks those among the site's pages once more."""
    path = PROJECT / page
    text = re.sub(r"```.*?```", "", path.read_text(encoding="utf-8"), flags=re.DOTALL)
    for target in re.findall(r"\]\(([^)\s]+)\)", text):
        if re.match(r"\w+:", target):
            continue
        file, _, anchor = target.partition("#")
        linked = (path.parent / file).resolve() if file else path
        assert linked.is_file(), f"{page}: {target}"
        if anchor and linked.suffix == ".md" and not anchor.startswith(("sr_models.", "classifiers.")):
            headings = re.findall(r"^#+ (.*)$", linked.read_text(encoding="utf-8"), flags=re.MULTILINE)
            slugs = {re.sub(r"[^\w\- ]", "", heading.lower()).strip().replace(" ", "-") for heading in headings}
            assert anchor in slugs, f"{page}: {target}"


def test_the_notebooks_are_kept_without_outputs_and_are_named_in_the_readme() -> None:
    notebooks = sorted((PROJECT / "notebooks").glob("*.ipynb"))
    assert len(notebooks) == 3
    for path in notebooks:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))  # JSON is YAML
        code = [cell for cell in content["cells"] if cell["cell_type"] == "code"]
        assert len(code) > 4
        assert all(cell["outputs"] == [] and cell["execution_count"] is None for cell in code), f"{path.name}: clear it"
        assert f"notebooks/{path.name}" in PAGES["README.md"]
    assert shutil.which("git") is not None
