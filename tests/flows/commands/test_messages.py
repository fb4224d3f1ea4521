"""Every command with the mistakes that people make: what is said, never a traceback, and exit code 2.

STYLE of a message: what was asked, what was found, where, what to do.
"""

import re
from pathlib import Path

import pyarrow as pa
import pytest

from flows.cli import COMMANDS, main
from infra.tables import CLASSES, publish

RUN_YAML = """\
archive: {layout: bigearthnet-v2, root: /nowhere/BigEarthNet}
store: /nowhere/store
classifiers: [resnet18]
train: {backbone: random}
"""

MISTAKES: list[tuple[str, list[str]]] = [
    # no file, a folder, another name
    ("run", ["Missing argument 'RUN.yaml'"]),
    ("run Run.yaml", ["there is no file Run.yaml", "did you mean RUN.yaml?"]),
    ("train runs", ["runs is a folder, where a RUN.yaml is needed", "did you mean runs/mine.yaml?"]),
    ("plan elsewhere/RUN.yaml", ["there is no file elsewhere/RUN.yaml", "docs/run-yaml.md"]),
    ("ingest notes.txt", ["notes.txt holds no settings", "README"]),
    ("predict broken.yaml", ["broken.yaml is not YAML, line 3, column 1", "expected the node content"]),
    # a wrong command, option or value
    ("rnu RUN.yaml", ["No such command 'rnu'", "Did you mean 'run'?"]),
    ("weights fech hat", ["No such command 'fech'", "Did you mean 'fetch'?"]),
    ("run RUN.yaml --sett a=b", ["No such option: --sett", "--set"]),
    ("plan RUN.yaml --price-per-hour cheap", ["'--price-per-hour'", "valid number"]),
    ("explain RUN.yaml --sheet 0", ["'--sheet'", "greater than or equal to 1"]),
    ("synth new --patches 0", ["'--patches'", "greater than or equal to 1"]),
    ("super-resolve notes.txt out.tif", ["Missing option '--sr'"]),
    # settings
    ("run RUN.yaml --set train.epochs", ["--set train.epochs: write key=value"]),
    ("run RUN.yaml --set store.place=3", ["store is a value, not a section"]),
    ("run RUN.yaml --set train.epoch=3", ["train.epoch: there is no such setting", "did you mean 'epochs'?"]),
    ("run RUN.yaml --set epochs=3", ["epochs: there is no such setting", "did you mean train.epochs?"]),
    ("run RUN.yaml --set train.epochs=many", ["train.epochs: needs a whole number, and is 'many'"]),
    ("run RUN.yaml --set sr=bicubic", ["sr: needs a list, such as [a, b], and is 'bicubic'"]),
    ("run RUN.yaml --set sr=[Bicubik]", ["no SR model called 'Bicubik'", "did you mean 'bicubic'?"]),
    ("run RUN.yaml --set classifiers=[ResNet-50]", ["no classifier called 'ResNet-50'", "did you mean 'resnet50'?"]),
    ("run RUN.yaml --set explain.methods=[gradcam]", ["explain.methods", "did you mean 'grad_cam'?"]),
    ("run RUN.yaml --set archive.layout=BigEarthNet", ["archive.layout", "did you mean 'bigearthnet-v2'?"]),
    ("run RUN.yaml --set train.optimizer=adamW", ["train.optimizer: needs to be 'adamw', 'adam' or 'sgd'", "'adamw'?"]),
    ("run RUN.yaml --set train.seeds=[a]", ["train.seeds.0: needs a whole number, and is 'a'"]),
    ("run RUN.yaml --set resources.actors=all", ["resources.actors: needs a whole number or 'auto', and is 'all'"]),
    ("run RUN.yaml --set train=3", ["train: needs settings of its own", "and is 3"]),
    ("run RUN.yaml --set archive={}", ["archive.layout: this setting is needed"]),
    ("run RUN.yaml --set store=htp://me:secret@host/x", ["store: a URL htp://… cannot be used", "s3://bucket/prefix"]),
    # places that are not there
    ("plan RUN.yaml", ["archive's root /nowhere/BigEarthNet is not a folder", "superscene doctor RUN.yaml"]),
    ("report RUN.yaml", ["/nowhere/store holds no finished run"]),
    ("report half", ["half holds no finished run", "run the flow first"]),
    ("report empty --set shard_size=4", ["--set changes a RUN.yaml, and empty is a store"]),
    ("export half --csv Table1", ["half has no table Table1: it has classes"]),
    ("export empty --list", ["empty holds no run, and no tables"]),
    ("export half", ["export writes one thing", "--csv TABLE"]),
    ("serve half", ["half holds no patches"]),
    ("serve RUN.yaml", ["RUN.yaml is a file, where a store's folder is needed", "RUN.yaml names /nowhere/store"]),
    ("explain RUN.yaml --patch x", ["/nowhere/store holds no finished run"]),
    ("explain RUN.yaml --patch x --classifier resnet81", ["no classifier 'resnet81'", "did you mean 'resnet18'?"]),
    ("explain RUN.yaml --patch x --out figure.gif", ["figure.gif: figures end in .png"]),
    ("explain RUN.yaml --patch x --sheet 3", ["--patch draws one patch and --sheet many"]),
    ("evaluate RUN.yaml --where 1=1", ["/nowhere/store holds no finished run"]),
    ("reliability RUN.yaml --set reliability.cluster=4", ["reliability.cluster", "did you mean 'clusters'?"]),
    ("train-sr RUN.yaml --set train_sr.model=bicubic", ["no trainable SR model called 'bicubic'", "srresnet"]),
    # stores
    ("status nowhere", ["there is no folder nowhere", "there are damaged, half"]),
    ("status halv", ["there is no folder halv", "did you mean half?"]),
    ("status empty", ["empty holds no run, and no tables", "superscene run RUN.yaml"]),
    ("status above", ["above holds no run, and no tables", "did you mean above/inner?"]),
    ("sql above/inner/tables/classes SELECT", ["holds no run, and no tables", "did you mean"]),
    ("status RUN.yaml", ["RUN.yaml is a file, where a store's folder is needed", "RUN.yaml names /nowhere/store"]),
    ("status s3:/bucket/store", ["there is no folder s3:/bucket/store", "did you mean s3://bucket/store?"]),
    ("status S3://bucket/store", ["a URL S3://… cannot be used", "did you mean 's3'?"]),
    ("status damaged", ["damaged/work/run.json is damaged", "remove it"]),
    ("status half", ["half holds no run", "superscene run RUN.yaml"]),
    ("sql empty SELECT", ["empty holds no run, and no tables"]),
    ("sql damaged SELECT", ["there are no tables in damaged/tables", "run the flow first"]),
    # SQL
    ("sql half SELEC", ["sql: Parser Error", "SELEC"]),
    ("sql half SELECT_*_FROM_classesx", ["classesx does not exist", "Did you mean", "classes"]),
    ("sql half SELECT_labl_FROM_classes", ["labl", "label"]),
    ("sql half DROP_TABLE_classes", ["one SELECT statement", "read-only"]),
    # models and files
    ("super-resolve no.tif out.tif --sr bicubic", ["the input no.tif is not there"]),
    ("super-resolve notes.txt out.tif --sr bicubic", ["notes.txt cannot be read as a raster"]),
    ("super-resolve notes.txt out.tif --sr HATS", ["no super-resolution model is called 'HATS'", "'hat_s'?"]),
    ("super-resolve no.tif out.tif --sr seesr", ["superscene: seesr is for patches", "choose another model with --sr"]),
    ("super-resolve notes.txt out.tif --sr bicubic --dtype float61", ["does not run in float61", "float32"]),
    ("weights fetch realesrgn", ["no model is called 'realesrgn'", "did you mean 'realesrgan'?"]),
    ("weights fetch bicubic", ["bicubic has no weight file"]),
    ("weights fetch seesr", ["seesr has several weight files", "ram_swin_large_14m.pth", "docs/seesr.md", "/seesr"]),
    ("weights add hat no.pth", ["no weight file that can be read at no.pth: No such file or directory"]),
    ("weights add hat notes.txt", ["notes.txt is not HAT_SRx4", "SHA-256", "weights: {hat: FILE}"]),
    ("synth notes.txt", ["notes.txt is not a folder", "choose another place"]),
    ("demo notes.txt", ["cannot write notes.txt", "file"]),
    ("demo demo --patches 1 --sr sesr", ["no SR model called 'sesr'", "did you mean 'seesr'?"]),
    ("demo demo --patches 1 --sr seesr", ["seesr needs weights", "ram_swin_large_14m.pth", "docs/seesr.md"]),
    ("doctor Run.yml", ["there is no file Run.yml", "did you mean RUN.yaml?"]),
    ("doctor http://host/store", ["a URL http://… cannot be used"]),
    ("doctor empty --set a=b", ["--set changes settings of a RUN.yaml, and empty is a store"]),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a RUN.yaml, a broken one, notes, and stores that are empty, half made and damaged."""
    folder = tmp_path_factory.mktemp("mistakes")
    (folder / "RUN.yaml").write_text(RUN_YAML)
    (folder / "broken.yaml").write_text("store: /data\na: [\n")
    (folder / "notes.txt").write_text("to do\n")
    (folder / "runs").mkdir()
    (folder / "runs" / "mine.yaml").write_text(RUN_YAML)
    (folder / "empty").mkdir()
    (folder / "damaged" / "work").mkdir(parents=True)
    (folder / "damaged" / "work" / "run.json").write_text("{")
    for store in (folder / "half", folder / "above" / "inner"):
        row = {"label_index": 0, "label": "Pastures"}
        publish(store / "tables" / "classes", pa.Table.from_pylist([row], CLASSES), CLASSES, [])
    return folder


@pytest.mark.parametrize(("line", "words"), MISTAKES, ids=[line for line, _ in MISTAKES])
def test_a_mistake_is_told_with_what_to_do(
    line: str,
    words: list[str],
    place: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """A blank within an argument is written as _."""
    monkeypatch.chdir(place)
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.setenv("RAY_ADDRESS", "")
    monkeypatch.setenv("PREFECT_HOME", str(place / "prefect"))
    command, *rest = line.split(" ")
    arguments = [text.replace("_", " ") if command == "sql" and " " not in text else text for text in rest]
    monkeypatch.setattr("sys.argv", ["superscene", command, *arguments])
    with pytest.raises(SystemExit) as exit_:
        main()
    told = capsys.readouterr()
    assert exit_.value.code == 2, told
    assert told.out == ""
    assert "Traceback" not in told.err
    assert "secret" not in told.err
    text = " ".join(re.sub(r"[│╭╮╰╯─]", " ", told.err).split())
    assert all(word in text for word in words), text


def test_every_command_has_its_mistakes() -> None:
    tried = {line.split(" ")[0] for line, _ in MISTAKES}
    assert tried >= {*COMMANDS, "weights"}, {*COMMANDS, "weights"} - tried
