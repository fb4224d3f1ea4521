"""Running one of the studies: the weight file that its RUN.yaml names, the flow, and its tables."""

import os
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from benchmarks.pqf_weights import expand

COMPRESSED = "weights/resnet50-imagenet-pqf.pth"
"""The backbone below $SUPERSCENE_DATA."""

WEIGHTS = Path("work/resnet50-imagenet-pqf.safetensors")
"""What the studies' RUN.yaml call it, expanded."""


@dataclass(frozen=True, slots=True)
class Study:
    """A finished run."""

    store: Path
    seconds: float
    """From the command to its end; shards that were there before are not done again."""

    def table(self, name: str) -> pd.DataFrame:
        """Return one of its tables."""
        return pd.read_parquet(self.store / "tables" / name)


def real_data() -> Path:
    """Return the folder of real data and weights, after expanding the backbone where that is not yet done.

    Raises:
        SystemExit: SUPERSCENE_DATA is not set.
    """
    data = os.environ.get("SUPERSCENE_DATA")
    if not data:
        sys.exit("this study needs SUPERSCENE_DATA: the folder of real data and weights")
    if not WEIGHTS.exists():
        expand(Path(data, COMPRESSED), WEIGHTS)
    return Path(data)


def run_study(run_yaml: Path, store: Path) -> Study:
    """Run a study in the current directory and return it; it goes on where it stopped.

    Raises:
        SystemExit: The run failed.
    """
    started = time.monotonic()
    superscene = Path(sys.executable).with_name("superscene")
    result = subprocess.run([superscene, "run", run_yaml], check=False)
    if result.returncode:
        sys.exit(result.returncode)
    return Study(store, time.monotonic() - started)
