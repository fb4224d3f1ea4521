"""Oracles: rasterio, pyproj, MGRS letters, the real archive's files, brute force, scikit-learn."""

import hashlib
import json
import shutil
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pyproj
import pytest
import rasterio
import tifffile
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler

from infra.archives.bigearthnet_v2 import BigEarthNetV2
from infra.archives.model import PatchInput
from infra.archives.synthetic import write_synthetic_archive
from infra.archives.synthetic.landcover import COVERS, NEIGHBOURS, UNCLASSED, majority_map
from infra.archives.synthetic.places import TILES, plan
from infra.archives.synthetic.spectra import DORMANT, MATERIALS, spectrum
from infra.archives.synthetic.textures import Canvas
from infra.bigearthnet.bands import RGB, S1, S2_10M, S2_20M, S2_60M, S2_BANDS, STATISTICS
from infra.bigearthnet.classes import CLASSES, CLC_TO_INDEX, NAMES
from infra.errors import ConfigError
from tests.infra.archives.small_archive import array_of

PATCHES = 128
CLEAN = "metadata.parquet"
FLAGGED = "metadata_for_patches_with_snow_cloud_or_shadow.parquet"


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("synthetic") / "archive"
    write_synthetic_archive(root, PATCHES, seed=3)
    return root


def rows(root: Path) -> list[dict[str, Any]]:
    return [row for name in (CLEAN, FLAGGED) for row in pq.read_table(root / name).to_pylist()]


