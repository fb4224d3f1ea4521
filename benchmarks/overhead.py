"""What Prefect, Ray, Zarr and Parquet cost: `superscene predict` beside a bare loop over the same models and shards.

    python benchmarks/overhead.py [--patches 224] [--shard-size 16] [--sr srresnet] [--network resnet50]
                                  [--method grad_cam] [--batch-size 16] [--repeats 2]
                                  [--out benchmarks/results/overhead.json]

The bare loop is one process that has all pixels and reference maps in memory and its models loaded: it super-resolves
each batch, judges it, classifies it, makes its maps and the noise that stands beside them, and says in numbers where
those of the predicted labels point, by the functions that the flow's workers call, and keeps what comes out in lists.
The run is the command as a user gives it, on an ingested store: Prefect's embedded server, Ray, one actor with as many
threads as the loop, pixels read from Zarr, maps written to Zarr, rows to Parquet, tables published. Loops and runs take
turns, a loop first and last, each run into a store that holds the ingested archive alone; the fastest of each counts,
since other work on the machine comes and goes. The runs' probabilities are those of the loop, or there is no table.

The flow's workers keep memory that they free (infra/allocator.py), and so does the loop; before it does, it runs once
as a loop would that somebody writes in an afternoon, which is told beside it.

Start-up is told apart: from the command to the first shard. Its end is not seen from outside, so it is the time of the
first shard's part less the mean time from one part to the next. Overhead is all else that the run takes longer than the
loop: reading, writing and dispatching each shard, publishing, and ending.
"""

import argparse
import json
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
import yaml
from numpy.typing import NDArray

import classifiers
import sr_models
from benchmarks.prediction import MAX_DN, archive_of, checkpoint_of, device_name
from classifiers.cam.localisation import localise
from classifiers.cam.methods import FLOOR, method_and_options
from classifiers.cam.summary import summarise
from classifiers.cam.target import Target
from classifiers.checkpoint import TrainedClassifier
from classifiers.network import pool
from infra.allocator import keep_freed_memory
from infra.bigearthnet.reference_map import label_masks
from infra.parts import StageParts
from infra.zarr_store import ShardedStore
from sr_models.quality import quality_columns
from sr_models.stretch import to_unit
from tasks.branch import Branch, BranchReader, make_branch, worker_device
from tasks.explain import patch_seed
from tasks.trained import load_trained

GOAL = 0.05
"""Share of the bare loop."""
LEAST_SECONDS = 180.0
"""Of the bare loop, for the share to mean something."""
_SUPERSCENE = "from flows.cli import main; main()"
TOLERANCE = 1e-5
"""Of a probability."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Seconds of one run, and of the bare loop."""

    total: float
    """From the command to its end."""
    start_up: float
    """To the first shard."""
    shards: float
    """All shards."""
    end: float
    """From the last shard's part to the end: tables are published, processes end."""
    bare: float

    @property
    def overhead(self) -> float:
        """What the run takes longer than the loop, start-up apart, as a share of the loop."""
        return (self.shards + self.end - self.bare) / self.bare


def costs_of(began: float, parts: Sequence[float], ended: float, bare: float) -> Costs:
    """Return where a run's time went.

    Args:
        began: When the command was given, s.
        parts: When each shard's part was there, at least two.
        ended: When the command ended.
        bare: Seconds of the bare loop.
    """
    first, last = min(parts), max(parts)
    shard = (last - first) / (len(parts) - 1)
    return Costs(ended - began, first - shard - began, last - first + shard, ended - last, bare)


