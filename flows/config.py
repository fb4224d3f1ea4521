"""RUN.yaml: what a run is asked to do, checked before anything starts."""

import re
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic_core import ErrorDetails

import classifiers
import sr_models
from infra.archives.layouts import LAYOUTS
from infra.errors import ConfigError


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class ArchiveConfig(_Section):
    """Where the patches come from."""

    layout: str
    """One of the archive layouts."""
    root: Path | None = None
    """The archive's folder; None: use what the store holds already."""
    include_flagged: bool = False
    """Whether patches with snow, cloud or cloud shadow are taken too."""
    subset: Literal["all", "present"] = "all"
    """all: a patch that is named but absent is quarantined; present: it is only counted."""
    boa_add_offset: int | None = None
    """Layout scene: the products' BOA_ADD_OFFSET, DN, where no MTD_MSIL2A.xml tells it."""

    @field_validator("root")
    @classmethod
    def _local(cls, path: Path | None) -> Path | None:
        return _local_folder(path)

    @field_validator("layout")
    @classmethod
    def _known_layout(cls, layout: str) -> str:
        return _known(layout, tuple(LAYOUTS), "archive layout")


class TrainConfig(_Section):
    """How classifiers are trained."""

    epochs: Annotated[int, Field(ge=1)] = 30
    batch_size: Annotated[int, Field(ge=1)] = 256
    optimizer: Literal["adamw", "adam", "sgd"] = "adamw"
    lr: Annotated[float, Field(gt=0)] = 1.0e-3
    weight_decay: Annotated[float, Field(ge=0)] = 0.01
    head: Literal["linear"] = "linear"
    backbone: Literal["weights", "archive", "random"] = "weights"
    """Where the backbone starts: a weight file, a network trained first on this archive's "none" branch, or chance."""
    freeze_backbone: bool = False
    """Whether only the head is trained, on features that are computed once."""
    seeds: Annotated[tuple[int, ...], Field(min_length=1)] = (0,)

    @model_validator(mode="after")
    def _frozen_chance(self) -> "TrainConfig":
        if self.freeze_backbone and self.backbone == "random":
            raise ValueError("freeze_backbone keeps the backbone as it starts; backbone: random would keep noise")
        if len(set(self.seeds)) != len(self.seeds):
            raise ValueError("seeds are given twice")
        return self


class ExplainConfig(_Section):
    """Which activation maps are made."""

    methods: tuple[str, ...] = ("grad_cam",)
    labels: Literal["predicted", "true", "all"] = "predicted"
    """Labels that get a row in tables/explanations; the map store holds every label."""

    @field_validator("methods")
    @classmethod
    def _known_methods(cls, methods: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(m, classifiers.explain_methods(), "explanation method") for m in _once(methods))


class ResourceConfig(_Section):
    """What the run may use; never changes a row."""

    actors: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    gpus_per_actor: Annotated[float, Field(gt=0)] = 1.0
    batch_size: Annotated[int, Field(ge=1)] = 16
    """Patches that go through a classifier at once; SR engines find their own."""
    compile: bool | None = None
    """Whether SR networks are compiled; null: on GPUs."""


