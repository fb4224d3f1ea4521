"""Filters select what pandas selects from the same rows."""

import shutil
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from starlette.testclient import TestClient

from explorer.app import make_app
from infra.bigearthnet.classes import NAMES
from infra.storage import StorePaths
from infra.tables import hive_folder, predictions_schema, publish, read_table
from tests.explorer.conftest import client_of
from tests.explorer.oracle import are, frame
from tests.explorer.store import NASTY, Made, N

type Query = list[tuple[str, Any]]


def selected(client: TestClient, query: Query) -> list[str]:
    """All names that fit, by name; the bits of the map say the same."""
    answer = client.get("/api/samples", params=[*query, ("order", "id"), ("limit", 200)])
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    bits = np.frombuffer(client.get("/api/selection", params=query).content, np.uint8)
    rows = np.flatnonzero(np.unpackbits(bits, count=N, bitorder="little"))
    assert [sample["index"] for sample in body["samples"]] == rows.tolist()
    assert body["total"] == len(rows)
    return [str(sample["patch_id"]) for sample in body["samples"]]


def names(rows: pd.DataFrame, keep: Any) -> list[str]:
    return [str(name) for name in rows["patch_id"][keep]]


def has(rows: pd.DataFrame, label: str, column: str = "labels") -> "pd.Series[bool]":
    return rows[column].map(lambda found: label in (found or ()))


def test_no_filter_selects_everything(client: TestClient, made: Made) -> None:
    assert selected(client, []) == frame(made)["patch_id"].tolist()


@pytest.mark.parametrize("column", ["country", "season", "split"])
def test_names_of_a_column(client: TestClient, made: Made, column: str) -> None:
    rows = frame(made)
    there = sorted(rows[column].dropna().unique())
    assert selected(client, [(column, there[0])]) == names(rows, rows[column] == there[0])
    assert selected(client, [(column, name) for name in there]) == names(rows, rows[column].notna())


def test_labels_any_and_all(client: TestClient, made: Made) -> None:
    rows = frame(made)
    pair = next(labels[:2] for labels in rows["labels"] if labels and len(labels) > 1)
    one, other = (has(rows, label) for label in pair)
    query: Query = [("label", label) for label in pair]
    assert selected(client, query) == names(rows, one | other)
    assert selected(client, [*query, ("every", "true")]) == names(rows, one & other)
    assert (one & other).any()


def test_labels_that_a_network_gave(client: TestClient, made: Made) -> None:
    rows = frame(made, "none")
    query: Query = [("label", NAMES[3]), ("label_in", "predicted"), ("branch", made.branches["none"])]
    assert selected(client, query) == names(rows, has(rows, NAMES[3], "predicted"))


@pytest.mark.parametrize("wanted", ["right", "wrong", "missed", "extra"])
@pytest.mark.parametrize("labels", [[], [NAMES[2], NAMES[9]]])
def test_outcomes(client: TestClient, made: Made, wanted: str, labels: list[str]) -> None:
    rows = frame(made, "srresnet")
    keep = are(rows, wanted, labels)
    if labels:
        keep &= (has(rows, labels[0]) | has(rows, labels[1])).to_numpy()
    query: Query = [("branch", made.branches["srresnet"]), ("outcome", wanted), *(("label", label) for label in labels)]
    assert selected(client, query) == names(rows, keep)


KNOWN = (NAMES[2], NAMES[9])


@pytest.fixture(scope="module")
def one_of_few(made: Made, tmp_path_factory: pytest.TempPathFactory) -> TestClient:
    """A store whose network without SR knows two labels, with the seed that is shown; with the other one all."""
    root = tmp_path_factory.mktemp("few") / "store"
    shutil.copytree(made.paths.root, root)
    sr, classifier, config = made.branches["none"].split("/")
    folder = hive_folder(StorePaths(root).table("predictions"), sr=sr, classifier=classifier, config=config)
    rows = read_table(folder).to_pylist()
    for row in rows:
        if row["seed"] == 4:
            row["probs"] = [p if name in KNOWN else None for name, p in zip(NAMES, row["probs"], strict=True)]
            row["predicted"] = [name for name in row["predicted"] if name in KNOWN]
    schema = predictions_schema(len(NAMES))
    publish(folder, pa.Table.from_pylist(rows, schema), schema, ["patch_id", "seed"])
    return client_of(make_app(root))


@pytest.mark.parametrize("wanted", ["right", "wrong", "missed", "extra"])
@pytest.mark.parametrize("labels", [[], [NAMES[2], NAMES[3]], [NAMES[3]]])
def test_labels_that_a_network_does_not_know_count_neither_way(
    one_of_few: TestClient, made: Made, wanted: str, labels: list[str]
) -> None:
    rows = frame(made, "none")
    counted = [label for label in labels or NAMES if label in KNOWN]
    keep = are(rows, wanted, counted) if counted else np.zeros(N, np.bool_)
    if labels:
        keep &= rows["labels"].map(lambda found: not set(labels).isdisjoint(found or ())).to_numpy()
    query: Query = [("branch", made.branches["none"]), ("outcome", wanted), *(("label", label) for label in labels)]
    assert selected(one_of_few, query) == names(rows, keep)


