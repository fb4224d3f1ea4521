from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from infra.errors import WeightsError
from sr_models import load
from sr_models.trained_weights import METADATA_KEY, provenance, to_bytes
from sr_models.training import initial_network


def test_weights_come_back_rounded_to_half_precision_with_where_they_come_from(tmp_path: Path) -> None:
    state = initial_network("srresnet", None, 3).state_dict()
    path = tmp_path / "weights.safetensors"
    path.write_bytes(to_bytes(state, {"model": "srresnet", "steps": 7, "terms": "CC BY-SA 4.0"}))
    assert provenance(path) == {"model": "srresnet", "steps": 7, "terms": "CC BY-SA 4.0"}
    loaded = load("srresnet", path).network.state_dict()
    assert all(torch.equal(loaded[key], value.half().float()) for key, value in state.items())
    assert path.stat().st_size < 2.1 * sum(value.numel() for value in state.values())


def test_equal_weights_are_equal_bytes() -> None:
    state = initial_network("srresnet", None, 3).state_dict()
    assert to_bytes(state, {"b": 1, "a": 2}) == to_bytes(dict(reversed(state.items())), {"a": 2, "b": 1})


def test_what_half_precision_cannot_hold_is_refused() -> None:
    with pytest.raises(WeightsError, match="float16 cannot hold"):
        to_bytes({"w": torch.tensor([70_000.0])}, {})


def test_a_file_that_does_not_say_and_one_that_is_none(tmp_path: Path) -> None:
    from safetensors.torch import save_file

    save_file({"w": torch.zeros(1)}, tmp_path / "silent.safetensors")
    assert provenance(tmp_path / "silent.safetensors") == {}
    (tmp_path / "cut.safetensors").write_bytes(b"no")
    with pytest.raises(WeightsError, match="cannot be read"):
        provenance(tmp_path / "cut.safetensors")


def test_provenance_nested_without_end_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    save_file({"a": torch.zeros(1)}, path, {METADATA_KEY: "[" * 100_000 + "]" * 100_000})
    with pytest.raises(WeightsError, match="cannot be read"):
        provenance(path)
