"""One patch under every method and SR model: its maps, made on the spot, on one grid so that they compare."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch
import torch.nn.functional as F  # noqa: N812  # as everyone writes it
from numpy.typing import NDArray

from classifiers.cam.grid import on_grid
from classifiers.cam.methods import METHODS, method_and_options
from classifiers.cam.options import OptionValue
from classifiers.cam.target import Target
from infra.bigearthnet.bands import IMAGE_RGB, RGB
from infra.bigearthnet.reference_map import label_masks
from infra.errors import ConfigError, UnknownNameError
from infra.storage import StorePaths, file_sha256
from infra.zarr_store import ShardedStore
from tasks.branch import Branch, BranchReader, Inputs, worker_device
from tasks.explain import check_methods, patch_seed
from tasks.labels import is_clean
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
    clean: bool
    """Whether it has neither snow nor cloud, as far as anybody knows."""


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
    """By method, rectified, then on the patch's grid: (L, S, S), or (1, S, S) of a method without labels; >= 0."""

    def map_of(self, method: str, label: str) -> NDArray[np.float32]:
        """Return the map (S, S) that a method makes of a label, or of the patch."""
        at = self.labels.index(label) if METHODS[method].per_label else 0
        return np.asarray(self.maps[method][at])

    def prob_of(self, label: str) -> float:
        """Return the probability of a label."""
        return float(self.probs[self.labels.index(label)])


def patch_places(inputs: Inputs, shards: Sequence[int], patch_id: str | None = None) -> Iterator[PatchPlace]:
    """Yield the places of the patches that have all bands.

    Args:
        inputs: What the branches see of the archive.
        shards: Where to look.
        patch_id: The only patch wanted; None: all.
    """
    for shard in shards:
        patches = inputs.patches(shard)
        patches = patches.select(["patch_id", "row", "labels", "has_map"]).append_column("clean", is_clean(patches))
        if patch_id is not None:
            patches = patches.filter(pc.equal(patches["patch_id"], patch_id))
        for row in patches.to_pylist():
            labels = None if row["labels"] is None else tuple(row["labels"])
            yield PatchPlace(row["patch_id"], shard, row["row"], labels, row["has_map"], row["clean"])


def find_patch(inputs: Inputs, shards: Sequence[int], patch_id: str) -> PatchPlace:
    """Return the place of a patch.

    Raises:
        UnknownNameError: No shard holds it, or it lacks a band.
    """
    for place in patch_places(inputs, shards, patch_id):
        return place
    raise UnknownNameError(
        f"the run has no patch {patch_id!r}, of the bands {', '.join(inputs.bands)}: see the column patch_id of "
        "tables/predictions"
    )


def checkpoint_files(stores: Sequence[StorePaths], sr: str, classifier: str) -> list[Path]:
    """Return the checkpoints that stores hold of a classifier on a branch."""
    return [
        path
        for paths in stores
        for path in sorted((paths.root / "checkpoints").glob(f"{sr}-{classifier}-*/seed-*.safetensors"))
    ]


def find_checkpoint(files: Sequence[Path], sr: str, classifier: str, digest: str) -> Path:
    """Return the file of a classifier that made predictions, told by its SHA-256.

    Raises:
        ConfigError: None of the files is it any more.
    """
    for path in files:
        if path.is_file() and file_sha256(path) == digest:
            return path
    raise ConfigError(
        f"the checkpoint of {classifier} on {sr} with the SHA-256 {digest[:8]}… is gone: run the flow again"
    )


class PatchExplainer:
    """One classifier on one branch, loaded once, which explains patch after patch."""

    def __init__(
        self,
        branch: Branch,
        file: Path,
        methods: Sequence[str],
        options: Mapping[str, Mapping[str, OptionValue]] = MappingProxyType({}),
    ) -> None:
        """Load the classifier.

        Args:
            branch: What it sees.
            file: Its checkpoint.
            methods: Explanation methods.
            options: Their options, by method.

        Raises:
            UnknownNameError: There is no such method.
            ConfigError: An option is wrong or does not fit the branch's pixels, a method is not defined for the
                classifier's head, or the checkpoint is of another branch.
            WeightsError: The checkpoint cannot be read.
        """
        self.branch = branch
        self._methods = {method: method_and_options(method, options.get(method, {})) for method in methods}
        self._trained = load_trained(file, branch)
        check_methods(methods, self._trained.network, options, (len(branch.bands), branch.size, branch.size))
        device = worker_device()
        self._trained.network.eval().to(device)
        self._reader = BranchReader(branch, device)

    @property
    def labels(self) -> tuple[str, ...]:
        """Labels that the classifier knows."""
        return self._trained.labels

    def view(self, place: PatchPlace) -> PatchView:
        """Return a patch's pixels, probabilities and maps."""
        trained, size = self._trained, self.branch.inputs.format.size
        stored = {name: torch.from_numpy(v) for name, v in self._reader.read(place.shard, place.row, 1).items()}
        row = pa.table({"patch_id": [place.patch_id], "labels": pa.array([place.labels], pa.list_(pa.string()))})
        conditions = () if "sr" in stored else self._reader.conditions(place.shard, row)
        with torch.no_grad():
            x = self._reader.network_input(stored, conditions)
            labels = tuple(range(trained.network.num_labels))
            seeds = [patch_seed(place.patch_id)]
            target = Target(trained.network, trained.standardiser(x), labels, None, trained.activation, seeds=seeds)
            maps = {
                method: on_grid(F.relu(entry.run(target, options)), size)[0].float().cpu().numpy()
                for method, (entry, options) in self._methods.items()
            }
            probs = target.probabilities[0].cpu().numpy()
        return PatchView(self.branch.sr, _picture(self.branch, x), trained.labels, probs, maps)


def truth_mask(inputs: Inputs, place: PatchPlace, label: str) -> NDArray[np.bool_] | None:
    """Return where the land cover is the label, (S, S); None without a reference map."""
    if not place.has_map:
        return None
    return land_cover(ShardedStore(inputs.ingest.paths.archive), place.shard, place.row, label)


def land_cover(archive: ShardedStore, shard: int, row: int, label: str) -> NDArray[np.bool_]:
    """Return where the reference map of a patch shows a label, (S, S).

    Args:
        archive: The archive's pixels.
        shard: The patch's shard.
        row: Its row there.
        label: One of the reference maps' classes.

    Raises:
        UnknownNameError: It is none of them.
        StoreError: The archive has no reference maps.
    """
    codes = archive.read(shard, "reference_map", row, 1)
    return np.asarray(label_masks(codes.astype(np.uint16), [label])[0])


def _picture(branch: Branch, x: torch.Tensor) -> NDArray[np.uint8]:
    names = RGB if set(RGB) <= set(branch.bands) else IMAGE_RGB
    rgb = x[0, [branch.bands.index(band) for band in names]].clamp(0, 1)
    return to_rgb8((rgb * 10_000).round().cpu().numpy().astype(np.uint16), 10_000)
