"""Damaged and hostile inputs, each made by a seeded generator: the same number gives the same bytes everywhere."""

import json
import random
import struct
from collections.abc import Callable, Sequence
from functools import cache

CANARY = "outside/canary"
"""What hostile names point at, below the folder that the archive's root lies in."""

_EDGES = (0, 1, 2, 3, 7, 8, 255, 256, 4096, 65535, 65536, 2**31 - 1, 2**31, 2**32 - 1, 2**63 - 1, 2**64 - 1)


def bytes_mutated(rng: random.Random, data: bytes, donor: bytes = b"") -> bytes:
    """Return bytes with one change that knows nothing of their format."""
    out = bytearray(data)
    at = rng.randrange(len(out) + 1)
    span = min(rng.choice((1, 1, 2, 4, 8, 64, 512)), len(out) - at)
    match rng.randrange(8):
        case 0:  # cut off
            del out[at:]
        case 1:  # bits
            for _ in range(rng.randint(1, 4)):
                if out:
                    out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
        case 2:  # bytes
            out[at : at + span] = rng.randbytes(span)
        case 3:  # a number's edge, in either byte order
            size = rng.choice((1, 2, 4, 8))
            edge = rng.choice(_EDGES) % (1 << 8 * size)
            out[at : at + size] = edge.to_bytes(size, rng.choice(("little", "big")))
        case 4:  # removed from the middle
            del out[at : at + span]
        case 5:  # repeated
            out[at:at] = out[max(0, at - span) : at]
        case 6:  # zeros, as a disk leaves them
            out[at : at + span] = bytes(span)
        case _:  # a piece of another file
            source = donor or data
            start = rng.randrange(len(source) + 1)
            out[at : at + span] = source[start : start + rng.choice((4, 16, 256))]
    return bytes(out)


# TIFF


@cache
def tiff_seeds() -> tuple[bytes, ...]:
    """Return small TIFFs of every flavour; the first three take the fast path."""
    import numpy as np
    from rasterio.io import MemoryFile
    from rasterio.transform import from_origin

    flavours: list[dict[str, object]] = [
        {},
        {"blockysize": 4, "nodata": 0},
        {"compress": "deflate", "predictor": 2},
        {"tiled": True, "blockxsize": 16, "blockysize": 16},
        {"compress": "lzw"},
        {"compress": "lzw", "predictor": 2},
        {"compress": "zstd"},
        {"compress": "packbits"},
        {"BIGTIFF": "YES"},
        {"ENDIANNESS": "BIG"},
        {"BIGTIFF": "YES", "ENDIANNESS": "BIG", "compress": "deflate"},
        {"count": 3, "interleave": "pixel", "photometric": "rgb", "dtype": "uint8"},
        {"count": 3, "interleave": "band"},
        {"count": 3, "compress": "jpeg", "photometric": "ycbcr", "dtype": "uint8", "interleave": "pixel"},
        {"dtype": "float32"},
        {"SPARSE_OK": "TRUE", "compress": "deflate"},
    ]
    found = []
    for options in flavours:
        profile = {
            "crs": "EPSG:32633",
            "transform": from_origin(390000.0, 5348400.0, 10, 10),
            "count": 1,
            "dtype": "uint16",
            **options,
        }
        pixels = np.random.default_rng(3).integers(0, 255, (24, 20)).astype(str(profile["dtype"]))
        with MemoryFile() as memory:
            with memory.open(driver="GTiff", height=24, width=20, **profile) as dataset:
                for band in range(int(str(profile["count"]))):
                    dataset.write(pixels, band + 1)
            found.append(bytes(memory.read()))
    return tuple(found)


_TAG_VALUES: dict[int, Sequence[int]] = {
    254: (0, 1, 2, 4),
    256: (0, 1, 19, 21, 65535, 2**31 - 1, 2**32 - 1),
    257: (0, 1, 23, 25, 65535, 2**31 - 1, 2**32 - 1),
    258: (0, 1, 4, 8, 12, 16, 32, 64, 65535),
    259: (0, 1, 2, 3, 4, 5, 6, 7, 8, 32773, 32946, 34661, 34712, 34887, 34925, 50000, 50001, 65535),
    262: (0, 1, 2, 3, 4, 5, 6, 8, 32803),
    266: (0, 1, 2),
    273: (0, 1, 8, 65535, 2**31, 2**32 - 1),
    277: (0, 1, 2, 3, 4, 255, 65535),
    278: (0, 1, 5, 24, 65535, 2**31 - 1, 2**32 - 1),
    279: (0, 1, 2**31 - 1, 2**32 - 1),
    284: (0, 1, 2, 3),
    317: (0, 1, 2, 3, 4),
    322: (0, 1, 15, 16, 65520, 2**31 - 16),
    323: (0, 1, 15, 16, 65520, 2**31 - 16),
    324: (0, 8, 2**32 - 1),
    325: (0, 1, 2**32 - 1),
    330: (0, 8, 2**32 - 1),
    338: (0, 1, 2, 65535),
    339: (0, 1, 2, 3, 4, 5, 6, 65535),
    347: (0, 8),
    34735: (0, 8),
    42112: (0, 8),
    42113: (0, 8),
}


