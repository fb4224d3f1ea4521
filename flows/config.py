"""RUN.yaml: what a run is asked to do, checked before anything starts."""

import os
import re
from collections.abc import Hashable, Mapping
from dataclasses import fields
from pathlib import Path
from types import MappingProxyType
from typing import Annotated, Any, Literal, cast

import yaml
from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    PlainSerializer,
    PlainValidator,
    ValidationError,
    WithJsonSchema,
    field_validator,
    model_validator,
)
from pydantic_core import ErrorDetails

import classifiers
import sr_models
from classifiers.cam.methods import METHODS, method_and_options
from classifiers.cam.options import OptionValue
from classifiers.cluster_settings import ClusterSettings
from flows.config_faults import faults
from infra.archives.layouts import LAYOUTS, ArchiveOptions, unused
from infra.bigearthnet.bands import RGB, S2_BANDS
from infra.errors import ConfigError, WeightsError, did_you_mean
from infra.storage import location
from tasks.bands import Resampling


def _place(value: object) -> Path:
    if isinstance(value, Path):
        return value.expanduser()
    if not isinstance(value, str):
        raise ValueError("a folder or a URL of object storage is a text")  # noqa: TRY004  # pydantic's kind of error
    return location(value).expanduser()


def _place_or_none(value: object) -> Path | None:
    return None if value is None else _place(value)


_AS_TEXT = PlainSerializer(str, return_type=str, when_used="unless-none")

Place = Annotated[Path, PlainValidator(_place), _AS_TEXT, WithJsonSchema({"type": "string"})]
"""A folder of this machine, or s3://bucket/prefix, gs://bucket/prefix or file:///folder."""

OptionalPlace = Annotated[
    Path | None,
    PlainValidator(_place_or_none),
    _AS_TEXT,
    WithJsonSchema({"anyOf": [{"type": "string"}, {"type": "null"}]}),
]
"""The same, or nothing."""


_OR_NULL = WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "null"}]})
_BY_LAYOUT = Field(ge=1, le=65535, json_schema_extra={"default": None})
"""A form sends the default that it shows, and would so decide what the layout is to decide."""


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class ArchiveConfig(_Section):
    """Where the patches come from."""

    layout: str
    """One of the archive layouts."""
    root: OptionalPlace = None
    """The archive: its folder, or its Sentinel-2 patches' tar archive, a path or a URL; None: what the store holds."""
    include_flagged: bool = False
    """Whether patches with snow, cloud or cloud shadow are taken too."""
    subset: Literal["all", "present"] = "all"
    """all: a patch that is named but absent is quarantined; present: it is only counted."""
    boa_add_offset: int | None = None
    """Layout scene: the products' BOA_ADD_OFFSET, DN, where no MTD_MSIL2A.xml tells it."""
    image_size: Annotated[int, Field(ge=8)] | None = None
    """Pictures: the edge that all are resized to, pixels; None: they are of one size already."""
    label_table: str = "labels.csv"
    """Layout image-table: the CSV file of labels and splits, below the root."""
    validation_share: Annotated[float, Field(ge=0, lt=1)] = 0.2
    """Pictures without a column `split`: the share that validates; 0: one split, `all`."""
    split_seed: Annotated[int, Field(ge=0)] = 0
    """Pictures without a column `split`: which of them validate."""

    @property
    def options(self) -> ArchiveOptions:
        """The options as the layouts take them."""
        names = {field.name for field in fields(ArchiveOptions)}
        return ArchiveOptions(**{name: getattr(self, name) for name in names})

    @model_validator(mode="after")
    def _options_are_used(self) -> "ArchiveConfig":
        default = ArchiveOptions()
        changed = [f.name for f in fields(default) if getattr(self.options, f.name) != getattr(default, f.name)]
        if without_use := unused(self.layout, changed):
            raise ValueError(f"the layout {self.layout} has no use for {', '.join(without_use)}")
        return self

    @field_validator("layout")
    @classmethod
    def _known_layout(cls, layout: str) -> str:
        return _known(layout, tuple(LAYOUTS), "archive layout")


