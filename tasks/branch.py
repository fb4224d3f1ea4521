"""A branch: the archive as one SR model shows it to the classifiers, computed on the fly or read back."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
from numpy.typing import NDArray
from torch import Tensor

import sr_models
from infra.archives.model import PatchFormat
from infra.bigearthnet.bands import IMAGE_RGB, S1, BandGroup
from infra.errors import ConfigError, PipelineError
from infra.fingerprint import Json
from infra.node_files import local_file, local_folder
from infra.parts import StageParts, stage_config, stage_parts
from infra.storage import StorePaths
from infra.tables import SR_QUALITY
from infra.zarr_store import ArraySpec, ShardedStore, divisor
from sr_models import Condition
from sr_models.engine import Enlarged
from sr_models.quality import QUALITY_COLUMNS, SSIM_WINDOW, quality_columns
from sr_models.registry import CEILING, Scalar, SrSpec
from sr_models.stretch import as_tensor, to_unit
from tasks.bands import Resampling, groups_of
from tasks.patch_pixels import joined, picked, reduced

_QUALITY_SCHEMA = 2  # raised when a column of SR_QUALITY comes, goes or changes; pixels that are stored stay
_STORED_BLOCK = 64  # patches of SR pixels written at once: 88 MB at 480 x 480


@dataclass(frozen=True, slots=True)
class Inputs:
    """What all branches of a run see of the archive."""

    ingest: StageParts
    """Parts that say which patches a shard holds."""
    format: PatchFormat
    """What the archive's patches have in common."""
    bands: tuple[str, ...]
    """Bands, in channel order."""
    max_dn: tuple[int, ...]
    """DN of 1 in the stretch, of each band."""
    degrade: int = 1
    """Factor by which all branches but the ceiling see the pixels reduced."""
    resampling: Resampling = "nearest"
    """How bands of coarser grids are enlarged."""

    @property
    def groups(self) -> tuple[BandGroup, ...]:
        """The grids that hold the bands, the finest first."""
        return groups_of(self.format, self.bands)

    def patches(self, shard: int) -> pa.Table:
        """Return a shard's patches that have all the bands, in the order of their rows."""
        patches = self.ingest.read(shard).sort_by("row")
        return patches.filter(patches["has_s1"]) if S1 in self.groups else patches


@dataclass(frozen=True, slots=True)
class LandCover:
    """The predictions that a conditioned model is told as land cover: those of one network for the patches as they are.

    They are known by the network's file, so that other seeds beside it change no pixel, and another store's are equal.
    """

    predictions: StageParts
    """Their parts."""
    classifier: str
    seed: int
    """The first seed."""
    checkpoint: str
    """SHA-256 of its network."""

    @property
    def identity(self) -> str:
        """What they depend on, besides the patches."""
        return f"{self.classifier} {self.checkpoint}"


