"""SeeSR as one network: patches in, patches four times as large out.

Wu et al. 2024, "SeeSR: Towards Semantics-Aware Real-World Image Super-Resolution", arXiv:2311.16518. DAPE looks at the
patch and gives tags, which become the prompt, and embeddings; Stable Diffusion 2, led by both and by a ControlNet that
sees the enlarged patch, makes detail up that suits them; the colours are set back to the patch's.

As in the official `test_seesr.py`, with these differences:

- The official script enlarges an image whose output would be smaller than 512 pixels until it is not, 120 -> 128, and
  shrinks the output, 512 -> 480. Here a patch that lacks few pixels, as 120, is continued by reflection to the right
  and below, 120 -> 128, and the output cropped: every pixel stays on its grid, and no image is resampled twice. A patch
  that lacks more (30 x 30, by Wald's protocol) is enlarged and its output shrunk, as in the script.
- Colours are aligned between the patch as it is and the output cropped to it, so what was continued has no say.
- Between its steps the official script rounds images to 8 bits; here they are float32.
"""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from torch import Tensor, nn
from torch.nn.functional import interpolate

from infra.errors import ShapeError
from sr_models.condition import Condition
from sr_models.hat import pad_to_multiple
from sr_models.seesr.alignment import align
from sr_models.seesr.conditioned import ImageConditionedControlNet, ImageConditionedUNet
from sr_models.seesr.dape import Dape
from sr_models.seesr.options import SeesrOptions
from sr_models.seesr.prompts import PromptEncoder, prompt
from sr_models.seesr.sampler import Guide, Sampler, patch_seed
from sr_models.seesr.tags import TagList

SCALE = 4


@dataclass(frozen=True, slots=True)
class SeesrParts:
    """What SeeSR is made of."""

    dape: Dape
    """Sees tags in a patch, and gives embeddings of it."""
    tags: TagList
    """The tags' names and thresholds."""
    prompts: PromptEncoder
    """Stable Diffusion's text encoder."""
    vae: AutoencoderKL
    """Stable Diffusion's image encoder and decoder."""
    unet: ImageConditionedUNet
    """SeeSR's UNet."""
    controlnet: ImageConditionedControlNet
    """SeeSR's ControlNet."""
    schedule: Mapping[str, Any]
    """Stable Diffusion's noise: a scheduler's configuration."""


