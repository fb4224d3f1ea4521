"""Whole Sentinel-2 L2A scenes, cut into patches of 120 x 120 pixels of the 10 m grid.

A scene is a folder of one GeoTIFF or JPEG 2000 per band (`B02.tif`, or names that end in `_B02.tif` or
`_B02_10m.jp2`), or a SAFE product with its `MTD_MSIL2A.xml`; the root is a scene or a folder of scenes. Patches start
at the scene's upper left corner; what is left over at the right and lower border, less than a patch, is left out, so
that no pixel is invented and none occurs twice. A patch's id is `<scene>_<row>_<col>`, as in BigEarthNet.

Products of processing baseline 04.00 and later carry BOA_ADD_OFFSET (-1000). It is added here, so that DN mean
reflectance x 10,000 everywhere: nodata (DN 0) stays 0, and no valid pixel becomes 0: DN are clipped to 1..65535.

Source: Sentinel-2 Products Specification Document 15.0 (S2-PDGS-TAS-DI-PSD), SAFE layout and MTD_MSIL2A.
"""

import os
import re
import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, NamedTuple
from xml.etree import ElementTree as ET

import numpy as np
import pyarrow as pa
import rasterio
from numpy.typing import NDArray
from rasterio._err import CPLE_BaseError  # GDAL's own errors, which rasterio passes on as they are
from rasterio.errors import RasterioError
from rasterio.io import DatasetReader
from rasterio.windows import Window

from infra.archives.files import is_inside, leaves
from infra.archives.inventory import printable
from infra.archives.model import BIGEARTHNET, INPUT_SCHEMA, PROBLEM_SCHEMA, Patch, PatchInput, Scan
from infra.archives.names import baseline_of, day_of, tile_of
from infra.archives.patch_folder import is_projected, nodata_share
from infra.archives.tiff_blocks import MAX_BLOCK_BYTES
from infra.bigearthnet.bands import PATCH_METRES, PATCH_SIZE, S2_10M, S2_BANDS, S2_GROUPS
from infra.errors import ArchiveError, BadPatchError

METADATA = "MTD_MSIL2A.xml"
OPEN_SCENES = 4
"""Scenes whose twelve files each worker process keeps open."""