@dataclass(frozen=True, slots=True)
class Branch:
    """What a branch is and where its pixels and parts lie. Holds names, no model; cheap to pickle."""

    inputs: Inputs
    """What it sees of the archive."""
    sr: str
    """SR model."""
    weights: Path | None
    """Its weight file or folder, whichever it came to be, where all workers have it; None for a model without."""
    dtype: str | None
    """Precision of the SR network; None: its default."""
    batch_size: int
    """Patches that go through a classifier at once."""
    compiled: bool | None
    """Whether the SR network is compiled; None: on GPUs."""
    options: Mapping[str, Scalar]
    """What was chosen of the SR model; empty for one without options."""
    land_cover: LandCover | None
    """Predictions that a conditioned model is told as land cover; None where it is told none, or the labels."""
    identity: Mapping[str, Json]
    """Whatever determines the pixels, besides the archive's."""
    pixels: StageParts
    """Parts of the super_resolve stage: SR pixels that are stored."""
    quality: StageParts
    """Parts of tables/sr_quality."""

    @property
    def ingest(self) -> StageParts:
        """Parts that say which patches a shard holds."""
        return self.inputs.ingest

    @property
    def bands(self) -> tuple[str, ...]:
        """Bands, in channel order."""
        return self.inputs.bands

    @property
    def max_dn(self) -> tuple[int, ...]:
        """DN of 1 in the stretch, of each band."""
        return self.inputs.max_dn

    @property
    def paths(self) -> StorePaths:
        """The store."""
        return self.ingest.paths

    @property
    def store(self) -> Path:
        """Where SR pixels are stored, if they are."""
        return self.paths.super_resolved(self.sr, self.pixels.config)

    @property
    def spec(self) -> SrSpec:
        """The SR model."""
        return sr_models.SR_MODELS[self.sr]

    @property
    def scale(self) -> int:
        """Factor of enlargement."""
        return self.spec.scale

    @property
    def awaits_predictions(self) -> bool:
        """Whether its SR model is to be told predictions, which nobody has made yet."""
        return self.options.get("land_cover") == "predictions" and self.land_cover is None

    @property
    def sr_shards(self) -> StageParts:
        """Parts of SR shards, of a model whose pixels are stored in less than whole shards: see `SrShards`."""
        return StageParts(self.paths, "sr_shards", self.pixels.config)

    def block(self, shard_size: int) -> int:
        """Return the patches of SR pixels that are written and read at once; batches do not reach across."""
        return divisor(shard_size, self.spec.sr_shard or _STORED_BLOCK)

    @property
    def degrade(self) -> int:
        """Factor by which the archive's pixels are reduced before the SR model sees them."""
        return 1 if self.sr == CEILING else self.inputs.degrade

    @property
    def has_truth(self) -> bool:
        """Whether the SR pixels have the size of the archive's own, which are then the truth."""
        return self.degrade == self.scale > 1

    @property
    def size(self) -> int:
        """Edge of what a classifier sees, pixels."""
        return self.inputs.format.size // self.degrade * self.scale

    @property
    def quality_outputs(self) -> list[StageParts]:
        """The quality parts, where the branch has any: a branch that does not enlarge has nothing to judge."""
        return [self.quality] if self.scale > 1 else []

    def arrays(self) -> tuple[ArraySpec, ...]:
        """Return the arrays of the branch's store."""
        gsd = self.inputs.groups[0].gsd
        attributes: dict[str, Json] = {
            "units": "DN of the archive" if gsd is None else "DN = 10000 * surface reflectance",
            "gsd_m": None if gsd is None else gsd * self.degrade / self.scale,
            "long_name": f"{'images' if gsd is None else 'Sentinel-2'} super-resolved by {self.sr}",
            "max_dn": list(self.max_dn),
        }
        return (
            ArraySpec(
                "sr",
                ("band", "y", "x"),
                (len(self.bands), self.size, self.size),
                "uint16",
                0,
                attributes,
                chunk=4,
                names=self.bands,
                zarr_shard=self.spec.sr_shard or _STORED_BLOCK,
            ),
        )


def make_branch(
    inputs: Inputs,
    sr: str,
    weights: Path | None,
    *,
    dtype: str | None = None,
    batch_size: int = 16,
    compiled: bool | None = None,
    options: Mapping[str, object] | None = None,
    land_cover: LandCover | None = None,
) -> Branch:
    """Return the branch of one SR model over an ingested archive; see `Branch` for the arguments.

    Without weights, the stored official file or the shipped one is settled on here, so that all workers use the same.
    Where the model is to be told predictions and there are none yet, the branch has everything but parts of its own.

    Raises:
        WeightsError: The weight file is missing.
        ConfigError: The model does not run in that dtype, on those bands, with those options, or on patches of that
            size.
    """
    spec = sr_models.spec(sr)
    weights = sr_models.weights_file(sr, weights, options)
    chosen = spec.chosen(sr, options)
    scalars: dict[str, Scalar] = {} if chosen is None else chosen.model_dump()
    if len(inputs.groups) > 1 and (sr != "none" or inputs.degrade > 1):
        raise ConfigError(
            f"{sr}: bands of several grids ({', '.join(group.array for group in inputs.groups)}) are for the branch "
            "none without degrade; choose bands: rgb or 10m"
        )
    if inputs.format.size % inputs.degrade:
        raise ConfigError(f"degrade: {inputs.degrade} does not divide patches of {inputs.format.size} pixels")
    if sr == CEILING and inputs.degrade == 1:
        raise ConfigError(f"the branch {CEILING} is the ceiling of a run with degrade; without it, take none")
    _refuse_size(inputs, sr)
    identity: dict[str, Json] = {
        **sr_models.fingerprint(sr, weights, dtype, options),
        "max_dn": list(inputs.max_dn),
        "bands": list(inputs.bands),
    }
    if inputs.degrade > 1 and sr != CEILING:
        identity["degrade"] = inputs.degrade
    if len(inputs.groups) > 1:
        identity["resampling"] = inputs.resampling
    if land_cover is not None:
        identity["land_cover_of"] = land_cover.identity
    ingest = inputs.ingest
    determines: dict[str, Json] = {**identity, "input": ingest.config, "schema": 1}
    provisional = scalars.get("land_cover") == "predictions" and land_cover is None
    parts = _unrecorded_parts if provisional else stage_parts
    pixels = parts(ingest.paths, "super_resolve", determines)
    quality = parts(ingest.paths, "sr_quality", {**determines, "pixels": pixels.config, "schema": _QUALITY_SCHEMA})
    return Branch(inputs, sr, weights, dtype, batch_size, compiled, scalars, land_cover, identity, pixels, quality)


