"""The contract of SR models: this package's keep it, and each way to break it is named."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import sr_models
from infra.errors import ConfigError, UnknownNameError
from sr_models import SrSpec, check_sr_model


class Enlarged(nn.Module):
    """Nearest neighbours, with a fault."""

    calls: Tensor

    def __init__(self, fault: str = "") -> None:
        super().__init__()
        self.fault = fault
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        y = nn.functional.interpolate(x, scale_factor=3 if self.fault == "scale" else 4, mode="nearest")
        if self.fault == "batch":
            y = y - y.mean(dim=0, keepdim=True) / 2
        if self.fault == "chance":
            y = y + torch.rand(1, dtype=y.dtype) / 10
        if self.fault == "state":
            self.calls += 1
        if self.fault == "small":
            y = nn.functional.pad(y, (2, 2, 2, 2), mode="reflect")[..., 2:-2, 2:-2] if x.shape[-1] > 1 else y[..., :1]
        if self.fault == "nan":
            y = y / 0 * 0
        if self.fault == "far":
            y = y + y.roll(9 * 4, dims=-1) / 4
        if self.fault == "bands":
            y = y * torch.tensor([1.0, 0.5, 0.25], dtype=y.dtype)[:, None, None]
        if self.fault == "half" and y.dtype == torch.bfloat16:
            y = y / 0 * 0
        return y


class Drawn(nn.Conv2d):
    """Parameters drawn by chance, of which nobody says that they come from a file."""

    def __init__(self) -> None:
        super().__init__(3, 48, 1)

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.pixel_shuffle(super().forward(x), 4).sigmoid()


def entry(architecture: Callable[..., nn.Module], fault: str | None) -> SrSpec:
    return SrSpec(
        title="a model with a fault",
        scale=4,
        architecture=architecture,
        parameters={} if fault is None else {"fault": fault},
        paper="none",
        licence="none",
        receptive_radius=0,
        bandwise=fault == "bands",
        dtypes=("float32", "bfloat16") if fault == "half" else ("float32",),
    )


def offer(monkeypatch: pytest.MonkeyPatch, spec: SrSpec) -> None:
    monkeypatch.setattr("sr_models.registry.SR_MODELS", {**sr_models.SR_MODELS, "mine": spec})


@pytest.mark.parametrize("name", ["none", "bicubic", "srresnet"])
def test_this_package_s_models_keep_it(name: str) -> None:
    check_sr_model(name)


def test_a_model_that_is_told_of_its_images_keeps_it() -> None:
    check_sr_model("seesr_tiny", options={"steps": 2})


def test_official_weights_keep_it(shared_data: Path) -> None:
    check_sr_model("realesrgan_general", shared_data / "weights" / "realesr-general-x4v3-fp16.pth")


def test_a_model_without_a_fault_keeps_it(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, entry(Enlarged, ""))
    check_sr_model("mine")


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("scale", r"17 x 23 become \(2, 3, 51, 69\), where \(2, 3, 68, 92\) is needed"),
        ("batch", "depends on those beside it"),
        ("chance", "something else the second time"),
        ("state", "changes the network's parameters or buffers"),
        ("small", r"images of 1 x 1 become \(2, 3, 4, 1\)"),
        ("nan", "not finite"),
        ("far", "a pixel reaches 9 pixels far, and receptive_radius is 0"),
        ("bands", "called bandwise"),
        ("half", "in bfloat16 its output is not finite"),
    ],
)
def test_each_fault_is_named(monkeypatch: pytest.MonkeyPatch, fault: str, said: str) -> None:
    offer(monkeypatch, entry(Enlarged, fault))
    with pytest.raises(ConfigError, match=rf"mine does not keep the contract of an SR model: .*{said}"):
        check_sr_model("mine")


def test_parameters_that_no_file_brings(monkeypatch: pytest.MonkeyPatch) -> None:
    offer(monkeypatch, entry(Drawn, None))
    with pytest.raises(ConfigError, match="loaded anew it is another model"):
        check_sr_model("mine")


def test_a_name_that_there_is_not() -> None:
    with pytest.raises(UnknownNameError, match="mine"):
        check_sr_model("mine")
