"""Weight files: read safely, compared with the network they are meant for, explained where they do not fit."""

import hashlib
import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from pydantic import BaseModel
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from infra.errors import WeightsError
from infra.weights_store import WeightsStore, sha256
from sr_models.registry import ShippedWeights, names, spec

_SHOWN = 4  # keys named in a message before it goes on with a count


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


def load_state(path: str | Path, *, part: str | None = None) -> dict[str, Tensor]:
    """Return the parameters of a weight file, on the CPU, in the file's own dtypes.

    Within `torch.device("meta")` their shapes alone are read, so that a file of gigabytes is checked in no time.

    Args:
        path: A `.safetensors` file, or a PyTorch file as BasicSR and Real-ESRGAN write it: `params_ema` (taken first),
            `params`, or the parameters themselves. A prefix `module.` on all keys (DataParallel) is taken off.
        part: Take what is under this key of a checkpoint instead, whatever is beside it (the optimizer's state is
            twice as large), or the parameters themselves. A PyTorch file is then mapped instead of read: copy the
            parameters before it may change.

    Raises:
        WeightsError: There is no such file, it is damaged, or it holds more than tensors (and so might run code).
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"no weight file at {path}")
    content = _read_safetensors(path) if path.suffix == ".safetensors" else _read_torch(path, mapped=part is not None)
    keys = ("params_ema", "params") if part is None else (part,)
    for key in keys:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
            break
    if not isinstance(content, Mapping) or not content:
        raise WeightsError(f"{path} holds {_kind(content)}, where named tensors are needed")
    odd = [f"{key} ({_kind(value)})" for key, value in content.items() if not isinstance(value, Tensor)]
    if odd:
        raise WeightsError(
            f"{path} is no weight file that is known here, which has named tensors under {' or '.join(keys)}, or else "
            f"nothing but named tensors: some of what was found are no tensors: {some(odd)}"
        )
    state = {str(key): value for key, value in content.items()}
    if all(key.startswith("module.") for key in state):
        state = {key.removeprefix("module."): value for key, value in state.items()}
    return state


def load_into(model: nn.Module, path: str | Path, name: str) -> None:
    """Load a weight file into a network, every parameter and nothing else.

    Buffers that a network names as its `constants`, since they follow from its arguments, may be left out of the file;
    where they are in it they must be what the network has.

    Args:
        model: The network; its parameters keep their dtype, so a half-precision file ends up as float32.
        path: See `load_state`.
        name: The model's name in `SR_MODELS`, for messages.

    Raises:
        WeightsError: The file is missing, unreadable, or of another network; the message says what it looks like.
    """
    if not Path(path).is_file():
        raise missing(name, path)
    state, wanted = load_state(path), model.state_dict()
    constants: frozenset[str] = getattr(model, "constants", frozenset())
    state = {key: wanted[key] for key in constants} | state
    absent = [key for key in wanted if key not in state]
    extra = [key for key in state if key not in wanted]
    misfit = [
        f"{key} is {tuple(state[key].shape)}, needs {tuple(wanted[key].shape)}"
        for key in wanted
        if key in state and state[key].shape != wanted[key].shape
    ]
    changed = [
        key
        for key in sorted(constants)
        if state[key].shape == wanted[key].shape and not torch.equal(state[key].to(wanted[key].dtype), wanted[key])
    ]
    found = {"missing": absent, "unexpected": extra, "of another shape": misfit, "of another value": changed}
    if any(found.values()):
        faults = "; ".join(f"{len(keys)} {what}: {some(keys)}" for what, keys in found.items() if keys)
        raise WeightsError(
            f"{path} does not fit {name} ({looks_like(wanted)}): {faults}. The file looks like {looks_like(state)}. "
            f"{where_to_get(name)}"
        )
    model.load_state_dict(state, strict=True)


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


def looks_like(state: Mapping[str, Tensor]) -> str:
    """Return which network a set of parameters seems to belong to, with its size where that can be read off.

    Only for messages: a model is chosen by its name, never by its file.
    """

    def count(pattern: str) -> int:
        return len({match[1] for key in state if (match := re.match(pattern, key))})

    def features(key: str) -> int:
        return int(state[key].shape[0])

    if "body.0.rdb1.conv1.weight" in state and "conv_first.weight" in state:
        return f"RRDBNet with {features('conv_first.weight')} features and {count(r'body.(\d+).rdb1')} blocks"
    if any(".RDB1." in key for key in state):
        return "RRDBNet under the key names of the first ESRGAN release"
    if "body.0.conv1.weight" in state and "upconv1.weight" in state:
        return f"MSRResNet with {features('conv_first.weight')} features and {count(r'body.(\d+).conv1')} blocks"
    if "body.0.weight" in state and "body.2.weight" in state:
        convolutions = sum(
            1 for key, value in state.items() if re.fullmatch(r"body\.\d+\.weight", key) and value.ndim == 4
        )
        return f"SRVGGNetCompact with {features('body.0.weight')} features and {convolutions - 2} convolutions"
    if any("overlap_attn" in key for key in state):
        groups = count(r"layers\.(\d+)\.residual_group")
        blocks = count(r"layers\.0\.residual_group\.blocks\.(\d+)\.")
        if "conv_first.weight" not in state:
            return f"a part of a HAT with {groups} groups"
        return f"HAT with {features('conv_first.weight')} channels and {groups} groups of {blocks} blocks"
    if any(key.startswith("layers.0.residual_group") for key in state):
        return "SwinIR"
    if "fc.weight" in state and "layer1.0.conv1.weight" in state:
        return "a ResNet classifier"
    return f"no network known here ({len(state)} tensors: {some(list(state))})"


def _read_torch(path: Path, *, mapped: bool) -> Any:  # noqa: ANN401 - whatever the file holds; checked by the caller
    try:
        # only the zip files of torch 1.6 and later can be mapped
        place = "meta" if _shapes_alone() else "cpu"
        return torch.load(path, map_location=place, weights_only=True, mmap=mapped and is_zipfile(path))
    except pickle.UnpicklingError as error:
        raise WeightsError(
            f"{path} is no weight file: it is damaged, or holds Python objects beside tensors, which are not loaded "
            "because they may run code. Save the state_dict alone"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise WeightsError(f"{path} cannot be read as a PyTorch file, it may be cut short: {error}") from error


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        if _shapes_alone():
            with safe_open(path, framework="pt") as file:
                return {name: torch.empty(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        return load_file(path, device="cpu")
    except (OSError, SafetensorError) as error:
        raise WeightsError(f"{path} cannot be read as a safetensors file, it may be cut short: {error}") from error


def _shapes_alone() -> bool:
    return torch.get_default_device().type == "meta"


def _kind(value: object) -> str:
    return "nothing" if isinstance(value, Mapping) and not value else type(value).__name__


def some(words: Sequence[str]) -> str:
    """Return the first few of many words, and how many more there are, for a message."""
    rest = len(words) - _SHOWN
    return ", ".join(words[:_SHOWN]) + (f" and {rest} more" if rest > 0 else "")
