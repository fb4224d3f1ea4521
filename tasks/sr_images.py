"""Images to train super-resolution on: a store's patches, whole scenes, folders of pictures."""

import hashlib
import struct
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio._err import CPLE_BaseError
from rasterio.errors import RasterioError
from torch import Tensor

from infra.archives.scene import apply_offset, find_scene, open_band
from infra.bigearthnet.bands import RGB, S2_10M, BandGroup
from infra.errors import ArchiveError, BadPatchError, ConfigError, TrainingError
from infra.parts import StageParts
from infra.zarr_store import ShardedStore
from sr_models.wald_pairs import FixedImages, ImagePools, ImageSet, Part, image_part, scene_areas
from tasks.labels import is_clean
from tasks.patch_pixels import picked

MEMORY_BYTES = 2**30
"""Pixels of a store's patches that a worker keeps at once."""

STEPS_PER_POOL = 1000
"""Steps between one pool of a store's patches and the next, where they do not all fit in memory."""

VALIDATION_PATCHES = 64
"""A store's patches that choose the weights, at most."""

_PICTURES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp"})
_FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP")  # of Pillow's many; some of the others start programs
_DAMAGED = (
    *(OSError, ValueError, LookupError, SyntaxError, EOFError, struct.error),  # what Pillow raises
    *(Image.DecompressionBombError, Image.DecompressionBombWarning),  # a header that promises too many pixels
)


class ImageSource(Protocol):
    """Images of one origin, cut into parts once and for all; holds names only."""

    def read(self, part: Part) -> ImageSet:
        """Return a part's images."""


@dataclass(frozen=True, slots=True)
class Scene:
    """A scene of the layout `scene`: one file a band."""

    path: Path
    bands: tuple[str, str, str] = RGB
    """Three bands of one grid, as the channels; the same one thrice gives grey images."""
    max_dn: int = 3000
    """DN of 1 in the stretch."""
    weight: float = 1.0
    """Relative share of the steps."""
    boa_add_offset: int | None = None
    """DN to add where no MTD_MSIL2A.xml tells it."""

    @property
    def name(self) -> str:
        """For curves and messages."""
        return f"{self.path.name} {' '.join(self.bands)}"

    def read(self, part: Part) -> ImageSet:
        """Return the areas of a part; see `scene_areas`.

        Raises:
            ArchiveError: A file is missing or cannot be read, or the bands are not of one grid.
        """
        try:
            scene = find_scene(str(self.path.parent), self.path.name, self.boa_add_offset)
        except BadPatchError as error:
            raise ArchiveError(f"train_sr: the scene {self.path} cannot be used: {error.detail}") from error
        images: list[Tensor] = []
        planes: dict[str, list[NDArray[np.uint16]]] = {}
        for band in dict.fromkeys(self.bands):
            planes[band] = _areas_of_band(Path(scene.files[band]), scene.offsets[band], part)
        for pieces in zip(*(planes[band] for band in self.bands), strict=True):
            if len({piece.shape for piece in pieces}) != 1:
                raise ArchiveError(f"train_sr: bands {', '.join(self.bands)} of {self.path} are not of one size")
            images.append(torch.from_numpy(np.stack(pieces)))
        return ImageSet(self.name, tuple(images), self.max_dn, self.weight)


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """Pictures of 8 bits, in a folder and those below it."""

    path: Path
    weight: float = 1.0
    """Relative share of the steps."""

    @property
    def name(self) -> str:
        """For curves and messages."""
        return self.path.name

    def read(self, part: Part) -> ImageSet:
        """Return the pictures of a part, in the order of their names; see `image_part`.

        Raises:
            ArchiveError: There is no such folder, or a picture cannot be read.
        """
        if not self.path.is_dir():
            raise ArchiveError(f"train_sr: the image folder {self.path} is not there")
        names = sorted(
            path.relative_to(self.path).as_posix()
            for path in self.path.rglob("*")
            if path.suffix.lower() in _PICTURES and path.is_file()
        )
        images = tuple(_picture(self.path / name) for name in names if image_part(name) == part)
        return ImageSet(self.name, images, 255, self.weight)


