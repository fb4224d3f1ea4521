"""What every super-resolution model has to keep, checked on a few small images: for models of your own."""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from infra.errors import ConfigError
from sr_models.condition import Condition
from sr_models.registry import SrSpec, spec
from sr_models.super_resolver import SuperResolver, load

_SIZES = ((1, 1), (17, 23), (32, 32))
_CLOSE = 1e-5  # in units of the stretch: what batches of another size may differ by


def check_sr_model(
    name: str,
    weights: str | Path | None = None,
    device: str | torch.device = "cpu",
    options: Mapping[str, object] | None = None,
) -> None:
    """Check that a model does what `SrSpec` says of it, and what runs take for granted.

    Images of any size come back `scale` times as large, finite, each by itself whatever is beside it in the batch, and
    the same each time, from a model loaded anew too. A pixel reaches no further than `receptive_radius`, a `bandwise`
    model treats each band alone, and every precision in `dtypes` runs. A few seconds for a small network.

    Args:
        name: One of `names()`.
        weights: As for `load`.
        device: A torch device such as "cuda:0".
        options: As for `load`.

    Raises:
        ConfigError: It does not; the message names everything that is wrong.
        UnknownNameError: There is no such model.
        WeightsError: The weights are missing, or of another network.
    """
    model, resolver = spec(name), load(name, weights, device, options=options)
    faults = _wrong_sizes(model, resolver)
    if not faults:  # what follows compares outputs
        again = load(name, weights, device, options=options)
        faults = [*_not_by_itself(resolver), *_not_the_same(resolver, again), *_sees_too_far(model, resolver)]
        faults += _mixes_bands(model, resolver)
        for dtype in model.dtypes[1:]:
            if not _enlarged(load(name, weights, device, dtype, options=options), _images(1, 16, 16)).isfinite().all():
                faults.append(f"in {dtype} its output is not finite")
    if faults:
        raise ConfigError(f"{name} does not keep the contract of an SR model: {'; '.join(faults)}")


def _images(count: int, height: int, width: int) -> Tensor:
    """Return images of random numbers in [0, 1], (count, 3, height, width), the same each time."""
    return torch.rand(count, 3, height, width, generator=torch.Generator().manual_seed(0))


def _enlarged(resolver: SuperResolver, images: Tensor, first: int = 0) -> Tensor:
    """Return images enlarged; a conditioned model is told that they are the patches from number first on."""
    conditions = [Condition(f"patch {first + i}") for i in range(len(images))] if resolver.conditioned else ()
    return resolver(images, conditions)


def _wrong_sizes(model: SrSpec, resolver: SuperResolver) -> list[str]:
    faults = []
    for height, width in _SIZES:
        wanted = (2, 3, model.scale * height, model.scale * width)
        try:
            found = _enlarged(resolver, _images(2, height, width))
        except (RuntimeError, ValueError, IndexError) as error:  # what torch raises of sizes
            faults.append(f"images of {height} x {width} fail ({error})")
            continue
        if found.shape != wanted:
            faults.append(f"images of {height} x {width} become {tuple(found.shape)}, where {wanted} is needed")
        elif not found.isfinite().all():
            faults.append(f"images of {height} x {width} become something that is not finite")
    return faults


def _not_by_itself(resolver: SuperResolver) -> list[str]:
    images = _images(3, 24, 20)
    together = _enlarged(resolver, images)
    alone = torch.cat([_enlarged(resolver, image[None], first=i) for i, image in enumerate(images)])
    if (together - alone).abs().max() > _CLOSE:
        return ["what an image becomes depends on those beside it in the batch: is a normalisation in training mode?"]
    return []


def _not_the_same(resolver: SuperResolver, again: SuperResolver) -> list[str]:
    images, before = _images(1, 24, 20), {key: value.clone() for key, value in resolver.network.state_dict().items()}
    first, second, third = _enlarged(resolver, images), _enlarged(resolver, images), _enlarged(again, images)
    faults = []
    if not torch.equal(first, second):
        faults.append("the same image becomes something else the second time: draw no random numbers")
    if any(not torch.equal(value, before[key]) for key, value in resolver.network.state_dict().items()):
        faults.append("a call changes the network's parameters or buffers")
    if not faults and (first - third).abs().max() > _CLOSE:
        faults.append("loaded anew it is another model: parameters are drawn at random, set `needs_weights`")
    return faults


def _sees_too_far(model: SrSpec, resolver: SuperResolver) -> list[str]:
    radius = model.receptive_radius
    if radius is None:
        return []
    images = _images(1, 8, 2 * radius + 32)
    changed = images.clone()
    changed[..., 0] = 1 - changed[..., 0]
    difference = (_enlarged(resolver, images) - _enlarged(resolver, changed)).abs().amax(dim=(0, 1, 2))
    reached = int(difference.nonzero().max()) // model.scale if difference.any() else 0
    if reached > radius:
        return [f"a pixel reaches {reached} pixels far, and receptive_radius is {radius}: raise it, or set None"]
    return []


def _mixes_bands(model: SrSpec, resolver: SuperResolver) -> list[str]:
    if not model.bandwise:
        return []
    images = _images(1, 16, 16)
    if (_enlarged(resolver, images.flip(1)) - _enlarged(resolver, images).flip(1)).abs().max() > _CLOSE:
        return ["it is called bandwise, and bands in another order become something else"]
    return []
