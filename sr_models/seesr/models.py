"""SeeSR as the registry has it: what is needed to name it costs no import of diffusers."""

from pathlib import Path
from typing import TYPE_CHECKING, cast

from pydantic import BaseModel

from sr_models.seesr.options import SeesrOptions

if TYPE_CHECKING:
    from sr_models.seesr.network import Seesr

ABOUT = (
    "Its official files are SeeSR's UNet, ControlNet and DAPE.pth (released from https://github.com/cswry/SeeSR), its "
    "ram_tag_list.txt and ram_tag_list_threshold.txt (there, folder ram/data), ram_swin_large_14m.pth (Recognize "
    "Anything) and a folder stable-diffusion-2-base (a mirror; stabilityai's was removed): docs/seesr.md shows how "
    "they lie in a folder."
)
"""Which files there are, and where each is found."""


def full_size(options: BaseModel) -> "Seesr":
    """Return SeeSR in its official sizes, with random parameters: to know how fast it is."""
    from sr_models.seesr.full_size import full_size

    return full_size(_own(options))


def tiny(options: BaseModel) -> "Seesr":
    """Return SeeSR's tiny random configuration: see `sr_models.seesr.tiny`."""
    from sr_models.seesr.tiny import tiny

    return tiny(_own(options))


def files(folder: Path, options: BaseModel | None) -> tuple[Path, ...]:
    """Return the files that SeeSR reads from a folder: see `sr_models.seesr.layout.files`."""
    from sr_models.seesr.layout import files

    return files(folder, _own(options).base)


def check(folder: Path, options: BaseModel | None) -> None:
    """Raise WeightsError unless the files of a folder make SeeSR: see `sr_models.seesr.folder.check_seesr`."""
    from sr_models.seesr.folder import check_seesr

    check_seesr(folder, _own(options))


def load(folder: Path, options: BaseModel | None) -> "Seesr":
    """Return SeeSR with the parameters of a folder: see `sr_models.seesr.folder.load_seesr`."""
    from sr_models.seesr.folder import load_seesr

    return load_seesr(folder, _own(options))


def _own(options: BaseModel | None) -> SeesrOptions:
    return cast("SeesrOptions", options)  # as `SrSpec.chosen` made them
