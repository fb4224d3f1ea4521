"""DAPE, the degradation-aware prompt extractor of SeeSR: RAM, tuned by LoRA to see through blur and noise.

Of RAM (Recognize Anything) only what tags an image: image encoder, projection, label embedding, tagging head. It gives
two prompts for an image: the logits of 4,585 tags, and embeddings that the diffusion model attends to.

Source: Wu et al. 2024, "SeeSR", arXiv:2311.16518; Zhang et al. 2023, "Recognize Anything", arXiv:2306.03514; names of
parameters and constants as in the authors' releases (cswry/SeeSR, xinyu1205/recognize-anything).
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812 - torch's own abbreviation

from infra.errors import ShapeError, WeightsError
from sr_models.seesr.swin import CONSTANTS, Swin
from sr_models.seesr.tagging_head import TaggingHead
from sr_models.weights import load_state, some

WIDTH = 512
"""Channels of an image embedding, and of a label's embedding in the files."""

IMAGE_MEAN = (0.485, 0.456, 0.406)
"""Mean of the images RAM was trained with (ImageNet's), taken off."""

IMAGE_STD = (0.229, 0.224, 0.225)
"""Standard deviation of the same, divided by."""

UNUSED = (
    r"tag_encoder\.",  # tags and image to text: RAM's captions, and the shared half of its tagging head once more
    r"text_decoder\.",  # writes the captions
    r"tagging_head\.embeddings\.",  # of words; labels are embedded by label_embed
    r"tagging_head\.encoder\.layer\.\d+\.attention\.",  # between labels, which do not see each other
)
"""Regular expressions of the beginnings of names in the official files that tagging does not need."""