def _unrecorded_parts(paths: StorePaths, stage: str, determines: Mapping[str, Json]) -> StageParts:
    return StageParts(paths, stage, stage_config(stage, determines))


def _refuse_size(inputs: Inputs, sr: str) -> None:
    """Raise ConfigError where SR pixels could not be judged, by the truth or by Wald's protocol."""
    scale, seen = sr_models.SR_MODELS[sr].scale, inputs.format.size // inputs.degrade
    if scale == 1:
        return
    has_truth = inputs.degrade == scale
    compared = inputs.format.size if has_truth else seen
    if compared < SSIM_WINDOW or (seen % scale and not has_truth):
        wanted = "" if has_truth else f", a multiple of {scale}"
        raise ConfigError(
            f"{sr}: patches of {compared} pixels cannot be judged, their edge needs to be at least {SSIM_WINDOW}"
            f"{wanted}: set archive.image_size for pictures, or leave {sr} out"
        )


@dataclass(frozen=True, slots=True)
class Batch:
    """Patches on their way through the models."""

    rows: NDArray[np.int64]
    """Their rows in the shard, (N,)."""
    x: Tensor
    """What classifiers standardise, (N, C, H, W) float32 on the device: [0, 1] after the stretch; Sentinel-1 in dB."""
    quality: pa.Table | None
    """SR_QUALITY rows, where the pixels were computed here and the model enlarges."""


Stored = dict[str, NDArray[np.generic]]
"""Pixels as they are stored, by array: SR pixels as `sr`, or the archive's wanted bands by grid."""


