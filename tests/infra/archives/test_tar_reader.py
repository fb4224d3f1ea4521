import io
import os
import subprocess
import tarfile
from pathlib import Path

import pyarrow as pa
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from infra.archives import tar_reader
from infra.archives.tar_reader import MEMBER_BYTES, TarMember, is_tar, read_tar
from infra.errors import ArchiveError, StoreError, TransientError
from infra.object_store import ObjectPath
from infra.storage import write_bytes
from tests.infra.archives.tar_files import member, write_members, writing_tar
from tests.infra.s3_server import Fault, S3Server

LONG = "BigEarthNet-S2/" + "x" * 60 + "/" + "y" * 60 + "/"


def everything(path: Path) -> list[tuple[str, bytes | None]]:
    """What a reader sees, names of folders as tarfile gives them."""
    return [
        (m.name.rstrip("/") if m.is_folder else m.name, None if m.data is None else bytes(m.data))
        for m in read_tar(str(path))
    ]


def by_tarfile(path: Path) -> list[tuple[str, bytes | None]]:
    """The same by the standard library, from a file that is not compressed or compressed by gzip."""
    with tarfile.open(path) as tar:
        return [(m.name, None if (file := tar.extractfile(m)) is None else file.read()) for m in tar]


@pytest.mark.parametrize("form", [tarfile.USTAR_FORMAT, tarfile.GNU_FORMAT, tarfile.PAX_FORMAT])
@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tgz"])
def test_members_are_those_that_tarfile_reads(tmp_path: Path, suffix: str, form: int) -> None:
    contents = [b"", b"a", bytes(range(256)) * 2, os.urandom(513), os.urandom(70_000), os.urandom(1 << 20)]
    members = [member(f"{LONG}{i}_é.tif", data) for i, data in enumerate(contents)]
    members.insert(2, member("folder", None, tarfile.DIRTYPE))
    members.append(member("short", b"last"))
    path = write_members(tmp_path / f"a{suffix}", members, form)
    assert everything(path) == by_tarfile(path)
    assert [name for name, _ in everything(path)] == [info.name for info, _ in members]


