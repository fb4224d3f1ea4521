"""Ingest from tar archives: one pass over each fills a bucket a shard, and full buckets are ingested meanwhile."""

import logging
import secrets
from collections import Counter
from collections.abc import Generator, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial

import pyarrow as pa

from infra.archives.buckets import Bucket, Buckets, BucketWriter, Fault, folder_record, packed_files
from infra.archives.modality import Modality
from infra.archives.model import PatchFormat
from infra.archives.packing import FolderPacker
from infra.archives.streamed import BucketArchive, StreamedArchive
from infra.archives.tar_inventory import FolderList, TarContents, fault_of, folder_of
from infra.archives.tar_reader import TarMember, read_tar
from infra.errors import ArchiveError, StoreError
from infra.parts import StageParts
from infra.prefetch import prefetch_groups
from infra.zarr_store import ShardedStore
from tasks.ingest import ShardIngester
from tasks.plan import Plan, inputs_of_shards
from tasks.stage import ShardCount

MEAN_FILE_BYTES = 1 << 16
"""Bytes of a file in the mean of an archive, at most: buckets that grow beyond it are none of images of this size."""

logger = logging.getLogger(__name__)


class BucketIngester:
    """Ingests a shard from its bucket, and removes that when the shard's part is written."""

    def __init__(
        self, archive: StreamedArchive, patch_format: PatchFormat, parts: StageParts, buckets: Buckets
    ) -> None:
        self._source = BucketArchive(archive)
        self._parts = parts
        self._buckets = buckets
        self._ingester = ShardIngester(self._source, patch_format, parts)

    def run(self, shard: int) -> ShardCount:
        """Ingest one shard, as `ShardIngester` does from folders."""
        path = self._buckets.path(shard)
        if self._parts.is_done(shard):
            return self._done_before(shard)
        try:
            opened = Bucket(path)
        except StoreError:
            if self._parts.is_done(shard):  # since this worker looked
                return self._done_before(shard)
            raise
        with opened as bucket:
            self._source.bucket = bucket
            count = self._ingester.run(shard)
        path.unlink(missing_ok=True)
        return count

    def _done_before(self, shard: int) -> ShardCount:
        """Return the count of a shard that a worker did who died then, or whose node was not lost after all."""
        self._buckets.path(shard).unlink(missing_ok=True)
        return ShardCount(self._parts.read(shard).num_rows)


@dataclass(frozen=True, slots=True)
class BucketFeed:
    """Fills the buckets of a plan's missing shards, and tells of the full ones."""

    archive: StreamedArchive
    plan: Plan
    run: str = field(default_factory=partial(secrets.token_hex, 8))
    """Names this run's buckets: a killed one's workers may live on for a while, and must not meet them."""

    @property
    def buckets(self) -> Buckets:
        """Where the files of each shard are; all workers have to see that folder."""
        return Buckets(self.plan.paths.buckets / self.run)

    def worker(self) -> BucketIngester:
        """Return what ingests a shard from its bucket."""
        return BucketIngester(self.archive, self.plan.format, self.plan.parts, self.buckets)

    def __call__(self, missing: list[int]) -> Generator[Sequence[int]]:
        """Yield groups of shards whose buckets are full, while the passes go on in a thread of their own.

        Args:
            missing: The shards to fill buckets for; without any, no archive is opened.

        Raises:
            ArchiveError: An archive cannot be read to its end. Shards that were full before are yielded first.
            StoreError: The scratch folder cannot be written.
        """
        everything = Buckets(self.plan.paths.buckets)
        everything.remove()  # of a run that was killed
        if not missing:
            return
        everything.make()
        self.buckets.make()
        try:
            yield from prefetch_groups(self._fill(self.buckets, missing), depth=len(missing), most=len(missing))
        finally:
            everything.remove()

    def _fill(self, buckets: Buckets, missing: list[int]) -> Generator[int]:
        self.archive.begin()
        inputs = inputs_of_shards(self.plan.parts, missing)
        *others, last = self.archive.passes
        store = ShardedStore(self.plan.paths.archive)
        budget = MEAN_FILE_BYTES * len(inputs) * sum(len(modality.suffixes) for modality in self.archive.passes)
        with BucketWriter(buckets) as writer:
            for modality in others:
                one = _Pass(self.archive.tars[modality.top], modality, inputs, writer, store, budget)
                for _ in one.run():
                    pass
                budget -= one.written
            final = _Pass(self.archive.tars[last.top], last, inputs, writer, store, budget)
            unsealed = set(missing)
            for shard in final.run():
                unsealed.remove(shard)
                writer.close(shard)
                yield shard
            self.archive.inventory().save(last.top, TarContents(final.folders))
            for shard in sorted(unsealed):  # the archive has no more: what is missing is not there
                writer.append(shard, ())
                writer.close(shard)
                yield shard


class _Wanted:
    """A folder that some shards want."""

    __slots__ = ("missing", "seen", "shards")

    def __init__(self, missing: int) -> None:
        self.shards: tuple[int, ...] = ()
        self.missing = missing  # one bit a file that has not come by yet
        self.seen = False


