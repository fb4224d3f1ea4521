"""EigenCAM: the first principal direction of the activations, without a label and without centring."""

import torch
from torch import Tensor

from classifiers.cam.target import Target

_ITERATIONS = 100
_TOLERANCE = 1e-6
"""Residual, relative to the eigenvalue, at which the power iteration stops; float32 allows little less."""


def eigen_cam(target: Target) -> Tensor:
    """Return the activations projected on their first right-singular vector, (N, 1, h, w).

    The activations, (hw, K), are not centred. The sign is the one that correlates positively with their mean over
    channels; the map is not rectified.

    Source: Muhammad and Yeasin 2020, arXiv:2008.00299, section III.
    """
    a = target.activations
    places = a.flatten(2).transpose(1, 2)  # (N, hw, K)
    return signed(first_component(places), places.mean(dim=2)).reshape(len(a), 1, *a.shape[2:])


def first_component(matrices: Tensor) -> Tensor:
    """Return M v of each matrix, v its first right-singular vector, of either sign.

    The eigenvector of the smaller of M M' and M' M is found by power iteration; where the first two singular values
    are too close for it, or nothing proves that what it found is the first, by a full decomposition of that small
    matrix.

    Args:
        matrices: M, (N, P, K), any range.

    Returns:
        (N, P); a matrix of zeros gives zeros, one that is not finite NaN.
    """
    n, rows, cols = matrices.shape
    # A scale of its own for each keeps the squares of tiny activations from vanishing.
    scale = matrices.abs().amax(dim=(1, 2), keepdim=True)
    unit = matrices / torch.where(scale == 0, 1.0, scale)
    gram = torch.bmm(unit, unit.mT) if rows <= cols else torch.bmm(unit.mT, unit)
    vector, value, converged = _power_iteration(gram)
    if not bool(converged.all()):
        # What is not finite has no decomposition; its vector is NaN already, and so will be its component.
        left = ~converged & gram.isfinite().all(dim=(1, 2))
        values, vectors = torch.linalg.eigh(gram[left])
        vector[left], value[left] = vectors[..., -1], values[:, -1]
    component = (
        vector * value.clamp(min=0).sqrt()[:, None] if rows <= cols else torch.einsum("npk,nk->np", unit, vector)
    )
    return component * scale.reshape(n, 1)


def _power_iteration(gram: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return the first eigenvector (N, P), its eigenvalue (N,), and whether each has converged and is the first."""
    # The column sums are no worse a start than any other, and nearly the answer where no activation is negative.
    vector = _unit(gram.sum(dim=2))
    for _ in range(_ITERATIONS):
        product = torch.einsum("npq,nq->np", gram, vector)
        value = (vector * product).sum(dim=1)
        residual = torch.linalg.vector_norm(product - value[:, None] * vector, dim=1)
        converged = (residual <= _TOLERANCE * value) & (value > 0)
        if bool(converged.all()):
            break
        vector = _unit(product)
    # A start without a part along the first eigenvector finds another. Two proofs that it did not: an eigenvalue above
    # half of their sum is the largest; and without negative entries, neither has the first eigenvector any (Perron),
    # so that column sums have a part along it.
    half_of_all = gram.diagonal(dim1=1, dim2=2).sum(dim=1) / 2
    is_first = (value > half_of_all) | (gram.flatten(1).amin(dim=1) >= 0)
    return vector, value, converged & is_first


def _unit(vectors: Tensor) -> Tensor:
    norm = torch.linalg.vector_norm(vectors, dim=1, keepdim=True)
    return vectors / torch.where(norm == 0, 1.0, norm)


def signed(component: Tensor, reference: Tensor) -> Tensor:
    """Return components with the sign that correlates positively with a reference, both (N, P)."""
    a, b = _of_peak_one(component), _of_peak_one(reference)  # or products of tiny values vanish
    covariance = ((a - a.mean(dim=1, keepdim=True)) * (b - b.mean(dim=1, keepdim=True))).sum(dim=1)
    # Where either is constant there is no correlation: the sign of the scalar product remains.
    agrees = torch.where(covariance == 0, (a * b).sum(dim=1), covariance) >= 0
    return torch.where(agrees[:, None], component, -component)


def _of_peak_one(values: Tensor) -> Tensor:
    peak = values.abs().amax(dim=1, keepdim=True)
    return values / torch.where(peak == 0, 1.0, peak)
