"""Pages of samples, their order, and patches around a place."""

import numpy as np
import pyproj
import pytest
from starlette.testclient import TestClient

from tests.explorer.oracle import UNSEEN, frame, outcome
from tests.explorer.store import Made, N


def test_pages_put_together_are_all_patches_once(client: TestClient, made: Made) -> None:
    pages = [client.get("/api/samples", params={"offset": at, "limit": 7}).json()["samples"] for at in range(0, N, 7)]
    ids = [sample["patch_id"] for page in pages for sample in page]
    assert sorted(ids) == sorted(row["patch_id"] for row in made.rows)
    assert ids != sorted(ids), "shuffled"
    assert client.get("/api/samples", params={"offset": N}).json()["samples"] == []


def test_the_least_reliable_come_first(client: TestClient, made: Made) -> None:
    query: dict[str, str | int] = {"branch": made.branches["srresnet"], "order": "reliability", "limit": 200}
    found = client.get("/api/samples", params=query).json()["samples"]
    expected = frame(made, "srresnet").set_index("patch_id")["least"]
    scores = [sample["reliability"] for sample in found]
    assert scores == sorted(scores)
    assert scores == pytest.approx([expected[sample["patch_id"]] for sample in found])


def test_samples_tell_what_the_tables_tell(client: TestClient, made: Made) -> None:
    query: dict[str, str | int] = {"branch": made.branches["none"], "limit": 200}
    found = {sample["patch_id"]: sample for sample in client.get("/api/samples", params=query).json()["samples"]}
    for row in frame(made, "none").to_dict("records"):
        sample = found[row["patch_id"]]
        for column in ("split", "country", "season", "acquired"):
            assert sample[column] == row[column]
        assert (sample["labels"] is None) == (row["labels"] is None)
        assert set(sample["labels"] or ()) == set(row["labels"] or ())
        assert sample["predicted"] == row["predicted"]
        assert set(sample["outcomes"]) == outcome(row)
    assert found[made.rows[UNSEEN]["patch_id"]]["predicted"] is None


def test_the_nearest_are_those_of_the_ellipsoid(client: TestClient, made: Made) -> None:
    rows = frame(made)
    rows = rows[rows["lon"].notna()]
    lon, lat = float(rows["lon"].iloc[3]) + 0.002, float(rows["lat"].iloc[3]) - 0.001
    n = len(rows)
    bearing, _, metres = pyproj.Geod(ellps="WGS84").inv([lon] * n, [lat] * n, rows["lon"], rows["lat"])
    close = sorted((float(m), str(name)) for m, name in zip(metres, rows["patch_id"], strict=True) if m <= 3900)
    query = {"lon": lon, "lat": lat, "radius_km": 3.9, "limit": 48}
    found = client.get("/api/near", params=query).json()["samples"]
    assert {sample["patch_id"] for sample in found} == {name for _, name in close}
    distances = [m / 1000 for m, _ in close]
    assert [sample["distance_km"] for sample in found] == pytest.approx(distances, rel=0.01, abs=0.005)
    of_name = dict(zip(rows["patch_id"], np.asarray(bearing) % 360, strict=True))
    for sample in found:
        assert sample["bearing_deg"] == pytest.approx(of_name[sample["patch_id"]], abs=1.5)


def test_a_place_far_from_all_has_no_patch(client: TestClient) -> None:
    assert client.get("/api/near", params={"lon": -100, "lat": 10}).json() == {"samples": []}
