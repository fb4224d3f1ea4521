"""Every super-resolution model by its name in RUN.yaml, and what a caller must know about it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Literal, Self, get_args

from pydantic import BaseModel, ValidationError

from infra.bigearthnet.bands import RGB
from infra.errors import ConfigError, UnknownNameError, did_you_mean
from infra.installed import ModelTable
from infra.on_demand import called_later
from infra.weights_store import OfficialFile
from sr_models.basicsr_archs import msrresnet, rrdbnet, srvgg_compact
from sr_models.seesr import models as seesr
from sr_models.seesr.options import SeesrOptions

if TYPE_CHECKING:  # who asks for names and facts alone does not pay for torch
    from torch import nn

Scalar = str | int | float

Dtype = Literal["float32", "bfloat16", "float16"]
"""A precision, by torch's name of it."""


@dataclass(frozen=True, slots=True)
class ShippedWeights:
    """A weight file that comes with this package, for use without a download."""

    file: str
    """Path inside `sr_models/`, with forward slashes."""
    sha256: str
    """Lower-case hex digest."""
    licence: str
    """Terms of the file."""
    provenance: str
    """How it came about: trained on what, by what."""

    @property
    def path(self) -> Path:
        """Where it lies in this installation."""
        return Path(__file__).parent / self.file


@dataclass(frozen=True, slots=True)
class WeightsFolder:
    """Weights that are published as several files, which a user puts into one folder."""

    about: str
    """For a person: which files, where each is found, and how they lie in the folder."""
    files: Callable[[Path, BaseModel | None], Sequence[Path]]
    """The files that determine the model with some options, by their paths in a folder; raises WeightsError where any
    is missing."""
    check: Callable[[Path, BaseModel | None], None]
    """Raises WeightsError for files that do not make the model; reads their names and shapes, not their numbers."""
    load: "Callable[[Path, BaseModel | None], nn.Module]"
    """Builds the network of a folder, on the CPU, float32."""


@dataclass(frozen=True, slots=True)
class SrSpec:
    """What a caller must know about a super-resolution model."""

    title: str
    """One line for a person."""
    scale: int
    """Integer factor of enlargement, the same for both axes."""
    architecture: "Callable[..., nn.Module]"
    """Builds the network, with random parameters, from `parameters`."""
    paper: str
    """Where the method is described."""
    licence: str
    """Terms of the code and of the official weights."""
    parameters: Mapping[str, Scalar] = field(default_factory=lambda: MappingProxyType({}))
    """Arguments of `architecture`; part of the model's identity."""
    bands: tuple[str, ...] = RGB
    """Bands of the input and the output, in the order of the channel axis."""
    input_range: tuple[float, float] = (0.0, 1.0)
    """Range of the input, after the stretch, and of the output."""
    dtypes: tuple[Dtype, ...] = ("float32",)
    """Precisions the network may run in; the first is the default. Output is float32 in any case."""
    needs_weights: bool = False
    """Whether `load` wants a weight file."""
    bandwise: bool = False
    """Whether each band is treated alone, so that any bands go through as they are."""
    recompute_is_cheap: bool = False
    """Whether computing costs less than reading a stored result back."""
    receptive_radius: int | None = None
    """How far an output pixel sees, in input pixels; None for a network that sees the whole image."""
    multiple: int = 1
    """The network pads height and width to multiples of this; windows of a scene start at multiples of it."""
    official_file: OfficialFile | None = None
    """The published weights, None for a model without weights."""
    shipped: ShippedWeights | None = None
    """Weights that come with this package, used where no others are given or stored."""
    distribution: str | None = None
    """Name and version of the distribution that brings the model, None for this package's own. It is part of the
    model's identity, since another version may compute other pixels."""
    folder: WeightsFolder | None = None
    """Where its weights are several files."""
    options: type[BaseModel] | None = None
    """What may be chosen of it, scalars with defaults; part of the model's identity. None for a model that has no
    options; else `architecture` takes them as its first argument."""
    conditioned: bool = False
    """Whether it has to be told of each image: a generative model, whose noise is the patch's own."""
    sr_shard: int | None = None
    """Patches that are super-resolved and stored at once, by a model so slow that a whole shard would be much to lose;
    its pixels are always stored. None for whole shards."""

    def __post_init__(self) -> None:
        """Refuse what would only be noticed when the model is run.

        Raises:
            ConfigError: A precision is none, or no name of one.
        """
        known = get_args(Dtype)
        if not self.dtypes or any(dtype not in known for dtype in self.dtypes):
            raise ConfigError(f"dtypes of an SrSpec are names, of {', '.join(known)}: got {self.dtypes}")

    def from_distribution(self, distribution: str) -> Self:
        """Return the entry as another distribution's, given its name and version."""
        return replace(self, distribution=distribution)

    def chosen(self, name: str, options: Mapping[str, object] | None) -> BaseModel | None:
        """Return the model's options, those that are not given as they are by default; None for a model without.

        Args:
            name: The model, for messages.
            options: By name.

        Raises:
            ConfigError: It has no such option, or an option no such value.
        """
        if self.options is None:
            if options:
                raise ConfigError(f"{name} has no options, but {', '.join(options)} was given: leave it out")
            return None
        try:
            return self.options.model_validate(dict(options or {}))
        except ValidationError as error:
            told = [_told(fault["loc"], fault["msg"], fault["input"], self.options) for fault in error.errors()]
            raise ConfigError(f"{name}: {'; '.join(told)}") from error

    def build(self, options: BaseModel | None = None) -> "nn.Module":
        """Return the network on the CPU, float32, with random parameters where it has any.

        Args:
            options: As `chosen` returns them.
        """
        if self.options is None:
            return self.architecture(**self.parameters)
        return self.architecture(options or self.options(), **self.parameters)


