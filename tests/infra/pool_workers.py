"""Workers for the tests of the pool; actors import them."""

import os
import resource
import signal
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from uuid import uuid4

from infra.errors import BadPatchError, StoreError, TransientError


class Freeing:
    """Asks for 100 MiB, fills them and frees them, and tells how many pages the system had to find."""

    def run(self, item: int) -> int:
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        assert len(b"x" * (100 << 20)) > item
        return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


class OddError(Exception):
    """Cannot be unpickled: its constructor takes other arguments than it passes on."""

    def __init__(self, one: str, two: str) -> None:
        super().__init__(one + two)


def attempts(folder: Path, item: int) -> int:
    """How often an item was begun, as the workers themselves noted it."""
    return len(list(folder.glob(f"begun-{item}-*")))


def kill_this_process() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def end(how: str) -> None:
    if how == "kill":
        kill_this_process()
    if how == "exit":
        os._exit(3)
    errors: dict[str, Exception] = {
        "error": ValueError("line one\nline two"),
        "odd": OddError("cannot be ", "unpickled"),
        "bad patch": BadPatchError("S2A/x_B02.tif", "unreadable", "the file is cut short"),
        "transient": TransientError("the request timed out"),
        "full": StoreError("cannot write /store: the disk is full"),
    }
    raise errors[how]


class Scripted:
    """Ends its first runs of an item as told, and then does it: the result is the item's square."""

    def __init__(self, folder: Path, ends: Mapping[int, Sequence[str]] | None = None) -> None:
        self.folder = folder
        self.ends = ends or {}

    def run(self, item: int) -> int:
        before = attempts(self.folder, item)
        (self.folder / f"begun-{item}-{uuid4().hex}").touch()
        ends = self.ends.get(item, ())
        if before < len(ends):
            end(ends[before])
        return item * item


class Sleeping:
    """Takes its time."""

    def __init__(self, seconds: float) -> None:
        self.seconds = seconds

    def run(self, item: int) -> int:
        time.sleep(self.seconds)
        return item


class Remembering:
    """Tells its process, its name, and what it ran before."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.seen: list[int] = []

    def run(self, item: int) -> tuple[int, str, list[int]]:
        self.seen.append(item)
        return os.getpid(), self.name, list(self.seen)


class Threads:
    """Tells with how many threads torch computes."""

    def __init__(self) -> None:
        import torch

        self.torch = torch

    def run(self, item: int) -> int:
        return int(self.torch.get_num_threads())


class Environment:
    """Answers with the environment that its constructor saw."""

    def __init__(self) -> None:
        self._seen = dict(os.environ)

    def run(self, item: int) -> dict[str, str]:
        return self._seen


class Unbuildable:
    """Its constructor fails as told; every call of it is noted."""

    def __init__(self, folder: Path, how: str, times: int) -> None:
        begun = attempts(folder, 0)
        (folder / f"begun-0-{uuid4().hex}").touch()
        if begun < times:
            end(how)

    def run(self, item: int) -> int:
        return item


class Slow:
    """Ends no item before there is a file with its node's name, so that a test can do something meanwhile."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def run(self, item: int) -> str:
        import time

        import ray

        node = str(ray.get_runtime_context().get_node_id())
        (self.folder / f"begun-{item}-{node}").touch()
        while not (self.folder / f"go-{node}").exists():
            time.sleep(0.05)
        return node
