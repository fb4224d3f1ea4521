"""Reliability: clusters of a classifier's maps fitted on validation, and the error rate of the one each map lies in."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import pyarrow as pa

from classifiers import checkpoint
from classifiers.cam.explain import OptionValue, method_and_options
from classifiers.checkpoint import Activation
from classifiers.network import Classifier
from classifiers.reliability import ClusterSettings, Reliability, check_enough, from_bytes
from infra.errors import ConfigError
from infra.fingerprint import Json
from infra.parts import StageParts, stage_parts
from infra.storage import StorePaths
from tasks.branch import Branch, Inputs
from tasks.explain import Explained
from tasks.labels import is_clean
from tasks.score import ScoredClassifier

POOLED = ""
"""What stands for the label where all labels have one fit between them."""

FITS = pa.schema(
    [
        pa.field("label", pa.string(), nullable=False),
        pa.field("fitted", pa.bool_(), nullable=False),
        pa.field("why_not", pa.string()),
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
    """What determines the maps, whatever the archive: method, options, layer and network."""
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

    def fitted(self) -> dict[str, Reliability]:
        """Return the fits by label.

        Raises:
            WeightsError: The file is damaged.
        """
        return from_bytes(self.file.read_bytes())

    def why_not(self) -> dict[str, str]:
        """Return the labels that could not be fitted here, and why."""
        rows = [] if self.fit is None else self.fit.read(0).to_pylist()
        return {row["label"]: row["why_not"] for row in rows if not row["fitted"]}

    def assignment(self) -> StageParts:
        """Return the parts of every patch's clusters, under the config that the fitted model determines."""
        model = checkpoint.sha256(self.file)
        determines: dict[str, Json] = {"maps": self.maps.parts.config, "model": model, "schema": 1}
        return stage_parts(self.predictions.paths, "reliability", determines)


def check_samples(
    inputs: Inputs, validation: Sequence[int], plan: ReliabilityPlan, sample_size: int | None = None
) -> None:
    """Refuse what cannot be fitted for want of validation patches, before anything is trained.

    Args:
        inputs: What all branches see of the archive.
        validation: Shards of the validation split whose patches are stored.
        plan: How reliability is fitted.
        sample_size: Patches of the split that have maps, at most; None: all have.

    Raises:
        ConfigError: There are fewer than 20 samples a cluster.
    """
    clean = [rows.filter(is_clean(rows)) for rows in map(inputs.patches, validation)]
    labelled = sum(rows.num_rows - rows["labels"].null_count for rows in clean)
    explained = labelled if sample_size is None else min(labelled, sample_size)
    n = explained * (len(inputs.format.labels) if plan.pooled else 1)
    check_enough(n_pixels=1 << 30, n_samples=n, settings=plan.settings)


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
    entry, options = method_and_options(plan.method, given)
    height, width = entry.map_size(options, network, (len(branch.bands), branch.size, branch.size))
    try:
        check_enough(height * width, n_samples=1 << 60, settings=plan.settings)
    except ConfigError as error:
        raise ConfigError(f"{plan.method} of {network.name} on {branch.sr}: {error}") from error


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
    maps_of: dict[str, Json] = {
        "method": plan.method,
        "options": dict(item.options),
        "layer": "last stage" if item.entry.resolution == "layer" else "input",
        "network": checkpoint.sha256(file),
    }
    determines: dict[str, Json] = {
        "maps": item.parts.config,
        "settings": asdict(plan.settings),
        "threshold": plan.threshold,
        "pooled": plan.pooled,
        "shards": list(shards),
        "schema": 1,
    }
    fit: StageParts | None = None
    if source is None:
        parts = stage_parts(branch.paths, "reliability_fit", determines)
        fit, fitted = parts, branch.paths.reliability(branch.sr, scored.classifier, parts.config)
    else:
        fitted = _borrowed(source, maps_of, plan)
    return ReliabilityJob(
        branch.inputs,
        branch.sr,
        scored.classifier,
        scored.labels,
        scored.activation,
        seed,
        item,
        scored.predictions,
        maps_of,
        plan,
        shards,
        fit,
        fitted,
    )


def _borrowed(source: StorePaths, maps_of: Mapping[str, Json], plan: ReliabilityPlan) -> Path:
    """Return the file of another store that was fitted as planned on maps of the same network.

    Raises:
        ConfigError: There is none.
    """
    for path in source.reliabilities():
        fitted = from_bytes(path.read_bytes())
        if (
            fitted  # a fit of no label does not say what it is of
            and (POOLED in fitted) == plan.pooled
            and all(
                dict(item.maps_of) == dict(maps_of)
                and item.settings == plan.settings
                and item.threshold == plan.threshold
                for item in fitted.values()
            )
        ):
            return path
    raise ConfigError(
        f"models_from: {source.root} has no reliability of these settings for {plan.method} maps of this network: run "
        "it there first, with the same section `reliability`; or leave the section out, as you must where no label "
        "could be fitted there"
    )
