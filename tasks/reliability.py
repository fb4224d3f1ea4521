"""Reliability: clusters of a classifier's maps fitted on validation, and the error rate of the one each map lies in."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import MappingProxyType

import pyarrow as pa
import pyarrow.compute as pc

from classifiers.cam.methods import method_and_options
from classifiers.cam.options import OptionValue
from classifiers.checkpoint import Activation
from classifiers.network import Classifier
from classifiers.reliability import (
    EXCLUSIVE_FLIPPED,
    ClusterSettings,
    FittedReliability,
    Reliability,
    check_enough,
    from_bytes,
)
from classifiers.reliability import POOLED as POOLED  # noqa: PLC0414  # for those who read a job's fits
from infra.errors import ConfigError, StoreError, TransientError, WeightsError
from infra.fingerprint import Json
from infra.parts import StageParts, stage_parts
from infra.storage import StorePaths, file_sha256
from infra.zarr_store import ShardedStore
from tasks.branch import Branch, Inputs
from tasks.explain import Explained
from tasks.labels import is_clean
from tasks.score import ScoredClassifier

FITS = pa.schema(
    [
        pa.field("label", pa.string(), nullable=False),
        pa.field("fitted", pa.bool_(), nullable=False),
        pa.field("n", pa.int64(), nullable=False),
    ]
)
"""Rows of a fit's part: which labels have clusters."""


@dataclass(frozen=True, slots=True)
class ReliabilityPlan:
    """How a run fits reliability."""

    method: str
    """Whose maps."""
    settings: ClusterSettings
    threshold: float
    """Error rate above which decisions are flipped."""
    pooled: bool
    """Whether all labels share their clusters."""


@dataclass(frozen=True, slots=True)
class ReliabilityJob:
    """One classifier on one branch. Cheap to pickle."""

    inputs: Inputs
    sr: str
    classifier: str
    known: tuple[str, ...]
    """Labels that the classifier knows, in the order of its maps."""
    activation: Activation
    """What makes probabilities of its logits."""
    seed: int
    """Of the network whose maps these are."""
    maps: Explained
    predictions: StageParts
    maps_of: Mapping[str, Json]
    """What determines the maps, whatever the archive: method, options, layer, size, network and branch."""
    plan: ReliabilityPlan
    validation: tuple[int, ...]
    """Shards to fit on."""
    fit: StageParts | None
    """One part, 0: rows of `FITS`; None: the fit is another store's."""
    file: Path
    """The fitted model."""

    @property
    def map_store(self) -> Path:
        """The maps."""
        return self.predictions.paths.maps(self.maps.method, self.maps.parts.config)

    @property
    def is_fitted(self) -> bool:
        """Whether it is: here, its part and its file are both there; a fit of another store was found to be."""
        return self.fit is None or (self.fit.is_done(0) and self.file.is_file())

    @property
    def flips(self) -> bool:
        """Whether decisions in clusters above the threshold are flipped: not of three or more exclusive labels."""
        return self.activation == "sigmoid" or len(self.known) == EXCLUSIVE_FLIPPED

    def model(self) -> FittedReliability:
        """Return what was fitted.

        Raises:
            WeightsError: The file is missing or damaged.
        """
        return read_fit(self.file)

    def fitted(self) -> dict[str, Reliability]:
        """Return the fits by label.

        Raises:
            WeightsError: The file is missing or damaged.
        """
        return dict(self.model().by_label)

    def why_not(self) -> Mapping[str, str]:
        """Return the labels that could not be fitted, here or in the store that the fit is from, and why.

        Raises:
            WeightsError: The file is missing or damaged.
        """
        return self.model().why_not

    def assignment(self) -> StageParts:
        """Return the parts of every patch's clusters, under the config that the fitted model determines."""
        model = file_sha256(self.file)
        determines: dict[str, Json] = {"maps": self.maps.parts.config, "model": model, "schema": 2}
        return stage_parts(self.predictions.paths, "reliability", determines)


