"""SeeSR from its official files, in the folder that `layout` shows; what is wrong in it is told by name."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields
from functools import partial
from pathlib import Path
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from huggingface_hub.errors import StrictDataclassError
from torch import Tensor, nn
from transformers import CLIPTextConfig, CLIPTextModel

from infra.errors import ConfigError, WeightsError
from sr_models.seesr.checkpoints import Config, build, compare, fill, read_json, text_names, vae_names
from sr_models.seesr.conditioned import SWITCH, ImageConditionedControlNet, ImageConditionedUNet
from sr_models.seesr.dape import FULL, Dape, DapeConfig, read_dape
from sr_models.seesr.layout import BASES, DAPE_CONFIG, DAPE_FILE, RAM_FILE, Base, files
from sr_models.seesr.network import Seesr, SeesrParts
from sr_models.seesr.options import SeesrOptions
from sr_models.seesr.prompts import PromptEncoder, read_tokenizer
from sr_models.seesr.sampler import Schedule, stepper
from sr_models.seesr.tags import NAMES_FILE, THRESHOLDS_FILE, TagList
from sr_models.weights import load_state

logger = logging.getLogger(__name__)

RANDOM = "tiny random configuration"
"""What the configuration of a network without meaning calls itself, under `_name_or_path`."""

_NOISE = ("beta_start", "beta_end", "beta_schedule", "num_train_timesteps")
"""What a noise schedule is made of; diffusers has a default for each, which is not Stable Diffusion's."""
_ATTENTION = ".image_attentions."
"""In the names of what SeeSR adds to a UNet."""


def check_seesr(folder: Path, options: SeesrOptions) -> None:
    """Raise what `load_seesr` would, having read the names and shapes of parameters, not their numbers.

    Raises:
        WeightsError: See `load_seesr`.
    """
    with torch.device("meta"):
        load_seesr(folder, options)


def load_seesr(folder: Path, options: SeesrOptions) -> Seesr:
    """Return SeeSR with the parameters of a folder, on the CPU, in float32, in eval mode.

    Args:
        folder: In the official layout, see `sr_models.seesr.layout`.
        options: How it samples, and on which Stable Diffusion.

    Raises:
        WeightsError: Files are missing, or one is not what it should be; the message says which and what is wrong.
    """
    base = options.base
    reader = _Reader(folder, files(folder, base))
    if reader.json("seesr/unet/config.json").get("_name_or_path") == RANDOM:
        logger.warning("%s holds SeeSR in its %s: its pictures mean nothing", folder, RANDOM)
    dape = reader.dape()
    parts = SeesrParts(
        dape=dape,
        tags=TagList.read(folder / NAMES_FILE, folder / THRESHOLDS_FILE, dape.config.tags),
        prompts=PromptEncoder(
            read_tokenizer(folder / base / "tokenizer"),
            reader.network(f"{base}/text_encoder", text_encoder, text_names),
        ),
        vae=reader.network(f"{base}/vae", AutoencoderKL.from_config, vae_names),
        unet=reader.turbo_unet() if base == "sd-turbo" else reader.network("seesr/unet", ImageConditionedUNet),
        controlnet=reader.network("seesr/controlnet", ImageConditionedControlNet),
        schedule=reader.schedule(options),
    )
    _compare(parts, folder, base)
    return Seesr(parts, options)


def _compare(parts: SeesrParts, folder: Path, base: Base) -> None:
    """Raise WeightsError unless the networks fit each other; each fits its own config.json, whatever kind it is of."""
    text, vae, controlnet = f"{base}/text_encoder", f"{base}/vae", "seesr/controlnet"
    unet = "sd-turbo/unet" if base == "sd-turbo" else "seesr/unet"
    told: Mapping[str, Config] = {
        text: parts.prompts.encoder.config.to_dict(),
        vae: dict(parts.vae.config),
        unet: dict(parts.unet.config),
        controlnet: dict(parts.controlnet.config),
    }

    def agree(a: str, name: str, b: str, other: str, of: Callable[[Any], object] = lambda value: value) -> None:
        one, two = told[a][name], told[b][other]
        if of(one) != of(two):
            raise WeightsError(
                f"the networks are of different Stable Diffusions: {folder / a / 'config.json'} tells {name} {one}, "
                f"which does not fit {other} {two} in {folder / b / 'config.json'}"
            )

    for network in (unet, controlnet):
        agree(text, "hidden_size", network, "cross_attention_dim")
        agree(vae, "latent_channels", network, "in_channels")
    agree(vae, "latent_channels", unet, "out_channels")
    agree(unet, "block_out_channels", controlnet, "block_out_channels", list)
    agree(vae, "block_out_channels", controlnet, "conditioning_embedding_out_channels", len)  # each but one halves


