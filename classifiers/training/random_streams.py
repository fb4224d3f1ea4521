"""Random numbers of training: each follows from the seed and its place in the run, so a stopped run finds it again."""

from enum import IntEnum

import numpy as np
from numpy.typing import NDArray


class Stream(IntEnum):
    """What numbers are for. Never 0: numpy takes trailing zeros of a seed as absent, and `permutation` has none."""

    TURNS = 1
    MIX_SHARE = 2
    MIX_PARTNERS = 3
    VIEWS = 4
    LAYERS = 5


def generator(stream: Stream, seed: int, epoch: int, step: int = 0, rank: int = 0) -> np.random.Generator:
    """Return the generator of one purpose in one step of one epoch on one worker; all numbers are >= 0."""
    return np.random.default_rng([seed, epoch, step, stream, rank])


def permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of n samples in an epoch; it depends on nothing else."""
    return np.random.default_rng([seed, epoch]).permutation(n)


def layer_seed(seed: int, epoch: int, rank: int) -> int:
    """Return torch's seed of an epoch, for layers that draw, such as dropout; below 2^63."""
    return int(generator(Stream.LAYERS, seed, epoch, rank=rank).integers(2**63))