@dataclass(frozen=True, slots=True)
class DapeConfig:
    """The sizes of a DAPE."""

    tags: int
    """Labels, as many as the tag list has lines."""
    image_size: int
    """Edge that images are resized to, pixels."""
    embed_dim: int
    """Channels of the first stage of the image encoder."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    heads: tuple[int, ...]
    """Heads of each stage."""
    window: int
    """Edge of an attention window, tokens."""
    hidden: int
    """Channels of the tagging head."""
    tagging_layers: int
    """Layers of the tagging head."""
    tagging_heads: int
    """Heads of the tagging head."""


FULL = DapeConfig(
    tags=4585,
    image_size=384,
    embed_dim=192,
    depths=(2, 2, 18, 2),
    heads=(6, 12, 24, 48),
    window=12,
    hidden=768,
    tagging_layers=2,
    tagging_heads=4,
)
"""The official one: Swin-L."""

TINY = DapeConfig(
    tags=8,
    image_size=32,
    embed_dim=16,
    depths=(2, 2),
    heads=(2, 4),
    window=4,
    hidden=32,
    tagging_layers=2,
    tagging_heads=4,
)
"""For tests and demonstrations, with random parameters: no one has trained it."""


@dataclass(frozen=True, slots=True)
class DapeOutput:
    """What DAPE says of N images."""

    logits: Tensor
    """(N, tags), before the sigmoid, in the order of the tag list."""
    embeddings: Tensor
    """(N, 1 + tokens, 512): of the whole image, then of its parts row by row; 145 at full size."""


class Dape(nn.Module):
    """Tags and embeddings of images; see `read_dape` for the official parameters."""

    def __init__(self, config: DapeConfig = FULL) -> None:
        """Make the network with random parameters.

        Raises:
            ConfigError: The sizes do not fit each other.
        """
        super().__init__()
        self.config = config
        self.mean: Tensor
        self.std: Tensor
        self.register_buffer("mean", torch.tensor(IMAGE_MEAN).view(1, 3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(IMAGE_STD).view(1, 3, 1, 1), persistent=False)
        self.visual_encoder = Swin(config.image_size, config.embed_dim, config.depths, config.heads, config.window)
        self.image_proj = nn.Linear(self.visual_encoder.width, WIDTH)
        self.label_embed = nn.Parameter(torch.empty(config.tags, WIDTH))
        nn.init.normal_(self.label_embed)
        self.wordvec_proj = nn.Linear(WIDTH, config.hidden)
        self.tagging_head = TaggingHead(config.hidden, WIDTH, config.tagging_layers, config.tagging_heads)
        self.fc = nn.Linear(config.hidden, 1)

    def forward(self, images: Tensor) -> DapeOutput:
        """Return the tags' logits and the embeddings of images, each image's whatever is beside it.

        Args:
            images: (N, 3, H, W), RGB in [0, 1], of any size; stretched to a square as in the official script, bilinear
                and without antialiasing (which torchvision did not do on tensors when SeeSR was released).

        Raises:
            ShapeError: The images are not (N, 3, H, W), or H or W is 0.
        """
        if images.ndim != 4 or images.shape[1] != 3 or 0 in images.shape[2:]:
            raise ShapeError(f"DAPE needs images of (N, 3, H, W), got {tuple(images.shape)}")
        size = (self.config.image_size, self.config.image_size)
        square = F.interpolate(images, size=size, mode="bilinear", align_corners=False, antialias=False)
        tokens = self.visual_encoder(((square - self.mean) / self.std).to(self.label_embed.dtype))
        embeddings = self.image_proj(tokens)
        labels = F.relu(self.wordvec_proj(self.label_embed))[None]
        logits = self.fc(self.tagging_head(labels, embeddings)).squeeze(2)
        return DapeOutput(logits, embeddings)


def read_dape(ram_file: str | Path, dape_file: str | Path, config: DapeConfig = FULL) -> Dape:
    """Return the DAPE of two official files, on the CPU, in float32, ready for inference.

    Args:
        ram_file: `ram_swin_large_14m.pth`, a checkpoint with RAM's parameters under `model`; or these alone.
        dape_file: `DAPE.pth`, the parameters that SeeSR tuned: every LoRA matrix, and what else to use in RAM's place.
        config: The sizes the files were written with.

    Raises:
        WeightsError: A file is missing, damaged, no weight file, holds objects that might run code, or does not fit:
            the message names it, and the parameters that are missing, unexpected or of another shape.
        ConfigError: The sizes do not fit each other.
    """
    # both read before the network is made: a wrong file is told at once
    base = _used(load_state(ram_file, part="model"))
    tuned = _used(load_state(dape_file))
    dape = Dape(config)
    shapes = {name: tuple(value.shape) for name, value in dape.named_parameters()}
    lora = {name for name in shapes if ".lora_" in name}
    roots = {name.split(".", maxsplit=1)[0] for name in shapes}
    # RAM's other parts, whatever they are, are no matter of ours; a part of ours must be as we know it
    base = {name: value for name, value in base.items() if name.split(".", maxsplit=1)[0] in roots}
    _compare(Path(ram_file), "RAM's", base, shapes, required=shapes.keys() - lora, allowed=shapes.keys() - lora)
    _compare(Path(dape_file), "DAPE's", tuned, shapes, required=lora, allowed=shapes.keys())
    with torch.no_grad():
        for name, parameter in dape.named_parameters():
            parameter.copy_(tuned[name] if name in tuned else base[name])
    return dape.eval().requires_grad_(requires_grad=False)


def _used(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the parameters without those that tagging does not need, under today's names."""
    unused = re.compile("|".join(UNUSED))
    # "vision_multi" is the tagging head in files from before RAM's release
    renamed = {name.replace("vision_multi", "tagging_head"): value for name, value in state.items()}
    return {
        name: value
        for name, value in renamed.items()
        if not unused.match(name) and name.rpartition(".")[2] not in CONSTANTS
    }


def _compare(
    path: Path,
    whose: str,
    state: Mapping[str, Tensor],
    shapes: Mapping[str, tuple[int, ...]],
    *,
    required: Iterable[str],
    allowed: Iterable[str],
) -> None:
    """Check the names and shapes of a file's parameters.

    Raises:
        WeightsError: A required one is missing, one is not allowed, or one has another shape than the network's.
    """
    known = set(allowed)
    misfit = [
        f"{name} is {tuple(value.shape)}, needs {shapes[name]}"
        for name, value in state.items()
        if name in known and tuple(value.shape) != shapes[name]
    ]
    faults = {
        "missing": sorted(set(required) - state.keys()),
        "unexpected": sorted(state.keys() - known),
        "of another shape": misfit,
    }
    if any(faults.values()):
        told = "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in faults.items() if names)
        raise WeightsError(f"{path} does not hold {whose} parameters as SeeSR has them: {told}")
