"""Reading a tar archive once, front to back, as a stream: small, strict, and nothing is ever unpacked.

The stdlib's `tarfile` keeps a list of all members and reads each through three layers of objects; here a member is a
header that is checked and a slice of the chunk that was decompressed last, in a thread of its own. Read are ustar, PAX
and GNU long names. Links, devices, pipes and sparse files are told as what they are, never followed or expanded.

Source: POSIX.1-2017, pax, "ustar Interchange Format"; GNU tar manual, "Basic Tar Format".
"""

import zlib
from collections.abc import Generator, Iterator
from contextlib import closing
from functools import lru_cache
from pathlib import Path
from typing import Final, NamedTuple

import pyarrow as pa

from infra.errors import ArchiveError, PipelineError
from infra.prefetch import prefetch
from infra.storage import open_once

SUFFIXES = (".tar", ".tar.zst", ".tar.gz", ".tgz")
"""How names of tar archives end."""

MEMBER_BYTES = 1 << 20
"""Largest member whose bytes are handed out; BigEarthNet's largest file has 57,992."""

MAX_EXPANSION = 100
"""Bytes that a compressed byte may become, in the mean of a whole archive; BigEarthNet's: less than 2."""

_SPARE_BYTES = 1 << 30  # which any archive may expand to: small ones are mostly padding
_CODECS = {".zst": "zstd", ".gz": "gzip", ".tgz": "gzip"}
_CHUNK = 1 << 19  # larger ones leave the cache before they are read; handing over smaller ones takes longer
_CHUNKS_AHEAD = 8
_BLOCK = 512
_EXTENSION_BYTES = 1 << 16  # a name and a few records
_FAULTS: Final = {
    b"1": "a hard link",
    b"2": "a symbolic link",
    b"3": "a character device",
    b"4": "a block device",
    b"6": "a named pipe",
    b"S": "a sparse file",
    b"M": "the rest of a file of another volume",
}
_WITHOUT_DATA = b"123456"
_OCTAL = b"01234567"
_REGULAR = b"0\x007"
_EXTENSIONS = b"LKxg"
_ZEROS = bytes(_BLOCK)
_KIND = 156  # where a header says of what type the member is
_LONG_NAME = ord("L")


class TarMember(NamedTuple):
    """One member of a tar archive."""

    name: str
    """As it stands there, without leading "./": it may be absolute, or hold "..", and is never to become a path."""
    data: memoryview | None
    """The bytes of a regular file of at most MEMBER_BYTES; valid for as long as it is held. None for all else."""
    fault: str | None = None
    """What it is, where it is neither a folder nor such a file."""
    is_folder: bool = False


class _Extension(NamedTuple):
    """What extension headers say of the member behind them."""

    name: str | None = None
    size: int | None = None
    is_sparse: bool = False


_PLAIN = _Extension()


def read_tar(path: str) -> Generator[TarMember]:
    """Yield an archive's members in their order.

    What is held at a time is one member and a few chunks of what was decompressed ahead.

    Args:
        path: A file or its URL, whose name ends as SUFFIXES say.

    Raises:
        ArchiveError: It is missing, truncated, broken, no tar archive, or expands beyond any sense.
        StoreError, TransientError: Object storage does not hand it out.
    """
    with closing(prefetch(_chunks(path), _CHUNKS_AHEAD)) as chunks:
        yield from _Stream(path, chunks).members()


def is_tar(path: Path) -> bool:
    """Return whether a file's name says that it is a tar archive."""
    return path.name.endswith(SUFFIXES)


def _chunks(path: str) -> Generator[bytes]:
    """Yield what the file holds, decompressed."""
    codec = _CODECS.get(Path(path).suffix)
    try:
        raw, size = open_once(path)
    except PipelineError:  # object storage has told already what is wrong
        raise
    except OSError as error:
        raise ArchiveError(f"the archive {path} cannot be read: {error}") from error
    with raw:
        room = MAX_EXPANSION * size + _SPARE_BYTES
        stream = pa.CompressedInputStream(raw, codec) if codec else raw
        while True:
            try:
                chunk = stream.read(_CHUNK)
            except PipelineError:  # the network failed, not the archive
                raise
            except (OSError, pa.ArrowException) as error:
                raise ArchiveError(
                    f"{path} is broken or truncated near byte {raw.tell()} of {size}: {error}; download it again"
                ) from error
            if not chunk:
                return
            room -= len(chunk)
            if room < 0:
                raise ArchiveError(
                    f"{path} expands to more than {MAX_EXPANSION} times its {size} bytes: images never do"
                )
            yield chunk


