"""Runs the flow on an archive whose reader kills its process at one patch: CONFIG.yaml PATCH_ID."""

import os
import signal
import sys
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

from flows.archive import archive
from flows.cli import plain_errors
from flows.config import load_config
from infra.archives.layouts import ArchiveOptions, open_archive
from infra.archives.model import Archive, Patch, PatchInput, Scan


@dataclass(frozen=True)
class Poisoned:
    """An archive like another, but for one patch."""

    archive: Archive
    patch_id: str

    @property
    def version(self) -> str:
        return self.archive.version

    def scan(self) -> Scan:
        return self.archive.scan()

    def read(self, patch: PatchInput) -> Patch:
        if patch.patch_id == self.patch_id:
            os.kill(os.getpid(), signal.SIGKILL)
        return self.archive.read(patch)


if __name__ == "__main__":
    from tests.flows.poisoned import Poisoned as Importable  # under its own name, for the actors

    def open_poisoned(layout: str, root: Path, options: ArchiveOptions, kept: Path | None = None) -> Archive:
        return Importable(open_archive(layout, root, options, kept), sys.argv[2])

    with mock.patch("flows.archive.open_archive", open_poisoned), plain_errors():
        archive(load_config(Path(sys.argv[1])))
