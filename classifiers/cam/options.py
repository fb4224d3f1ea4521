"""What may be asked of each explanation method, checked without a network; no import of torch."""

from dataclasses import dataclass
from math import inf
from typing import Literal, Protocol, get_args

from infra.errors import ConfigError

OptionValue = bool | int | float | str
"""What an option of a method may be."""

ChannelWeights = Literal["difference", "softmax"]
"""What becomes of the gains in probability of a label: they are the weights, or their softmax over channels is."""

_SEEDS = range(1 << 63)  # what every generator of torch takes


class Explainable(Protocol):
    """What options and costs depend on of a network: a `Classifier`, or what the registry knows of it."""

    @property
    def name(self) -> str:
        """Its name in the registry, for messages."""
        ...

    @property
    def min_size(self) -> int:
        """Smallest edge of an input, pixels."""
        ...

    @property
    def num_labels(self) -> int:
        """L."""
        ...

    @property
    def has_linear_head(self) -> bool:
        """Whether its head is one linear layer."""
        ...

    def map_size(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Return height and width of its maps for an image (C, H, W); ShapeError where it is too small."""
        ...


@dataclass(frozen=True, slots=True)
class NoOptions:
    """The options of a method that has none."""


@dataclass(frozen=True, slots=True)
class SmoothOptions:
    """Options of SmoothGrad-CAM++."""

    samples: int = 8
    """Noisy copies of each input."""
    noise: float = 0.3
    """Standard deviation of the noise, in standardised units."""
    seed: int = 0
    """Seed of the noise, beside each patch's own."""

    def __post_init__(self) -> None:
        if self.samples < 1 or not 0 <= self.noise < inf:
            raise ConfigError(
                f"smooth_grad_cam_pp needs samples >= 1 and noise >= 0, got {self.samples} and {self.noise}"
            )
        check_seed("smooth_grad_cam_pp", self.seed)


@dataclass(frozen=True, slots=True)
class RandomOptions:
    """Options of random maps."""

    seed: int = 0
    """Seed of the noise, beside each patch's own."""

    def __post_init__(self) -> None:
        check_seed("random", self.seed)


@dataclass(frozen=True, slots=True)
class ScoreCamOptions:
    """Options of Score-CAM."""

    weights: ChannelWeights = "difference"
    """The gains themselves, as in the paper's definition, or their softmax over channels, as in its algorithm."""

    def __post_init__(self) -> None:
        if self.weights not in get_args(ChannelWeights):
            raise ConfigError(f"score_cam: weights is difference or softmax, got {self.weights!r}")


@dataclass(frozen=True, slots=True)
class GradPlusPlusScoreCamOptions:
    """Options of Grad++ScoreCAM."""

    reduce_input: bool = False
    """Whether the input is reduced to the map's size and masked there, as in the paper, not the map enlarged."""

    def check_map(self, model: Explainable, height: int, width: int) -> None:
        """Refuse a map, h x w places, to whose size the network's input cannot be reduced.

        Raises:
            ConfigError: The input is to be reduced below what the network can see.
        """
        if self.reduce_input and min(height, width) < model.min_size:
            raise ConfigError(
                f"grad_plus_plus_score_cam: reduce_input makes an input of {height} x {width} pixels, the size of the "
                f"map, {model.name} needs at least {model.min_size} x {model.min_size}: leave reduce_input out, choose "
                "an earlier target_layer, or enlarge the images"
            )


@dataclass(frozen=True, slots=True)
class RiseOptions:
    """Options of RISE."""

    masks: int = 4000
    """Number of random masks, the passes through the network for a patch."""
    cells: int = 8
    """Cells of the random grid along each edge of the input; at least 2."""
    keep: float = 0.5
    """Probability that a cell is kept, in (0, 1)."""
    seed: int = 0
    """Of the masks, which are the same for all patches and labels."""

    def __post_init__(self) -> None:
        # With one cell, or all of them kept, every mask is the same at all pixels, and so is the map.
        if self.masks < 1 or self.cells < 2 or not 0 < self.keep < 1:
            raise ConfigError(
                "rise needs at least 1 mask and 2 cells along an edge, and keep in (0, 1), got "
                f"masks={self.masks}, cells={self.cells}, keep={self.keep}"
            )
        check_seed("rise", self.seed)

    def check_input(self, height: int, width: int) -> None:
        """Refuse an input, H x W pixels, that the grid does not fit.

        Raises:
            ConfigError: The grid has more cells along an edge than the input has pixels.
        """
        check_cells("rise", self.cells, height, width)


@dataclass(frozen=True, slots=True)
class OcclusionOptions:
    """Options of occlusion sensitivity."""

    window: int = 11
    """Edge of the square that is blank, pixels of the input."""
    stride: int = 2
    """Step between windows, pixels; at most the window, so that every pixel is covered."""

    def __post_init__(self) -> None:
        if not 1 <= self.stride <= self.window:
            raise ConfigError(
                "occlusion needs 1 <= stride <= window, so that every pixel is covered, got "
                f"window={self.window}, stride={self.stride}"
            )

    def check_input(self, height: int, width: int) -> None:
        """Refuse an input, H x W pixels, that the window does not fit.

        Raises:
            ConfigError: The window is larger than the input.
        """
        if self.window > min(height, width):
            raise ConfigError(
                f"occlusion: a window of {self.window} x {self.window} pixels does not fit an input of {height} x "
                f"{width}: choose a smaller window, or enlarge the images"
            )


@dataclass(frozen=True, slots=True)
class LimeOptions:
    """Options of LIME."""

    cells: int = 8
    """Rectangles along each edge of the input, the features of the linear model; at least 2."""
    samples: int = 1000
    """Number of samples that the linear model is fitted on, the passes through the network for a patch; at least 2."""
    kernel_width: float = 0.25
    """Width of the kernel that weights samples by their cosine distance from the whole input; > 0."""
    ridge: float = 1.0
    """Penalty on the squared coefficients, in the unit of the summed weights of the samples; > 0."""
    seed: int = 0
    """Of the samples, which are the same for all patches and labels."""

    def __post_init__(self) -> None:
        # One cell has no place, and the first sample is the whole input.
        if min(self.cells, self.samples) < 2 or not (0 < self.kernel_width < inf and 0 < self.ridge < inf):
            raise ConfigError(
                "lime needs at least 2 cells along an edge and 2 samples, and finite kernel_width and ridge above 0, "
                f"got cells={self.cells}, samples={self.samples}, kernel_width={self.kernel_width}, ridge={self.ridge}"
            )
        check_seed("lime", self.seed)

    def check_input(self, height: int, width: int) -> None:
        """Refuse an input, H x W pixels, that the grid does not fit.

        Raises:
            ConfigError: The grid has more cells along an edge than the input has pixels.
        """
        check_cells("lime", self.cells, height, width)


def check_seed(method: str, seed: int) -> None:
    """Refuse a seed that generators do not take.

    Raises:
        ConfigError: It is negative, or has more than 63 bits.
    """
    if seed not in _SEEDS:
        raise ConfigError(f"{method} needs a seed from 0 to 2^63 - 1, got {seed}")


def check_cells(method: str, cells: int, height: int, width: int) -> None:
    """Refuse a grid that has more cells along an edge than an input has pixels, H x W.

    Raises:
        ConfigError: It has.
    """
    if cells > min(height, width):
        raise ConfigError(f"{method}: {cells} cells do not fit an edge of an input of {height} x {width}: choose fewer")
