"""What is wrong with a setting, in the words of this project: which key, what it needs, what was found."""

import re
from collections.abc import Mapping, Sequence
from types import MappingProxyType

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from infra.errors import did_you_mean

_NEEDS: Mapping[str, str] = MappingProxyType(
    {
        "missing": "this setting is needed",
        "int_type": "needs a whole number",
        "int_parsing": "needs a whole number",
        "int_from_float": "needs a whole number",
        "float_type": "needs a number",
        "float_parsing": "needs a number",
        "bool_type": "needs true or false",
        "bool_parsing": "needs true or false",
        "string_type": "needs a text",
        "path_type": "needs a path",
        "tuple_type": "needs a list, such as [a, b]",
        "dict_type": "needs settings of its own, such as {key: value}",
        "model_type": "needs settings of its own, such as {key: value}",
        "model_attributes_type": "needs settings of its own, such as {key: value}",
        "too_short": "needs one at least",
        "finite_number": "needs a finite number",
    }
)
"""By pydantic's kind of error."""

_LONGEST = 40
"""Signs of a wrong value that are shown."""


def faults(errors: Sequence[ErrorDetails], model: type[BaseModel], sections: Mapping[str, type[BaseModel]]) -> str:
    """Return everything that is wrong, in one sentence.

    Args:
        errors: As pydantic tells them.
        model: Of the whole.
        sections: Of what lies within it, by name; `variants` and `sources` hold several of their kind.
    """
    by_path: dict[tuple[int | str, ...], list[ErrorDetails]] = {}
    for error in errors:
        if error["type"] == "too_short" and error["input"]:
            continue  # a list counts as too short where what is in it has faults, which are told by themselves
        path = tuple(part for part in error["loc"] if not _is_kind(part))
        by_path.setdefault(path, []).append({**error, "loc": path})
    return "; ".join(
        _of_kinds(same) if len(same) > 1 else _fault(same[0], model, sections) for same in by_path.values()
    )


def _of_kinds(errors: Sequence[ErrorDetails]) -> str:
    """Return what is wrong with a setting that may be of several kinds, and has an error of each."""
    needs = [_need(error).removeprefix("needs ") for error in errors]
    *others, last = dict.fromkeys(needs)
    where = ".".join(map(str, errors[0]["loc"]))
    return f"{where}: needs {', '.join(others)}{' or ' if others else ''}{last}{_found(errors[0])}"


def _need(error: ErrorDetails) -> str:
    if error["type"] == "literal_error":
        return str(error.get("ctx", {}).get("expected", ""))
    return _NEEDS.get(error["type"], error["msg"].replace("Input should be", "to be", 1))


def _is_kind(part: int | str) -> bool:
    """Return whether a part of a place is pydantic's name for one of the kinds that a value may be of."""
    return isinstance(part, str) and bool(re.fullmatch(r"constrained-\w+|int|float|bool|str|literal\[.*\]", part))


def _fault(error: ErrorDetails, model: type[BaseModel], sections: Mapping[str, type[BaseModel]]) -> str:
    where = ".".join(map(str, error["loc"]))
    kind, message = error["type"], error["msg"].removeprefix("Value error, ")
    if kind == "extra_forbidden":
        message = _misspelled(tuple(map(str, error["loc"])), model, sections)
    elif kind == "literal_error":
        message = _of_several(error)
    elif kind in _NEEDS:
        message = _NEEDS[kind] + ("" if kind in {"missing", "too_short"} else _found(error))
    elif message.startswith("Input should be "):
        message = f"needs to be {message.removeprefix('Input should be ')}{_found(error)}"
    return f"{where}: {message}" if where else message


def _found(error: ErrorDetails) -> str:
    """Return what was found; a section or a list by its kind, and nothing that may hold a password."""
    value = error["input"]
    if isinstance(value, dict | list | tuple):
        return f", and is a {'section' if isinstance(value, dict) else 'list'}"
    text = "null" if value is None else repr(value)
    return "" if "://" in text or "@" in text or len(text) > _LONGEST else f", and is {text}"


def _of_several(error: ErrorDetails) -> str:
    expected = str(error.get("ctx", {}).get("expected", ""))
    hint = did_you_mean(str(error["input"]), re.findall(r"'([^']+)'", expected))
    return f"needs to be {expected}{_found(error)}{': ' + hint.strip() if hint else ''}"


def _misspelled(path: tuple[str, ...], model: type[BaseModel], sections: Mapping[str, type[BaseModel]]) -> str:
    """Return what may have been meant by a setting that there is not."""
    name, parents = path[-1], [part for part in path[:-1] if part in sections]
    here = (sections[parents[-1]] if parents else model).model_fields
    if hint := did_you_mean(name, here):
        return f"there is no such setting: {hint.strip()}"
    if name in model.model_fields:
        return f"there is no such setting here: {name} stands at the beginning of a line, beside `archive` and `store`"
    others = [f"{section}.{name}" for section, inner in sections.items() if name in inner.model_fields]
    if others and not set(parents) & {"variants", "sources"}:
        return f"there is no such setting: did you mean {' or '.join(others)}?"
    return f"there is no such setting; there are {', '.join(here)}"
