"""Oracle: the mean by hand."""

import torch
from torch import nn

from classifiers.training.mean_weights import MeanWeights, ema_decay


def test_the_mean_of_the_weights_by_hand() -> None:
    """Decays 1/10 and 2/11: the mean after two steps is 2/11 (0.1 w0 + 0.9 w1) + 9/11 w2."""
    assert [ema_decay(step, 0.999) for step in (0, 1, 10**6)] == [0.1, 2 / 11, 0.999]
    layer, norm = nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, affine=False)
    network = nn.Sequential(layer, norm).double()
    with torch.no_grad():
        layer.weight.fill_(3.0)
        mean = MeanWeights(network, 0.999)
        for step, weight in enumerate((5.0, -1.0)):
            layer.weight.fill_(weight)
            norm(torch.full((2, 1), 4.0).double())
            mean.update(step)
    by_hand = 2 / 11 * (0.1 * 3 + 0.9 * 5) + 9 / 11 * -1
    kept = mean.network.state_dict()
    torch.testing.assert_close(kept["0.weight"], torch.tensor([[by_hand]]).double())
    assert torch.equal(kept["1.running_mean"], norm.running_mean)  # type: ignore[arg-type]
    assert int(kept["1.num_batches_tracked"]) == 2
    assert float(layer.weight.detach()) == -1
    assert not any(parameter.requires_grad for parameter in mean.network.parameters())