class TrainConfig(_Section):
    """How classifiers are trained."""

    epochs: Annotated[int, Field(ge=1)] = 30
    """Passes over the training patches, at most."""
    batch_size: Annotated[int, Field(ge=1)] = 256
    """Samples of a step, over all workers."""
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    """What takes the steps; adamw decouples the weight decay."""
    lr: Annotated[float, Field(gt=0)] = 1.0e-3
    """Learning rate after the warm-up."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    """Of the optimizer."""
    warmup: Annotated[float, Field(ge=0, lt=1)] = 0.05
    """Share of the steps in which the learning rate rises; a half cosine follows."""
    head: Literal["linear", "mlp"] = "linear"
    """One linear layer, or two with 256 hidden units and a ReLU."""
    backbone: Literal["weights", "archive", "random"] = "weights"
    """Where the backbone starts: a weight file, a network trained first on this archive's "none" branch, or chance."""
    freeze_backbone: bool = False
    """Whether only the head is trained, on features that are computed once."""
    freeze_norm: bool = False
    """Whether batch normalisation keeps the statistics it starts with."""
    layer_decay: Annotated[float, Field(gt=0, le=1)] = 1.0
    """Factor on the learning rate from each block to the one before it; 1: the same for all."""
    loss: Literal["bce", "asymmetric", "softmax"] = "bce"
    """bce and asymmetric: any labels at once; softmax: exactly one of all."""
    class_weights: bool = False
    """Whether rare labels weigh more, by their counts among the training samples."""
    one_against_rest: str | None = None
    """The only label to learn, against all others; None: all labels of the archive."""
    augment: bool | None = None
    """Whether images are turned and mirrored at random; null: where the whole network is trained. A frozen backbone
    then computes the features of all eight symmetries once."""
    mixup: Annotated[float, Field(ge=0)] = 0.0
    """Alpha of mixup, 0: none."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.0
    """Decay of the running mean of the weights, which is then what is kept; 0: none."""
    patience: Annotated[int, Field(ge=1)] | None = None
    """Epochs without a better validation macro AP after which a fit ends; null: never."""
    thresholds: Literal["half", "tuned"] = "half"
    """half: a label is predicted from 0.5 on; tuned: from the probability of the best F1 on validation."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """Precision inside the network in training; auto: bfloat16 on GPUs."""
    seeds: Annotated[tuple[Annotated[int, Field(ge=0, lt=2**31)], ...], Field(min_length=1)] = (0,)
    """Below 2^31, as the tables' column `seed`."""

    @property
    def augments(self) -> bool:
        """Whether images are turned and mirrored."""
        return not self.freeze_backbone if self.augment is None else self.augment

    @model_validator(mode="after")
    def _frozen_chance(self) -> "TrainConfig":
        if self.freeze_backbone and self.backbone == "random":
            raise ValueError("freeze_backbone keeps the backbone as it starts; backbone: random would keep noise")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds are given twice")
        if self.one_against_rest is not None and self.loss == "softmax":
            raise ValueError("one_against_rest has one label, and softmax needs several: choose loss: bce")
        if self.loss == "softmax" and self.thresholds == "tuned":
            raise ValueError("softmax predicts the likeliest label and has no thresholds: give thresholds: half")
        if self.freeze_backbone and (self.mixup or self.layer_decay < 1 or self.freeze_norm):
            raise ValueError("mixup, layer_decay and freeze_norm are for networks that are trained as a whole")
        return self


class VariantConfig(_Section):
    """A classifier of its own name: a network trained in another way than the run's others."""

    network: str
    """The network."""
    train: dict[str, Any] = Field(default_factory=dict)
    """What differs from the run's `train`."""

    @field_validator("network")
    @classmethod
    def _known_network(cls, name: str) -> str:
        return _known(name, classifiers.names(), "classifier")


