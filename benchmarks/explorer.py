"""How fast the explorer answers over BigEarthNet's size: each of its endpoints, whole pages, and plain DuckDB beside.

    python benchmarks/explorer.py [--patches 549488] [--requests 60] [--loads 8] [--scratch FOLDER]
                                  [--out benchmarks/results/explorer.json]

The patches are those of BigEarthNet v2's two metadata files below SUPERSCENE_DATA, else generated ones. Their names,
labels, splits and countries are real; their places are made of tile and number in the name, to within a tile's margin.
Predictions of two branches (a network on `none` and on `srresnet`) and the reliability of one, 19 decisions a patch,
are synthetic; so are the pixels of one shard, and two methods' maps of it. Tables are written as a run writes them
(`benchmarks/explorer_store.py`). The server is a process of its own, asked over HTTP on a kept connection, one request
after the other.

- endpoint: every request has other filters or another patch than the one before; the first of each stands by itself.
- page: by Chromium, where there is one, from the click or the address until names or pictures stand on the page.
- peer: the filters of `samples, filtered` by DuckDB over the same Parquet file, on all cores, by DuckDB's own table in
  memory, and by pandas over a frame in memory: how many fit, and the names of a page.

The goal is 300 ms. `start` is the process from its beginning to its first answer; `all branches read` to when the
columns of both branches, which are read meanwhile, are in memory, and measuring begins. Memory is the server's resident
set.
"""

import argparse
import http.client
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from urllib.parse import quote, urlencode

import duckdb
import numpy as np
import pandas as pd
import pyarrow.compute as pc
import pyarrow.parquet as pq

sys.path.insert(0, str(Path(__file__).parents[1]))
from benchmarks.explorer_store import SHARD, WITH_SR, make_store
from explorer.server import serve
from infra.bigearthnet.classes import NAMES
from infra.storage import StorePaths

GOAL_MS = 300
ALL = 549_488
PAGE = 48

type Query = list[tuple[str, str | float | int]]


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table."""

    what: str
    kind: str
    """endpoint, page or peer."""
    requests: int
    first_ms: float
    """Of the first request, which is not among the others."""
    median_ms: float
    p95_ms: float
    max_ms: float
    kilobytes: float
    """Of the answers, the mean."""


class Server:
    """The explorer in a process of its own."""

    def __init__(self, store: Path) -> None:
        self._began = time.perf_counter()
        command = [sys.executable, __file__, "--serve", str(store)]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        self.address = self._process.stdout.readline().strip()
        host, port = self.address.removeprefix("http://").rstrip("/").split(":")
        self._connection = http.client.HTTPConnection(host, int(port), timeout=120)
        self.store = json.loads(self.get("/api/store"))
        self.start_seconds = time.perf_counter() - self._began
        while not all(branch["is_read"] for branch in json.loads(self.get("/api/store"))["branches"]):
            time.sleep(0.05)
        self.warm_seconds = time.perf_counter() - self._began

    def get(self, path: str, query: Query = []) -> bytes:  # noqa: B006  # it is not changed
        """Return an answer's body."""
        self._connection.request("GET", f"{path}?{urlencode(query)}" if query else path)
        answer = self._connection.getresponse()
        body = answer.read()
        assert answer.status == 200, (path, query, answer.status, body[:300])
        return body

    @property
    def resident_mb(self) -> float:
        """Memory that the process holds now."""
        text = Path(f"/proc/{self._process.pid}/status").read_text(encoding="ascii")
        (found,) = re.findall(r"VmRSS:\s+(\d+) kB", text)
        return int(found) * 1024 / 1e6

    def reconnect(self) -> None:
        """Begin a new connection with the next request."""
        self._connection.close()

    def close(self) -> None:
        """End the process."""
        self._connection.close()
        self._process.terminate()
        self._process.wait(30)
        assert self._process.stdout is not None
        self._process.stdout.close()


