"""Reliability in a run: what is refused before anything is trained, the jobs, and their stages."""

from collections.abc import Mapping, Sequence
from functools import partial

from classifiers.cam.methods import METHODS
from classifiers.cam.options import OptionValue
from classifiers.network import Classifier
from flows.config import RunConfig
from flows.run import Run, stage_task
from infra.storage import StorePaths
from tasks.branch import Branch, Inputs
from tasks.explain_sample import planned_sample
from tasks.models_from import borrowed_checkpoints
from tasks.plan import Plan
from tasks.reliability import (
    FitsOfJobs,
    ReliabilityJob,
    ReliabilityPlan,
    borrowed_fit,
    check_pixels,
    check_samples,
    map_size,
    maps_of_network,
    reliability_job,
)
from tasks.reliability_judge import ReliabilityJudge, judged, publish_reliability
from tasks.reliability_stage import ReliabilityAssigner, ReliabilityFitter
from tasks.score import ScoredClassifier
from tasks.stage import PartsOfItems
from tasks.train import labels_to_learn


def _plan_of(config: RunConfig) -> ReliabilityPlan | None:
    chosen = config.reliability
    if chosen is None:
        return None
    return ReliabilityPlan(chosen.method, chosen.settings, chosen.threshold, chosen.pooled)


def check_reliability(
    config: RunConfig, plan: Plan, branches: Sequence[Branch], networks: Mapping[str, Classifier]
) -> None:
    """Refuse a fit that cannot be, before anything is trained or predicted.

    Args:
        config: The run.
        plan: Its shards.
        branches: All that classifiers see.
        networks: Of every classifier, by name; their shapes and heads are all that matters.

    Raises:
        ConfigError: Too few validation patches, or maps too small; or the store of `models_from` has no such fit.
    """
    chosen = _plan_of(config)
    if chosen is None:
        return
    if config.models_from is not None:
        _check_borrowed(config, chosen, branches, networks)
        return
    inputs = branches[0].inputs
    sample = None if config.explain.sample is None else planned_sample(inputs, config.explain.sample)
    for name, network in networks.items():
        seen = None if METHODS[chosen.method].is_cheap(network) else sample
        labels = _labels_known(config, inputs, name, network)
        check_samples(inputs, plan.ingested("validation"), chosen, labels, seen)
        for branch in branches:
            check_pixels(branch, network, chosen, _options(config, chosen))


def _labels_known(config: RunConfig, inputs: Inputs, classifier: str, network: Classifier) -> int:
    """Return how many labels a classifier knows, or will once it is trained."""
    if classifier in config.trained:
        return network.num_labels
    return len(labels_to_learn(inputs, config.train_of(classifier).one_against_rest))


def _check_borrowed(
    config: RunConfig, chosen: ReliabilityPlan, branches: Sequence[Branch], networks: Mapping[str, Classifier]
) -> None:
    """Refuse what the store of `models_from` does not lend.

    Raises:
        ConfigError: It lacks a classifier, or its fit.
    """
    assert config.models_from is not None
    source, options = StorePaths(config.models_from.resolve()), _options(config, chosen)
    for branch in branches:
        for name, network in networks.items():
            if name in config.trained:
                file = config.trained[name]
            else:
                file = next(iter(borrowed_checkpoints(source, branch, name).values()))
            size = map_size(branch, network, chosen.method, options)
            maps_of = maps_of_network(branch, file, size, chosen.method, options)
            borrowed_fit(source, branch.sr, name, maps_of, chosen)


def _options(config: RunConfig, chosen: ReliabilityPlan) -> Mapping[str, OptionValue]:
    return config.explain.options.get(chosen.method, {})


def job_of_reliability(run: Run, plan: Plan, branch: Branch, item: ScoredClassifier) -> ReliabilityJob | None:
    """Return how a classifier's reliability is made; None where the run does not ask for it.

    Raises:
        ConfigError: It is to be borrowed from a store that has none.
    """
    chosen, source = _plan_of(run.config), run.config.models_from
    if chosen is None:
        return None
    other = None if source is None else StorePaths(source.resolve())
    return reliability_job(branch, item, chosen, plan.ingested("validation"), other)


@stage_task
def score_reliability(run: Run, plan: Plan, jobs: list[ReliabilityJob]) -> None:
    """Cluster the maps, score every prediction by its map's cluster, and judge the scores."""
    resources = run.resources.without_gpu()
    fits = {job.fit: job for job in jobs if job.fit is not None}

    if fits:
        work, items = FitsOfJobs(list(fits.values())), list(range(len(fits)))
        build = partial(ReliabilityFitter, list(fits.values()))
        run.stage_of("fit reliability", build, [work], items, {parts: [0] for parts in fits}, resources)
    fitted = [job for job in jobs if job.is_fitted]
    for job in fitted:
        for label, why_not in job.why_not().items():
            where = "" if job.fit is not None else f" in {run.config.models_from}"
            run.record.note(f"{job.classifier} on {job.sr}: no reliability of {label or 'any label'}{where}: {why_not}")
        if not job.flips:
            run.record.note(
                f"{job.classifier} on {job.sr}: its {len(job.known)} classes exclude each other, and nothing says "
                "which one is right instead of another: no decision is flipped"
            )
        scored = job.maps.parts.done() & job.predictions.done()
        shards = [shard for shard in plan.ingested() if shard in scored]
        title = f"reliability {job.sr} {job.classifier}"
        run.stage(title, partial(ReliabilityAssigner, job), [job.assignment()], shards, resources)
    judges = {judged(job): job for job in fitted}
    run.stage_of(
        "judge reliability",
        partial(ReliabilityJudge, list(judges.values())),
        [PartsOfItems([(parts, 0) for parts in judges])],
        list(range(len(judges))),
        {parts: [0] for parts in judges},
        resources,
    )
    for job in fitted:
        publish_reliability(job, sorted(plan.shards))