class ExplainConfig(_Section):
    """Which activation maps are made."""

    methods: tuple[str, ...] = ("grad_cam",)
    """Methods of activation maps; none: no map is made."""
    labels: Literal["predicted", "true", "all"] = "predicted"
    """Labels that get a row in tables/explanations; the map store holds every label."""
    sample: Annotated[int, Field(ge=1)] | None = None
    """Patches of each split on which costly methods run, and whose maps are judged by further passes; null: costly
    methods run on every patch, and no map is judged by further passes."""
    options: dict[str, dict[str, OptionValue]] = Field(default_factory=dict)
    """Options of methods, by method."""

    @field_validator("labels", mode="before")
    @classmethod
    def _true_is_a_word(cls, labels: object) -> object:
        return "true" if labels is True else labels  # YAML reads a bare `true` as a boolean

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(m, classifiers.explain_methods(), "explanation method") for m in _once(methods))

    @model_validator(mode="after")
    def _known_options(self) -> "ExplainConfig":
        for method, given in self.options.items():
            if method not in self.methods:
                raise ValueError(f"options are given for {method}, which is not among the methods")
            try:
                method_and_options(method, given)
            except ConfigError as error:
                raise ValueError(str(error)) from error
        return self


class ReliabilityConfig(_Section):
    """How clusters of maps tell how reliable predictions are; the defaults are the paper's."""

    method: str = "grad_cam"
    """Whose maps: one of `explain.methods`."""
    pooled: bool = False
    """Whether all labels share their clusters; false: each label has its own."""
    clusters: int = 8
    """Clusters of maps."""
    threshold: Annotated[float, Field(ge=0, le=1)] = 0.75
    """Error rate on validation above which the decisions of a cluster are flipped."""
    components: int = 50
    """Principal components of the maps, at most."""
    neighbours: int = 5
    """Landmarks that vote on a map's cluster."""
    kernel_scale: float = 0.2
    """Sigma of the Gaussian similarity, in units of the median distance of maps."""
    landmarks: int = 5000
    """Validation samples that are clustered, at most; all others go to their nearest landmarks."""
    seed: int = 0
    """Of the draw of landmarks, and of the clustering."""

    @property
    def settings(self) -> ClusterSettings:
        """How maps are clustered."""
        return ClusterSettings(**{field.name: getattr(self, field.name) for field in fields(ClusterSettings)})

    @model_validator(mode="after")
    def _possible(self) -> "ReliabilityConfig":
        try:
            _ = self.settings
        except ConfigError as error:
            raise ValueError(str(error)) from error
        return self


class SrSourceConfig(_Section):
    """Images beside the archive's patches: a scene, or a folder of pictures."""

    scene: Path | None = None
    """Folder with one Sentinel-2 file a band."""
    images: Path | None = None
    """Folder of RGB pictures of 8 bits."""
    bands: tuple[str, str, str] = RGB
    """Scene: the bands that become the three channels; the same one thrice gives grey images."""
    max_dn: Annotated[int, Field(ge=1, le=65535)] | None = None
    """Scene: DN of 1 in the stretch; None: sr_input_max_dn."""
    boa_add_offset: int | None = None
    """Scene: BOA_ADD_OFFSET, DN, where no MTD_MSIL2A.xml tells it."""
    weight: Annotated[float, Field(gt=0)] = 1.0
    """Share of the steps, relative to the other sources' and to `patches`."""

    @field_validator("scene", "images")
    @classmethod
    def _local(cls, path: Path | None) -> Path | None:
        return _local_folder(path)

    @field_validator("bands")
    @classmethod
    def _known_bands(cls, bands: tuple[str, str, str]) -> tuple[str, str, str]:
        for band in bands:
            _known(band, S2_BANDS, "Sentinel-2 band")
        return bands

    @model_validator(mode="after")
    def _one_folder(self) -> "SrSourceConfig":
        folder = self.scene if self.images is None else self.images
        if folder is None or (self.scene is not None and self.images is not None):
            raise ValueError("a source is either `scene: FOLDER` or `images: FOLDER`")
        if not folder.is_dir():
            raise ValueError(f"there is no folder {folder}")
        if self.images is not None and (self.bands, self.max_dn, self.boa_add_offset) != (RGB, None, None):
            raise ValueError("bands, max_dn and boa_add_offset are for scenes; pictures of 8 bits have none")
        return self


