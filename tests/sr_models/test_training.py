import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it

from infra.errors import ConfigError, TrainingError, WeightsError
from sr_models.quality import psnr_db, reduce_mean, ssim
from sr_models.training import (
    SrTrainer,
    SrTrainSettings,
    ema_decay,
    initial_network,
    learning_rate,
    pixel_loss,
    start_at_base,
)
from sr_models.wald_pairs import FixedImages, ImageSet

SETTINGS = SrTrainSettings("realesrgan_general", steps=4, batch_size=2, crop=16, warmup=1, validate_every=2)
CPU = torch.device("cpu")


def waves(size: int = 48, seed: int = 0) -> torch.Tensor:
    """Texture that a network can learn and bicubic cannot keep: (3, size, size), uint16."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[:size, :size]
    bands = [1500 + 900 * np.sign(np.sin(x * 0.25 + phase) + np.cos(y * 0.2 + phase)) for phase in rng.random(3)]
    return torch.from_numpy(np.stack(bands).astype(np.uint16))


def trainer(settings: SrTrainSettings = SETTINGS, size: int = 48) -> SrTrainer:
    images = ImageSet("waves", (waves(size),), 3000)
    network = initial_network(settings.model, None, settings.seed)
    return SrTrainer(settings, network, FixedImages((images,)), [images], CPU)


def weights(trained: SrTrainer) -> dict[str, torch.Tensor]:
    return {key: value.clone() for key, value in trained.network.state_dict().items()}


def test_the_learning_rate_by_hand() -> None:
    settings = replace(SETTINGS, steps=11, warmup=3, lr=0.4)
    rates = [learning_rate(step, settings) for step in range(11)]
    assert rates[:4] == pytest.approx([0.1, 0.2, 0.3, 0.4])
    assert rates[7] == pytest.approx(0.2)  # half of the cosine
    assert rates[10] == pytest.approx(0.2 * (1 + math.cos(math.pi * 7 / 8)))
    assert rates[3:] == sorted(rates[3:], reverse=True)


def test_losses_by_hand() -> None:
    d = torch.tensor([0.0, 3e-3, -4e-3])
    assert float(pixel_loss(d, torch.zeros(3), "l1")) == pytest.approx(7e-3 / 3)
    by_hand = (1e-3 + math.sqrt(10e-6) + math.sqrt(17e-6)) / 3
    assert float(pixel_loss(d, torch.zeros(3), "charbonnier")) == pytest.approx(by_hand)


def test_the_mean_of_the_weights_by_hand() -> None:
    """Decays 1/10 and 2/11: the mean after two steps is 2/11 (0.1 w0 + 0.9 w1) + 9/11 w2."""
    assert [ema_decay(step, 0.999) for step in (0, 1, 10**6)] == [0.1, 2 / 11, 0.999]
    run = trainer()
    w0 = weights(run)
    run.train_step()
    w1 = weights(run)
    run.train_step()
    w2 = weights(run)
    for key, mean in run._ema.state_dict().items():
        by_hand = 2 / 11 * (0.1 * w0[key] + 0.9 * w1[key]) + 9 / 11 * w2[key]
        torch.testing.assert_close(mean, by_hand, rtol=1e-5, atol=1e-7)
    assert any(not torch.equal(w1[key], w2[key]) for key in w1)


@pytest.mark.parametrize(("name", "mode"), [("srresnet", "bilinear"), ("realesrgan_general", "nearest")])
def test_a_network_with_a_base_starts_as_the_plain_enlargement(name: str, mode: str) -> None:
    x = torch.rand(1, 3, 8, 8)
    with torch.no_grad():
        found = initial_network(name, None, 0)(x)
    torch.testing.assert_close(found, F.interpolate(x, scale_factor=4, mode=mode))


def test_a_network_without_a_base_keeps_its_random_last_layer() -> None:
    network = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 3))
    before = network[0].get_parameter("weight").clone()
    start_at_base("realesrgan", network)
    assert torch.equal(network[0].get_parameter("weight"), before)


def test_starting_weights_are_taken_and_the_seed_decides_the_others() -> None:
    given = {key: value.half() for key, value in initial_network("realesrgan_general", None, 5).state_dict().items()}
    started = initial_network("realesrgan_general", given, 0).state_dict()
    assert all(torch.equal(started[key], value.float()) for key, value in given.items())
    one, two, other = (initial_network("realesrgan_general", None, seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[key], two[key]) for key in one)
    assert any(not torch.equal(one[key], other[key]) for key in one)


def test_a_patch_is_learnt_by_heart_beyond_bicubic() -> None:
    run = trainer(SrTrainSettings("srresnet", 160, 2, crop=32, lr=1e-3, warmup=10, ema=0.8, validate_every=80), size=32)
    rows = list(run.run())
    assert [row.step for row in rows] == [80, 160]
    assert rows[1].loss < 0.9 * rows[0].loss
    assert rows[1].gain_db > max(0.3, rows[0].gain_db)


def test_validation_is_what_the_metrics_say_of_the_mean_weights() -> None:
    run = trainer()
    run.train_step()
    row = run.validate()
    truth = waves()[None].float() / 3000
    reduced = reduce_mean(truth, 4)
    with torch.no_grad():
        restored = run._ema(reduced).clamp(0, 1)
    bicubic = F.interpolate(reduced, scale_factor=4, mode="bicubic").clamp(0, 1)
    (found,) = row.validations
    assert found.psnr_db == pytest.approx(float(psnr_db(restored, truth)), abs=1e-4)
    assert found.ssim == pytest.approx(float(ssim(restored, truth)), abs=1e-5)
    assert found.bicubic_psnr_db == pytest.approx(float(psnr_db(bicubic, truth)), abs=1e-4)
    assert row.gain_db == pytest.approx(found.psnr_db - found.bicubic_psnr_db)


def test_the_best_validation_is_kept_not_the_last() -> None:
    run = trainer(replace(SETTINGS, ema=0.0))
    run.train_step()
    run.validate()
    good = {key: value.clone() for key, value in run.best.items()}
    with torch.no_grad():
        for parameter in run._ema.parameters():
            parameter.add_(0.05 * torch.randn_like(parameter))
    run.validate()
    assert run.curve[1].gain_db < run.curve[0].gain_db
    assert all(torch.equal(run.best[key], good[key]) for key in good)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_stopped_run_gives_the_weights_of_one_that_was_not(dtype: Any) -> None:
    settings = replace(SETTINGS, steps=6, dtype=dtype)
    whole = trainer(settings)
    states = [whole.state() for _ in whole.run()]
    for state in states[:2]:
        resumed = trainer(settings)
        resumed.restore(state)
        list(resumed.run())
        assert resumed.step == 6
        for mine, theirs in ((resumed.network, whole.network), (resumed._ema, whole._ema)):
            expected = theirs.state_dict()
            assert all(torch.equal(value, expected[key]) for key, value in mine.state_dict().items())
        assert all(torch.equal(value, whole.best[key]) for key, value in resumed.best.items())
        assert [row.validations for row in resumed.curve] == [row.validations for row in whole.curve]


def test_a_state_of_another_run_or_a_cut_one_is_refused() -> None:
    state = trainer().state()
    with pytest.raises(WeightsError, match="'seed': 1"):
        trainer(replace(SETTINGS, seed=1)).restore(state)
    with pytest.raises(WeightsError, match="cut short"):
        trainer().restore(state[: len(state) // 2])


def test_a_loss_that_is_not_finite_stops_the_run() -> None:
    run = trainer()
    with torch.no_grad():
        next(run.network.parameters()).fill_(float("nan"))
    with pytest.raises(TrainingError, match="at step 0: lower lr"):
        run.train_step()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"model": "bicubic"}, "no weights to train"),
        ({"crop": 18}, "multiple of 4"),
        ({"steps": 0}, "at least 1"),
        ({"ema": 1.0}, "ema"),
    ],
)
def test_settings_that_cannot_be_are_refused(change: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        replace(SETTINGS, **change)


def test_a_batch_that_workers_cannot_share_and_a_run_without_validation_are_refused() -> None:
    images = ImageSet("waves", (waves(),), 3000)
    network = initial_network(SETTINGS.model, None, 0)
    with pytest.raises(ConfigError, match="shared evenly by 3 workers"):
        SrTrainer(SETTINGS, network, FixedImages((images,)), [images], CPU, workers=3)
    with pytest.raises(TrainingError, match="at least one image to validate on"):
        SrTrainer(SETTINGS, network, FixedImages((images,)), [], CPU)
