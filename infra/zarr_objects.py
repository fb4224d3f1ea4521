"""Object storage for zarr-python, over the blocking calls of `infra.object_store` in threads.

zarr-python has a store for obstore, but it hands over views of buffers: a PUT of such a view that failed was seen to
crash the interpreter at the next garbage collection (obstore 0.12.1, CPython 3.12.1). Here values are bytes, and errors
are this project's.
"""

import asyncio
from collections.abc import AsyncIterator, Iterable
from typing import Self

from zarr.abc.store import ByteRequest, OffsetByteRequest, RangeByteRequest, Store
from zarr.core.buffer import Buffer, BufferPrototype

from infra.object_store import ObjectPath, get_part, put


class ZarrObjects(Store):
    """What lies below a path, by key."""

    supports_writes = True
    supports_deletes = True
    supports_listing = True

    def __init__(self, root: ObjectPath, *, read_only: bool) -> None:
        super().__init__(read_only=read_only)
        self._root = root

    def __eq__(self, other: object) -> bool:
        return isinstance(other, ZarrObjects) and (self._root, self.read_only) == (other._root, other.read_only)

    __hash__ = None  # type: ignore[assignment]

    def __str__(self) -> str:
        return str(self._root)

    def with_read_only(self, read_only: bool = False) -> Self:  # noqa: FBT001, FBT002  # zarr's signature
        """Return the same place, to read alone or to write too."""
        return type(self)(self._root, read_only=read_only)

    async def get(self, key: str, prototype: BufferPrototype, byte_range: ByteRequest | None = None) -> Buffer | None:
        """Return a value or a range of it, or None where there is none."""
        try:
            content = await asyncio.to_thread(_get, self._root / key, byte_range)
        except FileNotFoundError:
            return None
        return prototype.buffer.from_bytes(content)

    async def get_partial_values(
        self, prototype: BufferPrototype, key_ranges: Iterable[tuple[str, ByteRequest | None]]
    ) -> list[Buffer | None]:
        """Return several values, or ranges of them."""
        return list(await asyncio.gather(*(self.get(key, prototype, part) for key, part in key_ranges)))

    async def exists(self, key: str) -> bool:
        """Return whether there is such a value."""
        return await asyncio.to_thread((self._root / key).is_file)

    async def set(self, key: str, value: Buffer) -> None:
        """Write a value, whole."""
        self._check_writable()
        await asyncio.to_thread(put, self._root / key, value.to_bytes())

    async def delete(self, key: str) -> None:
        """Remove a value, if there is one."""
        self._check_writable()
        await asyncio.to_thread((self._root / key).unlink, missing_ok=True)

    async def list(self) -> AsyncIterator[str]:
        """Yield all keys."""
        async for key in self.list_prefix(""):
            yield key

    async def list_prefix(self, prefix: str) -> AsyncIterator[str]:
        """Yield the keys that begin with a prefix."""
        folder = self._root / prefix if prefix.endswith("/") else (self._root / prefix).parent if prefix else self._root
        for path in await asyncio.to_thread(lambda: [*folder.rglob("*")]):
            key = path.relative_to(self._root).as_posix()
            if key.startswith(prefix):
                yield key

    async def list_dir(self, prefix: str) -> AsyncIterator[str]:
        """Yield the names that lie in a folder."""
        for path in await asyncio.to_thread(lambda: [*(self._root / prefix).iterdir()]):
            yield path.name


def _get(path: ObjectPath, part: ByteRequest | None) -> bytes:
    if part is None:
        return path.read_bytes()
    if isinstance(part, RangeByteRequest):
        return get_part(path, part.start, part.end)
    if isinstance(part, OffsetByteRequest):
        return get_part(path, part.offset, None)
    return get_part(path, -part.suffix, None)
