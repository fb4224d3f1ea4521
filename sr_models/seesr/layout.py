"""SeeSR's official files: which there are in a folder as it is downloaded; to list them, no network is imported.

    FOLDER                              the official `preset/models`
    ├── stable-diffusion-2-base         as its authors published it; with the option `base: sd-turbo`, sd-turbo instead
    │   ├── scheduler/scheduler_config.json
    │   ├── text_encoder/{config.json, model.safetensors}
    │   ├── tokenizer/{vocab.json, merges.txt, special_tokens_map.json}
    │   └── vae/{config.json, diffusion_pytorch_model.safetensors}
    ├── seesr                           of SeeSR's release
    │   ├── controlnet/{config.json, diffusion_pytorch_model.safetensors}
    │   └── unet/{config.json, diffusion_pytorch_model.safetensors}
    ├── DAPE.pth                        of SeeSR's release
    ├── ram_swin_large_14m.pth          of Recognize Anything
    ├── ram_tag_list.txt                of SeeSR's repository, folder ram/data
    └── ram_tag_list_threshold.txt      of SeeSR's repository, folder ram/data

Where there is no `.safetensors`, a PyTorch file is read (`diffusion_pytorch_model.bin`, `pytorch_model.bin`), as
tensors only: nothing in it is run. Other files may lie there too; they are not read. SD-Turbo's folder needs its `unet`
beside the others. Nothing is downloaded.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from infra.errors import WeightsError
from sr_models.seesr.tags import NAMES_FILE, THRESHOLDS_FILE

Base = Literal["stable-diffusion-2-base", "sd-turbo"]

DAPE_FILE = "DAPE.pth"
RAM_FILE = "ram_swin_large_14m.pth"
DAPE_CONFIG = "dape_config.json"
"""Sizes of a DAPE that are not the official ones; there is no such file among the official ones."""

_SEESR = "SeeSR's release, linked from https://github.com/cswry/SeeSR"
_TAGS = "https://github.com/cswry/SeeSR, folder ram/data"
_RAM = "https://huggingface.co/spaces/xinyu1205/recognize-anything"
BASES: Mapping[Base, tuple[str, str]] = {
    "stable-diffusion-2-base": (
        "Stable Diffusion 2-base",
        "a mirror of stabilityai/stable-diffusion-2-base, which was removed from huggingface.co in 2025",
    ),
    "sd-turbo": ("SD-Turbo", "https://huggingface.co/stabilityai/sd-turbo"),
}
"""Its name for a person, and where it is found."""
_DIFFUSERS = ("diffusion_pytorch_model.safetensors", "diffusion_pytorch_model.bin")
_TRANSFORMERS = ("model.safetensors", "pytorch_model.bin")


@dataclass(frozen=True, slots=True)
class _Needed:
    """A file that SeeSR reads."""

    names: tuple[str, ...]
    """Its path in the folder; of several, the first that is there."""
    what: str
    """What it is, for a person."""
    where: str
    """Where it is found."""

    def find(self, folder: Path) -> Path | None:
        """Return its path in the folder, None where it is not there."""
        return next((Path(name) for name in self.names if (folder / name).is_file()), None)


def _needed(base: Base) -> tuple[_Needed, ...]:
    title, where = BASES[base]

    def one(name: str, what: str, where: str) -> _Needed:
        return _Needed((name,), what, where)

    def network(place: str, files: tuple[str, ...], what: str, where: str) -> tuple[_Needed, _Needed]:
        weights = _Needed(tuple(f"{place}/{file}" for file in files), f"{what}, weights", where)
        return one(f"{place}/config.json", f"{what}, sizes", where), weights

    return (
        one(f"{base}/scheduler/scheduler_config.json", f"{title}'s noise schedule", where),
        *network(f"{base}/text_encoder", _TRANSFORMERS, f"{title}'s text encoder", where),
        *(
            one(f"{base}/tokenizer/{file}", f"{title}'s tokenizer", where)
            for file in ("vocab.json", "merges.txt", "special_tokens_map.json")
        ),
        *network(f"{base}/vae", _DIFFUSERS, f"{title}'s VAE", where),
        *(network(f"{base}/unet", _DIFFUSERS, f"{title}'s UNet", where) if base == "sd-turbo" else ()),
        *network("seesr/unet", _DIFFUSERS, "SeeSR's UNet", _SEESR),
        *network("seesr/controlnet", _DIFFUSERS, "SeeSR's ControlNet", _SEESR),
        one(DAPE_FILE, "SeeSR's DAPE, what was tuned of RAM", _SEESR),
        one(RAM_FILE, "RAM, the tagger that DAPE was tuned from", _RAM),
        one(NAMES_FILE, "the tags' names", _TAGS),
        one(THRESHOLDS_FILE, "the tags' thresholds", _TAGS),
    )


def files(folder: Path, base: Base = "stable-diffusion-2-base") -> tuple[Path, ...]:
    """Return the files that SeeSR reads from a folder, sorted, relative to it: exactly those that determine its output.

    Args:
        folder: In the official layout, see above.
        base: Which Stable Diffusion is meant, see `SeesrOptions.base`.

    Raises:
        WeightsError: The folder or some of the files are not there; the message lists all of them, and where they are
            found.
    """
    if not folder.is_dir():
        wanted = "\n".join(f"  {needed.names[0]}: {needed.what}, from {needed.where}" for needed in _needed(base))
        raise WeightsError(f"seesr needs a folder with its official files, and {folder} is none. It holds\n{wanted}")
    found = [(needed, needed.find(folder)) for needed in _needed(base)]
    missing = [needed for needed, path in found if path is None]
    if missing:
        told = "\n".join(f"  {' or '.join(needed.names)}: {needed.what}, from {needed.where}" for needed in missing)
        raise WeightsError(f"{folder} lacks {len(missing)} of the {len(found)} files that seesr needs:\n{told}")
    own = [Path(DAPE_CONFIG)] if (folder / DAPE_CONFIG).is_file() else []
    return tuple(sorted([path for _, path in found if path is not None] + own, key=Path.as_posix))
