"""The one place that imports basicsr: its networks, built with random parameters.

basicsr 1.4.2 is the last release. It imports `torchvision.transforms.functional_tensor`, which torchvision 0.17
removed, and a name from SciPy's deprecated `scipy.ndimage.filters`. Both are worked round here, for the time of the
import only. The import is lazy, torchvision's too: together they take seconds.
"""

import sys
import warnings
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from torch import nn

_GONE = "torchvision.transforms.functional_tensor"


def _basicsr(module: str, name: str) -> "type[nn.Module]":
    """Return a class of `basicsr.archs`."""
    path = f"basicsr.archs.{module}"
    if path not in sys.modules:
        from torchvision.transforms import functional

        stand_in = ModuleType(_GONE)
        stand_in.__dict__["rgb_to_grayscale"] = functional.rgb_to_grayscale  # the one name basicsr takes from there
        absent = _GONE not in sys.modules
        sys.modules.setdefault(_GONE, stand_in)
        try:
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", category=DeprecationWarning, module=r"basicsr\.")
                import_module(path)
        finally:
            if absent:
                del sys.modules[_GONE]
    return cast("type[nn.Module]", getattr(sys.modules[path], name))


def msrresnet(*, num_feat: int, num_block: int) -> "nn.Module":
    """Return an RGB x4 MSRResNet, (N, 3, H, W) -> (N, 3, 4H, 4W).

    Args:
        num_feat: Channels of the body.
        num_block: Residual blocks, two convolutions each.

    Source: Ledig et al. 2017, arXiv:1609.04802, without batch normalisation, as trained in BasicSR.
    """
    return _basicsr("srresnet_arch", "MSRResNet")(3, 3, num_feat=num_feat, num_block=num_block, upscale=4)


def rrdbnet(*, num_feat: int, num_block: int, num_grow_ch: int) -> "nn.Module":
    """Return an RGB x4 RRDBNet, (N, 3, H, W) -> (N, 3, 4H, 4W).

    Args:
        num_feat: Channels of the trunk.
        num_block: Residual-in-residual dense blocks.
        num_grow_ch: Channels each convolution of a dense block adds.

    Source: Wang et al. 2018, arXiv:1809.00219 (ESRGAN); Real-ESRGAN keeps the network.
    """
    return _basicsr("rrdbnet_arch", "RRDBNet")(
        3, 3, scale=4, num_feat=num_feat, num_block=num_block, num_grow_ch=num_grow_ch
    )


def srvgg_compact(*, num_feat: int, num_conv: int) -> "nn.Module":
    """Return an RGB x4 SRVGGNetCompact with PReLU, (N, 3, H, W) -> (N, 3, 4H, 4W).

    Args:
        num_feat: Channels of the body.
        num_conv: Convolutions between the first and the last.

    Source: Wang et al. 2021, arXiv:2107.10833, and the Real-ESRGAN repository, v0.2.5.
    """
    return _basicsr("srvgg_arch", "SRVGGNetCompact")(
        3, 3, num_feat=num_feat, num_conv=num_conv, upscale=4, act_type="prelu"
    )
