"""The lists by which import-linter keeps the layers apart are whole."""

import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
MAY_USE = {"infra.bigearthnet", "infra.errors", "infra.installed", "infra.on_demand", "infra.weights_store"}


def test_models_are_kept_from_every_other_module_of_infra() -> None:
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    (forbidden,) = (
        contract["forbidden_modules"]
        for contract in settings["tool"]["importlinter"]["contracts"]
        if any(name.startswith("infra.") for name in contract.get("forbidden_modules", ()))
    )
    modules = {
        f"infra.{path.stem}"
        for path in (ROOT / "infra").iterdir()
        if (path.suffix == ".py" and path.stem != "__init__") or (path / "__init__.py").exists()
    }
    assert set(forbidden) == modules - MAY_USE
    assert modules >= MAY_USE
