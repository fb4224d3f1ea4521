from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest

from flows.config import RunConfig
from flows.run import Run
from infra import ray_pool
from infra.ray_pool import Resources
from infra.storage import StorePaths
from tasks.run_record import RunRecord


@pytest.mark.parametrize("cluster", [False, True])
def test_weights_are_where_all_workers_have_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, cluster: bool
) -> None:
    """In their own place on one machine, in the store where nodes may come from elsewhere."""
    monkeypatch.setattr(ray_pool, "_elastic", cluster)
    file, paths = tmp_path / "model.safetensors", StorePaths(tmp_path / "store")
    file.write_bytes(b"weights")
    nothing = SimpleNamespace()
    run = Run(cast("RunConfig", nothing), paths, cast("RunRecord", nothing), Resources(), {})
    found = run.on_all_nodes(file)
    assert found.read_bytes() == b"weights"
    assert found.is_relative_to(paths.root) == cluster
    assert paths.root.exists() == cluster
