"""The archive flow: from an archive's files to tables and a report. Every stage resumes where it stopped."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Literal

import torch
from prefect import flow

import classifiers
import sr_models
from classifiers.cam.methods import FLOOR
from classifiers.network import Classifier
from classifiers.training import TrainSettings
from flows.config import RunConfig, TrainConfig
from flows.progress import run_artifacts
from flows.reliability import check_reliability, job_of_reliability, score_reliability
from flows.run import Run, resources_of, stage_task
from infra.archives.layouts import LAYOUTS, determining, open_archive
from infra.archives.streamed import StreamedArchive
from infra.bigearthnet.bands import BAND_SETS, IMAGE_RGB, S1, stretch_max_dn
from infra.errors import ConfigError, IncompleteRunError
from infra.logs import logged_run
from infra.parts import StageParts
from infra.ray_cluster import cluster
from infra.storage import StorePaths, file_sha256, locked_store
from infra.tables import check_store
from infra.zarr_store import create_store
from tasks.backbone import Backbone, load_network
from tasks.bands import band_set
from tasks.branch import Branch, Inputs, LandCover, make_branch
from tasks.bucket_ingest import BucketFeed, with_contents
from tasks.comparisons import publish_comparisons
from tasks.evaluate import (
    EvaluateJob,
    Evaluations,
    Evaluator,
    evaluate_job,
    publish_calibration,
    publish_metrics,
)
from tasks.explain import ExplainPlan, check_methods
from tasks.explain_sample import planned_sample
from tasks.explanation_metrics import ExplainedBranch, ExplanationJudge, judge_jobs, publish_explanation_metrics
from tasks.features import ShardFeatures, features_parts
from tasks.ingest import ShardIngester, publish_archive
from tasks.models_from import borrowed_checkpoints
from tasks.paper_tables import publish_paper_tables
from tasks.plan import Plan, make_plan
from tasks.publish import publish_configs, publish_quality, publish_scores, publish_training
from tasks.reliability import ReliabilityJob
from tasks.report.page import write_report
from tasks.run_record import RunRecord, published_configs
from tasks.score import ShardScorer, create_map_stores, scored_classifier
from tasks.stage import PartsOfItems
from tasks.stage_titles import stage_title
from tasks.summary import markdown_summary
from tasks.super_resolve import ShardSuperResolver, SrShards, SrShardSuperResolver
from tasks.train import Fitted, HeadFitter, fit_devices, fit_network, labels_to_learn, train_job, training_set
from tasks.trained import check_trained, load_trained

Stage = Literal["ingest", "train", "predict", "explain", "reliability", "evaluate", "report"]
"""What a run may end with."""

Checkpoints = Mapping[int, Path]
"""Checkpoint file by seed."""


@dataclass(frozen=True, slots=True)
class Models:
    """A classifier's networks on one branch."""

    checkpoints: Checkpoints
    features: StageParts | None = None
    """Parts of the features that their heads were fitted on, where the backbone is frozen."""


