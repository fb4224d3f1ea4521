"""The state of a training run as a file's content: plain tensors and containers behind a hash, never unpickled."""

import hashlib
import io
from typing import Any, TypedDict, cast

import torch
from torch import Tensor

from infra.errors import WeightsError

_MAGIC = b"superscene training state 1\n"
_DIGEST_BYTES = hashlib.sha256().digest_size


class BestState(TypedDict):
    """What is kept of the best epoch."""

    epoch: int
    score: float
    weights: dict[str, Tensor]
    thresholds: list[float]


class TrainingState(TypedDict):
    """A run between two epochs."""

    settings: dict[str, object]
    """The settings, field by field."""
    samples: dict[str, int]
    """Numbers of samples and steps."""
    network: dict[str, Tensor]
    mean: dict[str, Tensor] | None
    """The mean of the weights, where there is one."""
    optimizer: dict[str, Any]
    """As torch has it."""
    rows: list[dict[str, Any]]
    """The epochs' rows, field by field."""
    best: BestState
    occurrences: Tensor | None
    """Training samples with each label, (L,), once an epoch has seen them."""


def pack(state: TrainingState) -> bytes:
    """Return a state as bytes."""
    buffer = io.BytesIO()
    torch.save(dict(state), buffer)
    body = buffer.getvalue()
    return _MAGIC + hashlib.sha256(body).digest() + body


def unpack(content: bytes) -> TrainingState:
    """Return the state that `pack` was given, tensors on the CPU.

    Raises:
        WeightsError: The bytes are damaged, or of another version of this program.
    """
    if not content.startswith(_MAGIC):
        raise WeightsError(
            "the saved training state is of another version of this program, or none at all: remove it to start anew"
        )
    body = content[len(_MAGIC) + _DIGEST_BYTES :]
    if hashlib.sha256(body).digest() != content[len(_MAGIC) : len(_MAGIC) + _DIGEST_BYTES]:
        raise WeightsError("the saved training state is damaged, or cut short: remove it to start anew")
    return cast("TrainingState", torch.load(io.BytesIO(body), map_location="cpu", weights_only=True))
