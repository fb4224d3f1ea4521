"""Tables of models: this package's own, and those that other installed distributions offer by entry points."""

import re
from collections.abc import Iterator, Mapping
from functools import cached_property
from importlib.metadata import EntryPoint, entry_points
from typing import Protocol, Self

from infra.errors import ConfigError

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+]*")  # it becomes a folder, sr=NAME, and a word of RUN.yaml


class Entry(Protocol):
    """What a table holds."""

    def from_distribution(self, distribution: str) -> Self:
        """Return the same entry, which says where it comes from."""


class ModelTable[T: Entry](Mapping[str, T]):
    """Entries by name, this package's own first.

    Those of other distributions are looked for when the table is first asked, and each is imported when it is first
    taken: a module that offers a model imports this package, which has to be there by then.
    """

    def __init__(self, own: Mapping[str, T], group: str, kind: type[T]) -> None:
        """Make a table.

        Args:
            own: This package's entries.
            group: Group of the entry points, such as `superscene.sr_models`.
            kind: What an entry point has to name.
        """
        self._own = own
        self._group = group
        self._kind = kind
        self._taken: dict[str, T] = {}

    def __getitem__(self, name: str) -> T:
        """Return the entry of a name; raises ConfigError where another distribution's cannot be used."""
        if name in self._own:
            return self._own[name]
        if name not in self._taken:
            self._taken[name] = self._imported(self._offered[name])
        return self._taken[name]

    def __contains__(self, name: object) -> bool:
        return name in self._own or name in self._offered  # not by taking it, which would import its module

    def __iter__(self) -> Iterator[str]:
        yield from self._own
        yield from self._offered

    def __len__(self) -> int:
        return len(self._own) + len(self._offered)

    @cached_property
    def _offered(self) -> dict[str, EntryPoint]:
        offered: dict[str, EntryPoint] = {}
        for point in sorted(entry_points(group=self._group), key=lambda point: point.name):
            if not _NAME.fullmatch(point.name):
                raise ConfigError(
                    f"{_distribution(point)} offers the model {point.name!r} ({self._group}): names have letters, "
                    "digits, _ . and + only"
                )
            others = ["superscene"] * (point.name in self._own)
            others += [_distribution(offered[point.name])] if point.name in offered else []
            if others:
                raise ConfigError(
                    f"{_distribution(point)} offers the model {point.name} ({self._group}), which {others[0]} has too: "
                    "give it another name, or uninstall one of them"
                )
            offered[point.name] = point
        return offered

    def _imported(self, point: EntryPoint) -> T:
        where = f"the model {point.name} of {_distribution(point)}, {point.value},"
        try:
            found = point.load()
        except Exception as error:  # whatever somebody else's module raises
            why = f"{type(error).__name__}: {error}"
            raise ConfigError(f"{where} cannot be imported: {why}. Mend or install it anew, or uninstall it") from error
        if not isinstance(found, self._kind):
            raise ConfigError(f"{where} is a {type(found).__name__}, where a {self._kind.__name__} is needed")
        return found.from_distribution(_distribution(point))


def _distribution(point: EntryPoint) -> str:
    """Return name and version of the distribution that an entry point is of."""
    return "a distribution without a name" if point.dist is None else f"{point.dist.name} {point.dist.version}"
