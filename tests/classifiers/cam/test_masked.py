"""Oracles: hand numbers, and one forward pass for each mask."""

from typing import Any

import pytest
import torch
from torch import Tensor

from classifiers.cam import target as target_module
from classifiers.cam.explain import explain
from classifiers.cam.masked import channel_mask_probabilities, chunks, has_mask, shared_mask_probabilities
from classifiers.cam.target import Target, images_at_once
from tests.classifiers.cam.small_networks import convolutional, random_images, recorded


def test_chunks_cover_everything_once_within_the_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    """400 bytes a pixel in float32: 4,000 for an image of 2 x 5, twice that in float64."""
    monkeypatch.setattr(target_module, "_CPU_BYTES_AT_ONCE", 12_500)
    assert images_at_once(torch.zeros(1, 2, 2, 5)) == 3
    assert images_at_once(torch.zeros(9, 2, 2, 5, dtype=torch.float64)) == 1
    assert [(part.start, part.stop) for part in chunks(7, torch.zeros(1, 2, 2, 5))] == [(0, 3), (3, 6), (6, 7)]
    assert images_at_once(torch.zeros(1, 2, 500, 500)) == 1
    assert list(chunks(0, torch.zeros(1, 2, 2, 5))) == []


def test_constant_channels_have_no_mask() -> None:
    """0.1 at every place does not come back as 0.1 at every pixel; a single place cannot vary."""
    x = torch.zeros(2, 3, 17, 13)
    a = torch.zeros(2, 4, 5, 4)
    a[0, 1] = 0.1
    a[0, 2, 4, 3] = 1e-6
    a[0, 3, 2, 2] = -7.0
    a[1, 0, 0, 0] = torch.nan
    assert has_mask(a, x).tolist() == [[False, False, True, True], [False] * 4]
    assert not has_mask(torch.ones(1, 2, 1, 1), x).any()


def test_a_channel_that_enlarging_makes_constant_has_no_mask() -> None:
    """3 x 3 pixels of a 9 x 9 map: the middle ones of each 3 x 3, which are all 1."""
    a = torch.zeros(1, 1, 9, 9)
    a[:, :, 1::3, 1::3] = 1
    assert not has_mask(a, torch.zeros(1, 1, 3, 3)).any()
    assert has_mask(a, torch.zeros(1, 1, 9, 9)).all()


def _brute_force(target: Target, masks: Tensor) -> Tensor:
    return torch.stack(
        [torch.stack([target.probabilities_of((image * mask)[None])[0] for mask in masks]) for image in target.x]
    )


def test_shared_masks_go_over_every_patch() -> None:
    target = Target(convolutional(), random_images(3, 2, 6, 5), (2, 0))
    masks = torch.rand(4, 6, 5, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(shared_mask_probabilities(target, masks), _brute_force(target, masks))
    binary = masks > 0.5
    torch.testing.assert_close(shared_mask_probabilities(target, binary), _brute_force(target, binary))


@pytest.mark.parametrize("at_once", [1, 2, 100])
def test_channel_masks_by_hand(monkeypatch: pytest.MonkeyPatch, at_once: int) -> None:
    """Map [1, 3] on 4 pixels is 1, 1.5, 2.5, 3, the mask 0, 1/4, 3/4, 1; no more images at once than fit."""
    monkeypatch.setattr(target_module, "_CPU_BYTES_AT_ONCE", at_once * 800 * 2 * 4)
    model = convolutional()
    target = Target(model, random_images(2, 2, 2, 4), (0, 1, 2))
    a = torch.tensor([[[[1.0, 3.0]], [[3.0, 1.0]], [[2.0, 6.0]]]], dtype=torch.float64).repeat(2, 1, 1, 1)
    with recorded(model) as batches:
        found = channel_mask_probabilities(target, a, torch.tensor([0, 1, 1]), torch.tensor([0, 1, 2]))
    assert max(len(batch) for batch in batches) == min(at_once, 3)
    mask = torch.tensor([0.0, 0.25, 0.75, 1.0], dtype=torch.float64)
    masked = torch.stack([target.x[0] * mask, target.x[1] * mask.flip(0), target.x[1] * mask])
    torch.testing.assert_close(torch.cat(batches), masked)
    torch.testing.assert_close(found, model(masked).sigmoid().detach())


@pytest.mark.parametrize(
    ("method", "options"),
    [
        ("rise", {"masks": 25, "cells": 3}),
        ("lime", {"samples": 25, "cells": 3}),
        ("occlusion", {"window": 3, "stride": 2}),
    ],
)
def test_maps_by_shared_masks_do_not_depend_on_chunks_or_batch(
    method: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    model, x = convolutional(), random_images(3, 2, 7, 10)
    whole = explain(model, x, method, **options)
    torch.testing.assert_close(torch.cat([explain(model, image[None], method, **options) for image in x]), whole)
    if method != "occlusion":
        assert not torch.allclose(explain(model, x, method, seed=1, **options), whole)
    monkeypatch.setattr(target_module, "_CPU_BYTES_AT_ONCE", 4 * 800 * 7 * 10)
    with recorded(model) as batches:
        torch.testing.assert_close(explain(model, x, method, **options), whole)
    assert max(len(batch) for batch in batches) == 4
