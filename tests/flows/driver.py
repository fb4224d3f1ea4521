"""The command line again and again in one process, for tests: it imports everything once, and keeps one Ray.

    python -m tests.flows.driver

Each line of its input is a command, as JSON: its environment, the words after `superscene`, and the files that take
what is said on standard output and on standard error. Each line of its output is an exit code.
"""

import json
import os
import sys
import traceback
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path
from unittest import mock

from flows.cli import main
from infra.ray_cluster import cluster


def kept(stack: ExitStack) -> Callable[[], AbstractContextManager[None]]:
    """Return what stands for `cluster`: it starts Ray once, and leaves it when the stack ends."""
    started = False

    @contextmanager
    def of_all_runs() -> Iterator[None]:
        nonlocal started
        if os.environ.get("RAY_ADDRESS"):
            with cluster():
                yield
            return
        if not started:
            stack.enter_context(cluster())
            started = True
        yield

    return of_all_runs


def run(environment: dict[str, str], words: list[str], *outputs: str) -> int:
    """Run one command, what it says to files, and return its exit code; Ray's workers have the first environment."""
    before = [os.dup(1), os.dup(2)]
    for descriptor, path in enumerate(outputs, start=1):
        with Path(path).open("wb") as file:
            os.dup2(file.fileno(), descriptor)
    try:
        argv = ["superscene", *words]
        with mock.patch.object(sys, "argv", argv), mock.patch.dict(os.environ, environment, clear=True):
            main()
    except SystemExit as end:
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
        return end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:  # noqa: BLE001  # as the interpreter would end
        traceback.print_exc()
        return 1
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        for descriptor, its_own in enumerate(before, start=1):
            os.dup2(its_own, descriptor)
            os.close(its_own)
    return 0


if __name__ == "__main__":
    with ExitStack() as ended:
        clusters = kept(ended)
        for name in ("flows.archive.cluster", "flows.train_sr.cluster"):
            ended.enter_context(mock.patch(name, clusters))
        print(0, flush=True)  # ready
        for line in sys.stdin:
            print(run(*json.loads(line)), flush=True)
