"""Score-CAM and Grad++ScoreCAM: channels weighted by what the network makes of the input that they let through."""

import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from torch import Tensor

from classifiers.cam.gradient_family import grad_cam_pp_layer_weights, grad_cam_pp_weights, weighted_sum
from classifiers.cam.masked import channel_mask_probabilities, has_mask
from classifiers.cam.options import GradPlusPlusScoreCamOptions, ScoreCamOptions
from classifiers.cam.target import Target


def score_cam(target: Target, options: ScoreCamOptions) -> Tensor:
    """Return the Score-CAM maps ReLU(sum_k weight_k A_k), weight_k = f_c(X * mask_k) - f_c(0), (N, L, h, w).

    mask_k is A_k, enlarged to the input and then scaled to [0, 1] by its minimum and maximum. A channel that is
    constant after enlarging has no mask; its weight is 0, and no pass is made for it. f_c is the probability.

    With the option `softmax` the weights of a label are the softmax of the gains over the channels that have a mask,
    so f_c(0) drops out. The paper's algorithm and the usual libraries do so with logits; its authors' code has
    neither the softmax over channels nor the difference. With probabilities no weight is more than e times another.

    Source: Wang et al. 2020, arXiv:1910.01279, definitions 2 and 3, eq. 3 to 7, and algorithm 1 for the softmax.
    """
    a = target.activations
    masked = has_mask(a, target.x)
    weights = _gains(target, a, masked)
    if options.weights == "softmax":
        shares = weights.masked_fill(~masked[:, None], -torch.inf).softmax(dim=2)
        weights = torch.where(masked[:, None], shares, 0.0)  # a patch without a mask has NaN shares
    return weighted_sum(a, weights)


def grad_plus_plus_score_cam(target: Target, options: GradPlusPlusScoreCamOptions) -> Tensor:
    """Return the Grad++ScoreCAM maps ReLU(sum_k C_k A_k), C_k = f_c(X * s(w_k A_k)) - f_c(0), (N, L, h, w).

    w_k is the weight of Grad-CAM++ of the label, and s scales to [0, 1], so that s(w A) = s(A) for every w > 0: the
    passes are Score-CAM's, restricted for each label to the channels with w_k > 0. The others, which Grad-CAM++ finds
    no support in, have C_k = 0, as have those that are constant.

    The maps are enlarged to the input. The paper reduces the input to the map instead, which is the option
    `reduce_input`: X is then the mean over the pixels of each place of the map. Networks that make 4 x 4 places of 120
    x 120 pixels cannot see an input as small as that.

    Raises:
        ConfigError: The input is to be reduced below what the network can see.

    Source: Soomro et al., Grad++ScoreCAM, eq. 12 to 16 and algorithm 1, whose step 10, min-max, is left to the caller.
    """
    a = target.activations
    options.check_map(target.model, *a.shape[2:])
    scored = _reduced(target) if options.reduce_input else target
    support = _grad_cam_pp_weights(target) > 0
    gains = _gains(scored, a, has_mask(a, scored.x) & support.any(dim=1))
    return weighted_sum(a, torch.where(support, gains, 0.0))


def _gains(target: Target, activations: Tensor, wanted: Tensor) -> Tensor:
    """Return f_c(X * mask_k) - f_c(0) of the channels wanted, (N, K), bool, and 0 for the others, (N, L, K)."""
    every = target.of_labels(tuple(range(target.model.num_labels)))
    probs = target.channel_scores.of(
        wanted, lambda patches, channels: channel_mask_probabilities(every, activations, patches, channels)
    )
    gains = probs[:, :, list(target.labels)] - target.blank_probabilities
    return torch.where(wanted[:, :, None], gains, 0.0).transpose(1, 2).to(activations.dtype)


def _grad_cam_pp_weights(target: Target) -> Tensor:
    """Return the weights of Grad-CAM++, (N, L, K)."""
    if target.is_pooled:
        return grad_cam_pp_weights(target)
    activations, gradients = target.gradients()
    return torch.stack([grad_cam_pp_layer_weights(activations, gradient) for gradient in gradients], dim=1)


def _reduced(target: Target) -> Target:
    """Return the target whose input is reduced to the size of the layer's map."""
    x = F.interpolate(target.x, size=target.activations.shape[2:], mode="area")
    return Target(target.model, x, target.labels, target.layer, target.activation)
