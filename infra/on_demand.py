"""Imports that wait until something is asked for or called, so that few commands pay for torch."""

import sys
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module
from importlib.util import find_spec
from typing import Any


def names_of(package: str, modules: Mapping[str, Sequence[str]]) -> Callable[[str], object]:
    """Return the `__getattr__` of a package (PEP 562), which keeps what it found, and knows the package's submodules.

    Args:
        package: The package, its `__name__`.
        modules: The public names by the module that defines them. None may be a submodule's own name: importing that
            would put the submodule in its place.
    """
    homes = {name: module for module, names in modules.items() for name in names}

    def attribute(name: str) -> object:
        if name not in homes:
            if not name.startswith("_") and find_spec(f"{package}.{name}") is not None:
                return import_module(f"{package}.{name}")
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        value: object = getattr(import_module(homes[name]), name)
        setattr(sys.modules[package], name, value)
        return value

    return attribute


def called_later(module: str, name: str) -> Callable[..., Any]:
    """Return a module's function or class as a function that imports the module when it is called."""

    def call(*arguments: Any, **named: Any) -> Any:  # noqa: ANN401  # whatever it takes and returns
        return getattr(import_module(module), name)(*arguments, **named)

    return call
