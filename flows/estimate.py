"""The size of a run before it starts."""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import prod

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

import sr_models
from classifiers.cam.methods import FLOOR
from classifiers.cam.options import Explainable
from classifiers.planned import planned
from flows.config import RunConfig
from flows.estimate_hours import Patches, hours_rows
from flows.plan_rows import PlanRow
from infra.archives.layouts import open_archive
from infra.archives.modality import Modality
from infra.archives.model import PatchFormat
from infra.archives.streamed import StreamedArchive
from infra.errors import ConfigError
from infra.storage import StorePaths
from infra.zarr_store import archive_arrays
from sr_models.registry import CEILING
from tasks.bands import band_set
from tasks.labels import is_clean
from tasks.map_costs import BYTES_PER_VALUE, MethodCost, judging_passes, method_costs

_FITTED = ("train", "validation")
"""Splits whose features heads are fitted on."""

_HEADER_BYTES = 1 << 10
"""What a small TIFF has beside its pixels, its path included, at most."""


@dataclass(slots=True)
class _Clustered:
    """What the stages of reliability see."""

    decisions: int = 0
    """That get a cluster: one for each patch that has maps and label that the classifier knows."""
    fitted: int = 0
    """Of the validation split, that clusters are fitted on."""
    n_bytes: float = 0
    """Of maps that are read: once to assign them; those of the validation split once to cluster, once to count."""

    def add(self, cost: MethodCost, labels: int, patches: int, validation: int) -> None:
        """Add a classifier on a branch: patches that have maps, and of the validation split those fitted on."""
        self.decisions += labels * patches
        self.fitted += labels * validation
        self.n_bytes += BYTES_PER_VALUE * cost.values * (patches + 2 * validation)

    def rows(self) -> list[PlanRow]:
        return [
            _count("reliability, decisions to fit on, at most", self.fitted, "reliability", "fitted_decisions"),
            _count("reliability, decisions to assign", self.decisions, "reliability", "assigned_decisions"),
            _bytes("reliability, maps to read, before compression", self.n_bytes, "reliability_maps_read"),
        ]


@dataclass(slots=True)
class _Maps:
    """What the activation maps of all classifiers on all branches take."""

    n_bytes: int = 0
    judging: float = 0.0
    """Passes that judge maps."""
    passes: dict[str, int] = field(default_factory=dict)
    """Of costly methods, by method."""
    of_network: dict[tuple[str, str], float] = field(default_factory=dict)
    """All of these, by SR model and classifier."""
    clustered: _Clustered | None = None
    """What reliability sees of them, where it is asked for."""


