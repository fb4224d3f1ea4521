import threading
import time
import weakref
from collections.abc import Iterator

import pytest

from infra.prefetch import prefetch, prefetch_groups


def threads() -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name == "prefetch"]


@pytest.fixture(autouse=True)
def _no_thread_is_left() -> Iterator[None]:
    assert not threads()
    yield
    assert not threads()


def settled(made: list[int], expected: int) -> list[int]:
    """What was made, once nothing more is; a busy machine may take long to make what is expected."""
    given_up = time.monotonic() + 60
    while len(made) < expected and time.monotonic() < given_up:
        time.sleep(0.005)
    time.sleep(0.05)
    return made


class Gone(Exception):  # noqa: N818  # not an error
    """What stops the making in the tests."""


@pytest.mark.parametrize("depth", [1, 3, 100])
def test_all_items_come_in_their_order_from_another_thread(depth: int) -> None:
    makers: set[str] = set()

    def make() -> Iterator[int]:
        for i in range(20):
            makers.add(threading.current_thread().name)
            yield i

    assert list(prefetch(make(), depth)) == list(range(20))
    assert list(prefetch(range(20), depth)) == list(range(20))  # any iterable
    assert list(prefetch([], depth)) == []
    assert makers == {"prefetch"}


@pytest.mark.parametrize("depth", [1, 4])
def test_no_more_are_made_than_are_asked_for(depth: int) -> None:
    made: list[int] = []

    def make() -> Iterator[int]:
        for i in range(50):
            made.append(i)
            yield i

    ahead = prefetch(make(), depth)
    time.sleep(0.05)
    assert made == []  # nothing before the first is asked for
    for i in range(3):
        assert next(ahead) == i
        expected = i + 1 + depth + 1  # used, waiting, and one that finds no room
        assert len(settled(made, expected)) == expected
    ahead.close()


def test_an_exception_arrives_in_the_place_of_its_item() -> None:
    def make() -> Iterator[int]:
        yield 0
        yield 1
        raise Gone("the third")

    ahead = prefetch(make(), 5)
    assert [next(ahead), next(ahead)] == [0, 1]
    with pytest.raises(Gone, match="the third"):
        next(ahead)
    assert list(ahead) == []


@pytest.mark.parametrize("taken", [1, 3])
def test_closing_ends_the_thread_and_runs_what_the_items_have_to_end(taken: int) -> None:
    ended: list[str] = []

    def inner() -> Iterator[int]:
        try:
            yield from range(1000)
        finally:
            ended.append(threading.current_thread().name)

    items = inner()  # kept: nothing may hang on its being collected
    ahead = prefetch(items, 2)
    for _ in range(taken):
        next(ahead)
    ahead.close()
    assert ended == ["prefetch"]
    assert not threads()
    assert list(items) == []


def test_one_within_another_ends_with_it() -> None:
    def outer() -> Iterator[int]:
        within = prefetch(iter(range(1000)), 1)
        try:
            yield from within
        finally:
            within.close()

    ahead = prefetch(outer(), 1)
    assert next(ahead) == 0
    assert len(threads()) == 2
    ahead.close()
    assert not threads()


def test_a_used_item_is_let_go() -> None:
    """At most depth + 2 items are alive: in use, waiting, in the making."""

    class Item:
        pass

    alive: weakref.WeakSet[Item] = weakref.WeakSet()
    most = 0

    def make() -> Iterator[Item]:
        nonlocal most
        for _ in range(20):
            item = Item()
            alive.add(item)
            most = max(most, len(alive))
            yield item
            del item

    for item in prefetch(make(), 1):
        time.sleep(0.01)
        assert item in alive
        del item  # as who wants no more alive has to, before the next one is asked for
    assert most == 3


def test_groups_are_what_became_ready_meanwhile() -> None:
    gate = threading.Event()

    def make() -> Iterator[int]:
        yield 0
        gate.wait()
        yield from range(1, 8)
        raise Gone("the ninth")

    groups = prefetch_groups(make(), depth=20, most=5)
    assert next(groups) == [0]
    gate.set()
    (thread,) = threads()
    thread.join(60)
    assert [next(groups), next(groups)] == [[1, 2, 3, 4, 5], [6, 7]]
    with pytest.raises(Gone, match="the ninth"):
        next(groups)


def test_a_group_comes_before_the_error_behind_it() -> None:
    def make() -> Iterator[int]:
        yield from (1, 2)
        raise Gone

    found = []

    def use() -> None:
        for group in prefetch_groups(make(), depth=3, most=3):
            found.extend(group)

    with pytest.raises(Gone):
        use()
    assert found == [1, 2]