class TrainSrConfig(_Section):
    """How a super-resolution model is fitted, by Wald's protocol; for `superscene train-sr`."""

    model: str = "srresnet"
    """An SR model with weights."""
    start: Path | None = None
    """Weights to start from (fine-tuning); None: random ones."""
    patches: Annotated[float, Field(ge=0)] = 1.0
    """Share of the steps that train on the archive's patches, relative to the sources' weights; 0: none."""
    sources: tuple[SrSourceConfig, ...] = ()
    """Images beside the archive's patches."""
    steps: Annotated[int, Field(ge=1)] = 20_000
    """Steps of the whole fit."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Crops of a step, over all workers."""
    crop: Annotated[int, Field(ge=16)] = 96
    """Edge of a crop, pixels of the truth."""
    lr: Annotated[float, Field(gt=0)] = 5.0e-4
    """Learning rate after the warm-up."""
    warmup: Annotated[int, Field(ge=0)] = 200
    """Steps in which the learning rate rises; a half cosine follows."""
    weight_decay: Annotated[float, Field(ge=0)] = 0.0
    """Of AdamW."""
    loss: Literal["l1", "charbonnier"] = "l1"
    """Of a pixel; charbonnier is l1 rounded at 0."""
    ema: Annotated[float, Field(ge=0, lt=1)] = 0.999
    """Decay of the running mean of the weights, which is what is kept; 0: none."""
    seed: Annotated[int, Field(ge=0)] = 0
    """Of the first weights and of the draw of crops."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Precision inside the network; bfloat16 is twice as fast on a GPU, and on a CPU with AVX-512 BF16."""
    validate_every: Annotated[int, Field(ge=1)] = 250
    """Steps between two validations; a stopped run goes on from the last."""
    out: Path | None = None
    """The weight file, .safetensors; None: in the store's checkpoints."""
    terms: str = "not stated: the terms of the sources hold"
    """Licence and attribution of the weights, written into the file."""

    @field_validator("model")
    @classmethod
    def _trainable(cls, name: str) -> str:
        return _known(name, _trainable_sr(), "trainable SR model")

    @model_validator(mode="after")
    def _possible(self) -> "TrainSrConfig":
        if self.crop % sr_models.SR_MODELS[self.model].scale:
            raise ValueError(
                f"crop is {self.crop}: it needs to be a multiple of {sr_models.SR_MODELS[self.model].scale}"
            )
        if not self.patches and not self.sources:
            raise ValueError("nothing to train on: give sources, or let patches be above 0")
        if self.start is not None and not self.start.is_file():
            raise ValueError(f"start: there is no file {self.start}")
        if self.out is not None and self.out.suffix != ".safetensors":
            raise ValueError(f"out: {self.out} needs to end in .safetensors")
        return self


