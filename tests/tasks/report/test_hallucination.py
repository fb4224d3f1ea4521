"""The rule that warns of made-up detail, against patches judged by hand, and against the same in SQL."""

import re
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from infra.query import query
from infra.tables import SR_QUALITY
from tasks.quality_summary import summarise
from tasks.report.hallucination import INCONSISTENT, MADE_UP, ModelFaults, faults, model_faults
from tasks.report.numbers import Numbers
from tests.tasks.report.report_store import make_store


def measured(mae: float | None, made: float | None, gained: float | None) -> dict[str, float | None]:
    return {"reflectance_mae": mae, "hallucination_share": made, "improvement_share": gained}


@pytest.mark.parametrize(
    ("values", "control_mae", "expected"),
    [
        (measured(0.0024, 0.3, 0.4), 0.001, []),
        (measured(0.0026, 0.3, 0.4), 0.001, [INCONSISTENT]),
        (measured(0.0026, 0.3, 0.4), 0.0014, []),  # bicubic is off by half of that: a hard patch
        (measured(0.0029, 0.3, 0.4), 0.0014, [INCONSISTENT]),
        (measured(0.0026, 0.3, 0.4), None, [INCONSISTENT]),  # bicubic was not run
        (measured(0.001, 0.4, 0.3), 0.001, [MADE_UP]),
        (measured(0.001, 0.3, 0.3), 0.001, []),
        (measured(0.001, 0.09, 0.0), 0.001, []),  # too little to matter
        (measured(0.005, 0.4, 0.3), 0.001, [INCONSISTENT, MADE_UP]),
        (measured(None, None, None), 0.001, []),
        (measured(None, 0.4, 0.3), 0.001, [MADE_UP]),
    ],
)
def test_a_patch_is_judged(values: dict[str, float | None], control_mae: float | None, expected: list[str]) -> None:
    control = None if control_mae is None else measured(control_mae, 0.0, 0.0)
    found = faults("realesrgan", values, control)
    assert [next(kind for kind in (INCONSISTENT, MADE_UP) if words.startswith(kind)) for words in found] == expected
    assert faults("bicubic", values, control) == []


def test_words_tell_the_numbers() -> None:
    assert faults("hat", measured(0.00426, 0.3032, 0.247), measured(0.00102, 0.0, 0.0)) == [
        "is inconsistent with its input (off by 0.0043 of reflectance)",
        "makes up more than it recovers (30 % of the detail against 25 %)",
    ]


def test_patches_are_counted_each_against_bicubic_on_itself() -> None:
    """p1 is hard for bicubic too; of p2 bicubic is unknown; p3 has no detail."""
    rows: list[dict[str, Any]] = [
        {"patch_id": name, "sr": sr, "config": "c", "clipped_share": 0.0, **values}
        for name, sr, values in (
            ("p0", "bicubic", measured(0.001, 0.0, 0.0)),
            ("p1", "bicubic", measured(0.002, 0.0, 0.0)),
            ("p3", "bicubic", measured(0.001, None, None)),
            ("p3", "hat", measured(0.001, None, None)),
            ("p2", "hat", measured(0.003, 0.2, 0.1)),
            ("p1", "hat", measured(0.003, 0.2, 0.1)),
            ("p0", "hat", measured(0.003, 0.0, 0.9)),
        )
    ]
    quality = pa.Table.from_pylist(rows, SR_QUALITY)
    models = summarise(quality, pa.table({}))
    (found,) = model_faults(quality, models)
    # The means: an error of 0.0025 is not beyond the limit, 0.4 / 3 made up is less than 1.1 / 3 recovered.
    assert found == ModelFaults("hat", 4, inconsistent=2, made_up=2, either=3, of_means=[])
    assert found.share == 0.75


def test_the_means_are_judged_by_the_same_rule() -> None:
    rows = [
        {"patch_id": f"p{i}", "sr": sr, "config": "c", "clipped_share": 0.0, **measured(mae, made, 0.125)}
        for sr, mae, made in (("bicubic", 0.001, 0.5), ("gan", 0.0043, 0.25))
        for i in range(2)
    ]
    quality = pa.Table.from_pylist(rows, SR_QUALITY)
    (found,) = model_faults(quality, summarise(quality, pa.table({})))
    assert found.of_means == [
        "is inconsistent with its input (off by 0.0043 of reflectance)",
        "makes up more than it recovers (25 % of the detail against 12 %)",
    ]
    assert (found.sr, found.either) == ("gan", 2)


def test_the_query_of_the_documentation_says_the_same(tmp_path: Path) -> None:
    """Of srresnet's four patches, two have 0.375 made up, and all recover 0.125."""
    text = (Path(__file__).parents[3] / "docs" / "report.md").read_text(encoding="utf-8")
    (sql,) = re.findall(r"```sql\n(.*?)```", text, re.DOTALL)
    numbers = Numbers(make_store(tmp_path).paths)
    (found,) = model_faults(numbers.quality_rows, numbers.quality)
    configs = {*numbers.run.configs, *numbers.quality_rows["config"].to_pylist()}
    assert query(numbers.paths.tables, configs, sql).fetchall() == [("srresnet", 4, 0.5)]
    assert (found.sr, found.n, found.share) == ("srresnet", 4, 0.5)
