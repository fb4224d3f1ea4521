"""What SECURITY.md says and no single module answers for."""

import ast
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import ray
from ray._private.worker import global_worker

from infra.ray_cluster import cluster
from tests.unsafe_code import faults, faults_below

PROJECT = Path(__file__).parents[1]
SOURCES = ("flows", "explorer", "tasks", "sr_models", "classifiers", "infra")
BESIDE = ("benchmarks", "docs", ".ci")
PAGE = (PROJECT / "SECURITY.md").read_text(encoding="utf-8")


def test_no_file_is_run_unpickled_or_read_as_what_its_content_says() -> None:
    assert not faults_below(PROJECT, SOURCES)
    beside = [(path, fault) for path, found in faults_below(PROJECT, BESIDE).items() for fault in found]
    opened = {"rasterio.open without driver", "PIL.Image.open without formats"}  # files that benchmarks have made
    assert not [(path, fault) for path, fault in beside if fault.what not in opened]


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load(p)",
        "import torch\ntorch.load(p, weights_only=False)",
        "import torch\ntorch.load(p, weights_only=safe)",
        "import torch as t\nt.load(p, map_location='cpu')",
        "from torch import load\nload(p)",
        "from torch import load as read\nread(p)",
        "import torch.serialization\ntorch.serialization.load(p)",
        "import torch\ntorch.jit.load(p)",
        "import pickle\npickle.load(f)",
        "import pickle\nread = pickle.loads",
        "import pickle as p\np.Unpickler(f)",
        "from pickle import loads",
        "import dill",
        "import joblib",
        "from ray import cloudpickle",
        "import ray.cloudpickle as c",
        "from numcodecs.pickles import Pickle",
        "import shelve",
        "def f():\n    import marshal",
        "import numpy as np\nnp.load(p)",
        "import numpy as np\nnp.load(p, allow_pickle=True)",
        "import numpy as np\nnp.save(p, a, allow_pickle=True)",
        "import yaml\nyaml.load(t)",
        "import yaml\nyaml.load(t, yaml.Loader)",
        "import yaml\nyaml.unsafe_load(t)",
        "import yaml\nclass L(yaml.Loader): pass\nyaml.load(t, L)",
        "from yaml import full_load\nfull_load(t)",
        "eval(t)",
        "exec(t)",
        "compile(t, 'x', 'exec')",
        "__import__(t)",
        "import os\nos.system(t)",
        "from os import popen\npopen(t)",
        "import subprocess\nsubprocess.run(t, shell=True)",
        "import tarfile\ntarfile.open(p).extractall(q)",
        "import zipfile\nzipfile.ZipFile(p).extract(n)",
        "import shutil\nshutil.unpack_archive(p)",
        "import pandas as pd\npd.read_pickle(p)",
        "frame.eval('a + b')",
        "import rasterio\nrasterio.open(p)",
        "from PIL import Image\nImage.open(p)",
    ],
)
def test_the_scan_finds(code: str) -> None:
    assert faults(code)


@pytest.mark.parametrize(
    "code",
    [
        "import torch\ntorch.load(p, map_location='cpu', weights_only=True)",
        "from torch import load\nload(p, weights_only=True)",
        "import pickle\ntry: pass\nexcept pickle.UnpicklingError: pass",
        "import yaml\nyaml.safe_load(t)",
        "import yaml\nclass L(yaml.SafeLoader): pass\nyaml.load(t, L)",
        "import numpy as np\nnp.load(p, allow_pickle=False)",
        "network.eval()",
        "import re\nre.compile(t)",
        "import rasterio\nrasterio.open(p, driver='GTiff')",
        "import safetensors.numpy\nsafetensors.numpy.load(b)",
        "import subprocess\nsubprocess.run([git, 'log'], shell=False)",
        "'torch.load(p)'  # only a text: eval(t)",
    ],
)
def test_the_scan_lets_through(code: str) -> None:
    assert not faults(code)


def test_the_page_names_tests_that_there_are() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", PAGE)
    assert len(named) > 15
    for file, test in named:
        tree = ast.parse((PROJECT / file).read_text(encoding="utf-8"))
        assert test in {node.name for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)}, f"{file}::{test}"


def test_the_readme_leads_to_the_page() -> None:
    assert "](SECURITY.md)" in (PROJECT / "README.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("RAY_ADDRESS", raising=False)
        with cluster():
            yield ray.get_runtime_context().gcs_address


_ASK = """
import sys
from ray._raylet import GcsClient
GcsClient(address=sys.argv[1]).internal_kv_keys(b"", b"fun", timeout=20)
print("answered")
"""


def ask(address: str, **variables: str) -> "subprocess.CompletedProcess[str]":
    environment = {key: value for key, value in os.environ.items() if not key.startswith("RAY_AUTH")} | variables
    return subprocess.run(
        [sys.executable, "-c", _ASK, address], env=environment, capture_output=True, text=True, check=False, timeout=120
    )


def test_ray_on_one_machine_has_no_dashboard(address: str) -> None:
    assert global_worker.node is not None
    assert not global_worker.node.address_info["webui_url"]


def test_ray_on_one_machine_answers_nobody_without_its_token(address: str) -> None:
    assert "answered" in ask(address, RAY_AUTH_MODE="token").stdout, "whoever has the user's own token"
    for variables in (
        {"RAY_AUTH_MODE": "disabled"},
        {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0123456789abcdef0123456789abcdef"},
    ):
        refused = ask(address, **variables)
        assert refused.returncode
        assert "answered" not in refused.stdout
        assert "nauthenticated" in refused.stderr or "UNAUTHENTICATED" in refused.stderr, refused.stderr[-2000:]


def test_prefect_s_own_server_listens_on_this_machine_alone() -> None:
    from prefect.settings import get_current_settings

    assert get_current_settings().server.api.host == "127.0.0.1"
