"""Fitting a super-resolution network by Wald's protocol: one plain loop for one process, or one of several workers.

The loop knows nothing of where images come from or who starts it. Its whole state is one dictionary of tensors and
numbers, so a run that was stopped gives the weights it would have given.
"""

import copy
import io
import math
import pickle
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from typing import Any, Literal

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor, nn

from infra.errors import ConfigError, TrainingError, WeightsError
from sr_models.quality import wald
from sr_models.registry import spec
from sr_models.stretch import to_unit
from sr_models.super_resolver import SuperResolver, load
from sr_models.wald_pairs import ImagePools, ImageSet, draw_batch

STATE_FORMAT = 1
"""Version of the training state; a state of another version is refused."""

_WITH_BASE = frozenset({"srresnet", "realesrgan_general"})
"""Models that add their last convolution's output to the input, enlarged without parameters."""


@dataclass(frozen=True, slots=True)
class SrTrainSettings:
    """How a super-resolution network is fitted."""

    model: str
    """Name in `SR_MODELS`, one with weights."""
    steps: int
    """Optimiser steps."""
    batch_size: int = 16
    """Crops of a step, over all workers."""
    crop: int = 96
    """Largest edge of a crop, pixels of the truth; a multiple of the scale."""
    lr: float = 5e-4
    """Highest learning rate, reached after the warm-up."""
    warmup: int = 200
    """Steps of the linear rise; half a cosine to 0 follows."""
    weight_decay: float = 0.0
    """Of AdamW."""
    clip_norm: float = 1.0
    """Largest norm of the gradient; a longer one is shortened."""
    loss: Literal["l1", "charbonnier"] = "l1"
    """Mean over pixels and bands of |d|, or of sqrt(d^2 + 1e-6)."""
    ema: float = 0.999
    """Decay of the mean of the weights that is validated and kept; 0: the weights themselves."""
    seed: int = 0
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision inside the network; parameters, optimiser and loss are float32."""
    validate_every: int = 250
    """Steps between validations, which are also the moments that a stopped run goes on from."""

    def __post_init__(self) -> None:
        scale = spec(self.model).scale
        if not spec(self.model).needs_weights:
            raise ConfigError(
                f"{self.model} has no weights to train: choose srresnet, realesrgan_general or realesrgan"
            )
        if self.crop % scale or self.crop < 4 * scale:
            raise ConfigError(f"crop is {self.crop}: it needs to be a multiple of {scale}, at least {4 * scale}")
        if min(self.steps, self.batch_size, self.validate_every) < 1 or self.warmup < 0:
            raise ConfigError("steps, batch_size and validate_every need to be at least 1, warmup at least 0")
        if not 0 <= self.ema < 1 or not self.lr > 0 or not self.clip_norm > 0:
            raise ConfigError(
                f"ema needs to be in [0, 1), lr and clip_norm above 0: {self.ema}, {self.lr}, {self.clip_norm}"
            )


@dataclass(frozen=True, slots=True)
class Validation:
    """What one set of validation images says of a network."""

    set: str
    """The set's name."""
    psnr_db: float
    """Mean over images, dB."""
    ssim: float
    """Mean over images."""
    bicubic_psnr_db: float
    """Of the control, on the same pixels."""
    bicubic_ssim: float
    images: int

    @property
    def gain_db(self) -> float:
        """PSNR above bicubic, dB."""
        return self.psnr_db - self.bicubic_psnr_db


@dataclass(frozen=True, slots=True)
class CurveRow:
    """One validation of a run."""

    step: int
    """Steps done."""
    loss: float
    """Mean training loss since the last row."""
    lr: float
    """Of the last step."""
    seconds: float
    """Since the last row."""
    validations: tuple[Validation, ...]

    @property
    def gain_db(self) -> float:
        """Mean gain above bicubic over the sets, dB: what chooses the weights."""
        return sum(v.gain_db for v in self.validations) / len(self.validations)


def learning_rate(step: int, settings: SrTrainSettings) -> float:
    """Return the learning rate of a step, 0 <= step < steps: a linear rise to `lr`, then half a cosine to 0."""
    if step < settings.warmup:
        return settings.lr * (step + 1) / (settings.warmup + 1)
    rest = max(1, settings.steps - settings.warmup)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * (step - settings.warmup) / rest))


def pixel_loss(estimate: Tensor, truth: Tensor, kind: Literal["l1", "charbonnier"]) -> Tensor:
    """Return the mean over pixels and bands of |d|, or of sqrt(d^2 + 1e-6), d = estimate - truth; a scalar."""
    if kind == "l1":
        return F.l1_loss(estimate, truth)
    return ((estimate - truth).square() + 1e-6).sqrt().mean()


