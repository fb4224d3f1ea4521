"""What a shell is offered for a word that is being typed; nothing heavy is imported for it."""

from collections.abc import Callable, Iterable
from pathlib import Path

SCENE_MODELS = (
    *("none", "hr", "bicubic", "srresnet", "realesrgan", "realesrgan_general"),
    *("hat", "hat_s", "hat_l", "real_hat_gan"),
)
"""Of the SR models those that are not for patches alone."""

SR_MODELS = (*SCENE_MODELS, "seesr", "seesr_tiny")
CLASSIFIERS = ("resnet18", "resnet50", "resnet101", "resnet152", "inception_v4")
PUBLISHED = ("resnet50-s1-v0.2.0", "resnet50-s2-v0.2.0", "resnet50-all-v0.2.0")
"""Names as the registries have them: importing those would import torch, and take seconds at each key."""

SPLITS = ("train", "validation", "test", "all")
DTYPES = ("float32", "bfloat16", "float16")

_MOST = 500
"""Entries of a folder that are looked at."""


def one_of(choices: Iterable[str]) -> Callable[[str], list[str]]:
    """Return a completion by names."""
    known = tuple(choices)

    def complete(incomplete: str) -> list[str]:
        return [choice for choice in known if choice.startswith(incomplete)]

    return complete


def run_yamls(incomplete: str) -> list[str]:
    """Return the YAML files, and the folders on the way to one, whose paths begin with a text."""
    return _paths(incomplete, lambda path: path.suffix in {".yaml", ".yml"})


def stores(incomplete: str) -> list[str]:
    """Return the folders whose paths begin with a text, a store without the slash that others end with."""
    return _paths(incomplete, lambda _: False)


def _paths(incomplete: str, wanted: Callable[[Path], bool]) -> list[str]:
    typed, slash, begun = incomplete.rpartition("/")
    folder = Path(typed + slash).expanduser() if slash else Path()
    found = []
    try:
        entries = sorted(path for path, _ in zip(folder.iterdir(), range(_MOST), strict=False))
    except OSError:
        return []
    for path in entries:
        if not path.name.startswith(begun) or (path.name.startswith(".") and not begun):
            continue
        if path.is_dir():
            found.append(f"{typed}{slash}{path.name}" + ("" if is_store(path) else "/"))
        elif wanted(path):
            found.append(f"{typed}{slash}{path.name}")
    return found


def is_store(folder: Path) -> bool:
    """Return whether a folder looks like a store: it has tables, or a run's work."""
    return (folder / "tables").is_dir() or (folder / "work" / "run.json").is_file()