@dataclass(frozen=True, slots=True)
class Predicted:
    """One classifier's predictions and maps on one branch."""

    evaluation: EvaluateJob
    maps: list[ExplainedBranch]
    """By method."""
    reliability: ReliabilityJob | None
    """What its reliability is fitted on, where the run asks for it."""


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
    if until == "reliability" and config.reliability is None:
        raise ConfigError(
            "reliability: RUN.yaml has no section `reliability`, which says how decisions are scored: add "
            "`reliability: {}` for the defaults"
        )
    if until == "train" and (told := config.told_predictions()):
        raise ConfigError(
            f"sr_options: {told[0]}: `land_cover: predictions` needs predictions, and a run that ends with train makes "
            "none: run `superscene predict` instead, which trains too, or choose another land_cover"
        )
    paths = StorePaths(config.store.resolve())
    check_store(paths.tables)  # what a newer superscene wrote is not mixed with tables of this one
    record = RunRecord(paths, config.model_dump_json(), datetime.now(UTC))
    with logged_run(record.run_id), locked_store(paths), cluster():
        run = _start(config, record)
        plan = ingest(run)
        if until != "ingest" and plan.ingested():
            inputs = inputs_of(config, plan)
            _note_left_out(run, plan, inputs)
            branches = [_branch(run, inputs, sr) for sr in config.sr]  # what is impossible shows before any training
            networks = _shapes_of_networks(config, inputs.bands)
            _check_maps(config, branches, networks.values())
            known = [branch for branch in branches if not branch.awaits_predictions]
            check_reliability(config, plan, known, networks)
            backbones = {name: fit_backbone(run, plan, inputs, name) for name in config.trained_here()}
            predicted: list[Predicted] = []
            of_none: Mapping[str, Models] = {}
            for branch in branches:
                if branch.awaits_predictions:
                    land_cover = _land_cover(predicted, of_none, config.classifiers[0])
                    if land_cover is None:  # which is a failure of its own, and counted
                        run.record.note(f"{branch.sr} is left out: {config.classifiers[0]} gave no land cover to tell")
                        continue
                    branch = _branch(run, inputs, branch.sr, land_cover)  # noqa: PLW2901
                elsewhere = [name for name in config.classifiers if name not in backbones]
                models = {name: train(run, plan, branch, name, None) for name in elsewhere}
                if config.stores_pixels(branch.sr):
                    _check_borrowed(branch, models)
                    super_resolve(run, plan, branch)
                models |= {name: train(run, plan, branch, name, backbones[name]) for name in backbones}
                models = {name: models[name] for name in config.classifiers}
                of_none = models if branch.sr == "none" else of_none
                if until != "train":
                    predicted += predict(run, plan, branch, models)
            jobs = [item.reliability for item in predicted if item.reliability is not None]
            if until in {"reliability", "evaluate", "report"} and jobs:
                score_reliability(run, plan, jobs)
            if until in {"evaluate", "report"}:
                evaluate(run, [item.evaluation for item in predicted])
            if until in {"explain", "reliability", "evaluate", "report"}:
                judge_maps(run, [maps for item in predicted for maps in item.maps])
        return finish(run, until)


def _start(config: RunConfig, record: RunRecord) -> Run:
    if config.models_from and not published_configs(StorePaths(config.models_from.resolve())):
        raise ConfigError(f"models_from: {config.models_from} holds no finished run")
    weights = {name: config.sr_weights(name) for name in ("none", *config.sr)}  # none: a backbone may be trained on it
    for name in config.sr:  # a wrong weight file shows now, not after hours of ingest
        sr_models.check_weights(name, weights[name], config.dtype_of(name), config.sr_options.get(name))
    _check_classifier_files(config)
    return Run(config, record.paths, record, resources_of(config), weights)


def _check_classifier_files(config: RunConfig) -> None:
    """Load every file that classifiers come from, of which a wrong one shows now too.

    Raises:
        WeightsError: One is damaged, or of another network or other bands.
        ConfigError: An explanation method is not defined for its head.
    """
    bands = IMAGE_RGB if config.archive.layout.startswith("image-") else BAND_SETS[config.bands]
    here = [name for name in config.trained_here() if config.train_of(name).backbone == "weights"]
    for network, file in {(config.network_of(name), config.backbone_weights(name)) for name in here}:
        load_network(Backbone(network, "weights", file), num_labels=1, bands=bands)
    for name in config.classifiers:
        if name in config.trained:
            check_methods(config.explain.methods, check_trained(config.trained[name], bands).network)


def _shapes_of_networks(config: RunConfig, bands: Sequence[str]) -> dict[str, Classifier]:
    """Return the network of every classifier by name; one not trained here yet has shapes, no numbers, and one label.

    Raises:
        WeightsError: A file holds no classifier of these bands.
    """
    found = {}
    for name in config.classifiers:
        if name in config.trained:
            found[name] = check_trained(config.trained[name], bands).network
        else:
            with torch.device("meta"):
                head = "linear" if config.models_from else config.train_of(name).head
                found[name] = classifiers.build(config.network_of(name), 1, len(bands), head=head).eval()
    return found


def _check_maps(config: RunConfig, branches: Sequence[Branch], networks: Collection[Classifier]) -> None:
    """Refuse explanation methods whose options do not fit what a classifier sees on a branch.

    Raises:
        ConfigError, ShapeError: As `tasks.explain.check_methods` does.
    """
    chosen = config.explain
    for network in networks:
        for branch in branches:
            shape = (len(branch.bands), branch.size, branch.size)
            check_methods(chosen.methods, network, chosen.options, shape)


