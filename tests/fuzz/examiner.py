"""What must be true of every damaged or hostile input: it reads as an independent reader reads it, or is refused.

Refused means an error of the project, which becomes a row of tables/quarantine or ends the run with one sentence. And
nothing outside the archive's root is opened, no server is called, and no more memory is taken than is allowed.
"""

import contextlib
import ctypes
import json
import os
import re
import shutil
import signal
import socket
import sys
import tarfile
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import numpy as np
import rasterio
from rasterio.errors import NotGeoreferencedWarning, RasterioError
from rasterio.io import MemoryFile

from infra.archives.bigearthnet_v1 import METADATA_SUFFIX, BigEarthNetV1
from infra.archives.bigearthnet_v2 import BigEarthNetV2
from infra.archives.buckets import Bucket
from infra.archives.image_file import kind_of, read_picture
from infra.archives.layouts import ArchiveOptions, open_archive
from infra.archives.modality import S2_SUFFIXES
from infra.archives.model import PatchInput, Scan
from infra.archives.streamed import StreamedArchive
from infra.archives.tar_reader import read_tar
from infra.archives.tiff import decode, grid_of, read_tiff
from infra.archives.tiff_blocks import MAX_BLOCK_BYTES, MAX_PIXEL_BYTES
from infra.bigearthnet.classes import NAMES, UNMAPPED_V1_LABELS, V1_LABEL_TO_CLASS
from infra.errors import ArchiveError, BadPatchError, ConfigError, StoreError
from infra.query import query
from infra.storage import StorePaths
from tasks.bucket_ingest import BucketFeed
from tasks.plan import make_plan
from tests.fuzz import mutations
from tests.fuzz.memory import filled
from tests.infra.archives.small_archive import SmallArchive

type Outcome = Literal["read", "quarantined"]

ROOM_BYTES = 400_000_000
"""Memory that an example may take beside what its kind may hold as pixels."""

_HIDDEN = re.compile("[\0-\x1f\x7f-\x9f\u200b\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff]")
_LIBC = ctypes.CDLL(None, use_errno=True)
_ACCESSED = 0x1 | 0x2 | 0x4 | 0x20 | 0x100 | 0x200 | 0x400  # read, written, changed, opened, made, removed
_NONBLOCK = os.O_NONBLOCK


class ViolationError(AssertionError):
    """An input did what none may do."""