class Seesr(nn.Module):
    """SeeSR for batches of patches, each of them alone: its output does not depend on those beside it.

    A cast (`.to(torch.bfloat16)`) reaches the UNet, the ControlNet, the VAE and the text encoder, but not DAPE: whether
    a logit is above its threshold decides a word of the prompt, which should not hang on a rounding. Arithmetic between
    the networks (guidance, steps of the scheduler, colours) is in float32 too. So give the input in float32, always:
    bfloat16 knows reflectance to a part in 256 only.
    """

    def __init__(self, parts: SeesrParts, options: SeesrOptions) -> None:
        super().__init__()
        self.options = options
        self.tags = parts.tags
        self.dape = _Float32(parts.dape)
        self.prompts = parts.prompts
        self.vae = parts.vae
        self.vae.use_slicing = True  # one patch at a time: one of 512 pixels keeps a GPU busy, more only take memory
        self.unet = parts.unet
        self.controlnet = parts.controlnet
        self.schedule = parts.schedule
        self.eval().requires_grad_(requires_grad=False)

    @torch.no_grad()
    def forward(self, x: Tensor, conditions: Sequence[Condition]) -> Tensor:
        """Return patches super-resolved.

        Args:
            x: (N, 3, h, w), RGB, float32, in [0, 1]; h and w of any size, 128 and a little less is best.
            conditions: What is known of each, N of them; the name decides the noise.

        Returns:
            (N, 3, 4h, 4w), float32, in [0, 1].

        Raises:
            ShapeError: x is not a floating-point (N, 3, h, w), or there are not N conditions.
        """
        if x.ndim != 4 or x.shape[1] != 3 or not x.is_floating_point():
            raise ShapeError(f"SeeSR needs floating point (N, 3, h, w) in [0, 1], got {x.dtype} {tuple(x.shape)}")
        if len(conditions) != len(x):
            raise ShapeError(f"SeeSR needs one condition for each patch, got {len(conditions)} for {len(x)} patches")
        if not len(x):
            return x.new_zeros((0, 3, SCALE * x.shape[2], SCALE * x.shape[3]), dtype=torch.float32)
        x = x.float()
        sampler = Sampler(self.vae, self.unet, self.controlnet, self.schedule, self.options)
        guide = self._guide(x, conditions)
        seeds = [patch_seed(self.options.seed, condition.patch_id) for condition in conditions]
        multiple, native = -(-sampler.multiple // SCALE), sampler.native // SCALE
        seen = x if min(x.shape[2:]) > native - multiple else resized(x, native)
        sr = sampler(enlarge(pad_to_multiple(seen, multiple)), guide, seeds)
        sr = sr[..., : SCALE * seen.shape[2], : SCALE * seen.shape[3]]
        enlarged = enlarge(x)
        if sr.shape != enlarged.shape:
            sr = interpolate(sr, size=enlarged.shape[2:], mode="bicubic", antialias=True).clamp(0.0, 1.0)
        return align(sr, enlarged, self.options.alignment)

    def prompts_of(self, logits: Tensor, conditions: Sequence[Condition]) -> list[str]:
        """Return each patch's prompt.

        Args:
            logits: DAPE's, (N, tags).
            conditions: N of them; their land cover is told only where the options say so.
        """
        told = self.options.land_cover != "none"
        return [
            prompt(tags, condition.land_cover if told else (), self.options.positive_prompt)
            for tags, condition in zip(self.tags.tags(logits), conditions, strict=True)
        ]

    def compiled(self) -> Self:
        """Return the same model, sharing its parameters, with UNet and ControlNet compiled, nearly all of its time."""
        same = copy.copy(self)
        same._modules = dict(self._modules)  # noqa: SLF001  # copy shares the table of submodules
        same.unet = cast("ImageConditionedUNet", torch.compile(self.unet, dynamic=False))
        same.controlnet = cast("ImageConditionedControlNet", torch.compile(self.controlnet, dynamic=False))
        return same

    def _guide(self, x: Tensor, conditions: Sequence[Condition]) -> Guide:
        seen = self.dape(x)
        texts = self.prompts_of(seen.logits, conditions)
        negative = self.prompts([self.options.negative_prompt])[0] if self.options.guidance > 1 else None
        return Guide(self.prompts(texts), negative, seen.embeddings)


def resized(x: Tensor, shorter: int) -> Tensor:
    """Return x, (N, C, h, w) in [0, 1], with another shorter side, as `enlarge` does it; the other is rounded down."""
    size = [side * shorter // min(x.shape[2:]) for side in x.shape[2:]]
    return interpolate(x, size=size, mode="bicubic", antialias=True).clamp(0.0, 1.0)


def enlarge(x: Tensor) -> Tensor:
    """Return x, (N, C, h, w) in [0, 1], enlarged four times, as Pillow's `resize` does it: Keys' a = -0.5, clamped.

    PyTorch's bicubic interpolation has a = -0.75, unless it is antialiased, which changes nothing else in enlargement.
    """
    return interpolate(x, scale_factor=SCALE, mode="bicubic", antialias=True).clamp(0.0, 1.0)


class _Float32(nn.Module):
    """Holds a network whose parameters move with the whole, and stay float32 when the whole is cast."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, x: Tensor) -> Any:  # noqa: ANN401  # what the network returns
        return self.network(x)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:  # noqa: FBT001, FBT002  # torch's
        def moved(tensor: Tensor) -> Tensor:
            there = fn(tensor)
            return there if there.dtype == tensor.dtype else tensor.to(there.device)

        super()._apply(moved, recurse)  # type: ignore[no-untyped-call]
        return self
