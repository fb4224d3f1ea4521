"""Tables that other distributions add to: found when asked, imported when taken, refused in one sentence."""

import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from infra.errors import ConfigError
from infra.installed import ModelTable
from tests.installed import install, pyproject


@dataclass(frozen=True)
class Thing:
    value: int
    distribution: str | None = None

    def from_distribution(self, distribution: str) -> "Thing":
        return replace(self, distribution=distribution)


SOURCE = """
from tests.infra.test_installed import Thing

mine, other, wrong = Thing(7), Thing(8), "a text"
"""

Install = Callable[..., None]


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    def add(name: str, points: dict[str, str], source: str = SOURCE, version: str = "1.0") -> None:
        module = name.replace("-", "_")
        folder = install(tmp_path / name, {module: source}, pyproject(name, version, sr_models=points))
        monkeypatch.syspath_prepend(str(folder))

    return add


@pytest.fixture
def table() -> ModelTable[Thing]:
    return ModelTable({"own": Thing(1)}, "superscene.sr_models", Thing)


def test_without_other_distributions_it_is_this_package_s_table(table: ModelTable[Thing]) -> None:
    assert dict(table) == {"own": Thing(1)}
    assert len(table) == 1
    assert "mine" not in table
    assert table.get("mine") is None
    with pytest.raises(KeyError):
        table["mine"]


def test_entry_points_follow_and_say_where_they_come_from(installed: Install, table: ModelTable[Thing]) -> None:
    installed("zoo-a", {"mine": "zoo_a:mine"}, version="2.5")
    assert list(table) == ["own", "mine"]
    assert table["mine"] == Thing(7, "zoo-a 2.5")
    assert table["own"].distribution is None
    assert dict(table) == {"own": Thing(1), "mine": Thing(7, "zoo-a 2.5")}


def test_nothing_is_imported_before_it_is_taken(installed: Install, table: ModelTable[Thing]) -> None:
    installed("zoo-b", {"mine": "zoo_b:mine", "other": "zoo_b:other"})
    assert "mine" in table
    assert len(table) == 3
    assert "zoo_b" not in sys.modules
    assert table["other"].value == 8
    assert "zoo_b" in sys.modules


@pytest.mark.parametrize(
    ("points", "source", "said"),
    [
        ({"mine": "zoo_c:absent"}, SOURCE, r"mine of zoo-c 1.0, zoo_c:absent, cannot be imported"),
        ({"mine": "zoo_c:mine"}, "import a_module_that_is_not_there", "imported: ModuleNotFoundError: No module named"),
        ({"mine": "zoo_c:mine"}, "mine = Thing(", "cannot be imported: SyntaxError"),
        ({"mine": "zoo_c:mine"}, "mine = int('a word')", "cannot be imported: ValueError"),
        ({"mine": "zoo_c:wrong"}, SOURCE, "is a str, where a Thing is needed"),
    ],
)
def test_what_cannot_be_used_is_told_when_it_is_taken(
    installed: Install,
    table: ModelTable[Thing],
    monkeypatch: pytest.MonkeyPatch,
    points: dict[str, str],
    source: str,
    said: str,
) -> None:
    monkeypatch.delitem(sys.modules, "zoo_c", raising=False)
    installed("zoo-c", points, source)
    assert "mine" in table
    with pytest.raises(ConfigError, match=said):
        table["mine"]
    monkeypatch.delitem(sys.modules, "zoo_c", raising=False)


@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("own", "zoo-d 1.0 offers the model own .* which superscene has too"),
        ("../up", r"offers the model '../up'.*letters, digits"),
    ],
)
def test_names_that_cannot_be(installed: Install, table: ModelTable[Thing], name: str, said: str) -> None:
    installed("zoo-d", {name: "zoo_d:mine"})
    with pytest.raises(ConfigError, match=said):
        list(table)


def test_two_distributions_with_one_name(installed: Install, table: ModelTable[Thing]) -> None:
    installed("zoo-e", {"mine": "zoo_e:mine"})
    installed("zoo-f", {"mine": "zoo_f:mine"})
    with pytest.raises(ConfigError, match=r"zoo-[ef] 1.0 offers the model mine .* which zoo-[ef] 1.0 has too"):
        list(table)
