"""What may be asked of SeeSR. Every option changes pixels, so all of them are part of a result's fingerprint."""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class SeesrOptions(BaseModel):
    """How SeeSR samples; the defaults are those of the official `test_seesr.py`.

    **SeeSR-Turbo** is `base="sd-turbo", steps=2, guidance=1`: the official turbo script takes Stable Diffusion Turbo's
    VAE, text encoder, noise schedule and UNet, puts SeeSR's image attention into that UNet, keeps SeeSR's ControlNet
    and DAPE, and steps by DDPM without guidance. So few steps need those weights: distilled for it, they are not
    Stable Diffusion 2's. `scheduler="dpm_solver"` is something else: the ordinary weights and a better solver, for 10
    to 25 steps instead of 50; its pictures resemble those of 50 steps, and are not equal to them nor to SeeSR-Turbo's.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)

    steps: int = Field(default=50, ge=1, le=999)  # of 1000 of training; the official offset of 1 leaves 999
    """Passes of the UNet; time is in proportion to them. DDPM's timesteps are spaced as the base's schedule says
    ("leading": 50 start at 981 of 1000), unless the first would be below 940 (2 at 501, 300 at 898): then they are
    "trailing" and start at 999."""
    guidance: float = Field(default=5.5, ge=1)
    """Classifier-free guidance: how far to go from the negative prompt's prediction towards and beyond the positive
    one's. 1 leaves the negative prompt out, and halves the time."""
    conditioning_scale: float = Field(default=1.0, ge=0)
    """Factor of what the ControlNet, which sees the input, adds to the UNet."""
    start: Literal["lr", "noise"] = "lr"
    """Where sampling starts: at the input's latent with the noise of the last training step added, or at noise."""
    scheduler: Literal["ddpm", "dpm_solver"] = "ddpm"
    """How to step: DDPM, which adds noise at each step (official), or DPM-Solver++ of second order, which does not."""
    base: Literal["stable-diffusion-2-base", "sd-turbo"] = "stable-diffusion-2-base"
    """Which of the folder's Stable Diffusions SeeSR runs on."""
    alignment: Literal["adain", "wavelet", "none"] = "adain"
    """How the output is given the input's colours: its mean and spread per band, its low frequencies, or not."""
    positive_prompt: str = "clean, high-resolution, 8k"
    """What stands last in the prompt, after the tags."""
    negative_prompt: str = "dotted, noise, blur, lowres, smooth"
    """What guidance leads away from."""
    land_cover: Literal["none", "labels", "predictions"] = "none"
    """Whether a patch's land-cover names stand before its tags: not, those of the archive, or those a classifier gave.
    With "labels" a classifier of the output is told its own answer, so no metric of it means anything."""
    seed: int = 0
    """Seed of the noise; each patch's own is drawn from it and the patch's name."""
