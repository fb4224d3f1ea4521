"""How rows and parts become the finished files that analysts read."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from functools import partial
from glob import escape
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from infra.parquet_files import count_rows, read_coded, read_each, read_schemas
from infra.parts import write_parquet
from infra.storage import file_size, write_atomically
from infra.tables.versions import SCHEMA_VERSION, VERSION_KEY

ROWS_PER_FILE = 2_000_000
"""Keeps published files between 20 and 250 MB once a table is large enough to need several."""

_ROWS_PER_GROUP = 1 << 18

_PARTS = "superscene.parts"
"""Key of a file's metadata: digest of the parts that it was made of."""


_GEO = json.dumps(
    {
        "version": "1.1.0",
        "primary_column": "geometry",
        "columns": {"geometry": {"encoding": "WKB", "geometry_types": ["Polygon"], "edges": "planar"}},
    }
)
"""GeoParquet 1.1 metadata; a column without "crs" is in OGC:CRS84, EPSG:4326 in longitude-latitude order."""


def publish(
    folder: Path,
    rows: pa.Table,
    schema: pa.Schema,
    sort_by: Sequence[str],
    *,
    complete: bool = True,
    file_stem: str = "data",
) -> None:
    """Write a table's files, sorted, and rename them into place; what the folder held under the stem goes.

    Args:
        folder: `tables/<name>` or a Hive folder below it.
        rows: The rows, in any order.
        schema: Their schema; its descriptions and the completeness are stored in the files.
        sort_by: Columns to sort by; together they name a row, so that the same rows give the same bytes.
        complete: False where a shard is missing: stored as `superscene.complete` in the files' metadata.
        file_stem: Files are named <stem>-00000.parquet and so on.
    """
    stored = schema.with_metadata(_metadata(schema, complete=complete))
    rows = rows.cast(stored)
    if sort_by:
        rows = rows.sort_by([(column, "ascending") for column in sort_by])
    names = _file_names(file_stem, rows.num_rows)
    for i, name in enumerate(names):
        write_parquet(folder / name, rows.slice(i * ROWS_PER_FILE, ROWS_PER_FILE))
    _remove_others(folder, file_stem, names)


def publish_parts(
    folder: Path,
    parts: Sequence[Path],
    schema: pa.Schema,
    sort_by: Sequence[str],
    *,
    complete: bool = True,
    file_stem: str = "data",
) -> bool:
    """Write what `publish` would of the rows of parts, one file in memory at a time; nothing where that is done.

    Every file says which parts it was made of. Where all files name these, they are left as they are.

    Args:
        folder: As `publish` has it.
        parts: Parquet files with the schema's columns; the same rows whenever they are written anew.
        schema: As `publish` has it.
        sort_by: Columns to sort by, at least one; together they name a row.
        complete: As `publish` has it.
        file_stem: As `publish` has it.

    Returns:
        Whether files were written.
    """
    of_parts = list(zip((part.name for part in parts), read_each(parts, file_size), strict=True))
    made_of = [schema.names, list(sort_by), complete, ROWS_PER_FILE, of_parts]
    digest = hashlib.sha256(json.dumps([SCHEMA_VERSION, *made_of]).encode()).hexdigest()
    sizes = count_rows(parts)
    names = _file_names(file_stem, sum(sizes))
    if _files_of(folder, file_stem) == set(names) and _parts_of([folder / name for name in names]) == {digest}:
        return False
    stored = schema.with_metadata({**_metadata(schema, complete=complete), _PARTS: digest})
    places = np.split(_places(parts, sort_by), np.cumsum(sizes)[:-1]) if parts else []
    for i, name in enumerate(names):
        first = i * ROWS_PER_FILE
        chosen = [(place >= first) & (place < first + ROWS_PER_FILE) for place in places]
        here = {part: of_part for part, of_part in zip(parts, chosen, strict=True) if of_part.any()}
        rows = read_each([*here], partial(_read_some, of_parts=here, columns=schema.names))
        order = np.concatenate([np.empty(0, np.int64), *(p[of] for p, of in zip(places, chosen, strict=True))])
        of_file = pa.concat_tables(rows or [stored.empty_table()]).unify_dictionaries().take(pa.array(order.argsort()))
        write_atomically(folder / name, partial(_write_groups, of_file, stored))
    _remove_others(folder, file_stem, names)
    return True


def _metadata(schema: pa.Schema, *, complete: bool) -> dict[str, str]:
    metadata = {
        VERSION_KEY: SCHEMA_VERSION,
        "superscene.complete": "true" if complete else "false",
    }
    return {**metadata, "geo": _GEO} if "geometry" in schema.names else metadata


def _file_names(stem: str, n_rows: int) -> list[str]:
    return [f"{stem}-{i:05d}.parquet" for i in range(max(1, -(-n_rows // ROWS_PER_FILE)))]


def _files_of(folder: Path, stem: str) -> set[str]:
    return {path.name for path in folder.glob(f"{escape(stem)}-{'[0-9]' * 5}.parquet")}  # not those of a longer stem


def _remove_others(folder: Path, stem: str, names: Sequence[str]) -> None:
    for name in _files_of(folder, stem) - {*names}:
        (folder / name).unlink()


def _parts_of(paths: Sequence[Path]) -> set[str]:
    """Return the digests of the parts that published files were made of; "" of one that does not say."""
    return {(schema.metadata or {}).get(_PARTS.encode(), b"").decode() for schema in read_schemas(paths)}


def _read_some(part: Path, of_parts: Mapping[Path, NDArray[np.bool_]], columns: Sequence[str]) -> pa.Table:
    """Return those rows of a part that are chosen, strings as codes."""
    return read_coded(part, columns).filter(pa.array(of_parts[part]))


def _places(parts: Sequence[Path], sort_by: Sequence[str]) -> NDArray[np.int64]:
    """Return the place of every row of the parts, one after the other, among all rows sorted."""
    keys = pa.concat_tables(read_each(parts, partial(read_coded, columns=sort_by)))
    ranks = [_ranks(keys[name]) for name in sort_by]
    del keys
    order = np.lexsort(ranks[::-1])
    places = np.empty_like(order)
    places[order] = np.arange(len(order))
    return places


def _ranks(column: pa.ChunkedArray) -> NDArray[np.int32]:
    """Return the rank of every value among the different ones, as Arrow sorts them; of a null behind all others."""
    coded = column.dictionary_encode().unify_dictionaries().combine_chunks()
    if isinstance(coded, pa.ChunkedArray):
        coded = coded.chunk(0)
    rank = np.empty(len(coded.dictionary) + 1, np.int32)
    rank[-1] = len(coded.dictionary)
    rank[pc.array_sort_indices(coded.dictionary).to_numpy()] = np.arange(len(coded.dictionary))
    return np.asarray(rank[coded.indices.fill_null(-1).to_numpy()])


def _write_groups(rows: pa.Table, schema: pa.Schema, path: Path) -> None:
    """Write a file with strings in full, a row group at a time."""
    with pq.ParquetWriter(path, schema, compression="zstd", write_page_checksum=True) as writer:
        for first in range(0, max(1, rows.num_rows), _ROWS_PER_GROUP):
            writer.write_table(rows.slice(first, _ROWS_PER_GROUP).cast(schema))
