"""The names of SeeSR's files: all of them, and nothing else, known without an import of its networks."""

import hashlib
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from infra.errors import WeightsError
from sr_models.seesr import layout
from sr_models.seesr.layout import files
from sr_models.seesr.tiny import write_tiny_folder
from sr_models.weight_files import weights_digest
from tests.sr_models.seesr.tiny_folder import BASE, NAMES, OPTIONS, VAE


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    write_tiny_folder(tmp_path)
    return tmp_path


def test_files_are_those_that_determine_the_output(folder: Path) -> None:
    (folder / "README.md").write_text("not read")
    (folder / BASE / "tokenizer/tokenizer_config.json").write_text("{}")
    assert [path.as_posix() for path in files(folder)] == NAMES


def test_the_digest_is_that_of_what_sha256sum_prints(folder: Path) -> None:
    listing = "".join(f"{hashlib.sha256((folder / name).read_bytes()).hexdigest()}  {name}\n" for name in NAMES)
    digest = hashlib.sha256(listing.encode()).hexdigest()
    assert weights_digest("seesr", folder, OPTIONS) == digest
    (folder / "README.md").write_text("not read")
    assert weights_digest("seesr", folder, OPTIONS) == digest
    for name in NAMES:
        path = folder / name
        content = path.read_bytes()
        path.write_bytes(content + b" ")
        assert weights_digest("seesr", folder, OPTIONS) != digest
        path.write_bytes(content)
    assert weights_digest("seesr", folder, OPTIONS) == digest


def test_all_missing_files_in_one_message(folder: Path) -> None:
    shutil.rmtree(folder / BASE)
    (folder / "DAPE.pth").unlink()
    with pytest.raises(WeightsError, match="lacks 9 of the 16") as caught:
        files(folder)
    assert "\n  DAPE.pth: SeeSR's DAPE" in str(caught.value)
    assert f"\n  {VAE} or {BASE}/vae/diffusion_pytorch_model.bin: Stable Diffusion 2-base's VAE" in str(caught.value)


def test_names_are_said_once() -> None:
    """The tree in the module's docstring has every file that is asked for, in its folder."""
    assert layout.__doc__ is not None
    drawn, inside = set[str](), list[str]()
    for line in layout.__doc__.splitlines():
        tree = re.match(r"    ((?:[│ ]   )*)[├└]── (\S+?)(?: {2,}.*)?$", line.replace(", ", ","))
        if tree:
            inside = [*inside[: len(tree[1]) // 4], tree[2]]
            stem, *several = re.split(r"[{}]", "/".join(inside))
            drawn |= {f"{stem}{name}" for name in several[0].split(",")} if several else {stem}
    assert drawn - {BASE, "seesr"} == {name for name in NAMES if name != "dape_config.json"}


def test_the_listing_costs_no_import_of_networks(folder: Path) -> None:
    """In a process of its own: options are checked, files listed, their digest made."""
    code = f"""
import sys, sr_models
from pathlib import Path
from sr_models.weight_files import weights_digest
options = sr_models.spec("seesr").chosen("seesr", {{"steps": 2}})
print(len(sr_models.spec("seesr").folder.files(Path({str(folder)!r}), options)))
weights_digest("seesr", Path({str(folder)!r}), options)
print([name for name in ("diffusers", "transformers") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "17\n[]\n"