def inputs_of(config: RunConfig, plan: Plan) -> Inputs:
    """Return what all branches of a run see of the archive.

    Raises:
        ConfigError: The archive does not have the bands, or the stretch would clip them.
    """
    bands = band_set(config.bands, plan.format)
    if bands[:3] == IMAGE_RGB and config.sr_input_max_dn <= 255 < plan.format.max_dn:
        raise ConfigError(
            f"sr_input_max_dn: the archive's pictures have 16 bits a channel, and {config.sr_input_max_dn} would clip "
            "them: say which value is to become 1, such as 65535"
        )
    max_dn = stretch_max_dn(bands, config.sr_input_max_dn)
    return Inputs(plan.parts, plan.format, bands, max_dn, config.degrade or 1, config.resampling)


def _note_left_out(run: Run, plan: Plan, inputs: Inputs) -> None:
    """Note how many patches have no Sentinel-1 pair where the bands ask for one: they get no prediction."""
    if S1 in inputs.groups:
        ingested = plan.ingested()
        lacking = sum(plan.parts.read(s).num_rows - inputs.patches(s).num_rows for s in ingested)
        if lacking:
            run.record.note(f"{lacking} patches have no Sentinel-1 pair, and so no prediction")


def branch_of(
    config: RunConfig,
    weights: Mapping[str, Path | None],
    inputs: Inputs,
    sr: str,
    land_cover: LandCover | None = None,
) -> Branch:
    """Return one SR model's branch of a run; weights: the file of each SR model; land_cover: see `Branch`.

    Raises:
        ConfigError, WeightsError: As `make_branch` does.
    """
    return make_branch(
        inputs,
        sr,
        weights[sr],
        dtype=config.dtype_of(sr),
        batch_size=config.resources.batch_size,
        compiled=config.resources.compile,
        options=config.sr_options.get(sr),
        land_cover=land_cover,
    )


def _branch(run: Run, inputs: Inputs, sr: str, land_cover: LandCover | None = None) -> Branch:
    """Return one SR model's branch, its weights where all workers have them; errors are those of `branch_of`."""
    branch = branch_of(run.config, run.weights, inputs, sr, land_cover)
    if branch.weights is None:
        return branch
    if branch.spec.folder is None:
        return replace(branch, weights=run.on_all_nodes(branch.weights))
    files = branch.spec.folder.files(branch.weights, branch.spec.chosen(sr, branch.options))
    shared = run.folder_on_all_nodes(branch.weights, files, str(branch.identity["weights_sha256"]))
    return replace(branch, weights=shared)


@stage_task
def ingest(run: Run) -> Plan:
    """Read the archive's files, or tar archives, into archive.zarr, tables/patches and tables/quarantine."""
    chosen = run.config.archive
    source = None
    if chosen.root is not None:
        source = open_archive(chosen.layout, chosen.root, chosen.options, run.paths.inventories)
    options = determining(chosen.layout, chosen.options)
    plan = make_plan(source, run.paths, chosen.layout, run.config.shard_size, options)
    shards, resources = sorted(plan.shards), run.resources.without_gpu()
    if isinstance(source, StreamedArchive):
        feed = BucketFeed(source, plan)
        run.stage("ingest", feed.worker, [plan.parts], shards, resources, feed)
        plan = with_contents(plan, source)
    elif source is not None:
        build = partial(ShardIngester, source, plan.format, plan.parts)
        run.stage("ingest", build, [plan.parts], shards, resources)
    run.record.counts = publish_archive(plan)
    return plan


def _land_cover(predicted: Sequence[Predicted], models: Mapping[str, Models], classifier: str) -> LandCover | None:
    """Return the predictions of the patches as they are by a classifier's first seed; None where it gave none.

    Args:
        predicted: By all classifiers on all branches so far.
        models: The classifiers' networks for the patches as they are.
        classifier: One of them.
    """
    for item in predicted:
        if (item.evaluation.sr, item.evaluation.classifier) == ("none", classifier):
            seed, file = next(iter(models[classifier].checkpoints.items()))
            return LandCover(item.evaluation.predictions, classifier, seed, file_sha256(file))
    return None


def _check_borrowed(branch: Branch, models: Mapping[str, Models]) -> None:
    """Load classifiers that were trained elsewhere, of which a wrong one shows before pixels that take hours.

    Raises:
        ConfigError: One was trained on another branch.
        WeightsError: One cannot be read.
    """
    for item in models.values():
        for file in item.checkpoints.values():
            load_trained(file, branch)