class BareLoop:
    """The loop, its pixels in memory and its models loaded."""

    def __init__(self, branch: Branch, trained: TrainedClassifier, method: str) -> None:
        self._branch, self._trained = branch, trained
        self._device = worker_device()
        reader = BranchReader(branch, self._device)
        self._engine = reader.engine
        self._methods = [method_and_options(name, {}) for name in (method, FLOOR)]
        trained.network.eval().to(self._device).to(memory_format=torch.channels_last)
        self._ids: list[str] = []
        self._batches: list[tuple[torch.Tensor, NDArray[np.uint16]]] = []
        archive = ShardedStore(branch.paths.archive)
        for shard in sorted(branch.ingest.done()):
            patches = branch.inputs.patches(shard).sort_by("row")
            rows = patches["row"].to_numpy()
            pixels = torch.from_numpy(reader.archive_rows(shard)[rows])
            codes = archive.read(shard, "reference_map")[rows].astype(np.uint16)
            self._ids += patches["patch_id"].to_pylist()
            starts = range(0, len(pixels), branch.batch_size)
            ends = ((start, start + branch.batch_size) for start in starts)
            self._batches += [(pixels[start:end], codes[start:end]) for start, end in ends]

    def run(self, batches: int | None = None) -> tuple[float, dict[str, NDArray[np.float32]]]:
        """Return the seconds of all shards, or of so many batches, and each patch's probabilities."""
        probs, maps, quality, numbers = [], [], [], []
        began, start = time.perf_counter(), 0
        with torch.inference_mode():
            for dn, codes in self._batches[:batches]:
                lr = dn.to(self._device)
                sr = self._engine.super_resolve(lr, self._branch.max_dn)
                quality.append(quality_columns(self._engine, lr, sr, self._branch.max_dn, None).cpu().numpy())
                x = self._trained.standardiser(to_unit(sr, self._branch.max_dn))
                x = x.contiguous(memory_format=torch.channels_last)
                network = self._trained.network
                activations = network.features(x)
                probs.append(self._trained.probabilities(network.classify(pool(activations))).cpu().numpy())
                patch, label = np.nonzero(self._trained.decisions(probs[-1]))
                masks = torch.from_numpy(label_masks(codes[patch], [self._trained.labels[i] for i in label]))
                seeds = [patch_seed(name) for name in self._ids[start : start + len(dn)]]
                start += len(dn)
                labels = tuple(range(network.num_labels))
                target = Target(network, x, labels, None, self._trained.activation, activations, seeds)
                for entry, chosen in self._methods:
                    found = entry.run(target, chosen).float()
                    maps.append(found.cpu().numpy())
                    of_label = label if entry.per_label else np.zeros_like(label)
                    found = found[torch.from_numpy(patch), torch.from_numpy(of_label)]
                    numbers += [summarise(found[:, None], codes.shape[1]), localise(found, masks.to(self._device))]
        seconds = time.perf_counter() - began
        ids = self._ids if batches is None else self._ids[:start]
        return seconds, dict(zip(ids, np.concatenate(probs), strict=True))


def run_yaml(folder: Path, options: argparse.Namespace, checkpoint: Path) -> Path:
    """Write the run's configuration, and return its file."""
    config = {
        "archive": {"layout": "bigearthnet-v2", "root": str(folder / "files")},
        "store": str(folder / "store"),
        "shard_size": options.shard_size,
        "sr": [options.sr],
        "sr_input_max_dn": MAX_DN,
        "classifiers": ["measured"],
        "trained": {"measured": str(checkpoint)},
        "explain": {"methods": [options.method]},
        "keep_sr": "never",
        "resources": {"actors": 1, "batch_size": options.batch_size},
    }
    path = folder / "RUN.yaml"
    path.write_text(yaml.safe_dump(config))
    return path


def run_command(path: Path, home: Path) -> tuple[float, float]:
    """Run `superscene predict` and return when it began and ended, by the clock of files' times.

    Raises:
        SystemExit: It failed.
    """
    environment = {**os.environ, "PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false"}
    began = time.time()
    done = subprocess.run([sys.executable, "-c", _SUPERSCENE, "predict", str(path)], env=environment, check=False)
    if done.returncode:
        raise SystemExit("the run failed")
    return began, time.time()


def check_probabilities(parts: StageParts, expected: dict[str, NDArray[np.float32]]) -> None:
    """Compare the run's probabilities with the loop's.

    Raises:
        SystemExit: They differ.
    """
    found: dict[str, list[float]] = {}
    for shard in parts.done():
        table = parts.read(shard)
        found |= dict(zip(table["patch_id"].to_pylist(), table["probs"].to_pylist(), strict=True))
    if found.keys() != expected.keys():
        raise SystemExit(f"the run has {len(found)} patches, the loop {len(expected)}")
    worst = max(float(np.abs(np.array(found[name]) - expected[name]).max()) for name in expected)
    if worst > TOLERANCE:
        raise SystemExit(f"probabilities differ by {worst:.1e}")


