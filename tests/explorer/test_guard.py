"""Who is answered, and with which headers."""

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from explorer.app import make_app
from explorer.guard import check_basemap
from infra.errors import ConfigError
from tests.explorer.store import Made

PATHS = ("/", "/static/main.js", "/api/store", "/api/samples", "/api/patch?patch_id=none", "/none", "/api/openapi.json")


@pytest.mark.parametrize("path", PATHS)
def test_every_answer_has_the_headers(client: TestClient, path: str) -> None:
    headers = client.get(path).headers
    policy = dict(part.strip().split(" ", 1) for part in headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'self'"
    assert policy["img-src"] == "'self' data:"
    assert {policy[name] for name in ("object-src", "base-uri", "form-action", "frame-ancestors")} == {"'none'"}
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["x-frame-options"] == "DENY"
    assert headers["cross-origin-resource-policy"] == "same-origin"
    assert "access-control-allow-origin" not in headers


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "LOCALHOST:8000", "127.0.0.1:65535"])
def test_this_machine_is_answered(client: TestClient, host: str) -> None:
    assert client.get("/api/store", headers={"host": host}).status_code == 200


FOREIGN = """
    evil.example evil.example:8000 localhost.evil.example 127.0.0.1.evil.example 127.0.0.1:8000@evil.example localhost:
    localhost:x 0.0.0.0 [::1]:8000 127.0.0.2
"""


@pytest.mark.parametrize("host", ["", "localhost\tx", *FOREIGN.split()])
def test_a_page_under_another_name_is_refused(client: TestClient, host: str) -> None:
    """What DNS rebinding sends: a name of its own that leads to 127.0.0.1."""
    for path in PATHS:
        answer = client.get(path, headers={"host": host})
        assert answer.status_code == 421
        assert "localhost" in answer.json()["detail"]
        assert answer.headers["x-frame-options"] == "DENY"


@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "PATCH", "OPTIONS", "HEAD", "TRACE"])
def test_nothing_but_get_is_answered(client: TestClient, method: str) -> None:
    for path in PATHS:
        answer = client.request(method, path)
        assert answer.status_code == 405
        assert answer.headers["allow"] == "GET"


def test_a_query_without_end_is_refused(client: TestClient) -> None:
    answer = client.get("/api/samples?q=" + "x" * 20_000)
    assert answer.status_code == 414
    assert "longer than" in answer.json()["detail"]


def test_a_basemap_is_the_one_stranger_and_only_on_request(made: Made) -> None:
    template = "https://tiles.example.org/{z}/{x}/{y}.png"
    client = TestClient(make_app(made.paths.root, template), base_url="http://localhost")
    answer = client.get("/api/store")
    assert answer.json()["basemap"] == template
    policy = answer.headers["content-security-policy"]
    assert "img-src 'self' data: https://tiles.example.org;" in policy
    assert policy.startswith("default-src 'self';")


@pytest.mark.parametrize(
    "template",
    [
        "tiles/{z}/{x}/{y}.png",
        "file:///etc/{z}{x}{y}",
        "https://t.example/{z}/{x}.png",
        "javascript:{z}{x}{y}",
        "https://t.example; script-src *;/{z}/{x}/{y}",
        "https://t.example /{z}/{x}/{y}",
        "https://u:p@t.example/{z}/{x}/{y}",
    ],
)
def test_a_basemap_that_is_none_is_refused(template: str) -> None:
    with pytest.raises(ConfigError, match="--basemap"):
        check_basemap(template)


def test_the_documentation_pages_that_would_load_scripts_from_elsewhere_are_off(app: FastAPI) -> None:
    assert {"/docs", "/redoc"}.isdisjoint({getattr(route, "path", "") for route in app.routes})
