"""When which fault happens: drawn from a seed before anything starts."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Literal, get_args

Kind = Literal["actor", "raylet", "driver", "disk", "s3"]
"""A process killed by SIGKILL (an actor, a node, the driver), the disk filled, a burst of faults of the S3 server."""

KINDS: tuple[Kind, ...] = get_args(Kind)

MEAN_SECONDS: Mapping[Kind, float] = MappingProxyType(
    {"actor": 15.0, "raylet": 45.0, "driver": 45.0, "disk": 90.0, "s3": 12.0}
)
"""From one fault of a kind to the next."""

S3_FAULTS = ("status 500", "status 503", "cut", "half", "lost")
"""Answers of these statuses; connections closed before a request is carried out, in the middle of its answer, or before
an answer to what was carried out."""


@dataclass(frozen=True, slots=True)
class Planned:
    """One fault to come."""

    at: float
    """Seconds since the round began."""
    kind: Kind
    choice: float
    """0 to below 1: which of the victims there are then, and how large the fault is."""


def schedule(seed: int, seconds: float, kinds: tuple[Kind, ...] = KINDS) -> list[Planned]:
    """Return the faults of one round in the order of time.

    Each kind has as many as its mean interval gives in that time, one at least, at moments uniform over it. Other
    kinds do not change a kind's moments.

    Args:
        seed: Of the round.
        seconds: Time over which faults are spread.
        kinds: The kinds to have.
    """
    planned = []
    for kind in kinds:
        chance = random.Random(f"{seed} {kind}")
        count = max(1, round(seconds / MEAN_SECONDS[kind]))
        planned += [Planned(seconds * chance.random(), kind, chance.random()) for _ in range(count)]
    return sorted(planned, key=lambda fault: fault.at)


def s3_fault(choice: float) -> tuple[str, int, int]:
    """Return what kind a burst of the S3 server is, how many requests it hits, and of how many requests one.

    Args:
        choice: 0 to below 1.
    """
    kind, rest = _pick(S3_FAULTS, choice)
    every, rest = _pick((1, 2, 3, 5), rest)
    return kind, 3 + int(rest * 12), every


def victim[T](victims: list[T], choice: float) -> T:
    """Return one of the victims.

    Args:
        victims: At least one.
        choice: 0 to below 1.
    """
    return victims[int(choice * len(victims))]


def _pick[T](options: tuple[T, ...], choice: float) -> tuple[T, float]:
    """Return one of the options, and what is left of the chance, 0 to below 1."""
    scaled = choice * len(options)
    return options[int(scaled)], scaled % 1
