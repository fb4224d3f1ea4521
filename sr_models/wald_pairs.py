"""Training pairs by Wald's protocol: an image is its own truth, its reduction is the input.

Images are kept as DN and stretched when they are cut. Which crops a step sees is a function of the seed and the step's
number alone, so a run that was stopped, or that runs on more workers, sees the same crops.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from infra.errors import ShapeError, TrainingError
from sr_models.quality import reduce_mean
from sr_models.stretch import to_unit

Part = Literal["train", "validation", "test"]

MARGIN = 16
"""Pixels between the parts of one scene, which belong to none."""

_TEST_SHARE, _VALIDATION_SHARE = 0.10, 0.05
_STREAM_SOURCE, _STREAM_CROP = 0, 1


class Area(NamedTuple):
    """A rectangle of an image: rows top..bottom and columns left..right, the ends excluded."""

    top: int
    left: int
    bottom: int
    right: int

    def meets(self, other: "Area") -> bool:
        """Whether the two have a pixel in common."""
        return (
            max(self.top, other.top) < min(self.bottom, other.bottom)
            and max(self.left, other.left) < min(self.right, other.right)
        )  # fmt: skip


def scene_areas(height: int, width: int, part: Part) -> tuple[Area, ...]:
    """Return the areas of a scene that belong to a part; no two parts are closer than `MARGIN` pixels.

    The lower right quarter, [H/2:, W/2:], is the test; the lower eighth left of it chooses; the rest trains.

    Args:
        height: Rows of the scene.
        width: Columns of the scene.
        part: Which part.
    """
    middle_row, middle_column, strip = height // 2, width // 2, height - height // 8
    return {
        "test": (Area(middle_row, middle_column, height, width),),
        "validation": (Area(strip, 0, height, middle_column - MARGIN),),
        "train": (
            Area(0, 0, middle_row - MARGIN, width),
            Area(middle_row - MARGIN, 0, strip - MARGIN, middle_column - MARGIN),
        ),
    }[part]


def image_part(name: str) -> Part:
    """Return the part an image of a folder belongs to: 10 % test, 5 % validation, by the hash of its name alone.

    Args:
        name: The image's path below the folder, with forward slashes.
    """
    place = int.from_bytes(hashlib.sha256(name.encode()).digest()[:8]) / 2**64
    if place < _TEST_SHARE:
        return "test"
    return "validation" if place < _TEST_SHARE + _VALIDATION_SHARE else "train"


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images of one origin."""

    name: str
    """For curves and messages."""
    images: tuple[Tensor, ...]
    """(3, H, W) each, DN of an integer dtype; sizes may differ."""
    max_dn: int
    """DN of 1 in the stretch: sr_input_max_dn, or 255 for pictures of 8 bits."""
    weight: float = 1.0
    """Share of the steps that draw from this set, relative to the other sets' weights."""

    def crop_edge(self, crop: int, scale: int) -> int:
        """Return the edge of this set's crops: `crop`, or the largest multiple of scale that fits all images.

        Raises:
            TrainingError: There is no image, or one is smaller than four input pixels.
        """
        smallest = min((min(image.shape[1:]) for image in self.images), default=0)
        edge = min(crop, smallest // scale * scale)
        if edge < 4 * scale:
            raise TrainingError(
                f"{self.name}: {len(self.images)} images for training, the smallest edge is {smallest} pixels: "
                f"a crop needs at least {4 * scale}"
            )
        return edge

    def digest(self) -> str:
        """Return the SHA-256 of the pixels, sizes and stretch: equal for what trains equally."""
        content = hashlib.sha256(f"{self.max_dn}".encode())
        for image in self.images:
            content.update(f"{tuple(image.shape)}{image.dtype}".encode())
            content.update(image.contiguous().numpy().tobytes())
        return content.hexdigest()


class ImagePools(Protocol):
    """Training images, some of which may be in memory only for a while."""

    def at(self, step: int) -> Sequence[ImageSet]:
        """Return the sets that step draws from; depends on the step alone."""


@dataclass(frozen=True, slots=True)
class FixedImages:
    """Training images that all fit in memory."""

    sets: tuple[ImageSet, ...]

    def at(self, step: int) -> Sequence[ImageSet]:  # noqa: ARG002  # the protocol's
        """Return all sets."""
        return self.sets


class Crop(NamedTuple):
    """Where one training sample comes from."""

    image: int
    """Index in the set."""
    top: int
    left: int
    turn: int
    """0 to 7: quarter turns are `turn % 4`, and from 4 on the crop is mirrored left to right first."""


def draw_set(sets: Sequence[ImageSet], seed: int, step: int) -> ImageSet:
    """Return the set whose images a step sees, drawn by weight.

    Raises:
        TrainingError: There is no set.
    """
    if not sets:
        raise TrainingError(f"step {step} has no image to train on")
    weights = np.array([chosen.weight for chosen in sets])
    place = np.random.default_rng([seed, step, _STREAM_SOURCE]).random() * weights.sum()
    return sets[min(int(np.searchsorted(weights.cumsum(), place, side="right")), len(sets) - 1)]


def draw_crop(images: Sequence[Tensor], edge: int, seed: int, step: int, sample: int) -> Crop:
    """Return one sample's crop: an image by the number of crops it has room for, then a place and a turn.

    Args:
        images: (3, H, W) each, H and W at least edge.
        edge: Edge of the crop, pixels.
        seed: The run's seed.
        step: The step's number.
        sample: Index in the step's whole batch, over all workers.
    """
    rng = np.random.default_rng([seed, step, _STREAM_CROP, sample])
    room = np.array([(image.shape[1] - edge + 1) * (image.shape[2] - edge + 1) for image in images])
    image = int(np.searchsorted(room.cumsum(), rng.integers(room.sum()), side="right"))
    _, height, width = images[image].shape
    return Crop(image, int(rng.integers(height - edge + 1)), int(rng.integers(width - edge + 1)), int(rng.integers(8)))


def cut(images: ImageSet, crop: Crop, edge: int) -> Tensor:
    """Return a crop, stretched and turned: (3, edge, edge), float32, in [0, 1]."""
    dn = images.images[crop.image][:, crop.top : crop.top + edge, crop.left : crop.left + edge]
    piece = to_unit(dn, images.max_dn)
    return torch.rot90(piece.flip(2) if crop.turn >= 4 else piece, crop.turn % 4, dims=(1, 2))


def wald_pair(hr: Tensor, scale: int) -> tuple[Tensor, Tensor]:
    """Return (input, truth): the means over scale x scale pixels, and the image itself.

    Args:
        hr: (N, 3, H, W), float32, in [0, 1] after the stretch; H and W multiples of scale.
        scale: Integer factor.

    Raises:
        ShapeError: hr has another shape.
    """
    if hr.ndim != 4 or hr.shape[1] != 3:
        raise ShapeError(f"a Wald pair is made of (N, 3, H, W), got {tuple(hr.shape)}")
    return reduce_mean(hr, scale), hr


def draw_batch(
    sets: Sequence[ImageSet], seed: int, step: int, samples: range, crop: int, scale: int
) -> tuple[Tensor, Tensor]:
    """Return some samples of a step's batch; all of one set, since sets may differ in what crop they have room for.

    Args:
        sets: Where to draw from.
        seed: The run's seed.
        step: The step's number.
        samples: Indices in the step's whole batch that this worker takes.
        crop: Largest edge of a crop, pixels, a multiple of scale.
        scale: Integer factor.

    Returns:
        Input (N, 3, e/scale, e/scale) and truth (N, 3, e, e), in [0, 1].

    Raises:
        TrainingError: There is nothing to draw from.
    """
    chosen = draw_set(sets, seed, step)
    edge = chosen.crop_edge(crop, scale)
    places = [draw_crop(chosen.images, edge, seed, step, sample) for sample in samples]
    return wald_pair(torch.stack([cut(chosen, place, edge) for place in places]), scale)
