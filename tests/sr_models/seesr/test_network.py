"""SeeSR as a whole, in its tiny random configuration: each patch alone, at any size, with its own words and noise."""

import hashlib
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from infra.errors import ShapeError
from sr_models.condition import Condition
from sr_models.seesr.alignment import align
from sr_models.seesr.network import Seesr, enlarge
from sr_models.seesr.options import SeesrOptions
from sr_models.seesr.sampler import Guide, Sampler
from sr_models.seesr.tiny import tiny

STEPS = 3


@pytest.fixture(scope="module")
def model() -> Seesr:
    return tiny(SeesrOptions(steps=STEPS))


def with_options(model: Seesr, **options: Any) -> Seesr:
    """The same parameters with other options."""
    other = tiny(SeesrOptions(steps=STEPS, **options))
    other.load_state_dict(model.state_dict())
    return other


def patches(n: int = 4, height: int = 16, width: int = 16, seed: int = 0) -> Tensor:
    return torch.rand((n, 3, height, width), generator=torch.Generator().manual_seed(seed))


def conditions(n: int = 4) -> list[Condition]:
    return [Condition(f"patch-{i}") for i in range(n)]


def test_a_patch_is_the_same_in_any_batch(model: Seesr) -> None:
    """One by one, four at once, in another order, in pairs of two shards: within 1e-4."""
    x, told = patches(), conditions()
    whole = model(x, told)
    assert len({tuple(image.flatten()[:9].tolist()) for image in whole}) == 4
    order = [2, 0, 3, 1]
    alone = torch.cat([model(x[i : i + 1], told[i : i + 1]) for i in range(4)])
    moved = model(x[order], [told[i] for i in order])
    pairs = torch.cat([model(x[i : i + 2], told[i : i + 2]) for i in (0, 2)])
    for other in (alone, moved[[order.index(i) for i in range(4)]], pairs):
        torch.testing.assert_close(other, whole, atol=1e-4, rtol=0)


def test_again_is_equal(model: Seesr) -> None:
    assert torch.equal(model(patches(2), conditions(2)), model(patches(2), conditions(2)))


def test_noise_follows_from_seed_and_name(model: Seesr) -> None:
    x = patches(1)
    first = model(x, [Condition("a")])
    assert (model(x, [Condition("b")]) - first).abs().max() > 1e-2
    assert (with_options(model, seed=1)(x, [Condition("a")]) - first).abs().max() > 1e-2


@pytest.mark.parametrize("size", [(16, 16), (15, 9), (1, 2)])
def test_any_size_becomes_four_times_as_large_in_the_colours_of_the_input(size: tuple[int, int]) -> None:
    """Mean of the output before the clamp is that of the input enlarged; here, hardly anything is clamped."""
    model = tiny(SeesrOptions(steps=2))
    x = 0.4 + 0.2 * patches(2, *size)
    found = model(x, conditions(2))
    assert found.shape == (2, 3, 4 * size[0], 4 * size[1])
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean(dim=(2, 3)), enlarge(x).mean(dim=(2, 3)), atol=2e-3, rtol=0)


def test_what_is_beyond_the_patch_is_cropped_to_the_right_and_below(model: Seesr) -> None:
    """A patch of 15 x 13 is one of 16 x 16 by reflection; without alignment its output is that one's, cropped."""
    plain = with_options(model, alignment="none")
    x = patches(1, 15, 13)
    reflected = torch.cat([x, x[:, :, [13]]], dim=2)
    reflected = torch.cat([reflected, reflected[..., [11, 10, 9]]], dim=3)
    seen: list[Tensor] = []
    hook = plain.dape.register_forward_hook(lambda _, __, output: seen.append(output))
    found = plain(x, conditions(1))
    hook.remove()
    again = plain.dape.register_forward_hook(lambda *_: seen[0])  # tags and embeddings are of the patch alone
    whole = plain(reflected, conditions(1))
    again.remove()
    torch.testing.assert_close(found, whole[:, :, :60, :52], atol=1e-5, rtol=0)


def by_pillow(x: Tensor, height: int, width: int) -> Tensor:
    """Pillow's bicubic interpolation of one patch in [0, 1], which smooths where it shrinks."""
    channels = [np.asarray(Image.fromarray(channel).resize((width, height))) for channel in x[0].numpy()]
    return torch.from_numpy(np.stack(channels).clip(0, 1))[None]


