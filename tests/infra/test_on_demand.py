"""Packages that import their public names when they are asked for have all of them, and no others."""

import sys
from fractions import Fraction
from importlib import import_module
from pathlib import Path
from types import FunctionType, ModuleType

import pytest

import classifiers
import sr_models
from infra.on_demand import called_later


@pytest.mark.parametrize("package", [classifiers, sr_models])
def test_every_public_name_is_there(package: ModuleType) -> None:
    for name in package.__all__:
        found = getattr(package, name)
        if isinstance(found, FunctionType | type):
            assert getattr(import_module(found.__module__), name) is found
        assert not isinstance(found, ModuleType)  # a submodule of that name would have taken its place
        assert vars(package)[name] is found  # nobody is asked twice
    assert not hasattr(package, "no_such_name")
    with pytest.raises(ImportError, match="cannot import name 'no_such_name'"):
        exec(f"from {package.__name__} import no_such_name")


@pytest.mark.parametrize("package", [classifiers, sr_models])
def test_no_public_name_is_a_submodule_s(package: ModuleType) -> None:
    (folder,) = package.__path__
    modules = {path.stem for path in Path(folder).iterdir() if path.suffix == ".py" or (path / "__init__.py").exists()}
    assert modules.isdisjoint(package.__all__)


def test_a_name_s_module_is_imported_when_it_is_asked_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "some_package"
    folder.mkdir()
    (folder / "__init__.py").write_text(
        "from infra.on_demand import names_of\n"
        "__getattr__ = names_of(__name__, {'some_package.far': ['answer', 'other']})\n"
    )
    (folder / "far.py").write_text("answer, other = 42, None\n")
    (folder / "near.py").touch()
    monkeypatch.syspath_prepend(tmp_path)
    package = import_module("some_package")
    assert "some_package.far" not in sys.modules
    assert package.near.__name__ == "some_package.near"
    assert "some_package.far" not in sys.modules
    assert package.answer == 42
    assert "some_package.far" in sys.modules
    with pytest.raises(AttributeError, match="module 'some_package' has no attribute 'question'"):
        _ = package.question
    assert package.far is sys.modules["some_package.far"]
    for name in ("some_package.far", "some_package.near", "some_package"):
        del sys.modules[name]


def test_a_function_s_module_is_imported_when_it_is_called() -> None:
    later = called_later("fractions", "Fraction")
    assert later(2, denominator=4) == Fraction(1, 2)
    absent = called_later("no.such.module", "name")
    with pytest.raises(ModuleNotFoundError, match="no"):
        absent()
