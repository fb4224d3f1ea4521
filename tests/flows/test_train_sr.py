"""`superscene train-sr` as a user meets it: the archive's own patches in, weights that every command takes out."""

from pathlib import Path

import pytest
import torch

import sr_models
from sr_models.trained_weights import provenance
from tests.flows.stores import Inputs, superscene


@pytest.fixture(autouse=True)
def _awake(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_worker_niceness", "0")  # Ray's 15 lets workers starve beside other tests


@pytest.mark.slow
def test_the_archive_s_patches_become_weights(inputs: Inputs, tmp_path: Path) -> None:
    out = tmp_path / "weights.safetensors"
    fit = {"model": "realesrgan_general", "steps": 2, "batch_size": 2, "crop": 16, "warmup": 0, "out": str(out)}
    config = inputs.config(tmp_path / "store", None, train_sr={**fit, "terms": "CDLA-Permissive-1.0"})
    first = superscene("train-sr", config, alone=True)
    assert first.returncode == 0, first.stderr
    assert "step 2 of 2" in first.stderr
    assert f"{out}, SHA-256 {sr_models.fingerprint('realesrgan_general', out)['weights_sha256']}" in first.stdout
    made = provenance(out)
    assert (made["terms"], made["settings"]["steps"], list(made["sources"])) == ("CDLA-Permissive-1.0", 2, ["patches"])
    assert str(tmp_path) not in str(made)
    enlarged = sr_models.load("realesrgan_general", out)(torch.rand(1, 3, 8, 8))
    assert enlarged.shape == (1, 3, 32, 32)