@stage_task
def super_resolve(run: Run, plan: Plan, branch: Branch) -> None:
    """Store one SR model's pixels of every shard."""
    create_store(branch.store, branch.arrays(), plan.shard_size, max(plan.shards) + 1, {"sr": branch.sr})
    title, shards = stage_title(branch.sr, branch.spec), plan.ingested()
    if branch.spec.sr_shard is None:
        outputs = [*branch.quality_outputs, branch.pixels]
        run.stage(title, partial(ShardSuperResolver, branch), outputs, shards)
        return
    sr_shards = SrShards(branch, plan.shard_size)
    run.stage(title, partial(SrShardSuperResolver, sr_shards), [branch.sr_shards], sr_shards.of(shards))
    sr_shards.seal(shards)


@stage_task
def fit_backbone(run: Run, plan: Plan, inputs: Inputs, classifier: str) -> Backbone | None:
    """Return where a classifier's backbone starts; one from this archive is trained on the patches as they are.

    None: that training failed, and so will whatever needs it.
    """
    chosen, network = run.config.train_of(classifier), run.config.network_of(classifier)
    if chosen.backbone == "random":
        return Backbone(network, "random")
    if chosen.backbone == "weights":
        return Backbone(network, "weights", run.on_all_nodes(run.config.backbone_weights(classifier)))
    whole = chosen.model_copy(update={"freeze_backbone": False, "seeds": chosen.seeds[:1]})
    branch = _branch(run, inputs, "none")
    # Under the network's name: variants that ask for the same backbone have one between them.
    fitted = _fit(run, plan, branch, network, whole, Backbone(network, "random"), "backbone", None)
    return Backbone(network, "archive", fitted[whole.seeds[0]]) if fitted else None


@stage_task
def train(run: Run, plan: Plan, branch: Branch, classifier: str, backbone: Backbone | None) -> Models:
    """Train one classifier on one branch, every seed, or borrow it from another store."""
    config = run.config
    if classifier in config.trained:
        return Models({0: run.on_all_nodes(config.trained[classifier])})
    if config.models_from is not None:
        return Models(borrowed_checkpoints(StorePaths(config.models_from.resolve()), branch, classifier))
    if backbone is None:
        return Models({})
    chosen = config.train_of(classifier)
    if not chosen.freeze_backbone:
        return Models(_fit(run, plan, branch, classifier, chosen, backbone, "network", None))
    features = features_parts(branch, backbone, augment=chosen.augments)
    build = partial(ShardFeatures, branch, backbone, features, augment=chosen.augments)
    shards = plan.ingested("train", "validation")
    run.stage(f"features {branch.sr} {classifier}", build, [features], shards)
    return Models(_fit(run, plan, branch, classifier, chosen, backbone, "head", features), features)


def _fit(
    run: Run,
    plan: Plan,
    branch: Branch,
    classifier: str,
    chosen: TrainConfig,
    backbone: Backbone,
    fitted: Fitted,
    features: StageParts | None,
) -> Checkpoints:
    done = set(plan.ingested())
    if features is not None:
        done = features.done()
    elif run.config.stores_pixels(branch.sr):
        done = branch.pixels.done()
    train_shards, validation_shards = (
        [s for s in plan.ingested(name) if s in done] for name in ("train", "validation")
    )
    labels = labels_to_learn(branch.inputs, chosen.one_against_rest)
    one = chosen.loss == "softmax"
    data = training_set(branch.inputs, train_shards, validation_shards, labels, exactly_one=one)
    if data.absent:
        run.record.note(f"{classifier}: no training patch has the label {', '.join(data.absent)}")
    job = train_job(
        branch,
        classifier,
        backbone,
        fitted,
        chosen.head,
        labels,
        _settings(chosen),
        data,
        features=features,
        compiled=run.config.resources.compile,
    )
    title = f"train {'backbone' if fitted == 'backbone' else branch.sr} {classifier}"
    if features is not None:
        run.stage(title, partial(HeadFitter, job), [job.parts], list(chosen.seeds))
    else:
        fit = partial(fit_network, job, resources=run.resources)
        run.stage_of_fits(title, fit, job.parts, chosen.seeds, chosen.epochs, fit_devices(job, run.resources))
    publish_training(job, chosen.seeds)
    return {seed: job.checkpoint(seed) for seed in chosen.seeds if job.parts.is_done(seed)}