def _tag_edited(rng: random.Random, data: bytes) -> bytes:
    """Return a TIFF with one entry of its first directory changed, as a whole or in one field."""
    if len(data) < 16 or data[:2] not in {b"II", b"MM"}:
        return data
    order = "<" if data[:2] == b"II" else ">"
    big = struct.unpack_from(order + "H", data, 2)[0] == 43
    try:
        (start,) = struct.unpack_from(order + ("Q" if big else "I"), data, 8 if big else 4)
        (number,) = struct.unpack_from(order + ("Q" if big else "H"), data, start)
    except (struct.error, OverflowError):
        return data
    first, width = start + (8 if big else 2), 20 if big else 12
    if not 0 < number < 100 or first + number * width > len(data):
        return data
    out = bytearray(data)
    at = first + width * rng.randrange(number)
    word, limit = ("Q", 2**64) if big else ("I", 2**32)
    (tag,) = struct.unpack_from(order + "H", data, at)
    match rng.randrange(7):
        case 0:
            struct.pack_into(order + "H", out, at, rng.choice((*_TAG_VALUES, rng.randrange(65536))))
        case 1:
            struct.pack_into(order + "H", out, at + 2, rng.choice((0, 1, 2, 3, 4, 5, 7, 11, 12, 13, 16, 18, 65535)))
        case 2:
            struct.pack_into(order + word, out, at + 4, rng.choice(_EDGES) % limit)
        case 3:
            chain = first + number * width  # the next directory: this one again, or anywhere
            if chain + struct.calcsize(word) <= len(out):
                struct.pack_into(order + word, out, chain, rng.choice((start, 8, len(data) - 4, 2**32 - 1)))
        case 4:
            struct.pack_into(order + ("Q" if big else "H"), out, start, rng.choice((0, 1, number - 1, number + 1, 512)))
        case _:
            tag = rng.choice(tuple(_TAG_VALUES)) if rng.random() < 0.3 else tag
            value = rng.choice(_TAG_VALUES.get(tag, _EDGES)) % limit
            inline = struct.pack(order + word, value)
            kind = 16 if big else 4
            if value < 65536 and rng.random() < 0.5:  # a short, at the front of its field
                kind, inline = 3, struct.pack(order + "H", value).ljust(len(inline), b"\0")
            struct.pack_into(order + "HH" + word, out, at, tag, kind, 1)
            out[at + width - len(inline) : at + width] = inline
    return bytes(out)


def _disguises(outside: str, port: int) -> tuple[bytes, ...]:
    """Return files of other formats that GDAL knows by their content, and which name a file or a server."""
    names = (f"{outside}/canary.tif", "../outside/canary.tif", f"/vsicurl/http://127.0.0.1:{port}/canary.tif")
    vrt = (
        '<VRTDataset rasterXSize="20" rasterYSize="24"><VRTRasterBand dataType="UInt16" band="1"><SimpleSource>'
        '<SourceFilename relativeToVRT="0">{}</SourceFilename><SourceBand>1</SourceBand></SimpleSource>'
        "</VRTRasterBand></VRTDataset>"
    )
    wms = '<GDAL_WMS><Service name="TMS"><ServerUrl>http://127.0.0.1:{}/x</ServerUrl></Service></GDAL_WMS>'
    tile_index = "<GDALTileIndexDataset><IndexDataset>{}</IndexDataset></GDALTileIndexDataset>"
    return (
        *(vrt.format(name).encode() for name in names),
        wms.format(port).encode(),
        *(tile_index.format(name).encode() for name in names),
        f"http://127.0.0.1:{port}/x".encode(),
        b"\x89PNG\r\n\x1a\n" + bytes(64),
        b"\x00\x00\x00\x0cjP  \r\n\x87\n" + bytes(64),
        b"\x89HDF\r\n\x1a\n" + bytes(64),
        b"CDF\x01" + bytes(64),
        b"PK\x03\x04" + bytes(64),
        b"%PDF-1.4\n" + bytes(64),
        b"",
    )


