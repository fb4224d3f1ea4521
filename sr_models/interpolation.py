"""The two models without weights: the identity and bicubic enlargement, the controls of every comparison."""

from torch import Tensor, nn
from torch.nn.functional import interpolate


class Identity(nn.Module):
    """Returns its input."""

    def forward(self, x: Tensor) -> Tensor:
        """Return x, (N, C, H, W), as it is."""
        return x


class Bicubic(nn.Module):
    """Enlarges with Keys' cubic convolution, a = -0.75, pixel centres aligned, edges repeated.

    Source: Keys 1981, doi:10.1109/TASSP.1981.1163711; a as in PyTorch and OpenCV (Keys and MATLAB: -0.5).
    """

    def __init__(self, scale: int) -> None:
        super().__init__()
        self.scale = scale

    def forward(self, x: Tensor) -> Tensor:
        """Return x, (N, C, H, W), enlarged to (N, C, scale*H, scale*W); overshoots beyond the range of x stay."""
        return interpolate(x, scale_factor=self.scale, mode="bicubic", align_corners=False, antialias=False)
