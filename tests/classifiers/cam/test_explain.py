"""Oracles: identities between ways to ask, autograd by hand for chosen labels, and the state of the model before."""

import pytest
import torch
from torch import Tensor, nn

from classifiers.cam.explain import explain, explain_methods
from classifiers.network import Classifier
from infra.errors import ConfigError, ShapeError, UnknownNameError


def test_labels_are_chosen_in_the_order_asked(model: Classifier, x: Tensor) -> None:
    every = explain(model, x, "grad_cam")
    assert torch.equal(explain(model, x, "grad_cam", labels="all"), every)
    torch.testing.assert_close(explain(model, x, "grad_cam", labels=[3, 0]), every[:, [3, 0]])
    hooked = explain(model, x, "grad_cam", labels=[3, 0], target_layer="layer3")
    torch.testing.assert_close(hooked, explain(model, x, "grad_cam", target_layer="layer3")[:, [3, 0]])


@pytest.mark.parametrize("layer", [None, "layer3"])
def test_labels_may_differ_between_patches(model: Classifier, x: Tensor, layer: str | None) -> None:
    """What a patch did not ask for is NaN, what it did is what all labels give."""
    every = explain(model, x, "grad_cam", target_layer=layer)
    probs = model(x).sigmoid().detach()
    limits = probs.median(dim=0).values.tolist()  # a third of the patches lies below, so patches differ
    truth = torch.tensor([[1, 0, 0, 0, 1], [0, 0, 0, 0, 0], [0, 1, 0, 0, 0]])
    wanted = {
        "lists": (explain(model, x, "grad_cam", [[0, 4], [], [1]], layer), truth == 1),
        "true": (explain(model, x, "grad_cam", "true", layer, truth=truth), truth == 1),
        "predicted": (
            explain(model, x, "grad_cam", "predicted", layer, thresholds=limits),
            probs >= torch.tensor(limits),
        ),
        "softmax": (
            explain(model, x, "grad_cam", "predicted", layer, activation="softmax"),
            nn.functional.one_hot(model(x).argmax(dim=1), 5) == 1,
        ),
    }
    for name, (maps, mask) in wanted.items():
        assert maps.shape == every.shape, name
        assert mask.any(), name
        assert not mask.all(), name
        torch.testing.assert_close(maps[mask], every[mask], msg=name)
        assert maps[~mask].isnan().all(), name


def test_no_patch_with_a_label_gives_no_map(model: Classifier, x: Tensor) -> None:
    assert explain(model, x, "grad_cam", "predicted", thresholds=1.1).isnan().all()


def test_maps_do_not_depend_on_the_batch(model: Classifier, x: Tensor) -> None:
    for layer in ("layer4", "layer2"):
        whole = explain(model, x, "grad_cam", target_layer=layer)
        single = torch.cat([explain(model, image[None], "grad_cam", target_layer=layer) for image in x])
        torch.testing.assert_close(single, whole, rtol=1e-4, atol=1e-7)


@pytest.mark.parametrize("layer", [None, "layer2", "layer4.1.bn2"])
def test_leaves_the_model_and_the_input_as_they_were(model: Classifier, x: Tensor, layer: str | None) -> None:
    model.train()
    model.backbone.get_submodule("layer1").eval()
    modes = [module.training for module in model.modules()]
    state = {key: value.clone() for key, value in model.state_dict().items()}
    before = x.clone()
    explain(model, x, "grad_cam", target_layer=layer)
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
    assert all(parameter.grad is None and parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._backward_hooks for module in model.modules())
    assert torch.equal(x, before)
    assert not x.requires_grad
    model.eval()


def test_works_inside_inference_mode_and_on_frozen_models(model: Classifier, x: Tensor) -> None:
    expected = explain(model, x, "grad_cam", target_layer="layer3")
    model.requires_grad_(requires_grad=False)
    try:
        with torch.inference_mode():
            found = explain(model, x * 1.0, "grad_cam", target_layer="layer3")
    finally:
        model.requires_grad_(requires_grad=True)
    torch.testing.assert_close(found, expected)


class Aside(nn.Module):
    """A backbone with a layer that leads nowhere, and one that is not a picture."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.aside, self.flat = nn.Conv2d(3, 2, 1), nn.Conv2d(3, 2, 1), nn.Flatten()

    def forward(self, x: Tensor) -> Tensor:
        self.aside(x)
        self.flat(x)
        return self.conv(x)  # type: ignore[no-any-return]


def test_refuses_layers_that_cannot_be_explained(x: Tensor) -> None:
    model = Classifier(Aside(), nn.Linear(2, 2), "conv", 2)
    with pytest.raises(ShapeError, match="no logit depends on layer 'aside'"):
        explain(model, x, "grad_cam", target_layer="aside")
    with pytest.raises(ShapeError, match="layer 'flat' must give"):
        explain(model, x, "grad_cam", target_layer="flat")
    with pytest.raises(UnknownNameError, match="no layer 'conv9': choose one of conv, aside, flat"):
        explain(model, x, "grad_cam", target_layer="conv9")
    assert model.training
    assert not any(module._forward_hooks for module in model.modules())


def test_refuses_what_is_not_there(model: Classifier, x: Tensor) -> None:
    assert "grad_cam" in explain_methods()
    with pytest.raises(UnknownNameError, match="grad_cam"):
        explain(model, x, "cam9")
    with pytest.raises(ConfigError, match="does not take samples: it has no options"):
        explain(model, x, "grad_cam", samples=3)
    for labels in ([5], [-1], [], [[5], [], []]):
        with pytest.raises(ConfigError, match="labels 0 to 4"):
            explain(model, x, "grad_cam", labels=labels)
    with pytest.raises(ConfigError, match="3 patches need as many lists"):
        explain(model, x, "grad_cam", labels=[[0], [1]])
    with pytest.raises(ConfigError, match=r"multi-hot \(3, 5\), got none"):
        explain(model, x, "grad_cam", labels="true")
    with pytest.raises(ConfigError, match="'some' is none of"):
        explain(model, x, "grad_cam", labels="some")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="5 labels need one threshold or as many, got 2"):
        explain(model, x, "grad_cam", labels="predicted", thresholds=[0.5, 0.5])
    with pytest.raises(ShapeError):
        explain(model, x[0], "grad_cam")