def tiff(seed: int, outside: str, port: int) -> bytes:
    """Return a mutated TIFF."""
    rng = random.Random(f"tiff {seed}")
    if rng.random() < 0.03:
        return rng.choice(_disguises(outside, port))
    seeds = tiff_seeds()
    data = rng.choice(seeds[:3] if rng.random() < 0.4 else seeds)
    for _ in range(rng.choice((0, 1, 1, 1, 2, 2, 3, 5))):
        data = _tag_edited(rng, data) if rng.random() < 0.6 else bytes_mutated(rng, data, rng.choice(seeds))
    return data


# Pictures


@cache
def picture_seeds() -> tuple[tuple[str, bytes], ...]:
    """Return small pictures of each format and mode, with the ending of their names."""
    import io

    import numpy as np
    from PIL import Image

    pixels = np.random.default_rng(5).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    found = []
    for ending, form, mode in (
        (".png", "PNG", "RGB"),
        (".png", "PNG", "P"),
        (".png", "PNG", "LA"),
        (".jpg", "JPEG", "RGB"),
        (".jpg", "JPEG", "L"),
        (".webp", "WEBP", "RGB"),
    ):
        buffer = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112] = 6
        Image.fromarray(pixels).convert(mode).save(buffer, form, exif=exif.tobytes())
        found.append((ending, buffer.getvalue()))
    return (*found, *((".tif", data) for data in tiff_seeds() if data))


def picture(seed: int, outside: str, port: int) -> tuple[str, bytes]:
    """Return the ending and the bytes of a mutated picture."""
    rng = random.Random(f"picture {seed}")
    ending, data = rng.choice(picture_seeds())
    if rng.random() < 0.03:
        return ending, rng.choice(_disguises(outside, port))
    for _ in range(rng.choice((0, 1, 1, 2, 3))):
        donor = rng.choice(picture_seeds())[1]
        data = _tag_edited(rng, data) if ending == ".tif" and rng.random() < 0.5 else bytes_mutated(rng, data, donor)
    if rng.random() < 0.3 and data[:8] == b"\x89PNG\r\n\x1a\n":
        data = _with_png_checksums(rng, data)
    return ending, data


def _with_png_checksums(rng: random.Random, data: bytes) -> bytes:
    """Return a PNG that promises another size, its checksums made good, so that they do not hide what is behind."""
    import zlib

    out, at = bytearray(data[:8]), 8
    while at + 12 <= len(data):
        (length,) = struct.unpack_from(">I", data, at)
        kind, body = data[at + 4 : at + 8], data[at + 8 : at + 8 + length]
        if kind == b"IHDR" and len(body) == 13 and rng.random() < 0.7:
            body = struct.pack(">II", rng.choice((1, 16, 65535, 2**31 - 1)), rng.choice((1, 16, 65535))) + body[8:]
        out += struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))
        at += 12 + length
    return bytes(out)


# Tar


def _header(  # the fields of a header
    name: bytes,
    size: bytes,
    kind: bytes = b"0",
    link: bytes = b"",
    magic: bytes = b"ustar\x0000",
    prefix: bytes = b"",
    checksum: bytes | None = None,
) -> bytes:
    """Return a header block; fields are cut and padded, never checked."""
    block = bytearray(512)
    for at, width, field in (
        (0, 100, name),
        (100, 8, b"0000644\0"),
        (108, 8, b"0000000\0"),
        (116, 8, b"0000000\0"),
        (124, 12, size),
        (136, 12, b"00000000000\0"),
        (148, 8, b"        "),
        (156, 1, kind),
        (157, 100, link),
        (257, 8, magic),
        (345, 155, prefix),
    ):
        block[at : at + width] = field[:width].ljust(width, b"\0")
    block[148:156] = b"%06o\0 " % sum(block) if checksum is None else checksum[:8].ljust(8, b"\0")
    return bytes(block)


def _padded(data: bytes) -> bytes:
    return data + bytes(-len(data) % 512)


def _octal(size: int) -> bytes:
    return b"%011o\0" % size


def _record(key: bytes, value: bytes) -> bytes:
    body = b" " + key + b"=" + value + b"\n"
    length = len(body) + len(str(len(body)))
    length += len(str(length)) - len(str(len(body)))
    return b"%d" % length + body


