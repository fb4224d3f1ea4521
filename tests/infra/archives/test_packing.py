"""The oracle is what the readers make of the same files where they lie in folders."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numcodecs import Blosc
from numpy.typing import NDArray

from infra.archives.bigearthnet_v2 import MODALITIES
from infra.archives.buckets import Bucket, Buckets, BucketWriter, folder_record, packed_files
from infra.archives.files import Folder
from infra.archives.modality import FolderPixels, Ground, Modality
from infra.archives.model import BIGEARTHNET, Pixels
from infra.archives.packing import FolderPacker
from infra.archives.patch_folder import read_reference_map, read_s1, read_s2
from infra.errors import BadPatchError
from infra.zarr_rows import PackedRow
from infra.zarr_store import ShardedStore, archive_arrays, create_store
from tests.infra.archives.small_archive import SmallArchive, patch_id, s1_name, write_tiff

NAME = patch_id(3, 4)
S1, MAPS, S2 = MODALITIES


@pytest.fixture
def store(tmp_path: Path) -> ShardedStore:
    create_store(tmp_path / "archive.zarr", archive_arrays(BIGEARTHNET), 4, 1, {})
    return ShardedStore(tmp_path / "archive.zarr")


@pytest.fixture
def archive(tmp_path: Path) -> SmallArchive:
    archive = SmallArchive(tmp_path / "archive")
    archive.v2(NAME)
    return archive


def folder_of(archive: SmallArchive, modality: Modality) -> Path:
    (folder,) = (archive.root / modality.top).glob("*/*")
    return folder


def files_of(archive: SmallArchive, modality: Modality) -> dict[str, memoryview]:
    folder = folder_of(archive, modality)
    return {path.name[len(folder.name) :]: memoryview(path.read_bytes()) for path in folder.iterdir()}


def unpacked(row: object, like: NDArray[Any]) -> NDArray[Any]:
    assert isinstance(row, PackedRow)
    return np.frombuffer(Blosc().decode(row.frame), like.dtype).reshape(like.shape)


def check(pixels: FolderPixels, arrays: Mapping[str, Pixels]) -> None:
    assert pixels.arrays.keys() == arrays.keys()
    for name, expected in arrays.items():
        assert isinstance(expected, np.ndarray)
        np.testing.assert_array_equal(unpacked(pixels.arrays[name], expected), expected)


def opened(archive: SmallArchive, modality: Modality) -> Folder:
    folder = Folder.open(str(archive.root), folder_of(archive, modality).relative_to(archive.root).as_posix())
    assert folder is not None
    return folder


def test_what_is_packed_is_what_is_read(archive: SmallArchive, store: ShardedStore) -> None:
    with opened(archive, S2) as folder:
        s2 = read_s2(folder, NAME)
    with opened(archive, S1) as folder:
        s1 = read_s1(folder, s1_name(NAME), s2.ground)
    with opened(archive, MAPS) as folder:
        codes = read_reference_map(folder, NAME, s2.ground)
    found = FolderPacker(S2, store).pack(files_of(archive, S2))
    assert found is not None
    assert (found.ground, found.nodata_share) == (s2.ground, 0.0)
    check(found, s2.arrays)
    for modality, name, expected in ((S1, "s1", s1), (MAPS, "reference_map", codes)):
        other = FolderPacker(modality, store).pack(files_of(archive, modality))
        assert other is not None
        assert other.ground == s2.ground
        check(other, {name: expected})


def test_a_packer_keeps_nothing_of_the_folder_before(archive: SmallArchive, store: ShardedStore) -> None:
    """And the share of pixels without data is that of the 10 m bands."""
    packer = FolderPacker(S2, store)
    first = packer.pack(files_of(archive, S2))
    blue = archive.pixels[NAME, "B02"]
    blue[:30] = 0
    (path,) = folder_of(archive, S2).glob("*_B02.tif")
    write_tiff(path, blue, 10, archive.corner(NAME), nodata=0)
    second = packer.pack(files_of(archive, S2))
    assert first is not None
    assert second is not None
    assert second.nodata_share == 0.25
    assert unpacked(second.arrays["s2_10m"], np.zeros((4, 120, 120), np.uint16))[0, :30].max() == 0
    assert unpacked(first.arrays["s2_10m"], np.zeros((4, 120, 120), np.uint16))[0, :30].min() > 0


def rewrite(
    archive: SmallArchive,
    modality: Modality,
    band: str,
    corner: tuple[float, float] | None = None,
    values: Callable[[NDArray[Any]], NDArray[Any]] = np.copy,
    **options: Any,
) -> None:
    """Write one band again, otherwise."""
    (path,) = folder_of(archive, modality).glob(f"*_{band}.tif")
    pixels = archive.pixels[s1_name(NAME) if modality is S1 else NAME, band]
    write_tiff(path, values(pixels), 1200 // len(pixels), corner or archive.corner(NAME), **options)


def truncated(archive: SmallArchive) -> None:
    (path,) = folder_of(archive, S2).glob("*_B05.tif")
    path.write_bytes(path.read_bytes()[:-1])


def lengthened(archive: SmallArchive) -> None:
    """The driver keeps headers that it has met."""
    (path,) = folder_of(archive, S2).glob("*_B05.tif")
    path.write_bytes(path.read_bytes() + bytes(1 << 14))


TILES: dict[str, Any] = {"tiled": True, "blockxsize": 16, "blockysize": 16}

CASES: dict[str, tuple[Modality, Callable[[SmallArchive], None]]] = {
    "tiles, which GDAL reads": (
        S2,
        partial(rewrite, modality=S2, band="B8A", **TILES),
    ),
    "LZW, which GDAL reads": (S2, partial(rewrite, modality=S2, band="B02", compress="lzw")),
    "a band elsewhere": (S2, partial(rewrite, modality=S2, band="B03", corner=(0.0, 0.0))),
    "a grid elsewhere": (S2, partial(rewrite, modality=S2, band="B01", corner=(0.0, 0.0))),
    "no place": (MAPS, partial(rewrite, modality=MAPS, band="reference_map", crs=None)),
    "degrees": (MAPS, partial(rewrite, modality=MAPS, band="reference_map", crs="EPSG:4326")),
    "bytes": (S2, partial(rewrite, modality=S2, band="B02", values=lambda values: (values % 256).astype(np.uint8))),
    "another size": (S2, partial(rewrite, modality=S2, band="B02", values=lambda values: values[:100])),
    "not finite": (S1, partial(rewrite, modality=S1, band="VH", values=lambda values: values * np.nan)),
    "cut off": (S2, truncated),
    "a long header": (S2, lengthened),
}


@pytest.mark.parametrize("case", CASES)
def test_all_else_is_left_to_who_reads_the_files(
    archive: SmallArchive, store: ShardedStore, case: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """GDAL is never asked: what it cannot bear ends a worker, not the driver."""
    modality, change = CASES[case]
    packer = FolderPacker(modality, store)
    assert packer.pack(files_of(archive, modality)) is not None
    change(archive)
    files = files_of(archive, modality)

    def refuse(*_: object) -> None:
        raise AssertionError("GDAL was asked")

    monkeypatch.setattr("infra.archives.tiff.MemoryFile", refuse)
    assert packer.pack(files) is None


@pytest.mark.parametrize(("modality", "band"), [(S2, "B09"), (S1, "VH")])
def test_every_changed_byte_is_seen_by_who_met_files_alike(
    archive: SmallArchive, store: ShardedStore, modality: Modality, band: str
) -> None:
    """The oracle is a packer that met none."""
    (path,) = folder_of(archive, modality).glob(f"*_{band}.tif")
    pixels = archive.pixels[s1_name(NAME) if modality is S1 else NAME, band]
    start = path.read_bytes().rindex(pixels.tobytes())
    whole = files_of(archive, modality)
    random = np.random.default_rng(0)
    unlike = 0
    for place in [*range(start), *range(start, start + pixels.nbytes, 999)]:
        packer = FolderPacker(modality, store)
        known = packer.pack(whole)
        changed = bytearray(whole[f"_{band}.tif"])
        changed[place] ^= int(random.integers(1, 256))
        files = {**whole, f"_{band}.tif": memoryview(bytes(changed))}
        found = packer.pack(files)
        assert found == FolderPacker(modality, store).pack(files)
        unlike += found is None
        assert place < start or found != known
        assert packer.pack(whole) == known
    assert unlike > start / 2


def test_packed_folders_in_a_bucket(archive: SmallArchive, store: ShardedStore, tmp_path: Path) -> None:
    """They come out as they went in; a pair or map that lies elsewhere is refused, in the words of who reads it."""
    buckets = Buckets(tmp_path)
    written: dict[str, FolderPixels] = {}
    for modality in MODALITIES:
        pixels = FolderPacker(modality, store).pack(files_of(archive, modality))
        assert pixels is not None
        written[modality.top] = pixels
        record = folder_record(f"{modality.top}/a", [("a.json", memoryview(b"{}")), *packed_files(pixels)])
        with BucketWriter(buckets) as writer:
            writer.append(0, record)
    elsewhere = Ground(32633, 1.0, 2.0)
    with Bucket(buckets.path(0)) as bucket:
        for top, pixels in written.items():
            folder = bucket.open(f"{top}/a")
            assert folder is not None
            assert bytes(folder.read("a.json")) == b"{}"
            assert folder.packed == pixels
        s2, s1, maps = (bucket.open(f"{modality.top}/a") for modality in (S2, S1, MAPS))
        assert s2 is not None
        assert s1 is not None
        assert maps is not None
        assert read_s2(s2, "a") == written[S2.top]
        assert read_s1(s1, "a", written[S1.top].ground) == written[S1.top].arrays["s1"]
        assert read_reference_map(maps, "a", written[S1.top].ground) == written[MAPS.top].arrays["reference_map"]
        for read, packed, file in ((read_s1, s1, "a_VV.tif"), (read_reference_map, maps, "a_reference_map.tif")):
            with pytest.raises(BadPatchError) as caught:
                read(packed, "a", elsewhere)
            assert (caught.value.path, caught.value.reason) == (f"{packed.relative}/{file}", "grid_mismatch")
        with opened(archive, S1) as plain, pytest.raises(BadPatchError) as told:
            read_s1(plain, s1_name(NAME), elsewhere)
        with pytest.raises(BadPatchError) as caught:
            read_s1(s1, "a", elsewhere)
        assert caught.value.detail == told.value.detail
