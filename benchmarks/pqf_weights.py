"""Expand the codebook-compressed ImageNet ResNet-50 of Permute, Quantize and Fine-tune into plain weights.

Each compressed layer is a codebook, (codes, block), and a code for each block of its weights; batch normalisations
were folded into their affine terms, so their statistics are 0 and 1 (Martinez et al. 2021, arXiv:2010.15703). The
weights are under a non-commercial licence: for experiments, never shipped.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision.models import resnet50

_CODES, _CODEBOOK = ".codes_matrix", ".codebook"


def expand(compressed: Path, target: Path) -> None:
    """Write the expanded weights, with torchvision's names, as safetensors."""
    stored: dict[str, Tensor] = torch.load(compressed, map_location="cpu", weights_only=True)
    plain = resnet50(weights=None).state_dict()
    for name, values in stored.items():
        if name.endswith(_CODES):
            layer = name.removesuffix(_CODES)
            blocks = stored[layer + _CODEBOOK].float()[values.long()]
            plain[f"{layer}.weight"] = blocks.reshape(plain[f"{layer}.weight"].shape).contiguous()
        elif not name.endswith(_CODEBOOK):
            plain[name] = values.float().reshape(plain[name].shape).contiguous()
    target.parent.mkdir(parents=True, exist_ok=True)
    save_file(plain, target)