def _told(place: Sequence[int | str], message: str, value: object, options: type[BaseModel]) -> str:
    """Return what pydantic found at fault with an option, in our words."""
    name, known = ".".join(map(str, place)), tuple(options.model_fields)
    if name not in known:
        return f"there is no option {name!r}: {did_you_mean(name, known)}there are {', '.join(known)}"
    return f"{name}: {message[:1].lower()}{message[1:]}, not {value!r}"


_identity = called_later("sr_models.interpolation", "Identity")
_bicubic = called_later("sr_models.interpolation", "Bicubic")
_hat = called_later("sr_models.hat", "hat")

_NETWORK_DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16", "float16")
_REAL_ESRGAN = "https://github.com/xinntao/Real-ESRGAN/releases/download"
_HAT_DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")  # no float16: spandrel, too, refuses it for HAT
_DIFFUSION_DTYPES: tuple[Dtype, ...] = ("float32", "bfloat16")
_HAT_FOLDER = "https://drive.google.com/drive/folders/1HpmReFfoUqUbnAOQ7rvOeNU3uf_m69w0"
_HAT_PARAMETERS = MappingProxyType(
    {"embed_dim": 180, "num_groups": 6, "num_blocks": 6, "compress_ratio": 3, "squeeze_factor": 30}
)

CEILING = "hr"
"""The branch that sees the archive's own pixels where `degrade` reduces those of all others."""

