"""Weights: read safely, compared with the network they are meant for, explained where they do not fit."""

import pickle
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from zipfile import is_zipfile

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor, nn

from infra.errors import WeightsError
from sr_models.weight_files import missing, where_to_get

_SHOWN = 4  # keys named in a message before it goes on with a count


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