class _Stream:
    """Chunks as one stream, and its members."""

    def __init__(self, path: str, chunks: Iterator[bytes]) -> None:
        self._path = path
        self._chunks = chunks
        self._chunk = b""
        self._view = memoryview(b"")
        self._at = 0
        self._before = 0  # bytes of the chunks before this one

    def members(self) -> Iterator[TarMember]:
        """Yield the members up to the end mark, then go through what is left, for its checksum."""
        extension = _PLAIN
        while True:
            while extension is _PLAIN and (member := self._plain_member()) is not None:
                yield member
            header = self._header()
            if header is None:
                break
            kind = header[156:157]
            length = self._number(header[124:136])
            if kind in _EXTENSIONS:
                extension = self._extended(extension, kind, length)
                continue
            yield self._member(header, kind, length, extension)
            extension = _PLAIN
        if extension is not _PLAIN:
            raise self._broken("it ends after an extension header")
        while self._next_chunk():
            pass

    def _plain_member(self) -> TarMember | None:
        """Return the next member if it is a plain file and lies within this chunk, as nearly all do; else None."""
        chunk, at, name = self._chunk, self._at, None
        if at + 3 * _BLOCK > len(chunk):
            return None
        if chunk[at + _KIND] == _LONG_NAME:
            length = _long_name(chunk[at : at + _BLOCK])
            if length is None:
                return None
            at += 2 * _BLOCK
            name = chunk[at - _BLOCK : at - _BLOCK + length]
        header = chunk[at : at + _BLOCK]
        size = _file_size(header[100:136] + header[156:])
        if size is None or not _is_sound(header):
            return None
        start = at + _BLOCK
        after = start + size + -size % _BLOCK
        if after > len(chunk):
            return None
        self._at = after
        text = _text((header[:100] if name is None else name).partition(b"\0")[0])
        return TarMember(_without_dots(text), self._view[start : start + size])

    def _extended(self, before: "_Extension", kind: bytes, length: int) -> "_Extension":
        """Return what the extension headers in front of a member say, with one more of them."""
        if length > _EXTENSION_BYTES:
            raise self._broken(f"an extension header claims {length} bytes, {_EXTENSION_BYTES} are plenty")
        content = bytes(self._take(length))
        if kind == b"L":
            return _Extension(_text(content.partition(b"\0")[0]), before.size, before.is_sparse)
        if kind == b"K":  # the name that a link points to
            return before
        records = self._records(content)
        if kind == b"g":
            if not records.keys().isdisjoint({"path", "size"}):
                raise self._broken("a global header gives all members one name or size")
            return before
        return _Extension(
            records.get("path", before.name),
            self._decimal(records["size"]) if "size" in records else before.size,
            is_sparse=any(key.startswith("GNU.sparse.") for key in records),
        )

    def _member(self, header: bytes, kind: bytes, length: int, extension: "_Extension") -> TarMember:
        if extension.size is not None:
            length = extension.size
        name = _without_dots(_own_name(header) if extension.name is None else extension.name)
        if kind == b"S":
            self._skip_sparse_maps(header)
        if kind in _WITHOUT_DATA:
            return TarMember(name, None, _FAULTS.get(kind), is_folder=kind == b"5")
        own = header[:100].partition(b"\0")[0]
        if kind == b"\0" and own.endswith(b"/"):  # a folder, before there was a type for it
            return TarMember(name, None, is_folder=True)
        fault = None
        if extension.is_sparse or kind not in _REGULAR:
            fault = "a sparse file" if extension.is_sparse else _FAULTS.get(kind, f"of the unknown type {kind!r}")
        elif length > MEMBER_BYTES:
            fault = f"of {length} bytes, where {MEMBER_BYTES} are plenty"
        if fault is not None:
            self._skip(length)
            return TarMember(name, None, fault)
        return TarMember(name, self._take(length))

    def _header(self) -> bytes | None:
        """Return the next header, its checksum verified; None for the end of the archive."""
        at = self._at
        header = self._chunk[at : at + _BLOCK]
        if len(header) == _BLOCK:
            self._at = at + _BLOCK
        else:
            header = bytes(self._gather(_BLOCK, at_header=True))
        if header == _ZEROS:
            following = bytes(self._gather(_BLOCK, at_header=True, may_end=True))
            if following.strip(b"\0"):
                raise self._broken("members follow a block of zeros, which ends an archive")
            return None
        if not _is_sound(header):
            total = self._number(header[148:156]) + sum(header[148:156]) - 256
            if total != _signed_sum(header):
                raise self._broken("a header's checksum is wrong")
        return header

    def _take(self, length: int) -> memoryview:
        """Return a member's bytes and pass over its padding."""
        at = self._at
        padded = length + -length % _BLOCK
        if at + padded <= len(self._chunk):
            self._at = at + padded
            return self._view[at : at + length]
        return self._gather(padded)[:length]

    def _gather(self, length: int, *, at_header: bool = False, may_end: bool = False) -> memoryview:
        """Return bytes that lie in more than one chunk."""
        parts = []
        missing = length
        while missing:
            part = self._view[self._at : self._at + missing]
            self._at += len(part)
            missing -= len(part)
            parts.append(part)
            if missing and not self._next_chunk():
                if may_end and missing == length:
                    break
                what = "without the blocks of zeros that end an archive" if at_header else "within a member"
                raise self._broken(f"it is truncated: it ends {what}")
        return memoryview(b"".join(parts))

    def _skip(self, length: int) -> None:
        missing = length + -length % _BLOCK
        while missing > (here := len(self._chunk) - self._at):
            missing -= here
            if not self._next_chunk():
                raise self._broken("it is truncated: it ends within a member")
        self._at += missing

    def _next_chunk(self) -> bool:
        self._before += len(self._chunk)
        self._chunk = next(self._chunks, b"")
        self._view = memoryview(self._chunk)
        self._at = 0
        return bool(self._chunk)

    def _skip_sparse_maps(self, header: bytes) -> None:
        more = header[482]
        while more:
            more = self._gather(_BLOCK)[504]

    def _number(self, field: bytes) -> int:
        """Return a header's number."""
        number = _number(field)
        if number is None:
            raise self._broken(f"a header has {field!r} where a number belongs")
        return number

    def _decimal(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 20):
            raise self._broken(f"a PAX header gives the size {text[:40]!r}")
        return int(text)

    def _records(self, content: bytes) -> dict[str, str]:
        """Return a PAX header's records: length, space, key, equals sign, value, line feed."""
        records: dict[str, str] = {}
        at = 0
        while at < len(content):
            digits, space, _ = content[at : at + 21].partition(b" ")
            stop = at + int(digits) if space and digits.isdigit() else -1
            record = content[at + len(digits) + 1 : stop]
            key, equals, value = record[:-1].partition(b"=")
            if not at < stop <= len(content) or record[-1:] != b"\n" or not equals:
                raise self._broken("a PAX header is malformed")
            records[_text(key)] = _text(value)
            at = stop
        return records

    def _broken(self, why: str) -> ArchiveError:
        at = self._before + self._at
        return ArchiveError(f"{self._path} cannot be read as a tar archive at byte {at} of its contents: {why}")


