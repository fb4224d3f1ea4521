"""How fast a store on object storage is written and read: obstore against fsspec (s3fs), over one server.

    python benchmarks/object_store.py [--parts 10000] [--part-bytes 20000] [--shards 4] [--shard-size 512] [--repeats 3]
                                      [--out benchmarks/results/object_store.json]

Both talk to one moto server, a process on the loopback of this machine, so that its own time is in every row; both ask
for the same objects, in turn within each repeat, and the median repeat counts. "parts" are PUT and GET one after the
other, as workers do; the list is that of a stage's folder; a Zarr shard is one of ten-metre bands, written whole by
zarr-python and read whole.
"""

import argparse
import json
import os
import platform
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

import fsspec  # type: ignore[import-untyped]
import numpy as np
import obstore
import zarr
from obstore.store import S3Store
from zarr.storage import FsspecStore, ObjectStore

BUCKET = "bench"
FEW = 500
"""Parts that are written and read one after the other in a repeat; the rest are there to be listed."""


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    unit: str
    obstore: float
    fsspec: float

    @property
    def ratio(self) -> float:
        """How many times as fast obstore is."""
        return self.obstore / self.fsspec


class Client(Protocol):
    """What is measured."""

    def put(self, key: str, content: bytes) -> None:
        """Write one object."""

    def get(self, key: str) -> bytes:
        """Read one object."""

    def names(self, folder: str) -> int:
        """Count the objects of a folder, from the server."""

    def zarr(self, folder: str) -> ObjectStore[S3Store] | FsspecStore:
        """Return a Zarr store below the bucket."""


class Obstore(Client):
    """Rust's object_store."""

    def __init__(self, endpoint: str) -> None:
        self._options: Any = {"endpoint": endpoint, "client_options": {"allow_http": True}}
        self._store = S3Store(BUCKET, **self._options)

    def put(self, key: str, content: bytes) -> None:
        """See Client."""
        obstore.put(self._store, key, content)

    def get(self, key: str) -> bytes:
        """See Client."""
        return obstore.get(self._store, key).bytes().to_bytes()

    def names(self, folder: str) -> int:
        """See Client."""
        return len(obstore.list_with_delimiter(self._store, folder)["objects"])

    def zarr(self, folder: str) -> ObjectStore[S3Store]:
        """See Client."""
        return ObjectStore(S3Store(BUCKET, prefix=folder, **self._options))


class S3fs(Client):
    """fsspec's S3, over aiobotocore."""

    def __init__(self, endpoint: str) -> None:
        self._options = {"endpoint_url": endpoint, "use_listings_cache": False}
        self._files = fsspec.filesystem("s3", **self._options)

    def put(self, key: str, content: bytes) -> None:
        """See Client."""
        self._files.pipe_file(f"{BUCKET}/{key}", content)

    def get(self, key: str) -> bytes:
        """See Client."""
        return bytes(self._files.cat_file(f"{BUCKET}/{key}"))

    def names(self, folder: str) -> int:
        """See Client."""
        return len(self._files.ls(f"{BUCKET}/{folder}", detail=False))

    def zarr(self, folder: str) -> FsspecStore:
        """See Client."""
        return FsspecStore.from_url(f"s3://{BUCKET}/{folder}", storage_options=dict(self._options))


@contextmanager
def moto_server() -> Iterator[str]:
    """Serve S3 on the loopback while the block runs; return its address."""
    with socket.socket() as chosen:
        chosen.bind(("127.0.0.1", 0))
        port = chosen.getsockname()[1]
    address = f"http://127.0.0.1:{port}"
    with tempfile.TemporaryFile() as log:
        command = [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(port)]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            deadline = time.monotonic() + 60
            while True:
                try:
                    socket.create_connection(("127.0.0.1", port), timeout=1).close()
                    break
                except OSError:
                    if time.monotonic() > deadline or server.poll() is not None:
                        raise
                    time.sleep(0.1)
            os.environ |= {"AWS_ACCESS_KEY_ID": "bench", "AWS_SECRET_ACCESS_KEY": "bench", "AWS_REGION": "us-east-1"}
            fsspec.filesystem("s3", endpoint_url=address).mkdir(BUCKET)
            yield address
        finally:
            server.terminate()
            server.wait(timeout=30)


