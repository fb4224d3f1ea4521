"""The models that take weight files, by name: their official and shipped files, their terms, and how one is checked."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from infra.weights_store import OfficialFile

if TYPE_CHECKING:
    from sr_models import ShippedWeights


@dataclass(frozen=True, slots=True)
class Model:
    """A model as its weight files are concerned."""

    name: str
    licence: str
    """Terms of the official weights."""
    official: OfficialFile | None
    shipped: "ShippedWeights | None"
    check: Callable[[Path], None]
    """Raises WeightsError for a file of another network; builds the network."""
    folder: "Folder | None" = None
    """Where its weights are several files."""


@dataclass(frozen=True, slots=True)
class Folder:
    """Weights that are several files in a folder."""

    about: str
    """For a person: which files, and where each is found."""
    files: Callable[[Path], Sequence[Path]]
    """Those of a folder that the model needs, its options as they are by default; WeightsError where any is missing."""


def models() -> dict[str, Model]:
    """Return every model by name: super-resolution (those without weights too), classifiers, published classifiers."""
    return _sr_models() | _classifiers() | _published_classifiers()


def _sr_models() -> dict[str, Model]:
    import sr_models
    from sr_models.weights import load_into

    def check(name: str) -> Callable[[Path], None]:
        return lambda path: load_into(sr_models.spec(name).build(), path, name)  # none of those that have a folder

    def folder(name: str) -> Folder | None:
        spec = sr_models.spec(name)
        if (needed := spec.folder) is None:
            return None
        return Folder(needed.about, lambda path: needed.files(path, spec.chosen(name, None)))

    specs = {name: sr_models.spec(name) for name in sr_models.names()}
    return {
        name: Model(name, spec.licence, spec.official_file, spec.shipped, check(name), folder(name))
        for name, spec in specs.items()
    }


def _classifiers() -> dict[str, Model]:
    from classifiers.registry import build, names, spec

    def check(name: str) -> Callable[[Path], None]:
        def fits(path: Path) -> None:
            build(name, num_labels=1, weights=path)

        return fits

    return {
        name: Model(name, spec(name).weights_licence, spec(name).official_file, None, check(name)) for name in names()
    }


def _published_classifiers() -> dict[str, Model]:
    from classifiers.published import LICENCE, PUBLISHED, PublishedSpec, load_published

    def check(spec: PublishedSpec) -> Callable[[Path], None]:
        def fits(path: Path) -> None:
            load_published(path, spec.bands, max_dn=1, name=spec.network)

        return fits

    return {name: Model(name, LICENCE, spec.official_file, None, check(spec)) for name, spec in PUBLISHED.items()}