def measure(folder: Path, options: argparse.Namespace) -> tuple[Costs, list[float], float]:
    """Return where the fastest run's time went, the seconds of the loop each time it ran, and of the plain loop."""
    inputs = archive_of(folder, options.patches, options.shard_size)
    branch = make_branch(inputs, options.sr, None, batch_size=options.batch_size)
    checkpoint = checkpoint_of(branch, options.network, 0, folder / "checkpoint.safetensors")
    config = run_yaml(folder, options, checkpoint)
    ingested, store = folder / "ingested", folder / "store"
    loop = BareLoop(branch, load_trained(checkpoint, branch), options.method)
    shutil.copytree(store, ingested)
    loop.run(batches=1)  # what is done but once
    plain, expected = loop.run()
    keep_freed_memory()
    loops, runs = [loop.run()[0]], []
    for _ in range(options.repeats):
        shutil.rmtree(store)
        shutil.copytree(ingested, store)
        began, ended = run_command(config, folder / "prefect")
        (config_folder,) = (store / "work" / "predictions").iterdir()
        parts = StageParts(inputs.ingest.paths, "predictions", config_folder.name)
        check_probabilities(parts, expected)
        runs.append((began, [parts.path(shard).stat().st_mtime for shard in parts.done()], ended))
        loops.append(loop.run()[0])
    costs = [costs_of(began, times, ended, min(loops)) for began, times, ended in runs]
    return min(costs, key=lambda found: found.overhead), loops, plain


def show(costs: Costs, loops: Sequence[float], plain: float, patches: int) -> str:
    """Return the table as text."""
    loop = f"bare loop (of {', '.join(f'{seconds:.0f}' for seconds in loops)})"
    run = costs.shards + costs.end
    alone = costs.shards / costs.bare - 1
    lines = [
        f"{'':<34}{'seconds':>10}{'patches/s':>12}",
        f"{'plain loop, memory handed back':<34}{plain:>10.1f}{patches / plain:>12.2f}",
        f"{loop:<34}{costs.bare:>10.1f}{patches / costs.bare:>12.2f}",
        f"{'run, start-up apart':<34}{run:>10.1f}{patches / run:>12.2f}",
        f"{'  its shards':<34}{costs.shards:>10.1f}",
        f"{'  its end':<34}{costs.end:>10.1f}",
        f"{'start-up':<34}{costs.start_up:>10.1f}",
        f"overhead: {costs.overhead:.1%} of the bare loop (goal: {GOAL:.0%} at most), its shards alone {alone:.1%}",
        f"of the plain loop: {run / plain - 1:.1%}",
    ]
    if costs.bare < LEAST_SECONDS:
        lines.append(f"the loop took less than {LEAST_SECONDS:.0f} s: take more --patches")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--patches", type=int, default=224)
    parser.add_argument("--shard-size", type=int, default=16)
    parser.add_argument("--sr", choices=sr_models.names(), default="srresnet")
    parser.add_argument("--network", choices=classifiers.names(), default="resnet50")
    parser.add_argument("--method", choices=classifiers.explain_methods(), default="grad_cam")
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--repeats", type=int, default=2, help="runs; the loop runs once more")
    parser.add_argument("--out", type=Path, help="also write the figures here, as JSON")
    options = parser.parse_args(arguments)
    if options.patches <= options.shard_size:
        parser.error("the time from one shard to the next takes two of them: more --patches, or a smaller --shard-size")
    with tempfile.TemporaryDirectory() as name:
        costs, loops, plain = measure(Path(name), options)
    device = device_name(worker_device())
    print(f"{device}, {os.cpu_count()} cores, PyTorch {torch.__version__}; {options.sr}, {options.network}")
    print(f"{options.patches} patches in shards of {options.shard_size}")
    print(show(costs, loops, plain, options.patches))
    if options.out:
        record = {
            "benchmark": "overhead",
            "device": device,
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "date": datetime.now(UTC).date().isoformat(),
            "versions": {
                "python": platform.python_version(),
                **{name: version(name) for name in ("torch", "ray", "prefect", "zarr", "pyarrow", "superscene")},
            },
            **{key: value for key, value in vars(options).items() if key != "out"},
            **asdict(costs),
            "loops": loops,
            "plain_loop": plain,
            "overhead": costs.overhead,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
