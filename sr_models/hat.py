"""HAT, the hybrid attention transformer: windowed self-attention beside channel attention, x4, RGB.

Written from the paper for inference on batches of patches; parameters carry the names of the official files. Three
things differ from the usual implementation, and none of them changes the result:

- **No attention masks.** A window shifted across the border holds up to four pieces that must not see each other, and
  since the shift is half a window, such pieces are whole half windows. They are attended as windows of their own, for
  which the bias of relative positions is a corner of the full window's (the usual mask of -100 leaves weights of
  e^-100). So nothing depends on the image's size, and nothing needs to be kept for one.
- Features stay (N, H, W, C) from the first convolution to the last: what is channels-last memory for convolutions, and
  tokens for linear layers, without a copy between them.
- Attention is torch's fused kernel, so the (pixels x pixels) matrix of a window is not kept.

Source: Chen et al. 2023, "Activating More Pixels in Image Super-Resolution Transformer", arXiv:2205.04437; names of
parameters and constants as in the authors' release (XPixelGroup/HAT). Stochastic depth, which only training uses, is
left out.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from infra.errors import ConfigError

RGB_MEAN = (0.4488, 0.4371, 0.4040)
"""Mean colour of the networks' training images (DIV2K), taken off the input and added to the output."""

SCALE = 4
"""Factor of enlargement: two steps of 2."""

OVERLAP_RATIO = 0.5
"""By what share of a window its keys and values reach further than its queries, in the overlapping attention."""

CONV_SCALE = 0.01
"""Weight of the convolutional branch of a block."""

MLP_RATIO = 2
"""Hidden over outer channels of the perceptron of a block."""

UPSAMPLE_FEATURES = 64
"""Channels between the transformer and the output."""


def hat(
    *,
    embed_dim: int,
    num_groups: int,
    num_blocks: int,
    compress_ratio: int,
    squeeze_factor: int,
    num_heads: int = 6,
    window_size: int = 16,
) -> nn.Module:
    """Return an RGB x4 HAT, (N, 3, H, W) -> (N, 3, 4H, 4W), with random parameters.

    Args:
        embed_dim: Channels of the transformer, a multiple of num_heads.
        num_groups: Residual groups.
        num_blocks: Blocks of a group; every second one has its windows shifted by half.
        compress_ratio: Channels of the convolutional branch are embed_dim // compress_ratio.
        squeeze_factor: Channels of the channel attention are embed_dim // squeeze_factor.
        num_heads: Heads of every attention.
        window_size: Edge of a window, pixels, a multiple of 4: half of it is the shift, and half of that the overlap.

    Raises:
        ConfigError: The window is no multiple of 4, the channels are none of the heads, or a branch would have none.
    """
    return HAT(embed_dim, num_groups, num_blocks, compress_ratio, squeeze_factor, num_heads, window_size)


