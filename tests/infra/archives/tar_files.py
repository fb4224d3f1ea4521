"""Tar archives for tests, made by the stdlib."""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa

CODECS = {".zst": "zstd", ".gz": "gzip", ".tgz": "gzip"}
Member = tuple[tarfile.TarInfo, bytes | None]


@contextmanager
def writing_tar(path: Path, form: int = tarfile.PAX_FORMAT) -> Iterator[tarfile.TarFile]:
    """Open a new archive, compressed as its name says."""
    codec = CODECS.get(path.suffix)
    with (
        pa.OSFile(str(path), "wb") as raw,
        pa.CompressedOutputStream(raw, codec) if codec else raw as stream,
        tarfile.open(mode="w|", fileobj=stream, format=form) as tar,
    ):
        yield tar


def member(name: str, data: bytes | None = b"", kind: bytes = tarfile.REGTYPE, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.size = kind, link, len(data or b"")
    return info, data


def write_members(path: Path, members: Iterable[Member], form: int = tarfile.PAX_FORMAT) -> Path:
    with writing_tar(path, form) as tar:
        for info, data in members:
            tar.addfile(info, None if data is None else io.BytesIO(data))
    return path


def members_of(root: Path, top: str) -> list[Member]:
    """Everything below `<root>/<top>`, folders included, in the order of names."""
    found: list[Member] = []
    for path in sorted((root / top).rglob("*")):
        name = path.relative_to(root).as_posix()
        found.append(member(name, None, tarfile.DIRTYPE) if path.is_dir() else member(name, path.read_bytes()))
    return [member(top, None, tarfile.DIRTYPE), *found]


def pack(
    root: Path,
    target: Path,
    suffix: str = ".tar",
    change: Callable[[list[Member]], list[Member]] = lambda members: members,
    form: int = tarfile.PAX_FORMAT,
) -> Path:
    """Make the distributed form of an archive of folders: a tar archive of each, all else copied.

    Args:
        root: The archive of folders.
        target: Where to write.
        suffix: Of the tar archives.
        change: Applied to the members of the Sentinel-2 archive.
        form: Of the headers.

    Returns:
        The Sentinel-2 archive.
    """
    target.mkdir(exist_ok=True)
    (s2,) = (name for name in ("BigEarthNet-S2", "BigEarthNet-v1.0") if (root / name).is_dir())
    for path in root.iterdir():
        if path.is_dir():
            members = members_of(root, path.name)
            write_members(target / f"{path.name}{suffix}", change(members) if path.name == s2 else members, form)
        else:
            (target / path.name).write_bytes(path.read_bytes())
    return target / f"{s2}{suffix}"
