"""A network from its `config.json` and its weight file, every parameter and nothing else."""

import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from infra.errors import PipelineError, WeightsError
from sr_models.weights import some

Config = dict[str, Any]

_VAE_NAMES = (("query", "to_q"), ("key", "to_k"), ("value", "to_v"), ("proj_attn", "to_out.0"))


def read_json(path: Path) -> Config:
    """Return the mapping that a JSON file holds.

    Raises:
        WeightsError: It cannot be read, or holds something else.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WeightsError(f"{path} cannot be read as JSON: {error}") from error
    if not isinstance(content, dict):
        raise WeightsError(f"{path} holds a JSON {type(content).__name__}, where names and values are needed")
    return content


def build[T](make: Callable[[Config], T], config: Config, path: Path, what: str = "network") -> T:
    """Return what is made of a configuration; a network's parameters have any values until it is filled.

    Args:
        make: Makes the network, or checks its sizes.
        config: What the file holds.
        path: The file, for messages.
        what: What is made, for messages.

    Raises:
        WeightsError: Nothing can be made of it.
    """
    try:
        with _Uninitialised():
            return make(config)
    except PipelineError as error:
        raise WeightsError(f"{path}: {error}") from error
    except (TypeError, ValueError, KeyError, LookupError, AttributeError, RuntimeError) as error:
        raise WeightsError(f"{path} tells no {what} that can be built: {type(error).__name__}: {error}") from error


class _Uninitialised(TorchFunctionMode):
    """Within it, initialisers leave tensors as they are: a core draws 170 million random numbers in a second."""

    def __torch_function__(
        self, func: Callable[..., Any], types: object, args: tuple[Any, ...] = (), kwargs: Config | None = None
    ) -> Any:  # noqa: ANN401  # what the function returns
        if getattr(func, "__module__", None) == "torch.nn.init":
            return args[0] if args else (kwargs or {})["tensor"]
        return func(*args, **(kwargs or {}))


def fill(network: nn.Module, state: Mapping[str, Tensor], path: Path) -> None:
    """Load parameters into a network; they are converted to the network's dtype.

    Args:
        network: Of the sizes its `config.json` tells.
        state: All of its parameters, and no others.
        path: Where they are from, for messages.

    Raises:
        WeightsError: Parameters are missing, unexpected or of another shape; the message names the first of each.
    """
    compare(network.state_dict(), state, path)
    network.load_state_dict(dict(state), strict=True)


def compare(wanted: Mapping[str, Tensor], state: Mapping[str, Tensor], path: Path, config: Path | None = None) -> None:
    """Raise WeightsError unless names and shapes are those that are needed.

    Args:
        wanted: What is needed.
        state: What there is.
        path: Where it is from, for messages.
        config: Which file tells what is needed, for messages; the config.json beside it, unless given.
    """
    faults = {
        "missing": [name for name in wanted if name not in state],
        "unexpected": [name for name in state if name not in wanted],
        "of another shape": [
            f"{name} is {tuple(state[name].shape)}, needs {tuple(wanted[name].shape)}"
            for name in wanted
            if name in state and state[name].shape != wanted[name].shape
        ],
    }
    if any(faults.values()):
        told = "; ".join(f"{len(names)} {what}: {some(names)}" for what, names in faults.items() if names)
        raise WeightsError(f"{path} does not fit {config or 'the config.json beside it'}: {told}")


def vae_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a VAE's parameters under today's names; files of 2022 name the parts of their attention otherwise."""

    def today(name: str) -> str:
        for old, new in _VAE_NAMES:
            name = re.sub(rf"(\.mid_block\.attentions\.\d+\.){old}\.", rf"\g<1>{new}.", name)
        return name

    return {today(name): value for name, value in state.items()}


def text_names(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a text encoder's parameters under today's names: without a prefix, and without the numbers 0 to 76."""
    names = {name: name.removeprefix("text_model.") for name in state}
    return {names[name]: value for name, value in state.items() if names[name] != "embeddings.position_ids"}