class RunConfig(_Section):
    """One run of the archive flow."""

    archive: ArchiveConfig
    store: Path
    shard_size: Annotated[int, Field(ge=1)] = 512
    bands: Literal["rgb", "10m"] = "rgb"
    """Bands of every branch; SR models take more than RGB in groups, an approximation."""
    sr: Annotated[tuple[str, ...], Field(min_length=1)] = ("none", "bicubic")
    sr_input_max_dn: Annotated[int, Field(ge=1, le=65535)] = 3000
    sr_dtype: Literal["float32", "bfloat16", "float16"] = "float32"
    """Precision of SR networks; it changes pixels, and so is part of their config."""
    classifiers: Annotated[tuple[str, ...], Field(min_length=1)] = ("resnet50",)
    weights: dict[str, Path] = Field(default_factory=dict)
    """Weight file of each SR model (else the stored official or the shipped one), each classifier's backbone file."""
    models_from: Path | None = None
    """Another store whose trained classifiers to use instead of training."""
    train: TrainConfig = TrainConfig()
    explain: ExplainConfig = ExplainConfig()
    keep_sr: Literal["auto", "always", "never"] = "auto"
    resources: ResourceConfig = ResourceConfig()

    @field_validator("store", "models_from")
    @classmethod
    def _local(cls, path: Path | None) -> Path | None:
        return _local_folder(path)

    @field_validator("sr")
    @classmethod
    def _known_sr(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(name, sr_models.names(), "SR model") for name in _once(names))

    @field_validator("classifiers")
    @classmethod
    def _known_classifiers(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(_known(name, classifiers.names(), "classifier") for name in _once(names))

    def dtype_of(self, sr: str) -> str | None:
        """Return the precision of an SR model; None for one without a network, which has no choice."""
        return self.sr_dtype if len(sr_models.SR_MODELS[sr].dtypes) > 1 else None

    def stores_pixels(self, sr: str) -> bool:
        """Whether an SR model's pixels are stored: auto stores what training will read again and is dear to compute."""
        spec = sr_models.SR_MODELS[sr]
        if self.keep_sr == "auto":
            return self.models_from is None and not spec.recompute_is_cheap
        return self.keep_sr == "always" and spec.scale > 1

    def sr_weights(self, sr: str) -> Path | None:
        """Return the weight file of an SR model as `sr_models.weights_file` does; raises WeightsError without one."""
        return sr_models.weights_file(sr, self.weights.get(sr))

    @model_validator(mode="after")
    def _files_are_there(self) -> "RunConfig":
        for name, path in self.weights.items():
            _known(name, (*sr_models.names(), *classifiers.names()), "model in weights")
            if not path.is_file():
                raise ValueError(f"weights: {name}: there is no file {path}")
        for name in self.sr:
            self.sr_weights(name)
            allowed = [str(dtype).removeprefix("torch.") for dtype in sr_models.SR_MODELS[name].dtypes]
            if len(allowed) > 1 and self.sr_dtype not in allowed:
                raise ValueError(f"sr_dtype: {name} does not run in {self.sr_dtype}, only in {' and '.join(allowed)}")
        if self.models_from is None and self.train.backbone == "weights":
            for name in self.classifiers:
                if name not in self.weights:
                    raise ValueError(
                        f"{name} starts from a weight file, and none is given: add `weights: {{{name}: FILE}}`, or say "
                        "`train: {backbone: archive}` (train one on this archive) or `train: {backbone: random}`"
                    )
        if self.models_from is not None and self.models_from.resolve() == self.store.resolve():
            raise ValueError("models_from names the store itself: leave it out, trained classifiers are kept")
        return self


def _local_folder(path: Path | None) -> Path | None:
    if path is not None and re.match(r"^[a-z][a-z0-9+.-]*:/", str(path)):
        raise ValueError(f"{path} is an address; only folders of a file system can be used")
    return None if path is None else path.expanduser()


def _known(name: str, choices: tuple[str, ...], what: str) -> str:
    if name not in choices:
        raise ValueError(f"there is no {what} called {name!r}; there are {', '.join(choices)}")
    return name


def _once(names: tuple[str, ...]) -> tuple[str, ...]:
    if len(set(names)) != len(names):
        raise ValueError(f"a name is given twice in {', '.join(names)}")
    return names


def load_config(path: Path, overrides: list[str] | None = None) -> RunConfig:
    """Read a RUN.yaml.

    Args:
        path: The file; relative paths inside it start from the current directory.
        overrides: `key=value` with dots for nesting (`train.epochs=3`); values are YAML.

    Raises:
        ConfigError: The file is missing, is not YAML, or says something that cannot be done; the message names the key.
    """
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"cannot read {path}: {error.strerror}") from error
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not YAML: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{path} holds no settings; see the README for an example")
    for override in overrides or []:
        _override(values, override)
    return validated(values, str(path))


def validated(values: dict[str, Any], source: str) -> RunConfig:
    """Return values as a RunConfig; raises ConfigError with one sentence that names every wrong key."""
    try:
        return RunConfig.model_validate(values)
    except ValidationError as error:
        faults = "; ".join(_fault(fault) for fault in error.errors())
        raise ConfigError(f"{source}: {faults}") from error


def _fault(fault: ErrorDetails) -> str:
    where = ".".join(str(part) for part in fault["loc"])
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] == "extra_forbidden":
        message = "there is no such setting"
    return f"{where}: {message}" if where else message


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
        section[last] = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {override}: the value is not YAML") from error