def estimate(config: RunConfig, price_per_hour: float | None = None) -> list[PlanRow]:
    """Return what a run would read and write, and how long it would take, as rows for a person and for programs.

    Args:
        config: The run.
        price_per_hour: Of one device, in any currency; None: nobody asks what it costs.

    Raises:
        ConfigError: The configuration names no archive.
        ArchiveError: The archive cannot be read.
        ShapeError: Its patches are too small for a network whose maps are asked for.
        WeightsError: A file of `trained` cannot be read, or is published for other bands.
    """
    chosen = config.archive
    if chosen.root is None:
        raise ConfigError("plan needs archive.root: it counts what the archive holds")
    paths = StorePaths(config.store.resolve())
    archive = open_archive(chosen.layout, chosen.root, chosen.options, paths.inventories)
    scan = archive.scan()
    patches = scan.inputs.num_rows
    splits = _counted(scan.inputs["split"])
    shards = sum(-(-n // config.shard_size) for n in splits.values())
    by_split = ", ".join(f"{split} {n:,}" for split, n in sorted(splits.items()))
    rows = [
        _count("inputs", scan.total, "inputs"),
        PlanRow(
            "patches",
            f"{patches:,} ({by_split})",
            {("patches",): patches, **{("splits", split): n for split, n in sorted(splits.items())}},
        ),
        _count("quarantined before reading", scan.problems.num_rows, "quarantined"),
        _count("absent", scan.absent, "absent"),
        PlanRow("shards", f"{shards:,} of {config.shard_size}", {("shards",): shards}),
        _bytes("archive.zarr, at most", patches * _bytes_per_patch(scan.format), "archive"),
    ]
    if isinstance(archive, StreamedArchive):
        place = paths.buckets
        where = place.relative_to(paths.root) if place.is_relative_to(paths.root) else place
        rows.append(_bytes(f"{where}, until ingested", patches * sum(map(_bucket_bytes, archive.passes)), "buckets"))
    values = len(band_set(config.bands, scan.format)) * (scan.format.size // (config.degrade or 1)) ** 2
    sizes = {name: 2 * values * sr_models.SR_MODELS[name].scale ** 2 for name in config.sr}
    stored = [name for name in config.sr if config.stores_pixels(name)]
    rows += [_bytes(f"sr/{name}, at most", patches * sizes[name], f"sr/{name}") for name in stored]
    clean = _counted(scan.inputs["split"].filter(is_clean(scan.inputs)))
    counts = Patches(patches, sum(splits[name] for name in _FITTED), clean["train"])
    maps = _Maps()
    if config.explain.methods:
        guessed = config.explain.labels != "all" and len(scan.inputs["labels"].drop_null()) > 0
        maps = _maps(config, scan.format, splits, scan.inputs["labels"], guessed=guessed)
        rows += _map_rows(maps, guessed=guessed)
    return rows + hours_rows(config, counts, scan.format.size, maps.of_network, price_per_hour)


def _counted(names: pa.ChunkedArray) -> Counter[str]:
    return Counter({row["values"]: row["counts"] for row in names.value_counts().to_pylist()})


def _maps(
    config: RunConfig, patch_format: PatchFormat, splits: Mapping[str, int], truth: pa.ChunkedArray, *, guessed: bool
) -> _Maps:
    """Return what maps take; guessed: as many labels are predicted as are true, more or less."""
    chosen, methods = config.explain, config.explain.methods
    if patch_format.has_maps and FLOOR not in methods:
        methods = (*methods, FLOOR)
    patches = sum(splits.values())
    sample = patches if chosen.sample is None else sum(min(chosen.sample, n) for n in splits.values())
    bands = band_set(config.bands, patch_format)
    section = config.reliability
    maps = _Maps(passes=dict.fromkeys(methods, 0), clustered=None if section is None else _Clustered())
    for classifier in config.classifiers:
        network = _network(config, classifier, bands, len(patch_format.labels))
        explained = pc.list_value_length(truth.drop_null()).to_numpy().mean() if guessed else network.num_labels
        for sr in config.sr:
            reduced = 1 if sr == CEILING else config.degrade or 1
            edge = patch_format.size // reduced * sr_models.SR_MODELS[sr].scale
            own = 0.0
            for cost in method_costs(
                methods, network, (len(bands), edge, edge), patch_format.size, network.num_labels, chosen.options
            ):
                seen = sample if cost.costly else patches
                maps.n_bytes += BYTES_PER_VALUE * cost.values * seen
                maps.passes[cost.method] += cost.passes * seen
                own += cost.passes * seen
                if section is not None and maps.clustered is not None and cost.method == section.method:
                    validation = 0 if config.models_from is not None else splits.get("validation", 0)
                    if cost.costly and chosen.sample is not None:
                        validation = min(validation, chosen.sample)
                    maps.clustered.add(cost, network.num_labels, seen, validation)
            if chosen.sample is not None:
                judging = sample * judging_passes(methods, min(explained, network.num_labels))
                maps.judging += judging
                own += judging
            maps.of_network[sr, classifier] = own
    return maps


def _map_rows(maps: _Maps, *, guessed: bool) -> list[PlanRow]:
    costly = {method: n for method, n in maps.passes.items() if n}
    of_methods = ", ".join(f"{method} {n:,}" for method, n in costly.items())
    in_all = sum(costly.values())
    return [
        _bytes("maps, before compression", maps.n_bytes, "maps"),
        PlanRow(
            "passes of costly methods",
            f"{in_all:,}" + (f" ({of_methods})" if of_methods else ""),
            {("passes", "costly"): in_all, **{("passes", "by_method", method): n for method, n in costly.items()}},
        ),
        PlanRow(
            f"passes that judge maps, {'about' if guessed else 'at most'}",
            f"{maps.judging:,.0f}",
            {("passes", "judging"): round(maps.judging)},
        ),
        *([] if maps.clustered is None else maps.clustered.rows()),
    ]


def _network(config: RunConfig, classifier: str, bands: Sequence[str], labels: int) -> Explainable:
    """Return what is known of a classifier's network, of which only the shapes matter."""
    if classifier in config.trained:
        from tasks.trained import check_trained  # torch takes 500 MB, and only such a file needs it

        return check_trained(config.trained[classifier], bands).network
    network = config.network_of(classifier)
    if config.models_from is not None:
        return planned(network, labels, len(bands))
    train = config.train_of(classifier)
    taught = labels if train.one_against_rest is None else 1
    return planned(network, taught, len(bands), train.head)


def _bytes_per_patch(patch_format: PatchFormat) -> int:
    """Return the bytes of a patch's arrays, uncompressed."""
    arrays = archive_arrays(patch_format)
    return sum(prod(spec.shape) * np.dtype(spec.dtype).itemsize for spec in arrays)


def _bucket_bytes(modality: Modality) -> int:
    """Return the bytes of a patch's files in a bucket, uncompressed, their headers included."""
    return modality.pixel_bytes + _HEADER_BYTES * len(modality.suffixes)


def _count(title: str, n: int, *keys: str) -> PlanRow:
    return PlanRow(title, f"{n:,}", {keys: n})


def _bytes(title: str, n: float, key: str) -> PlanRow:
    return PlanRow(title, _size(n), {("bytes", key): round(n)})


def _size(n_bytes: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if n_bytes < 1000:
            return f"{n_bytes:.3g} {unit}"
        n_bytes /= 1000
    return f"{n_bytes:,.1f} TB"
