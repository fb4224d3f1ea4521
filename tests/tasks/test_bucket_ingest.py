import bz2
import os
import shutil
import subprocess
import sys
import tarfile
import threading
import tracemalloc
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from infra import object_store
from infra.archives import tar_reader
from infra.archives.buckets import BucketWriter
from infra.archives.inventory import Subset
from infra.archives.layouts import ArchiveOptions, open_archive
from infra.archives.streamed import StreamedArchive
from infra.errors import ArchiveError, StoreError
from infra.object_store import ObjectPath
from infra.parts import StageParts
from infra.storage import StorePaths, write_bytes
from tasks import bucket_ingest
from tasks.bucket_ingest import BucketFeed, BucketIngester, with_contents
from tasks.ingest import IngestCounts, publish_archive
from tasks.plan import Plan, make_plan, shard_inputs
from tests.infra.archives.small_archive import SmallArchive
from tests.infra.archives.tar_files import Member, member, members_of, pack, write_members
from tests.infra.s3_server import Fault, S3Server
from tests.tasks.small_store import SHARD_SIZE, band_file, ingest, patch_ids, snapshot, v2

V2, V1 = "bigearthnet-v2", "bigearthnet-v1"


def streamed(
    root: Path, store: Path, subset: Subset = "all", layout: str = V2, *, flagged: bool = True
) -> StreamedArchive:
    options = ArchiveOptions(include_flagged=flagged, subset=subset)
    archive = open_archive(layout, root, options, StorePaths(store).inventories)
    assert isinstance(archive, StreamedArchive)
    return archive


def ingest_streamed(
    archive: StreamedArchive, store: Path, shard_size: int = SHARD_SIZE, layout: str = V2
) -> tuple[Plan, list[int]]:
    """Plan and ingest what is missing, as the flow does, in this process; return the plan and the shards done."""
    plan = make_plan(archive, StorePaths(store), layout, shard_size)
    done: list[int] = []
    worker: BucketIngester | None = None
    feed = BucketFeed(archive, plan)
    for group in feed(sorted(plan.shards.keys() - plan.parts.done())):
        worker = worker or feed.worker()
        for shard in group:
            worker.run(shard)
            done.append(shard)
    return with_contents(plan, archive), done


def content(plan: Plan) -> dict[Path, bytes]:
    """Every file of a store but for the inventories, which folders do not need."""
    root = plan.paths.root
    files = {path.relative_to(root): data for path, (_, data) in snapshot(root).items()}
    return {path: data for path, data in files.items() if plan.paths.inventories.name not in path.parts}


def tables(plan: Plan, *without: str) -> dict[str, list[dict[str, Any]]]:
    found = {}
    for name in ("patches", "quarantine", "classes"):
        table = pq.read_table(plan.paths.table(name))
        found[name] = table.drop_columns([column for column in without if column in table.column_names]).to_pylist()
    return found


def forbid_passes(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: str) -> Iterator[Any]:
        raise AssertionError(f"{path} was opened")

    monkeypatch.setattr(bucket_ingest, "read_tar", refuse)
    monkeypatch.setattr("infra.archives.tar_inventory.read_tar", refuse)


