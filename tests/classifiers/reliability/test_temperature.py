"""Oracles: a grid, torch's LBFGS, logits that were multiplied by a known number."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812
from numpy.typing import ArrayLike, NDArray
from scipy.special import expit, softmax

from classifiers.cam.target import Activation
from classifiers.reliability import fit_temperatures, scale_by_temperature
from infra.errors import ConfigError, ShapeError

type Floats = NDArray[np.float64]


def labels(n: int, seed: int, overconfident: tuple[float, ...]) -> tuple[Floats, NDArray[np.bool_]]:
    """Logits, each label's too large by a factor, and what is there, drawn by the right probabilities."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(-1, 2, (n, len(overconfident)))
    return logits * overconfident, rng.random(logits.shape) < expit(logits)


def classes(n: int, seed: int, overconfident: float) -> tuple[Floats, NDArray[np.bool_]]:
    """The same for a softmax of four classes."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (n, 4))
    drawn = (softmax(logits, axis=1).cumsum(axis=1) < rng.random((n, 1))).sum(axis=1)
    return logits * overconfident, np.eye(4, dtype=bool)[drawn]


def by_lbfgs(logits: Floats, truth: NDArray[np.bool_], *, softmax: bool) -> float:
    """The temperature by torch, as the paper's authors fit it."""
    x, log_t = torch.tensor(logits), torch.zeros((), dtype=torch.float64, requires_grad=True)
    y = torch.tensor(truth, dtype=torch.float64)
    optimiser = torch.optim.LBFGS([log_t], max_iter=200, tolerance_grad=1e-12, line_search_fn="strong_wolfe")

    def loss() -> torch.Tensor:
        optimiser.zero_grad()
        scaled = x / log_t.exp()
        value = F.cross_entropy(scaled, y) if softmax else F.binary_cross_entropy_with_logits(scaled, y)
        value.backward()  # type: ignore[no-untyped-call]
        return value

    optimiser.step(loss)  # type: ignore[no-untyped-call]
    return float(log_t.detach().exp())


def fitted(probs: ArrayLike, truth: ArrayLike, activation: Activation = "sigmoid") -> Floats:
    """Temperatures where there is something to fit on."""
    found = fit_temperatures(probs, truth, activation)
    assert found is not None
    return found


def test_each_label_as_by_lbfgs_and_by_a_grid() -> None:
    logits, truth = labels(800, 0, (0.3, 1.0, 1.5, 2.0))
    found = fitted(expit(logits), truth)
    grid = np.exp(np.linspace(-4, 4, 4001))
    for i in range(4):
        assert found[i] == pytest.approx(by_lbfgs(logits[:, i], truth[:, i], softmax=False), rel=1e-4)
        signed = np.where(truth[:, i], logits[:, i], -logits[:, i])
        losses = [np.log1p(np.exp(-signed / t)).mean() for t in grid]
        assert found[i] == pytest.approx(grid[np.argmin(losses)], rel=0.0021)


def test_all_classes_of_a_softmax_share_one() -> None:
    logits, truth = classes(800, 1, 2.5)
    found = fitted(softmax(logits, axis=1), truth, "softmax")
    assert found.shape == (4,)
    assert len(set(found.tolist())) == 1
    assert found[0] == pytest.approx(by_lbfgs(logits, truth, softmax=True), rel=1e-4)


def test_find_by_how_much_logits_are_too_large() -> None:
    """100,000 draws: the temperature is known to a few hundredths of itself."""
    factors = (0.5, 1.0, 3.0)
    logits, truth = labels(100_000, 2, factors)
    np.testing.assert_allclose(fitted(expit(logits), truth), factors, rtol=0.03)
    logits, truth = classes(100_000, 3, 2.0)
    np.testing.assert_allclose(fitted(softmax(logits, axis=1), truth, "softmax"), 2.0, rtol=0.03)


def test_two_classes_are_one_label() -> None:
    """A softmax of logits (z, 0) is the sigmoid of z, and has its temperature."""
    logits, truth = labels(500, 4, (2.0,))
    both = softmax(np.concatenate([logits, np.zeros_like(logits)], axis=1), axis=1)
    of_both = fitted(both, np.concatenate([truth, ~truth], axis=1), "softmax")
    np.testing.assert_allclose(of_both, fitted(expit(logits), truth)[0], rtol=1e-4)