def hashes(root: Path) -> dict[str, str]:
    files = sorted(path for path in root.rglob("*") if path.is_file())
    return {str(path.relative_to(root)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


def product(patch_id: str) -> str:
    return patch_id.rsplit("_", 2)[0]


def tile(patch_id: str) -> str:
    return patch_id.split("_")[5]


def band(root: Path, patch_id: str, name: str) -> NDArray[Any]:
    path = root / "BigEarthNet-S2" / product(patch_id) / patch_id / f"{patch_id}_{name}.tif"
    with rasterio.open(path) as source:
        return np.asarray(source.read(1))


def reference_map(root: Path, patch_id: str) -> NDArray[Any]:
    path = root / "Reference_Maps" / product(patch_id) / patch_id / f"{patch_id}_reference_map.tif"
    with rasterio.open(path) as source:
        return np.asarray(source.read(1))


def high_res_path(root: Path, patch_id: str) -> Path:
    return root / "HighRes" / product(patch_id) / patch_id / f"{patch_id}_RGB.tif"


def high_res(root: Path, patch_id: str) -> NDArray[Any]:
    with rasterio.open(high_res_path(root, patch_id)) as source:
        assert source.descriptions == RGB
        return np.asarray(source.read())


def tiffs(folder: Path) -> Iterable[Path]:
    return sorted(folder.rglob("*.tif"))


def test_same_seed_gives_the_same_bytes_in_another_process(archive: Path, tmp_path: Path) -> None:
    """The first 24 patches (the last of them flagged) of 128 here, and all of 24 there."""
    code = f"""
from pathlib import Path
from infra.archives.synthetic import write_synthetic_archive
write_synthetic_archive(Path({str(tmp_path / "a")!r}), 24, seed=3)
"""
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[3])
    write_synthetic_archive(tmp_path / "b", 24, seed=3)
    first = hashes(tmp_path / "a")
    assert first == hashes(tmp_path / "b")
    large = hashes(archive)
    assert len(first) == 24 * 16 + 3
    assert all(large[name] == digest for name, digest in first.items() if name.endswith(".tif"))


def test_another_seed_gives_other_pixels(archive: Path, tmp_path: Path) -> None:
    write_synthetic_archive(tmp_path, 1, seed=4)
    (other,) = rows(tmp_path)
    here = next(row for row in rows(archive) if row["patch_id"] == next(plan(1, 3)).patch_id)
    assert not np.array_equal(band(tmp_path, other["patch_id"], "B03"), band(archive, here["patch_id"], "B03"))


def test_10_m_is_the_rounded_mean_of_the_true_image(archive: Path) -> None:
    for row in rows(archive)[::5]:
        truth = high_res(archive, row["patch_id"])
        assert truth.dtype == np.uint16
        assert truth.min() >= 1  # 0 is nodata
        mean = truth.astype(np.float64).reshape(3, 120, 4, 120, 4).mean(axis=(2, 4))
        for name, expected in zip(RGB, np.rint(mean), strict=True):
            np.testing.assert_array_equal(band(archive, row["patch_id"], name), expected)


def test_detail_is_truly_lost_at_10_m(archive: Path) -> None:
    """What no 10 m pixel holds: the true image minus its own 4x4 means."""
    lost = []
    for row in rows(archive)[::8]:
        truth = high_res(archive, row["patch_id"]).astype(np.float64)
        coarse = truth.reshape(3, 120, 4, 120, 4).mean(axis=(2, 4)).repeat(4, axis=1).repeat(4, axis=2)
        lost.append(np.sqrt(np.mean((truth - coarse) ** 2)))
    assert np.median(lost) > 60  # DN; the sensor's noise is 9


def test_labels_are_the_classes_of_the_map(archive: Path) -> None:
    seen: set[int] = set()
    for row in rows(archive):
        codes, counts = np.unique(reference_map(archive, row["patch_id"]), return_counts=True)
        by_code = dict(zip(codes.tolist(), counts.tolist(), strict=True))
        expected = {c.name for c in CLASSES if any(code in c.clc for code in by_code)}
        assert row["labels"] == sorted(expected)
        assert 1 <= len(expected) <= 6
        assert min(count for code, count in by_code.items() if code in CLC_TO_INDEX) >= 0.02 * 120 * 120
        seen |= set(by_code)
    assert seen <= set(COVERS)
    assert len(seen & {122, *UNCLASSED}) >= 3  # codes that give no label do occur
    assert len(seen & set(CLC_TO_INDEX)) >= 25


def test_every_split_has_every_class_and_enough_tiles(archive: Path) -> None:
    clean = pq.read_table(archive / CLEAN).to_pylist()
    for split, share in (("train", 0.5), ("validation", 0.25), ("test", 0.25)):
        members = [row for row in clean if row["split"] == split]
        assert {label for row in members for label in row["labels"]} == set(NAMES)
        assert len({tile(row["patch_id"]) for row in members}) >= 8
        assert len(members) / len(clean) == pytest.approx(share, abs=0.03)
    assert len({row["country"] for row in clean}) == 10
    assert len({tile(row["patch_id"]) for row in clean}) == len(TILES) == 16


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_anchors_cover_every_class_per_split(seed: int) -> None:
    anchors: dict[str, set[int]] = {}
    for place in plan(128, seed):
        if not place.flag:
            anchors.setdefault(place.split, set()).add(place.anchor)
    assert anchors == {split: set(range(19)) for split in ("train", "validation", "test")}


def test_places_are_unique_and_do_not_depend_on_their_number() -> None:
    many = list(plan(2000, seed=0))
    assert many[:300] == list(plan(300, seed=0))
    for field in ("patch_id", "s1_name", "s2v1_name"):
        assert len({getattr(place, field) for place in many}) == 2000
    corners = {(place.epsg, place.left, place.top, tile(place.patch_id)) for place in many}
    assert len(corners) == 2000  # cells of one grid: no overlap within a tile


def test_metadata_has_the_schema_of_the_real_tables(archive: Path) -> None:
    by_hand = pa.schema(
        [
            ("patch_id", pa.string()),
            ("labels", pa.list_(pa.field("element", pa.string()))),
            ("split", pa.string()),
            ("country", pa.string()),
            ("s1_name", pa.string()),
            ("s2v1_name", pa.string()),
            ("contains_seasonal_snow", pa.bool_()),
            ("contains_cloud_or_shadow", pa.bool_()),
        ]
    )
    clean, flagged = pq.read_table(archive / CLEAN), pq.read_table(archive / FLAGGED)
    assert str(clean.schema) == str(by_hand)
    assert str(flagged.schema) == str(by_hand)
    assert (clean.num_rows, flagged.num_rows) == (123, 5)  # 128 // 24 are flagged
    flags = {(r["contains_seasonal_snow"], r["contains_cloud_or_shadow"]) for r in flagged.to_pylist()}
    assert flags == {(True, False), (False, True)}
    assert not any(r["contains_seasonal_snow"] or r["contains_cloud_or_shadow"] for r in clean.to_pylist())


def test_schema_and_tiff_tags_equal_the_real_ones(archive: Path, shared_data: Path) -> None:
    real = shared_data / "bigearthnet_v2"
    for name in (CLEAN, FLAGGED):
        assert str(pq.read_schema(archive / name)) == str(pq.read_schema(real / name))
    place_of_data = {"StripOffsets", "StripByteCounts", "ModelTiepointTag"}
    for folder, ending in [
        *(("BigEarthNet-S2", f"_{name}.tif") for name in S2_BANDS),
        *(("BigEarthNet-S1", f"_{name}.tif") for name in S1.bands),
        ("Reference_Maps", "_reference_map.tif"),
    ]:
        tags = []
        for root in (real, archive):
            path = next(p for p in tiffs(root / folder) if "33UUP" in p.name and p.name.endswith(ending))
            with tifffile.TiffFile(path) as tiff:
                page = tiff.pages.first
                assert tiff.byteorder == "<"
                tags.append({tag.name: tag.value for tag in page.tags if tag.name not in place_of_data})
        assert tags[0] == tags[1]


def test_real_acquisitions_name_the_products(shared_data: Path) -> None:
    real = pq.read_table(shared_data / "bigearthnet_v2" / CLEAN, columns=["patch_id", "country", "s1_name"])
    known = {
        (product(patch_id), country, s1_name.rsplit("_", 3)[0])
        for patch_id, country, s1_name in zip(*(column.to_pylist() for column in real.columns), strict=True)
    }
    assert {(p.product, p.country, p.s1_scene) for p in plan(64, 0)} <= known


@pytest.mark.parametrize("name", TILES)
def test_tiles_lie_where_mgrs_puts_them(name: str) -> None:
    """Letters give a 100 km square; Sentinel-2's tile starts at its corner, moved out to a multiple of 60 m."""
    columns = ("STUVWXYZ", "ABCDEFGH", "JKLMNPQR")  # of zones 3n, 3n + 1, 3n + 2
    rows = "ABCDEFGHJKLMNPQRSTUV"
    zone, latitude_band = int(name[:2]), "CDEFGHJKLMNPQRSTUVWX".index(name[2])
    easting = 100_000 * (1 + columns[zone % 3].index(name[3]))
    northing = 100_000 * ((rows.index(name[4]) - (0 if zone % 2 else 5)) % 20)
    while _latitude(zone, northing + 50_000) < 8 * latitude_band - 80:
        northing += 2_000_000
    assert _latitude(zone, northing + 50_000) < 8 * latitude_band - 72
    assert (TILES[name].left, TILES[name].top) == (easting // 60 * 60, -(-(northing + 100_000) // 60) * 60)


def _latitude(zone: int, northing: float) -> float:
    utm = pyproj.Transformer.from_crs(32600 + zone, 4326, always_xy=True)
    return float(utm.transform(500_000, northing)[1])


def test_files_lie_where_their_ids_say(archive: Path) -> None:
    """The id's last numbers are column and row of cells of 1.2 km, counted from the tile's north-western corner."""
    assert (TILES["33UUP"].left + 26 * 1200, TILES["33UUP"].top - 57 * 1200) == (331_200, 5_331_600)  # a real patch's
    sizes = {name: group.size for group in (S2_10M, S2_20M, S2_60M, S1) for name in group.bands}
    sizes |= {"map": 120, "RGB": 480}
    for row in rows(archive)[::4]:
        patch_id, s1_name = row["patch_id"], row["s1_name"]
        mgrs, column, line = patch_id.split("_")[5:]
        left, top = TILES[mgrs[1:]].left + 1200 * int(column), TILES[mgrs[1:]].top - 1200 * int(line)
        assert s1_name.split("_", 5)[5] == f"{mgrs[1:]}_{int(column)}_{int(line)}"
        assert row["s2v1_name"] == f"{patch_id[:26]}_{int(column)}_{int(line)}"
        s2 = archive / "BigEarthNet-S2" / product(patch_id) / patch_id
        s1 = archive / "BigEarthNet-S1" / s1_name.rsplit("_", 3)[0] / s1_name
        maps = archive / "Reference_Maps" / product(patch_id) / patch_id
        files = [*tiffs(s2), *tiffs(s1), *tiffs(maps), high_res_path(archive, patch_id)]
        assert len(files) == 12 + 2 + 1 + 1
        for path in files:
            with rasterio.open(path) as source:
                assert source.crs.to_epsg() == 32600 + int(mgrs[1:3])
                assert tuple(source.bounds) == (left, top - 1200, left + 1200, top)
                assert source.shape == (sizes[path.stem.rsplit("_", 1)[1]],) * 2


def test_files_have_the_real_ones_strips_and_types(archive: Path) -> None:
    place = next(plan(1, 3))
    s2 = archive / "BigEarthNet-S2" / place.product / place.patch_id / f"{place.patch_id}_B02.tif"
    s1 = archive / "BigEarthNet-S1" / place.s1_scene / place.s1_name / f"{place.s1_name}_VV.tif"
    maps = archive / "Reference_Maps" / place.product / place.patch_id / f"{place.patch_id}_reference_map.tif"
    for path, dtype, rows_per_strip, compression in (
        (s2, "uint16", 34, 1),
        (s1, "float32", 17, 1),
        (maps, "uint16", 34, 8),
    ):
        with tifffile.TiffFile(path) as tiff:
            page = tiff.pages.first
            assert isinstance(page, tifffile.TiffPage)
            assert (page.dtype, page.rowsperstrip, page.compression) == (dtype, rows_per_strip, compression)
    assert s2.stat().st_size == 29_196  # as the real B02


def test_the_reader_of_the_real_layout_reads_every_patch(archive: Path) -> None:
    reader = BigEarthNetV2(str(archive), include_flagged=True)
    scan = reader.scan()
    assert (scan.inputs.num_rows, scan.problems.num_rows, scan.total) == (PATCHES, 0, PATCHES)
    first = scan.inputs.to_pylist()[0]
    patch = reader.read(PatchInput(**{**first, "labels": tuple(first["labels"])}))
    assert patch.nodata_share == 0
    assert "s1" in patch.arrays
    assert patch.reference_map is not None
    np.testing.assert_array_equal(patch.reference_map, reference_map(archive, first["patch_id"]))
    np.testing.assert_array_equal(array_of(patch, "s2_10m")[1], band(archive, first["patch_id"], "B03"))


def test_snow_and_cloud_brighten(archive: Path) -> None:
    clean = np.median([band(archive, row["patch_id"], "B02").mean() for row in rows(archive)[:123:6]])
    for row in pq.read_table(archive / FLAGGED).to_pylist():
        blue, swir = band(archive, row["patch_id"], "B02"), band(archive, row["patch_id"], "B11")
        assert blue.mean() > 2 * clean
        white = np.quantile(blue, 0.95)
        assert white > 3500
        if row["contains_seasonal_snow"]:
            assert swir.mean() < blue.mean()  # snow is dark in the short-wave infrared


def test_statistics_are_near_the_real_archives(archive: Path) -> None:
    patches = rows(archive)[::4]
    for name in S2_BANDS:
        values = np.concatenate([band(archive, row["patch_id"], name).ravel() for row in patches])
        assert 0.6 < values.mean() / STATISTICS[name].mean < 1.7, name
        assert 0.5 < values.std() / STATISTICS[name].std < 1.7, name
    for name in S1.bands:
        files = [path for path in tiffs(archive / "BigEarthNet-S1") if path.name.endswith(f"_{name}.tif")]
        values = np.concatenate([rasterio.open(path).read().ravel() for path in files[::4]])
        assert np.isfinite(values).all()
        assert values.mean() == pytest.approx(STATISTICS[name].mean, abs=2.5)
        assert values.std() == pytest.approx(STATISTICS[name].std, abs=2)


def test_a_linear_probe_beats_prevalence(archive: Path) -> None:
    """Colour alone, as the classifiers see it (clipped at DN 3000), ranks the test patches' classes."""
    clean = pq.read_table(archive / CLEAN).to_pylist()
    pixels = np.stack([[band(archive, row["patch_id"], name) for name in RGB] for row in clean]).clip(0, 3000) / 3000
    flat = pixels.reshape(len(clean), 3, -1)
    quantiles = np.quantile(flat, [0.05, 0.25, 0.5, 0.75, 0.95], axis=2).transpose(1, 0, 2).reshape(len(clean), -1)
    features = np.concatenate([flat.mean(axis=2), flat.std(axis=2), quantiles], axis=1)
    truth = np.array([[name in row["labels"] for name in NAMES] for row in clean])
    train, test = (np.array([row["split"] == split for row in clean]) for split in ("train", "test"))
    features = StandardScaler().fit(features[train]).transform(features)
    precisions = []
    for label in range(len(NAMES)):
        model = LogisticRegression(class_weight="balanced", max_iter=2000).fit(features[train], truth[train, label])
        precisions.append(average_precision_score(truth[test, label], model.decision_function(features[test])))
    assert np.mean(precisions) > truth[test].mean() + 0.2


def test_growing_keeps_what_was_there(tmp_path: Path) -> None:
    write_synthetic_archive(tmp_path / "grown", 5, seed=1)
    before = {path: path.stat().st_mtime_ns for path in tiffs(tmp_path / "grown")}
    done: list[int] = []
    write_synthetic_archive(tmp_path / "grown", 8, seed=1, progress=done.append)
    assert done == list(range(1, 9))
    assert {path: path.stat().st_mtime_ns for path in before} == before
    write_synthetic_archive(tmp_path / "whole", 8, seed=1)
    assert hashes(tmp_path / "grown") == hashes(tmp_path / "whole")
    assert len(rows(tmp_path / "grown")) == 8


def test_an_interrupted_call_is_finished_by_the_next(tmp_path: Path) -> None:
    class StoppedError(Exception):
        pass

    def stop(done: int) -> None:
        if done == 2:
            raise StoppedError

    with pytest.raises(StoppedError):
        write_synthetic_archive(tmp_path / "a", 3, seed=1, progress=stop)
    write_synthetic_archive(tmp_path / "a", 3, seed=1)
    write_synthetic_archive(tmp_path / "b", 3, seed=1)
    assert hashes(tmp_path / "a") == hashes(tmp_path / "b")


def test_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="1 to 132496 patches, asked for 0"):
        write_synthetic_archive(tmp_path / "new", 0)
    with pytest.raises(ConfigError, match="seed"):
        write_synthetic_archive(tmp_path / "new", 1, seed=-1)
    assert not (tmp_path / "new").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "thesis.tex").write_text("x")
    with pytest.raises(ConfigError, match="no synthetic archive"):
        write_synthetic_archive(tmp_path / "full", 1)
    assert [p.name for p in (tmp_path / "full").iterdir()] == ["thesis.tex"]
    with pytest.raises(ConfigError, match="not a folder"):
        write_synthetic_archive(tmp_path / "full" / "thesis.tex", 1)
    (tmp_path / "empty").mkdir()
    write_synthetic_archive(tmp_path / "empty", 2, seed=1)
    assert json.loads((tmp_path / "empty" / "synthetic.json").read_text()) == {"patches": 2, "seed": 1, "version": 1}
    with pytest.raises(ConfigError, match="seed 1"):
        write_synthetic_archive(tmp_path / "empty", 2, seed=2)
    with pytest.raises(ConfigError, match="only grow"):
        write_synthetic_archive(tmp_path / "empty", 1, seed=1)
    shutil.copytree(tmp_path / "empty", tmp_path / "broken")
    (tmp_path / "broken" / "synthetic.json").write_text("{")
    with pytest.raises(ConfigError, match="cannot be read"):
        write_synthetic_archive(tmp_path / "broken", 2, seed=1)
    (tmp_path / "empty" / CLEAN).write_bytes(b"PAR1")
    with pytest.raises(ConfigError, match=f"{CLEAN} cannot be read"):
        write_synthetic_archive(tmp_path / "empty", 2, seed=1)