@pytest.fixture(scope="module")
def packed(archive_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return pack(archive_root, tmp_path_factory.mktemp("packed"), ".tar.zst")


@pytest.mark.parametrize(
    ("suffix", "subset", "flagged"),
    [(".tar", "all", False), (".tar.gz", "all", True), (".tgz", "present", False), (".tar.zst", "present", True)],
)
def test_v2_is_ingested_as_from_folders(
    archive_root: Path, tmp_path: Path, suffix: str, subset: Subset, *, flagged: bool
) -> None:
    root = pack(archive_root, tmp_path / "packed", suffix)
    plan, done = ingest_streamed(streamed(root, tmp_path / "store", subset, flagged=flagged), tmp_path / "store")
    counts = publish_archive(plan)
    options = ArchiveOptions(include_flagged=flagged, subset=subset)
    truth = ingest(open_archive(V2, archive_root, options), tmp_path / "truth")
    assert publish_archive(truth) == counts == IngestCounts(24 if flagged else 23, 0, 0, 0)
    assert content(plan) == content(truth)
    assert sorted(done) == sorted(truth.shards)
    assert not plan.paths.buckets.exists()


@pytest.mark.parametrize("folders_first", [True, False])
def test_whole_folders_wait_packed(archive_root: Path, tmp_path: Path, *, folders_first: bool) -> None:
    """In less room than their pixels take, not to speak of the files, whose names are in no bucket then."""

    def change(members: list[Member]) -> list[Member]:
        return sorted(members, key=lambda item: not item[0].isdir()) if folders_first else members

    root = pack(archive_root, tmp_path / "packed", change=change)
    plan = make_plan(streamed(root, tmp_path / "store"), StorePaths(tmp_path / "store"), V2, SHARD_SIZE)
    feed = BucketFeed(streamed(root, tmp_path / "store"), plan)
    groups, sealed = feed(sorted(plan.shards)), set[int]()
    while sealed != plan.shards.keys():
        sealed.update(next(groups))
    content = b"".join(path.read_bytes() for path in feed.buckets.folder.iterdir())
    groups.close()
    for first in (b"s2_10m\0", b"s1", b"reference_map"):
        assert content.count(b"\0/\0/" + first) == 24
    assert b".tif" not in content
    assert len(content) < 24 * 304_000


def test_a_store_on_object_storage_has_its_buckets_on_a_disk(
    archive_root: Path, s3: S3Server, s3_folder: ObjectPath, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And its inventories where it lies: no later run passes over the archive again."""
    scratch = tmp_path / "scratch"
    monkeypatch.setenv("SUPERSCENE_SCRATCH", str(scratch))
    monkeypatch.chdir(tmp_path)
    appended: list[Path] = []
    append = BucketWriter.append

    def noted(self: BucketWriter, shard: int, record: Sequence[bytes | memoryview]) -> int:
        size = append(self, shard, record)
        appended.extend(scratch.rglob("*.bucket"))
        return size

    monkeypatch.setattr(BucketWriter, "append", noted)
    root = pack(archive_root, tmp_path / "packed", ".tar.zst")
    plan, done = ingest_streamed(streamed(root, s3_folder, "present"), s3_folder)
    counts = publish_archive(plan)
    truth = ingest(open_archive(V2, archive_root, ArchiveOptions(include_flagged=True)), tmp_path / "truth")
    assert publish_archive(truth) == counts
    assert sorted(done) == sorted(truth.shards)
    copy = tmp_path / "copy"
    for path in s3_folder.rglob("*"):
        write_bytes(copy / Path(*path.relative_to(s3_folder).parts), path.read_bytes())
    found = replace(plan, paths=StorePaths(copy))
    assert tables(found) == tables(truth)
    pixels = {path: data for path, data in content(truth).items() if path.parts[0] == "archive.zarr"}
    assert pixels.items() <= content(found).items()
    assert appended
    assert {path.parents[2] for path in appended} == {scratch}
    assert list(scratch.iterdir()) == []
    assert not (tmp_path / "s3:").exists()
    forbid_passes(monkeypatch)
    again, done = ingest_streamed(streamed(root, s3_folder, "present"), s3_folder)
    assert (again.shards, done) == (plan.shards, [])


@pytest.mark.parametrize("suffix", [".tar", ".tar.zst"])
def test_archives_on_object_storage(
    archive_root: Path,
    tmp_path: Path,
    s3: S3Server,
    s3_folder: ObjectPath,
    monkeypatch: pytest.MonkeyPatch,
    suffix: str,
) -> None:
    """As from this machine, through requests that fail; and what a pass found is known until an archive is replaced."""
    monkeypatch.setattr(object_store, "_READ_AHEAD", 1 << 18)
    root = pack(archive_root, tmp_path / "packed", suffix)
    for path in root.parent.iterdir():
        write_bytes(s3_folder / path.name, path.read_bytes())
    for fault in ("status", "cut", "half"):
        s3.faults.append(Fault(fault, method="GET", times=3, every=4))
    truth, _ = ingest_streamed(streamed(root, tmp_path / "truth"), tmp_path / "truth")
    publish_archive(truth)
    url = s3_folder / root.name
    plan, _ = ingest_streamed(streamed(url, tmp_path / "store"), tmp_path / "store")
    publish_archive(plan)
    assert content(plan) == content(truth)
    assert all(fault.times == 0 for fault in s3.faults)
    archive = streamed(url, tmp_path / "store")
    assert archive.inventory().knows("BigEarthNet-S2")
    write_bytes(url, b"another")
    assert not archive.inventory().knows("BigEarthNet-S2")
    url.unlink()
    with pytest.raises(ArchiveError, match=r"the archive s3://.* cannot be read"):
        archive.inventory().identity("BigEarthNet-S2")


def test_a_modality_may_be_a_folder_or_missing(archive_copy: Path, tmp_path: Path) -> None:
    shutil.rmtree(archive_copy / "Reference_Maps")
    truth = ingest(v2(archive_copy), tmp_path / "truth")
    publish_archive(truth)
    members = members_of(archive_copy, "BigEarthNet-S2")
    shutil.rmtree(archive_copy / "BigEarthNet-S2")
    root = write_members(archive_copy / "any name.tar", members)
    plan, _ = ingest_streamed(streamed(root, tmp_path / "store"), tmp_path / "store")
    publish_archive(plan)
    assert content(plan) == content(truth)
    patches = pq.read_table(plan.paths.table("patches"))
    assert (set(patches["has_s1"].to_pylist()), set(patches["has_map"].to_pylist())) == ({True}, {False})


def v1_archive(root: Path) -> list[str]:
    """Six patches with all that can be wrong with v1, two pairs, and two Sentinel-1 patches of nobody."""
    archive = SmallArchive(root)
    names = [f"S2A_MSIL2A_20170613T101031_{row}_0" for row in range(6)]
    whole = {"labels": ["Water bodies", "Airports"], "acquisition_date": "2017-06-13 10:10:31"}
    for i, name in enumerate(names[:5]):
        archive.v1(name, whole, s1=f"S1A_{i}_0" if i < 2 else None)
    folder = root / "BigEarthNet-v1.0"
    (folder / names[2] / f"{names[2]}_labels_metadata.json").write_text('{"labels": []} and more')
    (folder / names[3] / f"{names[3]}_labels_metadata.json").unlink()
    os.truncate(folder / names[4] / f"{names[4]}_B8A.tif", 100)
    s1 = root / "BigEarthNet-S1-v1.0"
    shutil.copytree(s1 / "S1A_0_0", s1 / "S1A_9_0")
    (s1 / "S1A_9_0" / "S1A_0_0_labels_metadata.json").rename(s1 / "S1A_9_0" / "S1A_9_0_labels_metadata.json")
    (s1 / "S1A_8_0").mkdir()
    (root / "train.csv.bz2").write_bytes(bz2.compress("\n".join(names[:3] + names[5:]).encode()))
    (root / "patches_with_seasonal_snow.csv").write_text(names[1])
    return names


@pytest.mark.parametrize("subset", ["all", "present"])
@pytest.mark.parametrize("flagged", [True, False])
def test_v1_is_ingested_as_from_folders(tmp_path: Path, subset: Subset, *, flagged: bool) -> None:
    v1_archive(tmp_path / "archive")
    options = ArchiveOptions(include_flagged=flagged, subset=subset)
    truth = ingest(open_archive(V1, tmp_path / "archive", options), tmp_path / "truth", 2, V1)
    expected = publish_archive(truth)
    root = pack(tmp_path / "archive", tmp_path / "packed", ".tar.gz")
    archive = streamed(root, tmp_path / "store", subset, V1, flagged=flagged)
    plan, _ = ingest_streamed(archive, tmp_path / "store", 2, V1)
    assert publish_archive(plan) == expected
    assert expected.patches == (2 if flagged else 1)
    assert expected.quarantined == 3 + 2 + (subset == "all")  # and the name that has no folder
    assert content(plan) == content(truth)


def empty(folder: Path) -> None:
    for path in folder.iterdir():
        path.unlink()


FAULTS: dict[str, Callable[[Path], object]] = {
    "none of it": shutil.rmtree,
    "a band": lambda folder: next(folder.glob("*_B05.tif")).rename(folder / "other.tif"),
    "all bands": empty,
    "the end of a band": lambda folder: os.truncate(next(folder.glob("*_B05.tif")), 99),
    "its name": lambda folder: folder.rename(folder.with_name("nobody_0_0")),
}


@pytest.mark.parametrize("subset", ["all", "present"])
@pytest.mark.parametrize("fault", FAULTS)
def test_what_is_wrong_is_told_as_from_folders(archive_copy: Path, tmp_path: Path, fault: str, subset: Subset) -> None:
    """Places are the same too where the list of patches was known before the plan was made."""
    name = patch_ids(archive_copy)[3]
    FAULTS[fault](band_file(archive_copy, name).parent)
    truth = ingest(v2(archive_copy, subset), tmp_path / "truth")
    expected = publish_archive(truth)
    assert expected.patches == 23
    root = pack(archive_copy, tmp_path / "packed")
    plan, _ = ingest_streamed(streamed(root, tmp_path / "store", subset), tmp_path / "store")
    assert publish_archive(plan) == expected
    placed = fault in {"none of it", "its name"} and subset == "all"
    assert tables(plan, *(["shard", "row"] if placed else [])) == tables(truth, *(["shard", "row"] if placed else []))
    assert placed or content(plan) == content(truth)
    again, done = ingest_streamed(streamed(root, tmp_path / "store", subset), tmp_path / "store")
    assert (publish_archive(again), done) == (expected, [])


def test_nothing_is_opened_where_nothing_is_missing(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan, _ = ingest_streamed(streamed(packed, tmp_path), tmp_path)
    counts = publish_archive(plan)
    before = snapshot(tmp_path, without=["counts.json"])
    forbid_passes(monkeypatch)
    again, done = ingest_streamed(streamed(packed, tmp_path), tmp_path)
    assert done == []
    assert publish_archive(again) == counts
    after = snapshot(tmp_path, without=["counts.json"])
    assert {path: data for path, (_, data) in after.items()} == {path: data for path, (_, data) in before.items()}


def by_shard(plan: Plan, members: list[Member]) -> list[Member]:
    """Order members so that shard after shard is complete."""
    place = {source.source: shard for shard in plan.shards for _, source in shard_inputs(plan.parts, shard)}
    patches = [item for item in members if item[0].name.count("/") == 3]
    return sorted(patches, key=lambda item: (place[item[0].name.rpartition("/")[0]], item[0].name))


@pytest.fixture
def ordered(archive_root: Path, tmp_path: Path) -> Callable[[str], Path]:
    """The archive, its Sentinel-2 files shard after shard."""
    plan = make_plan(v2(archive_root), StorePaths(tmp_path / "trial"), V2, SHARD_SIZE)
    return lambda suffix: pack(archive_root, tmp_path / "ordered", suffix, lambda members: by_shard(plan, members))


def test_a_truncated_archive_keeps_what_was_sealed_and_the_next_run_does_the_rest(
    archive_root: Path, tmp_path: Path, ordered: Callable[[str], Path]
) -> None:
    root = ordered(".tar")
    whole = root.read_bytes()
    os.truncate(root, len(whole) * 6 // 10)  # of the four shards, of 8, 4, 6 and 6 patches, two
    with pytest.raises(ArchiveError, match=rf"{root.name} cannot be read .* at byte \d+ .*truncated"):
        ingest_streamed(streamed(root, tmp_path / "store"), tmp_path / "store")
    plan = make_plan(streamed(root, tmp_path / "store"), StorePaths(tmp_path / "store"), V2, SHARD_SIZE)
    assert plan.parts.done() == {0, 1}
    assert not plan.paths.buckets.exists()
    parts = snapshot(plan.parts.folder)
    root.write_bytes(whole)
    plan, done = ingest_streamed(streamed(root, tmp_path / "store"), tmp_path / "store")
    assert done == [2, 3]
    assert snapshot(plan.parts.folder).items() >= parts.items()
    publish_archive(plan)
    truth = ingest(v2(archive_root), tmp_path / "truth")
    publish_archive(truth)
    assert content(plan) == content(truth)


KILLED = """
import os, signal, sys, time
from pathlib import Path
from tasks import bucket_ingest
from tests.tasks.test_bucket_ingest import ingest_streamed, streamed

root, store = Path(sys.argv[1]), Path(sys.argv[2])
read_tar = bucket_ingest.read_tar

def dying(path):
    for i, member in enumerate(read_tar(path)):
        if path == str(root) and i == 15 * 12:  # in the middle of shard 2
            full = {"shard-00000.bucket", "shard-00001.bucket"}
            while full & {path.name for path in (store / "work" / "buckets").glob("*/*")}:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        yield member

bucket_ingest.read_tar = dying
ingest_streamed(streamed(root, store), store)
"""


def test_a_killed_run_keeps_what_was_sealed(archive_root: Path, tmp_path: Path, ordered: Callable[[str], Path]) -> None:
    root, store = ordered(".tar.zst"), tmp_path / "store"
    killed = subprocess.run([sys.executable, "-c", KILLED, str(root), str(store)], check=False, capture_output=True)
    assert killed.returncode == -9, killed.stderr
    paths = StorePaths(store)
    assert sorted(path.name for path in paths.buckets.glob("*/*")) == ["shard-00002.bucket", "shard-00003.bucket"]
    plan, done = ingest_streamed(streamed(root, store), store)
    assert done == [2, 3]
    publish_archive(plan)
    truth = ingest(v2(archive_root), tmp_path / "truth")
    publish_archive(truth)
    assert content(plan) == content(truth)
    assert not paths.buckets.exists()


def test_a_bucket_that_was_left_is_not_taken_for_a_new_one(packed: Path, tmp_path: Path) -> None:
    buckets = StorePaths(tmp_path).buckets
    buckets.mkdir(parents=True)
    (buckets / "shard-00000.bucket").write_bytes(b"half a record")
    plan, done = ingest_streamed(streamed(packed, tmp_path), tmp_path)
    assert len(done) == 4
    assert publish_archive(plan).patches == 24


def test_a_shard_of_which_only_the_answer_was_lost_is_not_missed(packed: Path, tmp_path: Path) -> None:
    archive = streamed(packed, tmp_path)
    plan, _ = ingest_streamed(archive, tmp_path)
    worker = BucketFeed(archive, plan).worker()
    assert worker.run(0).patches == plan.parts.read(0).num_rows == 8
    plan.parts.path(0).unlink()
    with pytest.raises(StoreError, match=r"shard-00000\.bucket does not exist"):
        worker.run(0)


def test_a_shard_that_another_worker_ended_meanwhile_is_done(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One on a node that was called lost writes the part and removes the bucket after this one looked for the part."""
    archive = streamed(packed, tmp_path)
    plan, _ = ingest_streamed(archive, tmp_path)
    looks = iter([False, True])
    monkeypatch.setattr(StageParts, "is_done", lambda self, shard: next(looks))
    assert BucketFeed(archive, plan).worker().run(0).patches == plan.parts.read(0).num_rows == 8


def test_a_late_worker_of_a_killed_run_leaves_the_next_one_s_buckets_alone(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It comes to its end when the next run has filled its own buckets, and removes none of them."""
    archive = streamed(packed, tmp_path)
    plan = make_plan(archive, StorePaths(tmp_path), V2, SHARD_SIZE)
    killed, following = BucketFeed(archive, plan), BucketFeed(archive, plan)
    filling, again = killed(sorted(plan.shards)), following(sorted(plan.shards))
    (shard, *_) = next(filling)
    write = StageParts.write

    def late(self: StageParts, *arguments: Any) -> None:
        monkeypatch.undo()
        full: set[int] = set()
        while full != plan.shards.keys():
            full.update(next(again))
        write(self, *arguments)

    monkeypatch.setattr(StageParts, "write", late)
    killed.worker().run(shard)
    assert plan.parts.is_done(shard)
    assert following.buckets.path(shard).exists()
    worker = following.worker()
    for each in sorted(plan.shards):
        worker.run(each)
        assert not following.buckets.path(each).exists()
    again.close()
    assert publish_archive(plan) == IngestCounts(24, 0, 0, 0)


@pytest.mark.parametrize("closed", [True, False])
def test_a_stage_that_stops_leaves_no_bucket_and_no_thread(
    packed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, closed: bool
) -> None:
    """Whether it is closed, or the disk is full, of which the error is still held then."""

    def full(fd: int, records: list[bytes]) -> int:
        raise OSError(28, "No space left on device")

    archive = streamed(packed, tmp_path)
    plan = make_plan(archive, StorePaths(tmp_path), V2, SHARD_SIZE)
    feed = BucketFeed(archive, plan)(sorted(plan.shards))
    if closed:
        next(feed)
        feed.close()
    else:
        monkeypatch.setattr(os, "writev", full)
        with pytest.raises(StoreError, match="the disk is full"):
            next(feed)
    assert not plan.paths.buckets.exists()
    assert not [thread for thread in threading.enumerate() if thread.name == "prefetch"]


def swapped(
    root: Path, put: Callable[[tarfile.TarInfo, bytes | None], list[Member]]
) -> Callable[[list[Member]], list[Member]]:
    """Replace one band of one patch."""
    name = band_file(root, patch_ids(root)[3]).relative_to(root).as_posix()
    return lambda members: [
        new for info, data in members for new in (put(info, data) if info.name == name else [(info, data)])
    ]


HOSTILE: dict[str, Callable[[str, bytes], list[Member]]] = {
    "symbolic link": lambda name, data: [member(name, None, tarfile.SYMTYPE, "/etc/passwd")],
    "hard link": lambda name, data: [member(name, None, tarfile.LNKTYPE, "../../metadata.parquet")],
    "character device": lambda name, data: [member(name, None, tarfile.CHRTYPE)],
    "block device": lambda name, data: [member(name, None, tarfile.BLKTYPE)],
    "named pipe": lambda name, data: [member(name, None, tarfile.FIFOTYPE)],
    "unknown type": lambda name, data: [member(name, data, b"Z")],
    "2097152 bytes": lambda name, data: [member(name, bytes(1 << 21))],
}


@pytest.mark.parametrize("what", HOSTILE)
def test_what_is_no_file_is_quarantined(archive_root: Path, tmp_path: Path, what: str) -> None:
    def put(info: tarfile.TarInfo, data: bytes | None) -> list[Member]:
        assert data is not None
        return HOSTILE[what](info.name, data)

    root = pack(archive_root, tmp_path / "packed", change=swapped(archive_root, put))
    plan, _ = ingest_streamed(streamed(root, tmp_path / "store"), tmp_path / "store")
    assert publish_archive(plan) == IngestCounts(23, 1, 0, 0)
    (row,) = pq.read_table(plan.paths.table("quarantine")).to_pylist()
    name = patch_ids(archive_root)[3]
    assert (row["patch_id"], row["reason"]) == (name, "unreadable")
    assert row["path"].endswith(f"/{name}_B03.tif")
    assert what in row["detail"]


def test_names_that_lead_elsewhere_are_passed_over(archive_root: Path, tmp_path: Path) -> None:
    """Nothing but the store's folder is written, and nobody's file is taken for a patch's."""

    def put(info: tarfile.TarInfo, data: bytes | None) -> list[Member]:
        return [
            *(member(name, b"other") for name in ("/etc/superscene", "../../superscene", f"/{info.name}")),
            member(f"../packed/{info.name}", b"other"),
            member(info.name.replace("/", "//", 1), b"other"),
            member(info.name.replace("/", "/../BigEarthNet-S2/", 1), b"other"),
            member("metadata.parquet", b"other"),
            (info, data),
        ]

    root = pack(archive_root, tmp_path / "packed", change=swapped(archive_root, put))
    before = snapshot(tmp_path / "packed")
    plan, _ = ingest_streamed(streamed(root, tmp_path / "store"), tmp_path / "store")
    assert publish_archive(plan) == IngestCounts(24, 0, 0, 0)
    truth = ingest(v2(archive_root), tmp_path / "truth")
    publish_archive(truth)
    assert content(plan) == content(truth)
    assert snapshot(tmp_path / "packed") == before
    assert {path.name for path in tmp_path.iterdir()} == {"packed", "store", "truth"}


@pytest.mark.parametrize("beside", [True, False])
def test_of_a_member_that_comes_twice_the_first_counts(archive_root: Path, tmp_path: Path, *, beside: bool) -> None:
    """Whether the second comes at once or after its shard is sealed; `tar x` would leave the last."""
    first = band_file(archive_root, patch_ids(archive_root)[3]).relative_to(archive_root).as_posix()

    def change(members: list[Member]) -> list[Member]:
        (place,) = (i for i, (info, _) in enumerate(members) if info.name == first)
        at = place + 1 if beside else len(members)
        return [*members[:at], member(first, b"no TIFF"), member(first, None, tarfile.SYMTYPE, "x"), *members[at:]]

    root = pack(archive_root, tmp_path / "packed", change=change)
    plan, _ = ingest_streamed(streamed(root, tmp_path / "store"), tmp_path / "store")
    publish_archive(plan)
    truth = ingest(v2(archive_root), tmp_path / "truth")
    publish_archive(truth)
    assert content(plan) == content(truth)


def test_files_that_are_far_too_large_in_all_are_refused(
    archive_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bucket_ingest, "MEAN_FILE_BYTES", 1000)
    root = pack(archive_root, tmp_path / "packed")
    with pytest.raises(ArchiveError, match="more than 1000 bytes in the mean"):
        ingest_streamed(streamed(root, tmp_path / "store"), tmp_path / "store")
    assert not StorePaths(tmp_path / "store").buckets.exists()


def test_a_pair_that_two_patches_share_goes_to_both(archive_copy: Path, tmp_path: Path) -> None:
    table = pq.ParquetFile(archive_copy / "metadata.parquet").read()
    rows = table.to_pylist()
    for row in rows[:20]:
        row["s1_name"] = rows[0]["s1_name"]
    pq.write_table(type(table).from_pylist(rows, table.schema), archive_copy / "metadata.parquet")
    truth = ingest(v2(archive_copy), tmp_path / "truth")
    expected = publish_archive(truth)
    assert expected.quarantined == 19  # they do not lie where the pair does
    root = pack(archive_copy, tmp_path / "packed")
    plan, _ = ingest_streamed(streamed(root, tmp_path / "store"), tmp_path / "store")
    assert publish_archive(plan) == expected
    assert content(plan) == content(truth)


def test_an_archive_that_was_replaced_gives_the_quarantined_another_chance(archive_copy: Path, tmp_path: Path) -> None:
    bad, still_bad = patch_ids(archive_copy)[:2]
    sound = band_file(archive_copy, bad).read_bytes()
    for patch in (bad, still_bad):
        os.truncate(band_file(archive_copy, patch), 0)
    store = tmp_path / "store"
    first, _ = ingest_streamed(streamed(pack(archive_copy, tmp_path / "packed"), store), store)
    assert publish_archive(first) == IngestCounts(22, 2, 0, 0)
    band_file(archive_copy, bad).write_bytes(sound)
    root = pack(archive_copy, tmp_path / "packed")
    second, done = ingest_streamed(streamed(root, store), store)
    assert done
    assert not set(done) & first.shards.keys()
    assert publish_archive(second) == IngestCounts(23, 1, 0, 0)
    third, done = ingest_streamed(streamed(root, store), store)
    assert (done, publish_archive(third)) == ([], IngestCounts(23, 1, 0, 0))


def test_memory_does_not_grow_with_the_archive(
    archive_root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Filling buckets of 7 MB of files holds a few chunks, here of 64 kB, and one patch."""
    monkeypatch.setattr(tar_reader, "_CHUNK", 1 << 16)
    archive = streamed(pack(archive_root, tmp_path / "packed"), tmp_path / "store")
    plan = make_plan(archive, StorePaths(tmp_path / "store"), V2, SHARD_SIZE)
    feed = BucketFeed(archive, plan)(sorted(plan.shards))
    tracemalloc.start()
    sealed = [shard for group in feed for shard in group]
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert sorted(sealed) == sorted(plan.shards)
    assert peak < 3e6


def test_other_layouts_read_folders_only(packed: Path) -> None:
    with pytest.raises(ArchiveError, match="the layout scene reads folders: unpack it"):
        open_archive("scene", packed)


def test_an_archive_that_is_not_there_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"BigEarthNet-S2\.tar is not a folder"):
        open_archive(V2, tmp_path / "BigEarthNet-S2.tar")