@dataclass(frozen=True, slots=True)
class StorePatches:
    """The clean patches of a store, B04, B03 and B02."""

    ingest: StageParts
    """Parts that say which patches a shard holds."""
    train_shards: tuple[int, ...]
    """Shards of the split train, or of the split all."""
    validation_shards: tuple[int, ...]
    """Shards of the split validation; none for an archive without splits, of which each scene is parted by place."""
    max_dn: int
    weight: float = 1.0
    """Relative share of the steps."""
    group: BandGroup = S2_10M
    """The array of the store that holds the bands."""
    bands: tuple[str, str, str] = RGB
    """Red, green, blue."""

    name: str = "patches"

    def pixels(self, store: ShardedStore, shard: int) -> NDArray[np.uint16]:
        """Return a shard's red, green and blue, DN, (shard_size, 3, H, W)."""
        return picked(store.read(shard, self.group.array), self.group, self.bands).astype(np.uint16, copy=False)

    def patches(self, part: Literal["train", "validation"]) -> dict[int, pa.Table]:
        """Return the rows of a part's patches, by shard; those with snow, cloud or missing pixels are left out."""
        by_place = not self.validation_shards
        shards = self.validation_shards if part == "validation" and not by_place else self.train_shards
        tables = {shard: _whole(self.ingest.read(shard).sort_by("row")) for shard in shards}
        if by_place:
            ids = [name for table in tables.values() for name in table["patch_id"].to_pylist()]
            parts = parts_by_place(ids)
            tables = {
                shard: table.filter(
                    pa.array([parts[name] == part for name in table["patch_id"].to_pylist()], pa.bool_())
                )
                for shard, table in tables.items()
            }
        return {shard: table for shard, table in tables.items() if table.num_rows}

    def read(self, part: Part) -> ImageSet:
        """Return the validation patches: of all there are, the first by shard and row."""
        if part != "validation":
            raise ValueError("patches are trained on in pools, and never tested here")
        room, images = VALIDATION_PATCHES, []
        store = ShardedStore(self.ingest.paths.archive)
        for shard, table in self.patches("validation").items():
            rows = table["row"].to_numpy()[:room]
            images += list(torch.from_numpy(self.pixels(store, shard)[rows]))
            room -= len(rows)
            if not room:
                break
        return ImageSet(self.name, tuple(images), self.max_dn, self.weight)

    def digest(self) -> str:
        """Return the SHA-256 of which patches train and choose, by their ids."""
        content = hashlib.sha256(f"{self.ingest.config} {self.max_dn}".encode())
        for part in ("train", "validation"):
            for shard, table in self.patches(part).items():
                content.update(f"{part} {shard} {' '.join(table['patch_id'].to_pylist())}\n".encode())
        return content.hexdigest()


