"""Parquet files wherever the store lies: local ones as pyarrow opens them, objects by ranges or in one piece."""

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, NoReturn

import pyarrow as pa
import pyarrow.dataset as ds
import pyarrow.parquet as pq
from pyarrow import fs

from infra.object_store import ObjectPath, RangeReader, head

_AT_ONCE = 16
"""Objects that are read side by side."""


def read_each[T](paths: Sequence[Path], read: Callable[[Path], T]) -> list[T]:
    """Return what a function makes of each file, in their order; those on object storage are read side by side."""
    if not any(isinstance(path, ObjectPath) for path in paths):
        return [read(path) for path in paths]
    with ThreadPoolExecutor(_AT_ONCE) as threads:
        return list(threads.map(read, paths))


def read_parquet(path: Path, columns: Sequence[str] | None = None) -> pa.Table:
    """Return a file's rows, without columns out of the names of its folders.

    Args:
        path: The file.
        columns: Columns to read; all of an object are fetched by one request, some by ranges.

    Raises:
        FileNotFoundError: There is none.
    """
    chosen = None if columns is None else list(columns)
    if not isinstance(path, ObjectPath):
        return pq.ParquetFile(path).read(columns=chosen)
    if columns is None:
        return pq.ParquetFile(pa.BufferReader(path.read_bytes())).read()
    return pq.ParquetFile(_ranges(path), pre_buffer=True).read(columns=chosen)


def read_coded(path: Path, columns: Sequence[str]) -> pa.Table:
    """Return columns of a file, those of strings as codes: names that many rows share are held once.

    Raises:
        FileNotFoundError: There is none.
    """
    source = _source(path)
    file = pq.ParquetFile(source)
    texts = [field.name for field in file.schema_arrow if pa.types.is_string(field.type)]
    remote = isinstance(path, ObjectPath)
    coded = pq.ParquetFile(source, metadata=file.metadata, read_dictionary=texts, pre_buffer=remote)
    return coded.read(columns=list(columns))


def read_rows(path: Path, column: str, value: str | int) -> pa.Table:
    """Return the rows of a file where a column has a value; row groups without it are not read.

    Raises:
        FileNotFoundError: There is none.
    """
    return pq.read_table(_source(path), filters=[(column, "=", value)], partitioning=None)


def read_schemas(paths: Sequence[Path]) -> list[pa.Schema]:
    """Return the schemas of files, those of objects side by side.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return read_each(paths, lambda path: pq.read_schema(_source(path)))


def count_rows(paths: Sequence[Path]) -> list[int]:
    """Return how many rows each of some files has, by their footers; those of objects are read side by side.

    Raises:
        FileNotFoundError: There is no such file.
    """
    return read_each(paths, lambda path: pq.read_metadata(_source(path)).num_rows)


def parquet_dataset(
    files: Sequence[Path], schema: pa.Schema | None = None, folder: Path | None = None, hive: pa.Schema | None = None
) -> ds.Dataset:
    """Return files of one store as a dataset, which reads what is asked of it.

    Args:
        files: Its files, at least one.
        schema: Its columns; that of the first file, unless given.
        folder: Where names of folders begin to be columns.
        hive: These columns; none, unless given.
    """
    remote = isinstance(files[0], ObjectPath)
    partitioning: dict[str, Any] = {}
    if hive is not None and folder is not None:
        partitioning["partitioning"] = ds.partitioning(hive, flavor="hive")
        partitioning["partition_base_dir"] = _name(folder)
    return ds.dataset(
        [_name(file) for file in files],
        schema=schema,
        format="parquet",
        filesystem=fs.PyFileSystem(_Objects()) if remote else None,
        **partitioning,
    )


def _ranges(path: ObjectPath) -> pa.PythonFile:
    return pa.PythonFile(RangeReader(path), mode="r")


def _source(path: Path) -> "Path | pa.PythonFile":
    return _ranges(path) if isinstance(path, ObjectPath) else path


def _name(path: Path) -> str:
    """Return a file's name for pyarrow; of an object scheme/bucket/key, as it takes a URL for a file system's own."""
    return f"{path.parts[0].rstrip(':')}/{'/'.join(path.parts[1:])}" if isinstance(path, ObjectPath) else str(path)


def _path(name: str) -> ObjectPath:
    scheme, _, rest = name.partition("/")
    return ObjectPath(f"{scheme}:", rest)


class _Objects(fs.FileSystemHandler):  # type: ignore[misc]  # pyarrow has no annotations
    """What pyarrow's datasets ask of a file system; there is nothing to write with."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Objects)

    __hash__ = None  # type: ignore[assignment]

    def get_type_name(self) -> str:
        return "objects"

    def normalize_path(self, path: str) -> str:
        return path

    def get_file_info(self, paths: Sequence[str]) -> list[fs.FileInfo]:
        found = [(path, head(_path(path))) for path in paths]
        return [
            fs.FileInfo(path, fs.FileType.NotFound)
            if meta is None
            else fs.FileInfo(path, fs.FileType.File, size=meta["size"])
            for path, meta in found
        ]

    def open_input_file(self, path: str) -> pa.PythonFile:
        return _ranges(_path(path))

    def open_input_stream(self, path: str) -> pa.PythonFile:
        return _ranges(_path(path))

    def _refuse(self, *_: object) -> NoReturn:
        raise NotImplementedError("datasets are read")

    get_file_info_selector = create_dir = delete_dir = delete_dir_contents = delete_root_dir_contents = _refuse
    delete_file = move = copy_file = open_output_stream = open_append_stream = _refuse
