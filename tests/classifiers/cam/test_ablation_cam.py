"""Oracle: one forward pass for each patch and channel; `test_peers.py` has other libraries."""

import pytest
import torch
from torch import Tensor

from classifiers.cam.explain import explain
from classifiers.cam.target import Target
from classifiers.network import Classifier
from tests.classifiers.cam.small_networks import images, network


def transcribed(model: Classifier, image: Tensor, layer: str) -> Tensor:
    a = Target(model, image[None], (0,), layer).activations[0].detach()
    whole = model(image[None])[0].detach()
    maps = torch.zeros(3, *a.shape[1:], dtype=a.dtype)
    for k in range(len(a)):

        def without(_module: object, _inputs: object, output: Tensor, k: int = k) -> Tensor:
            changed = output.clone()
            changed[:, k] = 0
            return changed

        handle = model.backbone.get_submodule(layer).register_forward_hook(without)
        drop = whole - model(image[None])[0].detach()
        handle.remove()
        maps += drop[:, None, None] * a[k]
    return maps.clamp(min=0)


@pytest.mark.parametrize("layer", ["last", "deep"])
@pytest.mark.parametrize("head", ["linear", "mlp"])
def test_equals_a_forward_pass_for_each_channel(head: str, layer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("classifiers.cam.ablation_cam._NUMBERS_AT_ONCE", 10)  # two channels at once
    model, x = network(head), images()
    expected = torch.stack([transcribed(model, image, layer) for image in x])
    assert expected.amax(dim=(0, 2, 3)).max() > 0
    found = explain(model, x, "ablation_cam", target_layer=layer)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(
        explain(model, x, "ablation_cam", labels=[2], target_layer=layer), expected[:, [2]], rtol=1e-9, atol=1e-12
    )