_PATCH = b"S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"
_FOLDER = b"BigEarthNet-S2/" + _PATCH + b"/" + _PATCH


def _member(rng: random.Random, outside: bytes) -> bytes:
    """Return one member with its extension headers, mostly sound, at times hostile."""
    folder = _FOLDER + b"_%02d_%02d" % (rng.randrange(3), rng.randrange(3))
    name = folder + b"/" + folder.rpartition(b"/")[2] + rng.choice((b"_B02.tif", b"_B8A.tif", b"_x.tif"))
    hostile = (
        outside + b"/canary.tif",
        b"../outside/canary.tif",
        b"BigEarthNet-S2/../../outside/canary.tif",
        b"BigEarthNet-S2/./" + _PATCH,
        b"BigEarthNet-S2//" + _PATCH + b"//x",
        b"BigEarthNet-S2\\..\\x",
        b"C:\\x",
        b"BigEarthNet-S2/\xff\xfe/\xed\xa0\x80",
        b"BigEarthNet-S2/" + _PATCH + b"/a\nb\x1b[2J",
        b"~/.ssh/x",
        b"/dev/null",
        b"",
        b"/",
        b"." * 100,
        b"x/" * 5000,
    )
    data = rng.randbytes(rng.choice((0, 1, 511, 512, 513, 3000)))
    if rng.random() < 0.1:  # a member within a member, which shows where blocks are lost count of
        data = _header(b"inside", _octal(512)) + rng.randbytes(512)
    if rng.random() < 0.15:
        name = rng.choice(hostile)
    out = b""
    if len(name) > 100 or rng.random() < 0.2:
        if rng.random() < 0.5:
            kind, body = b"x", _record(b"path", name)
            if rng.random() < 0.2:
                body += rng.choice(
                    (
                        _record(b"size", rng.choice((b"%d" % len(data), b"-1", b"9" * 30, b"1e9", b"", b"\xd9\xa1"))),
                        _record(b"GNU.sparse.major", b"1") + _record(b"GNU.sparse.name", b"../outside/canary.tif"),
                        _record(b"linkpath", outside),
                        b"99999999999999999999999 x=y\n",
                        b"0 x=y\n",
                        b"-5 x=y\n",
                        b"x",
                    )
                )
        else:
            kind, body = b"L", b"" if rng.random() < 0.1 else name + b"\0"
        out = _header(b"././@LongLink", _octal(len(body)), kind) + _padded(body)
        if rng.random() < 0.1:
            out = _header(b"g", _octal(len(body)), rng.choice(b"gKNVA".decode()).encode()) + _padded(body) + out
    kind = (
        b"0" if rng.random() < 0.75 else rng.choice((b"\0", b"1", b"2", b"3", b"4", b"5", b"6", b"7", b"S", b"M", b"Z"))
    )
    size = _octal(len(data))
    if rng.random() < 0.03:
        size = rng.choice(
            (
                b"77777777777\0",
                b"-0000000001\0",
                b"           \0",
                b"\0" * 12,
                b"0000000008x\0",
                b"\x80" + bytes(11),
                b"\x80" + bytes(10) + b"\x05",
                b"\xff" * 12,
                b"\x80" + b"\xff" * 11,
                b"\x80" + len(data).to_bytes(11, "big"),
                b"0x000000001\0",
            )
        )
    link = rng.choice((b"", outside + b"/canary.tif", b"../outside/canary.tif", name[:90]))
    magic = rng.choice((b"ustar\x0000", b"ustar\x0000", b"ustar  \0", b"", rng.randbytes(8)))
    prefix = rng.choice((b"", b"", b"", b"a/b", outside[:150])) if magic[:6] == b"ustar\0" else b""
    checksum = rng.choice((None,) * 300 + (b"0000000\0", b"        ", b"xxxxxxxx", b"\xff" * 8))
    return out + _header(name, size, kind, link, magic, prefix, checksum) + _padded(data)


def tar(seed: int, outside: str, _port: int) -> tuple[str, bytes]:
    """Return the suffix and the bytes of a mutated archive."""
    rng = random.Random(f"tar {seed}")
    members = [_member(rng, outside.encode()) for _ in range(rng.randint(0, 8))]
    if members and rng.random() < 0.2:
        members.append(rng.choice(members))
    data = b"".join(members) + rng.choice(
        (bytes(1024),) * 16 + (b"", bytes(512), bytes(10240), bytes(1024) + b"x" * 700)
    )
    if rng.random() < 0.2:
        data = bytes_mutated(rng, data)
    suffix = rng.choice((".tar", ".tar", ".tar.gz", ".tgz", ".tar.zst"))
    if suffix != ".tar":
        import gzip

        import pyarrow as pa

        data = pa.compress(data, "zstd", asbytes=True) if suffix.endswith("zst") else gzip.compress(data, mtime=0)
        if rng.random() < 0.15:
            data = bytes_mutated(rng, data)
    return suffix, data


