"""Runs of the flow for tests, each a process of its own, and what their stores hold, ready to compare."""

import fcntl
import json
import os
import select
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import psutil
import torch
import yaml
import zarr

import classifiers
from infra.archives.synthetic import write_synthetic_archive

PROJECT = Path(__file__).resolve().parents[2]
PATCHES = 24


@dataclass(frozen=True)
class Inputs:
    """What every run of these tests shares: an archive, and a backbone of random numbers."""

    folder: Path

    @property
    def archive(self) -> Path:
        return self.folder / "archive"

    @property
    def backbone(self) -> Path:
        return self.folder / "resnet18.pth"

    @property
    def reference(self) -> Path:
        """Store of the run that the others are compared with."""
        return self.folder / "reference"

    def config(self, store: Path, path: Path | None = None, /, **changes: object) -> Path:
        """Write a RUN.yaml for a store, beside it unless told where, and return where."""
        settings: dict[str, object] = {
            "archive": {"layout": "bigearthnet-v2", "root": str(self.archive)},
            "store": str(store),
            "shard_size": 4,
            "sr": ["none", "bicubic"],
            "classifiers": ["resnet18"],
            "weights": {"resnet18": str(self.backbone)},
            "train": {"freeze_backbone": True, "epochs": 4, "batch_size": 8},
            "resources": {"batch_size": 4},
            **changes,
        }
        path = path or store.with_suffix(".yaml")
        path.write_text(yaml.safe_dump(settings), encoding="utf-8")
        return path


def shared_inputs(folder: Path) -> Inputs:
    """Make the inputs and the reference store once for all test processes of a session."""
    folder.mkdir(parents=True, exist_ok=True)
    inputs = Inputs(folder)
    with (folder / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "made").exists():
            write_synthetic_archive(inputs.archive, PATCHES)
            torch.manual_seed(0)
            torch.save(classifiers.build("resnet18", 1).backbone.state_dict(), inputs.backbone)
            result = superscene("run", inputs.config(inputs.reference), alone=True)
            assert result.returncode == 0, result.stderr
            (folder / "made").touch()
    return inputs


def superscene(*arguments: str | Path, timeout: float = 280, alone: bool = False) -> "subprocess.CompletedProcess[str]":
    """Run the command line to its end; in the session's driver, where there is one.

    Args:
        arguments: The words after `superscene`.
        timeout: Seconds.
        alone: In a process of its own, whose own Ray has this environment too.
    """
    words = [str(argument) for argument in arguments]
    if Driver.running is not None and not alone:
        return Driver.running.run(words, timeout)
    return subprocess.run(
        [str(Path(sys.executable).with_name("superscene")), *words],
        capture_output=True,
        text=True,
        timeout=timeout,
        check=False,
        env=environment(),
        cwd=PROJECT,
    )


def run_flows(configs: Sequence[Path]) -> "subprocess.CompletedProcess[str]":
    """Run several configurations one after the other, as far as the first that fails; return what all of them said."""
    said = ["", ""]
    for config in configs:
        result = superscene("run", config)
        said = [said[0] + result.stdout, said[1] + result.stderr]
        if result.returncode:
            break
    return subprocess.CompletedProcess(list(map(str, configs)), result.returncode, *said)


