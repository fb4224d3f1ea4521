"""What every classifier's network has to keep, checked without training: for networks of your own."""

import tempfile
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from classifiers.cam.explain import explain
from classifiers.cam.gradients import layer_activations
from classifiers.network import Classifier
from classifiers.registry import ClassifierSpec, build, spec
from infra.errors import ConfigError, PipelineError

_LABELS = 4
_CLOSE = 1e-4  # in units of the activations: what batches of another size may differ by
_FAILS = (RuntimeError, ValueError, TypeError, LookupError, AttributeError, NotImplementedError)


def check_classifier(name: str) -> None:
    """Check that a network does what its `ClassifierSpec` says, and what runs take for granted.

    Images of `min_size` and of 96 pixels, of three bands and of five, become `feature_channels` activations, those of
    `target_layer`; the size of maps is told without data; each image is by itself, and the same each time; a weight
    file of three bands fits a network of three and of five; a Grad-CAM is made. A few seconds for a small network.

    Args:
        name: One of `names()`.

    Raises:
        ConfigError: It does not; the message names everything that is wrong.
        UnknownNameError: There is no such classifier.
    """
    entry, faults = spec(name), []
    for channels in (3, 5):
        try:
            torch.manual_seed(0)
            faults += _wrong_activations(entry, build(name, _LABELS, channels).eval(), channels)
        except _FAILS as error:
            faults.append(f"with {channels} bands it fails ({type(error).__name__}: {error})")
    if not faults:
        faults += _wrong_files(name, entry)
    if faults:
        raise ConfigError(f"{name} does not keep the contract of a classifier: {'; '.join(faults)}")


def _images(count: int, channels: int, edge: int) -> Tensor:
    return torch.randn(count, channels, edge, edge, generator=torch.Generator().manual_seed(0))


def _wrong_activations(entry: ClassifierSpec, model: Classifier, channels: int) -> list[str]:
    faults = []
    for edge in sorted({entry.min_size, max(96, entry.min_size)}):
        images = _images(2, channels, edge)
        with torch.no_grad():
            found = model.features(images)
            if found.ndim != 4 or found.shape[:2] != (2, entry.feature_channels):
                wanted = f"(2, {entry.feature_channels}, h, w)"
                return [f"images of {edge} pixels become {tuple(found.shape)}, where {wanted} is needed"]
            alone = torch.cat([model.features(image[None]) for image in images])
            again = model.features(images)
        if not torch.equal(again, found) or not torch.allclose(alone, found, atol=_CLOSE):
            return ["what an image becomes depends on chance, or on those beside it in the batch"]
        if model.map_size((channels, edge, edge)) != found.shape[2:]:
            faults.append(f"at {edge} pixels the size of its activations depends on more than the size of the image")
        if entry.map_edge is not None and (entry.map_edge(edge),) * 2 != found.shape[2:]:
            faults.append(f"at {edge} pixels map_edge is {entry.map_edge(edge)}, and its activations {found.shape[2]}")
        if not torch.allclose(layer_activations(model, images, entry.target_layer), found, atol=_CLOSE):
            faults.append(f"the output of target_layer, {entry.target_layer}, is not what the head pools")
    if not faults and not explain(model, _images(1, channels, 96), "grad_cam", labels=[0]).isfinite().all():
        faults.append("its Grad-CAM is not finite")
    return faults


def _wrong_files(name: str, entry: ClassifierSpec) -> list[str]:
    state = {key: value.contiguous() for key, value in build(name, _LABELS).backbone.state_dict().items()}
    first = state.get(entry.first_conv)
    if first is None or first.ndim != 4 or first.shape[1] != 3:
        return [f"first_conv, {entry.first_conv}, is not the convolution that sees the three bands"]
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "backbone.safetensors"
        safetensors.torch.save_file(state, path)
        for channels in (3, 5):
            try:
                build(name, _LABELS, channels, weights=path)
            except PipelineError as error:
                return [f"a file of its own parameters does not fit {channels} bands ({error})"]
    return []
