"""Run every notebook on a store, from its first cell to its last: python docs/run_notebooks.py STORE [--out FOLDER].

A cell that raises ends it, with exit code 1. With --out, notebooks are written there with what their cells showed.
"""

import argparse
import os
import sys
import time
from pathlib import Path

import nbformat
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parents[1]
NOTEBOOKS = ROOT / "notebooks"


def run_notebook(path: Path, store: Path, timeout: int = 300) -> NotebookNode:
    """Return a notebook with the outputs of its cells, run in its own folder.

    Args:
        path: The notebook.
        store: What it reads, as the environment variable SUPERSCENE_STORE.
        timeout: Seconds that a cell may take.

    Raises:
        CellExecutionError: A cell raised.
    """
    os.environ["SUPERSCENE_STORE"] = str(store.resolve())
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    notebook = nbformat.read(path, as_version=4)
    resources = {"metadata": {"path": path.parent}}
    NotebookClient(notebook, timeout=timeout, kernel_name="python3", resources=resources).execute()
    return notebook


def main() -> None:
    """Run them all and tell how long each took."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("store", type=Path, help="a store, such as demo/store")
    parser.add_argument("--out", type=Path, help="folder for the notebooks with their outputs")
    given = parser.parse_args()
    if not (given.store / "tables").is_dir():
        sys.exit(f"{given.store} is no store, as it has no tables: `make demo` makes one, demo/store")
    for path in sorted(NOTEBOOKS.glob("*.ipynb")):
        started = time.perf_counter()
        try:
            notebook = run_notebook(path, given.store)
        except CellExecutionError as error:
            sys.exit(f"{path.name}: {error}")
        sys.stdout.write(f"{path.name}: {time.perf_counter() - started:.0f} s\n")
        if given.out is not None:
            given.out.mkdir(parents=True, exist_ok=True)
            nbformat.write(notebook, given.out / path.name)


if __name__ == "__main__":
    main()
