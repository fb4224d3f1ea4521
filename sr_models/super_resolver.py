"""A super-resolution model ready to run: `load` makes one, calling it enlarges a batch."""

import os
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import cast

import torch
from pydantic import BaseModel
from torch import Tensor, nn

from infra.bigearthnet.bands import IMAGE_RGB, RGB
from infra.errors import ConfigError, ShapeError
from sr_models.band_groups import back_project, join, split
from sr_models.condition import Condition
from sr_models.registry import Scalar, spec
from sr_models.weight_files import weights_digest, weights_file
from sr_models.weights import load_into


@dataclass(frozen=True, slots=True, eq=False)
class SuperResolver:
    """A network on a device. Calls do not change it, so one may serve any number of batches in any order."""

    name: str
    """Name in `SR_MODELS`."""
    scale: int
    """Integer factor of enlargement."""
    network: nn.Module = field(repr=False)
    """In eval mode, on `device`, in `dtype`."""
    device: torch.device
    """Where it runs, and where its output lies."""
    dtype: torch.dtype = torch.float32
    """Precision of the network's parameters and activations."""
    weights_sha256: str | None = None
    """SHA-256 of the weight file, or of a folder's digests; None for a model without weights."""
    parameters: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))
    """Arguments and options the network was built with."""
    bands: tuple[str, ...] = RGB
    """Bands of the input and the output, in channel order; more than RGB go through the network in groups."""
    bandwise: bool = False
    """Whether each band is treated alone, so that any number may go through as they are."""
    memory_format: torch.memory_format = torch.contiguous_format
    """Layout of the network's parameters and of its input; channels last for convolutions."""
    distribution: str | None = None
    """Name and version of the distribution that brings the model; None for this package's own."""
    conditioned: bool = False
    """Whether it has to be told of each image: see `SrSpec.conditioned`."""

    def __call__(self, x: Tensor, conditions: Sequence[Condition] = ()) -> Tensor:
        """Return the batch enlarged, each image by itself.

        float32 means float32: TensorFloat-32 is off, whatever the process has set, so that devices agree. What the
        network returns beyond [0, 1] is clamped. Values are not checked: the network sees those beyond [0, 1] as they
        are, and a NaN spreads over the receptive field of its pixel (`SrSpec.receptive_radius`; the whole image for
        HAT), to no other image.

        Args:
            x: (N, C, H, W), floating point, in [0, 1], on any device; C is the number of `bands`, H and W from 1 on, of
                any multiple.
            conditions: What a conditioned model is told of each image, N of them; none for any other.

        Returns:
            (N, C, scale*H, scale*W), float32, in [0, 1], on `device`; free of autograd, fit for it later.

        Raises:
            ShapeError: x is not a floating-point (N, C, H, W), or conditions are not as many as the model needs.
        """
        channels = len(self.bands)
        if x.ndim != 4 or x.shape[1] != channels or 0 in x.shape[2:] or not x.is_floating_point():
            raise ShapeError(
                f"{self.name} needs floating point (N, {channels}, H, W) in [0, 1], got {x.dtype} {tuple(x.shape)}; "
                "DN are turned into [0, 1] by sr_models.to_unit"
            )
        if len(conditions) != (x.shape[0] if self.conditioned else 0):
            needs = f"one condition for each of {x.shape[0]} images" if self.conditioned else "no conditions"
            raise ShapeError(f"{self.name} needs {needs}, got {len(conditions)}")
        if x.shape[0] == 0:
            return x.new_zeros((0, channels, self.scale * x.shape[2], self.scale * x.shape[3]), dtype=torch.float32).to(
                self.device
            )
        x = x.to(self.device)
        grouped = channels > len(RGB) and not self.bandwise
        with torch.inference_mode(), self._exact_float32():
            images = split(x) if grouped else x
            if self.conditioned:  # several networks, of which each has its own precision
                y: Tensor = self.network(images.float(), [*conditions] * (len(images) // len(x))).float()
            else:
                y = self.network(images.to(self.dtype, memory_format=self.memory_format)).float()
            if grouped:
                y = back_project(join(y, channels), x.float())
        return y.clamp(0.0, 1.0)  # outside inference mode, so that autograd may use the result

    def compiled(self) -> "SuperResolver":
        """Return the same model compiled, for inputs of few shapes: the first call of each shape takes long.

        Raises:
            ConfigError: There is no C compiler, which `torch.compile` needs on every device.
        """
        if not (os.environ.get("CC") or any(shutil.which(name) for name in ("gcc", "clang", "cc"))):
            raise ConfigError(
                f"{self.name} is to be compiled, which needs a C compiler, and there is none: install gcc, or set "
                "`resources: {compile: false}`"
            )
        compile_parts = getattr(self.network, "compiled", None)  # of a network whose call is more than tensors
        network = compile_parts() if compile_parts else torch.compile(self.network, dynamic=False)
        return replace(self, network=cast("nn.Module", network))

    def identity(self) -> dict[str, Scalar | None]:
        """Return whatever determines the output: what a `config` is made of. Never paths, device or batch size."""
        return _identity(self.name, self.scale, self.parameters, self.weights_sha256, self.dtype, self.distribution)

    @contextmanager
    def _exact_float32(self) -> Iterator[None]:
        if self.dtype != torch.float32 and not self.conditioned:  # of those, some networks stay float32 in any case
            yield
            return
        now, products = torch.backends.cudnn, torch.get_float32_matmul_precision()
        torch.set_float32_matmul_precision("highest")  # no TensorFloat-32 in linear layers, on CPUs no bfloat16
        try:
            with now.flags(now.enabled, benchmark=now.benchmark, deterministic=now.deterministic, allow_tf32=False):
                yield
        finally:
            torch.set_float32_matmul_precision(products)


def load(
    name: str,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    dtype: str | torch.dtype | None = None,
    bands: tuple[str, ...] = RGB,
    options: Mapping[str, object] | None = None,
) -> SuperResolver:
    """Return a super-resolution model ready to run.

    Args:
        name: One of `names()`.
        weights: Weight file, official format or safetensors, only for models that need one, or the folder of those
            that have several; None for what is stored or, without that, the shipped file: see `weights_file`.
        device: A torch device such as "cuda:0".
        dtype: Precision of the network, such as torch.bfloat16 or "bfloat16"; None for float32.
        bands: Bands of the input: B04, B03, B02 or R, G, B, or these and more, see `band_groups`.
        options: Of a model that has any, those that are not to be as they are by default: see `SrSpec.options`.

    Raises:
        UnknownNameError: There is no such model.
        WeightsError: The weights are missing, unreadable, of another network, or given where none are used.
        ConfigError: The model does not run in that precision, on those bands, or with those options, or the device
            cannot be used.
    """
    model, precision, chosen = spec(name), _precision(name, dtype), spec(name).chosen(name, options)
    if bands[:3] not in (RGB, IMAGE_RGB):
        raise ConfigError(f"{name} needs the bands {', '.join(RGB)} first, got {', '.join(bands) or 'none'}")
    file = weights_file(name, weights, options)
    digest = None if file is None else weights_digest(name, file, chosen)
    if file is not None and model.folder is not None:
        network = model.folder.load(file, chosen)
    else:
        network = model.build(chosen)
        if file is not None:
            load_into(network, file, name)
    try:
        place = torch.empty(0, device=device).device  # fails here, not at the first call, where it cannot be used
        network = network.eval().requires_grad_(requires_grad=False).to(place, precision)
    except (RuntimeError, AssertionError) as error:  # torch: no such device, or built without CUDA
        raise ConfigError(f"{name} cannot be put on the device {device}: {error}") from error
    layout = torch.contiguous_format
    if any(isinstance(module, nn.Conv2d) for module in network.modules()):
        layout = torch.channels_last
    network = network.to(memory_format=layout)
    return SuperResolver(
        name,
        model.scale,
        network,
        place,
        precision,
        digest,
        _arguments(model.parameters, chosen),
        bands,
        model.bandwise,
        layout,
        model.distribution,
        model.conditioned,
    )


def check_weights(
    name: str,
    weights: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    options: Mapping[str, object] | None = None,
) -> None:
    """Raise what `load` would of a model's weights, precision and options, without keeping the network.

    Of a folder only the names and shapes of parameters are read, since it may hold gigabytes.

    Raises:
        UnknownNameError, WeightsError, ConfigError: As `load` does.
    """
    model = spec(name)
    if model.folder is None:
        load(name, weights, dtype=dtype, options=options)
        return
    _precision(name, dtype)
    folder = weights_file(name, weights, options)
    assert folder is not None  # weights are needed, or it would have no folder
    model.folder.check(folder, model.chosen(name, options))


def fingerprint(
    name: str,
    weights: str | Path | None = None,
    dtype: str | torch.dtype | None = None,
    options: Mapping[str, object] | None = None,
) -> dict[str, Scalar | None]:
    """Return `load(name, weights, ...).identity()` without building the network: files are only hashed.

    Raises:
        UnknownNameError: There is no such model.
        WeightsError: The weights are missing, or given where none are used.
        ConfigError: The model does not run in that precision, or with those options.
    """
    model, precision, chosen = spec(name), _precision(name, dtype), spec(name).chosen(name, options)
    file = weights_file(name, weights, options)
    digest = None if file is None else weights_digest(name, file, chosen)
    return _identity(name, model.scale, _arguments(model.parameters, chosen), digest, precision, model.distribution)


def _arguments(parameters: Mapping[str, Scalar], options: BaseModel | None) -> Mapping[str, Scalar]:
    return MappingProxyType({**parameters, **({} if options is None else options.model_dump())})


def _identity(
    name: str,
    scale: int,
    parameters: Mapping[str, Scalar],
    digest: str | None,
    dtype: torch.dtype,
    distribution: str | None,
) -> dict[str, Scalar | None]:
    brought_by: dict[str, Scalar | None] = {} if distribution is None else {"distribution": distribution}
    own: dict[str, Scalar | None] = {"sr": name, "scale": scale, "weights_sha256": digest, "dtype": _word(dtype)}
    return {**parameters, **own, **brought_by}


def _precision(name: str, dtype: str | torch.dtype | None) -> torch.dtype:
    allowed = spec(name).dtypes
    word = allowed[0] if dtype is None else _word(dtype) if isinstance(dtype, torch.dtype) else dtype
    if word not in allowed:
        raise ConfigError(f"{name} does not run in {word}: choose {' or '.join(allowed)}")
    found: torch.dtype = getattr(torch, word)
    return found


def _word(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