class _Pass:
    """One pass over one archive."""

    def __init__(
        self, path: str, modality: Modality, inputs: pa.Table, writer: BucketWriter, store: ShardedStore, budget: int
    ) -> None:
        self.written = 0
        self._packer = FolderPacker(modality, store)
        self._path, self._modality, self._writer, self._budget = path, modality, writer, budget
        self._bits = {suffix: 1 << i for i, suffix in enumerate(modality.suffixes)}
        self._everything = (1 << len(self._bits)) - 1
        self._wanted: dict[str, _Wanted] = {}
        self._open: Counter[int] = Counter()  # folders of each shard of which files are missing
        self._list = FolderList(modality.top, by_product=modality.by_product)
        self._ignored: Counter[str] = Counter()
        self._want(inputs)

    @property
    def folders(self) -> list[str]:
        """Patch folders that the archive has."""
        return self._list.folders

    def _want(self, inputs: pa.Table) -> None:
        for batch in inputs.to_batches(max_chunksize=8192):
            for patch_id, s1_name, source, shard in zip(*(column.to_pylist() for column in batch.columns), strict=True):
                folder = source if self._modality.folder is None else self._modality.folder(patch_id, s1_name)
                if folder is None:
                    continue
                wanted = self._wanted.setdefault(folder, _Wanted(self._everything))
                if shard not in wanted.shards:
                    wanted.shards += (shard,)
                    self._open[shard] += 1

    def run(self) -> Iterator[int]:
        """Append what is wanted to the buckets; yield each shard as soon as all of its files came by."""
        with closing(read_tar(self._path)) as archive:
            for folder, members in _by_folder(archive):
                yield from self._sort(folder, members)
        if self._ignored:
            logger.info("%s: members passed over: %s", self._path, dict(self._ignored))

    def _sort(self, folder: str, members: Sequence[TarMember]) -> Iterator[int]:
        """Append some members of one folder to the buckets; yield the shards whose last files they are."""
        self._list.meet(folder)
        wanted = self._wanted.get(folder)
        if wanted is None:
            self._ignored["not asked for"] += len(members)
            return
        at_once = wanted.missing == self._everything
        files = self._files(folder, wanted, members)
        if not files and wanted.seen:
            return
        wanted.seen = True
        if at_once and not wanted.missing:
            files = self._packed(folder, files)
        record = folder_record(folder, files)
        for shard in wanted.shards:
            self._append(shard, record)
        if files and not wanted.missing:
            for shard in wanted.shards:
                self._open[shard] -= 1
                if not self._open[shard]:
                    yield shard

    def _files(
        self, folder: str, wanted: _Wanted, members: Iterable[TarMember]
    ) -> list[tuple[str, memoryview | Fault]]:
        """Return those members of a folder that are wanted and come by for the first time."""
        files: list[tuple[str, memoryview | Fault]] = []
        start = len(folder) + 1
        stem = f"{folder}/{folder.rpartition('/')[2]}"
        for member in members:
            name = member.name
            bit = self._bits.get(name[len(stem) :]) if name.startswith(stem) else None
            if bit is None:
                self._ignored["not asked for"] += not member.is_folder
            elif not wanted.missing & bit:
                self._ignored["named twice, of which the first counts"] += 1
            else:
                wanted.missing &= ~bit
                files.append((name[start:], Fault(*fault_of(member)) if member.data is None else member.data))
        return files

    def _packed(self, folder: str, files: list[tuple[str, memoryview | Fault]]) -> list[tuple[str, memoryview | Fault]]:
        """Return the files of a folder that came by whole, its bands packed where they can be."""
        start = len(folder) - folder.rfind("/") - 1
        whole = {name[start:]: data for name, data in files if not isinstance(data, Fault)}
        pixels = self._packer.pack(whole) if len(whole) == len(files) else None
        if pixels is None:
            return files
        return [*((name, data) for name, data in files if not name.endswith(".tif")), *packed_files(pixels)]

    def _append(self, shard: int, record: Sequence[bytes | memoryview]) -> None:
        self.written += self._writer.append(shard, record)
        if self.written > self._budget:
            raise ArchiveError(
                f"{self._path} holds files of more than {MEAN_FILE_BYTES} bytes in the mean: it is no BigEarthNet"
            )


def _by_folder(members: Iterable[TarMember]) -> Iterator[tuple[str, list[TarMember]]]:
    """Yield members that follow each other and lie in one folder; a folder itself lies in itself."""
    group: list[TarMember] = []
    last = ""
    for member in members:
        folder = folder_of(member)
        if folder != last or len(group) == _GROUP:
            if group:
                yield last, group
            group, last = [], folder
        group.append(member)
    if group:
        yield last, group


_GROUP = 64
"""Members that are held at most before they are appended: more than any patch has."""


def with_contents(plan: Plan, archive: StreamedArchive) -> Plan:
    """Return the plan with the scan that the unpacked archive would give, now that it has been passed over."""
    return replace(plan, scan=archive.scan_through())