_OWN: Mapping[str, SrSpec] = MappingProxyType(
    {
        "none": SrSpec(
            title="the patch as it is",
            scale=1,
            architecture=_identity,
            paper="none",
            licence="Apache-2.0",
            bandwise=True,
            recompute_is_cheap=True,
            receptive_radius=0,
        ),
        CEILING: SrSpec(
            title="the archive's own pixels where `degrade` reduces all others: the ceiling, not a competitor",
            scale=1,
            architecture=_identity,
            paper="none",
            licence="Apache-2.0",
            bandwise=True,
            recompute_is_cheap=True,
            receptive_radius=0,
        ),
        "bicubic": SrSpec(
            title="bicubic enlargement, the control: larger inputs without a network",
            scale=4,
            architecture=_bicubic,
            parameters=MappingProxyType({"scale": 4}),
            paper="Keys 1981, doi:10.1109/TASSP.1981.1163711",
            licence="Apache-2.0",
            bandwise=True,
            recompute_is_cheap=True,
            receptive_radius=2,
        ),
        "srresnet": SrSpec(
            title="MSRResNet, trained for PSNR: shipped weights on Sentinel-2, official ones on DIV2K",
            scale=4,
            architecture=msrresnet,
            parameters=MappingProxyType({"num_feat": 64, "num_block": 16}),
            paper="Ledig et al. 2017, arXiv:1609.04802",
            licence="Apache-2.0 (BasicSR)",
            dtypes=_NETWORK_DTYPES,
            needs_weights=True,
            receptive_radius=35,  # 33 convolutions before the enlargement, then 1 at x1, 1 at x2, 2 at x4
            official_file=OfficialFile(
                # net_g_1000000.pth of the experiment 001_MSRResNet_x4_f64b16_DIV2K_1000k_B16G1_wandb
                name="001_MSRResNet_x4_f64b16_DIV2K_1000k_B16G1_wandb/models/net_g_1000000.pth",
                url="https://drive.google.com/drive/folders/1XN4WXKJ53KQ0Cu0Yv-uCt8DZWq6uufaP",
                sha256=None,
                direct=False,
            ),
            shipped=ShippedWeights(
                file="shipped/srresnet_sentinel2.safetensors",
                sha256="f633fda09d847e22fd7356d717bec42fa582fbb0c1d57326420d962f2dbd7654",
                licence="CC BY-SA 4.0",
                provenance="trained on a Sentinel-2 cell of Major-TOM Core and EuroSAT: sr_models/shipped/README.md",
            ),
        ),
        "realesrgan": SrSpec(
            title="RealESRGAN_x4plus, RRDBNet with 23 blocks",
            scale=4,
            architecture=rrdbnet,
            parameters=MappingProxyType({"num_feat": 64, "num_block": 23, "num_grow_ch": 32}),
            paper="Wang et al. 2021, arXiv:2107.10833",
            licence="BSD-3-Clause (Real-ESRGAN)",
            dtypes=_NETWORK_DTYPES,
            needs_weights=True,
            receptive_radius=349,  # 1 + 23 * 15 + 1 convolutions at x1, then 1 at x2, 3 at x4
            official_file=OfficialFile(
                name="RealESRGAN_x4plus.pth",
                url=f"{_REAL_ESRGAN}/v0.1.0/RealESRGAN_x4plus.pth",
                sha256="4fa0d38905f75ac06eb49a7951b426670021be3018265fd191d2125df9d682f1",
            ),
        ),
        "realesrgan_general": SrSpec(
            title="realesr-general-x4v3, the small SRVGGNetCompact with 32 convolutions",
            scale=4,
            architecture=srvgg_compact,
            parameters=MappingProxyType({"num_feat": 64, "num_conv": 32}),
            paper="Wang et al. 2021, arXiv:2107.10833",
            licence="BSD-3-Clause (Real-ESRGAN)",
            dtypes=_NETWORK_DTYPES,
            needs_weights=True,
            receptive_radius=34,  # 34 convolutions at x1
            official_file=OfficialFile(
                name="realesr-general-x4v3.pth",
                url=f"{_REAL_ESRGAN}/v0.2.5.0/realesr-general-x4v3.pth",
                sha256="8dc7edb9ac80ccdc30c3a5dca6616509367f05fbc184ad95b731f05bece96292",
            ),
        ),
        "hat": SrSpec(
            title="HAT, hybrid attention transformer, trained for PSNR on ImageNet, then DIV2K and Flickr2K",
            scale=4,
            architecture=_hat,
            parameters=_HAT_PARAMETERS,
            paper="Chen et al. 2023, arXiv:2205.04437",
            licence="Apache-2.0 (HAT)",
            dtypes=_HAT_DTYPES,
            needs_weights=True,
            official_file=OfficialFile(
                name="HAT_SRx4_ImageNet-pretrain.pth",
                url=_HAT_FOLDER,
                direct=False,
                sha256="4ee053c42461187846dc0e93aa5abd34591c0725a8e044a59000e92ee215e833",
            ),
            multiple=16,
        ),
        "hat_s": SrSpec(
            title="HAT-S, the small HAT, trained for PSNR on DIV2K and Flickr2K",
            scale=4,
            architecture=_hat,
            parameters=MappingProxyType(
                {"embed_dim": 144, "num_groups": 6, "num_blocks": 6, "compress_ratio": 24, "squeeze_factor": 24}
            ),
            paper="Chen et al. 2023, arXiv:2205.04437",
            licence="Apache-2.0 (HAT)",
            dtypes=_HAT_DTYPES,
            needs_weights=True,
            official_file=OfficialFile(
                name="HAT-S_SRx4.pth",
                url=_HAT_FOLDER,
                direct=False,
                sha256="a92f81bd2c0c1aaa371a6e4d6cac69e749fde2e36196885ee47a4a3667542c9a",
            ),
            multiple=16,
        ),
        "hat_l": SrSpec(
            title="HAT-L, HAT of twice the depth, trained for PSNR on ImageNet, then DIV2K and Flickr2K",
            scale=4,
            architecture=_hat,
            parameters=MappingProxyType({**_HAT_PARAMETERS, "num_groups": 12}),
            paper="Chen et al. 2023, arXiv:2205.04437",
            licence="Apache-2.0 (HAT)",
            dtypes=_HAT_DTYPES,
            needs_weights=True,
            official_file=OfficialFile(
                name="HAT-L_SRx4_ImageNet-pretrain.pth",
                url=_HAT_FOLDER,
                direct=False,
                sha256="5992bd38522f2b8faf11ea4bd8ee08de92465bb66892166576999afc36d60043",
            ),
            multiple=16,
        ),
        "real_hat_gan": SrSpec(
            title="Real_HAT_GAN_SRx4, HAT trained as a GAN on Real-ESRGAN's degradations",
            scale=4,
            architecture=_hat,
            parameters=_HAT_PARAMETERS,
            paper="Chen et al. 2023, arXiv:2309.05239",
            licence="Apache-2.0 (HAT)",
            dtypes=_HAT_DTYPES,
            needs_weights=True,
            official_file=OfficialFile(
                # the folder holds Real_HAT_GAN_SRx4_sharper.pth too, SHA-256 5800b671...c00271: the same network
                name="Real_HAT_GAN_SRx4.pth",
                url=_HAT_FOLDER,
                direct=False,
                sha256="f5b1e3bbbb05147ca2beefcc715279cb647d7976cbda67d62ea7e6e20d5ffcc7",
            ),
            multiple=16,
        ),
        "seesr": SrSpec(
            title="SeeSR, Stable Diffusion 2 led by the patch and by tags of what is seen in it",
            scale=4,
            architecture=seesr.full_size,
            paper="Wu et al. 2024, arXiv:2311.16518",
            licence="Apache-2.0 (SeeSR), CreativeML Open RAIL++-M (Stable Diffusion 2)",
            dtypes=_DIFFUSION_DTYPES,
            needs_weights=True,
            folder=WeightsFolder(about=seesr.ABOUT, files=seesr.files, check=seesr.check, load=seesr.load),
            options=SeesrOptions,
            conditioned=True,
            sr_shard=32,
        ),
        "seesr_tiny": SrSpec(
            title="SeeSR's way through a tiny network of random numbers, for tests: its pictures mean nothing",
            scale=4,
            architecture=seesr.tiny,
            paper="none",
            licence="Apache-2.0",
            dtypes=_DIFFUSION_DTYPES,
            options=SeesrOptions,
            conditioned=True,
            sr_shard=32,
        ),
    }
)

SR_MODELS: Mapping[str, SrSpec] = ModelTable(_OWN, "superscene.sr_models", SrSpec)
"""The super-resolution models by name: this package's, then those of other installed distributions, which offer an
`SrSpec` by an entry point of the group `superscene.sr_models`."""


def names() -> tuple[str, ...]:
    """Return the names of the super-resolution models, in the order of the table."""
    return tuple(SR_MODELS)


def spec(name: str) -> SrSpec:
    """Return the entry of a super-resolution model.

    Raises:
        UnknownNameError: No model has that name; the message lists those there are.
    """
    if name not in SR_MODELS:
        hint = did_you_mean(name, SR_MODELS)
        raise UnknownNameError(f"no super-resolution model is called {name!r}: {hint}there are {', '.join(SR_MODELS)}")
    return SR_MODELS[name]