def test_majority_map_equals_brute_force() -> None:
    regions = np.random.default_rng(0).integers(0, 3, (480, 480)).astype(np.uint8)
    codes = (311, 122, 523)
    got = majority_map(regions, codes)
    for y, x in np.random.default_rng(1).integers(0, 120, (200, 2)).tolist():
        block = regions[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].ravel().tolist()
        assert got[y, x] == codes[max(range(3), key=block.count)]


def test_every_class_can_be_painted_and_has_neighbours() -> None:
    assert set(CLC_TO_INDEX) <= set(COVERS)
    assert set(COVERS) - set(CLC_TO_INDEX) == {122, *UNCLASSED}
    assert {label for group in NEIGHBOURS for label in group} == set(range(19))
    assert {*DORMANT, *DORMANT.values()} <= set(MATERIALS)
    assert {len(dn) for dn in MATERIALS.values()} == {len(S2_BANDS)}


def test_some_covers_differ_in_their_detail_only() -> None:
    """Orchard and transitional woodland: the same colour on average; rows of crops: the colour of pasture."""
    visible = [S2_BANDS.index(name) for name in RGB]
    for vigour in (0.5, 0.8, 1.0):
        np.testing.assert_array_equal(spectrum("crop", vigour)[visible], spectrum("grass", vigour)[visible])
    means: dict[int, list[NDArray[Any]]] = {222: [], 324: []}
    fine: list[float] = []
    for seed in range(5):
        for code, of_code in means.items():
            canvas = Canvas(np.random.default_rng(seed), vigour=1.0)
            surface = COVERS[code].paint(canvas)
            image = canvas.spectra()[surface.index][..., visible] * surface.shade[..., None]
            of_code.append(image.mean(axis=(0, 1)))
            coarse = image.reshape(120, 4, 120, 4, 3).mean(axis=(1, 3)).repeat(4, axis=0).repeat(4, axis=1)
            fine.append((image - coarse).std())
    np.testing.assert_allclose(np.mean(means[222], axis=0), np.mean(means[324], axis=0), rtol=0.08)
    assert min(fine) > 100  # DN, within 10 m pixels