_GSD = {band: PATCH_METRES // group.size for group in S2_GROUPS for band in group.bands}
_BAND_FILE = re.compile(r"(?:^|_)(B\d[\dA])(?:_(\d\d)m)?\.(?:tif|tiff|jp2)$", re.IGNORECASE | re.ASCII)
_OFFSET_BASELINES = range(400, 9999)  # N9999 are reprocessed products without the offset
# band_id of the XML is the position in this list, which has B10.
_XML_BANDS = ("B01", "B02", "B03", "B04", "B05", "B06", "B07", "B08", "B8A", "B09", "B10", "B11", "B12")
_XML_BYTES = 1 << 26
_MOST_PATCHES = 1_000_000  # of a scene: a Sentinel-2 tile has 8,281
_GDAL_ERRORS = (RasterioError, CPLE_BaseError, ValueError)
_TOLERANCE = 1e-3  # m
_MOST_DN = 65_535


def is_band_file(name: str) -> bool:
    """Return whether a file's name says that it holds a band of a scene."""
    return _BAND_FILE.search(name) is not None


@dataclass(frozen=True, slots=True)
class SceneFiles:
    """Where a scene's bands lie, and what to add to them."""

    name: str
    files: Mapping[str, str]
    """Band to path."""
    offsets: Mapping[str, int]
    """Band to BOA_ADD_OFFSET, DN."""


class SceneGrid(NamedTuple):
    """The 10 m grid of a scene."""

    epsg: int
    left: float
    top: float
    rows: int
    """Of whole patches."""
    columns: int


@dataclass(frozen=True, slots=True)
class SceneArchive:
    """The scenes at `root`."""

    root: str
    """A scene, or a folder of scenes."""
    boa_add_offset: int | None = None
    """DN to add to scenes without MTD_MSIL2A.xml; the XML of a scene is believed before this."""

    version: ClassVar[str] = "scene"

    def scan(self) -> Scan:
        """Return all patches of all scenes; a scene that cannot be used is one problem.

        Raises:
            ArchiveError: No root, no scene, or a scene whose offset is not known.
        """
        inputs: list[dict[str, str]] = []
        problems: list[dict[str, str | None]] = []
        taken: set[str] = set()
        for source in self._sources():
            name = scene_name(self.root, source)
            try:
                grid = self._grid(source, taken)
            except BadPatchError as error:
                problems.append({"patch_id": None, "path": error.path, "reason": error.reason, "detail": error.detail})
                continue
            inputs += [
                {"patch_id": f"{name}_{row:02d}_{column:02d}", "split": "all", "source": source}
                for row in range(grid.rows)
                for column in range(grid.columns)
            ]
        return Scan(
            format=BIGEARTHNET,
            inputs=pa.Table.from_pylist(inputs, INPUT_SCHEMA),
            problems=pa.Table.from_pylist(problems, PROBLEM_SCHEMA),
            absent=0,
            total=len(inputs) + len(problems),
            excluded=0,
        )

    def read(self, patch: PatchInput) -> Patch:
        """Return one patch's pixels; the scene stays open in this process for the next one.

        Raises:
            BadPatchError: A band's file is damaged or gone.
        """
        name, row, column = patch.patch_id.rsplit("_", 2)
        with _LOCK:
            scene = _opened(self.root, patch.source, self.boa_add_offset)
            arrays = {
                group.array: np.stack([scene.read(band, int(row), int(column), patch.source) for band in group.bands])
                for group in S2_GROUPS
            }
        left = scene.grid.left + int(column) * PATCH_METRES
        top = scene.grid.top - int(row) * PATCH_METRES
        return Patch(
            arrays=arrays,
            reference_map=None,
            labels=None,
            epsg=scene.grid.epsg,
            bounds=(left, top - PATCH_METRES, left + PATCH_METRES, top),
            acquired=day_of(name),
            tile=tile_of(name),
            nodata_share=nodata_share(arrays[S2_10M.array]),
        )

    def _grid(self, source: str, taken: set[str]) -> SceneGrid:
        """Return the grid of a usable scene whose name is not yet taken."""
        name = scene_name(self.root, source)
        if name in taken:
            raise BadPatchError(source, "duplicate_id", f"another scene is called {name} too")
        taken.add(name)
        if printable(source) != source:
            raise BadPatchError(printable(source), "unreadable", "the folder's name is not UTF-8: rename it")
        datasets = open_bands(find_scene(self.root, source, self.boa_add_offset), self.root)
        try:
            return common_grid(datasets, source)
        finally:
            for dataset in datasets.values():
                dataset.close()

    def _sources(self) -> list[str]:
        root = Path(self.root)
        if not root.is_dir():
            raise ArchiveError(f"the archive's root {root} is not a folder")
        if _is_scene(root):
            return ["."]
        scenes = sorted(child.name for child in root.iterdir() if child.is_dir() and _is_scene(child))
        if not scenes:
            raise ArchiveError(
                f"{root} is neither a scene nor a folder of scenes: a scene holds files such as B02.tif, or is a .SAFE"
            )
        return scenes


def scene_name(root: str, source: str) -> str:
    """Return what a scene's patches are called after: its folder, without .SAFE."""
    folder = os.path.basename(os.path.realpath(root)) if source == "." else source  # noqa: PTH119 - a string
    return printable(folder).removesuffix(".SAFE")


def find_scene(root: str, source: str, boa_add_offset: int | None) -> SceneFiles:
    """Return a scene's band files and offsets.

    Args:
        root: The archive's root.
        source: The scene's folder below it, or ".".
        boa_add_offset: DN to add where the scene has no MTD_MSIL2A.xml.

    Raises:
        BadPatchError: A band is missing or there twice, or the XML cannot be read.
        ArchiveError: The product's baseline has an offset, and nothing says which.
    """
    folder = Path(root) / source
    files: dict[str, str] = {}
    for path in _candidates(folder):
        match = _BAND_FILE.search(path.name)
        band = match[1].upper() if match else ""
        if match is None or band not in _GSD or (match[2] is not None and int(match[2]) != _GSD[band]):
            continue  # another band, or this one resampled to a coarser grid
        if band in files:
            raise BadPatchError(
                source, "duplicate_id", f"two files for band {band}: {Path(files[band]).name} and {path.name}"
            )
        files[band] = os.fspath(path)
    missing = [band for band in S2_BANDS if band not in files]
    if missing:
        raise BadPatchError(source, "missing_band", f"no file for {', '.join(missing)}")
    for path_text in files.values():
        relative = os.path.relpath(path_text, root)
        if not is_inside(root, relative):
            raise leaves(relative)
    if not is_inside(root, f"{source}/{METADATA}"):
        raise leaves(f"{source}/{METADATA}")
    return SceneFiles(scene_name(root, source), files, _offsets(folder, source, boa_add_offset))


def open_bands(scene: SceneFiles, root: str) -> dict[str, DatasetReader]:
    """Return the scene's open datasets, by band.

    Args:
        scene: Its files.
        root: The archive's root, for messages.

    Raises:
        BadPatchError: A file cannot be opened.
    """
    datasets: dict[str, DatasetReader] = {}
    for band in S2_BANDS:
        path = scene.files[band]
        try:
            datasets[band] = open_band(path)
        except _GDAL_ERRORS as error:
            for dataset in datasets.values():
                dataset.close()
            empty = Path(path).is_file() and Path(path).stat().st_size == 0
            raise BadPatchError(
                os.path.relpath(path, root), "truncated" if empty else "not_a_tiff", f"GDAL cannot open it: {error}"
            ) from error
    return datasets


def open_band(path: str) -> DatasetReader:
    """Return the open dataset of a band, without what may lie beside it, and only as what its name says that it is.

    GDAL goes by a file's content otherwise, and many formats are nothing but names of other files, or of servers.

    Args:
        path: Its file, a TIFF or JPEG 2000.

    Raises:
        RasterioError, CPLE_BaseError, ValueError: GDAL cannot open it as that.
    """
    with rasterio.Env(GDAL_DISABLE_READDIR_ON_OPEN="EMPTY_DIR", GDAL_PAM_ENABLED="NO"):
        return rasterio.open(path, driver="JP2OpenJPEG" if path.lower().endswith(".jp2") else "GTiff")


def common_grid(datasets: Mapping[str, DatasetReader], source: str) -> SceneGrid:
    """Return the grid that all bands of a scene share.

    Args:
        datasets: Open datasets, by band.
        source: The scene, for messages.

    Raises:
        BadPatchError: grid_mismatch, wrong_type, or wrong_size where the scene is smaller than a patch.
    """
    first = datasets[S2_10M.bands[0]]
    rows, columns = first.height // PATCH_SIZE, first.width // PATCH_SIZE
    for group in S2_GROUPS:
        for band in group.bands:
            dataset = datasets[band]
            if dataset.dtypes[0] != "uint16":
                raise BadPatchError(source, "wrong_type", f"band {band} holds {dataset.dtypes[0]}, DN are uint16")
            block = dataset.dtypes.count("uint16") * 2 * max(height * width for height, width in dataset.block_shapes)
            if block > MAX_BLOCK_BYTES:
                raise BadPatchError(source, "wrong_size", f"band {band} promises blocks of {block} bytes")
            here, there = dataset.transform, first.transform
            agrees = (
                dataset.crs is not None
                and dataset.crs == first.crs
                and (here.b, here.d) == (0, 0)
                and abs(here.a - group.gsd) < _TOLERANCE
                and abs(here.e + group.gsd) < _TOLERANCE
                and abs(here.c - there.c) < _TOLERANCE
                and abs(here.f - there.f) < _TOLERANCE
                and dataset.height >= rows * group.size
                and dataset.width >= columns * group.size
            )
            if not agrees:
                raise BadPatchError(
                    source,
                    "grid_mismatch",
                    f"band {band} ({dataset.height} x {dataset.width} pixels of {here.a} m from {here.c}, {here.f}, "
                    f"{dataset.crs}) does not lie on the grid of {S2_10M.bands[0]} "
                    f"({first.height} x {first.width} from {there.c}, {there.f}, {first.crs}) at {group.gsd} m",
                )
    if not rows or not columns:
        raise BadPatchError(source, "wrong_size", f"{first.height} x {first.width} pixels are less than one patch")
    if rows * columns > _MOST_PATCHES:
        promised = f"its header promises {first.height} x {first.width} pixels"
        raise BadPatchError(source, "wrong_size", f"{promised}, which are more than {_MOST_PATCHES} patches")
    epsg = first.crs.to_epsg()
    if epsg is None or not is_projected(epsg):
        raise BadPatchError(source, "grid_mismatch", f"its CRS is not a projected one with an EPSG code: {first.crs}")
    return SceneGrid(epsg, first.transform.c, first.transform.f, rows, columns)


def apply_offset(pixels: NDArray[np.uint16], offset: int) -> NDArray[np.uint16]:
    """Return DN with BOA_ADD_OFFSET added: 0 (nodata) stays 0, all others end in 1..65535.

    Args:
        pixels: DN, any shape.
        offset: BOA_ADD_OFFSET.
    """
    if not offset:
        return pixels
    moved = np.clip(pixels.astype(np.int32) + offset, 1, np.iinfo(np.uint16).max).astype(np.uint16)
    return np.where(pixels == 0, np.uint16(0), moved)


def _is_scene(folder: Path) -> bool:
    if folder.suffix == ".SAFE" or (folder / METADATA).is_file():
        return True
    try:
        return any(is_band_file(child.name) for child in folder.iterdir())
    except OSError:
        return False


def _candidates(folder: Path) -> list[Path]:
    """Return the files of a scene, in a folder or in a SAFE product's IMG_DATA."""
    try:
        if (folder / "GRANULE").is_dir():
            return sorted(path for path in (folder / "GRANULE").glob("*/IMG_DATA/**/*") if path.suffix)
        return sorted(folder.iterdir())
    except OSError as error:
        raise BadPatchError(folder.name, "unreadable", f"its folder cannot be listed: {error.strerror}") from error


def _offsets(folder: Path, source: str, boa_add_offset: int | None) -> dict[str, int]:
    """Return BOA_ADD_OFFSET by band, from the XML, else from the option, else 0."""
    path = folder / METADATA
    baseline = baseline_of(folder.resolve().name)
    from_xml = _offsets_of_xml(path, f"{source}/{METADATA}") if path.is_file() else {}
    if from_xml:
        return {band: from_xml.get(band, 0) for band in S2_BANDS}
    if boa_add_offset is None and baseline in _OFFSET_BASELINES:
        raise ArchiveError(
            f"{folder} is of processing baseline {baseline:04d}, whose DN carry an offset, and no {METADATA} states "
            "it: give archive.boa_add_offset (-1000 for products as ESA distributes them, 0 where it was removed)"
        )
    return dict.fromkeys(S2_BANDS, boa_add_offset or 0)


def _offsets_of_xml(path: Path, shown: str) -> dict[str, int]:
    try:
        if path.stat().st_size > _XML_BYTES:
            raise BadPatchError(shown, "malformed_metadata", f"{path.stat().st_size} bytes are no product's metadata")
        # As text, since it could declare an encoding in which the entities below are spelt otherwise.
        text = path.read_bytes().decode("utf-8-sig")
        if "<!DOCTYPE" in text or "<!ENTITY" in text:
            raise BadPatchError(shown, "malformed_metadata", "it defines entities, which no product's metadata does")
        root = ET.fromstring(text)  # noqa: S314 - entities, the known attack, are refused above
        found = [(int(element.attrib["band_id"]), int(element.text or "")) for element in root.iter("BOA_ADD_OFFSET")]
        if not all(0 <= band < len(_XML_BANDS) and abs(offset) <= _MOST_DN for band, offset in found):
            raise BadPatchError(shown, "malformed_metadata", "a BOA_ADD_OFFSET is of no band, or no offset of DN")
        return {_XML_BANDS[band]: offset for band, offset in found}
    except (ET.ParseError, ValueError, KeyError, IndexError) as error:
        if isinstance(error, BadPatchError):
            raise
        raise BadPatchError(shown, "malformed_metadata", f"BOA_ADD_OFFSET cannot be read: {error}") from error
    except OSError as error:
        raise BadPatchError(shown, "unreadable", error.strerror or str(error)) from error


class _OpenScene:
    """A scene with its twelve files open."""

    def __init__(self, root: str, source: str, boa_add_offset: int | None) -> None:
        scene = find_scene(root, source, boa_add_offset)
        self._root, self._scene = root, scene
        self._datasets = open_bands(scene, root)
        try:
            self.grid = common_grid(self._datasets, source)
        except BadPatchError:
            self.close()
            raise

    def read(self, band: str, row: int, column: int, source: str) -> NDArray[np.uint16]:
        """Return one band of one patch, (size, size) DN."""
        size = PATCH_METRES // _GSD[band]
        if not (0 <= row < self.grid.rows and 0 <= column < self.grid.columns):
            raise BadPatchError(source, "wrong_size", f"the scene has no patch {row}, {column}")
        try:
            pixels = self._datasets[band].read(1, window=Window(column * size, row * size, size, size))
        except _GDAL_ERRORS as error:
            shown = os.path.relpath(self._scene.files[band], self._root)
            reason = error.__cause__ if error.__cause__ is not None else error
            raise BadPatchError(shown, "corrupt", f"GDAL cannot decode patch {row}, {column}: {reason}") from error
        return apply_offset(pixels, self._scene.offsets[band])

    def close(self) -> None:
        for dataset in self._datasets.values():
            dataset.close()


_LOCK = threading.Lock()  # GDAL datasets serve one thread at a time
_open_scenes: OrderedDict[tuple[int, str, str, int | None], _OpenScene] = OrderedDict()


def _opened(root: str, source: str, boa_add_offset: int | None) -> _OpenScene:
    """Return an open scene of this process (datasets do not survive a fork)."""
    key = (os.getpid(), root, source, boa_add_offset)
    scene = _open_scenes.get(key)
    if scene is None:
        try:
            scene = _OpenScene(root, source, boa_add_offset)
        except ArchiveError as error:
            raise BadPatchError(source, "malformed_metadata", str(error)) from error
        _open_scenes[key] = scene
        while len(_open_scenes) > OPEN_SCENES:
            _open_scenes.popitem(last=False)[1].close()
    _open_scenes.move_to_end(key)
    return scene


def close_scenes() -> None:
    """Close what this process keeps open."""
    with _LOCK:
        while _open_scenes:
            _open_scenes.popitem()[1].close()