class Examiner:
    """Examines inputs in a folder of its own; one a process."""

    def __init__(self, base: Path) -> None:
        self.base, self.root, self.outside = base, base / "root", base / "outside"
        for folder in (self.root, self.outside):
            folder.mkdir()
        for name in ("canary", "canary.tif", "canary.parquet"):
            (self.outside / name).write_bytes(mutations.tiff_seeds()[0])
        self._watch = _LIBC.inotify_init1(_NONBLOCK)
        if self._watch < 0 or _LIBC.inotify_add_watch(self._watch, os.fsencode(self.outside), _ACCESSED) < 0:
            raise OSError(ctypes.get_errno(), "inotify")
        self._server = socket.create_server(("127.0.0.1", 0))
        self._server.setblocking(False)
        self.port = int(self._server.getsockname()[1])
        self._opened: list[str] = []
        self._allowed = tuple(
            f"{os.path.realpath(place)}/"
            for place in (
                self.root,
                sys.prefix,
                sys.base_prefix,
                Path(__file__).parents[2],
                "/proc",
                "/usr",
                "/lib",
                "/sys",
            )
        )
        self._listening = False
        sys.addaudithook(self._audit)
        archive = SmallArchive(base / "v1")
        archive.v1("S2A_MSIL2A_20170613T101031_0_45", s1="S1A_IW_GRDH_1SDV_20170613T165043_33UUP_0_45")
        self._v1 = archive
        self._ids = [
            f"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP_{i:02d}_{j:02d}" for i in range(3) for j in range(2)
        ]
        self._allowed += (f"{os.path.realpath(base / 'v1')}/",)
        for patch in self._ids:
            (self.root / "v2" / "BigEarthNet-S2" / patch.rsplit("_", 2)[0] / patch).mkdir(parents=True)
        (self.root / "tables" / "others").mkdir(parents=True)

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if self._listening and event == "open" and isinstance(arguments[0], str | bytes):
            self._opened.append(os.fsdecode(arguments[0]))

    def examine(self, kind: str, number: int) -> Outcome:
        """Return how one example ended.

        Raises:
            ViolationError: It read differently, reached outside, or took too much memory.
            Exception: It raised what is no error of the project.
        """
        with self._guarded(MAX_PIXEL_BYTES + MAX_BLOCK_BYTES if kind in {"tiff", "picture"} else 0):
            return (EXAMINED | TRAPS)[kind](self, number)

    @contextmanager
    def _guarded(self, pixel_bytes: int) -> Iterator[None]:
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
        before = _memory("VmRSS")
        self._opened.clear()
        self._listening = True
        try:
            yield
        finally:
            self._listening = False
        peak = _memory("VmHWM") - before
        if peak > ROOM_BYTES + pixel_bytes:
            raise ViolationError(f"it took {peak / 1e6:.0f} MB")
        for name in self._opened:
            path = os.path.realpath(name)
            if path not in {"/dev/null", os.path.realpath("/etc/mime.types")} and not path.startswith(self._allowed):
                raise ViolationError(f"it opened {path}")
        with contextlib.suppress(BlockingIOError):
            events = os.read(self._watch, 4096)
            raise ViolationError(f"it touched {self.outside}: {events!r}")
        with contextlib.suppress(BlockingIOError):
            self._server.accept()
            raise ViolationError("it called a server")

    def tiff(self, number: int) -> Outcome:
        """Examine one TIFF: from memory, and as a file."""
        data = mutations.tiff(number, str(self.outside), self.port)
        shape = (24, 20) if number % 2 else None
        try:
            with filled(0x5A):
                band = decode(data, "a.tif", shape)
            grid_of(band, data)
        except BadPatchError:
            return "quarantined"
        with filled(0xA5):  # GDAL may leave in a damaged block what its memory held: never the same then
            expected = _by_rasterio(data)
        if expected is None:
            raise ViolationError("rasterio cannot read what was read")
        if not _equal(band.pixels, expected):
            raise ViolationError("the pixels are others than rasterio's")
        path = self.root / "a.tif"
        path.write_bytes(data)
        with contextlib.suppress(BadPatchError):
            if read_tiff(path, shape=shape).pixels.shape != band.pixels.shape:
                raise ViolationError("the file has another shape")
        return "read"

    def picture(self, number: int) -> Outcome:
        """Examine one picture, as a file of an archive of pictures."""
        ending, data = mutations.picture(number, str(self.outside), self.port)
        path = self.root / f"a{ending}"
        path.write_bytes(data)
        try:
            kind = kind_of(str(self.root), path.name)
            pixels = read_picture(str(self.root), path.name, None)
        except BadPatchError:
            return "quarantined"
        finally:
            path.unlink()
        if pixels.shape != (3, kind.height, kind.width):
            raise ViolationError(f"{pixels.shape}, its header says {kind}")
        return "read"

    def tar(self, number: int) -> Outcome:
        """Examine one tar archive: its members one by one, and as an archive."""
        suffix, data = mutations.tar(number, str(self.outside), self.port)
        folder = self.root / "tar"
        folder.mkdir()
        path = folder / f"BigEarthNet-S2{suffix}"
        path.write_bytes(data)
        (folder / "metadata.parquet").write_bytes(_sound_metadata(self._ids))
        found: list[tuple[str, bytes | None]] = []
        try:
            found += [(_plain(m.name), None if m.data is None else bytes(m.data)) for m in read_tar(str(path))]
            expected = _by_tarfile(path)
            if expected is not None and not _agree(found, expected):
                raise ViolationError(f"members are {_shown(found)}, tarfile finds {_shown(expected)}")
            archive = open_archive("bigearthnet-v2", path, ArchiveOptions(subset="present"), self.root / "kept")
            _check_scan(archive.scan(), self._ids)
            if number % 4 == 0:
                self._fill_buckets(path, found)
        except ArchiveError:
            return "quarantined"
        finally:
            shutil.rmtree(folder)
            for name in ("kept", "store"):
                shutil.rmtree(self.root / name, ignore_errors=True)
        return "read"

    def _fill_buckets(self, path: Path, found: Sequence[tuple[str, bytes | None]]) -> None:
        """Check that what a patch gets of an archive is the first member of its file's name."""
        archive = open_archive("bigearthnet-v2", path)
        assert isinstance(archive, StreamedArchive)
        plan = make_plan(archive, StorePaths(self.root / "store"), "bigearthnet-v2", 8)
        first = dict(reversed(found))
        feed = BucketFeed(archive, plan)
        for shards in feed(sorted(plan.shards)):
            for shard in shards:
                with Bucket(feed.buckets.path(shard)) as bucket:
                    for patch in self._ids:
                        for suffix in S2_SUFFIXES:
                            source = f"BigEarthNet-S2/{patch.rsplit('_', 2)[0]}/{patch}"
                            self._check_file(bucket, source, f"{patch}{suffix}", first)

    def _check_file(self, bucket: Bucket, source: str, name: str, first: Mapping[str, bytes | None]) -> None:
        opened = bucket.open(source)
        try:
            data = None if opened is None else opened.read(name)
        except BadPatchError:
            data = None
        if data != first.get(f"{source}/{name}"):
            raise ViolationError(f"the bucket has other bytes of {source}/{name}")

    def json(self, number: int) -> Outcome:
        """Examine one JSON file: of a Sentinel-2 and of a Sentinel-1 patch of v1."""
        root = self._v1.root
        (s2,), (s1,) = ((root / top).iterdir() for top in ("BigEarthNet-v1.0", "BigEarthNet-S1-v1.0"))
        data = mutations.json_text(number, s2.name)
        for folder in (s2, s1):
            (folder / f"{folder.name}{METADATA_SUFFIX}").write_bytes(data)
        archive = BigEarthNetV1(str(root))
        scan = archive.scan()
        (row,) = scan.inputs.to_pylist()
        scan.problems.to_pylist()
        expected = _by_json(data)
        partner = None if expected is None else expected.get("corresponding_s2_patch")
        if (row["s1_name"] is not None) != (partner == s2.name):
            raise ViolationError(f"its partner is {partner!r}, the scan says {row['s1_name']!r}")
        try:
            patch = archive.read(PatchInput(**{**row, "labels": None}))
        except BadPatchError as error:
            json.dumps(str(error)).encode()
            return "quarantined"
        if expected is None or patch.labels != _classes(expected.get("labels")):
            raise ViolationError(f"labels are {patch.labels}, the JSON says {expected}")
        return "read"

    def parquet(self, number: int) -> Outcome:
        """Examine one Parquet file: as the metadata of an archive, and as a table of a store."""
        data = mutations.parquet(number, self._ids)
        root = self.root / "v2"
        (root / "metadata.parquet").write_bytes(data)
        table = self.root / "tables" / "others" / "data-00000.parquet"  # of superscene's own, a version would be wanted
        table.write_bytes(data)
        with contextlib.suppress(StoreError, ConfigError):
            query(table.parents[1], ["12345678"], "SELECT * FROM others").fetchall()
        try:
            scan = BigEarthNetV2(str(root)).scan()
        except ArchiveError:
            return "quarantined"
        _check_scan(scan, self._ids)
        expected = _by_duckdb(root / "metadata.parquet")
        if expected is not None and not set(scan.inputs["patch_id"].to_pylist()) <= expected:
            raise ViolationError(f"inputs are {scan.inputs['patch_id'].to_pylist()}, DuckDB reads {expected}")
        return "read"


