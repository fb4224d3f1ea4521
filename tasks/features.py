"""Features: what a frozen backbone makes of each patch, computed once for all epochs and heads."""

import numpy as np
import pyarrow as pa
import torch

from classifiers.network import pool
from classifiers.standardise import from_archive_statistics
from infra.fingerprint import Json
from infra.parts import StageParts, stage_parts
from sr_models.stretch import to_unit
from tasks.backbone import Backbone, load_network
from tasks.branch import Branch, BranchReader, worker_device
from tasks.stage import ShardCount


def features_parts(branch: Branch, backbone: Backbone) -> StageParts:
    """Return the parts of a backbone's features on one branch."""
    determines: dict[str, Json] = {"backbone": backbone.identity(), "pixels": branch.pixels.config, "schema": 1}
    return stage_parts(branch.paths, "features", determines)


class ShardFeatures:
    """Computes the pooled features of one branch's patches."""

    def __init__(self, branch: Branch, backbone: Backbone, parts: StageParts) -> None:
        self._branch, self._parts = branch, parts
        self._standardise = from_archive_statistics(branch.bands, branch.max_dn)
        self._device = worker_device()
        self._reader = BranchReader(branch, self._device)
        self._network = load_network(backbone, num_labels=1, in_channels=len(branch.bands)).eval().to(self._device)
        self._network.to(memory_format=torch.channels_last)

    def run(self, shard: int) -> ShardCount:
        """Write one shard's features: patch_id and K float32, in the order of the rows."""
        patches = self._branch.ingest.read(shard).sort_by("row")
        pooled = [np.zeros((0, 1), np.float32)] if not patches.num_rows else []
        with torch.inference_mode():
            for batch in self._reader.batches(shard, patches):
                x = self._standardise(to_unit(batch.dn, self._branch.max_dn))
                x = x.contiguous(memory_format=torch.channels_last)
                pooled.append(pool(self._network.features(x)).cpu().numpy())
        features = np.concatenate(pooled)
        values = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
        self._parts.write(shard, pa.table({"patch_id": patches["patch_id"], "features": values}))
        return ShardCount(patches.num_rows)
