"""A branch: the archive as one SR model shows it to the classifiers, computed on the fly or read back."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

import sr_models
from infra.bigearthnet.bands import RGB, S2_10M
from infra.fingerprint import Json
from infra.parts import StageParts, stage_parts
from infra.storage import StorePaths
from infra.tables import SR_QUALITY
from infra.zarr_store import ArraySpec, ShardedStore, divisor
from sr_models.quality import quality_rows
from sr_models.stretch import as_tensor, to_dn, to_unit

_RGB_INDEX = [S2_10M.bands.index(band) for band in RGB]
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
    max_dn: int
    """sr_input_max_dn: DN of 1 in the stretch."""
    batch_size: int
    """Patches that go through a network at once."""
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
            "sr_input_max_dn": self.max_dn,
        }
        return (
            ArraySpec(
                "sr",
                ("band", "y", "x"),
                (len(RGB), size, size),
                "uint16",
                0,
                attributes,
                chunk=4,
                names=RGB,
                zarr_shard=_STORED_BLOCK,
            ),
        )


def make_branch(ingest: StageParts, sr: str, weights: Path | None, max_dn: int, batch_size: int) -> Branch:
    """Return the branch of one SR model over an ingested archive.

    Without weights, the stored official file or the shipped one is settled on here, so that all workers use the same.

    Raises:
        WeightsError: The weight file is missing.
    """
    weights = sr_models.weights_file(sr, weights)
    identity: dict[str, Json] = {
        **sr_models.fingerprint(sr, weights),
        "sr_input_max_dn": max_dn,
        "bands": list(RGB),
    }
    determines: dict[str, Json] = {**identity, "input": ingest.config, "schema": 1}
    pixels = stage_parts(ingest.paths, "super_resolve", determines)
    quality = stage_parts(ingest.paths, "sr_quality", {**determines, "pixels": pixels.config})
    return Branch(ingest, sr, weights, max_dn, batch_size, identity, pixels, quality)


@dataclass(frozen=True, slots=True)
class Batch:
    """Patches on their way through the models."""

    rows: NDArray[np.int64]
    """Their rows in the shard, (N,)."""
    dn: Tensor
    """The branch's pixels, (N, 3, H, W) uint16 DN, on the device."""
    quality: pa.Table | None
    """SR_QUALITY rows, where the pixels were computed here and the model enlarges."""


class BranchReader:
    """A branch's pixels inside a worker: the model is loaded on first use, stores are opened once."""

    def __init__(self, branch: Branch, device: torch.device) -> None:
        self.branch = branch
        self.device = device
        self._archive = ShardedStore(branch.paths.archive)
        self._stored = ShardedStore(branch.store) if (branch.store / "zarr.json").exists() else None
        self._resolver: sr_models.SuperResolver | None = None

    def batches(self, shard: int, patches: pa.Table) -> Iterator[Batch]:
        """Yield the patches of one shard in the order of their rows.

        SR pixels are rounded to uint16 DN before a classifier sees them, stored or not, so both ways agree.

        Args:
            shard: The shard.
            patches: Its rows of the ingest part: patch_id and row.
        """
        patches = patches.sort_by("row")
        rows, ids = patches["row"].to_numpy(), patches["patch_id"].to_pylist()
        stored = self._stored if self._stored is not None and self.branch.pixels.is_done(shard) else None
        rgb = self.rgb(shard) if stored is None else None
        block = stored_block(self._archive.shard_size)
        for first in range(0, self._archive.shard_size, block):
            parts = block_batches(rows, first, block, self.branch.batch_size)
            pixels = stored.read(shard, "sr", first, block) if stored is not None and parts else None
            for part in parts:
                if pixels is not None:
                    dn = as_tensor(pixels[rows[part] - first].astype(np.uint16, copy=False), self.device)
                    yield Batch(rows[part], dn, None)
                elif rgb is not None:
                    yield Batch(rows[part], *self.super_resolve(rgb[rows[part]], ids[part]))

    def rgb(self, shard: int) -> NDArray[np.uint16]:
        """Return the shard's B04, B03, B02 as DN, (shard_size, 3, 120, 120)."""
        return read_rgb(self._archive, shard)

    def super_resolve(self, dn: NDArray[np.uint16], ids: list[str]) -> tuple[Tensor, pa.Table | None]:
        """Return SR pixels as uint16 DN on the device, (N, 3, scale*H, scale*W), and their quality rows."""
        if self._resolver is None:
            self._resolver = sr_models.load(self.branch.sr, self.branch.weights, self.device)
        x = to_unit(dn, self.branch.max_dn, self.device)
        enlarged = to_dn(self._resolver(x), self.branch.max_dn)
        if self.branch.scale == 1:
            return enlarged, None
        measured = quality_rows(self._resolver, dn, enlarged, self.branch.max_dn)
        rows = pa.table(
            {
                "patch_id": ids,
                "sr": [self.branch.sr] * len(ids),
                "config": [self.branch.pixels.config] * len(ids),
                **{name: pa.array(values, pa.float32(), from_pandas=True) for name, values in measured.items()},
            }
        )
        return enlarged, rows.select(SR_QUALITY.names).cast(SR_QUALITY)


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


def read_rgb(archive: ShardedStore, shard: int) -> NDArray[np.uint16]:
    """Return a shard's B04, B03, B02 as DN, (shard_size, 3, 120, 120)."""
    return archive.read(shard, S2_10M.array)[:, _RGB_INDEX].astype(np.uint16, copy=False)


def worker_device() -> torch.device:
    """Return the GPU that Ray gave this worker, or the CPU; float32 means float32 on both."""
    torch.backends.cudnn.allow_tf32 = False
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")
