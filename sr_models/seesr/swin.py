"""Swin transformer with LoRA-tuned queries and values: the image encoder of RAM and DAPE.

Blocks, patch embedding and patch merging are timm's. Three things are not as in timm's SwinTransformer: patches merge
at the end of a stage instead of the beginning of the next (other names of parameters), attention is torch's fused
kernel with one bias for all images of a batch, and the constant buffers are saved, as in the official files.

Source: Liu et al. 2021, arXiv:2103.14030; names of parameters as in RAM (xinyu1205/recognize-anything) and SeeSR.
Stochastic depth, which only training uses, is left out.
"""

from collections import OrderedDict
from collections.abc import Sequence
from typing import cast

import torch
from timm.layers import PatchEmbed
from timm.models.swin_transformer import PatchMerging, SwinTransformerBlock, get_relative_position_index
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from infra.errors import ConfigError, ShapeError
from sr_models.seesr.lora import LoraLinear

PATCH = 4
"""Edge of a patch, pixels: one token of the first stage."""

CONSTANTS = ("relative_position_index", "attn_mask")
"""Last part of the names of the buffers, which follow from the sizes and are never read from a file."""


class Swin(nn.Module):
    """Images to tokens: stages of attention in windows, each with half the edge and twice the channels of the last."""

    def __init__(
        self, image_size: int, embed_dim: int, depths: Sequence[int], heads: Sequence[int], window: int
    ) -> None:
        """Make the network with random parameters.

        Args:
            image_size: Edge of the images, pixels.
            embed_dim: Channels of the first stage.
            depths: Blocks of each stage; every second one has its windows shifted by half.
            heads: Heads of the attention of each stage, divisors of its channels.
            window: Edge of a window, tokens; a stage whose edge is no longer has one window and no shift.

        Raises:
            ConfigError: Depths and heads differ in number, an edge is no multiple of the patch or of the window, or
                channels are no multiple of the heads.
        """
        super().__init__()
        if not depths or len(depths) != len(heads):
            raise ConfigError(f"a Swin needs heads for each stage, got depths {depths} and heads {heads}")
        self.image_size = image_size
        self.width = embed_dim * 2 ** (len(depths) - 1)
        """Channels of a token."""
        self.patch_embed = PatchEmbed(image_size, PATCH, 3, embed_dim, norm_layer=nn.LayerNorm, output_fmt="NHWC")
        self.layers = nn.Sequential()
        for index, (depth, number) in enumerate(zip(depths, heads, strict=True)):
            dim, side = embed_dim * 2**index, image_size // PATCH // 2**index
            if side * PATCH * 2**index != image_size or side % min(window, side) or dim % number:
                raise ConfigError(
                    f"a Swin for images of {image_size} with windows of {window} cannot be built: stage {index} would "
                    f"have {image_size / PATCH / 2**index:g} tokens along an edge, {dim} channels and {number} heads"
                )
            stage = OrderedDict[str, nn.Module]()
            stage["blocks"] = nn.Sequential(
                *(_block(dim, side, number, window, shifted=block % 2 == 1) for block in range(depth))
            )
            if index + 1 < len(depths):
                stage["downsample"] = PatchMerging(dim)
            self.layers.append(nn.Sequential(stage))
        self.norm = nn.LayerNorm(self.width)

    def forward(self, images: Tensor) -> Tensor:
        """Return the tokens of images.

        Args:
            images: (N, 3, image_size, image_size), normalised.

        Returns:
            (N, 1 + tokens, width): first the mean of the others, then those of the last stage, row by row; all are
            normalised by the last norm (the mean is not normalised again).

        Raises:
            ShapeError: The images have another shape.
        """
        if images.shape[1:] != (3, self.image_size, self.image_size):
            raise ShapeError(
                f"this Swin needs images of (N, 3, {self.image_size}, {self.image_size}), got {tuple(images.shape)}"
            )
        tokens = self.norm(self.layers(self.patch_embed(images))).flatten(1, 2)
        return torch.cat((tokens.mean(dim=1, keepdim=True), tokens), dim=1)


def _block(dim: int, side: int, heads: int, window: int, *, shifted: bool) -> nn.Module:
    """Return timm's block with our attention, its mask among what is saved."""
    block = SwinTransformerBlock(
        dim, (side, side), num_heads=heads, window_size=window, shift_size=window // 2 if shifted else 0
    )
    block.attn = WindowAttention(dim, heads, min(window, side))
    block.register_buffer("attn_mask", block.attn_mask)
    return cast("nn.Module", block)


class WindowAttention(nn.Module):
    """Self-attention within windows, with a bias of relative positions; queries and values are tuned by LoRA."""

    def __init__(self, dim: int, heads: int, window: int) -> None:
        super().__init__()
        self.heads = heads
        self.relative_position_bias_table = nn.Parameter(torch.empty((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.relative_position_index: Tensor
        self.register_buffer("relative_position_index", get_relative_position_index(window, window))
        self.qkv = LoraLinear(dim, 3 * dim, tuned=(True, False, True))
        self.proj = nn.Linear(dim, dim)

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Return the attention of windows.

        Args:
            x: (N * windows of an image, tokens, dim), image by image.
            mask: (windows of an image, tokens, tokens), added to the scores: -100 where two tokens of a shifted window
                lie at opposite edges of the image; None for windows that are not shifted.

        Returns:
            As x.
        """
        windows, tokens, dim = x.shape
        bias = self.relative_position_bias_table[self.relative_position_index.flatten()]
        bias = bias.view(1, tokens, tokens, self.heads).permute(0, 3, 1, 2)
        if mask is not None:
            bias = bias + mask[:, None]
        # the windows of an image count as heads, so that all images share one bias: (1, windows * heads, n, n)
        each = bias.shape[0]
        qkv = self.qkv(x).view(windows // each, each, tokens, 3, self.heads, dim // self.heads)
        q, k, v = qkv.permute(3, 0, 1, 4, 2, 5).flatten(2, 3)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=bias.flatten(0, 1)[None].to(q.dtype))
        y = y.view(windows // each, each, self.heads, tokens, -1).transpose(2, 3).reshape(windows, tokens, dim)
        return cast("Tensor", self.proj(y))
