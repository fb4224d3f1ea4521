"""Nothing outside of the store is read, and no query of any kind breaks the service."""

import re
import shutil
from contextlib import suppress
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import schemathesis
from fastapi import FastAPI
from hypothesis import HealthCheck, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.core.result import Ok
from starlette.testclient import TestClient

from explorer import app as explorer_app
from infra.storage import StorePaths
from tests.explorer.conftest import client_of, of_patch
from tests.explorer.store import NASTY, Made

HOST = {"Host": "localhost"}

SECRET = "the content of a file that nobody may read"

OUTSIDE = (
    "../secret.txt",
    "../../secret.txt",
    "..\\secret.txt",
    "....//secret.txt",
    "%2e%2e/secret.txt",
    "..%252fsecret.txt",
    "/etc/passwd",
    "file:///etc/passwd",
    "secret.txt\x00",
    "tables/patches/data-00000.parquet",
    "archive.zarr/zarr.json",
)


@pytest.mark.parametrize("name", OUTSIDE)
def test_no_name_leads_to_a_file(client: TestClient, made: Made, name: str) -> None:
    for folder in (made.paths.root, made.paths.root.parent, Path(explorer_app.__file__).parent):
        secret = folder / "secret.txt"
        secret.write_text(SECRET)
    whole, raw = quote(name, safe=""), quote(name, safe="/%")
    patch = made.rows[0]["patch_id"]
    try:
        for path in (
            *(f"/static/{text}" for text in (whole, raw)),
            *(f"/{text}" for text in (whole, raw)),
            *(
                f"/api/patch{what}?patch_id={text}"
                for text in (whole, raw)
                for what in ("", "/true-colour.png", "/neighbours")
            ),
            *(f"/api/patch/{text}?patch_id={whole}" for text in (whole, raw)),
            *(of_patch(patch, what, branch=name) for what in ("/branch", "/branch.png")),
        ):
            answer = client.get(path)
            assert 400 <= answer.status_code < 500, path
            assert SECRET not in answer.text
            assert "root:" not in answer.text
            assert answer.json()["detail"]
    finally:
        Path(explorer_app.__file__).with_name("secret.txt").unlink()


def test_static_files_are_the_package_s_and_nothing_is_listed(client: TestClient) -> None:
    static = Path(explorer_app.__file__).parent / "static"
    for file in static.iterdir():
        assert client.get(f"/static/{file.name}").content == file.read_bytes()
    assert client.get("/").content == (static / "index.html").read_bytes()
    for path in ("/static/", "/static", "/static/../app.py", "/static/%2e%2e/app.py", "/static/..%2fapp.py"):
        assert client.get(path, follow_redirects=False).status_code in {404, 405}


@pytest.mark.parametrize("text", [NASTY, "' OR 1=1 --", "x'); COPY patches TO '/tmp/x'; --", "SELECT * FROM patches"])
def test_sql_is_text(client: TestClient, text: str) -> None:
    """There is no SQL behind the service: as a part of a name it fits what contains it, elsewhere it is no name."""
    found = client.get("/api/samples", params={"q": text}).json()
    assert [sample["patch_id"] for sample in found["samples"]] == ([NASTY] if text == NASTY else [])
    for column in ("label", "country", "season", "split", "branch"):
        assert client.get("/api/samples", params={column: text}).status_code == 422
    assert client.get(of_patch(text)).status_code == (200 if text == NASTY else 404)


def test_the_store_stays_as_it_is(client: TestClient, made: Made) -> None:
    before = {path: path.stat().st_mtime_ns for path in made.paths.root.rglob("*")}
    for path in ("/api/store", "/api/samples", "/api/centres", of_patch(made.rows[0]["patch_id"])):
        assert client.get(path).status_code == 200
    assert {path: path.stat().st_mtime_ns for path in made.paths.root.rglob("*")} == before


def test_tables_that_vanish_meanwhile_are_told_in_a_sentence(made: Made, tmp_path: Path) -> None:
    shutil.copytree(made.paths.root, tmp_path / "store")
    client = client_of(explorer_app.make_app(tmp_path / "store"))
    shutil.rmtree(StorePaths(tmp_path / "store").table("predictions"))
    answer = client.get("/api/samples", params={"branch": made.branches["none"], "outcome": "right"})
    assert answer.status_code == 503
    assert "the store cannot be read" in answer.json()["detail"]


def test_no_query_breaks_the_service(app: FastAPI, made: Made) -> None:
    """Queries that the service's own description allows and forbids; patch ids and branches of the store among them."""
    schema = schemathesis.openapi.from_asgi("/api/openapi.json", app, headers=HOST)
    known = {"patch_id": made.rows[0]["patch_id"], "branch": made.branches["srresnet"]}
    asked: set[str] = set()
    few = settings(max_examples=8, deadline=None, database=None, derandomize=True, suppress_health_check=[*HealthCheck])

    def ask(case: "schemathesis.Case[Any]") -> None:
        asked.add(case.path)
        for values in (case.path_parameters, case.query):
            for name in set(values or ()) & known.keys():
                if values is not None and len(str(values)) % 2:  # half of the time something that there is
                    values[name] = known[name]
        answer = case.call(headers=HOST)
        assert answer.status_code < 500, (case.path, case.path_parameters, case.query)
        if answer.status_code != 200:
            assert answer.json()["detail"]

    for found in schema.get_all_operations():
        assert isinstance(found, Ok)
        operation = found.ok()
        for mode in GenerationMode:
            with suppress(Unsatisfiable):  # an operation without parameters has no forbidden query
                few(given(operation.as_strategy(generation_mode=mode))(ask))()
    assert len(asked) >= 15


def test_the_page_asks_for_all_its_modules_at_once(client: TestClient) -> None:
    """A module that another one names is else asked for only when that one is there."""
    preloaded = re.findall(r'<link rel="modulepreload" href="/static/(.*?)">', client.get("/").text)
    assert preloaded == sorted({path.name for path in explorer_app.STATIC.glob("*.js")} - {"main.js"})