def median_rates(
    clients: dict[str, Client], repeats: int, amount: float, work: Callable[[Client, str], None]
) -> dict[str, float]:
    """Return each client's amount per second, median over the repeats, which take turns."""
    rates: dict[str, list[float]] = {name: [] for name in clients}
    for _ in range(repeats):
        for name, client in clients.items():
            start = time.perf_counter()
            work(client, name)
            rates[name].append(amount / (time.perf_counter() - start))
    return {name: statistics.median(found) for name, found in rates.items()}


def measure(parts: int, part_bytes: int, shards: int, shard_size: int, repeats: int) -> list[Row]:
    """Return the rows of one run."""
    random = np.random.default_rng(0)
    content = random.bytes(part_bytes)
    pixels = random.integers(0, 4000, (shard_size, 4, 120, 120), dtype=np.uint16)
    few = min(FEW, parts)
    rows = []
    with moto_server() as address:
        clients: dict[str, Client] = {"obstore": Obstore(address), "fsspec": S3fs(address)}
        for i in range(parts):
            clients["obstore"].put(f"stage/part-{i:05d}.parquet", content)

        def put(client: Client, name: str) -> None:
            for i in range(few):
                client.put(f"{name}/part-{i:05d}.parquet", content)

        def get(client: Client, name: str) -> None:
            for i in range(few):
                assert len(client.get(f"{name}/part-{i:05d}.parquet")) == part_bytes

        def names(client: Client, _: str) -> None:
            assert client.names("stage") == parts

        def array(client: Client, name: str, mode: Any) -> zarr.Array[Any]:  # noqa: ANN401  # a Literal of zarr's
            group = zarr.open_group(client.zarr(f"{name}.zarr"), mode=mode)
            if mode == "r":
                found = group["a"]
                assert isinstance(found, zarr.Array)
                return found
            shape = (shards * shard_size, *pixels.shape[1:])
            return group.create_array(
                "a", shape=shape, shards=pixels.shape, chunks=(16, *pixels.shape[1:]), dtype=pixels.dtype
            )

        def write(client: Client, name: str) -> None:
            made = array(client, name, "w")
            for shard in range(shards):
                made[shard * shard_size : (shard + 1) * shard_size] = pixels

        def read(client: Client, name: str) -> None:
            opened = array(client, name, "r")
            for shard in range(shards):
                assert np.asarray(opened[shard * shard_size : (shard + 1) * shard_size]).shape == pixels.shape

        megabytes = shards * pixels.nbytes / 1e6
        for what, unit, amount, work in (
            (f"PUT of parts of {part_bytes} bytes", "1/s", few, put),
            ("GET of these", "1/s", few, get),
            (f"list of {parts} parts", "names/s", parts, names),
            (f"Zarr shards of {pixels.nbytes / 1e6:.0f} MB, write", "MB/s of pixels", megabytes, write),
            ("Zarr shards, read", "MB/s of pixels", megabytes, read),
        ):
            rates = median_rates(clients, repeats, amount, work)
            rows.append(Row(what, unit, rates["obstore"], rates["fsspec"]))
    return rows


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, default=10_000)
    parser.add_argument("--part-bytes", type=int, default=20_000)
    parser.add_argument("--shards", type=int, default=4)
    parser.add_argument("--shard-size", type=int, default=512)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = measure(options.parts, options.part_bytes, options.shards, options.shard_size, options.repeats)
    print(f"{'':44} {'obstore':>10} {'fsspec':>10} {'ratio':>6}")
    for row in rows:
        print(f"{row.what + ', ' + row.unit:44} {row.obstore:>10.1f} {row.fsspec:>10.1f} {row.ratio:>6.2f}")
    if options.out is not None:
        machine = f"{platform.machine()}, {os.cpu_count()} cores"
        result = {"machine": machine, "rows": [asdict(row) | {"ratio": row.ratio} for row in rows]}
        options.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