class PatchPools:
    """A store's patches beside images that stay in memory; the pool of a step depends on its number alone.

    Every whole shard is a random sample of its split, so pools of whole shards in shuffled order are fair.
    """

    def __init__(self, patches: StorePatches, others: Sequence[ImageSet], seed: int) -> None:
        self._patches, self._others, self._seed = patches, tuple(others), seed
        self._store = ShardedStore(patches.ingest.paths.archive)
        self._rows = {shard: table["row"].to_numpy() for shard, table in patches.patches("train").items()}
        if not self._rows:
            raise TrainingError(
                "train_sr.patches: the archive has no patch without snow, cloud and missing pixels to train on"
            )
        room = MEMORY_BYTES // (2 * 3 * patches.group.size**2)
        self._groups = list(_groups({shard: len(rows) for shard, rows in self._rows.items()}, room))
        self._held: tuple[int, tuple[ImageSet, ...]] | None = None

    def at(self, step: int) -> Sequence[ImageSet]:
        """Return the sets that step draws from."""
        n = len(self._groups)
        round_, place = divmod(step // STEPS_PER_POOL, n)
        group = int(np.random.default_rng([self._seed, round_]).permutation(n)[place])
        if self._held is None or self._held[0] != group:
            self._held = None  # the last pool makes room first
            pixels = [self._patches.pixels(self._store, shard)[self._rows[shard]] for shard in self._groups[group]]
            images = tuple(torch.from_numpy(patch) for patch in np.concatenate(pixels))
            mine = ImageSet(self._patches.name, images, self._patches.max_dn, self._patches.weight)
            self._held = (group, (mine, *self._others))
        return self._held[1]


def parts_by_place(patch_ids: Sequence[str]) -> dict[str, Part]:
    """Return the part of each patch of scenes, by its row and column: the patches' counterpart of `scene_areas`.

    The lower right quarter of each scene's grid, rounded up, is the test; the lowest row left of it chooses; the rest
    trains.

    Args:
        patch_ids: `<scene>_<row>_<column>`.

    Raises:
        ConfigError: An id is not of that form.
    """
    places: dict[str, tuple[str, int, int]] = {}
    for name in patch_ids:
        words = name.rsplit("_", 2)
        if len(words) != 3 or not (words[1].isdigit() and words[2].isdigit()):
            raise ConfigError(
                f"train_sr.patches: the archive has no splits, and the patch {name} does not tell its row and column: "
                "nothing can be held out; set train_sr.patches to 0 and name scenes or image folders"
            )
        places[name] = (words[0], int(words[1]), int(words[2]))
    rows: dict[str, int] = {}
    columns: dict[str, int] = {}
    for scene, row, column in places.values():
        rows[scene], columns[scene] = max(rows.get(scene, 0), row), max(columns.get(scene, 0), column)

    def part(scene: str, row: int, column: int) -> Part:
        middle_row, middle_column = (rows[scene] + 1) // 2, (columns[scene] + 1) // 2
        if row >= middle_row and column >= middle_column:
            return "test"
        return "validation" if row == rows[scene] and row >= middle_row else "train"

    return {name: part(*place) for name, place in places.items()}


def pools(sources: Sequence[Scene | ImageFolder], patches: StorePatches | None, seed: int) -> ImagePools:
    """Return the training images of all sources."""
    fixed = [source.read("train") for source in sources]
    return FixedImages(tuple(fixed)) if patches is None else PatchPools(patches, fixed, seed)


def validation_sets(sources: Sequence[Scene | ImageFolder], patches: StorePatches | None) -> tuple[ImageSet, ...]:
    """Return the images that choose the weights: of scenes only those of the bands that the model is for.

    Raises:
        TrainingError: There is none.
    """
    chosen: list[ImageSource] = [] if patches is None else [patches]
    chosen += [source for source in sources if isinstance(source, ImageFolder) or source.bands == RGB]
    sets = [source.read("validation") for source in chosen]
    found = tuple(images for images in sets if images.images)
    if not found:
        raise TrainingError(
            "train_sr has no image to choose the weights by: give patches with a validation split, a scene in "
            f"{', '.join(RGB)}, or a folder of some more pictures"
        )
    return found


def _areas_of_band(path: Path, offset: int, part: Part) -> list[NDArray[np.uint16]]:
    """Return a band's pixels in each area of a part; pixels of other parts are not read."""
    try:
        with open_band(str(path)) as dataset:
            if dataset.dtypes[0] != "uint16":
                raise ArchiveError(f"train_sr: {path} holds {dataset.dtypes[0]}, DN are uint16")
            areas = scene_areas(dataset.height, dataset.width, part)
            return [apply_offset(dataset.read(1, window=((a.top, a.bottom), (a.left, a.right))), offset) for a in areas]
    except (RasterioError, CPLE_BaseError) as error:
        raise ArchiveError(f"train_sr: {path} cannot be read: {error}") from error


def _picture(path: Path) -> Tensor:
    """Return a picture as (3, H, W), uint8."""
    try:
        with (
            warnings.catch_warnings(action="error", category=Image.DecompressionBombWarning),
            Image.open(path, formats=_FORMATS) as image,
        ):
            mode, pixels = image.mode, np.array(image.convert("RGB"))
    except _DAMAGED as error:
        raise ArchiveError(f"train_sr: {path} cannot be read as a picture: {error}") from error
    if mode not in {"RGB", "RGBA", "L", "P"}:
        raise ArchiveError(f"train_sr: {path} is of mode {mode}, pictures of 8 bits are needed")
    return torch.from_numpy(np.ascontiguousarray(pixels.transpose(2, 0, 1)))


def _whole(patches: pa.Table) -> pa.Table:
    return patches.filter(pc.and_(is_clean(patches), pc.equal(patches["nodata_share"], 0)))


def _groups(counts: dict[int, int], room: int) -> Iterator[list[int]]:
    """Yield shards in runs of at most room patches, one shard at least."""
    group: list[int] = []
    held = 0
    for shard, count in counts.items():
        if group and held + count > room:
            yield group
            group, held = [], 0
        group.append(shard)
        held += count
    yield group