class ResourceConfig(_Section):
    """What the run may use; never changes a row."""

    actors: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """Ray actors at most; auto: one a GPU, else one a core. A number makes an autoscaling cluster grow to it."""
    gpus_per_actor: Annotated[float, Field(gt=0)] | Literal["auto"] = "auto"
    """auto: one where the cluster has any GPU. A number: no stage that can use GPUs begins without them."""
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Patches that go through a network at once; SR engines take fewer where these do not fit."""
    compile: bool | None = None
    """Whether SR networks are compiled; null: on GPUs."""


class RunConfig(_Section):
    """One run of the archive flow."""

    archive: ArchiveConfig
    """Where the patches come from."""
    store: Place
    """Where everything is written: a folder, or s3://bucket/prefix, gs://bucket/prefix."""
    shard_size: Annotated[int, Field(ge=1)] = 512
    """Patches in a shard, the unit of all work; fixed for a store."""
    bands: Literal["rgb", "10m", "s2", "s1s2"] = "rgb"
    """Bands of every branch; SR models take more than RGB in groups, an approximation, and those of 10 m at most."""
    resampling: Resampling = "nearest"
    """How bands of 20 and 60 m are brought to 10 m."""
    degrade: Literal[4] | None = None
    """Factor by which all branches but `hr` see the archive's pixels reduced, so that SR models have a truth."""
    sr: Annotated[tuple[str, ...], Field(min_length=1)] = ("none", "bicubic")
    """Branches: none (the pixels as they are), bicubic, and super-resolution models."""
    sr_input_max_dn: Annotated[int, _BY_LAYOUT, _OR_NULL] = 3000
    """DN that becomes 1 for every branch; null: 3000, and 255 for pictures."""
    sr_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of SR networks; it changes pixels, and so is part of their config."""
    sr_options: dict[str, dict[str, str | int | float]] = Field(default_factory=dict)
    """Options of SR models that have any, such as `{seesr: {steps: 20}}`; part of their config too."""
    classifiers: Annotated[tuple[str, ...], Field(min_length=1)] = ("resnet50",)
    """Networks, or names from `variants` and `trained`."""
    weights: dict[str, Path] = Field(default_factory=dict)
    """Weight file of each SR model (else the stored official or the shipped one; a folder for seesr) and of each
    network's backbone (else the stored official one)."""
    variants: dict[str, VariantConfig] = Field(default_factory=dict)
    """Classifiers by names of their own."""
    trained: dict[str, Path] = Field(default_factory=dict)
    """Classifiers by names of their own that are used as they are: checkpoints, or published BigEarthNet files."""
    models_from: OptionalPlace = None
    """Another store whose trained classifiers to use instead of training."""
    train: TrainConfig = TrainConfig()
    """How classifiers are trained."""
    train_sr: TrainSrConfig = TrainSrConfig()
    """For the flow train-sr: how a super-resolution model is fitted."""
    explain: ExplainConfig = ExplainConfig()
    """Which activation maps are made."""
    reliability: ReliabilityConfig | None = None
    """null: no score is made."""
    keep_sr: Literal["auto", "always", "never"] = "auto"
    """Whether super-resolved pixels are stored; auto: those that training reads again and are dear to compute."""
    resources: ResourceConfig = ResourceConfig()
    """What the run may use."""

    @field_validator("sr")
    @classmethod
    def _known_sr(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(name, sr_models.names(), "SR model") for name in _once(names))

    @field_validator("classifiers")
    @classmethod
    def _known_classifiers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return _once(names)

    @model_validator(mode="before")
    @classmethod
    def _stretch_of_layout(cls, values: Any) -> Any:  # noqa: ANN401  # as pydantic hands it over
        if isinstance(values, dict) and values.get("sr_input_max_dn") is None:
            chosen = values.get("archive")
            layout = chosen.get("layout") if isinstance(chosen, dict) else getattr(chosen, "layout", None)
            return {**values, "sr_input_max_dn": 255 if str(layout).startswith("image-") else 3000}
        return values

    def trained_here(self) -> list[str]:
        """Return the classifiers that the run trains itself."""
        return [] if self.models_from else [name for name in self.classifiers if name not in self.trained]

    def network_of(self, classifier: str) -> str:
        """Return the network of a classifier that is trained."""
        return self.variants[classifier].network if classifier in self.variants else classifier

    def train_of(self, classifier: str) -> TrainConfig:
        """Return how a classifier is trained."""
        if classifier not in self.variants:
            return self.train
        changes = self.variants[classifier].train
        return TrainConfig.model_validate({**self.train.model_dump(exclude_unset=True), **changes})

    def backbone_weights(self, classifier: str) -> Path:
        """Return the weight file of a classifier's backbone as `classifiers.weights_file` does.

        Raises:
            WeightsError: There is none.
        """
        network = self.network_of(classifier)
        return classifiers.weights_file(network, self.weights.get(network))

    def dtype_of(self, sr: str) -> str | None:
        """Return the precision of an SR model; None for one without a network, which has no choice."""
        return self.sr_dtype if len(sr_models.SR_MODELS[sr].dtypes) > 1 else None

    def stores_pixels(self, sr: str) -> bool:
        """Whether an SR model's pixels are stored: auto stores what training will read again and is dear to compute."""
        spec = sr_models.SR_MODELS[sr]
        if spec.sr_shard is not None or spec.conditioned:  # training does not tell a model of its patches
            return True
        if self.keep_sr == "auto":
            trains = self.models_from is None and any(name not in self.trained for name in self.classifiers)
            return trains and not spec.recompute_is_cheap
        return self.keep_sr == "always" and spec.scale > 1

    def told_predictions(self) -> tuple[str, ...]:
        """Return the SR models that are told the land cover that a classifier of the run predicts."""
        return tuple(sr for sr in self.sr if self.sr_options.get(sr, {}).get("land_cover") == "predictions")

    def sr_weights(self, sr: str) -> Path | None:
        """Return the weight file of an SR model as `sr_models.weights_file` does; raises WeightsError without one."""
        return sr_models.weights_file(sr, self.weights.get(sr), self.sr_options.get(sr))

    @model_validator(mode="after")
    def _files_are_there(self) -> "RunConfig":
        for name, path in self.weights.items():
            _known(name, (*sr_models.names(), *classifiers.names()), "model in weights")
            if name in sr_models.names() and sr_models.SR_MODELS[name].folder is not None:
                if not path.is_dir():
                    raise ValueError(f"weights: {name}: there is no folder {path}")
            elif not path.is_file():
                raise ValueError(f"weights: {name}: there is no file {path}")
        for name in self.sr:
            self.sr_weights(name)
            allowed = sr_models.SR_MODELS[name].dtypes
            if len(allowed) > 1 and self.sr_dtype not in allowed:
                raise ValueError(f"sr_dtype: {name} does not run in {self.sr_dtype}, only in {' and '.join(allowed)}")
        if self.models_from is not None and self.models_from.resolve() == self.store.resolve():
            raise ValueError("models_from names the store itself: leave it out, trained classifiers are kept")
        return self

    @model_validator(mode="after")
    def _classifiers_can_be_had(self) -> "RunConfig":
        if both := (self.variants.keys() & self.trained.keys()) | (
            {*self.variants, *self.trained} & {*classifiers.names()}
        ):
            raise ValueError(f"two classifiers are called {', '.join(sorted(both))}: give variants names of their own")
        for name, path in self.trained.items():
            if not path.is_file():
                raise ValueError(f"trained: {name}: there is no file {path}")
        for name in (*self.variants, *self.trained):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.+]*", name):
                raise ValueError(f"{name!r} cannot name a classifier: letters, digits, _ . + only")
        for name in self.classifiers:
            _known(name, (*classifiers.names(), *self.variants, *self.trained), "classifier")
            if self.models_from is not None or name in self.trained:
                continue
            try:
                chosen = self.train_of(name)
            except ValidationError as error:
                within = [{**fault, "loc": ("variants", name, "train", *fault["loc"])} for fault in error.errors()]
                raise ValueError(faults(cast("list[ErrorDetails]", within), RunConfig, SECTIONS)) from error
            if chosen.head != "linear" and (needs := [m for m in self.explain.methods if METHODS[m].linear_head_only]):
                raise ValueError(
                    f"explain.methods: {', '.join(needs)} needs a head of one linear layer, and {name} has "
                    f"`head: {chosen.head}`: leave it out, grad_cam is its generalisation"
                )
            if chosen.backbone == "weights":
                try:
                    self.backbone_weights(name)
                except WeightsError as error:
                    raise ValueError(
                        f"{error} Or say `train: {{backbone: archive}}` (train one on this archive) or `train: "
                        "{backbone: random}`"
                    ) from error
        return self

    @model_validator(mode="after")
    def _reliability_has_maps(self) -> "RunConfig":
        if self.reliability is not None and self.reliability.method not in self.explain.methods:
            raise ValueError(
                f"reliability.method: {self.reliability.method} is not among explain.methods, "
                f"{', '.join(self.explain.methods) or 'which is empty'}: add it there, or choose one of them"
            )
        return self

    @model_validator(mode="after")
    def _sr_options_fit(self) -> "RunConfig":
        for name, options in self.sr_options.items():
            spec = sr_models.spec(_known(name, sr_models.names(), "SR model in sr_options"))
            try:
                spec.chosen(name, options)
            except ConfigError as error:
                raise ValueError(f"sr_options: {error}") from error
        for name in self.told_predictions():
            if "none" not in self.sr[: self.sr.index(name)]:
                raise ValueError(
                    f"sr_options: {name}: land_cover: predictions are those of the patches as they are: name none "
                    f"before {name} in `sr`"
                )
        specs = {name: sr_models.SR_MODELS[name] for name in self.sr}
        always = {name: spec for name, spec in specs.items() if spec.sr_shard is not None or spec.conditioned}
        if self.keep_sr == "never" and always:
            raise ValueError(f"keep_sr: never: {', '.join(always)} is too slow to be computed twice, and always stored")
        if always:
            from infra.zarr_store import divisor  # zarr is not imported for every command
        for name, spec in always.items():
            most = spec.sr_shard or self.shard_size
            if divisor(self.shard_size, most) < min(8, self.shard_size):
                raise ValueError(
                    f"shard_size: {self.shard_size} cannot be cut into SR shards of some {most} patches, as {name} "
                    f"needs it: choose a multiple of {most}"
                )
        return self

    @model_validator(mode="after")
    def _branches_are_possible(self) -> "RunConfig":
        if self.bands in {"s2", "s1s2"} and (self.sr != ("none",) or self.degrade is not None):
            raise ValueError(f"bands: {self.bands} is for the branch none without degrade: super-resolution takes 10 m")
        if "hr" in self.sr and self.degrade is None:
            raise ValueError("sr: hr is the untouched image of a run with `degrade: 4`; without it, take none")
        return self


