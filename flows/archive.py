"""The archive flow: from an archive's files to tables and a report. Every stage resumes where it stopped."""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import psutil
from prefect import flow, task
from prefect.cache_policies import NO_CACHE

import sr_models
from classifiers.training import TrainSettings
from flows.config import RunConfig
from flows.progress import stage_progress, summary_artifact
from infra.archives.layouts import open_archive
from infra.bigearthnet.bands import BAND_SETS, stretch_max_dn
from infra.errors import ConfigError, IncompleteRunError
from infra.parts import StageParts
from infra.ray_pool import Resources, Worker, cluster
from infra.storage import StorePaths, locked_store
from infra.zarr_store import create_store
from tasks.backbone import Backbone
from tasks.branch import Branch, make_branch
from tasks.evaluate import publish_metrics
from tasks.features import ShardFeatures, features_parts
from tasks.ingest import ShardIngester, publish_archive
from tasks.models_from import borrowed_checkpoints
from tasks.plan import Plan, make_plan
from tasks.publish import publish_configs, publish_quality, publish_scores, publish_training
from tasks.report import write_report
from tasks.run_record import RunRecord, published_configs
from tasks.score import ShardScorer, create_map_stores, scored_classifier
from tasks.stage import ShardCount, run_stage
from tasks.summary import markdown_summary
from tasks.super_resolve import ShardSuperResolver
from tasks.train import Fitted, Trainer, train_job, training_set

Stage = Literal["ingest", "train", "predict", "evaluate", "report"]
"""What a run may end with."""

Checkpoints = Mapping[int, Path]
"""Checkpoint file by seed."""


@dataclass(frozen=True, slots=True)
class Run:
    """What every stage of one run needs."""

    config: RunConfig
    paths: StorePaths
    record: RunRecord
    resources: Resources
    weights: Mapping[str, Path | None]
    """Weight file of each SR model, settled once, so that all workers and all stages use the same."""

    def stage(
        self,
        title: str,
        build: Callable[[], Worker[ShardCount]],
        outputs: list[StageParts],
        shards: list[int],
        resources: Resources | None = None,
    ) -> bool:
        """Run one stage's missing shards; return whether any was done now."""
        if not self.record.stages:
            self.record.startup_seconds = time.time() - psutil.Process().create_time()
        self.record.outputs += [
            {"title": title, "stage": parts.stage, "config": parts.config, "shards": shards} for parts in outputs
        ]
        self.record.save("running")
        self.record.configs += [p.config for p in outputs]
        report = run_stage(title, build, outputs, shards, resources or self.resources, stage_progress())
        self.record.add(report)
        return report.done > 0


_stage_task = task(cache_policy=NO_CACHE, persist_result=False)
"""A Prefect task that is never cached: the parts say what is done."""


@flow(name="archive", validate_parameters=True)
def archive(config: RunConfig, until: Stage = "report") -> str:
    """Run the archive flow and return its summary, Markdown; every stage resumes where it stopped.

    Args:
        config: The run.
        until: The last stage to run.

    Raises:
        ConfigError, ArchiveError, StoreError, WeightsError: Nothing was lost; the message says what to change.
        IncompleteRunError: Some shards failed; the rest is published.
    """
    paths = StorePaths(config.store.resolve())
    with locked_store(paths), cluster():
        run = _start(config, paths)
        plan = ingest(run)
        if until != "ingest" and plan.ingested():
            backbones = (
                {} if config.models_from else {name: fit_backbone(run, plan, name) for name in config.classifiers}
            )
            for sr in config.sr:
                branch = _branch(run, plan, sr)
                if config.stores_pixels(sr):
                    super_resolve(run, plan, branch)
                models = {name: train(run, plan, branch, name, backbones.get(name)) for name in config.classifiers}
                if until != "train":
                    predict(run, plan, branch, models, until)
        return finish(run, until)


def _start(config: RunConfig, paths: StorePaths) -> Run:
    if config.models_from and not published_configs(StorePaths(config.models_from.resolve())):
        raise ConfigError(f"models_from: {config.models_from} holds no finished run")
    weights = {name: config.sr_weights(name) for name in ("none", *config.sr)}  # none: a backbone may be trained on it
    for name in config.sr:  # a wrong weight file shows now, not after hours of ingest
        sr_models.load(name, weights[name], dtype=config.dtype_of(name))
    started = datetime.now(UTC)
    record = RunRecord(paths, config.model_dump_json(), started)
    actors = None if config.resources.actors == "auto" else config.resources.actors
    return Run(config, paths, record, Resources(actors, config.resources.gpus_per_actor), weights)


def _branch(run: Run, plan: Plan, sr: str) -> Branch:
    config = run.config
    bands = BAND_SETS[config.bands]
    return make_branch(
        plan.parts,
        sr,
        run.weights[sr],
        bands,
        stretch_max_dn(bands, config.sr_input_max_dn),
        dtype=config.dtype_of(sr),
        batch_size=config.resources.batch_size,
        compiled=config.resources.compile,
    )


