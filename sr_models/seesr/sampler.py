"""The diffusion loop: from noise, or the input's latent under noise, to an image, by steps of UNet and ControlNet."""

import hashlib
import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from sr_models.seesr.conditioned import ImageConditionedControlNet, ImageConditionedUNet
from sr_models.seesr.options import SeesrOptions

Schedule = Mapping[str, Any]
"""A scheduler's configuration, as in `scheduler_config.json`: what noise the networks were trained on."""

_NOISY = 0.94
"""Share of the timesteps of training at or above which sampling starts."""


@dataclass(frozen=True, slots=True)
class Guide:
    """What leads the networks, besides the image."""

    positive: Tensor
    """Embeddings of each patch's prompt, (N, T, D)."""
    negative: Tensor | None
    """Embedding of the negative prompt, (T, D); None without guidance."""
    image: Tensor
    """DAPE's embeddings of each patch, (N, M, E)."""


def patch_seed(seed: int, patch_id: str) -> int:
    """Return a patch's own seed: the first 8 bytes of SHA-256 of "seed:patch_id" in UTF-8, big-endian.

    It will stay what it is: `printf '%s' 0:NAME | sha256sum` begins with it in hex. PyTorch's generator on the CPU
    takes its lower 32 bits, so among the 550,000 patches of BigEarthNet some 35 pairs share their noise, by chance.
    """
    return int.from_bytes(hashlib.sha256(f"{seed}:{patch_id}".encode()).digest()[:8], "big")


@dataclass(frozen=True, slots=True)
class Sampler:
    """The networks of the loop, all in one precision on one device; what is between their calls is float32.

    Patches are processed together and do not see each other. Each patch has a generator of its own, on the CPU and in
    float32, so that its noise is the same in any batch and on any device. It is asked, in this order, for the noise at
    the start, for that of the latent's posterior (only where sampling starts at the input), and, with DDPM, for that of
    each step.
    """

    vae: AutoencoderKL
    unet: ImageConditionedUNet
    controlnet: ImageConditionedControlNet
    schedule: Schedule
    options: SeesrOptions

    def __call__(self, enlarged: Tensor, guide: Guide, seeds: Sequence[int]) -> Tensor:
        """Return one sample for each image.

        Args:
            enlarged: The inputs, enlarged, (N, 3, H, W), float32, in [0, 1]; H and W multiples of `multiple`.
            guide: What leads the networks, N times.
            seeds: One seed for each, see `patch_seed`.

        Returns:
            (N, 3, H, W), float32, in [0, 1].
        """
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        latents = self._denoised(self._start(enlarged, generators), enlarged, guide, generators)
        decoded = self.vae.decode((latents / self._unit).to(self.vae.dtype)).sample
        return cast("Tensor", decoded).float().div(2).add(0.5).clamp(0.0, 1.0)

    @property
    def multiple(self) -> int:
        """What height and width must be multiples of, pixels."""
        return self._reduction * int(2 ** (len(self.unet.config["block_out_channels"]) - 1))

    @property
    def native(self) -> int:
        """Edge of the images that the UNet was trained on, pixels: 512; 0 where its configuration does not tell."""
        return self._reduction * int(self.unet.config["sample_size"] or 0)

    @property
    def _reduction(self) -> int:
        """How many pixels one of a latent stands for, along each axis."""
        return int(2 ** (len(self.vae.config["block_out_channels"]) - 1))

    @property
    def _unit(self) -> float:
        """Factor by which latents have a spread of about 1."""
        return float(self.vae.config["scaling_factor"])

    def _start(self, enlarged: Tensor, generators: list[torch.Generator]) -> Tensor:
        """Return the latents to begin with, (N, 4, h, w), float32."""
        n, _, *size = enlarged.shape
        shape = (n, self.unet.config["in_channels"], *(side // self._reduction for side in size))
        noise: Tensor = randn_tensor(shape, generators, enlarged.device, torch.float32)
        if self.options.start == "noise":
            return noise
        posterior = self.vae.encode((2 * enlarged - 1).to(self.vae.dtype)).latent_dist
        drawn = randn_tensor(shape, generators, enlarged.device, torch.float32)
        latents: Tensor = self._unit * (posterior.mean.float() + posterior.std.float() * drawn)
        kept = float(DDPMScheduler.from_config(dict(self.schedule)).alphas_cumprod[-1])  # share of the image's variance
        return math.sqrt(kept) * latents + math.sqrt(1 - kept) * noise

    def _denoised(self, latents: Tensor, enlarged: Tensor, guide: Guide, generators: list[torch.Generator]) -> Tensor:
        """Return the latents without their noise; with guidance, the positive half is first in each double batch."""
        halves = 1 if guide.negative is None else 2
        dtype = self.unet.dtype
        text = guide.positive
        if guide.negative is not None:
            text = torch.cat([text, guide.negative.expand_as(text)])
        text, image = text.to(dtype), guide.image.to(dtype).repeat(halves, 1, 1)
        condition = enlarged.to(dtype).repeat(halves, 1, 1, 1)
        scheduler = stepper(self.schedule, self.options)
        for step, there in zip(scheduler.timesteps, scheduler.timesteps.to(latents.device), strict=True):
            noisy = latents.to(dtype).repeat(halves, 1, 1, 1)  # both schedulers take their input as it is
            down, middle = self.controlnet(noisy, there, text, image, condition, self.options.conditioning_scale)
            noise = self.unet(noisy, there, text, image, down, middle).float()
            if halves == 2:
                positive, negative = noise.chunk(2)
                noise = negative + self.options.guidance * (positive - negative)
            (latents, *_) = scheduler.step(noise, step, latents, generator=generators, return_dict=False)
        return latents


def stepper(schedule: Schedule, options: SeesrOptions) -> Any:  # noqa: ANN401  # diffusers' have no common type
    """Return a scheduler at its beginning; its timesteps stay on the CPU, where it looks them up.

    DDPM spaces its timesteps as the schedule says, unless they would start below `_NOISY`: latents start at the noise
    of the last timestep of training, and would keep what no step takes away. "Leading" steps of 1000 start at 981 for
    50, but at 501 for 2. Then, and with DPM-Solver++ always, they are "trailing": they start at the last timestep.
    """
    if options.scheduler == "dpm_solver":
        made = DPMSolverMultistepScheduler.from_config(
            dict(schedule), algorithm_type="dpmsolver++", solver_order=2, timestep_spacing="trailing"
        )
        return _set(made, options.steps)
    made = _set(DDPMScheduler.from_config(dict(schedule)), options.steps)
    if made.timesteps[0] < _NOISY * made.config.num_train_timesteps:
        made = _set(DDPMScheduler.from_config(dict(schedule), timestep_spacing="trailing"), options.steps)
    return made


def _set(scheduler: Any, steps: int) -> Any:  # noqa: ANN401  # see `stepper`
    with warnings.catch_warnings():
        # diffusers 0.42 hands NumPy a tensor in a way that NumPy 2 would rather not have
        warnings.filterwarnings("ignore", "__array__ implementation", DeprecationWarning)
        scheduler.set_timesteps(steps)
    return scheduler