class FitsOfJobs:
    """The fits of a list of jobs: an item is a place in the list, and done when its part and its file are there."""

    def __init__(self, jobs: Sequence[ReliabilityJob]) -> None:
        """Take jobs that are fitted here."""
        self._jobs = jobs

    def done(self) -> set[int]:
        """Items whose part and file exist; a part whose file was lost says nothing."""
        return {i for i, job in enumerate(self._jobs) if job.is_fitted}

    def write_failure(self, shard: int, attempts: int, error: str) -> None:
        """Leave the reason why an item failed."""
        fit = self._jobs[shard].fit
        assert fit is not None  # a borrowed fit is no work
        fit.write_failure(0, attempts, error)


def check_samples(
    inputs: Inputs,
    validation: Sequence[int],
    plan: ReliabilityPlan,
    n_labels: int,
    sample: frozenset[str] | None = None,
) -> None:
    """Refuse what cannot be fitted for want of validation patches, before anything is trained.

    Args:
        inputs: What all branches see of the archive.
        validation: Shards of the validation split whose patches are stored.
        plan: How reliability is fitted.
        n_labels: Labels that the classifier knows.
        sample: Names of the patches that have maps; None: all have.

    Raises:
        ConfigError: There is no validation split, or there are fewer than 20 samples a cluster.
    """
    if not validation:
        raise ConfigError(
            "reliability is fitted on the validation split, and no patch of that is stored: choose another archive or "
            "another split of it, or leave the section `reliability` out"
        )
    n = 0
    for rows in map(inputs.patches, validation):
        counts = pc.and_(is_clean(rows), pc.is_valid(rows["labels"]))
        if sample is not None:
            counts = pc.and_(counts, pc.is_in(rows["patch_id"], value_set=pa.array(sorted(sample), pa.string())))
        n += pc.sum(counts, min_count=0).as_py()
    try:
        check_enough(
            n_pixels=1 << 30,
            n_samples=n * n_labels if plan.pooled else n,
            settings=plan.settings,
            poolable=n_labels > 1 and not plan.pooled,
        )
    except ConfigError as error:
        if sample is None:
            raise
        raise ConfigError(f"{error}; {plan.method} has maps of the patches of `explain.sample` alone") from error


def map_size(
    branch: Branch, network: Classifier, method: str, given: Mapping[str, OptionValue] = MappingProxyType({})
) -> tuple[int, int]:
    """Return height and width of a method's maps as they are stored, without making any.

    Args:
        branch: What the network sees.
        network: The network explained, on any device, torch's `meta` among them.
        method: Name of the method.
        given: Its options.
    """
    entry, options = method_and_options(method, given)
    height, width = entry.map_size(options, network, (len(branch.bands), branch.size, branch.size))
    grid = branch.inputs.format.size
    return min(height, grid), min(width, grid)


def check_pixels(branch: Branch, network: Classifier, plan: ReliabilityPlan, given: Mapping[str, OptionValue]) -> None:
    """Refuse maps too small to be clustered, before anything is trained.

    Args:
        branch: What the network sees.
        network: The network explained, on any device, torch's `meta` among them.
        plan: How reliability is fitted.
        given: Options of the method.

    Raises:
        ConfigError: The method's maps have fewer than 16 pixels.
    """
    height, width = map_size(branch, network, plan.method, given)
    try:
        check_enough(height * width, n_samples=1 << 60, settings=plan.settings)
    except ConfigError as error:
        raise ConfigError(f"{plan.method} of {network.name} on {branch.sr}: {error}") from error


def maps_of_network(
    branch: Branch, file: Path, size: tuple[int, int], method: str, given: Mapping[str, OptionValue]
) -> dict[str, Json]:
    """Return what determines a network's maps, whatever the archive.

    Args:
        branch: What the network sees.
        file: Its checkpoint.
        size: Height and width of its maps.
        method: Name of the method.
        given: Options of the method; those not given have their defaults.
    """
    entry, options = method_and_options(method, given)
    return {
        "method": method,
        "options": asdict(options),
        "layer": "last stage" if entry.resolution == "layer" else "input",
        "size": list(size),
        "network": file_sha256(file),
        "branch": dict(branch.identity),
    }


