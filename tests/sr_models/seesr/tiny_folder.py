"""The tiny random configuration as it is written in the official layout: what its files are called."""

from sr_models.seesr.options import SeesrOptions

BASE = "stable-diffusion-2-base"
UNET = "seesr/unet/diffusion_pytorch_model.safetensors"
VAE = f"{BASE}/vae/diffusion_pytorch_model.safetensors"
TEXT = f"{BASE}/text_encoder/model.safetensors"
SCHEDULE = f"{BASE}/scheduler/scheduler_config.json"
CONFIG = "seesr/unet/config.json"
OPTIONS = SeesrOptions(steps=2)
TURBO = SeesrOptions(base="sd-turbo", steps=2, guidance=1)

NAMES = [
    "DAPE.pth",
    "dape_config.json",
    "ram_swin_large_14m.pth",
    "ram_tag_list.txt",
    "ram_tag_list_threshold.txt",
    "seesr/controlnet/config.json",
    "seesr/controlnet/diffusion_pytorch_model.safetensors",
    "seesr/unet/config.json",
    UNET,
    f"{BASE}/scheduler/scheduler_config.json",
    f"{BASE}/text_encoder/config.json",
    TEXT,
    f"{BASE}/tokenizer/merges.txt",
    f"{BASE}/tokenizer/special_tokens_map.json",
    f"{BASE}/tokenizer/vocab.json",
    f"{BASE}/vae/config.json",
    VAE,
]