@settings(
    max_examples=40, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(
    members=st.lists(st.tuples(st.text("ab/é.", min_size=1, max_size=300), st.integers(0, 3000)), max_size=12),
    form=st.sampled_from([tarfile.GNU_FORMAT, tarfile.PAX_FORMAT]),
    chunk=st.sampled_from([1, 100, 512, 700, 1024, 5000]),
)
def test_it_does_not_matter_where_chunks_end(
    tmp_path: Path, members: list[tuple[str, int]], form: int, chunk: int
) -> None:
    files = [member(f"x{name}x", os.urandom(size)) for name, size in members]
    path = write_members(tmp_path / "a.tar", files, form)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(tar_reader, "_CHUNK", chunk)
        assert everything(path) == by_tarfile(path)


@pytest.mark.parametrize("options", [["--format=ustar"], ["--format=gnu"], ["--format=posix"], ["--format=v7"]])
@pytest.mark.parametrize("packer", [[], ["--gzip"], ["--zstd"]])
def test_archives_of_gnu_tar(tmp_path: Path, options: list[str], packer: list[str]) -> None:
    deep = tmp_path / "archive" / "product" / "patch"
    deep.mkdir(parents=True)
    (tmp_path / "archive" / "link").symlink_to("product")
    for i in range(3):
        (deep / f"{i}.tif").write_bytes(os.urandom(1000 * i))
    path = tmp_path / {"": "a.tar", "--gzip": "a.tar.gz", "--zstd": "a.tar.zst"}["".join(packer)]
    command = ["tar", "-C", str(tmp_path), "--sort=name", *options, *packer, "-cf", str(path), "./archive"]
    made = subprocess.run(command, check=False, capture_output=True, text=True)
    if made.returncode:
        pytest.skip(f"tar cannot: {made.stderr}")
    found = {m.name: m for m in read_tar(str(path))}
    assert sorted(found) == sorted(
        ["archive/", "archive/link", "archive/product/", "archive/product/patch/"]
        + [f"archive/product/patch/{i}.tif" for i in range(3)]
    )
    assert found["archive/link"].fault == "a symbolic link"
    for i in range(3):
        data = found[f"archive/product/patch/{i}.tif"].data
        assert data is not None
        assert bytes(data) == (deep / f"{i}.tif").read_bytes()


def test_sparse_files_are_told_and_passed_over(tmp_path: Path) -> None:
    """Of 1 TB, in both of GNU tar's ways, with more pieces than fit one header."""
    with (tmp_path / "hole.tif").open("wb") as file:
        for i in range(40):
            file.seek(i * 25_000_000_000)
            file.write(b"x")
    (tmp_path / "next").write_text("next")
    for version in ("--format=gnu", "--format=posix"):
        path = tmp_path / "a.tar"
        command = ["tar", "-C", str(tmp_path), version, "--sparse", "-cf", str(path), "hole.tif", "next"]
        subprocess.run(command, check=True)
        found = list(read_tar(str(path)))
        assert [(m.data is None, m.fault) for m in found] == [(True, "a sparse file"), (False, None)]
        assert bytes(found[1].data or b"") == b"next"


def test_two_compressed_streams_one_after_the_other_are_one_archive(tmp_path: Path) -> None:
    """As parallel packers write them."""
    plain = write_members(tmp_path / "a.tar", [member("a", os.urandom(5000)), member("b", b"b")]).read_bytes()
    for suffix, codec in ((".tar.zst", "zstd"), (".tar.gz", "gzip")):
        path = tmp_path / f"a{suffix}"
        path.write_bytes(b"".join(pa.compress(half, codec, asbytes=True) for half in (plain[:3000], plain[3000:])))
        assert everything(path) == by_tarfile(tmp_path / "a.tar")


KINDS = {
    tarfile.LNKTYPE: "a hard link",
    tarfile.SYMTYPE: "a symbolic link",
    tarfile.CHRTYPE: "a character device",
    tarfile.BLKTYPE: "a block device",
    tarfile.FIFOTYPE: "a named pipe",
    b"Z": "of the unknown type b'Z'",
}


def test_what_is_no_file_has_no_bytes(tmp_path: Path) -> None:
    members = [member(f"m{i}", b"data" if kind == b"Z" else None, kind, "x") for i, kind in enumerate(KINDS)]
    members += [member("large", bytes(MEMBER_BYTES + 1)), member("last", b"last")]
    *found, large, last = read_tar(str(write_members(tmp_path / "a.tar", members)))
    assert [(m.data, m.is_folder, m.fault) for m in found] == [(None, False, what) for what in KINDS.values()]
    assert large == TarMember("large", None, "of 1048577 bytes, where 1048576 are plenty")
    assert (last.name, bytes(last.data or b"")) == ("last", b"last")


def test_names_are_as_they_stand_there(tmp_path: Path) -> None:
    names = ["/etc/passwd", "../../x", "a/../b", "./././c", "d\ne", "\\", "é"]
    found = everything(write_members(tmp_path / "a.tar", [member(name) for name in names]))
    assert [name for name, _ in found] == [*names[:3], "c", *names[4:]]
    broken = header(b"\xff\xfe")
    (odd,) = read_tar(str(put(tmp_path / "b.tar", broken + bytes(1024))))
    assert odd.name == r"\xff\xfe"


def header(name: bytes = b"a", size: bytes = b"0", kind: bytes = b"0", magic: bytes = b"ustar\x0000") -> bytes:
    """A header made by hand, POSIX's offsets."""
    fields = bytearray(512)
    for at, value in ((0, name), (100, b"0000644\0"), (124, size), (156, kind), (257, magic)):
        fields[at : at + len(value)] = value
    fields[148:156] = b" " * 8
    fields[148:156] = b"%06o\0 " % sum(fields)
    return bytes(fields)


def put(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def pax(records: bytes) -> bytes:
    return header(b"x", b"%011o" % len(records), b"x") + records + bytes(-len(records) % 512)


def test_headers_by_hand(tmp_path: Path) -> None:
    """Binary sizes, sums of signed bytes, an old folder, a size that PAX gives, and no end but one block of zeros."""
    body = b"abc".ljust(512, b"\0")
    signed = bytearray(header(b"\xe9t\xe9", b"%011o" % 3))
    signed[148:156] = b"%06o\0 " % (int(bytes(signed[148:154]), 8) - 512)
    content = [
        header(b"binary", b"\x80" + (3).to_bytes(11, "big")) + body,
        bytes(signed) + body,
        header(b"old/", kind=b"\0", magic=b""),
        pax(b"9 size=3\n21 path=another name\n") + header() + body,
        header(b"nul", b"%011o" % 3, kind=b"\0", magic=b"") + body,
    ]
    path = put(tmp_path / "a.tar", b"".join(content) + bytes(512))
    assert [(m.name, m.is_folder, bytes(m.data or b"")) for m in read_tar(str(path))] == [
        ("binary", False, b"abc"),
        (r"\xe9t\xe9", False, b"abc"),
        ("old/", True, b""),
        ("another name", False, b"abc"),
        ("nul", False, b"abc"),
    ]


BROKEN = {
    "a header's checksum is wrong": header()[:300] + b"x" + header()[301:],
    "a header has b'-3": header(size=b"-3"),
    "a header has b'1_0": header(size=b"1_0"),
    "a header has b'18": header(size=b"18"),
    r"a header has b'.xff.* where a number belongs": header(size=b"\xff" * 12),
    "truncated: it ends within a member": header(size=b"\x80" + b"\xff" * 11),
    "a PAX header gives the size '-3'": pax(b"11 size=-3\n") + header(),
    "a PAX header is malformed": pax(b"9 size=33\n") + header(),
    "an extension header claims 1073741824 bytes": header(kind=b"L", size=b"%011o" % (1 << 30)),
    "a global header gives all members one name or size": header(kind=b"g", size=b"%011o" % 9)
    + b"9 size=3\n".ljust(512),
    "it ends after an extension header": header(kind=b"L", size=b"%011o" % 3) + b"abc".ljust(512, b"\0"),
    "members follow a block of zeros": bytes(512) + header(),
}


@pytest.mark.parametrize("why", BROKEN)
def test_what_is_broken_is_refused_with_its_place(tmp_path: Path, why: str) -> None:
    good = header(b"good", b"%011o" % 3) + b"abc".ljust(512, b"\0")
    end = b"" if "truncated" in why else bytes(1024)
    members = read_tar(str(put(tmp_path / "a.tar", good + BROKEN[why] + end)))
    assert next(members).name == "good"
    with pytest.raises(ArchiveError, match=rf"a\.tar cannot be read as a tar archive at byte \d+ .*{why}"):
        list(members)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz", ".tar.zst"])
def test_every_truncation_is_seen(tmp_path: Path, suffix: str) -> None:
    path = write_members(tmp_path / f"a{suffix}", [member(f"m{i}", os.urandom(700)) for i in range(4)])
    whole = path.read_bytes()
    ends = len(whole) - (10240 - 4 * 1536 if suffix == ".tar" else 0)  # what is missing of the last zeros is no loss
    for length in {*range(0, ends, 97), ends - 1, ends - 512}:
        path.write_bytes(whole[:length])
        with pytest.raises(ArchiveError, match=f"{path.name} .*(byte .*truncated|truncated near byte)"):
            list(read_tar(str(path)))


@pytest.mark.parametrize("suffix", [".tar.gz", ".tar.zst"])
def test_broken_compression_is_seen(tmp_path: Path, suffix: str) -> None:
    path = write_members(tmp_path / f"a{suffix}", [member(f"m{i}", os.urandom(70_000)) for i in range(4)])
    whole = bytearray(path.read_bytes())
    whole[0] ^= 0xFF
    path.write_bytes(whole)
    with pytest.raises(ArchiveError, match=rf"{path.name} is broken or truncated near byte \d+ of {len(whole)}"):
        list(read_tar(str(path)))


def test_a_bomb_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tar_reader, "_SPARE_BYTES", 1 << 20)
    with writing_tar(tmp_path / "a.tar.zst") as tar:
        info = tarfile.TarInfo("zeros")
        info.size = 1 << 27
        tar.addfile(info, io.BytesIO(bytes(1 << 27)))
    with pytest.raises(ArchiveError, match="expands to more than 100 times its"):
        list(read_tar(str(tmp_path / "a.tar.zst")))


@settings(
    max_examples=150, deadline=None, suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
)
@given(place=st.integers(0, 10239), value=st.integers(0, 255))
def test_any_changed_byte_is_refused_or_harmless(tmp_path: Path, place: int, value: int) -> None:
    """No other error comes out, and what comes out is no larger than what went in."""
    path = write_members(tmp_path / "a.tar", [member(f"{LONG}{i}", bytes([i]) * 900) for i in range(3)])
    content = bytearray(path.read_bytes())
    content[place] = value
    path.write_bytes(content)
    try:
        found = everything(path)
    except ArchiveError:
        return
    assert sum(len(data or b"") for _, data in found) <= len(content)


@pytest.mark.parametrize("suffix", [".tar", ".tar.gz"])
@pytest.mark.parametrize(("status", "kind"), [(503, TransientError), (403, StoreError)])
def test_a_network_that_fails_is_no_broken_archive(
    tmp_path: Path, s3: S3Server, s3_folder: ObjectPath, suffix: str, status: int, kind: type[Exception]
) -> None:
    path = s3_folder / f"a{suffix}"
    write_bytes(path, write_members(tmp_path / path.name, [member("a", os.urandom(5000))]).read_bytes())
    assert [m.name for m in read_tar(str(path))] == ["a"]
    for method in ("HEAD", "GET"):
        s3.faults[:] = [Fault("status", status, method=method, times=1000)]
        with pytest.raises(kind, match=f"status {status}"):
            list(read_tar(str(path)))


def test_an_empty_long_name_has_no_block(tmp_path: Path) -> None:
    """The member's bytes, which begin as a header does, are where its name would be."""
    inside = header(b"inside", b"%011o" % 3) + b"abc".ljust(512, b"\0")
    content = header(b"././@LongLink", kind=b"L") + header(b"outside", b"%011o" % len(inside)) + inside
    path = put(tmp_path / "a.tar", header(b"first") + content + bytes(1024))
    assert everything(path) == by_tarfile(path) == [("first", b""), ("", inside)]


@pytest.mark.parametrize("name", [b"folder/", b"x/" * 70, b"x" * 99 + b"/", b"x" * 120 + b"/"])
def test_a_folder_of_old_has_no_blocks_whatever_its_size(tmp_path: Path, name: bytes) -> None:
    """As one that has a type for it; only the header's own name tells, of which 100 bytes are kept."""
    content = header(b"first") + header(kind=b"L", size=b"%011o" % len(name)) + name.ljust(512, b"\0")
    content += header(name[:100], b"%011o" % 512, kind=b"\0") + header(b"inside") + header(b"last")
    path = put(tmp_path / "a.tar", content + bytes(1024))
    found, expected = ([(shown.rstrip("/"), data) for shown, data in read(path)] for read in (everything, by_tarfile))
    assert found == expected
    assert ("inside" in dict(found)) == (name[99:100] != b"x")


def test_a_missing_archive_says_so(tmp_path: Path) -> None:
    with pytest.raises(ArchiveError, match=r"none\.tar cannot be read"):
        list(read_tar(str(tmp_path / "none.tar")))


def test_which_names_are_tar_archives() -> None:
    names = ["a.tar", "a.tar.gz", "a.tgz", "a.tar.zst", "a.zst", "a.tar.xz", "tar"]
    assert [is_tar(Path(name)) for name in names] == [True] * 4 + [False] * 3
