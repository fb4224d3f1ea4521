"""Distributions as pip leaves them behind: a module and a dist-info folder, on the path of this process alone."""

import tomllib
from collections.abc import Mapping
from pathlib import Path


def install(folder: Path, modules: Mapping[str, str], pyproject: str) -> Path:
    """Write a distribution into a folder that a test puts on the path; return the folder.

    Args:
        folder: Where; made.
        modules: Source by module name.
        pyproject: The text of its pyproject.toml, which says its name, version and entry points.
    """
    project = tomllib.loads(pyproject)["project"]
    folder.mkdir(parents=True, exist_ok=True)
    for name, source in modules.items():
        (folder / f"{name}.py").write_text(source, encoding="utf-8")
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n", encoding="utf-8"
    )
    lines = []
    for group, points in project.get("entry-points", {}).items():
        lines += [f"[{group}]", *(f"{name} = {value}" for name, value in points.items())]
    (info / "entry_points.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")
    return folder


def pyproject(name: str, version: str = "1.0", **groups: Mapping[str, str]) -> str:
    """Return a pyproject.toml; `sr_models={"mine": "module:object"}` is an entry point of superscene.sr_models."""
    lines = ["[project]", f'name = "{name}"', f'version = "{version}"']
    for group, points in groups.items():
        lines += [f'[project.entry-points."superscene.{group}"]', *(f'"{k}" = "{v}"' for k, v in points.items())]
    return "\n".join(lines)