@lru_cache(maxsize=256)
def _file_size(rest: bytes) -> int | None:
    """Return the bytes of a regular file from all that its header has beside name, time and checksum.

    The files of an archive have few sizes, and one owner: what was found out for one header holds for thousands.

    Returns:
        None: look closer.
    """
    size, kind = _number(rest[24:36]), rest[36:37]
    if size is None or (rest[137:143] == b"ustar\0" and rest[225]):  # a part of the name lies elsewhere
        return None
    return size if kind == b"0" and size <= MEMBER_BYTES else None


@lru_cache(maxsize=256)
def _long_name(header: bytes) -> int | None:
    """Return the bytes of the name that follows a sound header in one block; None: look closer.

    GNU tar writes one such header for all names of one length, which is why it is known as a whole.
    """
    length = _number(header[124:136])
    is_known = length is not None and 0 < length <= _BLOCK and _is_sound(header)  # an empty name has no block
    return length if is_known else None


def _is_sound(header: bytes) -> bool:
    """Return whether a header's checksum is that of its bytes, unsigned."""
    # The low half of Adler-32 is 1 + the sum of all bytes, modulo 65521: a sum at the speed of zlib.
    return _adler(header[148:156]) == zlib.adler32(header) & 0xFFFF


@lru_cache(maxsize=4096)
def _adler(checksum: bytes) -> int | None:
    """Return the low half of the Adler-32 of a header with that checksum, a field of eight bytes; None: it is none."""
    total = _number(checksum)
    return None if total is None else (total + sum(checksum) - 256 + 1) % 65521  # summed with eight spaces in its place


def _number(field: bytes) -> int | None:
    """Return a header's number: octal, or binary where its first bit is set; None where it is none."""
    digits = field.strip(b" \0")
    if not digits:
        return 0
    if field[0] == 0x80:
        return int.from_bytes(field[1:], "big")
    return None if digits.strip(_OCTAL) else int(digits, 8)


def _own_name(header: bytes) -> str:
    name = header[:100].partition(b"\0")[0]
    if header[257:263] == b"ustar\0" and header[345]:  # GNU's magic is another, and has times there
        name = header[345:500].partition(b"\0")[0] + b"/" + name
    return _text(name)


def _without_dots(name: str) -> str:
    while name.startswith("./"):
        name = name[2:]
    return name


def _text(name: bytes) -> str:
    return name.decode("utf-8", "backslashreplace")


def _signed_sum(header: bytes) -> int:
    return sum(header) - 256 * sum(byte > 127 for byte in header)
