"""Oracle: the same fit on one worker."""

from typing import Any

import pytest
import torch
from torch.multiprocessing.spawn import spawn

from classifiers.training.workers import Workers
from infra.errors import ConfigError
from tests.classifiers.training.training_workers import SHARED, shared_fit, work


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What two processes found, each."""
    folder = tmp_path_factory.mktemp("workers")
    spawn(work, (folder,), nprocs=2)  # type: ignore[no-untyped-call]
    return [torch.load(folder / f"{rank}.pt", weights_only=True) for rank in range(2)]


@pytest.mark.parametrize("name", SHARED)
def test_two_workers_give_what_one_gives(found: list[dict[str, Any]], name: str) -> None:
    """Also where a worker has no sample in a step; the sum of gradients is only rounded otherwise."""
    alone: dict[str, Any] = shared_fit(name, 0, 1)
    tolerance = 1e-10 if SHARED[name][2] == torch.float64 else 1e-5
    for both in found:
        assert len(both[name]["rows"]) == 3
        for mine, theirs in zip(alone["rows"], both[name]["rows"], strict=True):
            assert theirs == pytest.approx(mine, rel=0, abs=tolerance)
        for key, value in alone["weights"].items():
            torch.testing.assert_close(both[name]["weights"][key], value, rtol=0, atol=tolerance)
        assert both[name]["thresholds"] == pytest.approx(alone["thresholds"], rel=0, abs=tolerance)
        assert both[name]["absent"] == alone["absent"]
    assert alone["rows"][0]["train_loss"] != alone["rows"][-1]["train_loss"]


def test_workers_end_alike_where_each_has_statistics_of_its_own(found: list[dict[str, Any]]) -> None:
    first, second = (both["free norm"] for both in found)
    assert first["rows"] == second["rows"]
    assert all(torch.equal(value, second["weights"][key]) for key, value in first["weights"].items())
    assert first["weights"]["norm.running_mean"].any()


def test_what_one_worker_stumbles_over_stops_all_alike(found: list[dict[str, Any]]) -> None:
    first, second = found
    assert first["loss"] == second["loss"]
    assert "nan at step 2 (epoch 0), whose patches are P16, P17, P18" in first["loss"]
    assert "no epoch had ended" in first["loss"]
    assert first["labels"] == second["labels"]
    assert "P17 has 3:" in first["labels"]


def test_refuses_workers_that_do_not_know_each_other() -> None:
    with pytest.raises(ConfigError, match="no worker 2 among 2"):
        Workers(2, 2)
    with pytest.raises(ConfigError, match=r"torch\.distributed"):
        Workers(0, 2)
    assert Workers(0, 1).sum(torch.ones(2)).tolist() == [1, 1]
