"""Oracles: the symmetries written out, and hand numbers of the mix."""

import numpy as np
import pytest
import torch

from classifiers.training.augment import Mix, draw_mix, draw_turns, turn
from infra.errors import ShapeError


def test_turn_gives_the_eight_symmetries_of_the_square() -> None:
    image = torch.tensor([[1.0, 2.0], [3.0, 4.0]])[None, None]
    turned = turn(image.repeat(8, 1, 1, 1), np.arange(8))
    assert len({tuple(t.flatten().tolist()) for t in turned}) == 8
    assert turned[0].flatten().tolist() == [1, 2, 3, 4]
    assert turned[1].flatten().tolist() == [2, 4, 1, 3]  # counter-clockwise
    assert turned[4].flatten().tolist() == [2, 1, 4, 3]  # left to right


def test_turn_keeps_the_memory_format() -> None:
    x = torch.rand(8, 3, 4, 4)
    last = turn(x.to(memory_format=torch.channels_last), np.arange(8))
    assert last.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(last, turn(x, np.arange(8)))


def test_turns_are_drawn_for_each_step_and_all_are_likely() -> None:
    codes = draw_turns(0, 1, 2, 8000)
    assert np.bincount(codes, minlength=8).min() > 800
    assert np.array_equal(codes, draw_turns(0, 1, 2, 8000))
    for other in ((1, 1, 2), (0, 2, 2), (0, 1, 3)):
        assert not np.array_equal(codes, draw_turns(*other, 8000))


def test_mix_by_hand() -> None:
    mix = Mix(0.25, np.array([2, 0, 1]))
    assert mix(torch.tensor([[4.0], [8.0], [0.0]])).flatten().tolist() == [1.0, 5.0, 6.0]


def test_the_share_of_the_mix_has_its_distribution_and_is_that_of_all_workers() -> None:
    """Beta(a, a) has mean 1/2 and variance 1 / (4 (2 a + 1)); 4000 draws give the variance within 5 %."""
    shares = np.array([draw_mix(0.4, 0, 0, step, 0, 1).share for step in range(4000)])
    assert shares.mean() == pytest.approx(0.5, abs=0.02)
    assert shares.var() == pytest.approx(1 / (4 * 1.8), rel=0.05)
    first, second = draw_mix(0.4, 0, 1, 5, 0, 20), draw_mix(0.4, 0, 1, 5, 1, 20)
    assert first.share == second.share
    assert sorted(first.partners) == list(range(20))
    assert not np.array_equal(first.partners, second.partners)


def test_refuses_what_is_not_square() -> None:
    with pytest.raises(ShapeError, match="square"):
        turn(torch.zeros(1, 1, 2, 3), np.zeros(1, np.int64))