class Driver:
    """A process that runs one command after the other, `tests/flows/driver.py`: imports and Ray are paid once.

    One that did not answer is killed with its children, and the next command starts another.
    """

    running: ClassVar["Driver | None"] = None
    """The session's."""

    def __init__(self, folder: Path, program: Sequence[str] = (sys.executable, "-m", "tests.flows.driver")) -> None:
        """Make one whose outputs lie in a folder; it starts with its first command."""
        self._folder, self._program, self._commands = folder, program, 0
        self._process: subprocess.Popen[str] | None = None

    def run(self, words: list[str], timeout: float) -> "subprocess.CompletedProcess[str]":
        """Run one command to its end.

        Raises:
            TimeoutExpired: It takes longer.
            DriverError: The driver ended, or answered no exit code.
        """
        self._commands += 1
        outputs = [self._folder / f"{self._commands}-{name}" for name in ("stdout", "stderr")]
        for path in outputs:
            path.touch()
        try:
            process = self._process or self._started()
            code = _answer(process, json.dumps([environment(), words, *map(str, outputs)]), timeout)
        except BaseException as error:  # a test's own time limit too: no later command may read this one's answer
            self._kill()
            error.add_note(f"{' '.join(words)} said: {''.join(path.read_text() for path in outputs)}")
            raise
        return subprocess.CompletedProcess(words, code, *(path.read_text() for path in outputs))

    def end(self) -> None:
        """Let it leave its Ray and end."""
        if self._process is None:
            return
        try:
            self._process.communicate(timeout=60)
        finally:
            self._kill()

    def _started(self) -> "subprocess.Popen[str]":
        self._process = subprocess.Popen(
            self._program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment(), cwd=PROJECT
        )
        _answer(self._process, None, 120)
        return self._process

    def _kill(self) -> None:
        """Kill it and all processes below it."""
        process, self._process = self._process, None
        if process is None:
            return
        if process.poll() is None:  # else its number may be another's by now
            tree = psutil.Process(process.pid).children(recursive=True)
            process.kill()
            for child in tree:
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(tree, timeout=10)
        process.wait(timeout=10)
        for pipe in (process.stdin, process.stdout):
            with suppress(OSError):  # what the dead one did not read
                if pipe is not None:
                    pipe.close()


class DriverError(Exception):
    """A driver is of no use any more."""


def _answer(process: "subprocess.Popen[str]", asked: str | None, timeout: float) -> int:
    """Return the exit code that a driver answers to a line; None: to its start."""
    assert process.stdin is not None
    assert process.stdout is not None
    try:
        if asked is not None:
            print(asked, file=process.stdin, flush=True)
    except OSError as error:
        raise DriverError(f"the driver ended before the command, with {process.wait(10)}") from error
    if not select.select([process.stdout], [], [], timeout)[0]:
        raise subprocess.TimeoutExpired("driver", timeout)
    line = process.stdout.readline()
    try:
        return int(line)
    except ValueError as error:
        raise DriverError(f"the driver answered {line!r}" if line else "the driver ended within the command") from error


def environment() -> dict[str, str]:
    """Return an environment with a Prefect of its own and the project on the path."""
    quiet = {"PREFECT_SERVER_ANALYTICS_ENABLED": "false", "RAY_USAGE_STATS_ENABLED": "0"}
    awake = {"RAY_worker_niceness": "0"}  # Ray's 15 lets workers starve beside other tests
    home = os.environ.get("PYTEST_XDIST_WORKER", "main")
    return {
        **os.environ,
        **quiet,
        **awake,
        "PREFECT_HOME": f"{os.environ.get('TMPDIR', '/tmp')}/superscene-test-prefect-{os.getuid()}-{home}",
        "PREFECT_LOGGING_LEVEL": "CRITICAL",
        "PYTHONPATH": str(PROJECT),
    }


_TABLES = (
    "patches",
    "quarantine",
    "classes",
    "predictions",
    "explanations",
    "explanation_metrics",
    "quarantined_maps",
    "metrics",
    "comparisons",
    "sr_quality",
    "training",
)
_KEYS = (
    "sr",
    "reference",
    "classifier",
    "method",
    "seed",
    "split",
    "subset",
    "country",
    "season",
    "metric",
    "label",
    "area_quartile",
    "epoch",
    "patch_id",
    "path",
    "fitted",
)
_ORDERED = {"judd_auc", "pointing", "pointing_minus_area", *(f"iou_{n}" for n in (95, 90, 85, 80, 75))}
_ORDER_TOLERANCE = 1e-3
"""Rounding swaps pixels of nearly equal value, each of which moves such a number by a step of its own."""
_PLACEMENT = ("shard", "row", "map_index", "seconds", "wait_share")


