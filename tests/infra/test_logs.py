import json
import logging
import pickle
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path

import pytest

from infra import logs
from infra.errors import ConfigError, IncompleteRunError, StoreError
from infra.logs import bound, context, events, fields, logged_run, without_secrets
from tests.infra.log_lines import objects, written

PROJECT = Path(__file__).parents[2]
SECRET = "AbC+secret/1234567890"


def fail(error: Exception) -> None:
    raise error


def test_a_line_tells_when_where_and_what() -> None:
    before = datetime.now(UTC)
    with written() as stream, bound(run="r1"), bound(stage="ingest"):
        with bound(shard=0):
            events.warning('patch %s:\nünder "quotes"', "a", extra=fields(patches=512, seconds=1.5))
        logging.getLogger("tasks.anything").info("between shards")
    first, second = objects(stream)
    assert (
        before.timestamp() - 0.001
        <= datetime.fromisoformat(first.pop("time")).timestamp()
        <= datetime.now(UTC).timestamp()
    )
    assert isinstance(first.pop("pid"), int)
    assert first.pop("node")
    assert first == {
        "level": "warning",
        "logger": "superscene",
        "message": 'patch a:\nünder "quotes"',
        "run": "r1",
        "stage": "ingest",
        "shard": 0,
        "patches": 512,
        "seconds": 1.5,
    }
    assert (second["stage"], second["logger"], second["message"]) == ("ingest", "tasks.anything", "between shards")
    assert "shard" not in second
    assert context() == logs.Context()


def test_lines_for_people_have_the_same_and_hold_together() -> None:
    with written("text") as stream, bound(run="r1", stage="ingest", shard=7):
        events.error("it broke:\nbadly")
    line = r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z ERROR   r1 / ingest / shard 7: it broke:\n    badly\n"
    assert re.fullmatch(line, stream.getvalue())


def test_a_traceback_is_a_field() -> None:
    with written() as stream:
        try:
            fail(ValueError("no answer from https://me:pa55@host/x"))
        except ValueError:
            events.exception("the worker raised an error")
    (line,) = objects(stream)
    assert line["exception"].startswith("Traceback (most recent call last):\n")
    assert line["exception"].endswith("ValueError: no answer from https://***@host/x")


def test_threads_carry_the_context_of_their_process() -> None:
    with written() as stream, bound(run="r1", stage="ingest", shard=3):
        thread = threading.Thread(target=logging.getLogger("infra.prefetch").warning, args=("read ahead",))
        thread.start()
        thread.join()
    (line,) = objects(stream)
    assert (line["run"], line["stage"], line["shard"]) == ("r1", "ingest", 3)


def test_levels_and_other_people_s_loggers() -> None:
    """Of ours, from the level on; of others, warnings alone."""
    with written(level="info") as stream:
        events.debug("no")
        events.info("yes 1")
        logging.getLogger("sr_models.x").info("yes 2")
        logging.getLogger("httpx").info("no")
        logging.getLogger("httpx").warning("yes 3")
    assert [line["message"] for line in objects(stream)] == ["yes 1", "yes 2", "yes 3"]


def test_without_the_variable_nothing_changes(capfd: pytest.CaptureFixture[str]) -> None:
    hook, handlers = sys.excepthook, list(logging.getLogger().handlers)
    logs.configure({"SUPERSCENE_LOG_LEVEL": "DEBUG"})
    with logged_run("r1"):
        events.error("a shard failed")
    assert logs.settings() is None
    assert (sys.excepthook, list(logging.getLogger().handlers)) == (hook, handlers)
    assert capfd.readouterr() == ("", "")


def test_asking_twice_writes_once() -> None:
    with written() as stream:
        logs.configure({"SUPERSCENE_LOG": "json"})
        events.info("once")
    assert len(objects(stream)) == 1


