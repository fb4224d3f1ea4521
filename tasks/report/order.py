"""What a report shows first: the order of branches, and the one split of several."""

from collections.abc import Collection, Sequence

from sr_models.registry import CEILING

SPLITS = ("test", "all", "validation", "train")
"""Splits in the order in which one is chosen to be shown."""


def shown_split(splits: Collection[str]) -> str | None:
    """Return the split to show of those that there are; None where there are none."""
    return next((split for split in (*SPLITS, *sorted(splits)) if split in splits), None)


def branch_order(
    classifier: str, sr: str, classifiers: Sequence[str], models: Sequence[str]
) -> tuple[int, str, bool, int, str]:
    """Return the key that sorts a classifier on a branch: as RUN.yaml lists them, others behind, the ceiling last."""
    return _place(classifier, classifiers), classifier, sr == CEILING, _place(sr, models), sr


def _place(name: str, names: Sequence[str]) -> int:
    return names.index(name) if name in names else len(names)
