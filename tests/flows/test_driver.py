"""The driver of the flows' tests keeps step: an answer is that of the command it was asked for."""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.flows.stores import Driver, DriverError

STAND_IN = """
import json, os, subprocess, sys, time
print(0, flush=True)
for line in sys.stdin:
    _, (word, *rest), out, err = json.loads(line)
    if word == "hang":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open(rest[0], "w").write(str(child.pid))
        time.sleep(60)
    if word == "die":
        os._exit(9)
    open(out, "w").write(word)
    print("what?" if word == "babble" else rest[0], flush=True)
    if word == "last":
        os._exit(0)
"""


@pytest.fixture
def driver(tmp_path: Path) -> Iterator[Driver]:
    driver = Driver(tmp_path, [sys.executable, "-S", "-c", STAND_IN])
    yield driver
    driver.end()


def assert_answers(driver: Driver) -> None:
    for word, code in (("one", 0), ("two", 3)):
        result = driver.run([word, str(code)], 20)
        assert (result.stdout, result.stderr, result.returncode) == (word, "", code)


def test_each_command_has_its_own_answer(driver: Driver) -> None:
    assert_answers(driver)


def test_after_a_timeout_another_driver_answers(driver: Driver, tmp_path: Path) -> None:
    """The first one's late answer would be that of the next command; its children would work on."""
    assert_answers(driver)
    with pytest.raises(subprocess.TimeoutExpired):
        driver.run(["hang", str(tmp_path / "pid")], 1)
    child = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE
    assert_answers(driver)


@pytest.mark.parametrize(("word", "said"), [("die", "ended within"), ("babble", r"answered 'what\?")])
def test_a_driver_that_is_of_no_use_is_replaced(driver: Driver, word: str, said: str) -> None:
    with pytest.raises(DriverError, match=said) as caught:
        driver.run([word], 20)
    assert f"{word} said: " in caught.value.__notes__[0]
    assert_answers(driver)


def test_one_that_died_between_two_commands(driver: Driver) -> None:
    assert driver.run(["last", "0"], 20).returncode == 0
    with pytest.raises(DriverError, match="the driver ended"):
        driver.run(["one", "0"], 20)
    assert_answers(driver)
