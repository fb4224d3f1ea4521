"""The tiny random configuration: always the same, fast, and of one piece with the real one."""

import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from sr_models.condition import Condition
from sr_models.seesr.options import SeesrOptions
from sr_models.seesr.tiny import tiny, write_tiny_folder


def test_always_the_same_and_leaves_the_random_state_alone(tmp_path: Path) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    one = tiny(SeesrOptions()).state_dict()
    assert torch.equal(before, torch.get_rng_state())
    torch.manual_seed(6)
    other = tiny(SeesrOptions()).state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_small_and_fast() -> None:
    model = tiny(SeesrOptions(steps=10))
    assert sum(parameter.numel() for parameter in model.parameters()) < 500_000
    x = torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))
    model(x, [Condition("a")])
    started = time.process_time()
    model(x, [Condition("a")])
    assert time.process_time() - started < 1.0


def test_controlnet_has_a_say(tmp_path: Path) -> None:
    """Its outputs are zero before training; here they are not, so that tests see what it does."""
    write_tiny_folder(tmp_path)
    state = load_file(tmp_path / "seesr/controlnet/diffusion_pytorch_model.safetensors")
    outputs = [value for name, value in state.items() if name.startswith("controlnet_") and name.endswith("weight")]
    assert len(outputs) > 3
    assert all(value.abs().max() > 0 for value in outputs)
