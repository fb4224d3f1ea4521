"""The tags that DAPE knows: their names and thresholds, read from the user's files, and the tags of an image."""

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from infra.errors import ShapeError, WeightsError

NAMES_FILE = "ram_tag_list.txt"
"""Official name of the file of names."""

THRESHOLDS_FILE = "ram_tag_list_threshold.txt"
"""Official name of the file of thresholds."""


@dataclass(frozen=True, slots=True)
class TagList:
    """The names of tags, and how sure one must be of each."""

    names: tuple[str, ...]
    """In the order of the logits."""
    thresholds: tuple[float, ...]
    """Probability above which an image has the tag, in (0, 1]; at 1, as a few official ones are, it never has."""

    @classmethod
    def read(cls, names_file: str | Path, thresholds_file: str | Path, count: int) -> Self:
        """Return the tags of two text files with one name, and one threshold, in each line.

        Args:
            names_file: `ram_tag_list.txt`, UTF-8.
            thresholds_file: `ram_tag_list_threshold.txt`.
            count: How many tags the network has; 4585 for the official one.

        Raises:
            WeightsError: A file is missing or no text, has another number of lines, an empty name, or a threshold that
                is no number in (0, 1]; the message tells file and line.
        """
        names = _lines(names_file, count)
        for number, name in enumerate(names, start=1):
            if not name:
                raise WeightsError(f"{names_file}, line {number}: a tag without a name")
        thresholds = [
            _threshold(text, f"{thresholds_file}, line {number}")
            for number, text in enumerate(_lines(thresholds_file, count), start=1)
        ]
        return cls(tuple(names), tuple(thresholds))

    def tags(self, logits: Tensor) -> list[tuple[str, ...]]:
        """Return each image's tags, in the order of the list: those with sigmoid(logit) > threshold.

        Args:
            logits: (N, tags), of any floating dtype and device; compared in float32, as the official code does.

        Raises:
            ShapeError: The logits are not (N, tags).
        """
        if logits.ndim != 2 or logits.shape[1] != len(self.names):
            raise ShapeError(f"logits of (N, {len(self.names)}) are needed, got {tuple(logits.shape)}")
        thresholds = torch.tensor(self.thresholds, device=logits.device)
        present = (logits.float().sigmoid() > thresholds).cpu()
        return [tuple(self.names[index] for index in row.nonzero().flatten().tolist()) for row in present]


def _lines(path: str | Path, count: int) -> list[str]:
    """Return the lines of a text file, without white space around them.

    Raises:
        WeightsError: There is no such file, it is no UTF-8 text, or has not `count` lines.
    """
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError as error:
        raise WeightsError(f"there is no file at {path}: it comes with SeeSR's code, in ram/data") from error
    except (OSError, UnicodeDecodeError) as error:
        raise WeightsError(f"{path} cannot be read as UTF-8 text: {error}") from error
    lines = [line.strip() for line in text.removesuffix("\n").split("\n")]
    if len(lines) != count:
        raise WeightsError(f"{path} has {len(lines)} lines, where the network has {count} tags, one in each line")
    return lines


def _threshold(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 < value <= 1:  # neither is nan
        raise WeightsError(f"{where}: {text!r} is no threshold, which is a number above 0 and at most 1")
    return value
