"""Oracle: a hand-made score, 10 n + k, and a list of the pairs it was asked for."""

import torch
from torch import Tensor

from classifiers.cam.channel_scores import ChannelScores


def test_makes_each_score_once() -> None:
    asked: list[tuple[int, int]] = []

    def score(patches: Tensor, channels: Tensor) -> Tensor:
        asked.extend(zip(patches.tolist(), channels.tolist(), strict=True))
        return torch.stack([10.0 * patches + channels, -channels.double()], dim=1)

    scores = ChannelScores()
    first = scores.of(torch.tensor([[False, True, False], [False, False, True]]), score)
    assert asked == [(0, 1), (1, 2)]
    assert first[..., 0].tolist() == [[0, 1, 0], [0, 0, 12]]
    second = scores.of(torch.tensor([[True, True, False], [False, False, False]]), score)
    assert asked == [(0, 1), (1, 2), (0, 0)]
    assert second[..., 0].tolist() == [[0, 1, 0], [0, 0, 12]]
    assert second[..., 1].tolist() == [[0, -1, 0], [0, 0, -2]]


def test_what_was_made_in_inference_mode_can_be_added_to_outside() -> None:
    scores = ChannelScores()
    with torch.inference_mode():
        scores.of(torch.tensor([[True, False]]), lambda patches, _: torch.ones(len(patches), 1))
    both = scores.of(torch.tensor([[True, True]]), lambda patches, _: torch.full((len(patches), 1), 2.0))
    assert both.tolist() == [[[1.0], [2.0]]]
