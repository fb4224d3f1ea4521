"""Looked up in pieces or at once, names stand where Python's own dictionaries find them."""

import random

import numpy as np
import pyarrow as pa
import pytest

from infra import name_lookup
from infra.name_lookup import is_first, places_among


@pytest.fixture(params=[1, 2, 3, 1 << 17], autouse=True)
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(name_lookup, "_AT_ONCE", request.param)


def drawn(seed: int, count: int, nulls: float = 0.2) -> list[str | None]:
    rng = random.Random(seed)
    return [None if rng.random() < nulls else f"n{rng.randrange(12)}" for _ in range(count)]


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize(("names", "others"), [(20, 13), (0, 4), (5, 0)])
def test_the_first_place_of_a_name_counts(seed: int, names: int, others: int) -> None:
    wanted, among = drawn(seed, names), [name for name in drawn(seed + 100, others, nulls=0) if name is not None]
    expected = [among.index(name) if name in among else -1 for name in wanted]
    column = pa.array(wanted, pa.string())
    assert places_among(column, pa.array(among, pa.string())).tolist() == expected
    chunked = pa.chunked_array([column[:3], column[3:]], pa.string())
    assert places_among(chunked, pa.array(among, pa.string())).tolist() == expected


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("count", [0, 1, 2, 30])
def test_a_name_is_first_where_none_before_is_the_same(seed: int, count: int) -> None:
    names = drawn(seed, count)
    expected = [name not in names[:i] for i, name in enumerate(names)]
    found = is_first(pa.array(names, pa.string()))
    assert found.dtype == np.bool_
    assert found.tolist() == expected