def text_encoder(config: Config) -> CLIPTextModel:
    """Return a CLIP text encoder with random parameters, of the sizes that its `config.json` tells.

    Raises:
        WeightsError: The sizes do not fit each other.
    """
    try:
        return CLIPTextModel(CLIPTextConfig.from_dict(config))
    except StrictDataclassError as error:  # transformers' own, no ValueError
        raise WeightsError(f"not the sizes of a text encoder: {error}") from error


def _same(state: dict[str, Tensor]) -> Mapping[str, Tensor]:
    return state


@dataclass(frozen=True, slots=True)
class _Reader:
    """Reads what was found in a folder."""

    folder: Path
    found: tuple[Path, ...]

    def json(self, name: str) -> Config:
        return read_json(self.folder / name)

    def weights(self, place: str) -> Path:
        """Return the weight file of a network, which lies beside its config.json."""
        (name,) = (path for path in self.found if path.parent == Path(place) and path.name != "config.json")
        return self.folder / name

    def network[N: nn.Module](
        self,
        place: str,
        make: Callable[[Config], N],
        renamed: Callable[[dict[str, Tensor]], Mapping[str, Tensor]] = _same,
    ) -> N:
        """Return the network in one of the folders, with its parameters."""
        config = self.folder / place / "config.json"
        network, path = build(make, read_json(config), config), self.weights(place)
        fill(network, renamed(load_state(path)), path)
        return network.eval()

    def schedule(self, options: SeesrOptions) -> Schedule:
        """Return the base's noise schedule, of which both schedulers can be made for the options."""
        path = self.folder / options.base / "scheduler/scheduler_config.json"
        config = read_json(path)
        missing = [name for name in _NOISE if name not in config]
        if missing:
            raise WeightsError(f"{path} lacks {', '.join(missing)}: diffusers would take other noise than was trained")
        steps, predicted = config["num_train_timesteps"], config.get("prediction_type", "epsilon")
        if type(steps) is not int:
            raise WeightsError(f"{path}: num_train_timesteps must be a whole number, not {steps!r}")
        if predicted != "epsilon":
            raise WeightsError(
                f"{path} has prediction_type {predicted!r}, where SeeSR's networks predict 'epsilon': it is not of "
                f"{BASES[options.base][0]} but of another Stable Diffusion (2.1 of 768 pixels has 'v_prediction')"
            )
        with torch.device("cpu"):  # a schedule is numbers, within a check too
            for name in ("ddpm", "dpm_solver"):
                asked = options.model_copy(update={"scheduler": name})
                build(partial(stepper, options=asked), config, path, "noise schedule")
        return config

    def turbo_unet(self) -> ImageConditionedUNet:
        """Return SD-Turbo's UNet with the image attention of SeeSR's."""
        config = self.folder / "sd-turbo/unet/config.json"
        unet = build(ImageConditionedUNet, {**read_json(config), SWITCH: True}, config)
        path, added, wanted = self.weights("sd-turbo/unet"), self.weights("seesr/unet"), unet.state_dict()
        own = load_state(path)
        attention = {name: value for name, value in load_state(added).items() if _ATTENTION in name}
        compare({name: value for name, value in wanted.items() if _ATTENTION in name}, attention, added, config)
        compare({name: value for name, value in wanted.items() if _ATTENTION not in name}, own, path)
        unet.load_state_dict({**own, **attention}, strict=True)
        return unet.eval()

    def dape(self) -> Dape:
        try:
            return read_dape(self.folder / RAM_FILE, self.folder / DAPE_FILE, self._dape_config())
        except ConfigError as error:  # the official sizes fit each other
            raise WeightsError(f"{self.folder / DAPE_CONFIG}: {error}") from error

    def _dape_config(self) -> DapeConfig:
        if Path(DAPE_CONFIG) not in self.found:
            return FULL
        path = self.folder / DAPE_CONFIG
        told, names = read_json(path), [field.name for field in fields(DapeConfig)]
        if sorted(told) != sorted(names):
            raise WeightsError(f"{path} has {', '.join(told) or 'nothing'}, where {', '.join(names)} are needed")
        sizes = {name: tuple(value) if isinstance(value, list) else value for name, value in told.items()}
        return build(lambda given: DapeConfig(**given), sizes, path)
