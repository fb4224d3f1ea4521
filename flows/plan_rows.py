"""A row of `superscene plan`: what a person reads, and the numbers behind it."""

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True)
class PlanRow:
    """One thing that a run would read, write or take."""

    title: str
    text: str
    """How much of it, for a person."""
    numbers: Mapping[tuple[str, ...], float | None] = field(default_factory=dict)
    """The same for a program, by keys within keys: counts, bytes, hours; None: it is not known."""