def _settings(chosen: TrainConfig) -> TrainSettings:
    of_the_loop = {field.name for field in fields(TrainSettings)} - {"seed", "augment", "adam_eps"}
    return TrainSettings(**{name: getattr(chosen, name) for name in of_the_loop}, augment=chosen.augments)


@stage_task
def predict(run: Run, plan: Plan, branch: Branch, models: Mapping[str, Models]) -> list[Predicted]:
    """Classify and explain every patch of one branch in one pass; return what is to be evaluated."""
    explain = explain_plan(run.config, branch.inputs)
    scored = [
        scored_classifier(branch, name, trained.checkpoints, explain, trained.features)
        for name, trained in models.items()
        if trained.checkpoints
    ]
    if not scored:
        return []
    create_map_stores(branch, scored, plan.shard_size, max(plan.shards) + 1)
    outputs = [*branch.quality_outputs, *(parts for item in scored for parts in item.outputs)]
    run.stage(f"predict {branch.sr}", partial(ShardScorer, branch, scored), outputs, plan.ingested())
    if branch.pixels.config not in run.record.configs:  # by an earlier attempt
        run.record.configs.append(branch.pixels.config)
    publish_quality(plan, branch)
    for item in scored:
        if faults := publish_scores(plan, branch, item):
            run.record.note(f"{item.classifier} on {branch.sr}: {faults} maps are not finite, see quarantined_maps")
    shards = tuple(sorted(plan.shards))
    return [
        Predicted(
            evaluate_job(branch, item),
            [
                ExplainedBranch(branch.sr, item.classifier, next(iter(item.checkpoints)), method, shards)
                for method in item.explanations.values()
            ],
            job_of_reliability(run, plan, branch, item),
        )
        for item in scored
    ]


def explain_plan(config: RunConfig, inputs: Inputs) -> ExplainPlan:
    """Return which maps a run wants: what RUN.yaml and the plan say, so that a failed shard does not change it.

    Args:
        config: The run.
        inputs: What its branches see of the archive.
    """
    chosen = config.explain
    methods = chosen.methods
    if methods and LAYOUTS[config.archive.layout].mapped and FLOOR not in methods:
        methods = (*methods, FLOOR)  # no number of localisation says anything without it
    drawn: frozenset[str] = frozenset()
    if chosen.sample is not None:
        drawn = planned_sample(inputs, chosen.sample)
    return ExplainPlan(methods, chosen.labels, chosen.options, chosen.sample, drawn)


@stage_task
def judge_maps(run: Run, branches: list[ExplainedBranch]) -> None:
    """Score how well the maps point, and compare the branches."""
    jobs = judge_jobs(run.paths, branches)
    if not jobs:
        return
    run.stage_of(
        "judge maps",
        partial(ExplanationJudge, run.paths, jobs),
        [PartsOfItems([(job.parts, 0) for job in jobs])],
        list(range(len(jobs))),
        {job.parts: [0] for job in jobs},
        run.resources.without_gpu(),
    )
    for job in jobs:
        publish_explanation_metrics(job)


@stage_task
def evaluate(run: Run, jobs: list[EvaluateJob]) -> None:
    """Score the predictions of every classifier, branch and seed, and compare the branches."""
    work = Evaluations(jobs)
    run.stage_of(
        "evaluate",
        partial(Evaluator, work),
        [work],
        list(range(len(work.work))),
        {job.parts: list(job.seeds) for job in jobs},
        run.resources.without_gpu(),
    )
    for job in jobs:
        publish_metrics(job)
        publish_calibration(job)
    publish_comparisons(jobs)


@stage_task
def finish(run: Run, until: Stage) -> str:
    """Publish the run's record, write the report, and return the summary."""
    publish_configs(run.paths)
    if until in {"evaluate", "report"}:
        chosen = run.config
        complete = run.record.complete
        methods = chosen.explain.methods
        publish_paper_tables(run.paths, run.record.configs, chosen.sr, chosen.classifiers, methods, complete=complete)
    run.record.publish()
    if until == "report":
        write_report(run.paths)
    summary = markdown_summary(run.paths, run.record)
    run_artifacts(summary, run.paths, report=until == "report")
    if not run.record.complete:
        raise IncompleteRunError(summary)
    return summary
