"""What no file of the project may do: run what a file holds, or let a file's content choose who reads it."""

import ast
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

_MODULES = frozenset(
    {"cPickle", "_pickle", "cloudpickle", "dill", "hickle", "joblib", "jsonpickle", "marshal", "shelve"}
    | {"ray.cloudpickle", "numcodecs.pickles", "torch.package", "torch.hub", "torch.jit", "code", "pty"}
)
"""Modules that run, or may run, what a file holds."""

_CALLS = frozenset(
    {"eval", "exec", "compile", "__import__", "os.system", "os.popen", "shutil.unpack_archive", "torch.hub.load"}
    | {"torch.jit.load", "torch.package.PackageImporter", "numpy.lib.format.read_array", "numpy.core.multiarray.loads"}
)
"""Functions that do, by their whole names."""

_METHODS = frozenset({"extract", "extractall", "read_pickle", "to_pickle"})
"""Methods of archives and tables that write where a name in a file says, or unpickle."""

_YAML_READERS = frozenset({"load", "load_all", "full_load", "full_load_all", "unsafe_load", "unsafe_load_all", "scan"})
_BY_CONTENT = {"rasterio.open": "driver", "PIL.Image.open": "formats"}
"""Readers that go by a file's content unless told of what kind it is."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A place that does what none may do."""

    line: int
    what: str


def faults(source: str) -> list[Fault]:
    """Return what is unsafe in a module's source, by its syntax tree."""
    return sorted(_Module(ast.parse(source)).faults(), key=lambda fault: fault.line)


def faults_below(root: Path, folders: tuple[str, ...]) -> dict[str, list[Fault]]:
    """Return the faults of all modules in some folders, by path."""
    paths = [path for folder in folders for path in sorted((root / folder).rglob("*.py"))]
    found = {str(path.relative_to(root)): faults(path.read_text(encoding="utf-8")) for path in paths}
    return {path: what for path, what in found.items() if what}


class _Module:
    def __init__(self, tree: ast.Module) -> None:
        self._tree = tree
        self._names: dict[str, str] = {}  # what a name in this module stands for
        for node in ast.walk(tree):
            if isinstance(node, ast.Import):
                for alias in node.names:
                    name = alias.name if alias.asname else alias.name.partition(".")[0]
                    self._names[alias.asname or name] = name
            elif isinstance(node, ast.ImportFrom):
                for alias in node.names:
                    self._names[alias.asname or alias.name] = f"{node.module}.{alias.name}"
        self._safe_loaders = {
            node.name
            for node in ast.walk(tree)
            if isinstance(node, ast.ClassDef) and [self._name(base) for base in node.bases] == ["yaml.SafeLoader"]
        }

    def faults(self) -> Iterator[Fault]:
        for node in ast.walk(self._tree):
            if isinstance(node, ast.Import):
                yield from self._imported(node, [alias.name for alias in node.names])
            elif isinstance(node, ast.ImportFrom):
                yield from self._imported(node, [f"{node.module}.{alias.name}" for alias in node.names])
            elif isinstance(node, ast.Attribute):
                name = self._name(node)
                if name.startswith("pickle.") and name != "pickle.UnpicklingError":
                    yield Fault(node.lineno, name)
            elif isinstance(node, ast.Call):
                what = self._called(node)
                if what is not None:
                    yield Fault(node.lineno, what)

    def _imported(self, node: ast.stmt, names: list[str]) -> Iterator[Fault]:
        for name in names:
            parts = name.split(".")
            above = {".".join(parts[:i]) for i in range(1, len(parts) + 1)}
            if above & _MODULES or (parts[0] == "pickle" and name not in {"pickle", "pickle.UnpicklingError"}):
                yield Fault(node.lineno, f"import {name}")

    def _called(self, call: ast.Call) -> str | None:
        name = self._name(call.func)
        method = name.rpartition(".")[2]
        given = {keyword.arg: keyword.value for keyword in call.keywords}
        if name in _CALLS or (isinstance(call.func, ast.Attribute) and method in _METHODS):
            return name
        if name in {"torch.load", "torch.serialization.load"} and not _is(given.get("weights_only"), value=True):
            return f"{name} without weights_only=True"
        if name == "numpy.load" and not _is(given.get("allow_pickle"), value=False):
            return "numpy.load without allow_pickle=False"
        if "allow_pickle" in given and not _is(given["allow_pickle"], value=False):
            return f"{name} with allow_pickle"
        if "shell" in given and not _is(given["shell"], value=False):
            return f"{name} with a shell"
        if name.startswith("yaml.") and method in _YAML_READERS:
            loader = given.get("Loader") or (call.args[1] if len(call.args) > 1 else None)
            if method not in {"load", "load_all"} or not (
                isinstance(loader, ast.Name) and loader.id in self._safe_loaders
            ):
                return f"{name} without a SafeLoader of this module"
        if method == "eval" and isinstance(call.func, ast.Attribute) and (call.args or given):
            return f"{name} of a text"  # pandas; a network's eval() has no argument
        needed = _BY_CONTENT.get(name)
        return f"{name} without {needed}" if needed is not None and needed not in given else None

    def _name(self, node: ast.expr) -> str:
        """Return the whole name that an expression stands for; a dot in front where it starts with none."""
        parts: list[str] = []
        while isinstance(node, ast.Attribute):
            parts.append(node.attr)
            node = node.value
        parts.append(self._names.get(node.id, node.id) if isinstance(node, ast.Name) else "")
        return ".".join(reversed(parts))


def _is(node: ast.expr | None, *, value: bool) -> bool:
    return isinstance(node, ast.Constant) and node.value is value
