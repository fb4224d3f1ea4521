"""SeeSR in its tiny random configuration: the code of the real one, in seconds on a CPU, and pictures without meaning.

For tests and demonstrations of everything around it. All sizes are small, all parameters random and always the same.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import save_file
from tokenizers.pre_tokenizers import ByteLevel
from torch import nn
from transformers import CLIPTokenizer

from sr_models.seesr.conditioned import SWITCH, ImageConditionedControlNet, ImageConditionedUNet
from sr_models.seesr.dape import TINY, Dape
from sr_models.seesr.folder import RANDOM, text_encoder
from sr_models.seesr.layout import DAPE_CONFIG, DAPE_FILE, RAM_FILE
from sr_models.seesr.network import Seesr, SeesrParts
from sr_models.seesr.options import SeesrOptions
from sr_models.seesr.prompts import PromptEncoder, clip_tokenizer
from sr_models.seesr.tags import NAMES_FILE, THRESHOLDS_FILE, TagList

_BASE = "stable-diffusion-2-base"
_TEXT_WIDTH = 16
_WORDS = ("clean", "field", "forest", "water")  # each of them one token; other words are spelt
_TAGS = ("field", "forest", "lake", "orchard", "river", "road", "town", "vineyard")
_SPECIAL = MappingProxyType(
    {"bos_token": "<|startoftext|>", "eos_token": "<|endoftext|>", "unk_token": "<|endoftext|>", "pad_token": "!"}
)

SCHEDULE: Mapping[str, Any] = MappingProxyType(
    {  # as in Stable Diffusion 2-base
        "_class_name": "PNDMScheduler",
        "beta_end": 0.012,
        "beta_schedule": "scaled_linear",
        "beta_start": 0.00085,
        "clip_sample": False,
        "num_train_timesteps": 1000,
        "prediction_type": "epsilon",
        "set_alpha_to_one": False,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "trained_betas": None,
    }
)

_NETWORK: Mapping[str, Any] = MappingProxyType(
    {
        "_name_or_path": RANDOM,
        "attention_head_dim": [2, 2],
        "block_out_channels": [8, 16],
        "cross_attention_dim": _TEXT_WIDTH,
        "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
        "layers_per_block": 1,
        "norm_num_groups": 4,
        "use_linear_projection": True,
        SWITCH: True,
    }
)

_CONFIGS: Mapping[str, Mapping[str, Any]] = MappingProxyType(
    {
        f"{_BASE}/text_encoder": {
            "_name_or_path": RANDOM,
            "bos_token_id": 529,
            "eos_token_id": 530,
            "hidden_act": "gelu",
            "hidden_size": _TEXT_WIDTH,
            "intermediate_size": 32,
            "max_position_embeddings": 77,
            "num_attention_heads": 2,
            "num_hidden_layers": 2,
            "vocab_size": 531,
        },
        f"{_BASE}/vae": {
            "_class_name": "AutoencoderKL",
            "_name_or_path": RANDOM,
            "block_out_channels": [8, 8, 8, 8],
            "down_block_types": ["DownEncoderBlock2D"] * 4,
            "norm_num_groups": 4,
            "up_block_types": ["UpDecoderBlock2D"] * 4,
        },
        "seesr/unet": {
            **_NETWORK,
            "_class_name": "UNet2DConditionModel",
            "sample_size": 4,  # patches of 8 pixels become 32, whose latents are 4
            "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
        },
        "seesr/controlnet": {
            **_NETWORK,
            "_class_name": "ControlNetModel",
            "conditioning_embedding_out_channels": [4, 4, 4, 4],
        },
    }
)


def tiny(options: SeesrOptions) -> Seesr:
    """Return SeeSR in its tiny random configuration, that which `write_tiny_folder` writes."""
    return Seesr(_parts(), options)


def write_tiny_folder(folder: Path) -> None:
    """Write the tiny random configuration as `load_seesr` reads it: the official layout, and `dape_config.json`.

    Args:
        folder: Made where it is not there; files of the same names are overwritten.
    """
    parts = _parts()
    vocabulary, merges = _vocabulary()
    for place, network, file in (
        (f"{_BASE}/text_encoder", parts.prompts.encoder, "model.safetensors"),
        (f"{_BASE}/vae", parts.vae, "diffusion_pytorch_model.safetensors"),
        ("seesr/unet", parts.unet, "diffusion_pytorch_model.safetensors"),
        ("seesr/controlnet", parts.controlnet, "diffusion_pytorch_model.safetensors"),
    ):
        _write(folder / place / "config.json", json.dumps(_CONFIGS[place], indent=2))
        save_file({name: value.contiguous() for name, value in network.state_dict().items()}, folder / place / file)
    _write(folder / _BASE / "scheduler/scheduler_config.json", json.dumps(dict(SCHEDULE), indent=2))
    tokenizer = folder / _BASE / "tokenizer"
    _write(tokenizer / "vocab.json", json.dumps(vocabulary, ensure_ascii=False))
    _write(tokenizer / "merges.txt", "\n".join(["#version: 0.2", *(" ".join(pair) for pair in merges), ""]))
    _write(tokenizer / "special_tokens_map.json", json.dumps(dict(_SPECIAL), indent=2))
    state = parts.dape.state_dict()
    tuned = {name: value for name, value in state.items() if ".lora_" in name}
    torch.save({"model": {name: value for name, value in state.items() if name not in tuned}}, folder / RAM_FILE)
    torch.save(tuned, folder / DAPE_FILE)
    _write(folder / DAPE_CONFIG, json.dumps(asdict(TINY), indent=2))
    _write(folder / NAMES_FILE, "\n".join((*parts.tags.names, "")))
    _write(folder / THRESHOLDS_FILE, "\n".join((*map(str, parts.tags.thresholds), "")))


def small_tokenizer() -> CLIPTokenizer:
    """Return a tokenizer as CLIP's, which knows letters and a few words."""
    return clip_tokenizer(*_vocabulary(), _SPECIAL)