def ema_decay(step: int, decay: float) -> float:
    """Return the decay after step + 1 steps: small at first, so that the start is forgotten."""
    return min(decay, (1 + step) / (10 + step))


def start_at_base(name: str, network: nn.Module) -> None:
    """Set the last convolution to zero where the network adds to an enlarged input: it starts as that enlargement."""
    if name not in _WITH_BASE:
        return
    last = [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]
    nn.init.zeros_(last.weight)
    if last.bias is not None:
        nn.init.zeros_(last.bias)


def initial_network(name: str, start: Mapping[str, Tensor] | None, seed: int) -> nn.Module:
    """Return the network to train, on the CPU, float32.

    Args:
        name: Name in `SR_MODELS`.
        start: Parameters to start from; None: random ones, and the plain enlargement where the network has one.
        seed: Of the random parameters; torch's own seed is left alone.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = spec(name).build()
    if start is None:
        start_at_base(name, network)
    else:
        network.load_state_dict({key: value.float() for key, value in start.items()}, strict=True)
    return network.train().to(memory_format=torch.channels_last)


class SrTrainer:
    """One run of one network on one device: steps, validations and the state between them.

    Args:
        settings: How.
        network: What, with its first parameters.
        images: Training images.
        validation: Validation images; at least one set.
        device: Where.
        rank: This worker's number; worker r takes samples r, r + workers, ... of each batch.
        workers: How many work on the same batch.
        parallel: Wraps the network so that gradients are averaged over workers (DistributedDataParallel).
    """

    def __init__(
        self,
        settings: SrTrainSettings,
        network: nn.Module,
        images: ImagePools,
        validation: Sequence[ImageSet],
        device: torch.device,
        *,
        rank: int = 0,
        workers: int = 1,
        parallel: Callable[[nn.Module], nn.Module] = lambda network: network,
    ) -> None:
        if settings.batch_size % workers:
            raise ConfigError(f"a batch of {settings.batch_size} crops cannot be shared evenly by {workers} workers")
        if not validation or not all(chosen.images for chosen in validation):
            raise TrainingError("training needs at least one image to validate on in each set that is validated")
        self.settings, self.device = settings, device
        self.network = network.to(device)
        self.step = 0
        self.curve: list[CurveRow] = []
        self.best: dict[str, Tensor] = {}
        self._images, self._validation = images, validation
        self._samples = range(rank, settings.batch_size, workers)
        self._scale = spec(settings.model).scale
        self._wrapped = parallel(self.network)
        self._ema = copy.deepcopy(self.network).requires_grad_(requires_grad=False)
        self._optimizer = torch.optim.AdamW(
            self.network.parameters(), lr=settings.lr, betas=(0.9, 0.99), weight_decay=settings.weight_decay
        )
        self._losses: list[Tensor] = []
        self._since = time.monotonic()
        self._control: tuple[tuple[float, float], ...] | None = None

    def train_step(self) -> None:
        """Do one step.

        Raises:
            TrainingError: The loss or its gradient is not finite.
        """
        settings = self.settings
        lr_image, hr = draw_batch(
            self._images.at(self.step), settings.seed, self.step, self._samples, settings.crop, self._scale
        )
        rate = learning_rate(self.step, settings)
        for group in self._optimizer.param_groups:
            group["lr"] = rate
        with self._autocast():
            estimate = self._wrapped(lr_image.to(self.device, memory_format=torch.channels_last))
        loss = pixel_loss(estimate.float(), hr.to(self.device), settings.loss)
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        norm = nn.utils.clip_grad_norm_(self.network.parameters(), settings.clip_norm)
        if not math.isfinite(norm.item()):  # a loss that is not finite has such a gradient, on every worker
            raise TrainingError(
                f"the loss is {loss.item():g} and its gradient's norm {norm.item():g} at step {self.step}: lower lr, "
                "or look for pixels that are not finite"
            )
        self._optimizer.step()
        self._update_ema()
        self._losses.append(loss.detach())
        self.step += 1

    def validate(self) -> CurveRow:
        """Measure the mean weights against bicubic, add a row to the curve, and keep them if none were better."""
        resolver = self._resolver(self._ema)
        if self._control is None:
            bicubic = load("bicubic", device=self.device)
            self._control = tuple(_mean_wald(bicubic, chosen) for chosen in self._validation)
        found = tuple(
            Validation(chosen.name, *_mean_wald(resolver, chosen), *control, len(chosen.images))
            for chosen, control in zip(self._validation, self._control, strict=True)
        )
        now = time.monotonic()
        loss = float(torch.stack(self._losses).mean()) if self._losses else math.nan
        last = learning_rate(max(0, self.step - 1), self.settings)
        row = CurveRow(self.step, loss, last, now - self._since, found)
        if not math.isfinite(row.gain_db):
            raise TrainingError(f"the validation after {self.step} steps is not finite: lower lr")
        if not self.curve or row.gain_db > max(past.gain_db for past in self.curve):
            self.best = {key: value.detach().to("cpu", copy=True) for key, value in self._ema.state_dict().items()}
        self.curve.append(row)
        self._losses, self._since = [], now
        return row

    def advance(self) -> CurveRow | None:
        """Do one step; return a row where it ended in a validation, after which `state` may be saved."""
        self.train_step()
        if self.step % self.settings.validate_every == 0 or self.step == self.settings.steps:
            return self.validate()
        return None

    def run(self) -> Iterator[CurveRow]:
        """Train to the last step; yield each validation's row."""
        while self.step < self.settings.steps:
            row = self.advance()
            if row is not None:
                yield row

    def state(self) -> bytes:
        """Return everything a stopped run needs, as a file's content; take it right after a validation."""
        content = {
            "format": STATE_FORMAT,
            "settings": asdict(self.settings),
            "step": self.step,
            "network": self.network.state_dict(),
            "ema": self._ema.state_dict(),
            "best": self.best,
            "optimizer": self._optimizer.state_dict(),
            "curve": [asdict(row) for row in self.curve],
        }
        buffer = io.BytesIO()
        torch.save(content, buffer)
        return buffer.getvalue()

    def restore(self, state: bytes) -> None:
        """Go on from a saved state.

        Raises:
            WeightsError: It is damaged, or of a run with other settings.
        """
        content = _read_state(state)
        if content["settings"] != asdict(self.settings):
            raise WeightsError(
                f"the saved training state is of a run with {content['settings']}, this one has {asdict(self.settings)}"
            )
        self.network.load_state_dict(content["network"])
        self._ema.load_state_dict(content["ema"])
        self._optimizer.load_state_dict(content["optimizer"])
        self.step, self.best = content["step"], content["best"]
        self.curve = [
            CurveRow(**{**row, "validations": tuple(Validation(**v) for v in row["validations"])})
            for row in content["curve"]
        ]
        self._losses, self._since = [], time.monotonic()

    def _update_ema(self) -> None:
        keep = ema_decay(self.step, self.settings.ema)
        with torch.no_grad():
            torch._foreach_lerp_(  # torch.optim's own fused update; 60 times fewer calls
                list(self._ema.parameters()), list(self.network.parameters()), 1 - keep
            )
            for mean, now in zip(self._ema.buffers(), self.network.buffers(), strict=True):
                mean.copy_(now)

    def _autocast(self) -> AbstractContextManager[object]:
        if self.settings.dtype == "float32":
            return nullcontext()
        return torch.autocast(self.device.type, torch.bfloat16)

    def _resolver(self, network: nn.Module) -> SuperResolver:
        return SuperResolver(
            self.settings.model, self._scale, network.eval(), self.device, memory_format=torch.channels_last
        )


def _mean_wald(resolver: SuperResolver, chosen: ImageSet) -> tuple[float, float]:
    """Return mean PSNR, dB, and mean SSIM over the images of a set."""
    rows = []
    for image in chosen.images:
        height, width = (edge // resolver.scale * resolver.scale for edge in image.shape[1:])
        found = wald(resolver, to_unit(image[None, :, :height, :width], chosen.max_dn))
        rows.append(torch.stack([found["psnr_db"][0], found["ssim"][0]]))
    psnr, ssim = torch.stack(rows).double().mean(dim=0).tolist()
    return psnr, ssim


def _read_state(state: bytes) -> dict[str, Any]:
    try:
        content = torch.load(io.BytesIO(state), map_location="cpu", weights_only=True)
    except (OSError, RuntimeError, EOFError, ValueError, pickle.UnpicklingError) as error:
        raise WeightsError(f"the saved training state cannot be read, it may be cut short: {error}") from error
    if not isinstance(content, dict) or content.get("format") != STATE_FORMAT:
        raise WeightsError("the saved training state is of another version of this program: remove it to start anew")
    return content
