"""The tagging head of RAM and DAPE: labels ask an image whether they are in it.

Layers of BERT as a decoder, without its embeddings and its self-attention, so that labels do not see each other: cross
attention from the labels to the image, then a perceptron, each followed by a residual and a norm.

Source: Liu et al. 2021, "Query2Label", arXiv:2107.10834; Zhang et al. 2023, "Recognize Anything", arXiv:2306.03514;
names of parameters and constants as in SeeSR.
"""

from collections import OrderedDict
from typing import cast

from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from infra.errors import ConfigError
from sr_models.seesr.lora import LoraLinear

NORM_EPS = 1e-12
"""What BERT's norms add to a variance."""

MLP_RATIO = 4
"""Hidden over outer channels of the perceptron."""


class TaggingHead(nn.Module):
    """Layers of cross attention from labels to an image."""

    def __init__(self, hidden: int, image_width: int, layers: int, heads: int) -> None:
        """Make the head with random parameters.

        Args:
            hidden: Channels of a label, a multiple of the heads.
            image_width: Channels of an image token.
            layers: How many.
            heads: Of each attention.

        Raises:
            ConfigError: The channels are no multiple of the heads.
        """
        super().__init__()
        if hidden % heads:
            raise ConfigError(f"a tagging head needs channels that are a multiple of its {heads} heads, got {hidden}")
        stack = nn.ModuleList(_Layer(hidden, image_width, heads) for _ in range(layers))
        self.encoder = nn.ModuleDict({"layer": stack})

    def forward(self, labels: Tensor, image: Tensor) -> Tensor:
        """Return what the labels found, (N, labels, hidden).

        Args:
            labels: (1, labels, hidden), the same for all images.
            image: (N, tokens, image_width).
        """
        for layer in cast("nn.ModuleList", self.encoder["layer"]):
            labels = layer(labels, image)
        return labels


class _Layer(nn.Module):
    def __init__(self, hidden: int, image_width: int, heads: int) -> None:
        super().__init__()
        self.crossattention = _CrossAttention(hidden, image_width, heads)
        self.intermediate = nn.Sequential(OrderedDict(dense=nn.Linear(hidden, MLP_RATIO * hidden), act=nn.GELU()))
        self.output = _Residual(MLP_RATIO * hidden, hidden)

    def forward(self, labels: Tensor, image: Tensor) -> Tensor:
        labels = self.crossattention(labels, image)
        return cast("Tensor", self.output(self.intermediate(labels), labels))


class _CrossAttention(nn.Module):
    def __init__(self, hidden: int, image_width: int, heads: int) -> None:
        super().__init__()
        self.self = _Attention(hidden, image_width, heads)  # "self" is BERT's name for it
        self.output = _Residual(hidden, hidden)

    def forward(self, labels: Tensor, image: Tensor) -> Tensor:
        return cast("Tensor", self.output(self.self(labels, image), labels))


class _Attention(nn.Module):
    def __init__(self, hidden: int, image_width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.query = LoraLinear(hidden, hidden)
        self.key = LoraLinear(image_width, hidden)
        self.value = nn.Linear(image_width, hidden)

    def forward(self, labels: Tensor, image: Tensor) -> Tensor:
        """Return (N, labels, hidden) of labels, (1 or N, labels, hidden), and image, (N, tokens, image_width)."""
        q, k, v = (
            x.unflatten(2, (self.heads, -1)).transpose(1, 2)
            for x in (self.query(labels), self.key(image), self.value(image))
        )
        found = F.scaled_dot_product_attention(q.expand(len(image), -1, -1, -1), k, v)
        return found.transpose(1, 2).flatten(2)


class _Residual(nn.Module):
    """A linear layer, what went around it, and the norm of their sum."""

    def __init__(self, inner: int, outer: int) -> None:
        super().__init__()
        self.dense = nn.Linear(inner, outer)
        self.LayerNorm = nn.LayerNorm(outer, eps=NORM_EPS)

    def forward(self, x: Tensor, shortcut: Tensor) -> Tensor:
        return cast("Tensor", self.LayerNorm(self.dense(x) + shortcut))
