"""Blocks of Stable Diffusion's UNet in which image attention follows each text attention.

A block takes over the parts of one that diffusers built (residual blocks, text transformers, resampling), and beside
each text transformer it has one of the same size that attends to image embeddings. So everything is diffusers' own but
the order of calls: residual block, text, image; in the middle block, which begins with one more residual block: text,
image, residual block.

The embeddings reach a block in `cross_attention_kwargs`, the one mapping that the forward of diffusers' models hands to
its blocks untouched; so that forward, too, is diffusers'.

Source: Wu et al. 2024, "SeeSR: Towards Semantics-Aware Real-World Image Super-Resolution", arXiv:2311.16518; names,
order and width as in the authors' release (cswry/SeeSR).
"""

from collections.abc import Mapping
from typing import Any, cast

from diffusers.models.transformers.transformer_2d import Transformer2DModel
from diffusers.models.unets.unet_2d_blocks import CrossAttnDownBlock2D, CrossAttnUpBlock2D, UNetMidBlock2DCrossAttn
from torch import Tensor, cat, nn

IMAGE_WIDTH = 512
"""Channels of an image embedding: what DAPE gives, fixed in the official networks."""

IMAGE = "image"
"""Under which name `cross_attention_kwargs` holds the image embeddings."""


def _image_attention(text_attention: Mapping[str, Any]) -> Transformer2DModel:
    """Return a transformer with the settings of one for text, but for the width of what it attends to."""
    # not by from_config: that takes settings which diffusers' blocks pass by position, as heads are, for defaults
    settings = {name: value for name, value in text_attention.items() if not name.startswith("_")}
    transformer: Transformer2DModel = Transformer2DModel(**(settings | {"cross_attention_dim": IMAGE_WIDTH}))
    return transformer


class _ConditionedBlock(nn.Module):
    """What the three kinds of block share: the parts taken over, and text followed by image attention."""

    has_cross_attention = True  # by this, the models' forward knows to whom to hand embeddings

    def __init__(self, block: CrossAttnDownBlock2D | UNetMidBlock2DCrossAttn | CrossAttnUpBlock2D) -> None:
        super().__init__()
        self.resnets = block.resnets
        self.attentions = block.attentions
        configs = (cast("Mapping[str, Any]", attention.config) for attention in block.attentions)
        self.image_attentions = nn.ModuleList(_image_attention(config) for config in configs)

    def _attend(self, layer: int, hidden: Tensor, text: Tensor, image: Tensor) -> Tensor:
        """Return features after text and image attention of one layer, (N, C, h, w) as they came."""
        (hidden,) = self.attentions[layer](hidden, encoder_hidden_states=text, return_dict=False)
        (hidden,) = self.image_attentions[layer](hidden, encoder_hidden_states=image, return_dict=False)
        return hidden


class ConditionedDownBlock(_ConditionedBlock):
    """A block of the contracting path; the parameters of forward have the names by which diffusers' models call it."""

    def __init__(self, block: CrossAttnDownBlock2D) -> None:
        super().__init__(block)
        self.downsamplers = block.downsamplers

    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor,
        encoder_hidden_states: Tensor,
        cross_attention_kwargs: Mapping[str, Tensor],
        **_masks: None,
    ) -> tuple[Tensor, tuple[Tensor, ...]]:
        """Return the features and those of every layer, for the expanding path.

        Args:
            hidden_states: Features, (N, C, h, w).
            temb: Embedded time, (N, width).
            encoder_hidden_states: Text embeddings, (N, tokens, width).
            cross_attention_kwargs: {IMAGE: image embeddings, (N, tokens, IMAGE_WIDTH)}.
            **_masks: Masks of attention, always None: every token is attended to.
        """
        layers: tuple[Tensor, ...] = ()
        for layer, resnet in enumerate(self.resnets):
            hidden_states = resnet(hidden_states, temb)
            hidden_states = self._attend(layer, hidden_states, encoder_hidden_states, cross_attention_kwargs[IMAGE])
            layers += (hidden_states,)
        if self.downsamplers is not None:
            for downsampler in self.downsamplers:
                hidden_states = downsampler(hidden_states)
            layers += (hidden_states,)
        return hidden_states, layers


class ConditionedMidBlock(_ConditionedBlock):
    """The block between the two paths; one more residual block than attentions."""

    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor,
        encoder_hidden_states: Tensor,
        cross_attention_kwargs: Mapping[str, Tensor],
        **_masks: None,
    ) -> Tensor:
        """Return features of the shape they came in; parameters as of `ConditionedDownBlock.forward`."""
        hidden_states = self.resnets[0](hidden_states, temb)
        for layer, resnet in enumerate(self.resnets[1:]):
            hidden_states = self._attend(layer, hidden_states, encoder_hidden_states, cross_attention_kwargs[IMAGE])
            hidden_states = resnet(hidden_states, temb)
        return hidden_states


class ConditionedUpBlock(_ConditionedBlock):
    """A block of the expanding path; each residual block also sees a layer of the contracting one, the last first."""

    def __init__(self, block: CrossAttnUpBlock2D) -> None:
        super().__init__(block)
        self.upsamplers = block.upsamplers

    def forward(
        self,
        hidden_states: Tensor,
        temb: Tensor,
        res_hidden_states_tuple: tuple[Tensor, ...],
        encoder_hidden_states: Tensor,
        cross_attention_kwargs: Mapping[str, Tensor],
        upsample_size: tuple[int, int] | None = None,
        **_masks: None,
    ) -> Tensor:
        """Return the features, enlarged but in the last block; parameters as of `ConditionedDownBlock.forward`, and.

        Args:
            hidden_states: Features, (N, C, h, w).
            temb: Embedded time, (N, width).
            res_hidden_states_tuple: Layers of the contracting path, as many as residual blocks, each (N, c, h, w).
            encoder_hidden_states: Text embeddings, (N, tokens, width).
            cross_attention_kwargs: {IMAGE: image embeddings, (N, tokens, IMAGE_WIDTH)}.
            upsample_size: Height and width to enlarge to, where they are not twice those of the features.
            **_masks: Masks of attention, always None.
        """
        skips = reversed(res_hidden_states_tuple)
        for layer, (resnet, skip) in enumerate(zip(self.resnets, skips, strict=True)):
            hidden_states = resnet(cat([hidden_states, skip], dim=1), temb)
            hidden_states = self._attend(layer, hidden_states, encoder_hidden_states, cross_attention_kwargs[IMAGE])
        if self.upsamplers is not None:
            for upsampler in self.upsamplers:
                hidden_states = upsampler(hidden_states, upsample_size)
        return hidden_states


def conditioned(block: nn.Module) -> nn.Module:
    """Return a block with image attention made of one with text attention; any other block as it is."""
    match block:
        case CrossAttnDownBlock2D():
            return ConditionedDownBlock(block)
        case UNetMidBlock2DCrossAttn():
            return ConditionedMidBlock(block)
        case CrossAttnUpBlock2D():
            return ConditionedUpBlock(block)
        case _:
            return block
