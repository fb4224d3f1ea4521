"""The table of checks as a whole: it is documented, every check advises, and one that breaks hides no other."""

import runpy
from collections.abc import Iterator
from pathlib import Path

import pytest

from flows.doctor import checks
from flows.doctor.case import Case, Check, Finding, fail, ok
from tests.flows.stores import PROJECT


def every_check() -> Iterator[Check]:
    return (check for subject in checks.CHECKS.values() for check in subject)


def test_the_page_is_made_from_the_checks() -> None:
    made = runpy.run_path(str(PROJECT / "docs" / "make_doctor.py"))["doctor_page"]()
    assert (PROJECT / "docs" / "doctor.md").read_text(encoding="utf-8") == made, "run python docs/make_doctor.py"
    assert all(f"| {check.name} | {check.looks_at} | {check.advice} |\n" in made for check in every_check())


def test_every_check_has_a_name_of_its_own_and_advises() -> None:
    names = [check.name for check in every_check()]
    assert len(names) == len(set(names)) >= 40
    assert all(check.advice and not check.advice[0].isspace() for check in every_check())
    (weights,) = (check for check in every_check() if check.name == "weights folder")
    assert "SUPERSCENE_WEIGHTS" in weights.advice


def test_a_look_that_breaks_is_told_and_the_others_too(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(case: Case) -> Finding:
        raise RuntimeError("no such thing")

    table = (
        Check("broken", "", "mend it", broken),
        Check("fine", "", "nothing", lambda _: ok("well")),
        Check("bad", "", "do this", lambda _: fail("ill")),
        Check("absent", "", "nothing", lambda _: None),
    )
    monkeypatch.setattr(checks, "CHECKS", {"all": table})
    found = [(each.name, each.state, each.found, each.advice) for each in checks.examine(Case())]
    assert found == [
        ("broken", "warn", "could not be looked at: RuntimeError: no such thing", "mend it"),
        ("fine", "ok", "well", ""),
        ("bad", "fail", "ill", "do this"),
    ]


def test_a_store_and_an_archive_are_looked_at_where_they_are_named(tmp_path: Path) -> None:
    def looked(case: Case, *subjects: str) -> set[str]:
        chosen = [check for subject in subjects for check in checks.CHECKS[subject]]
        return {check.name for check in chosen if check.look(case) is not None}

    assert looked(Case(), "RUN.yaml", "Archive", "Store") == set()
    store = looked(Case(store=tmp_path), "Archive", "Store")
    local = {check.name for check in checks.CHECKS["Store"]} - {"bucket", "bucket's clock"}
    assert store == local | {"times of files"}
