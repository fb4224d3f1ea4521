"""Parts: one Parquet file per shard and stage, whose existence says that the shard is done."""

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from infra.fingerprint import Json, canonical_json, fingerprint
from infra.parquet_files import read_each, read_parquet
from infra.storage import StorePaths, write_atomically, write_text


@dataclass(frozen=True, slots=True)
class StageParts:
    """The parts of one stage under one config. Cheap to pickle: it holds names only."""

    paths: StorePaths
    stage: str
    config: str

    @property
    def folder(self) -> Path:
        """Where the parts lie."""
        return self.paths.work / self.stage / self.config

    def path(self, shard: int) -> Path:
        """The stage's own part, written last."""
        return self.folder / f"part-{shard:05d}.parquet"

    def side_path(self, table: str, shard: int) -> Path:
        """A further table that the same call writes, before the stage's own part."""
        return self.folder / table / f"part-{shard:05d}.parquet"

    def done(self) -> set[int]:
        """Shards whose part exists."""
        return {int(path.stem.removeprefix("part-")) for path in self.folder.glob("part-*.parquet")}

    def is_done(self, shard: int) -> bool:
        """Whether the shard's part exists."""
        return self.path(shard).exists()

    def write(self, shard: int, rows: pa.Table, side: Mapping[str, pa.Table] | None = None) -> None:
        """Write the side tables, then the part; call it after all Zarr data of the shard."""
        for table, side_rows in (side or {}).items():
            write_parquet(self.side_path(table, shard), side_rows)
        write_parquet(self.path(shard), rows)
        self._failure_path(shard).unlink(missing_ok=True)

    def read(self, shard: int) -> pa.Table:
        """Rows of one shard's part."""
        return read_parquet(self.path(shard))

    def read_side(self, table: str, shard: int) -> pa.Table:
        """Rows of one shard's side table."""
        return read_parquet(self.side_path(table, shard))

    def read_all(self, shards: Iterable[int], table: str | None = None) -> list[pa.Table]:
        """Rows of several shards' parts, or of a side table's; those on object storage are fetched side by side."""
        paths = [self.path(shard) if table is None else self.side_path(table, shard) for shard in shards]
        return read_each(paths, read_parquet)

    def write_failure(self, shard: int, attempts: int, error: str) -> None:
        """Leave the reason why a shard failed, for `status`; its next success removes it."""
        write_text(self._failure_path(shard), json.dumps({"attempts": attempts, "error": error}))

    def failures(self) -> dict[int, str]:
        """Shards that failed in their last run, with the error."""
        return {
            int(path.stem.removeprefix("failed-")): json.loads(path.read_text(encoding="utf-8"))["error"]
            for path in sorted(self.folder.glob("failed-*.json"))
        }

    def _failure_path(self, shard: int) -> Path:
        return self.folder / f"failed-{shard:05d}.json"


def stage_parts(paths: StorePaths, stage: str, determines: Mapping[str, Json]) -> StageParts:
    """Return a stage's parts under the config that its determining values give, and write that config down.

    Args:
        paths: The store.
        stage: Name of the stage; part of the fingerprint.
        determines: Whatever determines the rows: hashes of weights, parameters, dtype, the input's own config, label
            order, the schema's version. Never batch size, paths, device or commit.
    """
    config = stage_config(stage, determines)
    value: dict[str, Json] = {"stage": stage, **determines}
    record = paths.work / "configs" / f"{config}.json"
    if not record.exists():
        write_text(record, canonical_json({"config": config, "stage": stage, "json": value}))
    return StageParts(paths, stage, config)


def stage_config(stage: str, determines: Mapping[str, Json]) -> str:
    """Return the config of a stage's determining values, without writing anything."""
    return fingerprint({"stage": stage, **determines})


def recorded_configs(paths: StorePaths) -> list[dict[str, str]]:
    """Every config of the store as rows of `tables/configs`."""
    rows = []
    for path in sorted((paths.work / "configs").glob("*.json")):
        record = json.loads(path.read_text(encoding="utf-8"))
        rows.append({"config": record["config"], "stage": record["stage"], "json": canonical_json(record["json"])})
    return rows


def write_parquet(path: Path, table: pa.Table, row_group_size: int | None = None) -> None:
    """Write one Parquet file atomically: zstd, page checksums, the same bytes for the same rows."""
    write_atomically(
        path,
        lambda temporary: pq.write_table(
            table, temporary, compression="zstd", write_page_checksum=True, row_group_size=row_group_size
        ),
    )


def read_parts(parts: StageParts, shards: Iterable[int]) -> pa.Table:
    """Rows of several shards' parts, in the order given."""
    return pa.concat_tables(parts.read_all(shards))
