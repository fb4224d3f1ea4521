"""Which weight file a model takes, where it is, and what it is known by; nothing is read but to be hashed."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

from pydantic import BaseModel

from infra.errors import WeightsError
from infra.weights_store import WeightsStore, sha256
from sr_models.registry import ShippedWeights, names, spec


def weights_file(
    name: str, given: str | Path | None = None, options: Mapping[str, object] | None = None
) -> Path | None:
    """Return the file a model's weights come from: the one given, else the stored official one, else the shipped one.

    A model whose weights are several files has a folder in its place.

    Args:
        name: One of `names()`.
        given: A file, or a folder, that the user named, for a model that needs one.
        options: The model's, on which it may depend what a folder has to hold.

    Returns:
        An absolute path; None for a model without weights.

    Raises:
        UnknownNameError: There is no such model.
        WeightsError: There is no file, it is not what its hash says, or it is given where none is used.
    """
    model = spec(name)
    if not model.needs_weights:
        if given is not None:
            raise WeightsError(f"{name} has no weights, but {given} was given: leave it out")
        return None
    if model.folder is not None:
        # resolved, so that it has a name where it was given as `..`: copies for other nodes are called by it
        folder = WeightsStore.default().folder / name if given is None else Path(given).resolve()
        if not folder.is_dir():
            raise missing(name, given)
        model.folder.files(folder, model.chosen(name, options))
        return folder
    if given is not None:
        if not Path(given).is_file():
            raise missing(name, given)
        return Path(given).absolute()
    stored = WeightsStore.default().find(name, model.official_file) if model.official_file else None
    if stored is None and model.shipped is not None:
        return _shipped(name, model.shipped)
    if stored is None:
        raise missing(name, None)
    return stored


def weights_digest(name: str, path: Path, options: BaseModel | None = None) -> str:
    """Return the SHA-256 that a model's weights are known by.

    Args:
        name: One of `names()`.
        path: As `weights_file` returns it: a file, whose SHA-256 it is, or a folder, of which it is that of the lines
            that `sha256sum` prints of its files, in the order of their names.
        options: The model's, as `SrSpec.chosen` returns them.

    Raises:
        WeightsError: A file cannot be read.
    """
    model = spec(name)
    if model.folder is None:
        return sha256(path)
    files = sorted(file.as_posix() for file in model.folder.files(path, options))
    lines = "".join(f"{sha256(path / file)}  {file}\n" for file in files)
    return hashlib.sha256(lines.encode()).hexdigest()


def _shipped(name: str, shipped: ShippedWeights) -> Path:
    digest = sha256(shipped.path)
    if digest != shipped.sha256:
        raise WeightsError(
            f"the weights that come with superscene for {name}, {shipped.path}, have the SHA-256 {digest} instead of "
            f"{shipped.sha256}: the installation is damaged, install superscene again"
        )
    return shipped.path


def missing(name: str, path: str | Path | None) -> WeightsError:
    """Return the error for a model whose weight file was not given (path None) or is not there."""
    what = "folder" if name in names() and spec(name).folder is not None else "file"
    found = f"no weight {what} was given, stored or shipped" if path is None else f"there is no {what} at {path}"
    return WeightsError(f"{name} needs weights, but {found}. {where_to_get(name)}")


def where_to_get(name: str) -> str:
    """Return one or two sentences for a person: which official file a model takes, where it is, how to name it."""
    model = spec(name) if name in names() else None
    if model is not None and model.folder is not None:
        stored = WeightsStore.default().folder / name
        return (
            f"{model.folder.about} Put them into {stored}, or name their folder as the `weights` argument, or in "
            f"RUN.yaml as `weights: {{{name}: FOLDER}}`."
        )
    if model is None or model.official_file is None:
        return ""
    return model.official_file.where_to_get(name, model.licence)
