"""Fixtures that every test may use."""

import atexit
import gc
import os
import re
from collections.abc import Generator, Iterator
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, settings
from xdist.remote import Producer  # type: ignore[import-untyped]
from xdist.scheduler import LoadFileScheduling  # type: ignore[import-untyped]

from infra import object_store
from infra.object_store import ObjectPath, object_path
from tests.infra.s3_server import BUCKET, S3Server, s3_server

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# Tests run side by side: threads that wait for each other make a small network fifty times slower.
torch.set_num_threads(1)

# How long an example takes says how busy the machine is. The rest is as hypothesis has it, here or under CI.
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Generator[None, object, object]:
    """Look for no garbage while a million objects are made that all stay (six seconds a process), nor among them."""
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        atexit.register(gc.unfreeze)  # libraries in C++ complain of what outlives the interpreter
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Put tests/flows first: it is the longest piece of work for one process, and must not be left to the end."""
    items.sort(key=lambda item: not item.nodeid.startswith("tests/flows/"))


class _FlowsTogether(LoadFileScheduling):  # type: ignore[misc]
    """A file at a time for each process, but all of tests/flows for one: they share a server, Ray and a store."""

    def _split_scope(self, nodeid: str) -> str:
        return "tests/flows" if nodeid.startswith("tests/flows/") else nodeid.partition("::")[0]


def pytest_xdist_make_scheduler(config: pytest.Config, log: Producer) -> LoadFileScheduling | None:
    """Where files are dealt out, `--dist loadfile`; None: as the option says."""
    return _FlowsTogether(config, log) if config.getoption("dist") == "loadfile" else None


@pytest.fixture(scope="session", autouse=True)
def _own_weights_store(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """An empty weights store, for the processes that tests start too: what the user has stored changes no test."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("SUPERSCENE_WEIGHTS", str(tmp_path_factory.mktemp("weights-store")))
        patch.delenv("SUPERSCENE_OFFLINE", raising=False)
        yield


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of real data and weights, where it is at hand."""
    folder = os.environ.get("SUPERSCENE_DATA")
    if not folder:
        pytest.skip("SUPERSCENE_DATA is not set: real data not at hand")
    return Path(folder)


@pytest.fixture(scope="session")
def _s3() -> Iterator[S3Server]:
    with s3_server() as server:
        yield server


@pytest.fixture
def s3(_s3: S3Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[S3Server]:
    """An S3 server that this process and those it starts find in their environment; waits are short."""
    for name, value in _s3.environment().items():
        monkeypatch.setenv(name, value)
    backoff = {"init_backoff": timedelta(milliseconds=5), "max_backoff": timedelta(milliseconds=20), "base": 2}
    monkeypatch.setattr(object_store, "RETRY", {"max_retries": 4, "backoff": backoff})
    monkeypatch.setattr(object_store, "PAUSES", (0.01, 0.01))
    limits = {"timeout": timedelta(seconds=60), "read_timeout": timedelta(seconds=30)}
    monkeypatch.setattr(object_store, "CLIENT", limits)
    object_store.bucket.cache_clear()
    _s3.faults.clear()
    _s3.requests.clear()
    yield _s3
    _s3.faults.clear()
    _s3.page = None
    object_store.bucket.cache_clear()


@pytest.fixture
def s3_folder(s3: S3Server, request: pytest.FixtureRequest, tmp_path: Path) -> ObjectPath:
    """An empty folder of this test on object storage."""
    s3.requests.clear()
    name = re.sub(r"[^A-Za-z0-9_]", "-", request.node.name)
    return object_path(f"s3://{BUCKET}/{name}/{tmp_path.name}")


@pytest.fixture(scope="module")
def browser() -> Iterator["Browser"]:
    """The system's Chromium, for one module."""
    from tests.chromium import chromium

    with chromium() as opened:
        yield opened
