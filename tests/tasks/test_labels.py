import numpy as np
import pyarrow as pa

from infra.bigearthnet.classes import NAMES
from tasks.labels import is_clean, likeliest, multi_hot


def test_multi_hot_is_in_the_one_order() -> None:
    found = multi_hot([["Marine waters", "Urban fabric"], [], None, ["Pastures"]], NAMES)
    assert found.dtype == np.bool_
    assert [[NAMES[i] for i in np.flatnonzero(row)] for row in found] == [
        ["Urban fabric", "Marine waters"],
        [],
        [],
        ["Pastures"],
    ]
    assert (found[0].nonzero()[0].tolist(), found[3].nonzero()[0].tolist()) == ([0, 18], [4])  # places in the paper


def test_multi_hot_of_nothing_has_its_columns() -> None:
    assert multi_hot([], NAMES).shape == (0, 19)


def test_other_labels_than_those_asked_for_are_left_out() -> None:
    found = multi_hot([["Pastures", "Marine waters"], ["Marine waters"]], ("Pastures", "Arable land"))
    assert found.tolist() == [[True, False], [False, False]]


def test_the_likeliest_of_the_true_labels_or_of_all_where_none_is_known() -> None:
    probs = {"a": 0.2, "b": 0.9, "c": 0.5, "d": 0.9}
    truths: tuple[list[str] | None, ...] = (["a", "c"], ["a", "unknown to it"], ["d", "b"], None, [], ["x"])
    assert [likeliest(probs, truth) for truth in truths] == ["c", "a", "d", "b", "b", "b"]


def test_clean_is_neither_snow_nor_cloud_and_null_counts_as_clean() -> None:
    flags = [(s, c) for s in (True, False, None) for c in (True, False, None)]
    table = pa.table(
        {
            "has_snow": pa.array([s for s, _ in flags], pa.bool_()),
            "has_cloud": pa.array([c for _, c in flags], pa.bool_()),
        }
    )
    assert is_clean(table).to_pylist() == [True not in pair for pair in flags]
