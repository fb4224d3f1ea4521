"""A system of files as /proc, /sys and /dev would have them, with whatever trouble a test wants."""

from pathlib import Path

OPEN_DRIVER = "NVRM version: NVIDIA UNIX Open Kernel Module for x86_64  {}  Release Build  (dvs-builder)\n"
CLOSED_DRIVER = "NVRM version: NVIDIA UNIX x86_64 Kernel Module  {}  Thu Oct  5 12:01:02 UTC 2023\n"


def written(root: Path, **files: str) -> Path:
    """Write files, named with __ for a slash and _ kept, and return the root."""
    for name, text in files.items():
        path = root / name.replace("__", "/")
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return root


def with_card(root: Path, vendor: str = "0x10de", kind: str = "0x030200") -> Path:
    """Put a card on the bus."""
    device = root / "sys" / "bus" / "pci" / "devices" / "0000:01:00.0"
    device.mkdir(parents=True, exist_ok=True)
    (device / "vendor").write_text(f"{vendor}\n")
    (device / "class").write_text(f"{kind}\n")
    return root


def with_driver(root: Path, version: str, text: str = CLOSED_DRIVER) -> Path:
    """Load a driver."""
    return written(root, proc__driver__nvidia__version=text.format(version))
