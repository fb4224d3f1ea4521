"""Oracle: a round trip, and every kind of damage."""

import io

import pytest
import torch

from classifiers.training.state import BestState, TrainingState, pack, unpack
from infra.errors import WeightsError

STATE = TrainingState(
    settings={"epochs": 3, "patience": None, "loss": "bce"},
    samples={"training": 4},
    network={"weight": torch.tensor([[1.5, -0.0]]), "steps": torch.tensor(3)},
    mean=None,
    optimizer={"state": {0: {"step": torch.tensor(2.0)}}, "param_groups": [{"lr": 0.1, "params": [0]}]},
    rows=[{"epoch": 0, "validation_ap_macro": 0.25, "best": True}],
    best=BestState(epoch=0, score=0.25, weights={"weight": torch.ones(2).double()}, thresholds=[0.5, 1 / 3]),
    occurrences=torch.tensor([3, 0]),
)


def test_a_state_comes_back_as_it_was() -> None:
    found = unpack(pack(STATE))
    for key in ("settings", "samples", "mean", "rows"):
        assert found[key] == STATE[key]
    assert torch.equal(found["network"]["weight"], STATE["network"]["weight"])
    assert found["network"]["steps"].dtype == torch.int64
    assert found["optimizer"]["param_groups"] == STATE["optimizer"]["param_groups"]
    assert found["best"]["thresholds"] == [0.5, 1 / 3]
    assert torch.equal(found["best"]["weights"]["weight"], torch.ones(2).double())


def test_damage_is_told() -> None:
    whole = pack(STATE)
    for cut in (0, 10, 40, 100, len(whole) - 1):
        with pytest.raises(WeightsError, match="saved training state"):
            unpack(whole[:cut])
    for place in range(30, len(whole), 97):
        spoilt = bytearray(whole)
        spoilt[place] ^= 4
        with pytest.raises(WeightsError, match="damaged"):
            unpack(bytes(spoilt))


def test_another_program_s_file_is_told() -> None:
    other = io.BytesIO()
    torch.save({"settings": {}}, other)
    with pytest.raises(WeightsError, match="another version"):
        unpack(other.getvalue())
