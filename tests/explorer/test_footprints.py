"""The map's bytes are the table's numbers."""

import numpy as np
from starlette.testclient import TestClient

from infra.bigearthnet.classes import NAMES
from tests.explorer.oracle import frame, outcomes
from tests.explorer.store import Made, N


def colours(client: TestClient, **query: str) -> list[int]:
    return list(client.get("/api/colours", params=query).content)


def test_centres_are_those_of_the_footprints(client: TestClient, made: Made) -> None:
    found = np.frombuffer(client.get("/api/centres").content, "<f4").reshape(N, 2)
    np.testing.assert_allclose(found, frame(made)[["lon", "lat"]], atol=5e-6)


def test_colours_are_places_in_the_names(client: TestClient, made: Made) -> None:
    rows, store = frame(made), client.get("/api/store").json()
    for column in ("split", "country", "season"):
        expected = [255 if name is None else store[column].index(name) for name in rows[column]]
        assert colours(client, by=column) == expected


def test_colours_of_outcomes_and_reliability(client: TestClient, made: Made) -> None:
    rows, branch = frame(made, "none"), made.branches["none"]
    codes = {"right": 0, "wrong": 1}
    of_rows = outcomes(rows)
    expected = [next((code for name, code in codes.items() if name in found), 255) for found in of_rows]
    assert colours(client, by="outcome", branch=branch) == expected
    of_label = outcomes(rows, [NAMES[6]])
    expected = [next((code for name, code in codes.items() if name in found), 255) for found in of_label]
    assert colours(client, by="outcome", branch=branch, label=NAMES[6]) == expected
    assert colours(client, by="reliability", branch=branch) == [min(int(s * 10), 9) for s in rows["least"]]
    assert set(colours(client, by="reliability", branch=made.branches["bicubic"])) == {255}
    assert client.get("/api/colours", params={"by": "outcome"}).status_code == 422


def test_corners_of_the_selected(client: TestClient, made: Made) -> None:
    record = np.dtype([("row", "<u4"), ("corners", "<f4", (4, 2))])
    found = np.frombuffer(client.get("/api/footprints", params={"country": "Austria"}).content, record)
    rows = frame(made)
    wanted = rows.index[(rows["country"] == "Austria") & rows["lon"].notna()]
    assert found["row"].tolist() == wanted.tolist()
    np.testing.assert_allclose(found["corners"].mean(axis=1), rows.loc[wanted, ["lon", "lat"]], atol=1e-5)