@_stage_task
def ingest(run: Run) -> Plan:
    """Read the archive's files into archive.zarr, tables/patches and tables/quarantine."""
    chosen = run.config.archive
    source = None
    if chosen.root is not None:
        source = open_archive(
            chosen.layout,
            chosen.root,
            include_flagged=chosen.include_flagged,
            subset=chosen.subset,
            boa_add_offset=chosen.boa_add_offset,
        )
    offset = {} if chosen.boa_add_offset is None else {"boa_add_offset": chosen.boa_add_offset}
    plan = make_plan(source, run.paths, chosen.layout, run.config.shard_size, offset)
    if source is not None:
        build = partial(ShardIngester, source, plan.parts)
        run.stage("ingest", build, [plan.parts], sorted(plan.shards), run.resources.without_gpu())
    run.record.counts = publish_archive(plan)
    return plan


@_stage_task
def super_resolve(run: Run, plan: Plan, branch: Branch) -> None:
    """Store one SR model's pixels of every shard."""
    create_store(branch.store, branch.arrays(), plan.shard_size, max(plan.shards) + 1, {"sr": branch.sr})
    build = partial(ShardSuperResolver, branch)
    run.stage(f"super-resolve {branch.sr}", build, [*branch.quality_outputs, branch.pixels], plan.ingested())


@_stage_task
def fit_backbone(run: Run, plan: Plan, classifier: str) -> Backbone | None:
    """Return where a classifier's backbone starts; one from this archive is trained on the patches as they are.

    None: that training failed, and so will whatever needs it.
    """
    config = run.config
    if config.train.backbone == "random":
        return Backbone(classifier, "random")
    if config.train.backbone == "weights":
        return Backbone(classifier, "weights", config.weights[classifier])
    seed = config.train.seeds[0]
    fitted = _fit(run, plan, _branch(run, plan, "none"), Backbone(classifier, "random"), "backbone", (seed,), None)
    return Backbone(classifier, "archive", fitted[seed]) if seed in fitted else None


@_stage_task
def train(run: Run, plan: Plan, branch: Branch, classifier: str, backbone: Backbone | None) -> Checkpoints:
    """Train one classifier on one branch, every seed, or borrow it from another store."""
    config = run.config
    if config.models_from is not None:
        return borrowed_checkpoints(StorePaths(config.models_from.resolve()), branch, classifier)
    if backbone is None:
        return {}
    if not config.train.freeze_backbone:
        return _fit(run, plan, branch, backbone, "network", config.train.seeds, None)
    features = features_parts(branch, backbone)
    build = partial(ShardFeatures, branch, backbone, features)
    shards = plan.ingested("train", "validation")
    run.stage(f"features {branch.sr} {classifier}", build, [features], shards)
    return _fit(run, plan, branch, backbone, "head", config.train.seeds, features)


def _fit(
    run: Run,
    plan: Plan,
    branch: Branch,
    backbone: Backbone,
    fitted: Fitted,
    seeds: tuple[int, ...],
    features: StageParts | None,
) -> Checkpoints:
    chosen = run.config.train
    done = features.done() if features is not None else set(plan.ingested())
    train_shards, validation_shards = (
        [s for s in plan.ingested(name) if s in done] for name in ("train", "validation")
    )
    data = training_set(plan.parts, train_shards, validation_shards)
    settings = TrainSettings(chosen.epochs, chosen.batch_size, chosen.lr, chosen.weight_decay, chosen.optimizer)
    job = train_job(branch, backbone, fitted, chosen.head, settings, data, features)
    of = "backbone" if fitted == "backbone" else branch.sr
    run.stage(f"train {of} {backbone.classifier}", partial(Trainer, job), [job.parts], list(seeds))
    publish_training(job, seeds)
    return {seed: job.checkpoint(seed) for seed in seeds if job.parts.is_done(seed)}


@_stage_task
def predict(run: Run, plan: Plan, branch: Branch, models: Mapping[str, Checkpoints], until: Stage) -> None:
    """Classify and explain every patch of one branch in one pass, and score the predictions."""
    explain = run.config.explain
    scored = [
        scored_classifier(branch, name, checkpoints, explain.methods, explain.labels)
        for name, checkpoints in models.items()
        if checkpoints
    ]
    if not scored:
        return
    create_map_stores(branch, scored, plan.shard_size, max(plan.shards) + 1)
    outputs = [*branch.quality_outputs, *(parts for item in scored for parts in item.outputs)]
    fresh = run.stage(f"predict {branch.sr}", partial(ShardScorer, branch, scored), outputs, plan.ingested())
    run.record.configs.append(branch.pixels.config)
    publish_quality(plan, branch)
    for item in scored:
        predictions = publish_scores(plan, branch, item)
        if until != "predict":
            publish_metrics(branch, item, predictions, fresh=fresh)


@_stage_task
def finish(run: Run, until: Stage) -> str:
    """Publish the run's record, write the report, and return the summary."""
    publish_configs(run.paths)
    run.record.publish()
    if until == "report":
        write_report(run.paths)
    summary = markdown_summary(run.paths, run.record)
    summary_artifact(summary, str(run.paths.root))
    if not run.record.complete:
        raise IncompleteRunError(summary)
    return summary
