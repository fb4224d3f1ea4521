"""The one shape of every classifier: convolutional stages, global average pooling, a head."""

from typing import cast

import torch
from torch import Tensor, nn


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
    """

    def __init__(self, backbone: nn.Module, head: nn.Module, target_layer: str, num_labels: int) -> None:
        super().__init__()
        self.backbone = backbone
        self.head = head
        self.target_layer = target_layer
        self.num_labels = num_labels

    def features(self, x: Tensor) -> Tensor:
        """Return the activations of the last convolutional stage.

        Args:
            x: Standardised input, (N, C, H, W); 0 is the training mean of the band.

        Returns:
            (N, K, h, w), in the unit of the network.
        """
        return cast("Tensor", self.backbone(x))

    def classify(self, pooled: Tensor) -> Tensor:
        """Return the logits (N, L) of pooled features (N, K); never in half precision, so that ranks keep."""
        with torch.autocast(pooled.device.type, enabled=False):
            return cast("Tensor", self.head(pooled.to(next(self.head.parameters()).dtype)))

    def forward_with_features(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits (N, L) and the activations (N, K, h, w) of one forward pass over x (N, C, H, W)."""
        activations = self.features(x)
        return self.classify(pool(activations)), activations

    def forward(self, x: Tensor) -> Tensor:
        """Return the logits (N, L) of the standardised input x (N, C, H, W)."""
        return self.forward_with_features(x)[0]