# JSON


_LABELS = ("Water bodies", "Airports", "Pastures", "Sea and ocean", "Burnt areas", "no such label", "")


def _odd_json(rng: random.Random, depth: int = 0) -> object:
    """Return a value of any kind."""
    values: list[Callable[[], object]] = [
        lambda: None,
        lambda: rng.random() < 0.5,
        lambda: rng.choice(_EDGES),
        lambda: -rng.choice(_EDGES),
        lambda: 10 ** rng.choice((20, 400, 4299, 4400)),
        lambda: rng.choice((1e308, -0.0, 5e-324, float("nan"), float("inf"))),
        lambda: rng.choice(
            ("", "x" * rng.choice((1, 300, 70000)), "../outside/canary", "\ud800", "\0", "\u202ea\x1b[2J")
        ),
        lambda: rng.choice(_LABELS),
    ]
    if depth < 3:
        values += [
            lambda: [_odd_json(rng, depth + 1) for _ in range(rng.randint(0, 4))],
            lambda: {
                rng.choice((*_LABELS, "\0", "\ud800")): _odd_json(rng, depth + 1) for _ in range(rng.randint(0, 3))
            },
        ]
    return rng.choice(values)()


def _dumped(value: object) -> bytes:
    import sys

    limit = sys.get_int_max_str_digits()
    sys.set_int_max_str_digits(0)
    try:
        return json.dumps(value).encode()
    finally:
        sys.set_int_max_str_digits(limit)


def json_text(seed: int, partner: str) -> bytes:
    """Return the mutated JSON of a v1 patch, of either modality.

    Args:
        seed: Which one.
        partner: The Sentinel-2 patch that a sound one names.
    """
    rng = random.Random(f"json {seed}")
    value: dict[str, object] = {
        "labels": [rng.choice(_LABELS[:5]) for _ in range(rng.randint(1, 4))],
        "tile_source": "S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608.SAFE",
        "acquisition_date": "2017-06-13 10:10:31",
        "corresponding_s2_patch": partner,
    }
    for _ in range(rng.choice((0, 1, 1, 2))):
        value[rng.choice((*value, "another"))] = _odd_json(rng)
    if rng.random() < 0.2:
        value.pop(rng.choice(tuple(value)))
    data = _dumped(value if rng.random() < 0.95 else _odd_json(rng))
    match rng.randrange(14):
        case 0:
            data = data[:-1] + b', "labels": ["Pastures"]}'  # a key twice
        case 1:
            depth = rng.choice((10, 2000, 100_000))
            data = b'{"labels": ' + b"[" * depth + b"]" * rng.choice((depth, depth - 1)) + b"}"
        case 2:
            data = rng.choice((b"\xef\xbb\xbf", b"\xff\xfe", b"\0", b" " * 5000, b"// x\n")) + data
        case 3:
            data = data.decode().encode(rng.choice(("utf-16", "utf-32", "utf-16-le")))
        case 4:
            data += rng.choice((b"{}", b"\0", b" x", b"\n\n"))
        case 5:
            data = data.replace(b'"', b"'")
        case 6:
            data = data.replace(b"Pastures", rng.choice((b"Past\xffures", b"\xed\xa0\x80", b"\\ud83d", b"\\u0000")))
        case 7 | 8 | 9:
            data = bytes_mutated(rng, data)
        case _:
            pass
    return data


# Parquet


