"""Batches: what a step of training sees, shared by the workers, and the batches of samples in memory."""

import math
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from classifiers.training.random_streams import Stream, generator, permutation
from infra.errors import ConfigError, ShapeError

_NAMED = 8


@dataclass(frozen=True, slots=True)
class TrainingBatch:
    """This worker's share of the batch of one step."""

    x: Tensor
    """Standardised input, (n, C, H, W), or features, (n, K); n may be 0, the other dimensions are always told."""
    y: Tensor
    """Multi-hot truth, (n, L)."""
    places: NDArray[np.int64]
    """Each sample's place in the whole batch, (n,), below `n_total`; over all workers each place comes once."""
    n_total: int
    """Samples of the whole batch, over all workers, >= 1."""


class Batches(Protocol):
    """A set of samples that is gone through once an epoch, by one worker or by several at the same pace."""

    @property
    def samples(self) -> int:
        """Samples of an epoch, over all workers."""

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch: the same every epoch and on every worker."""

    def batches(self, epoch: int) -> Iterable[TrainingBatch]:
        """Return this worker's shares of the batches of one epoch, one a step, empty ones included."""

    def patch_ids(self, epoch: int, step: int) -> Sequence[str]:
        """Return the ids of the whole batch of a step of an epoch, by place; for messages."""


class TensorBatches:
    """Samples in memory, in near-equal batches, so that none is a left-over of one.

    Args:
        x: Inputs, (N, C, H, W) or (N, K), in canonical order; or features of V views of each sample, (N, V, K), of
            which an epoch takes one each, drawn from (shuffle_seed, epoch), or the first where nothing is shuffled.
        y: Multi-hot truth, (N, L), of any dtype.
        batch_size: Most samples of a batch, over all workers.
        shuffle_seed: Each epoch's order is a permutation drawn from (shuffle_seed, epoch); None: as they are.
        transform: Applied to the inputs of each batch.
        ids: Patch ids, (N,); None: "sample 0" and so on.
        rank: This worker's number; worker r has places r, r + workers, ... of each batch.
        workers: How many share each batch.

    Raises:
        ShapeError: Inputs, truth and ids are not of one length, or no inputs and truths at all.
        ConfigError: The batch size is below 1, or there is no such worker.
    """

    def __init__(
        self,
        x: Tensor,
        y: Tensor,
        batch_size: int,
        shuffle_seed: int | None = None,
        transform: Callable[[Tensor], Tensor] | None = None,
        ids: Sequence[str] | None = None,
        *,
        rank: int = 0,
        workers: int = 1,
    ) -> None:
        if len(x) != len(y) or x.ndim < 2 or y.ndim != 2:
            raise ShapeError(f"samples need x (N, ...) and y (N, L), got {tuple(x.shape)} and {tuple(y.shape)}")
        if x.ndim == 3 and not x.shape[1]:
            raise ShapeError(f"features of several views are (N, V, K) with V >= 1, got {tuple(x.shape)}")
        if ids is not None and len(ids) != len(x):
            raise ShapeError(f"{len(x)} samples need as many ids, got {len(ids)}")
        if batch_size < 1:
            raise ConfigError(f"batch_size must be at least 1, got {batch_size}")
        if not 0 <= rank < workers:
            raise ConfigError(f"there is no worker {rank} among {workers}")
        self._x, self._y, self._batch_size, self._seed, self._transform = x, y, batch_size, shuffle_seed, transform
        self._ids, self._rank, self._workers = ids, rank, workers

    @property
    def samples(self) -> int:
        """Samples of an epoch, over all workers."""
        return len(self._x)

    @property
    def steps_per_epoch(self) -> int:
        """Number of batches of an epoch."""
        return math.ceil(len(self._x) / self._batch_size)

    def batches(self, epoch: int) -> Iterator[TrainingBatch]:
        """Yield this worker's shares of the batches of one epoch."""
        views = self._views(epoch)
        for whole in self._parts(epoch):
            places = np.arange(self._rank, len(whole), self._workers)
            index = torch.from_numpy(whole[places])
            x = self._x[index] if views is None else self._x[index, views[index]]
            yield TrainingBatch(
                x if self._transform is None else self._transform(x), self._y[index], places, len(whole)
            )

    def patch_ids(self, epoch: int, step: int) -> list[str]:
        """Return the ids of the whole batch of a step of an epoch, by place."""
        index = self._parts(epoch)[step]
        return [f"sample {i}" if self._ids is None else self._ids[i] for i in index]

    def _parts(self, epoch: int) -> list[NDArray[np.int64]]:
        if not len(self._x):
            return []
        order = np.arange(len(self._x)) if self._seed is None else permutation(len(self._x), self._seed, epoch)
        return np.array_split(order, self.steps_per_epoch)

    def _views(self, epoch: int) -> Tensor | None:
        """Return the view of each sample in an epoch, (N,), in canonical order; None where there are no views."""
        if self._x.ndim != 3:
            return None
        if self._seed is None:
            return torch.zeros(len(self._x), dtype=torch.int64)
        drawn = generator(Stream.VIEWS, self._seed, epoch).integers(self._x.shape[1], size=len(self._x))
        return torch.from_numpy(drawn)


class TimedBatches:
    """Batches, and the seconds spent waiting for them.

    Attributes:
        waited: Seconds so far.
    """

    def __init__(self, batches: Iterable[TrainingBatch]) -> None:
        self._batches = batches
        self.waited = 0.0

    def __iter__(self) -> Iterator[TrainingBatch]:
        asked = time.perf_counter()
        for batch in self._batches:
            self.waited += time.perf_counter() - asked
            yield batch
            asked = time.perf_counter()
        self.waited += time.perf_counter() - asked


def named(ids: Sequence[str]) -> str:
    """Return the first few patch ids, and how many there are, for a message."""
    rest = f", ... ({len(ids)} in all)" if len(ids) > _NAMED else ""
    return ", ".join(ids[:_NAMED]) + rest
