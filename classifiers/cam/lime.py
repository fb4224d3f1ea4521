"""LIME: a linear model of what the network makes of the input with random parts of it blank."""

import torch
from torch import Tensor

from classifiers.cam.masked import chunks, shared_mask_probabilities
from classifiers.cam.options import LimeOptions
from classifiers.cam.target import Target


def lime(target: Target, options: LimeOptions) -> Tensor:
    """Return the coefficients of a linear model of f_c in which parts of the input are kept, (N, L, cells, cells).

    The parts are rectangles of a regular grid, not superpixels: those are segments of a picture in colours, which the
    bands of a patch are not, and they would differ from patch to patch and from one SR model to the next. One grid
    makes maps comparable, and one set of samples and one factorisation serve all patches and labels.

    A sample keeps each rectangle with probability 1/2 and blanks the others, 0, the training mean; the first keeps
    all. Its weight is sqrt(exp(-d^2 / kernel_width^2)), d the cosine distance of its vector z of zeros and ones from
    the vector of ones, 1 - sqrt(mean(z)). The model has an intercept, which is not penalised.

    Args:
        target: The batch; its layer is not looked at.
        options: Grid, samples, kernel and penalty.

    Returns:
        At the resolution of the grid, in probability: what it gains when the rectangle is kept. A rectangle of a
        grid that does not divide the input takes the pixels whose row * cells // H and column * cells // W are its own.

    Raises:
        ConfigError: The grid has more cells along an edge than the input has pixels.

    Source: Ribeiro et al. 2016, arXiv:1602.04938, eq. 1 and section 3.4; kernel and regression as their image code has.
    """
    x, cells = target.x, options.cells
    height, width = x.shape[2:]
    options.check_input(height, width)
    generator = torch.Generator().manual_seed(options.seed)  # a generator of a GPU has numbers of its own
    kept = torch.rand(options.samples, cells, cells, generator=generator) < 0.5
    kept[0] = True
    kept = kept.to(x.device)
    row = torch.arange(height, device=x.device) * cells // height
    col = torch.arange(width, device=x.device) * cells // width
    probs = torch.cat(
        [shared_mask_probabilities(target, kept[chunk][:, row[:, None], col]) for chunk in chunks(options.samples, x)],
        dim=1,
    )
    z = kept.flatten(1).double()
    distance = 1 - z.mean(dim=1).sqrt()
    weight = (-0.5 * (distance / options.kernel_width).square()).exp()
    coefficients = ridge_coefficients(z, probs.transpose(0, 1).flatten(1), weight, options.ridge)  # (cells^2, N * L)
    maps = coefficients.T.reshape(len(x), len(target.labels), cells, cells)
    return maps.to(torch.promote_types(x.dtype, torch.float32))


def ridge_coefficients(features: Tensor, values: Tensor, weights: Tensor, ridge: float) -> Tensor:
    """Return the coefficients of weighted ridge regressions on the same features, each with an intercept.

    Args:
        features: (samples, F).
        values: (samples, R), one column for each regression.
        weights: Of the samples, (samples,), >= 0, not all 0.
        ridge: Penalty on the squared coefficients, but not on the intercept; > 0.

    Returns:
        beta, (F, R), in float64, the minimum of sum_i weight_i (value_i - b - feature_i beta)^2 + ridge |beta|^2.
    """
    x, y, w = features.double(), values.double(), weights.double()[:, None]
    # At the minimum the intercept b is the weighted mean of what is left, so that it drops out of centred data.
    x = x - (w * x).sum(dim=0) / w.sum()
    y = y - (w * y).sum(dim=0) / w.sum()
    normal = x.T @ (w * x) + ridge * torch.eye(x.shape[1], dtype=x.dtype, device=x.device)
    return torch.cholesky_solve(x.T @ (w * y), torch.linalg.cholesky(normal))
