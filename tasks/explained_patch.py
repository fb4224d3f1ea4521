"""One patch under every method and SR model: its maps, made on the spot, on one grid so that they compare."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from classifiers import checkpoint
from classifiers.cam.explain import METHODS, OptionValue, method_and_options
from classifiers.cam.grid import on_grid
from classifiers.cam.target import Target
from infra.bigearthnet.bands import IMAGE_RGB, RGB
from infra.bigearthnet.reference_map import label_masks
from infra.errors import ConfigError, UnknownNameError
from infra.storage import StorePaths
from infra.zarr_store import ShardedStore
from tasks.branch import Branch, BranchReader, worker_device
from tasks.explain import patch_seed
from tasks.pictures import to_rgb8
from tasks.trained import load_trained


@dataclass(frozen=True, slots=True)
class PatchPlace:
    """Where a patch lies."""

    patch_id: str
    shard: int
    row: int
    labels: tuple[str, ...] | None
    """True labels, None where nobody knows."""
    has_map: bool
    """Whether a reference map is stored."""


@dataclass(frozen=True, slots=True)
class PatchView:
    """A patch as one branch shows it to one classifier."""

    sr: str
    rgb: NDArray[np.uint8]
    """(H, W, 3)."""
    labels: tuple[str, ...]
    """Labels that the classifier knows."""
    probs: NDArray[np.float32]
    """Of those labels."""
    maps: Mapping[str, NDArray[np.float32]]
    """By method, raw on the patch's grid: (L, S, S), or (1, S, S) of a method without labels."""

    def map_of(self, method: str, label: str) -> NDArray[np.float32]:
        """Return the map (S, S) that a method makes of a label, or of the patch."""
        at = self.labels.index(label) if METHODS[method].per_label else 0
        return np.asarray(self.maps[method][at])

    def prob_of(self, label: str) -> float:
        """Return the probability of a label."""
        return float(self.probs[self.labels.index(label)])


def find_patch(branch: Branch, shards: Sequence[int], patch_id: str) -> PatchPlace:
    """Return the place of a patch.

    Raises:
        UnknownNameError: No shard holds it, or the branch leaves it out for want of a band.
    """
    for shard in shards:
        for row in branch.inputs.patches(shard).to_pylist():
            if row["patch_id"] == patch_id:
                labels = None if row["labels"] is None else tuple(row["labels"])
                return PatchPlace(patch_id, shard, row["row"], labels, row["has_map"])
    raise UnknownNameError(f"the store has no patch {patch_id!r}: see the column patch_id of tables/patches")


def find_checkpoint(stores: Sequence[StorePaths], sr: str, classifier: str, digest: str) -> Path:
    """Return the file of a classifier that made predictions, told by its SHA-256.

    Raises:
        ConfigError: No store has it any more.
    """
    for paths in stores:
        for path in sorted((paths.root / "checkpoints").glob(f"{sr}-{classifier}-*/seed-*.safetensors")):
            if checkpoint.sha256(path) == digest:
                return path
    raise ConfigError(
        f"the checkpoint of {classifier} on {sr} with the SHA-256 {digest[:8]}… is gone: run the flow again"
    )


def view_patch(
    branch: Branch,
    file: Path,
    place: PatchPlace,
    methods: Sequence[str],
    options: Mapping[str, Mapping[str, OptionValue]],
) -> PatchView:
    """Return a patch's pixels, probabilities and maps on one branch.

    Args:
        branch: What the classifier sees.
        file: The classifier's checkpoint.
        place: The patch.
        methods: Explanation methods.
        options: Their options, by method.

    Raises:
        UnknownNameError: There is no such method.
        ConfigError: An option is wrong, or a method is not defined for the classifier's head.
    """
    device, size = worker_device(), branch.inputs.format.size
    trained = load_trained(file, branch)
    trained.network.eval().to(device)
    reader = BranchReader(branch, device)
    stored = {name: torch.from_numpy(v) for name, v in reader.read(place.shard, place.row, 1).items()}
    with torch.no_grad():
        x = reader.network_input(stored)
        labels = tuple(range(trained.network.num_labels))
        seeds = [patch_seed(place.patch_id)]
        target = Target(trained.network, trained.standardiser(x), labels, None, trained.activation, seeds=seeds)
        maps = {}
        for method in methods:
            entry, chosen = method_and_options(method, options.get(method, {}))
            maps[method] = on_grid(entry.run(target, chosen), size)[0].float().cpu().numpy()
    return PatchView(branch.sr, _picture(branch, x), trained.labels, target.probabilities[0].cpu().numpy(), maps)


def truth_mask(branch: Branch, place: PatchPlace, label: str) -> NDArray[np.bool_] | None:
    """Return where the land cover is the label, (S, S); None without a reference map."""
    if not place.has_map:
        return None
    codes = ShardedStore(branch.paths.archive).read(place.shard, "reference_map", place.row, 1)
    return np.asarray(label_masks(codes.astype(np.uint16), [label])[0])


def _picture(branch: Branch, x: torch.Tensor) -> NDArray[np.uint8]:
    names = RGB if set(RGB) <= set(branch.bands) else IMAGE_RGB
    rgb = x[0, [branch.bands.index(band) for band in names]].clamp(0, 1)
    return to_rgb8((rgb * 10_000).round().cpu().numpy().astype(np.uint16), 10_000)