def tables(store: Path) -> dict[str, pd.DataFrame]:
    """Return every table by name, without placement and times, in the order of its keys."""
    found = {}
    for name in _TABLES:
        table = pd.read_parquet(store / "tables" / name)
        table = table.drop(columns=[column for column in _PLACEMENT if column in table])
        table = table.astype(dict.fromkeys(table.select_dtypes("category").columns, str))
        keys = [key for key in _KEYS if key in table] or list(table.columns[:1])
        found[name] = table.sort_values(keys, ignore_index=True)
    return found


def assert_same_tables(store: Path, reference: Path, tolerance: float = 1e-5) -> None:
    """Compare two stores: the same rows, floats within tolerance, decisions alike but where a probability is 0.5."""
    ours, theirs = tables(store), tables(reference)
    probs = {name: np.stack(t["predictions"]["probs"].to_list()) for name, t in (("ours", ours), ("theirs", theirs))}
    assert np.abs(probs["ours"] - probs["theirs"]).max() <= tolerance
    doubtful = (np.abs(probs["theirs"] - 0.5) < tolerance).any(axis=1)
    decided = [t["predictions"]["predicted"][~doubtful].map(tuple).to_list() for t in (ours, theirs)]
    assert decided[0] == decided[1]
    for name, table in ours.items():
        left, right = table, theirs[name]
        if name in {"explanations", "explanation_metrics", "metrics", "comparisons"} and doubtful.any():
            continue  # their rows follow from decisions that may differ
        if name == "predictions":
            left, right = (t.drop(columns=["probs", "predicted", "config"]) for t in (left, right))
        # Configs follow from the checkpoint's bytes, which rounding changes.
        left, right = (
            t.drop(columns=[c for c in ("config", "reference_config", "map_store") if c in t]) for t in (left, right)
        )
        pd.testing.assert_series_equal(left.dtypes, right.dtypes)  # which masking would change
        of_orders = _of_orders(left)
        for mask, allowed in ((of_orders, _ORDER_TOLERANCE), (~of_orders, tolerance)):
            chosen, expected = left.where(mask), right.where(mask)
            pd.testing.assert_frame_equal(chosen, expected, check_exact=False, rtol=0, atol=allowed)


def _of_orders(table: pd.DataFrame) -> pd.DataFrame:
    """Return which cells follow from the order of a map's pixels: columns, or rows of metrics of that name."""
    found = pd.DataFrame(data=False, index=table.index, columns=table.columns)
    found[[name for name in table if name in _ORDERED]] = True
    if "metric" in table:
        found.loc[table["metric"].isin(_ORDERED), ["value", "low", "high"]] = True
    return found


def maps_by_patch(store: Path) -> dict[tuple[str, str, str], np.ndarray]:
    """Return the activation maps of every patch, SR model and method."""
    patches = pd.read_parquet(store / "tables" / "patches").set_index("patch_id")
    found = {}
    explanations = pd.read_parquet(store / "tables" / "explanations")
    for (sr, method, map_store), _ in explanations.groupby(["sr", "method", "map_store"], observed=True):
        array = zarr.open_group(store / str(map_store), mode="r")
        size = int(str(array.attrs["shard_size"]))
        values = np.asarray(array["maps"], np.float32) * np.asarray(array["scale"])[:, :, None, None]
        for patch_id, patch in patches.iterrows():
            found[str(patch_id), str(sr), str(method)] = values[patch["shard"] * size + patch["row"]]
    return found


def part_states(store: Path) -> dict[Path, tuple[int, bytes]]:
    """Return every file of the finished shards of every stage with its time of writing and its bytes.

    A shard is finished by its stage's own part. A side table may lie there without it, where the disk was full between
    the two; the next run writes it again.
    """
    own = (path for config in (store / "work").glob("*/*/") for path in config.glob("part-*.parquet"))
    finished = [file for part in own for file in (part, *part.parent.glob(f"*/{part.name}"))]
    return {path: (path.stat().st_mtime_ns, path.read_bytes()) for path in finished}
