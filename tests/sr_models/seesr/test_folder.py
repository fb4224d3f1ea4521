"""The official folder: what is read of it, what determines the output, and every way in which it can be wrong."""

import json
import logging
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers.models.autoencoders.autoencoder_kl import AutoencoderKL
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from infra.errors import WeightsError
from sr_models.condition import Condition
from sr_models.seesr import folder as reading
from sr_models.seesr.checkpoints import Config, build, vae_names
from sr_models.seesr.conditioned import ImageConditionedControlNet, ImageConditionedUNet
from sr_models.seesr.folder import check_seesr, load_seesr, text_encoder
from sr_models.seesr.layout import files
from sr_models.seesr.network import Seesr
from sr_models.seesr.options import SeesrOptions
from sr_models.seesr.tiny import tiny, write_tiny_folder
from sr_models.weight_files import weights_digest
from tests.sr_models.seesr.tiny_folder import BASE, CONFIG, NAMES, OPTIONS, SCHEDULE, TEXT, TURBO, UNET, VAE


def refuse(folder: Path, options: SeesrOptions = OPTIONS) -> None:
    """Raise what loading raises, which is what the check without numbers raises."""
    with pytest.raises(WeightsError) as caught:
        check_seesr(folder, options)
    with pytest.raises(WeightsError, match=re.escape(str(caught.value))):
        load_seesr(folder, options)
    raise caught.value


OFFICIAL_TEXT = {  # text_encoder/config.json of Stable Diffusion 2-base
    "architectures": ["CLIPTextModel"],
    "attention_dropout": 0.0,
    "bos_token_id": 0,
    "dropout": 0.0,
    "eos_token_id": 2,
    "hidden_act": "gelu",
    "hidden_size": 1024,
    "initializer_factor": 1.0,
    "initializer_range": 0.02,
    "intermediate_size": 4096,
    "layer_norm_eps": 1e-05,
    "max_position_embeddings": 77,
    "model_type": "clip_text_model",
    "num_attention_heads": 16,
    "num_hidden_layers": 23,
    "pad_token_id": 1,
    "projection_dim": 512,
    "torch_dtype": "float32",
    "transformers_version": "4.25.0.dev0",
    "vocab_size": 49408,
}

OFFICIAL_VAE = {  # vae/config.json of Stable Diffusion 2-base
    "_class_name": "AutoencoderKL",
    "_diffusers_version": "0.8.0",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "sample_size": 768,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}


@pytest.fixture(scope="session")
def _written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("seesr")
    write_tiny_folder(folder)
    return folder


@pytest.fixture
def folder(_written: Path, tmp_path: Path) -> Path:
    """A folder of this test's own."""
    return shutil.copytree(_written, tmp_path / "models")


def run(model: Seesr) -> Tensor:
    x = torch.rand((1, 3, 8, 8), generator=torch.Generator().manual_seed(0))
    found: Tensor = model(x, [Condition("a")])
    return found


def assert_same(one: Seesr, other: Seesr) -> None:
    """All parameters, and an output of both."""
    first, second = one.state_dict(), other.state_dict()
    assert list(first) == list(second)
    assert [name for name in first if not torch.equal(first[name], second[name])] == []
    assert torch.equal(run(one), run(other))


def change(path: Path, changed: Callable[[dict[str, Tensor]], dict[str, Tensor]]) -> None:
    """Write a safetensors file anew."""
    save_file(changed(load_file(path)), path)


