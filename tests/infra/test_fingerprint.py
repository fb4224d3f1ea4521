import hashlib
import json
import re
from pathlib import Path
from types import MappingProxyType

import duckdb
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from infra.fingerprint import Json, canonical_json, fingerprint

SCALARS = st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text("aé☃")
VALUES = st.recursive(SCALARS, lambda inner: st.lists(inner) | st.dictionaries(st.text("abc"), inner), max_leaves=8)


@pytest.mark.parametrize(
    ("value", "sha256", "expected"),
    [
        # `printf '{}' | sha256sum`, and so on: eight digits from the first letter
        ({}, "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a", "fa355b36"),
        ([], "4f53cda18c2baa0c0354bb5f9a3ecbe5ed12ab4d8e11ba873c2f11161202b945", "f53cda18"),
        (None, "74234e98afe7498fb5daf1f36ac2d78acc339464f950703b8c019892f982b90b", "e98afe74"),
        (True, "b5bea41b6c623f7c09f1bf24dcae58ebab3c0cdd90ad966bc43a45b44867e12b", "b5bea41b"),
    ],
)
def test_eight_digits_of_the_sha_256_from_its_first_letter(value: Json, sha256: str, expected: str) -> None:
    assert hashlib.sha256(json.dumps(value).encode()).hexdigest() == sha256
    assert expected in sha256
    assert fingerprint(value) == expected


def test_a_config_keeps_its_fingerprint_for_ever() -> None:
    """A change here orphans the parts, tables and checkpoints of every store."""
    value: Json = {"stage": "predict", "weights": {"sha256": "ab12"}, "bands": ["B04", "B03"], "lr": 1e-3, "été": None}
    text = '{"bands":["B04","B03"],"lr":0.001,"stage":"predict","weights":{"sha256":"ab12"},"été":null}'
    assert canonical_json(value) == text
    digest = hashlib.sha256(text.encode()).hexdigest()
    letter = re.search("[a-f]", digest)
    assert letter is not None
    assert fingerprint(value) == digest[letter.start() :][:8] == "fea74aa5"


@given(st.dictionaries(st.text("abc"), VALUES))
def test_the_order_of_keys_does_not_matter(value: dict[str, Json]) -> None:
    other = dict(reversed(value.items()))
    assert fingerprint(other) == fingerprint(value) == fingerprint(MappingProxyType(other))
    assert fingerprint(json.loads(canonical_json(value))) == fingerprint(value)


@given(VALUES)
def test_it_is_eight_hex_digits_the_first_a_letter(value: Json) -> None:
    assert re.fullmatch("[a-f][0-9a-f]{7}", fingerprint(value))


def test_different_values_differ() -> None:
    values: list[Json] = [0, "0", [0], {"a": 0}, {"a": "0"}, {"b": 0}, {"a": None}, {}, [], [[]], "", None, False, 0.5]
    assert len({fingerprint(value) for value in values}) == len(values)
    assert fingerprint(["a", "b"]) != fingerprint(["b", "a"])


def test_a_digest_that_begins_with_its_last_letters_wraps_round(monkeypatch: pytest.MonkeyPatch) -> None:
    class Digest:
        def __init__(self, data: bytes) -> None:
            pass

        def hexdigest(self) -> str:
            return "0123456789" * 6 + "123c"

    monkeypatch.setattr(hashlib, "sha256", Digest)
    assert fingerprint(1) == "c0123456"


@pytest.mark.parametrize("value", [{"root": Path("/data")}, {"labels": {"a", "b"}}, {"lr": float("nan")}])
def test_what_json_does_not_hold_is_refused(value: Json) -> None:
    with pytest.raises((TypeError, ValueError)):
        fingerprint(value)


def test_readers_of_hive_paths_take_it_for_a_string(tmp_path: Path) -> None:
    digits_after_the_letter = (x for x in map(fingerprint, range(10_000)) if x[1:].isdigit())
    configs = sorted({*(next(digits_after_the_letter) for _ in range(10)), *map(fingerprint, range(10))})
    for i, config in enumerate(configs):
        (tmp_path / f"config={config}").mkdir()
        pq.write_table(pa.table({"a": [i]}), tmp_path / f"config={config}" / "data.parquet")
    rows = duckdb.execute(f"SELECT a, config FROM '{tmp_path}/*/*.parquet' ORDER BY a").fetchall()
    assert rows == list(enumerate(configs))
    with_pandas = pd.read_parquet(tmp_path).sort_values("a")
    assert with_pandas["config"].astype(object).tolist() == configs
    with_arrow = pq.read_table(tmp_path).sort_by("a")["config"].cast(pa.string()).to_pylist()
    assert with_arrow == configs
