"""Draw maps of a store's patches with the classifiers of its last run; nothing is trained, and no table changes."""

import random
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from flows.archive import branch_of, inputs_of
from flows.config import RunConfig
from infra.archives.layouts import determining
from infra.errors import ConfigError
from infra.storage import StorePaths
from tasks.branch import Branch
from tasks.explain_figure import SheetRow, check_format, contact_sheet, patch_figure
from tasks.explained_patch import PatchPlace, PatchView, find_checkpoint, find_patch, truth_mask, view_patch
from tasks.plan import Plan, make_plan
from tasks.report_numbers import Numbers

_SHEET_SEED = 0


@dataclass(frozen=True, slots=True)
class _Explainer:
    """The branches of a run, and the checkpoints that made its predictions."""

    config: RunConfig
    plan: Plan
    branches: dict[str, tuple[Branch, Path]]
    """By SR model."""

    def view(self, sr: str, place: PatchPlace) -> PatchView:
        """Return one patch on one branch."""
        branch, file = self.branches[sr]
        chosen = self.config.explain
        return view_patch(branch, file, place, chosen.methods, chosen.options)


def draw_patch(config: RunConfig, patch_id: str, out: Path, label: str | None, classifier: str | None) -> list[Path]:
    """Write a figure of one patch by methods and SR models, and return its path.

    Args:
        config: The run, whose store holds its predictions.
        patch_id: The patch.
        out: The figure.
        label: The label explained; None: the likeliest of the true labels, or of all where none is known.
        classifier: Whose maps; None: the first of the run.

    Raises:
        ConfigError, UnknownNameError, StoreError: There is no such run, patch, label or classifier.
    """
    check_format(out)
    explainer = _explainer(config, classifier)
    branches = [branch for branch, _ in explainer.branches.values()]
    place = find_patch(branches[0], explainer.plan.ingested(), patch_id)
    views = [explainer.view(sr, place) for sr in explainer.branches]
    chosen = label or likeliest(views[0], place)
    known = views[0].labels
    if chosen not in known:
        raise ConfigError(f"the classifier has no label {chosen!r}: choose one of {', '.join(known)}")
    patch_figure(out, patch_id, views, chosen, truth_mask(branches[0], place, chosen))
    return [out]


def draw_sheet(config: RunConfig, count: int, split: str, out: Path, classifier: str | None) -> list[Path]:
    """Write a contact sheet of patches at random on the run's first branch, and a CSV to mark; return both paths.

    Args:
        config: The run, whose store holds its predictions.
        count: Patches, fewer where the split has no more.
        split: Split of the patches.
        out: The figure; the CSV lies beside it.
        classifier: Whose maps; None: the first of the run.

    Raises:
        ConfigError, StoreError: There is no such run, split or classifier.
    """
    check_format(out)
    explainer = _explainer(config, classifier)
    sr = next(iter(explainer.branches))
    branch = explainer.branches[sr][0]
    shards = explainer.plan.ingested(split)
    ids = [name for shard in shards for name in branch.inputs.patches(shard)["patch_id"].to_pylist()]
    if not ids:
        raise ConfigError(f"the store has no patch of the split {split!r}")
    rows = []
    for name in random.Random(_SHEET_SEED).sample(sorted(ids), min(count, len(ids))):
        place = find_patch(branch, shards, name)
        view = explainer.view(sr, place)
        shown = view.labels[int(view.probs.argmax())]
        rows.append(SheetRow(name, view, shown, ";".join(place.labels or ())))
    return [out, contact_sheet(out, rows)]


def likeliest(view: PatchView, place: PatchPlace) -> str:
    """Return the likeliest of a patch's true labels that the classifier knows, or of all its labels."""
    among = [name for name in place.labels or () if name in view.labels] or list(view.labels)
    return max(among, key=view.prob_of)


def _explainer(config: RunConfig, classifier: str | None) -> _Explainer:
    name = config.classifiers[0] if classifier is None else classifier
    if name not in config.classifiers:
        raise ConfigError(f"the run has no classifier {name!r}: choose one of {', '.join(config.classifiers)}")
    if not config.explain.methods:
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
        digest = str(next(iter(digests.values())))
        file = config.trained.get(name) or find_checkpoint(stores, sr, name, digest)
        branches[sr] = (branch_of(config, weights, inputs, sr), file)
    if not branches:
        raise ConfigError(f"{paths.root} holds no predictions of {name}: run the flow first")
    return _Explainer(config, plan, branches)