def test_the_written_folder_is_the_tiny_network(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        loaded = load_seesr(folder, OPTIONS)
    assert_same(loaded, tiny(OPTIONS))
    assert loaded.tags == tiny(OPTIONS).tags
    assert [record.message for record in caplog.records] == [
        f"{folder} holds SeeSR in its tiny random configuration: its pictures mean nothing"
    ]
    assert not any(module.training for module in loaded.modules())


def test_a_trained_network_means_something(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    path = folder / "seesr/unet/config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "_name_or_path": "preset/models/seesr"}))
    load_seesr(folder, OPTIONS)
    assert not caplog.records


def test_pytorch_files_where_there_are_no_safetensors(folder: Path) -> None:
    digest = weights_digest("seesr", folder, OPTIONS)
    for name, other in ((UNET, "diffusion_pytorch_model.bin"), (TEXT, "pytorch_model.bin")):
        torch.save(load_file(folder / name), (folder / name).with_name(other))
    assert weights_digest("seesr", folder, OPTIONS) == digest  # safetensors first
    for name in (UNET, TEXT):
        (folder / name).unlink()
    assert weights_digest("seesr", folder, OPTIONS) != digest
    assert_same(load_seesr(folder, OPTIONS), tiny(OPTIONS))


def test_names_of_older_files(folder: Path) -> None:
    """Stable Diffusion 2-base: attention of the VAE as in 2022, text encoder with a prefix and numbered positions."""
    old = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}

    def older(name: str) -> str:
        for new, before in old.items():
            name = name.replace(f"attentions.0.{new}.", f"attentions.0.{before}.")
        return name

    change(folder / VAE, lambda state: {older(name): value for name, value in state.items()})
    assert sum("query" in name for name in load_file(folder / VAE)) == 4  # weight and bias, in encoder and decoder
    change(
        folder / TEXT,
        lambda state: {
            **{f"text_model.{name}": value for name, value in state.items()},
            "text_model.embeddings.position_ids": torch.arange(77)[None],
        },
    )
    assert_same(load_seesr(folder, OPTIONS), tiny(OPTIONS))


def test_half_precision_files_become_float32(folder: Path) -> None:
    change(folder / UNET, lambda state: {name: value.half() for name, value in state.items()})
    loaded = load_seesr(folder, OPTIONS)
    for name, value in tiny(OPTIONS).unet.state_dict().items():
        assert torch.equal(loaded.unet.state_dict()[name], value.half().float())


def test_official_sizes() -> None:
    """As many tensors and numbers as Stable Diffusion 2's files have: 372 and 340,387,840, 248 and 83,653,863.

    23 layers of 16 tensors (four projections of 1024 x 1024 and two of 1024 x 4096 with their biases, two norms), two
    embeddings, one norm. The VAE's count is that of Stable Diffusion's papers and model cards: 84 M.
    """
    with torch.device("meta"):
        text = build(text_encoder, OFFICIAL_TEXT, Path("config.json"))
        vae = build(AutoencoderKL.from_config, OFFICIAL_VAE, Path("config.json"))
    layer = 4 * (1024 * 1024 + 1024) + 2 * 4096 * 1024 + 4096 + 1024 + 4 * 1024
    expected = 23 * layer + (49408 + 77) * 1024 + 2 * 1024
    assert (len(text.state_dict()), sum(p.numel() for p in text.parameters())) == (372, expected)
    assert (len(vae.state_dict()), sum(p.numel() for p in vae.parameters())) == (248, 83_653_863)
    assert set(vae_names(vae.state_dict())) == set(vae.state_dict())


def test_networks_are_not_initialised_before_they_are_filled() -> None:
    """No random number is drawn, for diffusers' networks: where each weight is read from a file, that is time lost."""
    before = torch.get_rng_state()
    build(AutoencoderKL.from_config, {**OFFICIAL_VAE, "block_out_channels": [32] * 4}, Path("config.json"))
    assert torch.equal(before, torch.get_rng_state())


def made_turbo(folder: Path) -> Path:
    """Make it SD-Turbo's folder with its own UNet, of Stable Diffusion's kind: no image attention, no switch for it."""
    turbo = folder / "sd-turbo"
    (folder / BASE).rename(turbo)
    config = json.loads((folder / CONFIG).read_text())
    del config["use_image_cross_attention"]
    (turbo / "unet").mkdir()
    (turbo / "unet/config.json").write_text(json.dumps(config))
    own = {name: value + 0.01 for name, value in load_file(folder / UNET).items() if "image_attentions" not in name}
    save_file(own, turbo / "unet/diffusion_pytorch_model.safetensors")
    return turbo


def test_sd_turbo_takes_the_image_attention_of_seesr(folder: Path) -> None:
    turbo, state = made_turbo(folder), load_file(folder / UNET)
    own = load_file(turbo / "unet/diffusion_pytorch_model.safetensors")
    assert len(own) < len(state)
    unet = load_seesr(folder, TURBO).unet
    for name, value in unet.state_dict().items():
        assert torch.equal(value, own.get(name, state[name]))
    assert "sd-turbo/unet/config.json" in [path.as_posix() for path in files(folder, "sd-turbo")]
    with pytest.raises(WeightsError, match=f"lacks 8 of the 16 files that seesr needs:\n  {BASE}/scheduler"):
        refuse(folder, OPTIONS)


def test_with_sd_turbo_the_file_that_lacks_something_is_named(folder: Path) -> None:
    """SeeSR's where image attention is missing or of another shape, SD-Turbo's where something else is."""
    own = made_turbo(folder) / "unet/diffusion_pytorch_model.safetensors"
    whole = load_file(folder / UNET)
    attention = [name for name in whole if "image_attentions" in name]
    save_file({name: value for name, value in whole.items() if name not in attention}, folder / UNET)
    told = f"{folder / UNET} does not fit {folder}/sd-turbo/unet/config.json: {len(attention)} missing: "
    with pytest.raises(WeightsError, match=f"^{re.escape(told)}"):
        refuse(folder, TURBO)
    save_file({**whole, attention[0]: torch.zeros(3)}, folder / UNET)
    with pytest.raises(WeightsError, match=rf"seesr/unet/.* 1 of another shape: {attention[0]} is \(3,\)"):
        refuse(folder, TURBO)
    save_file(whole, folder / UNET)
    without("conv_in.bias")(own)
    with pytest.raises(
        WeightsError, match=f"^{re.escape(str(own))} does not fit .* beside it: 1 missing: conv_in.bias"
    ):
        refuse(folder, TURBO)


def test_no_folder_is_explained(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as caught:
        refuse(tmp_path / "nowhere", OPTIONS)
    told = str(caught.value)
    for name in NAMES:
        assert (name in told) == (name != "dape_config.json")
    assert "mirror of stabilityai/stable-diffusion-2-base, which was removed" in told
    assert "https://github.com/cswry/SeeSR" in told


@pytest.mark.parametrize("name", [name for name in NAMES if name != "dape_config.json"])
def test_a_missing_file_is_named(folder: Path, name: str) -> None:
    (folder / name).unlink()
    for ask in (files, refuse):
        with pytest.raises(WeightsError, match="lacks 1 of the 16 files that seesr needs") as caught:
            ask(folder)
        assert f"\n  {name}" in str(caught.value)


def edited(**settings: Any) -> Callable[[Path], None]:
    """Return what changes settings of a JSON file; None takes one out."""

    def edit(path: Path) -> None:
        content = {**json.loads(path.read_text()), **settings}
        path.write_text(json.dumps({name: value for name, value in content.items() if value is not None}))

    return edit


def without(name: str) -> Callable[[Path], None]:
    return lambda path: change(path, lambda state: {key: value for key, value in state.items() if key != name})


def added(name: str, *shape: int) -> Callable[[Path], None]:
    return lambda path: change(path, lambda state: {**state, name: torch.zeros(shape)})


def text(content: str) -> Callable[[Path], object]:
    return lambda path: path.write_text(content)


WRONG: list[tuple[str, Callable[[Path], object], str]] = [
    (CONFIG, text("{"), "unet/config.json cannot be read as JSON"),
    (CONFIG, text("[1]"), "unet/config.json holds a JSON list, where names and values are needed"),
    (
        CONFIG,
        edited(use_image_cross_attention=None),
        "unet/config.json: the config of .* has use_image_cross_attention",
    ),
    (CONFIG, edited(norm_num_groups=3), "unet/config.json tells no network that can be built: "),
    (CONFIG, edited(down_block_types=["Nothing"]), "unet/config.json tells no network that can be built: "),
    (UNET, without("conv_in.bias"), "safetensors does not fit the config.json beside it: 1 missing: conv_in.bias"),
    (UNET, added("conv_more.bias", 3), "unet/.*safetensors does not fit .* 1 unexpected: conv_more.bias"),
    (UNET, added("conv_in.bias", 3), r"unet/.* 1 of another shape: conv_in.bias is \(3,\), needs \(8,\)"),
    (UNET, text("no tensors"), "unet/.*safetensors cannot be read as a safetensors file"),
    (
        f"{BASE}/vae/config.json",
        edited(block_out_channels=[8, 8]),
        "vae/config.json tells no network that can be built",
    ),
    (VAE, without("quant_conv.bias"), "vae/.*safetensors does not fit .* 1 missing: quant_conv.bias"),
    (f"{BASE}/text_encoder/config.json", edited(hidden_size=15), "text_encoder/config.json: not the sizes of a text"),
    (f"{BASE}/text_encoder/config.json", edited(vocab_size=600), "text_encoder/model.safetensors does not fit"),
    (TEXT, without("final_layer_norm.bias"), "text_encoder/model.safetensors .* 1 missing: final_layer_norm.bias"),
    (SCHEDULE, text("nothing"), "scheduler_config.json cannot be read as JSON"),
    (
        SCHEDULE,
        text("{}"),
        "scheduler_config.json lacks beta_start, beta_end, beta_schedule, num_train_timesteps: ",
    ),
    (SCHEDULE, edited(beta_schedule=None), "scheduler_config.json lacks beta_schedule: "),
    (
        SCHEDULE,
        edited(prediction_type="v_prediction"),
        "scheduler_config.json has prediction_type 'v_prediction', .* not of Stable Diffusion 2-base but of another",
    ),
    (SCHEDULE, edited(beta_schedule="foo"), "scheduler_config.json tells no noise schedule .*foo"),
    (SCHEDULE, edited(beta_start="x"), "scheduler_config.json tells no noise schedule that can be built: TypeError"),
    (SCHEDULE, edited(num_train_timesteps="x"), "json: num_train_timesteps must be a whole number, not 'x'"),
    (SCHEDULE, edited(num_train_timesteps=1), "scheduler_config.json tells no noise schedule .* ValueError"),
    ("dape_config.json", edited(tags=9), r"ram_swin_large_14m.pth .*label_embed is \(8, 512\), needs \(9, 512\)"),
    (
        "dape_config.json",
        edited(heads=None),
        "dape_config.json has .* where tags, image_size, embed_dim, depths, heads",
    ),
    ("dape_config.json", edited(window=5), "dape_config.json: a Swin .* with windows of 5 cannot be built"),
    ("DAPE.pth", lambda path: torch.save({"x": torch.zeros(1)}, path), "DAPE.pth does not hold DAPE's parameters"),
    (
        "ram_swin_large_14m.pth",
        lambda path: torch.save({"model": {"x": torch.zeros(1)}}, path),
        "14m.pth does not",
    ),
    ("ram_tag_list.txt", text("field\n"), "ram_tag_list.txt has 1 lines"),
    ("ram_tag_list_threshold.txt", text("x\n" * 8), "ram_tag_list_threshold.txt, line 1"),
]

NAMED = [f"{number}-{Path(row[0]).name}" for number, row in enumerate(WRONG)]


@pytest.mark.parametrize(("name", "spoil", "told"), WRONG, ids=NAMED)
def test_a_wrong_file_is_told(folder: Path, name: str, spoil: Callable[[Path], object], told: str) -> None:
    spoil(folder / name)
    with pytest.raises(WeightsError, match=told):
        refuse(folder, OPTIONS)


APART: list[tuple[str, str, Any, str]] = [
    (f"{BASE}/text_encoder", "hidden_size", 24, "cross_attention_dim 16 in .*seesr/unet/config.json"),
    ("seesr/unet", "cross_attention_dim", 24, f"{BASE}/text_encoder/config.json tells hidden_size 16"),
    ("seesr/controlnet", "cross_attention_dim", 24, f"{BASE}/text_encoder/config.json tells hidden_size 16"),
    (f"{BASE}/vae", "latent_channels", 16, "in_channels 4 in .*seesr/unet/config.json"),
    ("seesr/unet", "out_channels", 8, f"{BASE}/vae/config.json tells latent_channels 4"),
    ("seesr/controlnet", "in_channels", 9, f"{BASE}/vae/config.json tells latent_channels 4"),
    ("seesr/controlnet", "block_out_channels", [8, 8], r"seesr/unet/config.json tells block_out_channels \[8, 16\]"),
    (
        "seesr/controlnet",
        "conditioning_embedding_out_channels",
        [4, 4, 4],
        rf"{BASE}/vae/config.json tells block_out_channels \[8, 8, 8, 8\]",
    ),
]


@pytest.mark.parametrize(
    ("place", "setting", "value", "told"), APART, ids=[f"{Path(row[0]).name}-{row[1]}" for row in APART]
)
def test_networks_that_do_not_fit_each_other_are_told(
    folder: Path, place: str, setting: str, value: object, told: str
) -> None:
    """Each of them has the parameters that its config.json tells; the first of their patches would fail."""
    makers: dict[str, tuple[Callable[[Config], nn.Module], str]] = {
        "text_encoder": (text_encoder, "model.safetensors"),
        "vae": (AutoencoderKL.from_config, "diffusion_pytorch_model.safetensors"),
        "unet": (ImageConditionedUNet, "diffusion_pytorch_model.safetensors"),
        "controlnet": (ImageConditionedControlNet, "diffusion_pytorch_model.safetensors"),
    }
    config = folder / place / "config.json"
    edited(**{setting: value})(config)
    make, file = makers[config.parent.name]
    network = make(json.loads(config.read_text()))
    save_file({name: value.contiguous() for name, value in network.state_dict().items()}, config.with_name(file))
    for said in (told, rf"{place}/config.json", rf"{setting} {re.escape(str(value))}"):
        with pytest.raises(WeightsError, match=f"the networks are of different Stable Diffusions: .*{said}"):
            refuse(folder, OPTIONS)


def test_noise_is_predicted_where_nothing_else_is_told(folder: Path) -> None:
    """Older configs have no prediction_type; "epsilon" was the only one then."""
    edited(prediction_type=None)(folder / SCHEDULE)
    assert_same(load_seesr(folder, OPTIONS), tiny(OPTIONS))


@pytest.mark.parametrize("steps", [1, 50, 999])
def test_as_many_steps_as_may_be_asked_for_pass_the_check(folder: Path, steps: int) -> None:
    check_seesr(folder, SeesrOptions(steps=steps))


def test_official_dape_without_a_config(folder: Path) -> None:
    """Sizes are the official ones where nothing else is told: the tiny files do not fit."""
    (folder / "dape_config.json").unlink()
    with pytest.raises(WeightsError, match=r"label_embed is \(8, 512\), needs \(4585, 512\)|missing"):
        refuse(folder, OPTIONS)


def test_code_is_not_run(folder: Path) -> None:
    """A file that holds more than tensors is not unpickled."""
    (folder / UNET).unlink()
    torch.save({"conv_in.bias": Path("x")}, folder / "seesr/unet/diffusion_pytorch_model.bin")
    with pytest.raises(WeightsError, match="holds Python objects beside tensors"):
        refuse(folder, OPTIONS)


def test_a_check_reads_no_numbers(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Names and shapes are in the file's header; the official ones have 10 GB behind it."""
    loaded = list[Seesr]()
    monkeypatch.setattr(reading, "load_seesr", lambda *asked: loaded.append(load_seesr(*asked)))
    check_seesr(folder, OPTIONS)
    assert {value.device.type for value in loaded[0].state_dict().values()} == {"meta"}
