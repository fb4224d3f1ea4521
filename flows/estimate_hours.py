"""How long the devices of a run would work, by rates that were measured, and what they would cost."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import sr_models
from flows.config import RunConfig
from flows.plan_rows import PlanRow
from infra.storage import StorePaths
from sr_models.registry import CEILING
from tasks.rates import SHIPPED, Rate, stored_rates
from tasks.stage_titles import stage_title


@dataclass(frozen=True, slots=True)
class Patches:
    """Patches that stages go through."""

    all: int
    fitted: int
    """Of the splits train and validation."""
    trained_on: int
    """Of train, without snow and cloud."""


@dataclass(frozen=True, slots=True)
class StageWork:
    """What a stage has to do: patches, and the parts of its work that were measured by themselves."""

    title: str
    """As the run's record calls it."""
    patches: float
    """What the record counts: samples in fits, an epoch's as often as there are epochs."""
    passes: Mapping[str, float]
    """How often each part of the work is done, by its name in `tasks.rates.SHIPPED`."""


def hours_rows(
    config: RunConfig,
    patches: Patches,
    size: int,
    map_passes: Mapping[tuple[str, str], float],
    price_per_hour: float | None,
) -> list[PlanRow]:
    """Return the hours of every stage on the run's devices, and what they cost, as rows for a person and for programs.

    The rate of a stage is that of the store's last run that did the same work; else the sum of what this project
    measured; else it is unknown. Scoring, tables and the report are not counted.

    Args:
        config: The run.
        patches: What it goes through.
        size: Edge of the archive's patches, pixels.
        map_passes: Passes that maps need beside the one that predicts, by SR model and classifier.
        price_per_hour: Of one device; None: nobody asks.
    """
    stored = stored_rates(StorePaths(config.store), json.loads(config.model_dump_json()))
    rows, unknown = [], []
    totals: dict[str, float] = {}
    for work in stage_works(config, patches, size, map_passes):
        found = _hours(work, stored)
        if found is None:
            unknown.append(work.title)
            rows.append(PlanRow(f"hours of {work.title}", "unknown: never measured", {("hours", work.title): None}))
            continue
        hours, device, source = found
        totals[device] = totals.get(device, 0.0) + hours
        text = f"{hours:,.3g} {_named(device)} ({source})"
        rows.append(PlanRow(f"hours of {work.title}", text, {("hours", work.title): hours}))
    at_least = "at least " if unknown else ""
    for device, hours in totals.items():
        title = f"{_named(device)}-hours in all"
        rows.append(PlanRow(title, f"{at_least}{hours:,.3g}", {("device_hours", device): hours}))
    if price_per_hour is not None:
        cost = sum(_priced(totals).values()) * price_per_hour
        text = _cost(cost, totals, unknown)
        rows.append(PlanRow(f"cost at {price_per_hour:g} an hour", text, {("cost",): cost}))
    return rows


def stage_works(
    config: RunConfig, patches: Patches, size: int, map_passes: Mapping[tuple[str, str], float]
) -> Iterator[StageWork]:
    """Yield the stages of a run that go through patches, in their order; see `hours_rows` for the arguments.

    A fit counts all its epochs, though it may stop before.
    """
    of_files = "ingest" if config.archive.layout.startswith("bigearthnet") else _UNMEASURED
    yield StageWork("ingest", patches.all, {of_files: patches.all})
    here = config.trained_here()
    starts = {config.network_of(name): name for name in here if config.train_of(name).backbone == "archive"}
    for network, name in sorted(starts.items()):
        samples = patches.trained_on * config.train_of(name).epochs
        yield StageWork(
            f"train backbone {network}", samples, {_step(config, name, _edge(config, size, "none")): samples}
        )
    for sr in config.sr:
        edge, pixels = _edge(config, size, sr), _pixels(config, size, sr)
        if pixels is not None and config.stores_pixels(sr):
            yield StageWork(stage_title(sr, sr_models.SR_MODELS[sr]), patches.all, {pixels: patches.all})
            pixels = None  # from here on they are read
        for name in here:
            yield from _fits(config, patches, sr, name, pixels, edge)
        passes = {pixels: float(patches.all)} if pixels is not None else {}
        for name in config.classifiers:
            copies = (
                len(config.train_of(name).seeds) if name in here and not config.train_of(name).freeze_backbone else 1
            )
            network = _pass(config, name, edge)
            passes[network] = passes.get(network, 0.0) + copies * patches.all + map_passes.get((sr, name), 0.0)
        yield StageWork(f"predict {sr}", patches.all, passes)