def parquet(seed: int, ids: Sequence[str]) -> bytes:
    """Return a mutated metadata table of BigEarthNet v2.

    Args:
        seed: Which one.
        ids: Patches that a sound one names.
    """
    import io

    import pyarrow as pa
    import pyarrow.parquet as pq

    rng = random.Random(f"parquet {seed}")
    rows = len(ids)
    columns: dict[str, pa.Array] = {
        "patch_id": pa.array(ids, pa.string()),
        "labels": pa.array([["Pastures"]] * rows, pa.list_(pa.string())),
        "split": pa.array(["train"] * rows, pa.string()),
        "country": pa.array(["Austria"] * rows, pa.string()),
        "s1_name": pa.array([f"S1A_IW_GRDH_1SDV_20170613T165043_33UUP_{i}_0" for i in range(rows)], pa.string()),
        "contains_seasonal_snow": pa.array([False] * rows),
        "contains_cloud_or_shadow": pa.array([False] * rows),
    }
    for _ in range(rng.choice((0, 0, 1, 1, 2, 3))):
        columns[rng.choice(tuple(columns))] = _odd_column(rng, rows, ids)
    if rng.random() < 0.1:
        columns.pop(rng.choice(tuple(columns)))
    names, arrays = list(columns), list(columns.values())
    if rng.random() < 0.05:
        again = rng.randrange(len(names))
        names.append(names[again])
        arrays.append(arrays[again])
    buffer = io.BytesIO()
    table = pa.Table.from_arrays(arrays, names)
    if rng.random() < 0.05:
        table = table.replace_schema_metadata({"ARROW:schema": rng.randbytes(40), "pandas": b"{" * 50})
    try:
        pq.write_table(
            table,
            buffer,
            compression=rng.choice(("none", "snappy", "zstd", "gzip")),
            use_dictionary=rng.random() < 0.5,
            data_page_version=rng.choice(("1.0", "2.0")),
            row_group_size=rng.choice((1, 2, 100)),
            write_page_checksum=rng.random() < 0.3,
            store_schema=rng.random() < 0.7,
        )
    except (pa.ArrowNotImplementedError, pa.ArrowInvalid):  # a type that Parquet has not
        return b"PAR1" + rng.randbytes(100) + b"PAR1"
    data = buffer.getvalue()
    if rng.random() < 0.15:  # the length of the footer
        data = data[:-8] + struct.pack("<I", rng.choice((0, 1, len(data), 2**31 - 1, 2**32 - 1))) + data[-4:]
    if rng.random() < 0.5:
        footer = struct.unpack_from("<I", data, len(data) - 8)[0] + 8
        cut = len(data) - footer if 8 < footer < len(data) and rng.random() < 0.6 else 0
        for _ in range(rng.randint(1, 3)):  # half of them in the footer, which all else is found by
            data = data[:cut] + bytes_mutated(rng, data[cut:])
    return data


def _odd_column(rng: random.Random, rows: int, ids: Sequence[str]) -> object:
    """Return a column of another type, or with values that no metadata has."""
    import datetime as dt

    import pyarrow as pa

    not_utf8 = pa.array([b"\xff\xfe" + bytes([i % 256]) for i in range(rows)], pa.binary())
    as_text = pa.Array.from_buffers(pa.string(), rows, not_utf8.buffers())
    hostile = (
        "",
        ".",
        "..",
        "/etc/passwd",
        "../outside/canary",
        "a/b",
        "a\\b",
        "x\0y",
        "a\nb",
        "\x9b2J",
        "\u202ea",
        "=1+1",
    )
    choices: list[Callable[[], object]] = [
        lambda: pa.nulls(rows),
        lambda: pa.nulls(rows, pa.string()),
        lambda: as_text,
        lambda: pa.array([rng.choice(hostile) for _ in range(rows)]),
        lambda: pa.array(["x" * rng.choice((255, 256, 100_000))] * rows),
        lambda: pa.array([ids[0]] * rows),
        lambda: pa.array(list(range(rows)), pa.int64()),
        lambda: pa.array([0.5] * rows, pa.float32()),
        lambda: pa.array([True] * rows),
        lambda: pa.array([[None]] * rows, pa.list_(pa.string())),
        lambda: pa.array([None] * rows, pa.list_(pa.string())),
        lambda: pa.array([[["Pastures"]]] * rows),
        lambda: pa.array([[]] * rows, pa.list_(pa.string())),
        lambda: pa.array([["no such label", "\0"]] * rows),
        lambda: pa.array([{"a": 1}] * rows),
        lambda: pa.array([[("Pastures", 1)]] * rows, pa.map_(pa.string(), pa.int8())),
        lambda: pa.array([rng.choice(ids) for _ in range(rows)]).dictionary_encode(),
        lambda: pa.array([dt.date(2017, 6, 13)] * rows),
        lambda: pa.array([b"\xff"] * rows, pa.binary()),
        lambda: pa.array(["x"] * rows, pa.large_string()),
        lambda: pa.array(["true"] * rows),
        lambda: pa.array(["Train"] * rows),
        lambda: pa.array([2**63] * rows, pa.uint64()),
    ]
    return rng.choice(choices)()