def _parts() -> SeesrParts:
    with torch.random.fork_rng(devices=()):
        torch.manual_seed(0)
        encoder = text_encoder(dict(_CONFIGS[f"{_BASE}/text_encoder"]))
        parts = SeesrParts(
            dape=Dape(TINY),
            tags=TagList(_TAGS, (0.5,) * len(_TAGS)),
            prompts=PromptEncoder(small_tokenizer(), encoder),
            vae=AutoencoderKL.from_config(dict(_CONFIGS[f"{_BASE}/vae"])),
            unet=ImageConditionedUNet(_CONFIGS["seesr/unet"]),
            controlnet=ImageConditionedControlNet(_CONFIGS["seesr/controlnet"]),
            schedule=SCHEDULE,
        )
        for network in (parts.dape, parts.controlnet):
            _wake(network)
    return parts


def _wake(network: nn.Module) -> None:
    """Give random values to what is zero before training, so that it has a say: ControlNet's outputs, LoRA's."""
    for parameter in network.parameters():
        if parameter.ndim > 1 and not parameter.any():
            nn.init.normal_(parameter, std=0.2)


def _vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return tokens and merges as CLIP has them: "!" first, all bytes, all bytes at a word's end, a few words."""
    letters = sorted(ByteLevel.alphabet(), key=lambda letter: (letter != "!", letter))
    merges: dict[tuple[str, str], None] = {}  # in order, each once
    for word in _WORDS:
        parts = [*word[:-1], f"{word[-1]}</w>"]
        while len(parts) > 1:
            merges[parts[0], parts[1]] = None
            parts[:2] = [parts[0] + parts[1]]
    joined = [a + b for a, b in merges]
    tokens = [*letters, *(f"{letter}</w>" for letter in letters), *joined, "<|startoftext|>", "<|endoftext|>"]
    return {token: number for number, token in enumerate(tokens)}, list(merges)


def _write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
