"""The tagging head against torch's own multi-head attention and norms, put together by hand."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F  # noqa: N812

from infra.errors import ConfigError
from sr_models.seesr.tagging_head import TaggingHead
from tests.sr_models.seesr.shaken import shaken

HIDDEN, WIDTH, HEADS = 12, 20, 3


def by_hand(state: dict[str, Tensor], labels: Tensor, image: Tensor, layers: int) -> Tensor:
    """Attention of torch with separate widths of query and key, then post-norm residuals, layer by layer."""
    hidden = labels.expand(len(image), -1, -1)
    for index in range(layers):
        w = {
            name.removeprefix(f"encoder.layer.{index}."): value
            for name, value in state.items()
            if name.startswith(f"encoder.layer.{index}.")
        }
        inner = "crossattention.self."
        tuned = {
            name: w[f"{inner}{name}.weight"] + w[f"{inner}{name}.lora_B"] @ w[f"{inner}{name}.lora_A"] / 8
            for name in ("query", "key")
        }
        attention = nn.MultiheadAttention(HIDDEN, HEADS, kdim=WIDTH, vdim=WIDTH, batch_first=True)
        attention.load_state_dict(
            {
                "q_proj_weight": tuned["query"],
                "k_proj_weight": tuned["key"],
                "v_proj_weight": w[f"{inner}value.weight"],
                "in_proj_bias": torch.cat([w[f"{inner}{name}.bias"] for name in ("query", "key", "value")]),
                "out_proj.weight": w["crossattention.output.dense.weight"],
                "out_proj.bias": w["crossattention.output.dense.bias"],
            }
        )
        found, _ = attention.eval()(hidden, image, image)
        norm = "crossattention.output.LayerNorm"
        hidden = F.layer_norm(hidden + found, (HIDDEN,), w[f"{norm}.weight"], w[f"{norm}.bias"], eps=1e-12)
        inside = F.gelu(F.linear(hidden, w["intermediate.dense.weight"], w["intermediate.dense.bias"]))
        found = F.linear(inside, w["output.dense.weight"], w["output.dense.bias"])
        norm = "output.LayerNorm"
        hidden = F.layer_norm(hidden + found, (HIDDEN,), w[f"{norm}.weight"], w[f"{norm}.bias"], eps=1e-12)
    return hidden


@pytest.mark.parametrize("layers", [1, 2, 3])
@torch.no_grad()
def test_equals_torchs_attention(layers: int) -> None:
    head = shaken(TaggingHead(HIDDEN, WIDTH, layers, HEADS))
    generator = torch.Generator().manual_seed(1)
    labels = torch.randn((1, 7, HIDDEN), generator=generator)
    image = torch.randn((4, 5, WIDTH), generator=generator)
    expected = by_hand(head.state_dict(), labels, image, layers)
    assert float(expected.std(dim=0).mean()) > 0.01  # the images differ
    torch.testing.assert_close(head(labels, image), expected, atol=1e-5, rtol=0)


def test_labels_do_not_see_each_other() -> None:
    head = shaken(TaggingHead(HIDDEN, WIDTH, 2, HEADS))
    generator = torch.Generator().manual_seed(1)
    labels = torch.randn((1, 6, HIDDEN), generator=generator)
    image = torch.randn((2, 5, WIDTH), generator=generator)
    torch.testing.assert_close(head(labels, image)[:, 2:3], head(labels[:, 2:3], image), atol=1e-6, rtol=0)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ConfigError, match="5 heads, got 12"):
        TaggingHead(HIDDEN, WIDTH, 2, 5)