class BranchReader:
    """A branch's pixels inside a worker: the model is loaded on first use, stores are opened once."""

    def __init__(self, branch: Branch, device: torch.device) -> None:
        self.branch = branch
        self.device = device
        self._archive = ShardedStore(branch.paths.archive)
        self._stored = ShardedStore(branch.store) if (branch.store / "zarr.json").exists() else None
        self._engine: sr_models.SrEngine | None = None

    @property
    def engine(self) -> sr_models.SrEngine:
        """The SR model on the device."""
        if self._engine is None:
            branch = self.branch
            with ExitStack() as files:
                local = local_file if branch.spec.folder is None else local_folder
                weights = None if branch.weights is None else files.enter_context(local(branch.weights))
                options = dict(branch.options) or None
                resolver = sr_models.load(branch.sr, weights, self.device, branch.dtype, branch.bands, options)
            self._engine = sr_models.SrEngine(resolver, compiled=branch.compiled)
        return self._engine

    def are_stored(self, shards: Iterable[int]) -> bool:
        """Whether the SR pixels of all of some shards are stored."""
        return self._stored is not None and self.branch.pixels.done().issuperset(shards)

    @property
    def shard_size(self) -> int:
        """Rows of a shard."""
        return self._archive.shard_size

    def batches(self, shard: int, patches: pa.Table) -> Iterator[Batch]:
        """Yield the patches of one shard in the order of their rows.

        SR pixels are rounded to uint16 DN before a classifier sees them, stored or not, so both ways agree. Stored ones
        that have yet to be judged, since an earlier version stored them, are made again.

        Args:
            shard: The shard.
            patches: Its rows of the ingest part: patch_id, row, and labels where a conditioned model is told of them.

        Raises:
            PipelineError: The model's pixels are always stored, and some of the shard's are not: they failed.
        """
        branch = self.branch
        if branch.spec.sr_shard is not None and not branch.pixels.is_done(shard):
            raise PipelineError(f"{branch.sr}: not all SR shards of shard {shard} are stored; the next run tries again")
        patches = patches.sort_by("row")
        rows, ids = patches["row"].to_numpy(), patches["patch_id"].to_pylist()
        judged = all(parts.is_done(shard) for parts in self.branch.quality_outputs)
        block = self.branch.block(self.shard_size)
        conditions: Sequence[Condition] | None = None  # nobody asks where all pixels are stored
        for first in range(0, self.shard_size, block):
            parts = block_batches(rows, first, block, self.branch.batch_size)
            if not parts:
                continue
            stored = self.read(shard, first, block) if judged else self._read_archive(shard, first, block)
            for part in parts:
                chosen = {name: torch.from_numpy(values[rows[part] - first]) for name, values in stored.items()}
                if conditions is None and "sr" not in chosen:
                    conditions = self.conditions(shard, patches)
                told = conditions[part] if conditions else ()
                if judged or self.branch.scale == 1:
                    yield Batch(rows[part], self.network_input(chosen, told), None)
                else:
                    sr, quality = self._super_resolve_and_judge(chosen, told, ids[part])
                    yield Batch(rows[part], to_unit(sr, self.branch.max_dn), quality)

    def read(self, shard: int, first_row: int, rows: int, *, super_resolved: bool = True) -> Stored:
        """Return rows of one shard as they are stored.

        Args:
            shard: The shard.
            first_row: The first row.
            rows: Their number.
            super_resolved: Whether SR pixels are taken where they are stored; else the archive's wanted bands.
        """
        if super_resolved and self._stored is not None and self.branch.pixels.is_done(shard):
            return {"sr": self._stored.read(shard, "sr", first_row, rows).astype(np.uint16, copy=False)}
        return self._read_archive(shard, first_row, rows)

    def conditions(self, shard: int, patches: pa.Table) -> Sequence[Condition]:
        """Return what a conditioned model is told of patches; nothing for any other model.

        Args:
            shard: Their shard.
            patches: Their rows of the ingest part: patch_id, and labels.

        Raises:
            PipelineError: It is to be told predictions, and those of the shard failed.
        """
        if not self.branch.spec.conditioned:
            return ()
        ids = patches["patch_id"].to_pylist()
        covers: list[list[str] | None] = [None] * len(ids)
        if self.branch.options.get("land_cover") == "labels":
            covers = patches["labels"].to_pylist()
        elif self.branch.land_cover is not None:
            covers = self._predicted(self.branch.land_cover, shard, ids)
        return [Condition(name, tuple(cover or ())) for name, cover in zip(ids, covers, strict=True)]

    def _predicted(self, told: LandCover, shard: int, ids: Sequence[str]) -> list[list[str] | None]:
        """Return the labels that a network gave."""
        if not told.predictions.is_done(shard):
            raise PipelineError(
                f"{self.branch.sr} is told the predictions of {told.classifier}, and those of shard {shard} failed"
            )
        rows = told.predictions.read(shard)
        rows = rows.filter(pc.equal(rows["seed"], told.seed))
        predicted = dict(zip(rows["patch_id"].to_pylist(), rows["predicted"].to_pylist(), strict=True))
        return [predicted[name] for name in ids]

    def network_input(self, stored: Mapping[str, Tensor], conditions: Sequence[Condition] = ()) -> Tensor:
        """Return what classifiers standardise, of rows from `read`, on any device: see `Batch.x`.

        Args:
            stored: By array.
            conditions: What `conditions` returns of those rows; not needed where `stored` has SR pixels.
        """
        branch = self.branch
        stored = {name: values.to(self.device, non_blocking=True) for name, values in stored.items()}
        if "sr" in stored:
            return to_unit(stored["sr"], branch.max_dn)
        groups = branch.inputs.groups
        if len(groups) > 1:
            return joined(stored, groups, branch.bands, branch.max_dn, branch.inputs.resampling)
        lr = reduced(stored[groups[0].array], branch.degrade)
        return to_unit(self.engine.super_resolve(lr, branch.max_dn, conditions), branch.max_dn)

    def archive_rows(self, shard: int, first_row: int = 0, rows: int | None = None) -> NDArray[np.uint16]:
        """Return rows of a shard as the archive has them, by default all, DN, (rows, C, H, W)."""
        (values,) = self._read_archive(shard, first_row, self.shard_size if rows is None else rows).values()
        return values.astype(np.uint16, copy=False)

    def stream(self, batches: Iterable[tuple[NDArray[np.uint16], Sequence[Condition]]]) -> Iterator[Enlarged]:
        """Yield SR pixels and `QUALITY_COLUMNS` of each batch on the host, while the device works on the next.

        Args:
            batches: The archive's pixels, DN, (N, C, H, W) each, and what `conditions` returns of them.
        """
        telling: list[Sequence[Condition]] = []  # the engine enlarges and judges each batch once, in order
        judging: list[tuple[Tensor | None, Sequence[Condition]]] = []

        def inputs() -> Iterator[NDArray[np.uint16]]:
            for dn, conditions in batches:
                hr = as_tensor(dn)
                telling.append(conditions)
                judging.append((hr if self.branch.has_truth else None, conditions))
                yield reduced(hr, self.branch.degrade).numpy()

        def told() -> Iterator[Sequence[Condition]]:
            while True:
                yield telling.pop(0)

        def judge(lr: Tensor, sr: Tensor) -> Tensor:
            return self._judge(lr, sr, *judging.pop(0))

        return self.engine.stream(inputs(), self.branch.max_dn, judge, told())

    def quality_table(self, ids: list[str], columns: NDArray[np.float32]) -> pa.Table:
        """Return SR_QUALITY rows of `QUALITY_COLUMNS`, (K, N); NaN becomes null."""
        values = dict(zip(QUALITY_COLUMNS, columns, strict=True))
        if self.branch.bands[:3] == IMAGE_RGB:
            values["reflectance_mae"] = np.full(len(ids), np.nan, np.float32)  # the DN of a picture are none
        rows = pa.table(
            {
                "patch_id": ids,
                "sr": [self.branch.sr] * len(ids),
                "config": [self.branch.pixels.config] * len(ids),
                **{name: pa.array(value, pa.float32(), from_pandas=True) for name, value in values.items()},
            }
        )
        return rows.select(SR_QUALITY.names).cast(SR_QUALITY)

    def _super_resolve_and_judge(
        self, stored: Mapping[str, Tensor], conditions: Sequence[Condition], ids: list[str]
    ) -> tuple[Tensor, pa.Table]:
        (hr,) = (values.to(self.device) for values in stored.values())
        lr = reduced(hr, self.branch.degrade)
        sr = self.engine.super_resolve(lr, self.branch.max_dn, conditions)
        columns = self._judge(lr, sr, hr if self.branch.has_truth else None, conditions)
        return sr, self.quality_table(ids, columns.cpu().numpy())

    def _judge(self, lr: Tensor, sr: Tensor, truth: Tensor | None, conditions: Sequence[Condition]) -> Tensor:
        return quality_columns(self.engine.told(conditions), lr, sr, self.branch.max_dn, truth)

    def _read_archive(self, shard: int, first_row: int, rows: int) -> Stored:
        bands = self.branch.bands
        return {
            group.array: picked(self._archive.read(shard, group.array, first_row, rows), group, bands)
            for group in self.branch.inputs.groups
        }


def block_batches(rows: NDArray[np.int64], first: int, block: int, batch_size: int) -> list[slice]:
    """Return slices of rows, sorted, that lie in first..first+block, at most batch_size each.

    Whether pixels are stored or computed on the way, a network meets the same patches together, and so the rounding of
    its results is the same.
    """
    start, stop = np.searchsorted(rows, [first, first + block]).tolist()
    return [slice(i, min(i + batch_size, stop)) for i in range(start, stop, batch_size)]


def worker_device() -> torch.device:
    """Return the GPU that Ray gave this worker, or the CPU; float32 means float32 on both."""
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