SECTIONS: Mapping[str, type[BaseModel]] = MappingProxyType(
    {
        "archive": ArchiveConfig,
        "train": TrainConfig,
        "train_sr": TrainSrConfig,
        "sources": SrSourceConfig,
        "variants": VariantConfig,
        "explain": ExplainConfig,
        "reliability": ReliabilityConfig,
        "resources": ResourceConfig,
    }
)
"""What lies within a RUN.yaml, by name."""


def _local_folder(path: Path | None) -> Path | None:
    if path is not None and re.match(r"^[a-z][a-z0-9+.-]*:/", str(path)):
        raise ValueError(f"{path} is an address; only folders of a file system can be used")
    return None if path is None else path.expanduser()


def _trainable_sr() -> tuple[str, ...]:
    return tuple(name for name, spec in sr_models.SR_MODELS.items() if spec.needs_weights and spec.folder is None)


def _known(name: str, choices: tuple[str, ...], what: str) -> str:
    if name not in choices:
        raise ValueError(
            f"there is no {what} called {name!r}: {did_you_mean(name, choices)}there are {', '.join(choices)}"
        )
    return name


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"a name is given twice in {', '.join(names)}")
    return names


_MOST_VALUES = 100_000  # of a RUN.yaml; a few aliases of aliases stand for billions


