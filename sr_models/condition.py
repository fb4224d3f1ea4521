"""What a generative super-resolution model is told of a patch besides its pixels."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Condition:
    """One patch's name, from which its noise follows, and what is known of it."""

    patch_id: str
    """Name of the patch in the archive, or of the window in a scene: unique among whatever goes into one result."""
    land_cover: tuple[str, ...] = ()
    """Names of its land cover, known or predicted; a model uses them only where its options say so."""
