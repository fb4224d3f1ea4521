"""The one shape of every classifier: convolutional stages, global average pooling, a head."""

from typing import cast

import torch
from torch import Tensor, nn
from torch.func import functional_call

from classifiers.planned import refuse_too_small
from infra.errors import ConfigError


def pool(activations: Tensor) -> Tensor:
    """Return the global average of each channel, (N, K, h, w) to (N, K), at least in float32."""
    dtype = torch.promote_types(activations.dtype, torch.float32)
    return activations.mean(dim=(2, 3), dtype=dtype)


class Classifier(nn.Module):
    """A backbone, global average pooling and a head that sees only the pooled features.

    That the head sees nothing else is what gives activation maps of every label from one forward pass.

    Attributes:
        backbone: From (N, C, H, W), standardised, to the activations of the last convolutional stage, (N, K, h, w).
        head: From pooled features (N, K) to logits (N, L).
        target_layer: Name of the module inside `backbone` whose output `features` returns.
        num_labels: L.
        name: The network's name, for messages.
        min_size: Smallest edge of an input, pixels.
    """

    def __init__(
        self,
        backbone: nn.Module,
        head: nn.Module,
        target_layer: str,
        num_labels: int,
        *,
        name: str = "classifier",
        min_size: int = 1,
    ) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.target_layer = target_layer
        self.num_labels = num_labels
        self.name = name
        self.min_size = min_size

    @property
    def has_linear_head(self) -> bool:
        """Whether the head is one linear layer."""
        return isinstance(self.head, nn.Linear)

    def features(self, x: Tensor) -> Tensor:
        """Return the activations of the last convolutional stage.

        Args:
            x: Standardised input, (N, C, H, W), H and W at least `min_size`; 0 is the training mean of the band.

        Returns:
            (N, K, h, w), in the unit of the network.

        Raises:
            ShapeError: The image is smaller than the network can see.
        """
        if x.ndim == 4:
            self._check_size(x.shape[2], x.shape[3])
        return cast("Tensor", self.backbone(x))

    def map_size(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Return height and width of the activations of the last convolutional stage, without computing them.

        Args:
            shape: Of an image, (C, H, W).

        Returns:
            h and w of `features`, places.

        Raises:
            ShapeError: The image is smaller than the network can see.
        """
        self._check_size(*shape[1:])
        tensors = [*self.backbone.named_parameters(), *self.backbone.named_buffers()]
        shapes_alone = {name: torch.empty_like(value, device="meta") for name, value in tensors}
        image = torch.empty(1, *shape, dtype=next(self.parameters()).dtype, device="meta")
        height, width = functional_call(self.backbone, shapes_alone, (image,)).shape[2:]
        return height, width

    def _check_size(self, height: int, width: int) -> None:
        refuse_too_small(self.name, self.min_size, height, width)

    def classify(self, pooled: Tensor) -> Tensor:
        """Return the logits (N, L) of pooled features (N, K); never in half precision, so that ranks keep."""
        dtype = next(self.head.parameters()).dtype
        with torch.autocast(pooled.device.type, enabled=False):
            if torch.promote_types(dtype, torch.float32) == dtype:
                return cast("Tensor", self.head(pooled.to(dtype)))
            tensors = [*self.head.named_parameters(), *self.head.named_buffers()]
            at_full = {name: value.float() for name, value in tensors}
            return cast("Tensor", functional_call(self.head, at_full, (pooled.float(),)))

    def forward_with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (N, L) and the activations (N, K, h, w) of one forward pass over x (N, C, H, W)."""
        activations = self.features(x)
        return self.classify(pool(activations)), activations

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, L) of the standardised input x (N, C, H, W)."""
        return self.forward_with_features(x)[0]


def layer_depths(classifier: Classifier) -> dict[str, int]:
    """Return how deep each parameter lies, for a learning rate that decays from the head towards the input.

    The groups of the backbone are timm's. A ResNet's are the stem (`conv1`, `bn1`), then each residual block of
    `layer1` to `layer4` in order (downsampling and all), then the head: 10 groups in ResNet-18, 18 in ResNet-50, 35 in
    ResNet-101, 52 in ResNet-152. An Inception-v4's are the stem (`features.0` to `features.2`), then each of the 19
    modules from `features.3` on, then the head: 21 groups.

    Args:
        classifier: A network of `registry.build`.

    Returns:
        Parameter name, as `classifier.named_parameters()` has it, to its group: 0 for the stem, which is decayed most,
        to D for the head; a layer's rate is the head's times decay ** (D - group).

    Raises:
        ConfigError: The backbone has no such groups, as it is not timm's.
    """
    from timm.models import group_parameters  # slow import, see `registry.build`

    matcher = getattr(classifier.backbone, "group_matcher", None)
    if matcher is None:
        raise ConfigError(f"the backbone of {classifier.name} has no layer groups: only timm's networks do")
    backbone: dict[str, int] = group_parameters(classifier.backbone, matcher(), reverse=True)
    head = max(backbone.values()) + 1
    depths = {f"backbone.{name}": depth for name, depth in backbone.items()}
    return depths | {f"head.{name}": head for name, _ in classifier.head.named_parameters()}