class _OnceLoader(yaml.SafeLoader):
    """YAML's plain values, of which a key given twice is an error: the earlier one would be dropped unseen."""

    _merged = 0

    def flatten_mapping(self, node: yaml.MappingNode) -> None:
        """Write out what the merge keys (<<) of a mapping stand for.

        Raises:
            ConstructorError: All merges so far stand for more than any settings have.
        """
        for key, value in node.value:
            if key.tag == "tag:yaml.org,2002:merge":
                for source in value.value if isinstance(value, yaml.SequenceNode) else [value]:
                    if isinstance(source, yaml.MappingNode):
                        self.flatten_mapping(source)
                        self._merged += len(source.value)
                    if self._merged > _MOST_VALUES:  # told before they are copied
                        raise yaml.constructor.ConstructorError(
                            problem=f"<< stands for more than {_MOST_VALUES} values", problem_mark=key.start_mark
                        )
        super().flatten_mapping(node)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:  # noqa: FBT001, FBT002  # as PyYAML calls it
        """Return a mapping.

        Raises:
            ConstructorError: A key is given twice.
        """
        seen: set[tuple[str, str]] = set()
        for key, _ in node.value:
            name = (key.tag, str(key.value))
            if name in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"{key.value} is given twice", problem_mark=key.start_mark
                )
            seen.add(name)
        return super().construct_mapping(node, deep)


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a RUN.yaml.

    Args:
        path: The file; relative paths inside it start from the current directory, and ${NAME} in its texts stands for
            the environment variable of that name.
        overrides: `key=value` with dots for nesting (`train.epochs=3`); values are YAML.

    Raises:
        ConfigError: The file is missing, is not YAML, names a variable that is not set, or says something that cannot
            be done; the message names the key.
    """
    return validated(read_settings(path, overrides), str(path))


def read_settings(path: Path, overrides: list[str] | None = None) -> dict[str, Any]:
    """Return what a RUN.yaml says, ${NAME} replaced, before anybody asks whether it can be done.

    Args:
        path: As of `load_config`.
        overrides: As of `load_config`.

    Raises:
        ConfigError: The file is missing, is not YAML, or names a variable that is not set.
    """
    try:
        values = yaml.load(path.read_text(encoding="utf-8"), _OnceLoader)  # noqa: S506  # a SafeLoader
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError: a date without such a day, bad UTF-8
        raise ConfigError(f"{path} is not YAML{_yaml_fault(error)}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings; see the README for an example")
    for override in overrides or []:
        _override(values, override)
    if _counted(values, _MOST_VALUES) > _MOST_VALUES:
        raise ConfigError(f"{path} holds more than {_MOST_VALUES} values: do its aliases refer to each other?")
    expanded: dict[str, Any] = _expanded(values, str(path))
    return expanded


def _yaml_fault(error: Exception) -> str:
    """Return where a text is no YAML, and why, on one line."""
    problem, mark = getattr(error, "problem", None), getattr(error, "problem_mark", None)
    if problem is None or mark is None:
        return f": {' '.join(str(error).split())}"
    return f", line {mark.line + 1}, column {mark.column + 1}: {' '.join(str(problem).split())}"


def _counted(value: object, most: int) -> int:
    """Return how many values settings hold, those of an alias each time that it stands there; counting ends at most."""
    count, left = 0, [value]
    while left and count <= most:
        here = left.pop()
        count += 1
        left.extend(here.values() if isinstance(here, dict) else here if isinstance(here, list) else ())
    return count


def _expanded(value: Any, source: str) -> Any:  # noqa: ANN401  # whatever YAML holds
    """Return settings with ${NAME} in their texts replaced by the environment's variables."""
    if isinstance(value, dict):
        return {key: _expanded(item, source) for key, item in value.items()}
    if isinstance(value, list):
        return [_expanded(item, source) for item in value]
    if not isinstance(value, str):
        return value

    def variable(match: re.Match[str]) -> str:
        if not os.environ.get(match[1]):  # an empty one would turn ${DATA}/archive into /archive
            state = "empty" if match[1] in os.environ else "not set"
            raise ConfigError(f"{source}: {value} names the environment variable {match[1]}, which is {state}")
        return os.environ[match[1]]

    return re.sub(r"\$\{(\w+)\}", variable, value)


def validated(values: dict[str, Any], source: str) -> RunConfig:
    """Return values as a RunConfig; raises ConfigError with one sentence that names every wrong key."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        raise ConfigError(
            f"{source}: {faults(error.errors(), RunConfig, SECTIONS)}"
        ) from None  # a cause would repeat what was given, a password too


def _override(values: dict[str, Any], override: str) -> None:
    key, equals, text = override.partition("=")
    if not equals:
        raise ConfigError(f"--set {override}: write key=value, for example train.epochs=3")
    *parents, last = key.split(".")
    section: Any = values
    for parent in parents:
        section = section.setdefault(parent, {})
        if not isinstance(section, dict):
            raise ConfigError(f"--set {override}: {parent} is a value, not a section")
    try:
        section[last] = yaml.load(text, _OnceLoader)  # noqa: S506  # a SafeLoader
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error