def test_scaling_divides_logits() -> None:
    logits = np.array([[-3.0, 0.5], [2.0, 40.0]])
    temperatures = np.array([2.0, 4.0])
    np.testing.assert_allclose(
        scale_by_temperature(expit(logits[:1]), temperatures), expit(logits[:1] / temperatures), rtol=1e-12
    )
    of_softmax = scale_by_temperature(softmax(logits, axis=1), [3.0, 3.0], "softmax")
    np.testing.assert_allclose(of_softmax, softmax(logits / 3, axis=1), rtol=1e-12)


def test_scaling_by_one_changes_nothing_and_none_changes_the_order() -> None:
    """Float32 probabilities down to the smallest; of those that round to 0 or 1, nothing is known but that."""
    probs = np.sort(expit(np.linspace(-60, 15, 500))).astype(np.float32)[:, None]
    np.testing.assert_allclose(scale_by_temperature(probs, [1.0]), probs, rtol=1e-6)
    for temperature in (0.5, 3.0, 50.0):
        assert (np.diff(scale_by_temperature(probs, [temperature])[:, 0]) > 0).all()
    ends = scale_by_temperature(np.array([[0.0], [1.0]], np.float32), [4.0])[:, 0]
    assert 0 < ends[0] < 1e-9
    assert 0.98 < ends[1] < 1


def test_probabilities_of_0_and_1_are_no_infinite_loss() -> None:
    rng = np.random.default_rng(5)
    truth = rng.random((300, 1)) < 0.5
    probs = np.where(rng.random((300, 1)) < 0.9, truth, ~truth).astype(np.float32)  # sure, and wrong in a tenth
    found = fitted(probs, truth)
    assert np.isfinite(found).all()
    assert found[0] > 4  # far too sure
    two = np.concatenate([probs, 1 - probs], axis=1)
    assert np.isfinite(fitted(two, np.concatenate([truth, ~truth], axis=1), "softmax")).all()


def test_a_label_that_is_always_or_never_there_keeps_its_probabilities() -> None:
    logits, truth = labels(200, 6, (2.0, 2.0, 2.0))
    truth[:, 0], truth[:, 2] = True, False
    found = fitted(expit(logits), truth)
    assert (found[0], found[2]) == (1.0, 1.0)
    assert found[1] == pytest.approx(by_lbfgs(logits[:, 1], truth[:, 1], softmax=False), rel=1e-4)


def test_where_no_decision_is_wrong_the_lowest_is_as_good_as_any() -> None:
    found = fitted([[0.6], [0.7], [0.3]], [[1], [1], [0]])
    assert 0.018 < found[0] < 0.03
    assert np.isfinite(scale_by_temperature([[0.6], [0.0], [1.0]], found)).all()


def test_softmax_is_fitted_on_the_rows_with_one_label() -> None:
    """Rows without a label or with two, and those without a probability, might as well not be there."""
    logits, truth = classes(400, 7, 2.5)
    probs = softmax(logits, axis=1)
    expected = fitted(probs[50:], truth[50:], "softmax")
    truth[:20], truth[20:40], probs[40:50, 1] = False, [True, True, False, False], np.nan
    assert fitted(probs, truth, "softmax").tolist() == expected.tolist()
    assert expected[0] == pytest.approx(by_lbfgs(logits[50:], truth[50:], softmax=True), rel=1e-4)


def test_probabilities_that_are_missing_are_left_out_of_their_label() -> None:
    logits, truth = labels(400, 8, (2.0, 0.5))
    probs = expit(logits)
    probs[:30, 0] = np.nan
    found = fitted(probs, truth)
    assert found[0] == fitted(expit(logits[30:, :1]), truth[30:, :1])[0]
    assert found[1] == fitted(expit(logits[:, 1:]), truth[:, 1:])[0]


@pytest.mark.parametrize("activation", ["sigmoid", "softmax"])
def test_nothing_to_fit_on_is_no_temperature(activation: Activation) -> None:
    none = np.zeros((3, 2), np.bool_)
    assert fit_temperatures(np.full((3, 2), np.nan), none, activation) is None
    assert fit_temperatures(np.empty((0, 2)), none[:0], activation) is None
    assert (fit_temperatures(np.full((3, 2), 0.5), none, activation) is None) == (activation == "softmax")


def test_refusals() -> None:
    for probs, truth in (([0.1], [0]), ([[0.1]], [[0, 1]])):
        with pytest.raises(ShapeError, match=r"one shape \(N, L\)"):
            fit_temperatures(probs, truth)
    with pytest.raises(ConfigError, match="1 of 4 probabilities are not from 0 to 1"):
        fit_temperatures([[0.1, np.nan], [0.3, 1.5]], [[0, 1], [1, 0]])
