"""Draw maps of a store's patches with the classifiers of its last run; nothing is trained, and no table changes."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from flows.archive import branch_of, inputs_of
from flows.config import RunConfig
from infra.archives.layouts import determining
from infra.errors import ConfigError, UnknownNameError, did_you_mean
from infra.fingerprint import Json
from infra.parts import StageParts
from infra.storage import StorePaths
from tasks import labels
from tasks.branch import Inputs, LandCover
from tasks.explain_figure import SheetRow, check_format, check_sheet, contact_sheet, patch_figure
from tasks.explain_sample import drawn_at_random
from tasks.explained_patch import (
    PatchExplainer,
    PatchPlace,
    PatchView,
    checkpoint_files,
    find_checkpoint,
    find_patch,
    patch_places,
    truth_mask,
)
from tasks.plan import Plan, make_plan
from tasks.report.numbers import Numbers


@dataclass(frozen=True, slots=True)
class _Explained:
    """A run as far as figures need it."""

    plan: Plan
    inputs: Inputs
    branches: Mapping[str, PatchExplainer]
    """One classifier on each branch, by SR model."""


def draw_patch(config: RunConfig, patch_id: str, out: Path, label: str | None, classifier: str | None) -> list[Path]:
    """Write a figure of one patch by methods and SR models, and return its path.

    Args:
        config: The run, whose store holds its predictions.
        patch_id: The patch.
        out: The figure.
        label: The label explained; None: the likeliest of the true labels, or of all where none is known.
        classifier: Whose maps; None: the first of the run.

    Raises:
        ConfigError, UnknownNameError, StoreError: There is no such run, patch, label or classifier, or its checkpoint
            is gone; the run has no method, or one that is not defined for it; or no figure ends like this.
    """
    check_format(out)
    run = _explained(config, classifier)
    known = next(iter(run.branches.values())).labels
    if label is not None and label not in known:
        hint = did_you_mean(label, known)
        raise UnknownNameError(f"the classifier has no label {label!r}: {hint}choose one of {', '.join(known)}")
    place = find_patch(run.inputs, run.plan.ingested(), patch_id)
    views = [explainer.view(place) for explainer in run.branches.values()]
    chosen = likeliest(views[0], place) if label is None else label
    patch_figure(out, patch_id, views, chosen, truth_mask(run.inputs, place, chosen))
    return [out]


def draw_sheet(config: RunConfig, count: int, split: str, out: Path, classifier: str | None) -> list[Path]:
    """Write a contact sheet of patches at random on the run's first branch, and a CSV to mark; return both paths.

    Patches with snow or cloud are left out, unless there are no others: so does the report's sheet.

    Args:
        config: The run, whose store holds its predictions.
        count: Patches, fewer where the split has no more.
        split: Split of the patches.
        out: The figure; the CSV lies beside it.
        classifier: Whose maps; None: the first of the run.

    Raises:
        ConfigError, UnknownNameError, StoreError: There is no such run, split or classifier, or its checkpoint is gone;
            the run has no method, or one that is not defined for it; no figure ends like this; or somebody has marked
            the CSV that lies there.
    """
    check_sheet(out)
    run = _explained(config, classifier)
    places = sorted(patch_places(run.inputs, run.plan.ingested(split)), key=lambda place: place.patch_id)
    if not places:
        there = sorted({run.plan.shards[shard] for shard in run.plan.ingested()})
        raise ConfigError(f"the store has no patch of the split {split!r}: it has {', '.join(there)}")
    explainer = next(iter(run.branches.values()))
    rows = []
    for place in drawn_at_random([place for place in places if place.clean] or places, count):
        view = explainer.view(place)
        shown = view.labels[int(view.probs.argmax())]
        rows.append(SheetRow(place.patch_id, view, shown, ";".join(place.labels or ())))
    return [out, contact_sheet(out, rows)]


def likeliest(view: PatchView, place: PatchPlace) -> str:
    """Return the likeliest of a patch's true labels that the classifier knows, or of all its labels."""
    return labels.likeliest({name: view.prob_of(name) for name in view.labels}, place.labels)


def _explained(config: RunConfig, classifier: str | None) -> _Explained:
    """Return the last run's checkpoints of a classifier, loaded, branch by branch."""
    name = config.classifiers[0] if classifier is None else classifier
    if name not in config.classifiers:
        hint = did_you_mean(name, config.classifiers)
        raise UnknownNameError(
            f"the run has no classifier {name!r}: {hint}choose one of {', '.join(config.classifiers)}"
        )
    chosen = config.explain
    if not chosen.methods:
        raise ConfigError("explain.methods is empty: nothing to draw")
    paths = StorePaths(config.store.resolve())
    numbers = Numbers(paths)
    options = determining(config.archive.layout, config.archive.options)
    plan = make_plan(None, paths, config.archive.layout, config.shard_size, options)
    inputs = inputs_of(config, plan)
    weights = {sr: config.sr_weights(sr) for sr in config.sr}
    stores = [paths, *([StorePaths(config.models_from.resolve())] if config.models_from else [])]
    branches = {}
    for folder in numbers.hive("predictions"):
        sr = folder.keys["sr"]
        if folder.keys["classifier"] != name or sr not in config.sr:
            continue
        digests = numbers.configs[folder.keys["config"]][1]["checkpoints"]
        assert isinstance(digests, Mapping)  # as `scored_classifier` wrote it
        digest = str(digests[first_seed(config, name, list(digests))])
        files = [config.trained[name]] if name in config.trained else checkpoint_files(stores, sr, name)
        file = find_checkpoint(files, sr, name, digest)
        pixels = numbers.configs[str(numbers.configs[folder.keys["config"]][1]["pixels"])][1]
        branch = branch_of(config, weights, inputs, sr, _land_cover(numbers, pixels.get("land_cover_of")))
        branches[sr] = PatchExplainer(branch, file, chosen.methods, chosen.options)
    if not branches:
        raise ConfigError(f"{paths.root} holds no predictions of {name}: run the flow first")
    return _Explained(plan, inputs, branches)


def _land_cover(numbers: Numbers, identity: Json) -> LandCover | None:
    """Return the predictions of a run that an SR model was told, by their identity; None where it was told none."""
    if identity is None:
        return None
    classifier, _, checkpoint = str(identity).rpartition(" ")
    for folder in numbers.hive("predictions"):
        if (folder.keys["sr"], folder.keys["classifier"]) == ("none", classifier):
            config = folder.keys["config"]
            digests = numbers.configs[config][1]["checkpoints"]
            assert isinstance(digests, Mapping)  # as `scored_classifier` wrote it
            for seed, digest in digests.items():
                if digest == checkpoint:
                    parts = StageParts(numbers.paths, "predictions", config)
                    return LandCover(parts, classifier, int(seed), checkpoint)
    raise ConfigError(f"the run holds no predictions of {classifier} with the SHA-256 {checkpoint[:8]}…: run it again")


def first_seed(config: RunConfig, classifier: str, seeds: Sequence[str]) -> str:
    """Return the seed whose network a run explains: the first of `train.seeds` that it fitted.

    Args:
        config: The run.
        classifier: One of its classifiers.
        seeds: Seeds that predicted, in digits, in any order.
    """
    borrowed = config.models_from is not None or classifier in config.trained
    asked = [] if borrowed else [str(seed) for seed in config.train_of(classifier).seeds]
    return next((seed for seed in asked if seed in seeds), min(seeds, key=int))
