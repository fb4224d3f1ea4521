"""A branch: the archive as one SR model shows it to the classifiers, computed on the fly or read back."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

import sr_models
from infra.bigearthnet.bands import S2_10M
from infra.fingerprint import Json
from infra.parts import StageParts, stage_parts
from infra.storage import StorePaths
from infra.tables import SR_QUALITY
from infra.zarr_store import ArraySpec, ShardedStore, divisor
from sr_models.engine import Enlarged
from sr_models.quality import QUALITY_COLUMNS, quality_columns
from sr_models.stretch import as_tensor

_QUALITY_SCHEMA = 2  # raised when a column of SR_QUALITY comes, goes or changes; pixels that are stored stay
_STORED_BLOCK = 64  # patches of SR pixels written at once: 88 MB at 480 x 480


@dataclass(frozen=True, slots=True)
class Branch:
    """What a branch is and where its pixels and parts lie. Holds names, no model; cheap to pickle."""

    ingest: StageParts
    """Parts that say which patches a shard holds."""
    sr: str
    """SR model."""
    weights: Path | None
    """Its weight file, whichever it came to be; None for a model without."""
    bands: tuple[str, ...]
    """Its bands, in channel order."""
    max_dn: tuple[int, ...]
    """DN of 1 in the stretch, of each band."""
    dtype: str | None
    """Precision of the SR network; None: its default."""
    batch_size: int
    """Patches that go through a classifier at once."""
    compiled: bool | None
    """Whether the SR network is compiled; None: on GPUs."""
    identity: Mapping[str, Json]
    """Whatever determines the pixels, besides the archive's."""
    pixels: StageParts
    """Parts of the super_resolve stage: SR pixels that are stored."""
    quality: StageParts
    """Parts of tables/sr_quality."""

    @property
    def paths(self) -> StorePaths:
        """The store."""
        return self.ingest.paths

    @property
    def store(self) -> Path:
        """Where SR pixels are stored, if they are."""
        return self.paths.super_resolved(self.sr, self.pixels.config)

    @property
    def scale(self) -> int:
        """Factor of enlargement."""
        return sr_models.SR_MODELS[self.sr].scale

    @property
    def quality_outputs(self) -> list[StageParts]:
        """The quality parts, where the branch has any: a branch that does not enlarge has nothing to judge."""
        return [self.quality] if self.scale > 1 else []

    def arrays(self) -> tuple[ArraySpec, ...]:
        """Return the arrays of the branch's store."""
        size = S2_10M.size * self.scale
        gsd = S2_10M.gsd / self.scale
        attributes: dict[str, Json] = {
            "units": "DN = 10000 * surface reflectance",
            "gsd_m": gsd,
            "long_name": f"Sentinel-2 super-resolved by {self.sr}",
            "max_dn": list(self.max_dn),
        }
        return (
            ArraySpec(
                "sr",
                ("band", "y", "x"),
                (len(self.bands), size, size),
                "uint16",
                0,
                attributes,
                chunk=4,
                names=self.bands,
                zarr_shard=_STORED_BLOCK,
            ),
        )


def make_branch(
    ingest: StageParts,
    sr: str,
    weights: Path | None,
    bands: tuple[str, ...],
    max_dn: tuple[int, ...],
    *,
    dtype: str | None = None,
    batch_size: int = 16,
    compiled: bool | None = None,
) -> Branch:
    """Return the branch of one SR model over an ingested archive; see `Branch` for the arguments.

    Without weights, the stored official file or the shipped one is settled on here, so that all workers use the same.

    Raises:
        WeightsError: The weight file is missing.
        ConfigError: The model does not run in that dtype.
    """
    weights = sr_models.weights_file(sr, weights)
    identity: dict[str, Json] = {
        **sr_models.fingerprint(sr, weights, dtype),
        "max_dn": list(max_dn),
        "bands": list(bands),
    }
    determines: dict[str, Json] = {**identity, "input": ingest.config, "schema": 1}
    pixels = stage_parts(ingest.paths, "super_resolve", determines)
    quality = stage_parts(
        ingest.paths, "sr_quality", {**determines, "pixels": pixels.config, "schema": _QUALITY_SCHEMA}
    )
    return Branch(ingest, sr, weights, bands, max_dn, dtype, batch_size, compiled, identity, pixels, quality)


