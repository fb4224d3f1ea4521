"""SeeSR in its official sizes with random parameters: how fast it is does not depend on them, what it shows does."""

from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL

from sr_models.seesr.conditioned import FULL_SIZE, ImageConditionedControlNet, ImageConditionedUNet
from sr_models.seesr.dape import FULL, Dape
from sr_models.seesr.folder import text_encoder
from sr_models.seesr.network import Seesr, SeesrParts
from sr_models.seesr.options import SeesrOptions
from sr_models.seesr.prompts import PromptEncoder
from sr_models.seesr.tags import TagList
from sr_models.seesr.tiny import SCHEDULE, small_tokenizer

_TEXT_ENCODER = {
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "intermediate_size": 4096,
    "max_position_embeddings": 77,
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "projection_dim": 512,
    "vocab_size": 49408,
}
_VAE = {
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "sample_size": 768,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


def full_size(options: SeesrOptions) -> Seesr:
    """Return SeeSR in its official sizes, with random parameters (on the meta device: without any).

    Args:
        options: How it samples.
    """
    parts = SeesrParts(
        dape=Dape(FULL),
        tags=TagList(tuple(f"tag {i}" for i in range(FULL.tags)), (0.68,) * FULL.tags),
        prompts=PromptEncoder(small_tokenizer(), text_encoder(_TEXT_ENCODER)),
        vae=AutoencoderKL.from_config(_VAE),
        unet=ImageConditionedUNet({**FULL_SIZE, "sample_size": 64}),
        controlnet=ImageConditionedControlNet(FULL_SIZE),
        schedule=SCHEDULE,
    )
    return Seesr(parts, options)
