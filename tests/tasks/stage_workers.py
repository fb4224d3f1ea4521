"""A worker for the tests of stages; actors import it."""

import os
import signal
from collections.abc import Mapping

import pyarrow as pa

from infra.errors import StoreError
from infra.parts import StageParts
from tasks.stage import ShardCount


class PartWriter:
    """Writes one row a shard, and says that it had as many patches as its number; or fails as told."""

    def __init__(self, parts: StageParts, failing: Mapping[int, str]) -> None:
        self.parts, self.failing = parts, failing

    def run(self, item: int) -> ShardCount:
        how = self.failing.get(item)
        if how == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if how == "full":
            raise StoreError("cannot write /store: the disk is full")
        if how == "error":
            raise ValueError(f"shard {item} is odd")
        self.parts.write(item, pa.table({"shard": [item], "pid": [os.getpid()]}))
        return ShardCount(patches=item)
