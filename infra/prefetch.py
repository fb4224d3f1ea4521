"""Making items in a thread, so that the next are ready while the last are used."""

import queue
import threading
from collections.abc import Generator, Iterable
from contextlib import closing
from typing import Final

_POLL_SECONDS = 0.1
_STOP_SECONDS = 10.0  # that an item in the making may take to end; one that waits for a dead line is left to the system


class _End:
    """After the last item, or in place of one that could not be made."""

    def __init__(self, error: BaseException | None) -> None:
        self.error: Final = error


def prefetch[T](items: Iterable[T], depth: int) -> Generator[T]:
    """Yield items in their order, made in a thread at most `depth` ahead; all else is as in `prefetch_groups`."""
    with closing(prefetch_groups(items, depth, most=1)) as groups:
        for (item,) in groups:
            yield item
            del item


def prefetch_groups[T](items: Iterable[T], depth: int, most: int) -> Generator[list[T]]:
    """Yield whatever items are ready, at least one at a time, in their order, made in a thread ahead of their use.

    The thread begins when the first item is asked for. It ends when the last item is made, when making one fails, whose
    exception is raised here in its place, or when this generator is closed, or with the process.

    Args:
        items: Gone through in the thread; a generator is closed there at the end.
        depth: Items that wait to be used, at most, >= 1; one more is in the making.
        most: Items in a group, at most.
    """
    ready: queue.Queue[T | _End] = queue.Queue(maxsize=depth)
    stopped = threading.Event()

    def put(item: T | _End) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=_POLL_SECONDS)
            except queue.Full:
                continue
            return True
        return False

    def make() -> None:
        error: BaseException | None = None
        try:
            if isinstance(items, Generator):
                with closing(items):
                    hand_over()
            else:
                hand_over()
        except BaseException as failure:  # noqa: BLE001  # raised again in the thread that waits for the item
            error = failure
        put(_End(error))

    def hand_over() -> None:
        for item in items:
            if not put(item):
                return

    thread = threading.Thread(target=make, name="prefetch", daemon=True)
    thread.start()
    try:
        item = ready.get()
        while not isinstance(item, _End):
            group = [item]
            while len(group) < most:
                try:
                    item = ready.get_nowait()
                except queue.Empty:
                    break
                if isinstance(item, _End):
                    break
                group.append(item)
            yield group
            if not isinstance(item, _End):
                del group, item  # before the next one lets another be made
                item = ready.get()
        if item.error is not None:
            raise item.error
    finally:
        stopped.set()
        thread.join(_STOP_SECONDS)