def reliability_job(
    branch: Branch,
    scored: ScoredClassifier,
    plan: ReliabilityPlan,
    validation: Sequence[int],
    source: StorePaths | None = None,
) -> ReliabilityJob:
    """Return the job of a classifier whose predictions and maps are made.

    Args:
        branch: What it sees.
        scored: Its predictions and maps.
        plan: How reliability is fitted.
        validation: Shards of the validation split whose patches are stored.
        source: Another store, which the classifier comes from and whose fit is used; None: it is fitted here.

    Raises:
        ConfigError: The other store has no such fit.
    """
    item = scored.explanations[plan.method]
    seed, file = next(iter(scored.checkpoints.items()))
    done = item.parts.done() & scored.predictions.done()
    shards = tuple(shard for shard in validation if shard in done)
    store = scored.predictions.paths.maps(item.method, item.parts.config)
    height, width = ShardedStore(store).array("maps").shape[2:]
    maps_of = maps_of_network(branch, file, (height, width), item.method, item.options)
    determines: dict[str, Json] = {
        "maps": item.parts.config,
        "settings": asdict(plan.settings),
        "threshold": plan.threshold,
        "pooled": plan.pooled,
        "shards": list(shards),
        "schema": 2,
    }
    fit: StageParts | None = None
    if source is None:
        parts = stage_parts(branch.paths, "reliability_fit", determines)
        fit, fitted = parts, branch.paths.reliability(branch.sr, scored.classifier, parts.config)
    else:
        fitted = borrowed_fit(source, branch.sr, scored.classifier, maps_of, plan)
    return ReliabilityJob(
        inputs=branch.inputs,
        sr=branch.sr,
        classifier=scored.classifier,
        known=scored.labels,
        activation=scored.activation,
        seed=seed,
        maps=item,
        predictions=scored.predictions,
        maps_of=maps_of,
        plan=plan,
        validation=shards,
        fit=fit,
        file=fitted,
    )


def read_fit(path: Path) -> FittedReliability:
    """Return the fits of a file.

    Raises:
        WeightsError: It is missing, damaged, or of another format; the message names it.
        StoreError, TransientError: Object storage does not give it.
    """
    try:
        return from_bytes(path.read_bytes())
    except (StoreError, TransientError):  # these tell nothing of the file
        raise
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error.strerror or error}") from error
    except WeightsError as error:
        raise WeightsError(f"{path}: {error}") from error


def borrowed_fit(
    source: StorePaths, sr: str, classifier: str, maps_of: Mapping[str, Json], plan: ReliabilityPlan
) -> Path:
    """Return the newest file of another store that was fitted as planned on maps of the same network and branch.

    Args:
        source: The other store.
        sr: SR model of the branch.
        classifier: Name of the classifier, there and here.
        maps_of: What determines the maps.
        plan: How reliability is fitted.

    Raises:
        ConfigError: There is none; the message says what the store has instead.
    """
    others = []
    for path in source.reliabilities(sr, classifier):
        try:
            fitted = read_fit(path)
        except WeightsError as error:  # of an earlier version, say; told where no other one will do
            others.append(str(error))
            continue
        differs = fitted.differences(
            settings=plan.settings, threshold=plan.threshold, pooled=plan.pooled, maps_of=maps_of
        )
        if not differs:
            return path
        others.append(f"{path} has {', '.join(differs)}")
    found = "; ".join(others) or "it has none of this classifier on this branch"
    raise ConfigError(
        f"models_from: {source.root} has no reliability of these settings for {plan.method} maps of {classifier} on "
        f"{sr} ({found}): run it there first, with the same section `reliability`, or leave the section out"
    )
