"""The errors superscene raises: what was asked, what was found, where, what to do."""

from collections.abc import Iterable
from difflib import get_close_matches


class PipelineError(Exception):
    """Base of every error that superscene raises on purpose."""


class ConfigError(PipelineError, ValueError):
    """The user's configuration or command line cannot be used; the CLI exits with 2."""


class ArchiveError(PipelineError, FileNotFoundError):
    """The archive as a whole cannot be read: a missing root, no metadata, no patch folder."""


class StoreError(PipelineError, OSError):
    """The store cannot be written or read as a whole: full, read-only, of another layout; a run stops at once."""


class BadPatchError(PipelineError, ValueError):
    """One input cannot be used; it becomes one row of `tables/quarantine`.

    Attributes:
        path: The file or folder at fault, relative to the archive's root where it lies inside it.
        reason: A `Reason`, for grouping.
        detail: One sentence for a person.
    """

    def __init__(self, path: str, reason: str, detail: str) -> None:
        super().__init__(path, reason, detail)
        self.path = path
        self.reason = reason
        self.detail = detail

    def __str__(self) -> str:
        return f"{self.path}: {self.reason}: {self.detail}"


class ShapeError(PipelineError, ValueError):
    """A tensor or array has another shape than the function needs."""


class MisalignedWriteError(PipelineError, ValueError):
    """A write would touch a Zarr shard only in part, or have the wrong shape or dtype."""


class WeightsError(PipelineError, ValueError):
    """A weight file is missing, of another model, or not what its hash says."""


class UnknownNameError(PipelineError, KeyError):
    """A registry has no entry of that name; the message lists those it has."""

    def __str__(self) -> str:  # KeyError would show the repr of the message
        return str(self.args[0])


class DeviceMemoryError(PipelineError, MemoryError):
    """Not even one image fits the memory of the device."""


class TransientError(PipelineError, OSError):
    """An I/O error worth another attempt: a time-out, a throttled request, a stale handle."""


class TrainingError(PipelineError, ArithmeticError):
    """Training cannot go on: no patch to train on, or a loss that is not finite."""


class IncompleteRunError(PipelineError, RuntimeError):
    """Some shards failed; what could be published was, and the next run tries them again."""


def did_you_mean(name: str, choices: Iterable[str]) -> str:
    """Return the beginning of a sentence that names the choice nearest to a name, "" where none is near.

    Large and small letters are the same here.
    """
    by_letters = {choice.casefold(): choice for choice in choices}
    close = get_close_matches(name.casefold(), by_letters, n=1)
    return f"did you mean {by_letters[close[0]]!r}? " if close else ""