class HAT(nn.Module):
    """Hybrid attention transformer; see `hat` for the arguments."""

    constants = frozenset({"relative_position_index_SA", "relative_position_index_OCA"})
    """Buffers that follow from the window's size: official files hold them, others may leave them out."""

    def __init__(
        self,
        embed_dim: int,
        num_groups: int,
        num_blocks: int,
        compress_ratio: int,
        squeeze_factor: int,
        num_heads: int,
        window_size: int,
    ) -> None:
        super().__init__()
        if window_size % 4 or embed_dim % num_heads or embed_dim < max(compress_ratio, squeeze_factor):
            raise ConfigError(
                f"HAT with {embed_dim} channels, {num_heads} heads, windows of {window_size}, compress ratio "
                f"{compress_ratio} and squeeze factor {squeeze_factor} cannot be built: the window needs to be a "
                "multiple of 4, the channels one of the heads, and no fewer than the ratio and the factor"
            )
        self.window_size = window_size
        reach = window_size + int(OVERLAP_RATIO * window_size)  # edge of a window of keys and values
        self.register_buffer("mean", torch.tensor(RGB_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("relative_position_index_SA", _position_index(window_size))
        self.register_buffer("relative_position_index_OCA", _overlap_position_index(window_size, reach))
        self.conv_first = _conv(3, embed_dim)
        self.patch_embed = nn.ModuleDict({"norm": nn.LayerNorm(embed_dim)})
        self.layers = nn.ModuleList(
            _Group(embed_dim, num_blocks, compress_ratio, squeeze_factor, num_heads, window_size, reach)
            for _ in range(num_groups)
        )
        self.norm = nn.LayerNorm(embed_dim)
        self.conv_after_body = _conv(embed_dim, embed_dim)
        self.conv_before_upsample = nn.Sequential(_conv(embed_dim, UPSAMPLE_FEATURES), nn.LeakyReLU(0.01))
        self.upsample = nn.Sequential(
            _conv(UPSAMPLE_FEATURES, 4 * UPSAMPLE_FEATURES),
            nn.PixelShuffle(2),
            _conv(UPSAMPLE_FEATURES, 4 * UPSAMPLE_FEATURES),
            nn.PixelShuffle(2),
        )
        self.conv_last = _conv(UPSAMPLE_FEATURES, 3)

    def forward(self, x: Tensor) -> Tensor:
        """Return x, (N, 3, H, W) in [0, 1], enlarged to (N, 3, 4H, 4W); H and W of any size, see `pad_to_multiple`."""
        height, width = x.shape[2:]
        mean = cast("Tensor", self.mean)
        shallow = self.conv_first(pad_to_multiple(x - mean, self.window_size))
        tokens = self.patch_embed["norm"](shallow.permute(0, 2, 3, 1))  # (N, H, W, C) from here on
        index, overlap_index = self.relative_position_index_SA, self.relative_position_index_OCA
        for group in self.layers:
            tokens = group(tokens, index, overlap_index)
        deep = self.conv_after_body(self.norm(tokens).permute(0, 3, 1, 2)) + shallow
        y = self.conv_last(self.upsample(self.conv_before_upsample(deep)))
        return cast("Tensor", y[:, :, : SCALE * height, : SCALE * width] + mean)


def pad_to_multiple(x: Tensor, multiple: int) -> Tensor:
    """Return x continued to the right and below until both edges are multiples of `multiple`.

    Continued by reflection without repeating the edge, as the authors do. Reflection reaches no further than the other
    edge of the image; what is left beyond that (images of 8 pixels and less, for a multiple of 16) repeats the last
    reflected pixel, as spandrel does.

    Args:
        x: (N, C, H, W).
        multiple: Of pixels, both axes.
    """
    height, width = x.shape[2:]
    down, right = -height % multiple, -width % multiple
    reflect_down, reflect_right = min(down, height - 1), min(right, width - 1)
    if reflect_down or reflect_right:
        x = F.pad(x, (0, reflect_right, 0, reflect_down), mode="reflect")
    if down > reflect_down or right > reflect_right:
        x = F.pad(x, (0, right - reflect_right, 0, down - reflect_down), mode="replicate")
    return x


class _Group(nn.Module):
    """Residual hybrid attention group: blocks, one overlapping attention, a convolution, and the way round them."""

    def __init__(
        self,
        channels: int,
        blocks: int,
        compress_ratio: int,
        squeeze_factor: int,
        heads: int,
        window: int,
        reach: int,
    ) -> None:
        super().__init__()
        self.residual_group = nn.ModuleDict(
            {
                "blocks": nn.ModuleList(
                    _Block(channels, compress_ratio, squeeze_factor, heads, window, shifted=index % 2 == 1)
                    for index in range(blocks)
                ),
                "overlap_attn": _OverlapAttention(channels, heads, window, reach),
            }
        )
        self.conv = _conv(channels, channels)

    def forward(self, x: Tensor, index: Tensor, overlap_index: Tensor) -> Tensor:
        y = x
        for block in cast("nn.ModuleList", self.residual_group["blocks"]):
            y = block(y, index)
        y = self.residual_group["overlap_attn"](y, overlap_index)
        return cast("Tensor", self.conv(y.permute(0, 3, 1, 2)).permute(0, 2, 3, 1) + x)


class _Block(nn.Module):
    """Hybrid attention block: attention in windows and convolutions with channel attention, side by side."""

    def __init__(
        self, channels: int, compress_ratio: int, squeeze_factor: int, heads: int, window: int, *, shifted: bool
    ) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(channels)
        self.attn = _WindowAttention(channels, heads, window, shifted=shifted)
        self.conv_block = _ConvBlock(channels, compress_ratio, squeeze_factor)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _Mlp(channels)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        y = self.norm1(x)
        features, gate = self.conv_block(y.permute(0, 3, 1, 2))
        x = x + self.attn(y, index)
        x = torch.addcmul(x, features.permute(0, 2, 3, 1), gate.permute(0, 2, 3, 1), value=CONV_SCALE)
        return cast("Tensor", x + self.mlp(self.norm2(x)))


class _WindowAttention(nn.Module):
    """Self-attention within windows, which lie on the image's grid or are shifted by half of their edge."""

    def __init__(self, channels: int, heads: int, window: int, *, shifted: bool) -> None:
        super().__init__()
        self.heads, self.window, self.shifted = heads, window, shifted
        self.relative_position_bias_table = nn.Parameter(torch.zeros((2 * window - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        bias = _bias(self.relative_position_bias_table, index)
        if not self.shifted:
            return cast("Tensor", self.proj(self._attend(self.qkv(x), bias, self.window, self.window)))
        half = self.window // 2
        y = self._attend_shifted(self.qkv(x.roll((-half, -half), dims=(1, 2))), bias)
        return cast("Tensor", self.proj(y.roll((half, half), dims=(1, 2))))

    def _attend_shifted(self, qkv: Tensor, bias: Tensor) -> Tensor:
        """Return the attention after the roll, which leaves two halves of a window in the last rows and columns."""
        out = qkv.new_empty((*qkv.shape[:3], qkv.shape[3] // 3))
        places = bias.view(self.heads, *4 * (self.window,))  # (head, y and x of the query, y and x of the key)
        for rows, height in self._spans(qkv.shape[1]):
            for columns, width in self._spans(qkv.shape[2]):
                part = places[:, :height, :width, :height, :width].reshape(self.heads, height * width, -1)
                out[:, rows, columns] = self._attend(qkv[:, rows, columns], part, height, width)
        return out

    def _spans(self, edge: int) -> list[tuple[slice, int]]:
        """Return where along an axis there are whole windows, and where half ones, each with the window's edge."""
        whole, window = edge - self.window, self.window
        return [(slice(0, whole), window)] * (whole > 0) + [(slice(whole, edge), window // 2)]

    def _attend(self, qkv: Tensor, bias: Tensor, height: int, width: int) -> Tensor:
        """Return the attention, (N, H, W, C), within windows of a size, from the (N, H, W, 3C) of a region."""
        q, k, v = _heads(_grid(qkv, height, width), 3, self.heads)
        depth = qkv.shape[3] // (3 * self.heads)
        return _image(_attention(q, k, v, bias, depth), qkv.shape, height, width)


class _OverlapAttention(nn.Module):
    """Overlapping cross-attention: queries of a window, keys and values of a larger one around it; a perceptron."""

    def __init__(self, channels: int, heads: int, window: int, reach: int) -> None:
        super().__init__()
        self.heads, self.window, self.reach = heads, window, reach
        self.relative_position_bias_table = nn.Parameter(torch.zeros((window + reach - 1) ** 2, heads))
        nn.init.trunc_normal_(self.relative_position_bias_table, std=0.02)
        self.norm1 = nn.LayerNorm(channels)
        self.qkv = nn.Linear(channels, 3 * channels)
        self.proj = nn.Linear(channels, channels)
        self.norm2 = nn.LayerNorm(channels)
        self.mlp = _Mlp(channels)

    def forward(self, x: Tensor, index: Tensor) -> Tensor:
        bias = _bias(self.relative_position_bias_table, index)
        qkv = self.qkv(self.norm1(x))
        queries, others = qkv.split((x.shape[3], 2 * x.shape[3]), dim=3)
        (q,) = _heads(_grid(queries, self.window, self.window), 1, self.heads)
        margin = (self.reach - self.window) // 2
        # keys and values beyond the image are zeros, and take part: their weight is that of their bias
        others = F.pad(others, (0, 0, margin, margin, margin, margin))
        others = others.unfold(1, self.reach, self.window).unfold(2, self.reach, self.window)  # (N, ny, nx, 2C, h, w)
        k, v = _heads(others.permute(0, 1, 4, 2, 5, 3), 2, self.heads)
        y = _attention(q, k, v, bias, x.shape[3] // self.heads)
        x = x + self.proj(_image(y, queries.shape, self.window, self.window))
        return cast("Tensor", x + self.mlp(self.norm2(x)))


class _ConvBlock(nn.Module):
    """Two convolutions and the channel attention of what they give; the product is left to the caller."""

    def __init__(self, channels: int, compress_ratio: int, squeeze_factor: int) -> None:
        super().__init__()
        inner = channels // compress_ratio
        self.cab = nn.Sequential(
            _conv(channels, inner), nn.GELU(), _conv(inner, channels), _ChannelAttention(channels, squeeze_factor)
        )

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        first, gelu, second, gate = self.cab
        features = second(gelu(first(x)))
        return features, gate(features)


class _ChannelAttention(nn.Module):
    """The weight of each channel, (N, C, 1, 1) in 0..1, from its mean over the image."""

    def __init__(self, channels: int, squeeze_factor: int) -> None:
        super().__init__()
        inner = channels // squeeze_factor
        self.attention = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, inner, 1),
            nn.ReLU(),
            nn.Conv2d(inner, channels, 1),
            nn.Sigmoid(),
        )

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.attention(x))


class _Mlp(nn.Module):
    """Perceptron with one hidden layer, pixel by pixel."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(channels, MLP_RATIO * channels)
        self.fc2 = nn.Linear(MLP_RATIO * channels, channels)

    def forward(self, x: Tensor) -> Tensor:
        return cast("Tensor", self.fc2(F.gelu(self.fc1(x))))


def _conv(inner: int, outer: int) -> nn.Conv2d:
    return nn.Conv2d(inner, outer, 3, padding=1)


def _attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor, depth: int) -> Tensor:
    """Return softmax(q k^T / sqrt(depth) + bias) v, (M, heads, n, depth); see `_heads` for q, k and v.

    Args:
        q: (M, heads, n, d), d the depth and zeros.
        k: (M, heads, m, d).
        v: (M, heads, m, d).
        bias: (heads, n, m).
        depth: Channels of a head.
    """
    return F.scaled_dot_product_attention(q, k, v, attn_mask=bias[None], scale=depth**-0.5)[..., :depth]


def _bias(table: Tensor, index: Tensor) -> Tensor:
    """Return the bias of every pair of a query and a key, (heads, n, m), from its (offsets, heads) table.

    Looked up anew in every call: it is half a per cent of the time, and never out of date.
    """
    rows = (index % table.shape[0]).flatten()  # indices of the larger window are negative in part
    return table.t().contiguous().index_select(1, rows).view(table.shape[1], *index.shape)


def _grid(x: Tensor, height: int, width: int) -> Tensor:
    """Return (N, H, W, D) as its windows, (N, rows, height, columns, width, D), a view."""
    n, rows, columns, depth = x.shape
    return x.view(n, rows // height, height, columns // width, width, depth)


def _heads(grid: Tensor, parts: int, heads: int) -> Tensor:
    """Return windows as the input of attention, with zeros after the channels of a head up to a multiple of 8.

    Fused kernels want that multiple: CUDA's refuse others, the CPU's is faster with it.

    Args:
        grid: (N, rows, height, columns, width, parts * heads * depth).
        parts: Of query, key and value, how many there are.
        heads: Of the attention.

    Returns:
        (parts, N * rows * columns, heads, height * width, depth or the next multiple of 8).
    """
    n, rows, height, columns, width, _ = grid.shape
    split = grid.view(*grid.shape[:5], parts, heads, -1).permute(5, 0, 1, 3, 6, 2, 4, 7)
    if split.shape[-1] % 8:
        split = F.pad(split, (0, -split.shape[-1] % 8))
    return split.reshape(parts, n * rows * columns, heads, height * width, split.shape[-1])


def _image(windows: Tensor, shape: torch.Size, height: int, width: int) -> Tensor:
    """Return windows, (N * rows * columns, heads, height * width, depth), as the image, (N, H, W, heads * depth).

    Args:
        windows: What attention returns.
        shape: Begins with N, H, W.
        height: Of a window.
        width: Of a window.
    """
    n, rows, columns = shape[0], shape[1] // height, shape[2] // width
    split = windows.view(n, rows, columns, windows.shape[1], height, width, windows.shape[3])
    return split.permute(0, 1, 4, 2, 5, 3, 6).reshape(n, shape[1], shape[2], -1)


def _position_index(window: int) -> Tensor:
    """Return which row of the bias table a query and a key of one window have, (window^2, window^2), int64."""
    place = torch.arange(window)
    offset = place[:, None] - place[None, :] + window - 1  # of query and key along an axis, from 0
    index = offset[:, None, :, None] * (2 * window - 1) + offset[None, :, None, :]
    return index.reshape(window * window, window * window)


def _overlap_position_index(window: int, reach: int) -> Tensor:
    """Return the same for keys of the larger window, (window^2, reach^2), int64.

    As in the official files, offsets are those of the key from the query, shifted by window - reach + 1 although they
    begin at 1 - window: about a half of the indices is negative, and counts from the table's end.
    """
    offset = torch.arange(reach)[None, :] - torch.arange(window)[:, None] + window - reach + 1
    index = offset[:, None, :, None] * (window + reach - 1) + offset[None, :, None, :]
    return index.reshape(window * window, reach * reach)
