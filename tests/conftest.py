"""Fixtures that every test may use."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

# Tests run side by side: threads that wait for each other make a small network fifty times slower.
torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def _own_weights_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty weights store, for the processes that tests start too: what the user has stored changes no test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERSCENE_WEIGHTS", str(tmp_path_factory.mktemp("weights-store")))
        patch.delenv("SUPERSCENE_OFFLINE", raising=False)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and weights, where it is at hand."""
    folder = os.environ.get("SUPERSCENE_DATA")
    if not folder:
        pytest.skip("SUPERSCENE_DATA is not set: real data not at hand")
    return Path(folder)
