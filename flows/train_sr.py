"""The train-sr flow: from the archive's images, and others, to weights of a super-resolution model."""

from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path

from prefect import flow

from flows.archive import archive
from flows.config import RunConfig, TrainSrConfig
from flows.progress import training_progress
from flows.run import resources_of
from infra.archives.layouts import determining
from infra.logs import logged_run
from infra.node_files import share
from infra.ray_cluster import cluster, is_elastic
from infra.storage import StorePaths, locked_store
from infra.weights_store import sha256
from sr_models.trained_weights import provenance
from sr_models.training import SrTrainSettings
from tasks.bands import band_set, groups_of
from tasks.plan import Plan, make_plan
from tasks.run_record import RUN_ID
from tasks.sr_images import ImageFolder, Scene, StorePatches
from tasks.train_sr import SrTrainJob, fit_on_workers, is_trained, sr_train_job


@dataclass(frozen=True, slots=True)
class Validation:
    """How a fitted model does on images that it was not trained on, beside bicubic enlargement."""

    set: str
    """Which images."""
    psnr_db: float
    ssim: float
    bicubic_psnr_db: float
    bicubic_ssim: float

    def __str__(self) -> str:
        return (
            f"{self.set} {self.psnr_db:.2f} dB ({self.psnr_db - self.bicubic_psnr_db:+.2f} on bicubic), "
            f"SSIM {self.ssim:.4f} ({self.ssim - self.bicubic_ssim:+.4f})"
        )


@dataclass(frozen=True, slots=True)
class FittedSr:
    """A super-resolution model that was fitted."""

    model: str
    file: Path
    """Its weights."""
    sha256: str
    step: int
    """Of the fit, after which the weights were kept."""
    validation: tuple[Validation, ...]

    def __str__(self) -> str:
        gains = ", ".join(map(str, self.validation))
        return f"{self.model}: {gains}, step {self.step}; {self.file}, SHA-256 {self.sha256}"


@flow(name="train-sr", validate_parameters=True)
def train_sr(config: RunConfig) -> FittedSr:
    """Fit one super-resolution model and return how good it is; a stopped run goes on from its last validation.

    Raises:
        ConfigError, ArchiveError, StoreError, WeightsError, TrainingError: The message says what to change.
    """
    chosen = config.train_sr
    paths = StorePaths(config.store.resolve())
    if chosen.patches:
        archive(config, "ingest")
    with logged_run(datetime.now(UTC).strftime(RUN_ID)), locked_store(paths):
        patches = _patches(config, _plan(config, paths)) if chosen.patches else None
        job = sr_train_job(paths, _settings(chosen), chosen.start, _sources(config), patches, chosen.out, chosen.terms)
        if not is_trained(job):
            with cluster(), training_progress(f"train {chosen.model}", chosen.steps) as tell:
                if job.start is not None and is_elastic():
                    job = replace(job, start=share(job.start, paths))
                fit_on_workers(job, resources_of(config), tell)
    return _fitted(job)


def _plan(config: RunConfig, paths: StorePaths) -> Plan:
    options = determining(config.archive.layout, config.archive.options)
    return make_plan(None, paths, config.archive.layout, config.shard_size, options)


def _patches(config: RunConfig, plan: Plan) -> StorePatches:
    train = plan.ingested("train", "all")
    validation = plan.ingested("validation")
    bands = band_set("rgb", plan.format)
    (group,) = groups_of(plan.format, bands)
    return StorePatches(
        plan.parts,
        tuple(train),
        tuple(validation),
        config.sr_input_max_dn,
        config.train_sr.patches,
        group,
        (bands[0], bands[1], bands[2]),
    )


def _sources(config: RunConfig) -> list[Scene | ImageFolder]:
    sources: list[Scene | ImageFolder] = []
    for source in config.train_sr.sources:
        if source.scene is not None:
            max_dn = source.max_dn or config.sr_input_max_dn
            scene = source.scene.resolve()
            sources.append(Scene(scene, source.bands, max_dn, source.weight, source.boa_add_offset))
        elif source.images is not None:
            sources.append(ImageFolder(source.images.resolve(), source.weight))
    return sources


def _settings(chosen: TrainSrConfig) -> SrTrainSettings:
    return SrTrainSettings(
        model=chosen.model,
        steps=chosen.steps,
        batch_size=chosen.batch_size,
        crop=chosen.crop,
        lr=chosen.lr,
        warmup=chosen.warmup,
        weight_decay=chosen.weight_decay,
        loss=chosen.loss,
        ema=chosen.ema,
        seed=chosen.seed,
        dtype=chosen.dtype,
        validate_every=chosen.validate_every,
    )


def _fitted(job: SrTrainJob) -> FittedSr:
    made = provenance(job.out)
    sets = tuple(Validation(**{f.name: found[f.name] for f in fields(Validation)}) for found in made["validation"])
    return FittedSr(job.settings.model, job.out, sha256(job.out), made["step"], sets)
