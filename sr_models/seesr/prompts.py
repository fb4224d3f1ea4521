"""Prompts: the words of a patch, and their embeddings by Stable Diffusion's CLIP text encoder."""

import logging
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import cast

import torch
from torch import Tensor, nn
from transformers import CLIPTextModel, CLIPTokenizer

from infra.errors import WeightsError
from sr_models.seesr.checkpoints import read_json
from sr_models.weights import some

logger = logging.getLogger(__name__)

CACHED = 512
"""Texts whose embeddings are kept; one of full size takes 315 kB in float32."""


def prompt(tags: Sequence[str], land_cover: Sequence[str], positive: str) -> str:
    """Return the text that guides a patch.

    The official script writes the tags, a prompt by the user, which is empty by default, and its words for quality, as
    `f"{tags}, {prompt},{quality}"`: "field, tree, ,clean, high-resolution, 8k". Names of land cover stand before the
    tags: where the text is too long for CLIP, what stands last is cut off.

    Args:
        tags: What DAPE saw in the patch, may be none.
        land_cover: Names of its land cover, may be none.
        positive: Words for quality.
    """
    return f"{', '.join((*land_cover, *tags))}, ,{positive}"


class PromptEncoder(nn.Module):
    """A CLIP tokenizer and text encoder. Texts are embedded one by one, and the last `CACHED` of them kept.

    Alone, so that an embedding does not depend on the texts beside it, nor on which batch met it first.
    """

    def __init__(self, tokenizer: CLIPTokenizer, encoder: CLIPTextModel) -> None:
        super().__init__()
        self._tokenizer = tokenizer
        self.encoder = encoder
        self._cut_told = False
        self._kept: OrderedDict[tuple[str, torch.device, torch.dtype], Tensor] = OrderedDict()

    def forward(self, texts: Sequence[str]) -> Tensor:
        """Return the last hidden states of texts, (N, T, D), T the encoder's length: 77, D its width: 1024.

        A text too long is cut off, one too short filled up, as the tokenizer does it; the first that is cut off is
        logged. There is no attention mask beside the causal one, unless the encoder's configuration asks for it
        (`use_attention_mask`).
        """
        return torch.stack([self._embedded(text) for text in texts])

    def token_ids(self, text: str) -> Tensor:
        """Return the tokens of a text, (1, T) int64, on the CPU."""
        return self._tokens(text)["input_ids"]

    def _tokens(self, text: str) -> dict[str, Tensor]:
        length = self.encoder.config.max_position_embeddings
        return dict(
            self._tokenizer([text], padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        )

    def _tell_if_cut(self, text: str) -> None:
        length, needed = self.encoder.config.max_position_embeddings, len(self._tokenizer(text)["input_ids"])
        if needed > length and not self._cut_told:
            self._cut_told = True
            told = text if len(text) <= 200 else f"{text[:200]}…"
            logger.warning("a prompt of %d tokens is cut to %d, told only once: %s", needed, length, told)

    def _embedded(self, text: str) -> Tensor:
        place = self.encoder.embeddings.token_embedding.weight
        key = (text, place.device, place.dtype)
        if key not in self._kept:
            self._tell_if_cut(text)
            tokens = {name: values.to(place.device) for name, values in self._tokens(text).items()}
            masked = getattr(self.encoder.config, "use_attention_mask", False)
            states = self.encoder(tokens["input_ids"], attention_mask=tokens["attention_mask"] if masked else None)
            self._kept[key] = states.last_hidden_state[0]
            if len(self._kept) > CACHED:
                self._kept.popitem(last=False)
        self._kept.move_to_end(key)
        return self._kept[key]


def read_tokenizer(folder: Path) -> CLIPTokenizer:
    """Return the tokenizer of a Stable Diffusion folder.

    Which token fills up short texts is told by `special_tokens_map.json`: "!" for Stable Diffusion 2, as in OpenCLIP,
    though its `tokenizer_config.json` says otherwise. It is part of what the text encoder was trained on.

    Args:
        folder: With `vocab.json`, `merges.txt` and `special_tokens_map.json`.

    Raises:
        WeightsError: A file is not what it should be.
    """
    vocabulary, special = read_json(folder / "vocab.json"), read_json(folder / "special_tokens_map.json")
    merges = _merges(folder / "merges.txt")
    named = {name: _token(special.get(name)) for name in ("bos_token", "eos_token", "unk_token", "pad_token")}
    unknown = [f"{name} {token}" for name, token in named.items() if token not in vocabulary]
    if unknown:
        raise WeightsError(f"{folder / 'special_tokens_map.json'}: {', '.join(unknown)} not in vocab.json beside it")
    apart = [f"{a} {b}" for a, b in merges if a not in vocabulary or b not in vocabulary or a + b not in vocabulary]
    if apart:
        raise WeightsError(f"{folder / 'merges.txt'} has what is not in vocab.json beside it: {some(apart)}")
    return clip_tokenizer(vocabulary, merges, named)


def clip_tokenizer(
    vocabulary: Mapping[str, int], merges: Sequence[tuple[str, str]], special: Mapping[str, str]
) -> CLIPTokenizer:
    """Return a CLIP tokenizer: byte pairs, small letters only.

    Args:
        vocabulary: Numbers of the tokens.
        merges: Which two tokens become one, most urgent first.
        special: Which tokens are `bos_token`, `eos_token`, `unk_token` and `pad_token`.
    """
    pairs = cast("list[str]", list(merges))  # pairs of them, whatever the annotation says
    return CLIPTokenizer(vocab=dict(vocabulary), merges=pairs, **special)


def _merges(path: Path) -> list[tuple[str, str]]:
    try:
        lines = path.read_text(encoding="utf-8").split("\n")
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read: {error}") from error
    pairs = [tuple(line.split(" ")) for line in lines if line and not line.startswith("#version")]
    odd = [pair for pair in pairs if len(pair) != 2]
    if odd:
        raise WeightsError(f"{path} has a line that is not two tokens: {' '.join(odd[0])!r}")
    return [(pair[0], pair[1]) for pair in pairs]


def _token(value: object) -> str:
    """Return a token of special_tokens_map.json, where it is a text or a mapping with its `content`."""
    return str(value.get("content") if isinstance(value, dict) else value)