@dataclass(frozen=True, slots=True)
class Batch:
    """Patches on their way through the models."""

    rows: NDArray[np.int64]
    """Their rows in the shard, (N,)."""
    dn: Tensor
    """The branch's pixels, (N, C, H, W) uint16 DN, on the device."""
    quality: pa.Table | None
    """SR_QUALITY rows, where the pixels were computed here and the model enlarges."""


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
            resolver = sr_models.load(branch.sr, branch.weights, self.device, branch.dtype, branch.bands)
            self._engine = sr_models.SrEngine(resolver, compiled=branch.compiled)
        return self._engine

    def batches(self, shard: int, patches: pa.Table) -> Iterator[Batch]:
        """Yield the patches of one shard in the order of their rows.

        SR pixels are rounded to uint16 DN before a classifier sees them, stored or not, so both ways agree. Stored ones
        that have yet to be judged, since an earlier version stored them, are made again.

        Args:
            shard: The shard.
            patches: Its rows of the ingest part: patch_id and row.
        """
        patches = patches.sort_by("row")
        rows, ids = patches["row"].to_numpy(), patches["patch_id"].to_pylist()
        done = all(parts.is_done(shard) for parts in (self.branch.pixels, *self.branch.quality_outputs))
        stored = self._stored if self._stored is not None and done else None
        lr = self.input(shard) if stored is None else None
        block = stored_block(self._archive.shard_size)
        for first in range(0, self._archive.shard_size, block):
            parts = block_batches(rows, first, block, self.branch.batch_size)
            pixels = stored.read(shard, "sr", first, block) if stored is not None and parts else None
            for part in parts:
                if pixels is not None:
                    dn = as_tensor(pixels[rows[part] - first].astype(np.uint16, copy=False), self.device)
                    yield Batch(rows[part], dn, None)
                elif lr is not None:
                    yield Batch(rows[part], *self.super_resolve(lr[rows[part]], ids[part]))

    def input(self, shard: int) -> NDArray[np.uint16]:
        """Return the shard's bands as they are, DN, (shard_size, C, 120, 120)."""
        return read_bands(self._archive, shard, self.branch.bands)

    def super_resolve(self, dn: NDArray[np.uint16], ids: list[str]) -> tuple[Tensor, pa.Table | None]:
        """Return SR pixels as uint16 DN on the device, (N, C, scale*H, scale*W), and their quality rows."""
        lr = as_tensor(dn, self.device)
        sr = self.engine.super_resolve(lr, self.branch.max_dn)
        if self.branch.scale == 1:
            return sr, None
        return sr, self.quality_table(ids, self._judge(lr, sr).cpu().numpy())

    def stream(self, batches: Iterable[NDArray[np.uint16]]) -> Iterator[Enlarged]:
        """Yield SR pixels and `QUALITY_COLUMNS` of each batch on the host, while the device works on the next."""
        return self.engine.stream(batches, self.branch.max_dn, self._judge)

    def quality_table(self, ids: list[str], columns: NDArray[np.float32]) -> pa.Table:
        """Return SR_QUALITY rows of `QUALITY_COLUMNS`, (K, N); NaN becomes null."""
        values = zip(QUALITY_COLUMNS, columns, strict=True)
        rows = pa.table(
            {
                "patch_id": ids,
                "sr": [self.branch.sr] * len(ids),
                "config": [self.branch.pixels.config] * len(ids),
                **{name: pa.array(value, pa.float32(), from_pandas=True) for name, value in values},
            }
        )
        return rows.select(SR_QUALITY.names).cast(SR_QUALITY)

    def _judge(self, lr: Tensor, sr: Tensor) -> Tensor:
        return quality_columns(self.engine, lr, sr, self.branch.max_dn)


def stored_block(shard_size: int) -> int:
    """Return the patches of SR pixels that are written and read at once; batches do not reach across."""
    return divisor(shard_size, _STORED_BLOCK)


def block_batches(rows: NDArray[np.int64], first: int, block: int, batch_size: int) -> list[slice]:
    """Return slices of rows, sorted, that lie in first..first+block, at most batch_size each.

    Whether pixels are stored or computed on the way, a network meets the same patches together, and so the rounding of
    its results is the same.
    """
    start, stop = np.searchsorted(rows, [first, first + block]).tolist()
    return [slice(i, min(i + batch_size, stop)) for i in range(start, stop, batch_size)]


def read_bands(archive: ShardedStore, shard: int, bands: tuple[str, ...]) -> NDArray[np.uint16]:
    """Return a shard's 10 m bands as DN, (shard_size, C, 120, 120)."""
    index = [S2_10M.bands.index(band) for band in bands]
    return archive.read(shard, S2_10M.array)[:, index].astype(np.uint16, copy=False)


def worker_device() -> torch.device:
    """Return the GPU that Ray gave this worker, or the CPU; float32 means float32 on both."""
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