def test_a_label_given_wrongly_is_found_among_those_predicted(client: TestClient, made: Made) -> None:
    rows = frame(made, "bicubic")
    keep = has(rows, NAMES[4], "predicted") & ~has(rows, NAMES[4]) & rows["labels"].notna()
    query: Query = [("branch", made.branches["bicubic"]), ("outcome", "extra")]
    assert keep.any()
    assert selected(client, [*query, ("label", NAMES[4]), ("label_in", "predicted")]) == names(rows, keep)


def test_reliability(client: TestClient, made: Made) -> None:
    rows, branch = frame(made, "none"), ("branch", made.branches["none"])
    least, middle = rows["least"], float(rows["least"].median())
    assert selected(client, [branch, ("reliability_max", middle)]) == names(rows, least <= middle)
    assert selected(client, [branch, ("reliability_min", middle)]) == names(rows, least >= middle)
    assert 0 < (least <= middle).sum() < len(rows)
    assert selected(client, [("branch", made.branches["bicubic"]), ("reliability_max", 1)]) == []  # it has no scores


def test_a_box_on_the_ground(client: TestClient, made: Made) -> None:
    rows = frame(made)
    west, east = (float(rows["lon"].quantile(q)) for q in (0.1, 0.6))
    south, north = (float(rows["lat"].quantile(q)) for q in (0.2, 0.9))
    keep = rows["lon"].between(west, east) & rows["lat"].between(south, north)
    assert keep.any()
    assert selected(client, [("west", west), ("east", east), ("south", south), ("north", north)]) == names(rows, keep)


@pytest.mark.parametrize("text", ["s2a_201701", "T33UUP", "onerror", "'; DROP TABLE", "%", "_33_", ".*", NASTY])
def test_part_of_a_name_is_text_and_nothing_else(client: TestClient, made: Made, text: str) -> None:
    rows = frame(made)
    keep = rows["patch_id"].str.lower().str.contains(text.lower(), regex=False)
    assert selected(client, [("q", text)]) == names(rows, keep)


def test_all_filters_hold_at_once(client: TestClient, made: Made) -> None:
    rows = frame(made, "none")
    keep = (rows["country"] == "Finland") & (rows["split"] == "test") & rows["season"].isin(["spring", "autumn"])
    keep &= are(rows, "wrong")
    query: Query = [("country", "Finland"), ("split", "test"), ("season", "spring"), ("season", "autumn")]
    assert keep.any()
    assert selected(client, [*query, ("branch", made.branches["none"]), ("outcome", "wrong")]) == names(rows, keep)


def test_counts_are_those_of_the_selection(client: TestClient, made: Made) -> None:
    rows = frame(made)
    rows = rows[rows["country"] == "Austria"]
    counts = client.get("/api/samples", params={"country": "Austria"}).json()["counts"]
    assert counts["label"] == {label: int(has(rows, label).sum()) for label in NAMES}
    assert counts["split"] == rows["split"].value_counts().reindex(["test", "train"], fill_value=0).to_dict()
    assert counts["country"] == {"Austria": len(rows), "Finland": 0}


@pytest.mark.parametrize(
    ("query", "told"),
    [
        ([("label", "Ocean")], "label: this store has no 'Ocean'"),
        ([("country", "Austria'; DROP TABLE patches")], "country: this store has no"),
        ([("branch", "../../etc/passwd")], "branch: this store has no '../../etc/passwd'"),
        ([("outcome", "right")], "need a branch"),
        ([("reliability_min", "0.5")], "need a branch"),
        ([("reliability_min", "nan")], "reliability_min"),
        ([("west", "1")], "come together"),
        ([("west", "2"), ("east", "1"), ("south", "0"), ("north", "1")], "west must not be east of east"),
        ([("west", "inf"), ("east", "1"), ("south", "0"), ("north", "1")], "west"),
        ([("q", "x" * 201)], "q: String should have at most 200 characters"),
        ([("label", NAMES[0])] * 65, "label"),
        ([("season", "s" * 301)], "season.0"),
        ([("limit", "201")], "limit"),
        ([("offset", "-1")], "offset"),
        ([("offset", "one")], "offset"),
        ([("order", "patch_id; SELECT 1")], "order"),
        ([("order", "reliability")], "needs a branch"),
        ([("sql", "SELECT 1")], "sql: Extra inputs are not permitted"),
    ],
)
def test_what_cannot_be_used_is_refused_in_a_sentence(client: TestClient, query: Query, told: str) -> None:
    answer = client.get("/api/samples", params=query)
    assert answer.status_code == 422
    assert told in answer.json()["detail"]
