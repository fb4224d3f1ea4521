"""Reliability in a run: what is refused before anything is trained, the jobs, and their stages."""

from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial

from classifiers.cam.explain import METHODS
from classifiers.network import Classifier
from flows.config import RunConfig
from flows.run import Run, stage_task
from infra.parts import StageParts
from infra.ray_pool import Worker
from infra.storage import StorePaths
from tasks.branch import Branch
from tasks.plan import Plan
from tasks.reliability import ReliabilityJob, ReliabilityPlan, check_pixels, check_samples, reliability_job
from tasks.reliability_judge import ReliabilityJudge, judged, publish_reliability
from tasks.reliability_stage import ReliabilityAssigner, ReliabilityFitter
from tasks.score import ScoredClassifier
from tasks.stage import PartsOfItems, ShardCount


def _plan_of(config: RunConfig) -> ReliabilityPlan | None:
    chosen = config.reliability
    if chosen is None:
        return None
    return ReliabilityPlan(chosen.method, chosen.settings, chosen.threshold, chosen.pooled)


def check_reliability(
    config: RunConfig, plan: Plan, branches: Sequence[Branch], networks: Collection[Classifier]
) -> None:
    """Refuse a fit that cannot be, before anything is trained.

    Args:
        config: The run.
        plan: Its shards.
        branches: All that classifiers see.
        networks: Of the classifiers; their shapes and heads are all that matters.

    Raises:
        ConfigError: Too few validation patches, or maps too small.
    """
    chosen = _plan_of(config)
    if chosen is None or config.models_from is not None:
        return
    costly = not all(METHODS[chosen.method].is_cheap(network) for network in networks)
    sample_size = config.explain.sample if costly else None
    check_samples(branches[0].inputs, plan.ingested("validation"), chosen, sample_size)
    for network in networks:
        for branch in branches:
            check_pixels(branch, network, chosen, config.explain.options.get(chosen.method, {}))


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

    def stage_of_jobs(
        title: str, build: Callable[..., Worker[ShardCount]], of_jobs: Mapping[StageParts, ReliabilityJob]
    ) -> None:
        work = PartsOfItems([(parts, 0) for parts in of_jobs])
        items, filled = list(range(len(of_jobs))), {parts: [0] for parts in of_jobs}
        run.stage_of(title, partial(build, list(of_jobs.values())), [work], items, filled, resources)

    if fits:
        stage_of_jobs("fit reliability", ReliabilityFitter, fits)
    fitted = [job for job in jobs if job.file.is_file()]
    for job in fitted:
        for label, why_not in job.why_not().items():
            where = "" if job.fit is not None else f" in {run.config.models_from}"
            run.record.note(f"{job.classifier} on {job.sr}: no reliability of {label or 'any label'}{where}: {why_not}")
        scored = job.maps.parts.done() & job.predictions.done()
        shards = [shard for shard in plan.ingested() if shard in scored]
        title = f"reliability {job.sr} {job.classifier}"
        run.stage(title, partial(ReliabilityAssigner, job), [job.assignment()], shards, resources)
    stage_of_jobs("judge reliability", ReliabilityJudge, {judged(job): job for job in fitted})
    for job in fitted:
        publish_reliability(job, sorted(plan.shards))
