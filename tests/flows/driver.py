"""Runs the flow on several configurations: python -m tests.flows.driver A.yaml B.yaml."""

import sys
from pathlib import Path

from flows.archive import archive
from flows.config import load_config

if __name__ == "__main__":
    for path in sys.argv[1:]:
        print(archive(load_config(Path(path))))
