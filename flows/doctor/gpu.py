"""Checks of NVIDIA GPUs: the card, its driver, and the torch that is to use them."""

import os
import re
import shutil

from flows.doctor.case import Case, Finding, fail, gigabytes, ok, warn

OLDEST_DRIVERS = {11: (450, 80), 12: (525, 60), 13: (580, 0)}
"""Oldest driver for Linux of each CUDA major version. Source: NVIDIA, CUDA Compatibility, minor versions."""

_NVIDIA = "0x10de"
_DISPLAY = "0x03"  # PCI class of display controllers: VGA, and 3D without a monitor
_FREE_BYTES = 4e9


def cards(case: Case) -> int:
    """Return how many NVIDIA cards are on the machine's bus, with a driver or without."""
    count = 0
    for device in sorted((case.system / "sys/bus/pci/devices").glob("*")):
        vendor, kind = (case.text(f"sys/bus/pci/devices/{device.name}/{name}") or "" for name in ("vendor", "class"))
        count += vendor.strip() == _NVIDIA and kind.startswith(_DISPLAY)
    return count


def driver_version(case: Case) -> str | None:
    """Return the version of the NVIDIA driver's kernel module; None where none is loaded, or none can be seen."""
    text = case.text("proc/driver/nvidia/version")
    found = re.search(r"Kernel Module.*?\s(\d{3,}\.\d+(?:\.\d+)?)\s", text) if text else None
    return found[1] if found else None


def driver(case: Case) -> Finding:
    """Look whether a card has its driver."""
    found, there = driver_version(case), cards(case)
    if found is not None:
        return ok(f"driver {found}")
    if there:
        words = f"{there} NVIDIA card{'s' if there > 1 else ''}, and no driver here"
        return fail(words) if _needed_here(case) else warn(words)
    if _needed_here(case):
        return fail(f"no NVIDIA card, and RUN.yaml says gpus_per_actor: {case.gpus:g}")
    return ok("no NVIDIA card: runs go on the CPU")


def build(case: Case) -> Finding:
    """Look whether torch was built for GPUs where there is one."""
    import torch

    there = driver_version(case) is not None or shutil.which("nvidia-smi") is not None
    cuda = torch.version.cuda
    if cuda is not None:
        return ok(f"torch {torch.__version__} for CUDA {cuda}")
    if not there:
        return ok(f"torch {torch.__version__} for CPUs")
    words = f"torch {torch.__version__} is built for CPUs only, and there is a GPU"
    return fail(words) if _needed_here(case) else warn(words)


def _needed_here(case: Case) -> bool:
    """Return whether RUN.yaml asks for GPUs that have to be of this machine, and torch sees none."""
    import torch

    return bool(case.gpus) and not os.environ.get("RAY_ADDRESS") and not torch.cuda.is_available()


def cuda(case: Case) -> Finding | None:
    """Look whether torch can use the driver."""
    import torch

    version = driver_version(case)
    if torch.version.cuda is None or version is None:
        return None
    if torch.cuda.is_available():
        return ok(f"{torch.cuda.device_count()} x {torch.cuda.get_device_name(0)}")
    major = int(torch.version.cuda.split(".")[0])
    oldest = OLDEST_DRIVERS.get(major)
    if oldest is not None and tuple(map(int, version.split(".")[:2])) < oldest:
        needed = ".".join(map(str, oldest))
        return fail(f"driver {version} is too old: CUDA {torch.version.cuda} of torch needs {needed} or newer")
    return fail(f"driver {version}, and torch for CUDA {torch.version.cuda} finds no GPU that it can use")


def memory(case: Case) -> Finding | None:  # noqa: ARG001  # torch knows
    """Look whether somebody else fills a GPU's memory."""
    import torch

    if not torch.cuda.is_available():
        return None
    each = {f"cuda:{n}": torch.cuda.mem_get_info(n) for n in range(torch.cuda.device_count())}
    found = ", ".join(f"{name}: {gigabytes(free)} of {gigabytes(total)} free" for name, (free, total) in each.items())
    return warn(found) if any(free < _FREE_BYTES for free, _ in each.values()) else ok(found)
