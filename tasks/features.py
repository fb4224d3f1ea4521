"""Features: what a frozen backbone makes of each patch, computed once for all epochs, heads and seeds."""

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor

from classifiers.network import pool
from classifiers.standardise import from_archive_statistics
from classifiers.training.augment import SYMMETRIES, turn
from infra.fingerprint import Json
from infra.parts import StageParts, stage_parts
from tasks.backbone import Backbone, load_network
from tasks.branch import Branch, BranchReader, worker_device
from tasks.stage import ShardCount


def features_parts(branch: Branch, backbone: Backbone, *, augment: bool) -> StageParts:
    """Return the parts of a backbone's features on one branch; augmented, of all symmetries of each patch."""
    determines: dict[str, Json] = {"backbone": backbone.identity(), "pixels": branch.pixels.config, "schema": 1}
    if augment:
        determines["views"] = SYMMETRIES
    return stage_parts(branch.paths, "features", determines)


class ShardFeatures:
    """Computes the pooled features of one branch's patches."""

    def __init__(self, branch: Branch, backbone: Backbone, parts: StageParts, *, augment: bool) -> None:
        self._branch, self._parts = branch, parts
        self._views = SYMMETRIES if augment else 1
        self._standardise = from_archive_statistics(branch.bands, branch.max_dn)
        self._device = worker_device()
        self._reader = BranchReader(branch, self._device)
        self._network = load_network(backbone, num_labels=1, bands=branch.bands).eval().to(self._device)
        self._network.to(memory_format=torch.channels_last)

    def run(self, shard: int) -> ShardCount:
        """Write one shard's features: patch_id and views x K float32, in the order of the rows."""
        patches = self._branch.inputs.patches(shard)
        pooled = [np.zeros((0, self._views), np.float32)] if not patches.num_rows else []
        with torch.inference_mode():
            batches = self._reader.batches(shard, patches)
            pooled += [self._of_all_views(self._standardise(batch.x)) for batch in batches]
        features = np.concatenate(pooled)
        values = pa.FixedSizeListArray.from_arrays(pa.array(features.ravel()), features.shape[1])
        self._parts.write(shard, pa.table({"patch_id": patches["patch_id"], "features": values}))
        return ShardCount(patches.num_rows)

    def _of_all_views(self, x: Tensor) -> NDArray[np.float32]:
        """Return the features of every view of a batch one after the other, (N, views * K); the first is as it is."""
        views = []
        for code in range(self._views):
            seen = turn(x, np.full(len(x), code)) if code else x
            activations = self._network.features(seen.contiguous(memory_format=torch.channels_last))
            views.append(pool(activations).cpu().numpy())
        return np.concatenate(views, axis=1)