class Asked:
    """Queries that differ from each other, the same in every run."""

    def __init__(self, store: dict[str, object], patches: list[str], branches: list[str], seed: int) -> None:
        self._store, self._patches, self._branches = store, patches, branches
        self._rng = np.random.default_rng(seed)

    def one(self, names: Sequence[str]) -> str:
        """Return a name at random."""
        return str(names[int(self._rng.integers(len(names)))])

    def filters(self) -> Query:
        """Return filters of the columns of tables/patches."""
        labels = self._rng.choice(len(NAMES), int(self._rng.integers(1, 4)), replace=False)
        query: Query = [("label", NAMES[i]) for i in labels]
        query += [(name, self.one(self._store[name])) for name in ("country", "season") if self._rng.random() < 0.7]  # type: ignore[arg-type]
        return [*query, ("split", self.one(("train", "validation", "test")))]

    def text(self) -> Query:
        """Return a part of a name."""
        patch = self.one(self._patches)
        first = int(self._rng.integers(len(patch) - 8))
        return [("q", patch[first : first + 8].lower())]

    def outcome(self) -> Query:
        """Return filters by how a branch did."""
        outcome = self.one(("right", "wrong", "missed", "extra"))
        return [*self.filters(), ("branch", self.one(self._branches)), ("outcome", outcome)]

    def reliability(self) -> Query:
        """Return filters by reliability."""
        return [("branch", self._branches[0]), ("reliability_max", round(0.6 + 0.1 * self._rng.random(), 4))]

    def box(self) -> Query:
        """Return filters and a part of the map of a tenth of a degree."""
        lon, lat = self._rng.uniform(-9, 25), self._rng.uniform(38, 66)
        box: Query = [("west", lon), ("south", lat), ("east", lon + 0.3), ("north", lat + 0.2)]
        return [*self.filters(), *box]

    def patch(self) -> Query:
        """Return the query of a patch."""
        return [("patch_id", self.one(self._patches))]


def endpoints(server: Server, paths: StorePaths, requests: int) -> list[Row]:
    """Measure every endpoint."""
    columns = pq.read_table(paths.table("patches"), columns=["patch_id", "shard", "row"]).to_pandas()
    here = columns[(columns["shard"] == 0) & (columns["row"] < min(SHARD, WITH_SR))]["patch_id"].tolist()
    branches = [branch["branch"] for branch in server.store["branches"]]
    last = Asked(server.store, here, branches, 1)
    whole = columns["patch_id"].tolist()
    names = Asked(server.store, whole, branches, 2)
    of = [("branch", branches[1])]
    measured: list[tuple[str, Callable[[], tuple[str, Query]]]] = [
        ("store", lambda: ("/api/store", [])),
        ("samples, no filter", lambda: ("/api/samples", [("offset", PAGE * int(last.one(range(1000))))])),  # type: ignore[arg-type]
        ("samples, filtered", lambda: ("/api/samples", last.filters())),
        ("samples, text", lambda: ("/api/samples", names.text())),
        ("samples, right or wrong", lambda: ("/api/samples", last.outcome())),
        ("samples, reliability", lambda: ("/api/samples", last.reliability())),
        ("samples, least reliable first", lambda: ("/api/samples", [*last.reliability(), ("order", "reliability")])),
        ("centres of the map", lambda: ("/api/centres", [])),
        ("selection on the map", lambda: ("/api/selection", last.outcome())),
        ("colours of the map", lambda: ("/api/colours", [("by", "outcome"), *last.outcome()])),
        ("footprints in view", lambda: ("/api/footprints", last.box())),
        ("patches near a click", lambda: ("/api/near", [*last.filters(), ("lon", 16.0), ("lat", 48.2)])),
        ("patch", lambda: ("/api/patch", names.patch())),
        ("neighbours", lambda: ("/api/patch/neighbours", names.patch())),
        ("decisions of a branch", lambda: ("/api/patch/branch", [*names.patch(), ("branch", branches[1])])),
        ("decisions and reliability", lambda: ("/api/patch/branch", [*names.patch(), ("branch", branches[0])])),
        ("maps of a label", lambda: ("/api/patch/maps", [*last.patch(), *of, ("label", last.one(NAMES))])),
        ("true colour", lambda: ("/api/patch/true-colour.png", last.patch())),
        ("false colour", lambda: ("/api/patch/false-colour.png", last.patch())),
        ("SR picture, stored, 480 px", lambda: ("/api/patch/branch.png", [*last.patch(), ("branch", branches[1])])),
    ]
    rows = []
    for what, query in measured:
        times, sizes = [], []
        for _ in range(requests + 1):
            path, parameters = query()
            began = time.perf_counter()
            body = server.get(path, parameters)
            times.append(1000 * (time.perf_counter() - began))
            sizes.append(len(body))
        rows.append(row_of(what, "endpoint", times, float(np.mean(sizes)) / 1000))
        print(line(rows[-1]), flush=True)
    return rows


