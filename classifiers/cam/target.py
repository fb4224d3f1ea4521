"""What explanation methods ask of a network: a batch, the activations they look at, gradients and probabilities."""

import hashlib
from collections.abc import Iterator, Sequence
from functools import cached_property
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from classifiers.cam.channel_scores import ChannelScores
from classifiers.cam.gradients import label_gradients, layer_activations
from classifiers.network import Classifier, pool
from infra.errors import ConfigError

Activation = Literal["sigmoid", "softmax"]
"""What turns logits into probabilities: sigmoid for several labels a patch, softmax for one."""

_BYTES_PER_PIXEL = 400
"""Peak memory of a forward pass per input pixel in float32, at 120 and 480 pixels on a CPU.

A ResNet-50 takes 240 to 390, with the number of images; a ResNet-18 130, a ResNet-152 280, an Inception-v4 180.
"""
_CPU_BYTES_AT_ONCE = 1 << 26  # 11 images of 120 x 120: a ResNet-50 takes 1.5 times as long for each of 96 at once
_GPU_BYTES_AT_ONCE = 1 << 33  # fills any GPU, and keeps each tensor below 2^31 elements, where kernels are slower


class Target:
    """One batch, seen at one layer of a network in evaluation mode; each thing is computed once, on first use.

    What `__init__` takes lies in attributes of the same names.
    """

    def __init__(
        self,
        model: Classifier,
        x: Tensor,
        labels: tuple[int, ...],
        layer: str | None = None,
        activation: Activation = "sigmoid",
        activations: Tensor | None = None,
        seeds: Sequence[int] | None = None,
        channel_scores: ChannelScores | None = None,
    ) -> None:
        """Look at one batch.

        Args:
            model: The classifier, in evaluation mode.
            x: Standardised input, (N, C, H, W).
            labels: Label indices, L of them, in the order of the maps.
            layer: Module of the backbone to look at; None: the last convolutional stage, all that the head sees.
            activation: What turns the model's logits into probabilities.
            activations: The layer's output for x, (N, K, h, w), where it is at hand.
            seeds: A number of each patch's own, N of them, for methods that draw noise; None: its place in the batch.
            channel_scores: Probabilities of x masked by one channel of the layer each, as another target for the same
                batch and layer has them; None: none yet.

        Raises:
            ConfigError: There is no such activation, or there are not as many seeds as patches.
        """
        if activation not in get_args(Activation):
            raise ConfigError(f"activation is one of {', '.join(get_args(Activation))}, got {activation!r}")
        if seeds is not None and len(seeds) != len(x):
            raise ConfigError(f"{len(x)} patches need as many seeds, got {len(seeds)}")
        self.model = model
        self.x = x
        self.labels = labels
        self.layer = None if layer == model.target_layer else layer
        self.activation = activation
        self.seeds = range(len(x)) if seeds is None else seeds
        self.channel_scores = ChannelScores() if channel_scores is None else channel_scores
        self._given = activations

    def of_labels(self, labels: tuple[int, ...]) -> "Target":
        """Return the same batch for other labels, with the activations and channel scores that this one has."""
        if labels == self.labels:
            return self
        at_hand = self._given if self._given is not None else self.__dict__.get("activations")
        return Target(self.model, self.x, labels, self.layer, self.activation, at_hand, self.seeds, self.channel_scores)

    def of_patches(self, rows: Tensor) -> "Target":
        """Return some patches of the batch, with the activations that this one has; rows (M,), integers."""
        at_hand = self._given if self._given is not None else self.__dict__.get("activations")
        seeds = [self.seeds[row] for row in rows.tolist()]
        rows = rows.to(self.x.device)
        activations = None if at_hand is None else at_hand[rows]
        return Target(self.model, self.x[rows], self.labels, self.layer, self.activation, activations, seeds)

    def generator(self, row: int, seed: int) -> torch.Generator:
        """Return a generator on the CPU for one patch's noise, the same in any batch and on any device."""
        digest = hashlib.blake2b(f"{seed} {self.seeds[row]}".encode(), digest_size=8).digest()
        return torch.Generator().manual_seed(int.from_bytes(digest, "big") >> 1)

    @property
    def is_pooled(self) -> bool:
        """Whether the head sees the layer through its spatial mean alone, so that gradients are constant over space."""
        return self.layer is None

    @property
    def layer_name(self) -> str:
        """Name of the layer, of the last stage too."""
        return self.model.target_layer if self.layer is None else self.layer

    @property
    def linear_head(self) -> nn.Linear | None:
        """The head, where it is one linear layer on the pooled activations of this layer."""
        return self.model.head if self.is_pooled and isinstance(self.model.head, nn.Linear) else None

    @cached_property
    def activations(self) -> Tensor:
        """A, (N, K, h, w), at least float32, detached."""
        if self._given is not None:
            a = self._given
        elif self.layer is None:
            a = self.model.features(self.x)
        else:
            a = layer_activations(self.model, self.x, self.layer)
        return a.detach().to(torch.promote_types(a.dtype, torch.float32))

    @cached_property
    def pooled_gradients(self) -> Tensor:
        """dy/d(pooled feature) of each label: (L, K) for a linear head, the same for every patch; else (N, L, K).

        It is hw times the gradient that every place of a channel shares.
        """
        head = self.model.head
        if isinstance(head, nn.Linear):
            return head.weight.detach()[list(self.labels)].to(self.activations.dtype)
        with torch.inference_mode(mode=False), torch.enable_grad():
            pooled = pool(self.activations.clone()).requires_grad_()
            logits = self.model.classify(pooled)
            return torch.stack(
                [torch.autograd.grad(logits[:, label].sum(), pooled, retain_graph=True)[0] for label in self.labels],
                dim=1,
            )

    def gradients(self) -> tuple[Tensor, Iterator[Tensor]]:
        """Return A and, label by label, dy/dA, (N, K, h, w) each, at least float32, by autograd.

        Raises:
            UnknownNameError: The backbone has no such layer.
            ShapeError: The layer's output is not 4-D, it does not run once, or no logit depends on it.
        """
        a, gradients = label_gradients(self.model, self.x, self.layer_name, self.labels)
        dtype = torch.promote_types(a.dtype, torch.float32)
        return a.to(dtype), (gradient.to(dtype) for gradient in gradients)

    @cached_property
    def probabilities(self) -> Tensor:
        """f_c(x) of the labels, (N, L)."""
        if self.is_pooled:
            return self._of_labels(self.model.classify(pool(self.activations)))
        return self.probabilities_of(self.x)

    @cached_property
    def blank_probabilities(self) -> Tensor:
        """f_c of the blank input, whose every pixel is the training mean: (1, L)."""
        return self.probabilities_of(torch.zeros_like(self.x[:1]))

    def probabilities_of(self, x: Tensor) -> Tensor:
        """Return f_c of other standardised inputs, (M, C, H, W) to (M, L), as many at once as memory allows."""
        with torch.no_grad():
            return torch.cat([self._of_labels(self.model(part)) for part in torch.split(x, images_at_once(x))])

    def _of_labels(self, logits: Tensor) -> Tensor:
        probs = logits.softmax(dim=1) if self.activation == "softmax" else logits.sigmoid()
        return probs[:, list(self.labels)]


