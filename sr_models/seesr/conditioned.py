"""SeeSR's two networks: Stable Diffusion 2's UNet and a ControlNet, both with image attention after text attention.

Both are diffusers' models whose blocks were exchanged for those of `conditioned_blocks`; parameters carry the names of
the official files. The ControlNet sees the enlarged low-resolution picture and gives residuals, which the UNet adds to
its own:

    residuals = controlnet(latents, timestep, text, image, picture)
    noise = unet(latents, timestep, text, image, *residuals)

Source: Wu et al. 2024, "SeeSR: Towards Semantics-Aware Real-World Image Super-Resolution", arXiv:2311.16518.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any, Self, cast

from diffusers.models.controlnets.controlnet import ControlNetModel
from diffusers.models.unets.unet_2d_condition import UNet2DConditionModel
from torch import Tensor, nn

from infra.errors import ShapeError, WeightsError
from sr_models.seesr.conditioned_blocks import IMAGE, IMAGE_WIDTH, conditioned

FULL_SIZE: Mapping[str, object] = MappingProxyType(
    {
        "attention_head_dim": (5, 10, 20, 20),  # by its old name: the number of heads, each of 64 channels
        "block_out_channels": (320, 640, 1280, 1280),
        "cross_attention_dim": 1024,
        "use_linear_projection": True,
        "use_image_cross_attention": True,
    }
)
"""The official configuration of both networks, Stable Diffusion 2-base's; the rest are diffusers' defaults."""

SWITCH = "use_image_cross_attention"
"""The one setting of the official `config.json` that diffusers does not know; plain Stable Diffusion lacks it."""


class ImageConditionedUNet(UNet2DConditionModel):
    """Stable Diffusion 2's UNet that also attends to image embeddings.

    Args:
        config: Settings as in the official `unet/config.json`, such as `FULL_SIZE`; others are diffusers' defaults.

    Raises:
        WeightsError: The settings are those of a UNet without image attention.
    """

    def __init__(self, config: Mapping[str, object]) -> None:
        super().__init__(**_settings(UNet2DConditionModel, config))
        self.register_to_config(**{SWITCH: True})  # type: ignore[no-untyped-call]
        _add_image_attention(self)
        self.up_blocks = nn.ModuleList(conditioned(block) for block in self.up_blocks)
        self._residuals = sum(len(cast("nn.ModuleList", block.resnets)) for block in self.up_blocks)

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:  # type: ignore[override]  # what diffusers' loading calls
        """Return a network with random parameters, as the constructor does."""
        return cls(config)

    def forward(  # fewer parameters than diffusers': those that SeeSR has
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor,
        down_residuals: tuple[Tensor, ...],
        mid_residual: Tensor,
    ) -> Tensor:
        """Return the noise that the network sees in the latents.

        Args:
            latents: Noisy latents, (N, 4, h, w).
            timestep: Steps of noise in them, () or (N,).
            text: Embeddings of the prompts, (N, tokens, cross_attention_dim).
            image: DAPE's image embeddings, (N, tokens, 512).
            down_residuals: The ControlNet's, one for each layer of the contracting path and its input.
            mid_residual: The ControlNet's for the middle block.

        Returns:
            Predicted noise, (N, 4, h, w).

        Raises:
            ShapeError: An input has another shape.
        """
        _check_inputs(self, latents, timestep, text, image)
        if len(down_residuals) != self._residuals:
            raise ShapeError(f"the UNet needs {self._residuals} residuals of its ControlNet, got {len(down_residuals)}")
        for residual in (*down_residuals, mid_residual):
            _check("residuals of the ControlNet", residual, (len(latents), "channels", "height", "width"))
        (noise,) = super().forward(
            latents,
            timestep,
            encoder_hidden_states=text,
            cross_attention_kwargs={IMAGE: image},
            down_block_additional_residuals=down_residuals,
            mid_block_additional_residual=mid_residual,
            return_dict=False,
        )
        return cast("Tensor", noise)


class ImageConditionedControlNet(ControlNetModel):
    """The ControlNet beside `ImageConditionedUNet`: a copy of its contracting path that also sees a picture.

    Args:
        config: Settings as in the official `controlnet/config.json`, such as `FULL_SIZE`.

    Raises:
        WeightsError: The settings are those of a ControlNet without image attention.
    """

    def __init__(self, config: Mapping[str, object]) -> None:
        super().__init__(**_settings(ControlNetModel, config))
        self.register_to_config(**{SWITCH: True})  # type: ignore[no-untyped-call]
        _add_image_attention(self)

    @classmethod
    def from_config(cls, config: Mapping[str, object]) -> Self:  # type: ignore[override]  # what diffusers' loading calls
        """Return a network with random parameters, as the constructor does."""
        return cls(config)

    def forward(  # fewer parameters than diffusers': those that SeeSR has
        self,
        latents: Tensor,
        timestep: Tensor,
        text: Tensor,
        image: Tensor,
        picture: Tensor,
        scale: float = 1.0,
    ) -> tuple[tuple[Tensor, ...], Tensor]:
        """Return residuals for the UNet.

        Args:
            latents: Noisy latents, (N, 4, h, w).
            timestep: Steps of noise in them, () or (N,).
            text: Embeddings of the prompts, (N, tokens, cross_attention_dim).
            image: DAPE's image embeddings, (N, tokens, 512).
            picture: The low-resolution picture, enlarged, (N, 3, 8h, 8w), in [0, 1].
            scale: By what the residuals are multiplied.

        Returns:
            Residuals for the layers of the contracting path, and for the middle block.

        Raises:
            ShapeError: An input has another shape.
        """
        _check_inputs(self, latents, timestep, text, image)
        reduction = 2 ** (len(self.config["conditioning_embedding_out_channels"]) - 1)
        height, width = (reduction * side for side in latents.shape[2:])
        _check("pictures", picture, (len(latents), self.config["conditioning_channels"], height, width))
        down, mid = super().forward(
            latents,
            timestep,
            encoder_hidden_states=text,
            controlnet_cond=picture,
            conditioning_scale=scale,
            cross_attention_kwargs={IMAGE: image},
            return_dict=False,
        )
        return tuple(down), mid


def _settings(model: type[UNet2DConditionModel | ControlNetModel], config: Mapping[str, object]) -> dict[str, Any]:
    """Return those of the settings that diffusers' constructor takes.

    Raises:
        WeightsError: The settings are those of a network without image attention.
    """
    if config.get(SWITCH) is not True:
        raise WeightsError(
            f"the config of SeeSR's {model.__name__} has {SWITCH}: true, this one has {config.get(SWITCH)}: "
            "give the config.json of the official SeeSR files, not that of Stable Diffusion"
        )
    others = {name: value for name, value in config.items() if name != SWITCH}
    known, _, _ = model.extract_init_dict(others)  # type: ignore[no-untyped-call]
    return cast("dict[str, Any]", known)


def _add_image_attention(model: UNet2DConditionModel | ControlNetModel) -> None:
    """Exchange the blocks that both networks have for those with image attention."""
    model.down_blocks = nn.ModuleList(conditioned(block) for block in model.down_blocks)
    model.mid_block = conditioned(model.mid_block)


def _check_inputs(
    model: UNet2DConditionModel | ControlNetModel, latents: Tensor, timestep: Tensor, text: Tensor, image: Tensor
) -> None:
    """Raise ShapeError unless what both networks take fits; torch would speak of matrices, or broadcast one image."""
    _check("latents", latents, ("N", model.config["in_channels"], "h", "w"))
    n = len(latents)
    _check("text embeddings", text, (n, "tokens", model.config["cross_attention_dim"]))
    _check("image embeddings", image, (n, "tokens", IMAGE_WIDTH))
    if timestep.ndim:
        _check("timesteps", timestep, (n,))


def _check(name: str, tensor: Tensor, wanted: tuple[int | str, ...]) -> None:
    """Raise ShapeError unless a tensor has a shape; sides that are named instead of given may be any."""
    sizes = zip(wanted, tensor.shape, strict=False)
    if tensor.ndim != len(wanted) or any(not isinstance(want, str) and want != size for want, size in sizes):
        shape = str(wanted).replace("'", "")
        raise ShapeError(f"{name} must be of shape {shape}, got {tuple(tensor.shape)}")
