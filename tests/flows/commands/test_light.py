"""Commands that only look import none of the libraries that work: torch alone takes 500 MB."""

import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

import pytest
import yaml

from infra.archives.synthetic import write_synthetic_archive
from infra.storage import StorePaths
from tasks.run_record import RunRecord

HEAVY = (
    *("torch", "torchvision", "timm", "basicsr", "diffusers", "transformers", "spandrel", "sklearn", "scipy"),
    *("ray", "prefect", "fastapi", "matplotlib", "duckdb", "xarray"),
)

CODE = f"""
import sys
from flows.cli import main
try:
    main()
except SystemExit as end:
    assert not end.code, end.code
print("imported:", *sorted(set(sys.modules) & set({HEAVY})))
"""


def imported_by(*command: str) -> list[str]:
    done = subprocess.run([sys.executable, "-c", CODE, *command], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    *_, last = done.stdout.splitlines()
    word, *names = last.split()
    assert word == "imported:"
    return names


@pytest.fixture(scope="module")
def run_yaml(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Asks for as much of the models as a RUN.yaml can: weights, options, variants, costly methods, clusters."""
    folder = tmp_path_factory.mktemp("light")
    write_synthetic_archive(folder / "archive", 3)
    settings = {
        "archive": {"layout": "bigearthnet-v2", "root": str(folder / "archive")},
        "store": str(folder / "store"),
        "shard_size": 64,
        "sr": ["none", "bicubic", "srresnet", "seesr_tiny"],
        "sr_options": {"seesr_tiny": {"steps": 2, "land_cover": "predictions"}},
        "sr_dtype": "bfloat16",
        "classifiers": ["resnet18", "resnet152", "inception_v4", "deep"],
        "variants": {"deep": {"network": "resnet50", "train": {"head": "mlp"}}},
        "train": {"backbone": "random"},
        "explain": {
            "methods": ["grad_cam", "grad_plus_plus_score_cam", "rise", "lime", "occlusion", "smooth_grad_cam_pp"],
            "options": {"rise": {"masks": 100}},
            "sample": 2,
        },
        "reliability": {"method": "grad_cam"},
    }
    path = folder / "RUN.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


def test_plan_imports_no_model(run_yaml: Path) -> None:
    assert imported_by("plan", str(run_yaml), "--price-per-hour", "2.5") == []


def test_status_imports_nothing_that_works(run_yaml: Path) -> None:
    store = run_yaml.parent / "looked at"
    RunRecord(StorePaths(store), "{}", datetime.now(UTC)).save("running")
    assert imported_by("status", str(store)) == []
    assert imported_by("status", str(store), "--json") == []
