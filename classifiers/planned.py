"""What a plan needs to know of a network that nobody has built yet."""

from collections.abc import Callable
from dataclasses import dataclass

from classifiers.cam.options import Explainable
from classifiers.registry import build, check_counts, spec
from infra.errors import ShapeError


@dataclass(frozen=True, slots=True)
class PlannedNetwork:
    """A network by what its registry entry says of it."""

    name: str
    min_size: int
    """Smallest edge of an input, pixels."""
    num_labels: int
    has_linear_head: bool
    map_edge: Callable[[int], int]
    """See `ClassifierSpec.map_edge`."""

    def map_size(self, shape: tuple[int, int, int]) -> tuple[int, int]:
        """Return height and width of its maps, places, for an image (C, H, W); ShapeError where it is too small."""
        _, height, width = shape
        refuse_too_small(self.name, self.min_size, height, width)
        return self.map_edge(height), self.map_edge(width)


def planned(name: str, num_labels: int, in_channels: int, head: str = "linear") -> Explainable:
    """Return what is known of the network that `classifiers.build` makes of these arguments.

    Only a network whose entry does not tell the size of its maps is built for it, without numbers.

    Raises:
        UnknownNameError: There is no such classifier.
        ConfigError: A count is below 1.
    """
    entry = spec(name)
    check_counts(name, num_labels, in_channels)
    if entry.map_edge is not None:
        return PlannedNetwork(name, entry.min_size, num_labels, head == "linear", entry.map_edge)
    import torch  # half a GB

    with torch.device("meta"):
        return build(name, num_labels, in_channels, head).eval()


def refuse_too_small(name: str, min_size: int, height: int, width: int) -> None:
    """Refuse an image that is smaller than a network can see.

    Raises:
        ShapeError: It is.
    """
    if min(height, width) < min_size:
        raise ShapeError(
            f"{name} needs images of at least {min_size} x {min_size} pixels, got {height} x {width}: enlarge them by "
            "an SR model, or choose another classifier"
        )