def row_of(what: str, kind: str, times: Sequence[float], kilobytes: float = 0.0) -> Row:
    """Return the line of some times, ms, the first of which stands by itself."""
    rest = np.asarray(times[1:])
    return Row(
        what,
        kind,
        len(rest),
        times[0],
        float(np.median(rest)),
        float(np.percentile(rest, 95)),
        float(rest.max()),
        kilobytes,
    )


def peers(server: Server, paths: StorePaths, requests: int) -> list[Row]:
    """Measure the filters of `samples, filtered` by others."""
    files = str(paths.table("patches") / "*.parquet")
    on_disk, in_memory = duckdb.connect(), duckdb.connect()
    on_disk.execute(f"CREATE VIEW patches AS SELECT * FROM read_parquet('{files}')")
    in_memory.execute(
        f"CREATE TABLE patches AS SELECT patch_id, labels, country, season, split FROM read_parquet('{files}')"
    )
    frame = pd.read_parquet(paths.table("patches"), columns=["patch_id", "labels", "country", "season", "split"])
    label_sets = frame["labels"].map(frozenset)

    def by_duckdb(connection: duckdb.DuckDBPyConnection, query: Query) -> tuple[int, list[str]]:
        where, values = ["list_has_any(labels, ?)"], [[value for name, value in query if name == "label"]]
        for name, value in query:
            if name != "label":
                where.append(f"{name} = ?")
                values.append(value)  # type: ignore[arg-type]
        condition = " AND ".join(where)
        (count,) = connection.execute(f"SELECT count(*) FROM patches WHERE {condition}", values).fetchone() or (0,)
        sql = f"SELECT patch_id FROM patches WHERE {condition} ORDER BY patch_id LIMIT {PAGE}"
        return int(count), [name for (name,) in connection.execute(sql, values).fetchall()]

    def by_pandas(query: Query) -> tuple[int, list[str]]:
        labels = {value for name, value in query if name == "label"}
        keep = label_sets.map(lambda found: not labels.isdisjoint(found))
        for name, value in query:
            if name != "label":
                keep &= frame[name] == value
        found = frame["patch_id"][keep]
        return len(found), found.sort_values().head(PAGE).tolist()

    def by_explorer(query: Query) -> tuple[int, list[str]]:
        body = json.loads(server.get("/api/samples", [*query, ("order", "id"), ("limit", PAGE)]))
        return body["total"], [sample["patch_id"] for sample in body["samples"]]

    ways: list[tuple[str, Callable[[Query], tuple[int, list[str]]]]] = [
        ("explorer, over HTTP, with counts", by_explorer),
        ("DuckDB, the Parquet file", lambda query: by_duckdb(on_disk, query)),
        ("DuckDB, a table in memory", lambda query: by_duckdb(in_memory, query)),
        ("pandas, a frame in memory", by_pandas),
    ]
    asked = Asked(server.store, [], [], 3)
    queries = [asked.filters() for _ in range(requests // 2 + 1)]
    answers: list[tuple[int, list[str]]] = []
    rows = []
    for what, way in ways:
        times = []
        for i, query in enumerate(queries):
            began = time.perf_counter()
            answer = way(query)
            times.append(1000 * (time.perf_counter() - began))
            if len(answers) <= i:
                answers.append(answer)
            assert answer == answers[i], f"{what} gives another answer"
        rows.append(row_of(what, "peer", times))
        print(line(rows[-1]), flush=True)
    return rows


def pages(server: Server, patch: str, loads: int) -> list[Row]:
    """Measure whole pages in Chromium; none where there is none."""
    executable = shutil.which("chromium") or shutil.which("chromium-browser")
    if executable is None:
        return []
    from playwright.sync_api import sync_playwright

    times: dict[str, list[float]] = {}

    @contextmanager
    def timed(what: str) -> Iterator[None]:
        began = time.perf_counter()
        yield
        times.setdefault(what, []).append(1000 * (time.perf_counter() - began))

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=executable, args=["--no-sandbox", "--disable-dev-shm-usage"]
        )
        page = browser.new_page(viewport={"width": 1280, "height": 900})
        for i in range(loads + 1):
            page.goto("about:blank")
            with timed("the first page, map and all"):
                with timed("the first page, until names stand there"):
                    page.goto(server.address, wait_until="commit")
                    page.wait_for_function("() => document.querySelectorAll('#grid a').length > 0")
                page.wait_for_function("() => 'drawn' in document.getElementById('map').dataset")
            page.wait_for_load_state("networkidle")
            for what, box in (
                ("a filter, until names stand there", "input[name=season]"),
                ("another filter", "input[name=split]"),
            ):
                total = page.inner_text("#total")
                with timed(what):
                    page.locator(box).nth(i % 2).check()
                    page.wait_for_function("t => document.querySelector('#total').innerText !== t", arg=total)
                page.wait_for_load_state("networkidle")
            with timed("a patch, all its pictures"):
                page.evaluate("hash => { location.hash = hash }", f"#/patch/{quote(patch, safe='')}")
                page.wait_for_function(
                    "() => { const all = [...document.querySelectorAll('#maps img, #pixels img')];"
                    " return all.length > 4 && all.every((image) => image.complete) }"
                )
        browser.close()
    rows = [row_of(what, "page", found) for what, found in times.items()]
    for row in rows:
        print(line(row), flush=True)
    return rows


def first_patch(paths: StorePaths) -> str:
    """Return a patch that has pixels, SR pixels and maps."""
    columns = pq.read_table(paths.table("patches"), columns=["patch_id", "shard", "row"])
    return str(columns.filter((pc.field("shard") == 0) & (pc.field("row") == 0))["patch_id"][0].as_py())


def line(row: Row) -> str:
    """Return a line of the table."""
    met = "yes" if row.max_ms <= GOAL_MS else "no"
    return (
        f"{row.kind:9}{row.what:36}{row.requests:9}{row.first_ms:10.1f}{row.median_ms:10.1f}{row.p95_ms:10.1f}"
        f"{row.max_ms:10.1f}{row.kilobytes:10.1f}  {met if row.kind != 'peer' else ''}"
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=ALL)
    parser.add_argument("--requests", type=int, default=60)
    parser.add_argument("--loads", type=int, default=8)
    parser.add_argument("--scratch", type=Path)
    parser.add_argument("--serve", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path)
    args = parser.parse_args(arguments)
    if args.serve is not None:
        serve(args.serve, port=0, ready=lambda address: print(address, flush=True))
        return
    with tempfile.TemporaryDirectory(dir=args.scratch) as folder:
        paths, kind = make_store(Path(folder) / "store", args.patches)
        print(f"{args.patches} patches ({kind}); milliseconds; goal {GOAL_MS}")
        print(f"{'':9}{'what':36}{'requests':>9}{'first':>10}{'median':>10}{'p95':>10}{'max':>10}{'kB':>10}  goal met")
        server = Server(paths.root)
        try:
            at_start = server.resident_mb
            rows = endpoints(server, paths, args.requests)
            rows += peers(server, paths, args.requests)
            server.reconnect()  # it closes connections that are idle while the peers work
            held = json.loads(server.get("/api/store"))["held_bytes"]
            rows += pages(server, first_patch(paths), args.loads) if args.loads else []
            about = {
                "processor": platform.processor() or platform.machine(),
                "cores": os.cpu_count(),
                "patches": args.patches,
                "ids": kind,
                "goal_ms": GOAL_MS,
                "start_seconds": server.start_seconds,
                "all_branches_read_seconds": server.warm_seconds,
                "held_mb": held / 1e6,
                "resident_mb_at_start": at_start,
                "resident_mb_at_the_end": server.resident_mb,
            }
        finally:
            server.close()
    seconds = f"start {about['start_seconds']:.1f} s, all branches read {about['all_branches_read_seconds']:.1f} s"
    megabytes = (
        f"{about['resident_mb_at_start']:.0f} MB at the start, {about['resident_mb_at_the_end']:.0f} MB at the end"
    )
    print(f"{seconds}; resident {megabytes}; {about['held_mb']:.0f} MB of it columns")
    if args.out:
        args.out.parent.mkdir(parents=True, exist_ok=True)
        text = json.dumps({"about": about, "rows": [asdict(row) for row in rows]}, indent=2)
        args.out.write_text(text + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