def images_at_once(x: Tensor) -> int:
    """Return how many images of the size of x, (N, C, H, W), go through a network at once within the memory budget."""
    if x.is_cuda:
        free, _ = torch.cuda.mem_get_info(x.device)
        # What the allocator keeps from earlier passes is free to the next one.
        idle = torch.cuda.memory_reserved(x.device) - torch.cuda.memory_allocated(x.device)
        budget = min((free + idle) // 2, _GPU_BYTES_AT_ONCE)
    else:
        budget = _CPU_BYTES_AT_ONCE
    bytes_per_pixel = _BYTES_PER_PIXEL * x.element_size() // 4
    return max(1, budget // (bytes_per_pixel * x.shape[2] * x.shape[3]))


def require_linear_head(target: Target, method: str) -> nn.Linear:
    """Return the linear head that a method is defined for.

    Raises:
        ConfigError: The head is not one linear layer on the pooled activations of the layer.
    """
    head = target.linear_head
    if head is not None:
        return head
    if not target.is_pooled:
        raise ConfigError(
            f"{method} is defined for the last convolutional stage, {target.model.target_layer}, not for "
            f"{target.layer}: choose grad_cam"
        )
    raise ConfigError(
        f"{method} needs a head that is one linear layer, {target.model.name} has {type(target.model.head).__name__}: "
        "choose grad_cam, its generalisation"
    )