@pytest.mark.parametrize(
    ("patch", "seen", "padded"),
    [((15, 13), (15, 13), (16, 16)), ((3, 4), (8, 10), (8, 12))],
    ids=["continued", "below the native size"],
)
def test_against_its_parts_put_together_by_hand(
    patch: tuple[int, int], seen: tuple[int, int], padded: tuple[int, int]
) -> None:
    """Native are patches of 8 pixels (latents of 4, each 8 of 32 pixels), multiples those of 4. Parts have own tests.

    The small patch becomes 8 x 10 (by 8 / 3, rounded down), continued by 8 x 12, its output of 32 x 40 is shrunk.
    """
    options = SeesrOptions(steps=2, guidance=4.0, land_cover="labels", seed=3)
    model, x = tiny(options), patches(1, *patch, seed=4)
    found = model(x, [Condition("a", ("Pastures",))])

    def embedded(text: str) -> Tensor:
        states: Tensor = model.prompts.encoder(model.prompts.token_ids(text)).last_hidden_state
        return states

    with torch.no_grad():
        looked = model.dape(x)
        tags = [name for name, logit in zip(model.tags.names, looked.logits[0], strict=True) if logit > 0]
        assert tags
        text = embedded(f"Pastures, {', '.join(tags)}, ,clean, high-resolution, 8k")
        guide = Guide(text, embedded("dotted, noise, blur, lowres, smooth")[0], looked.embeddings)
        small = by_pillow(x, *seen) if seen != patch else x
        beyond = [(0, 0), (0, 0), *((0, after - before) for before, after in zip(seen, padded, strict=True))]
        whole = torch.from_numpy(np.pad(small.numpy(), beyond, mode="reflect"))
        enlarged = by_pillow(whole, 4 * padded[0], 4 * padded[1])
        sampler = Sampler(model.vae, model.unet, model.controlnet, model.schedule, options)
        seed = int(hashlib.sha256(b"3:a").hexdigest()[:16], 16)
        sr = sampler(enlarged, guide, [seed])[:, :, : 4 * seen[0], : 4 * seen[1]]
    size = (4 * patch[0], 4 * patch[1])
    if seen != patch:
        sr = by_pillow(sr, *size)
    torch.testing.assert_close(found, align(sr, by_pillow(x, *size), "adain"), atol=1e-4, rtol=0)
    assert found.std() > 0.02


def test_no_patches_give_none(model: Seesr) -> None:
    found = model(patches(0, 5, 6), [])
    assert found.shape == (0, 3, 20, 24)
    assert found.dtype == torch.float32


def test_enlarged_as_pillow_does_it() -> None:
    x = patches(1, 11, 7, seed=3)
    np.testing.assert_allclose(enlarge(x).numpy(), by_pillow(x, 44, 28).numpy(), atol=1e-6)


@pytest.mark.parametrize("land_cover", ["none", "labels", "predictions"])
def test_land_cover_stands_before_the_tags_where_it_is_asked_for(model: Seesr, land_cover: str) -> None:
    told = [Condition("a", ("Arable land", "Pastures")), Condition("b")]
    logits = torch.full((2, 8), -1.0)
    logits[:, 2] = 1.0  # the third tag
    words = "Arable land, Pastures, " if land_cover != "none" else ""
    assert with_options(model, land_cover=land_cover).prompts_of(logits, told) == [
        f"{words}lake, ,clean, high-resolution, 8k",
        "lake, ,clean, high-resolution, 8k",
    ]


@pytest.mark.parametrize("land_cover", ["none", "labels"])
def test_land_cover_changes_pixels_only_where_it_is_asked_for(model: Seesr, land_cover: str) -> None:
    other = with_options(model, land_cover=land_cover)
    x = patches(1)
    change = other(x, [Condition("a", ("water",))]) - other(x, [Condition("a")])
    assert bool(change.abs().max() > 1e-4) == (land_cover != "none")


def test_prompts_and_alignment_have_a_say(model: Seesr) -> None:
    x, told = patches(1), conditions(1)
    first = model(x, told)
    for options in ({"positive_prompt": "field"}, {"negative_prompt": "forest"}, {"alignment": "wavelet"}):
        assert (with_options(model, **options)(x, told) - first).abs().max() > 1e-4


def test_without_guidance_the_negative_prompt_is_not_read(model: Seesr) -> None:
    x, told = patches(1), conditions(1)
    one, other = (with_options(model, guidance=1, negative_prompt=text)(x, told) for text in ("field", "forest"))
    assert torch.equal(one, other)


def test_a_cast_spares_dape() -> None:
    model = tiny(SeesrOptions(steps=2)).to(torch.bfloat16)
    for network in (model.unet, model.controlnet, model.vae, model.prompts):
        assert {parameter.dtype for parameter in network.parameters()} == {torch.bfloat16}
    assert {parameter.dtype for parameter in model.dape.parameters()} == {torch.float32}
    before = tiny(SeesrOptions()).dape.state_dict()
    assert all(torch.equal(value, before[name]) for name, value in model.dape.state_dict().items())
    x = patches(1)
    found = model(x, conditions(1))
    assert found.dtype == torch.float32
    assert (found - tiny(SeesrOptions(steps=2))(x, conditions(1))).abs().mean() < 0.05


def test_the_compiled_model_shares_its_parameters_and_leaves_the_other_as_it_is(model: Seesr) -> None:
    unet, controlnet = model.unet, model.controlnet
    compiled = model.compiled()
    assert model.unet is unet
    assert model.controlnet is controlnet
    assert compiled.unet is not unet
    for name, other in (("unet", unet), ("controlnet", controlnet)):
        pairs = zip(getattr(compiled, name).parameters(), other.parameters(), strict=True)
        assert all(one is parameter for one, parameter in pairs)
    assert compiled.vae is model.vae
    assert compiled.options == model.options


def test_the_compiled_model_gives_what_the_other_gives(model: Seesr, monkeypatch: pytest.MonkeyPatch) -> None:
    """Traced as on a GPU, without the compiler behind."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    x, told = patches(1), conditions(1)
    torch.testing.assert_close(model.compiled()(x, told), model(x, told), atol=1e-5, rtol=0)


def test_wrong_input_is_refused(model: Seesr) -> None:
    with pytest.raises(ShapeError, match=r"floating point \(N, 3, h, w\).*got torch.float32 \(2, 4, 16, 16\)"):
        model(torch.zeros(2, 4, 16, 16), conditions(2))
    with pytest.raises(ShapeError, match="one condition for each patch, got 3 for 2 patches"):
        model(patches(2), conditions(3))
