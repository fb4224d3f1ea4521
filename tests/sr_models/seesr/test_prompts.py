"""Prompts: their text as the official script writes it, their tokens by hand, their embeddings made once."""

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import cast

import pytest
import torch
from torch import nn

from infra.errors import WeightsError
from sr_models.seesr import prompts
from sr_models.seesr.options import SeesrOptions
from sr_models.seesr.prompts import PromptEncoder, prompt, read_tokenizer
from sr_models.seesr.tiny import tiny, write_tiny_folder


@pytest.fixture
def encoder() -> PromptEncoder:
    return tiny(SeesrOptions()).prompts


@pytest.fixture
def vocabulary(tmp_path: Path) -> dict[str, int]:
    write_tiny_folder(tmp_path)
    return cast(
        "dict[str, int]", json.loads((tmp_path / "stable-diffusion-2-base/tokenizer/vocab.json").read_text("utf-8"))
    )


@pytest.fixture
def calls(encoder: PromptEncoder) -> Iterator[list[nn.Module]]:
    made: list[nn.Module] = []
    handle = encoder.encoder.register_forward_hook(lambda module, _, __: made.append(module))
    yield made
    handle.remove()


@pytest.mark.parametrize(
    ("tags", "land_cover", "text"),
    [
        (("field", "tree"), (), "field, tree, ,clean, 8k"),
        (("field",), ("Arable land", "Pastures"), "Arable land, Pastures, field, ,clean, 8k"),
        ((), (), ", ,clean, 8k"),
    ],
)
def test_text_as_the_official_script_writes_it(tags: tuple[str, ...], land_cover: tuple[str, ...], text: str) -> None:
    res, user_prompt, added_prompt = ", ".join((*land_cover, *tags)), "", "clean, 8k"
    assert prompt(tags, land_cover, added_prompt) == f"{res}, {user_prompt}," + added_prompt == text


def test_tokens_by_hand(encoder: PromptEncoder, vocabulary: dict[str, int]) -> None:
    """Small letters; words known, words spelt, the last letter apart; filled up with "!", which is 0."""
    named = ["<|startoftext|>", "a</w>", "field</w>", ",</w>", "o", "x</w>", "<|endoftext|>"]
    assert vocabulary["!"] == 0
    assert encoder.token_ids("A Field, ox")[0].tolist() == [vocabulary[name] for name in named] + [0] * 70


def test_long_texts_are_cut_and_keep_their_end(encoder: PromptEncoder, vocabulary: dict[str, int]) -> None:
    ids = encoder.token_ids(", ".join(["field"] * 60))[0].tolist()
    inner = [vocabulary["field</w>"], vocabulary[",</w>"]] * 38
    assert ids == [vocabulary["<|startoftext|>"], *inner[:75], vocabulary["<|endoftext|>"]]


def test_the_first_text_that_is_cut_is_told(encoder: PromptEncoder, caplog: pytest.LogCaptureFixture) -> None:
    """A field and a comma are a token each; beginning and end take two of the 77."""
    texts = [", ".join(["field"] * number) for number in (38, 39, 60)]  # 77, 79, 121 tokens
    with torch.no_grad(), caplog.at_level(logging.WARNING):
        encoder(texts[:1])
        assert not caplog.records
        encoder([*texts[1:], *texts])
    assert [record.message for record in caplog.records] == [
        f"a prompt of 79 tokens is cut to 77, told only once: {texts[1][:200]}…"
    ]


def test_embeddings_are_the_last_hidden_states_without_a_mask(encoder: PromptEncoder) -> None:
    ids = encoder.token_ids("field, water")
    with torch.no_grad():
        expected = encoder.encoder(ids).last_hidden_state
        masked = encoder.encoder(ids, attention_mask=(torch.arange(77) < 5).long()[None]).last_hidden_state
        assert torch.equal(encoder(["field, water"]), expected)
        encoder.encoder.config.use_attention_mask = True
        found = encoder(["field,  water"])  # not the text that is kept; white space is one
    torch.testing.assert_close(found, masked)
    assert (masked - expected)[0, 5:].abs().max() > 1e-3


def test_a_text_is_embedded_once(encoder: PromptEncoder, calls: list[nn.Module]) -> None:
    with torch.no_grad():
        first = encoder(["field", "water", "field"])
        assert len(calls) == 2
        again = encoder(["water", "field"])
    assert len(calls) == 2
    assert torch.equal(first[[1, 0]], again)
    assert torch.equal(first[0], first[2])


def test_the_text_used_least_recently_is_forgotten(
    encoder: PromptEncoder, calls: list[nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prompts, "CACHED", 2)
    with torch.no_grad():
        encoder(["field", "water", "field", "forest"])  # water was used least recently
        assert len(calls) == 3
        encoder(["field", "forest"])
        assert len(calls) == 3
        encoder(["water"])
    assert len(calls) == 4


def test_another_precision_is_embedded_anew(encoder: PromptEncoder, calls: list[nn.Module]) -> None:
    with torch.no_grad():
        assert encoder(["field"]).dtype == torch.float32
        assert encoder.to(torch.bfloat16)(["field"]).dtype == torch.bfloat16
    assert len(calls) == 2


def test_which_token_fills_up_is_told_by_the_special_tokens(tmp_path: Path) -> None:
    """Stable Diffusion 2's tokenizer_config.json names the end of text; the text encoder knows "!"."""
    write_tiny_folder(tmp_path)
    folder = tmp_path / "stable-diffusion-2-base/tokenizer"
    (folder / "tokenizer_config.json").write_text('{"pad_token": "<|endoftext|>", "tokenizer_class": "CLIPTokenizer"}')
    assert read_tokenizer(folder).pad_token_id == 0


@pytest.mark.parametrize(
    ("file", "content", "told"),
    [
        ("vocab.json", "{", "vocab.json cannot be read as JSON"),
        ("vocab.json", "[]", "vocab.json holds a JSON list"),
        ("merges.txt", "a b c\n", "merges.txt has a line that is not two tokens: 'a b c'"),
        ("merges.txt", "q zz\n", "merges.txt has what is not in vocab.json beside it: q zz"),
        ("special_tokens_map.json", "{}", "special_tokens_map.json: bos_token None"),
        (
            "special_tokens_map.json",
            '{"bos_token": {"content": "zz"}}',
            "special_tokens_map.json: bos_token zz,",
        ),
    ],
)
def test_a_wrong_tokenizer_is_told(tmp_path: Path, file: str, content: str, told: str) -> None:
    write_tiny_folder(tmp_path)
    folder = tmp_path / "stable-diffusion-2-base/tokenizer"
    (folder / file).write_text(content)
    with pytest.raises(WeightsError, match=told.replace(".", r"\.")):
        read_tokenizer(folder)