def _fits(
    config: RunConfig, patches: Patches, sr: str, name: str, pixels: str | None, edge: int
) -> Iterator[StageWork]:
    """Yield the stages that train one classifier on one branch."""
    chosen = config.train_of(name)
    samples = patches.trained_on * chosen.epochs * len(chosen.seeds)
    if chosen.freeze_backbone:
        passes = {_pass(config, name, edge): float(patches.fitted)}
        if pixels is not None:
            passes[pixels] = patches.fitted
        yield StageWork(f"features {sr} {name}", patches.fitted, passes)
        yield StageWork(f"train {sr} {name}", samples, {_UNMEASURED: samples})
    else:
        steps = {_step(config, name, edge): float(samples)}
        if pixels is not None:
            steps[pixels] = samples
        yield StageWork(f"train {sr} {name}", samples, steps)


_UNMEASURED = ""
"""No name in SHIPPED: work that was never measured by itself."""


def _edge(config: RunConfig, size: int, sr: str) -> int:
    """Return the edge of what a network sees on a branch, pixels."""
    return size // (1 if sr == CEILING else config.degrade or 1) * sr_models.SR_MODELS[sr].scale


def _pixels(config: RunConfig, size: int, sr: str) -> str | None:
    """Return the name of making a branch's pixels; None where they are the archive's own."""
    if sr_models.SR_MODELS[sr].scale == 1:
        return None
    measured = size // (config.degrade or 1) == _MEASURED_EDGE
    dtype = config.dtype_of(sr)
    return f"pixels {sr}" + (f" {dtype}" if dtype else "") if measured else _UNMEASURED


_MEASURED_EDGE = 120
"""Of the patches that SR models were measured on, pixels."""


def _pass(config: RunConfig, name: str, edge: int) -> str:
    """Return the name of a classifier's pass."""
    known = config.bands == "rgb" and name not in config.trained
    return f"backbone {config.network_of(name)} {edge}" if known else _UNMEASURED


def _step(config: RunConfig, name: str, edge: int) -> str:
    """Return the name of a step of a classifier's training."""
    return f"training {config.network_of(name)} {edge}" if config.bands == "rgb" else _UNMEASURED


def _hours(work: StageWork, stored: Mapping[str, Rate]) -> tuple[float, str, str] | None:
    """Return a stage's hours, of which device, and how that is known; None: it is not."""
    if work.title in stored:
        rate = stored[work.title]
        return work.patches / rate.per_second / 3600, rate.device, f"{rate.per_second:,.4g} patches/s, {rate.source}"
    if not all(name in SHIPPED for name in work.passes):
        return None
    rates = {name: SHIPPED[name] for name in work.passes}
    hours = sum(times / rates[name].per_second for name, times in work.passes.items()) / 3600
    sources = ", ".join(sorted({rate.source for rate in rates.values()}))
    return hours, "cpu", f"measured by {sources} on another machine"


def _named(device: str) -> str:
    return "core" if device == "cpu" else "GPU" if device == "gpu" else f"GPU {device}"


def _priced(totals: Mapping[str, float]) -> Mapping[str, float]:
    """Return the GPUs' hours, the cores' where no GPU works."""
    return {device: hours for device, hours in totals.items() if device != "cpu"} or totals


def _cost(cost: float, totals: Mapping[str, float], unknown: list[str]) -> str:
    words = f"{cost:,.2f}"
    if len(_priced(totals)) < len(totals):
        words += ", without the core-hours"
    return f"{'at least ' if unknown else ''}{words}" + (f"; unknown: {', '.join(unknown)}" if unknown else "")