EXAMINED: dict[str, Callable[[Examiner, int], Outcome]] = {
    "tiff": Examiner.tiff,
    "picture": Examiner.picture,
    "tar": Examiner.tar,
    "json": Examiner.json,
    "parquet": Examiner.parquet,
}
"""The kinds of inputs."""


def _crash(_: Examiner, __: int) -> Outcome:
    os.kill(os.getpid(), signal.SIGSEGV)
    raise AssertionError


def _hang(_: Examiner, __: int) -> Outcome:
    _LIBC.sleep(1000)  # within a C library, where Python's own signals wait
    raise AssertionError


def _err(_: Examiner, __: int) -> Outcome:
    raise KeyError("not the project's")


def _open(_: Examiner, __: int) -> Outcome:
    return "read" if Path("/etc/hostname").read_bytes() else "quarantined"


def _open_in_c(examiner: Examiner, __: int) -> Outcome:
    with warnings.catch_warnings(action="ignore"), rasterio.open(examiner.outside / "canary.tif") as dataset:
        return "read" if dataset.count else "quarantined"


def _call(examiner: Examiner, __: int) -> Outcome:
    socket.create_connection(("127.0.0.1", examiner.port)).close()
    return "read"


def _swell(_: Examiner, __: int) -> Outcome:
    return "read" if np.ones(ROOM_BYTES // 8 + 10_000_000).sum() else "quarantined"


TRAPS: dict[str, Callable[[Examiner, int], Outcome]] = {
    "crash": _crash,
    "hang": _hang,
    "error": _err,
    "open": _open,
    "open in C": _open_in_c,
    "call": _call,
    "swell": _swell,
}
"""What an examination must not let pass."""


def _memory(field: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(f"{field}:"):
            return 1024 * int(line.split()[1])
    raise KeyError(field)


def _by_rasterio(data: bytes) -> np.ndarray[Any, Any] | None:
    try:
        with MemoryFile(data) as memory, warnings.catch_warnings():
            warnings.simplefilter("ignore", NotGeoreferencedWarning)
            with memory.open(driver="GTiff") as dataset:
                return np.asarray(dataset.read(1))
    except (RasterioError, rasterio._err.CPLE_BaseError):
        return None


def _equal(one: np.ndarray[Any, Any] | None, other: np.ndarray[Any, Any] | None) -> bool:
    return one is not None and other is not None and one.shape == other.shape and one.tobytes() == other.tobytes()


def _by_tarfile(path: Path) -> list[tuple[str, bytes | None]] | None:
    """Return the members that the stdlib finds, bytes of regular files only; None where it cannot read the archive."""
    import io

    import pyarrow as pa

    raw = path.read_bytes()
    if path.suffix != ".tar":
        codec = "zstd" if path.suffix == ".zst" else "gzip"
        with pa.CompressedInputStream(pa.BufferReader(raw), codec) as stream:
            raw = stream.read()
    found: list[tuple[str, bytes | None]] = []
    try:
        with tarfile.open(fileobj=io.BytesIO(raw), mode="r:", errors="backslashreplace") as tar:
            for member in tar:
                content = tar.extractfile(member) if member.isreg() and not member.issparse() else None
                found.append((_plain(member.name), None if content is None else content.read()))
    except (tarfile.TarError, ValueError, EOFError, OSError, OverflowError):
        return None
    return found


def _by_duckdb(path: Path) -> set[str] | None:
    """Return the ids that DuckDB reads; None where it cannot, or finds no texts."""
    import duckdb

    try:
        rows = duckdb.execute("SELECT patch_id FROM read_parquet(?)", [str(path)]).fetchall()
    except duckdb.Error:
        return None
    return {str(patch_id) for (patch_id,) in rows}


def _plain(name: str) -> str:
    """Return a name without what readers drop of it: leading "./" and slashes at its end."""
    while name.startswith("./"):
        name = name[2:]
    return name.rstrip("/")


def _agree(found: Sequence[tuple[str, bytes | None]], expected: Sequence[tuple[str, bytes | None]]) -> bool:
    """Return whether all members are there, and whatever bytes were handed out are those expected."""
    return len(found) == len(expected) and all(
        data is None or (name, data) == other for (name, data), other in zip(found, expected, strict=True)
    )


def _shown(members: Sequence[tuple[str, bytes | None]]) -> list[tuple[str, int | None]]:
    return [(name[-60:], None if data is None else len(data)) for name, data in members]


def _by_json(data: bytes) -> dict[str, Any] | None:
    """Return the object that the stdlib reads; None where it is none, has words not JSON's, or half characters."""

    def refuse(name: str) -> None:
        raise ValueError(name)

    try:
        found = json.JSONDecoder(parse_constant=refuse).decode(data.decode())
    except (ValueError, RecursionError):
        return None
    halves = any("\ud800" <= character <= "\udfff" for character in json.dumps(found, ensure_ascii=False))
    return found if isinstance(found, dict) and not halves else None


def _classes(labels: object) -> tuple[str, ...]:
    assert isinstance(labels, list)
    assert set(labels) <= V1_LABEL_TO_CLASS.keys() | UNMAPPED_V1_LABELS
    return tuple(sorted({V1_LABEL_TO_CLASS[x] for x in labels if x in V1_LABEL_TO_CLASS}, key=NAMES.index))


def _sound_metadata(ids: Sequence[str]) -> bytes:
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(pa.table({"patch_id": ids, "split": ["train"] * len(ids)}), buffer)
    return buffer.getvalue()


def _check_scan(scan: Scan, ids: Sequence[str]) -> None:
    """Check that a scan counts every input once, can be written down, and holds no name that leads elsewhere."""
    inputs, problems = scan.inputs.to_pylist(), scan.problems.to_pylist()
    if scan.total != len(inputs) + len(problems) + scan.absent:
        raise ViolationError(f"{scan.total} inputs, but {len(inputs)} + {len(problems)} + {scan.absent} are told")
    json.dumps([inputs, problems]).encode()
    for table in (scan.inputs, scan.problems):
        table.validate(full=True)
    strange = {row["patch_id"] for row in inputs} - set(ids)
    if strange:
        raise ViolationError(f"patches {strange} have no folder")
    for row in inputs:
        names = (row["patch_id"], row["s1_name"] or "a")
        if any("/" in name or name in {"", ".", ".."} or _HIDDEN.search(name) for name in names):
            raise ViolationError(f"{names} are no names of folders")
