"""The diffusion loop against a plain one: one patch, two passes, diffusers' schedulers as the script makes them."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from diffusers.schedulers.scheduling_ddpm import DDPMScheduler
from diffusers.schedulers.scheduling_dpmsolver_multistep import DPMSolverMultistepScheduler
from torch import Tensor

from sr_models.seesr.network import Seesr
from sr_models.seesr.options import SeesrOptions
from sr_models.seesr.sampler import Guide, Sampler, patch_seed, stepper
from sr_models.seesr.tiny import SCHEDULE, tiny

NOISE = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012}  # Stable Diffusion's


@pytest.fixture(scope="module")
def model() -> Seesr:
    return tiny(SeesrOptions())


@pytest.fixture(autouse=True)
def _no_grad() -> Iterator[None]:
    with torch.no_grad():
        yield


def random(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def inputs(n: int) -> tuple[Tensor, Guide]:
    pictures = torch.rand((n, 3, 48, 32), generator=torch.Generator().manual_seed(1))
    return pictures, Guide(random(n, 77, 16, seed=2), random(77, 16, seed=3), random(n, 5, 512, seed=4))


def sampler(model: Seesr, **options: Any) -> Sampler:
    return Sampler(model.vae, model.unet, model.controlnet, model.schedule, SeesrOptions(**options))


def by_hand(model: Seesr, stepper: Any, picture: Tensor, guide: Guide, seed: int, options: SeesrOptions) -> Tensor:
    """One picture (1, 3, H, W), as the official pipeline goes about it."""
    generator = torch.Generator().manual_seed(seed)
    latents = torch.randn((1, 4, picture.shape[2] // 8, picture.shape[3] // 8), generator=generator)
    if options.start == "lr":
        posterior = model.vae.encode(picture * 2 - 1).latent_dist
        encoded = posterior.sample(generator) * 0.18215
        latents = DDPMScheduler(**NOISE).add_noise(encoded, latents, torch.tensor([999]))
    stepper.set_timesteps(options.steps)

    def predicted(text: Tensor, t: Tensor) -> Tensor:
        down, middle = model.controlnet(latents, t, text, guide.image, picture, options.conditioning_scale)
        noise: Tensor = model.unet(latents, t, text, guide.image, down, middle)
        return noise

    for t in stepper.timesteps:
        noise = predicted(guide.positive, t)
        if guide.negative is not None:
            without = predicted(guide.negative[None], t)
            noise = without + options.guidance * (noise - without)
        latents = stepper.step(noise, t, latents, generator=generator).prev_sample
    decoded: Tensor = model.vae.decode(latents / 0.18215).sample
    return (decoded * 0.5 + 0.5).clamp(0, 1)


STEPPERS = {
    "ddpm": lambda: DDPMScheduler(**NOISE, clip_sample=False, timestep_spacing="trailing"),  # of few steps
    "dpm_solver": lambda: DPMSolverMultistepScheduler(**NOISE, timestep_spacing="trailing"),
}


@pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")  # of diffusers, in the plain loop
@pytest.mark.parametrize("scheduler", STEPPERS)
@pytest.mark.parametrize("start", ["lr", "noise"])
@pytest.mark.parametrize(("steps", "guidance"), [(4, 5.5), (3, 1.0)])
def test_against_a_plain_loop(model: Seesr, scheduler: Any, start: Any, steps: int, guidance: float) -> None:
    options = SeesrOptions(scheduler=scheduler, start=start, steps=steps, guidance=guidance, conditioning_scale=0.7)
    pictures, guide = inputs(2)
    if guidance == 1:
        guide = Guide(guide.positive, None, guide.image)
    seeds = [11, 2**63 + 5]
    found = Sampler(model.vae, model.unet, model.controlnet, model.schedule, options)(pictures, guide, seeds)
    for n, seed in enumerate(seeds):
        alone = Guide(guide.positive[n : n + 1], guide.negative, guide.image[n : n + 1])
        expected = by_hand(model, STEPPERS[scheduler](), pictures[n : n + 1], alone, seed, options)
        torch.testing.assert_close(found[n : n + 1], expected, atol=2e-5, rtol=0)
    assert found.std() > 0.02  # there is something in the picture


def test_timesteps_are_the_official_ones(model: Seesr) -> None:
    """50 steps of DDPM, "leading" and an offset of 1: 981, 961, ..., 1."""
    seen: list[int] = []
    handle = model.unet.register_forward_pre_hook(lambda _, args: seen.append(int(args[1])))
    pictures, guide = inputs(1)
    sampler(model)(pictures, guide, [0])
    handle.remove()
    assert seen == list(range(981, 0, -20))


@pytest.mark.parametrize(
    ("steps", "own", "first", "spacing"),
    [
        (1, 1, 999, "trailing"),
        (2, 501, 999, "trailing"),
        (10, 901, 999, "trailing"),
        (19, 937, 999, "trailing"),
        (20, 951, 951, "leading"),
        (25, 961, 961, "leading"),
        (50, 981, 981, "leading"),
        (300, 898, 999, "trailing"),
        (500, 999, 999, "leading"),
        (501, 501, 999, "trailing"),
        (999, 999, 999, "leading"),
    ],
)
def test_sampling_starts_where_the_latents_do(steps: int, own: int, first: int, spacing: str) -> None:
    """First timesteps by the schedule itself, counted by hand (1000 // steps * (steps - 1) + 1), and by the sampler."""
    assert 1000 // steps * (steps - 1) + 1 == own
    expected = DDPMScheduler(**NOISE, steps_offset=1, timestep_spacing=spacing)
    expected.set_timesteps(steps)
    found = stepper(SCHEDULE, SeesrOptions(steps=steps)).timesteps
    assert found[0] == first
    assert torch.equal(found, expected.timesteps)


@pytest.mark.parametrize("steps", [2, 50, 300])
@pytest.mark.parametrize("spacing", ["linspace", "trailing"])
def test_a_spacing_that_starts_high_is_the_schedules_own(spacing: str, steps: int) -> None:
    """SD-Turbo's is "trailing"."""
    expected = DDPMScheduler(**NOISE, timestep_spacing=spacing)
    expected.set_timesteps(steps)
    found = stepper({**SCHEDULE, "timestep_spacing": spacing}, SeesrOptions(steps=steps)).timesteps
    assert torch.equal(found, expected.timesteps)


def test_both_halves_in_one_pass_and_one_without_guidance(model: Seesr) -> None:
    seen: list[int] = []
    handle = model.unet.register_forward_pre_hook(lambda _, args: seen.append(len(args[0])))
    pictures, guide = inputs(3)
    sampler(model, steps=2)(pictures, guide, [0, 1, 2])
    sampler(model, steps=2, guidance=1)(pictures, Guide(guide.positive, None, guide.image), [0, 1, 2])
    handle.remove()
    assert seen == [6, 6, 3, 3]


@pytest.mark.parametrize(
    "changed", [{"conditioning_scale": 0.0}, {"guidance": 4.0}, {"start": "noise"}, {"scheduler": "dpm_solver"}]
)
def test_every_option_has_a_say(model: Seesr, changed: dict[str, Any]) -> None:
    pictures, guide = inputs(1)
    found = [sampler(model, **{"steps": 2, **options})(pictures, guide, [0]) for options in ({}, changed)]
    assert (found[0] - found[1]).abs().max() > 1e-3


def test_seed_of_a_patch_is_what_sha256sum_prints() -> None:
    """`printf '%s' 0:NAME | sha256sum`, its first 16 digits."""
    assert patch_seed(0, "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_26_57") == 0x5ACB00AE23C6C355
    assert patch_seed(7, "été") == 0x32E41D87D26B31BA


def test_noise_is_of_the_patch_alone(model: Seesr) -> None:
    """The same picture and words with two seeds, in two places of a batch."""
    pictures, guide = inputs(1)
    guide = Guide(guide.positive.expand(3, -1, -1), guide.negative, guide.image.expand(3, -1, -1))
    found = sampler(model, steps=2)(pictures.expand(3, -1, -1, -1), guide, [5, 6, 5])
    torch.testing.assert_close(found[0], found[2], atol=1e-5, rtol=0)
    assert (found[0] - found[1]).abs().max() > 1e-2