@pytest.mark.parametrize(
    ("asked", "match"),
    [
        ({"SUPERSCENE_LOG": "yaml"}, "SUPERSCENE_LOG is 'yaml': choose json or text"),
        ({"SUPERSCENE_LOG": "json", "SUPERSCENE_LOG_LEVEL": "LOUD"}, "SUPERSCENE_LOG_LEVEL is 'LOUD'"),
    ],
)
def test_what_cannot_be_is_refused(asked: dict[str, str], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        logs.configure(asked)
    assert logs.settings() is None


@pytest.mark.parametrize(
    ("error", "level", "outcome", "words"),
    [
        (None, "info", "complete", "the run ends, complete"),
        (IncompleteRunError("| a | summary |"), "error", "incomplete", "the run ends, incomplete: some shards failed"),
        (StoreError("the disk is full"), "error", "failed", "the run ends, failed: StoreError: the disk is full"),
        (KeyboardInterrupt(), "warning", "stopped", "the run ends, stopped: KeyboardInterrupt"),
    ],
)
def test_a_run_tells_its_outcome(
    monkeypatch: pytest.MonkeyPatch, error: BaseException | None, level: str, outcome: str, words: str
) -> None:
    def go() -> None:
        with logged_run("r1"):
            if error is not None:
                raise error

    monkeypatch.delenv("SUPERSCENE_LOG", raising=False)
    with written() as stream:
        if error is None:
            go()
        else:
            with pytest.raises(type(error)) as caught:
                go()
            assert caught.value is error
    begin, end = objects(stream)
    assert (begin["message"], begin["run"]) == ("the run begins", "r1")
    assert (end["message"], end["run"], end["level"], end["outcome"]) == (words, "r1", level, outcome)


@pytest.mark.parametrize(
    ("text", "clean"),
    [
        (f"key {SECRET}, again {SECRET}", "key ***, again ***"),
        ("https://user:pa55@host:9000/bucket", "https://***@host:9000/bucket"),
        ("https://user:p@ssword@host and s3://k:s@h/b", "https://***@host and s3://***@h/b"),
        ("s3://bucket/a@b is a name", "s3://bucket/a@b is a name"),
        (
            "GET https://h/k?X-Amz-Credential=AKIA%2F1&X-Amz-Date=2&X-Amz-Signature=abc123 failed",
            "GET https://h/k?X-Amz-Credential=***&X-Amz-Date=2&X-Amz-Signature=*** failed",
        ),
        ("https://h/k?X-Goog-Signature=ab12&x=1", "https://h/k?X-Goog-Signature=***&x=1"),
        ("Authorization: Bearer abc.def\nnext line", "Authorization: ***\nnext line"),
        ("{'authorization': 'AWS4-HMAC-SHA256 Credential=A, Signature=b'}", "{'authorization': '***"),
        ("proxy-authorization=Basic YTpi, next", "proxy-authorization=***"),
        ("[(b'authorization', b'Bearer abc.def')]", "[(b'authorization', ***"),
        ("authorization failed: ask for rights", "authorization failed: ask for rights"),
        ("no authorization (status 401)", "no authorization (status 401)"),
        ("shard 3 of true, 16 patches", "shard 3 of true, 16 patches"),
        ("/run/secrets/token is a file", "/run/secrets/token is a file"),
    ],
)
def test_secrets_are_masked(text: str, clean: str) -> None:
    environment = {
        "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_WEB_IDENTITY_TOKEN_FILE": "/run/secrets/token",
        "AWS_SKIP_TOKEN": "true",
        "HOME": "patches",
    }
    assert without_secrets(text, environment) == clean


@pytest.mark.parametrize(
    ("name", "is_secret"),
    [
        ("GOOGLE_SERVICE_ACCOUNT_KEY", True),
        ("AZURE_STORAGE_KEY", True),
        ("KEY", True),
        ("SIGNING_KEYS", True),
        ("api_key2", True),
        ("AWS_ACCESS_KEY_ID", True),
        ("PREFECT_API_KEY", True),
        ("OPENAI_APIKEY", True),
        ("SSL_KEY_PASSPHRASE", True),
        ("azure_storage_sas_token", True),
        ("AWS_CONTAINER_CREDENTIALS_RELATIVE_URI", True),
        ("TLS_PRIVATE_KEY_FILE", False),
        ("AWS_SHARED_CREDENTIALS_FILE", False),
        ("KEYBOARD", False),
        ("MONKEY", False),
        ("JAVA_KEYSTORE", False),
    ],
)
def test_names_tell_which_values_are_secret(name: str, *, is_secret: bool) -> None:
    assert without_secrets(f"it was {SECRET}!", {name: SECRET}) == f"it was {'***' if is_secret else SECRET}!"


def test_only_values_of_six_characters_or_more_are_masked() -> None:
    secrets = {"A_PASSWORD": "12345", "B_PASSWORD": "654321"}
    assert without_secrets("12345 and 654321", secrets) == "12345 and ***"


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_line_has_a_secret_of_the_environment(monkeypatch: pytest.MonkeyPatch, form: str) -> None:
    secret = 'quote"and\\backslash-1234'
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", secret)
    with written(form) as stream:
        events.warning("refused: %s", secret)
        try:
            fail(ValueError(secret))
        except ValueError:
            events.exception("the worker raised an error")
    assert secret not in stream.getvalue()
    assert json.dumps(secret)[1:-1] not in stream.getvalue()
    assert "1234" not in stream.getvalue()
    assert "***" in stream.getvalue()


def test_a_worker_s_lines_can_be_pickled_and_are_written_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_KEY", SECRET)
    with written() as here:
        logs.collect(logs.LogSettings("json", logging.INFO))
        with bound(run="r1", stage="predict", shard=4):
            try:
                fail(RuntimeError(SECRET))
            except RuntimeError:
                events.warning("odd %s", threading.Lock(), exc_info=True)  # cannot be pickled
        taken = logs.take()
        assert logs.take() == ()
    with written() as driver, bound(run="r1", stage="another"):
        logs.replay(pickle.loads(pickle.dumps(taken)))
    (there,), (line,) = objects(here), objects(driver)
    assert line == there, "the worker's own file has the same"
    assert (line["stage"], line["shard"]) == ("predict", 4)
    assert line["exception"].endswith("RuntimeError: ***")
    assert SECRET not in repr([record.__dict__ for record in taken])


def test_a_worker_that_says_too_much_is_cut_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(logs, "_MOST_LINES", 3)
    with written():
        logs.collect(logs.LogSettings("json", logging.INFO))
        for i in range(10):
            events.info("%d", i)
        told = [record.getMessage() for record in logs.take()]
        assert told == ["0", "1", "2", "7 further lines of this shard are in Ray's file of the worker"]
        events.info("the next shard")
        assert [record.getMessage() for record in logs.take()] == ["the next shard"]


def test_an_error_that_nobody_catches_is_a_line_too() -> None:
    code = "from infra import logs; logs.configure(); 1 / 0"
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=PROJECT,
        env={"SUPERSCENE_LOG": "json", "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    (line,) = [json.loads(text) for text in done.stderr.splitlines()]
    assert line["level"] == "critical"
    assert line["exception"].endswith("ZeroDivisionError: division by zero")
